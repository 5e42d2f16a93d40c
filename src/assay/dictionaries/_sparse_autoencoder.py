"""Sparse autoencoders and transcoders, trained on a subject's own vectors."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from assay._errors import AssayError
from assay._given import check_fields, checked
from assay.dictionaries._dictionary import Dictionary
from assay.dictionaries._fitted import FittedDictionaries, blocks_of, features_of, key_of
from assay.dictionaries._measures import Measures, measure
from assay.dictionaries._random import RandomDictionary
from assay.dictionaries._training import COUNTED, PENALIZED, Training, train
from assay.engine import Place, Samples
from assay.engine._rows import shuffled
from assay.simplify import label
from assay.simplify._protocol import check_positive

SAMPLE = 20_000
"""Vectors that a training is prepared on, thresholds are calibrated on and measures are taken of."""


@dataclass
class SparseAutoencoder(FittedDictionaries):
    """Replace vectors by what a sparse autoencoder makes of them, trained on the train split: one a place and stream.

    `kind` is how codes are made: "topk" (arXiv 2406.04093), "batchtopk" (2412.06410), "matryoshka" (2503.17547),
    "relu" (an L1 penalty), "jumprelu" (2407.14435) or "gated" (2404.16014). `k` features are on in every vector; in the
    mean over vectors with any kind but "topk", and for the last three the penalty is sought that gives so many, unless
    it is given as `penalty`. There are `expansion` features for each number of a vector, or `features`.

    `steps` of `batch` vectors, with the learning rate `lr` (default: 4e-3 at 1,024 features, and with one over the root
    of their number elsewhere). `rows` limits how many different vectors are trained on: a dictionary that is fitted
    again on a shift with fewer of them looks as if refitting cost something, so compare at equal `rows`. With `rescale`
    what a penalty has shrunk is lengthened by one number fitted on the train split. The same `seed` and vectors give
    the same bits.

    A reconstruction stands in for the vector without the error that it leaves: nothing of the subject is put back.
    After `fit`, `dictionaries_` has the trained ones by place, one a stream, and `measures_` what they do on a sample
    of the train split. `fit` raises AssayError for parameters that do not fit, and for fewer vectors than features.
    """

    k: int = 32
    kind: str = "topk"
    features: int | None = None
    expansion: int = 8
    steps: int = 2_000
    batch: int = 1_024
    lr: float | None = None
    penalty: float | None = None
    rows: int | None = None
    rescale: bool = True
    seed: int = 0

    streams: ClassVar[tuple[str, ...]] = ("queries", "keys")
    streams_rows: ClassVar[bool] = True
    keeps: ClassVar[bool] = True
    caution: ClassVar[str] = (
        "a dictionary is trained by many small steps: vectors that differ by 1e-6, as on another machine, give other "
        "features, so its figures come back with the dictionary that was saved, not with another training."
    )

    def __post_init__(self) -> None:
        check_fields(self)

    def check_parameters(self) -> None:
        """Raise AssayError for values that no dictionary can be trained with."""
        _check(self)

    @checked
    def fit(self, samples: Samples) -> "SparseAutoencoder":
        """Train a dictionary for each stream of each place."""
        _fit(self, samples, samples.places)
        return self

    def control(self) -> RandomDictionary:
        """As many random features, as many of them on, and one length that is fitted."""
        return RandomDictionary(self.features, self.expansion, self.k)


@dataclass
class Transcoder(FittedDictionaries):
    """Replace what MLPs give by what a transcoder makes of what enters them, trained on the train split.

    It acts at sites of MLPs (`layer0.mlp`, `all.mlp`): codes of what enters an MLP, behind the norm before it, are
    decoded to what the MLP gives (arXiv 2406.11944); with `skip` a linear map of what enters is added (2501.18823). The
    other parameters are those of `SparseAutoencoder`, and so is all else. Trained, it stands for the MLP's weights: the
    MLP itself has no part in the answer.
    """

    k: int = 32
    kind: str = "topk"
    features: int | None = None
    expansion: int = 8
    skip: bool = False
    steps: int = 2_000
    batch: int = 1_024
    lr: float | None = None
    penalty: float | None = None
    rows: int | None = None
    rescale: bool = True
    seed: int = 0

    streams: ClassVar[tuple[str, ...]] = ("mlp",)
    streams_rows: ClassVar[bool] = True
    keeps: ClassVar[bool] = True
    caution: ClassVar[str] = SparseAutoencoder.caution

    def __post_init__(self) -> None:
        check_fields(self)

    def check_parameters(self) -> None:
        """Raise AssayError for values that no dictionary can be trained with."""
        _check(self)

    @checked
    def fit(self, samples: Samples) -> "Transcoder":
        """Train a transcoder for the MLP of each place."""
        _fit(self, samples, blocks_of(self, samples))
        return self

    def control(self) -> RandomDictionary:
        """As many random features, as many of them on, and one length that is fitted."""
        return RandomDictionary(self.features, self.expansion, self.k, transcodes=True)


def _fit(recipe: SparseAutoencoder | Transcoder, samples: Samples, places: tuple[Place, ...]) -> None:
    """Train the dictionaries of a recipe, one for each stream of each place."""
    recipe.check_parameters()
    recipe.dictionaries_ = None
    found: dict[Place, tuple[Dictionary, ...]] = {}
    measures: dict[str, Measures] = {}
    shared = samples.shared
    for place in places:
        own = []
        for stream in samples.streams_of(place):
            # At a site of several places, each dictionary is the one that its place has alone.
            key = repr(recipe), place, stream
            if key not in shared:
                one, sample = _trained(recipe, samples, place, stream)
                shared[key] = one, measure(one, *sample)
            one, measures[key_of(place, stream)] = shared[key]
            own.append(one)
        found[place] = tuple(own)
    recipe.streams_, recipe.measures_ = {place: samples.streams_of(place) for place in places}, measures
    recipe.dictionaries_ = found


def _trained(
    recipe: SparseAutoencoder | Transcoder, samples: Samples, place: Place, stream: str
) -> tuple[Dictionary, tuple[Tensor, ...]]:
    """The dictionary of one stream, and the vectors that it was prepared and calibrated on."""
    streams = ("mlp_input", stream) if isinstance(recipe, Transcoder) else (stream,)
    sample = samples.some(place, SAMPLE, seed=recipe.seed, streams=streams)
    features = features_of(recipe, sample[0].shape[1], recipe.features, recipe.expansion, recipe.k)
    if len(sample[0]) < min(features, SAMPLE):
        raise AssayError(
            f"{label(recipe)}: {place} has {len(sample[0])} vectors on the sequences to fit on, and {features} "
            "features cannot be told from so few; fit on more sequences, or ask for fewer features."
        )
    counted = recipe.kind in COUNTED
    settings = Training(
        kind=recipe.kind,
        features=features,
        k=recipe.k if counted else None,
        penalty=recipe.penalty,
        l0=None if counted or recipe.penalty is not None else float(recipe.k),
        steps=recipe.steps,
        lr=recipe.lr,
        transcodes=isinstance(recipe, Transcoder),
        skip=isinstance(recipe, Transcoder) and recipe.skip,
        rescale=recipe.rescale,
        seed=recipe.seed,
    )
    options: dict[str, Any] = {"seed": recipe.seed, "streams": streams}
    if recipe.rows is None:
        rows = samples.rows(place, batch=recipe.batch, steps=recipe.steps, **options)
    else:
        rows = shuffled(samples.some(place, recipe.rows, **options), recipe.batch, recipe.seed)
    return train(settings, rows, sample=sample, calibration=sample).dictionary, sample


def _check(recipe: SparseAutoencoder | Transcoder) -> None:
    """Raise AssayError for parameters that no dictionary can be trained with."""
    whole = {name: getattr(recipe, name) for name in ("k", "expansion", "steps", "batch")}
    optional = {name: value for name in ("features", "rows") if (value := getattr(recipe, name)) is not None}
    check_positive(recipe, **whole, **optional)
    if recipe.kind not in (*COUNTED, *PENALIZED):
        known = ", ".join((*COUNTED, *PENALIZED))
        raise AssayError(f"{label(recipe)}: unknown kind {recipe.kind!r}; use one of {known}.")
    for name in ("lr", "penalty"):
        value = getattr(recipe, name)
        if value is not None and (not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e6):
            raise AssayError(f"{label(recipe)}: {name} is {value!r}; give a number above 0, or None for the default.")
    if recipe.penalty is not None and recipe.kind not in PENALIZED:
        raise AssayError(
            f"{label(recipe)}: a dictionary of the kind {recipe.kind!r} has its number of features on by k, and no "
            "penalty; leave it out."
        )

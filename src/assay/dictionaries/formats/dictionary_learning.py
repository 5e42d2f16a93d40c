"""Dictionaries in the format of dictionary_learning (`ae.pt`, `config.json`).

After the code of dictionary_learning 0.1.0; none of it is used here. `ae.pt` holds tensors by name, as torch saves
them; which class they belong to is in `config.json`, and without one is told from their names where these are a class's
own: those of TopK and BatchTopK are the same. Codes are those of `encode`; the library's loader of `AutoEncoder` makes
decoder directions of norm 1 and multiplies codes by what they were, unless told not to.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay.dictionaries._dictionary import Dictionary
from assay.dictionaries.formats._shared import Config, Tensors, listed, made, read_json, read_torch, refusal, short

CONFIG, WEIGHTS = "config.json", "ae.pt"


@dataclass(frozen=True)
class _Class:
    """A class of the library: how its codes are made, and what its tensors are called."""

    kind: str
    b_dec: str
    pre_bias: bool
    transposed: bool = True
    batch: bool = False
    own: tuple[str, ...] = ()
    trained_as: str | None = None


_CLASSES = {
    "AutoEncoder": _Class("relu", "bias", True),
    "AutoEncoderNew": _Class("relu", "decoder.bias", False),
    "GatedAutoEncoder": _Class("gated", "decoder_bias", True, own=("gate_bias", "mag_bias", "r_mag")),
    "JumpReluAutoEncoder": _Class("jumprelu", "b_dec", False, transposed=False, own=("threshold",)),
    "AutoEncoderTopK": _Class("topk", "b_dec", True, own=("k", "threshold")),
    "BatchTopKSAE": _Class("jumprelu", "b_dec", True, own=("k", "threshold"), batch=True, trained_as="batchtopk"),
    "MatryoshkaBatchTopKSAE": _Class(
        "jumprelu",
        "b_dec",
        True,
        transposed=False,
        own=("k", "threshold", "group_sizes"),
        batch=True,
        trained_as="matryoshka_batchtopk",
    ),
}


def _names(given: _Class) -> set[str]:
    """What the tensors of a class are called."""
    weights = {"encoder.weight", "decoder.weight"} if given.transposed else {"W_enc", "W_dec"}
    bias = set() if given.kind == "gated" else {"encoder.bias" if given.transposed else "b_enc"}
    return weights | bias | {given.b_dec, *given.own}


def read(path: Path) -> Dictionary:
    """The dictionary of a file. Raises AssayError where it holds none, or one that means something else here."""
    held = read_torch(path)
    config = _config(path)
    if not config.held and not path.name.startswith("ae"):
        raise refusal(
            path,
            f"is not named as dictionary_learning names its files ({WEIGHTS}, ae_1000.pt), and there is no {CONFIG} "
            "beside it; copy it there.",
        )
    name = _class_of(path, set(held), config)
    given = _CLASSES[name]
    trainer = config.inner("trainer")
    width, features = trainer.whole("activation_dim"), trainer.whole("dict_size")
    tensors = Tensors(path, held, CONFIG if width is not None else "its other tensors")
    encoder, decoder = ("encoder.weight", "decoder.weight") if given.transposed else ("W_enc", "W_dec")
    shape = tensors.shape(encoder)
    if len(shape) == 2:  # else taking it says what is wrong
        own = shape[::-1] if given.transposed else shape
        width, features = width or own[0], features or own[1]

    def weights(name: str, rows: int | None, columns: int | None) -> Any:
        return tensors.take(name, columns, rows).T if given.transposed else tensors.take(name, rows, columns)

    parts: dict[str, Any] = {
        "W_enc": weights(encoder, width, features),
        "W_dec": weights(decoder, features, width),
        "b_dec": tensors.take(given.b_dec, width),
    }
    match given.kind:
        case "gated":
            parts |= {"b_enc": tensors.take("gate_bias", features), "b_mag": tensors.take("mag_bias", features)}
            parts["r_mag"] = tensors.take("r_mag", features)
        case _:
            parts["b_enc"] = tensors.take("encoder.bias" if given.transposed else "b_enc", features)
    _activation(given, tensors, trainer, features, parts)
    tensors.finish()
    return made(path, _origin(name, given, trainer, config), kind=given.kind, pre_bias=given.pre_bias, **parts)


def _activation(given: _Class, tensors: Tensors, trainer: Config, features: int | None, parts: dict[str, Any]) -> None:
    """Thresholds and numbers of features, into the parts of a dictionary."""
    if "k" in given.own:
        k, said = tensors.whole("k"), trainer.whole("k")
        if said is not None and said != k:
            raise trainer.wrong("k", f"not the {k} that {tensors.path.name} holds")
        threshold = tensors.take("threshold")
        if given.kind == "topk":
            parts["k"] = k
            return
        if float(threshold) < 0:
            raise refusal(
                tensors.path,
                "holds a threshold below 0: training ended before it was set. Set it so that features are on as often "
                "as in training.",
            )
        parts["threshold"] = threshold.repeat(parts["b_enc"].numel())
        if "group_sizes" in given.own:
            groups = tensors.drop("group_sizes")
            if groups.dim() != 1 or groups.is_floating_point() or int(groups.sum()) != parts["b_enc"].numel():
                raise refusal(tensors.path, "holds group_sizes that do not add up to the number of features.")
    elif given.kind == "jumprelu":
        parts["threshold"] = tensors.take("threshold", features)


def _config(path: Path) -> Config:
    """The settings of a run: beside its last file, and above the folder of those of before."""
    places = [path.parent / CONFIG]
    if path.parent.name == "checkpoints":
        places.append(path.parent.parent / CONFIG)
    found = next((place for place in places if place.is_file()), None)
    return Config(found or places[0], {} if found is None else read_json(found))


def _class_of(path: Path, names: set[str], config: Config) -> str:
    """The class of a dictionary, by what is said of it, or by its tensors."""
    said = config.inner("trainer").text("dict_class")
    if said is not None and said not in _CLASSES:
        raise refusal(
            config.path, f"has trainer.dict_class: {short(said)}, which is not read; {', '.join(_CLASSES)} are."
        )
    fitting = [name for name, given in _CLASSES.items() if _names(given) == names]
    if said in fitting:
        return said
    shown = listed([short(name) for name in sorted(names)])
    if said is not None:
        raise refusal(path, f"does not hold the tensors of {said}, which {CONFIG} says it is; it holds {shown}.")
    if not fitting:
        raise refusal(path, f"holds tensors of no class of dictionary_learning: {shown}; copy {CONFIG} beside it.")
    if len(fitting) > 1:
        raise refusal(
            path,
            f"may be of the classes {' or '.join(fitting)}, whose tensors have the same names; copy the {CONFIG} of "
            "its training beside it.",
        )
    return fitting[0]


def _origin(name: str, given: _Class, trainer: Config, config: Config) -> dict[str, Any]:
    return {
        "format": "dictionary_learning",
        "architecture": name,
        "trained_as": given.trained_as,
        "model": trainer.text("lm_name"),
        "hook": trainer.text("submodule_name"),
        "layer": trainer.whole("layer", 0) if type(trainer.held.get("layer")) is int else None,
        "context": config.inner("buffer").whole("ctx_len"),
    }

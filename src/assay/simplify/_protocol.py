"""What a simplification is."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import numpy as np
from torch import Tensor, nn

from assay._errors import AssayError
from assay._fingerprint import NotHashableError, fingerprint
from assay._registry import Registry
from assay.engine import (
    ATTENTION,
    Edit,
    EditedSubject,
    Engine,
    Place,
    Proxy,
    Samples,
    Site,
    VectorEdit,
    check_proxy,
)
from assay.simplify._proxy import SimplifiedSubject
from assay.subjects import Subject
from assay.tasks import Split


@runtime_checkable
class Simplification(Protocol):
    """A recipe with parameters that turns a subject into a proxy.

    The estimator contract: `__init__` only stores its parameters, under their own names; `fit` learns from the train
    split's samples, keeps what it learned in attributes that end in `_`, forgets what an earlier `fit` learned, and
    returns self; `apply` makes a proxy of the subject that it was fitted on, simplified at every head of the samples:
    edits of the subject, or anything else that answers as the subject does (`assay.engine.Proxy`). Edits are given as
    `SimplifiedSubject(subject, edits, self)`, which can be saved.

    `streams` names what `fit` needs to see of each head: "queries" and "keys" for both, nothing for a recipe that
    does not depend on data. `control` gives a simplification that knows nothing of the data and removes as much, or
    None; a proxy that does no better than its control has explained nothing. No base class is needed: an object with
    these members is a simplification. `assay.testing.check_simplification` tells whether it keeps the contract.

    A recipe for vectors of any kind says so with a class attribute `any_stream = True`: then it may be used at sites
    that name a stream (`all.values`, `layer2.mlp`) or several (`layer1.head0+layer2.mlp`), is fitted once for all of
    them, and acts at each of `samples.places` on `samples.streams_of(place)`, of which `samples.of(place)` has the
    vectors. One that takes them as rows, a batch at a time (`samples.rows`, `samples.some`), says
    `streams_rows = True`: then its samples hold nothing, and rows are read when it asks for them, however many there
    are. A control that is drawn at random has `redrawn(number)`, which gives it with another draw: then it is judged
    several times. `caution`, a sentence, stands in the warnings of every comparison that judges the recipe.

    A recipe that belongs to one place, as what was trained on the vectors of a layer, says which: `own_sites(engine)`
    gives the names of sites at which it is judged whatever others are asked for, or None.

    A recipe that replaces the model as a whole says `whole = True`: it is judged once, whatever the sites (and
    `copies = False` if its proxy holds no weights of its own). If it learns
    from data beyond the vectors of `streams` (from `samples.split`, by running `samples.subject`), it says
    `learns = True`. `perturbation()` gives the control that changes as much at random, where the general one
    (`RandomPerturbation`, which moves vectors and patterns) cannot. `title` is how it is called, where its parameters
    would not tell, and `describe()` gives what the record is to keep of it. `check_parameters()` raises
    AssayError for values of parameters that no subject could have, and `check(subject, splits)`, before any work, for a
    subject or a split that it cannot stand for.

    `ablated()` gives the simplification in which everything is ablated that the recipe could keep (of a circuit: the
    empty one, with the same ablation), or None. It is judged as a control, and says in place of mean ablation of the
    site what there was to recover: what the recipe keeps is measured from there to the subject.

    A recipe whose proxies are no edits can be saved if they offer `save` (`assay.simplify.SavedProxy`, by
    `save_proxy`) and the class says how: `saved()` gives all that it holds in plain values, arrays and tensors, and
    the class method `restored(saved)` makes it again.
    """

    streams: ClassVar[tuple[str, ...]]

    def fit(self, samples: Samples) -> "Simplification":
        """Learn from samples of the heads to be simplified."""
        ...

    def apply(self, subject: Subject) -> Proxy:
        """The subject with this simplification in force at the fitted heads."""
        ...

    def control(self) -> "Simplification | None":
        """The simplification that this one has to beat."""
        ...


simplifications = Registry("assay.simplifications", "simplification", ("streams", "fit", "apply", "control"))
"""All simplifications by the name used on the command line (`svd:rank=8`)."""


def learns(simplification: Simplification) -> bool:
    """Whether `fit` takes anything from data, so that there is something to fit again."""
    return bool(getattr(simplification, "learns", bool(simplification.streams)))


def reads(simplification: Simplification, site: Site) -> tuple[str, ...]:
    """The streams of the train split that samples have to hold for a simplification to be fitted at a site."""
    own = () if getattr(simplification, "streams_rows", False) else simplification.streams
    return site.read if own and site.explicit else own


def is_whole(simplification: Simplification) -> bool:
    """Whether it replaces the model as a whole, so that it has no site."""
    return bool(getattr(simplification, "whole", False))


def own_sites_of(simplification: Simplification, engine: Engine) -> Sequence[str] | None:
    """The sites of a recipe that belongs to some; None for one that is judged wherever it is asked for."""
    own: Callable[[Engine], Sequence[str] | None] | None = getattr(simplification, "own_sites", None)
    return None if own is None else own(engine)


def copies_model(simplification: Simplification) -> bool:
    """Whether its proxy holds a model of its own, so that few of them fit into memory at a time."""
    return is_whole(simplification) and bool(getattr(simplification, "copies", True))


def ablated_of(simplification: Simplification) -> Simplification | None:
    """The simplification in which everything is ablated that this one could keep; None where it names none."""
    ablated: Callable[[], Simplification | None] | None = getattr(simplification, "ablated", None)
    return None if ablated is None else ablated()


_LONG = 60
"""Letters from which on a parameter is written by its hash."""


def label(simplification: object) -> str:
    """How a simplification is written in Python, with the parameters that differ from their defaults.

    It is the recipe's own `title`, where it has one. It stays short: an array or tensor is written with its type, shape
    and the start of its hash, a torch module with that of its weights, and so is whatever else takes more than a few
    words. Two that differ may thus have one label.
    """
    title: str | None = getattr(simplification, "title", None)
    if title is not None:
        return title
    parts = []
    for name, parameter in inspect.signature(type(simplification)).parameters.items():
        value = getattr(simplification, name)
        if not _equal(value, parameter.default):
            parts.append(f"{name}={_in_short(value)}")
    return f"{type(simplification).__name__}({', '.join(parts)})"


def _equal(value: object, default: object) -> bool:
    """Whether a parameter has its default; arrays are never taken to."""
    try:
        return value is default or (not isinstance(value, np.ndarray | Tensor) and bool(value == default))
    except (ValueError, RuntimeError):  # what holds arrays gives no single answer
        return False


def _in_short(value: object) -> str:
    if isinstance(value, Simplification):
        return label(value)
    if isinstance(value, np.ndarray | Tensor):
        kind = "array" if isinstance(value, np.ndarray) else "tensor"
        shape = "x".join(map(str, value.shape)) or "scalar"
        return f"{kind}({str(value.dtype).removeprefix('torch.')}, {shape}, {_start_of_hash(value)})"
    if isinstance(value, nn.Module):
        return f"{type(value).__name__}({_start_of_hash(dict(value.state_dict()))})"
    text = repr(value)
    if len(text) <= _LONG and "\n" not in text and " at 0x" not in text:
        return text
    return f"{getattr(value, '__name__', type(value).__name__)}({_start_of_hash(value)})"


def _start_of_hash(value: object) -> str:
    try:
        return fingerprint(value)[:8]
    except NotHashableError:
        return "?"


def applied(simplification: Simplification, subject: Subject) -> Proxy:
    """`simplification.apply(subject)`, which knows then what made it.

    Raises AssayError unless that is a proxy of the subject, left as it was.
    """
    before = _state(subject.model)
    proxy = simplification.apply(subject)
    what = f"{label(simplification)}.apply(subject)"
    check_proxy(proxy, subject, what)
    if _state(subject.model) != before:
        raise AssayError(f"{what} changes the weights of {subject!r} itself; leave them, and give edits.")
    return SimplifiedSubject(proxy.subject, proxy.edits, simplification) if type(proxy) is EditedSubject else proxy


def _state(model: nn.Module) -> list[tuple[int, int]]:
    """The tensors of a model, and how often torch has seen each changed: hashes would take long for every proxy."""
    tensors = (*model.parameters(), *model.buffers())
    return [(id(tensor), 0 if tensor.is_inference() else tensor._version) for tensor in tensors]


def proxy_of(
    simplification: object, subject: Subject, places: tuple[Place, ...] | None, edit: Callable[[Place], Edit]
) -> SimplifiedSubject:
    """A proxy from one edit a fitted place. Raises AssayError if nothing has been fitted."""
    if places is None:
        raise AssayError(f"{label(simplification)} has not been fitted; call fit(samples) before apply(subject).")
    return SimplifiedSubject(subject, [edit(place) for place in places], simplification)


_Learned = TypeVar("_Learned")


def vector_proxy(
    simplification: object,
    subject: Subject,
    learned: Mapping[Place, Sequence[_Learned]] | None,
    streams: Mapping[Place, Sequence[str]] | None,
    function: Callable[[_Learned], VectorEdit],
) -> SimplifiedSubject:
    """A proxy whose every stream is changed by a function of what was learned of it, a thing a stream of a place.

    Raises AssayError if nothing has been fitted.
    """
    found, meant = learned or {}, streams or {}

    def edit(place: Place) -> Edit:
        functions: dict[str, Any] = dict(zip(meant[place], map(function, found[place]), strict=True))
        return Edit(place, **functions)

    return proxy_of(simplification, subject, tuple(found) or None, edit)


def heads_of(simplification: object, samples: Samples) -> tuple[Place, ...]:
    """The places of the samples. Raises AssayError unless attention is meant at each."""
    for place in samples.places:
        if samples.streams_of(place) != ATTENTION:
            raise AssayError(
                f"{label(simplification)} is about attention and cannot act on the {samples.streams_of(place)[0]} of "
                f"{place}; give it heads, at a site without a stream."
            )
    return samples.places


def check_positive(simplification: object, **values: object) -> None:
    """Raise AssayError unless every value is a whole number of at least 1."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise AssayError(f"{label(simplification)}: {name} must be a whole number of at least 1.")


def source_of(simplification: object, samples: Samples) -> tuple[Subject, Split]:
    """The subject and the split that samples are of. Raises AssayError if they do not say."""
    if samples.subject is None or samples.split is None:
        raise AssayError(
            f"{label(simplification)} is fitted on the subject itself and its sequences, which these samples do not "
            "hold; take samples from assay.engine.collect(engine, split, ())."
        )
    return samples.subject, samples.split

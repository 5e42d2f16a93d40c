"""What stands for a subject, and how it answers a batch that the subject has seen."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay._errors import AssayError
from assay.engine._attention import Edit
from assay.engine._engine import Engine
from assay.engine._run import Run
from assay.engine._together import run_together, shared
from assay.subjects import Subject
from assay.tasks import Split

Divergences = Mapping[int, Float[Tensor, "batch query"]]
"""How far a proxy's attention rows are from the subject's, by layer, in nats, averaged over heads."""


@dataclass(frozen=True)
class Answer:
    """What a proxy gave on a batch.

    `logits` gives those of some positions, (batch, chosen, vocabulary), for a slice or an index of positions: whoever
    asks for a few at a time never holds them all. `attention` are the divergences of attention from the subject's, or
    why there are none. `held` is how many numbers are kept to answer from. `kl_error` is the mean KL in nats that the
    form of the answers makes by itself: of those that were stored, what rounding lost.
    """

    logits: Callable[[slice | Int[Tensor, " chosen"]], Float[Tensor, "batch chosen vocabulary"]]
    attention: Divergences | str
    held: int
    kl_error: float = 0.0


@runtime_checkable
class Watch(Protocol):
    """Takes in the attention rows of proxies that share a batch, and gives how far they are from the subject's."""

    @property
    def beside(self) -> Run | None:
        """A run whose rows `on_rows` needs beside those of the proxy; None where the subject's are kept."""
        ...

    def on_rows(self, layer: int, rows: slice, pattern: Tensor, clean: Tensor | None, /) -> None:
        """Take in some rows of a layer's pattern, and those of `beside`."""
        ...

    def divergences(self) -> Sequence[Divergences]:
        """Those of every proxy of the batch, when its run is over."""
        ...


@runtime_checkable
class Clean(Protocol):
    """What the subject's own pass on a batch left for its proxies.

    `run` is that pass, without logits; others resume from it. Attention is computed for `rows` queries at a time. Up to
    `together` proxies may share a batch (None: as many as pay).
    """

    @property
    def engine(self) -> Engine:
        """The engine of the subject."""
        ...

    @property
    def tokens(self) -> Int[Tensor, "batch position"]:
        """The batch."""
        ...

    @property
    def valid(self) -> Int[Tensor, "batch position"]:
        """1 at tokens, 0 at padding."""
        ...

    @property
    def batch(self) -> Split | None:
        """The batch as the task gave it, for proxies that need more than tokens; None where only those are known."""
        ...

    @property
    def run(self) -> Run:
        """The subject's run, to resume from."""
        ...

    @property
    def rows(self) -> int:
        """Queries at a time."""
        ...

    @property
    def together(self) -> int | None:
        """How many proxies may share a batch."""
        ...

    def watch(self, copies: int = 1) -> Watch | None:
        """Compares attention rows with the subject's, for so many proxies in one batch; None: nobody asked."""
        ...


@runtime_checkable
class Proxy(Protocol):
    """What claims to stand for a subject: anything that answers `(tokens, valid) -> logits` as the subject does.

    It may say itself how it runs, given what the subject's clean pass left: `answer(clean)` gives an `Answer`, and a
    class method `answer_together(proxies, clean)` yields the number and answer of each of several proxies of the class,
    which may share work. Without either it is called as it is, whole. A `Subject` is a proxy, too: another model.
    """

    def __call__(
        self, tokens: Int[Tensor, "batch position"], valid: Int[Tensor, "batch position"] | None = None
    ) -> Float[Tensor, "batch position vocabulary"]:
        """Logits of every position; `valid` is 1 at tokens and 0 at padding (default: no padding)."""
        ...


NOT_ASKED = "attention was not asked for"
NO_ATTENTION = "the proxy has no attention that could be compared with the subject's"


class EditedSubject:
    """A subject whose heads or blocks are edited; called like the subject, which itself stays as it is.

    On a batch that the subject has seen it resumes from the first edited layer. Stood for another subject (of other
    weights), it is run whole, as any other model.
    """

    def __init__(self, subject: Subject, edits: Sequence[Edit]) -> None:
        self.subject = subject
        self.edits = tuple(edits)
        self._engine: Engine | None = None
        self._same: dict[int, bool] = {}

    def __call__(
        self, tokens: Int[Tensor, "batch position"], valid: Int[Tensor, "batch position"] | None = None
    ) -> Float[Tensor, "batch position vocabulary"]:
        """Logits of every position; `valid` is 1 at tokens and 0 at padding (default: no padding)."""
        return self._own_engine().run(tokens, valid, edits=self.edits).logits

    def answer(self, clean: Clean) -> Answer:
        """The answer on the batch of `clean`, from the first edited layer on."""
        return next(answer for _, answer in self.answer_together([self], clean))

    @classmethod
    def answer_together(cls, proxies: Sequence["EditedSubject"], clean: Clean) -> Iterator[tuple[int, Answer]]:
        """Number and answer of each; on a GPU, those that begin in the same block share a batch."""
        engine = clean.engine
        own = [number for number, proxy in enumerate(proxies) if proxy.is_of(engine.subject)]
        for number in sorted(set(range(len(proxies))) - set(own)):
            other = proxies[number]
            yield number, run_whole(other._own_engine(), clean, edits=other.edits)
        edits = [proxies[number].edits for number in own]
        for places in shared(engine, clean.run, edits, most=clean.together):
            watch = clean.watch(len(places))
            on_rows, beside = (None, None) if watch is None else (watch.on_rows, watch.beside)
            options: dict[str, Any] = {"on_rows": on_rows, "rows": clean.rows, "logits": False}
            chosen = [edits[place] for place in places]
            if len(chosen) > 1:
                runs = run_together(engine, clean.run, chosen, **options)
            else:
                runs = [engine.run_from(clean.run, edits=chosen[0], beside=beside, **options)]
            found: Sequence[Divergences | str] = [NOT_ASKED] * len(runs) if watch is None else watch.divergences()
            for place, run, attention in zip(places, runs, found, strict=True):
                yield own[place], _from_run(engine, run, attention)

    def is_of(self, subject: Subject) -> bool:
        """Whether it edits this subject: the same model, or one of the same weights and configuration."""
        if self.subject.model is subject.model:
            return True
        key = id(subject.model)
        if key not in self._same:
            self._same[key] = (self.subject.weights_sha256, self.subject.config_sha256) == (
                subject.weights_sha256,
                subject.config_sha256,
            )
        return self._same[key]

    def _own_engine(self) -> Engine:
        if self._engine is None:
            self._engine = Engine(self.subject)
        return self._engine

    def __repr__(self) -> str:
        heads = ", ".join(str(edit.place) for edit in self.edits)
        return f"EditedSubject({self.subject!r}, simplified at {heads})"


class WholeModel:
    """Another model that stands for a subject, run whole, with what it has of the subject's attention compared.

    `vocabulary` is how many of its first logits count: those behind are padding. Where its architecture can be read,
    it is run as the subject is, block of rows by block of rows, so that a copy differs in not one bit.
    """

    def __init__(self, model: Subject, *, vocabulary: int | None = None) -> None:
        self.model, self.vocabulary = model, vocabulary
        self._engine: Engine | None = None
        self._unreadable: AssayError | None = None

    def __call__(
        self, tokens: Int[Tensor, "batch position"], valid: Int[Tensor, "batch position"] | None = None
    ) -> Float[Tensor, "batch position vocabulary"]:
        """Logits of every position; `valid` is 1 at tokens and 0 at padding (default: no padding)."""
        return self.model(tokens, valid)[..., : self.vocabulary]

    def answer(self, clean: Clean) -> Answer:
        """The answer on the batch of `clean`."""
        if self._engine is None and self._unreadable is None:
            try:
                self._engine = Engine(self.model)
            except AssayError as error:
                self._unreadable = error
        if self._engine is None:
            return _called(self, clean, f"its attention cannot be read: {self._unreadable}")
        return run_whole(self._engine, clean, vocabulary=self.vocabulary)

    def __repr__(self) -> str:
        return f"WholeModel({self.model!r})"


def run_whole(engine: Engine, clean: Clean, *, edits: Sequence[Edit] = (), vocabulary: int | None = None) -> Answer:
    """The answer of another model than the subject, through its own engine."""
    reason = _other_attention(clean.engine, engine)
    watch = clean.watch() if reason is None else None
    on_rows, beside = (None, None) if watch is None else (watch.on_rows, watch.beside)
    run = engine.run(
        clean.tokens,
        clean.valid,
        edits=edits,
        on_rows=on_rows,
        rows=clean.rows,
        beside=beside,
        logits=False,
    )
    return _from_run(engine, run, reason or (NOT_ASKED if watch is None else watch.divergences()[0]), vocabulary)


def answers(proxies: Sequence[Proxy], clean: Clean) -> Iterator[tuple[int, Answer]]:
    """Number and answer of every proxy on the batch of `clean`; those of one class that can share work do.

    Raises AssayError for a proxy that does not give logits for every token.
    """
    by_class: dict[type, list[int]] = {}
    for number, proxy in enumerate(proxies):
        by_class.setdefault(type(proxy), []).append(number)
    for kind, numbers in by_class.items():
        own = [proxies[number] for number in numbers]
        together: Callable[..., Iterator[tuple[int, Answer]]] | None = getattr(kind, "answer_together", None)
        found = enumerate(_answer(proxy, clean) for proxy in own) if together is None else together(own, clean)
        for place, answer in found:
            yield numbers[place], answer


def _answer(proxy: Proxy, clean: Clean) -> Answer:
    if isinstance(proxy, Subject):
        proxy = WholeModel(proxy)
    answer: Callable[[Clean], Answer] | None = getattr(proxy, "answer", None)
    return _called(proxy, clean, NO_ATTENTION) if answer is None else answer(clean)


def _called(proxy: Proxy, clean: Clean, reason: str) -> Answer:
    """The answer of a proxy that is called as it is."""
    try:
        with torch.no_grad():
            logits = proxy(clean.tokens, clean.valid)
    except (AssayError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # code of others may raise anything
        what = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise AssayError(
            f"{proxy!r} fails when it is called with tokens of shape {tuple(clean.tokens.shape)} and which of them are "
            f"valid ({what}); a proxy takes (tokens, valid) and gives logits (batch, position, vocabulary)."
        ) from error
    if not isinstance(logits, Tensor) or logits.shape[:-1] != clean.tokens.shape:
        given = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"type {type(logits).__name__}"
        raise AssayError(
            f"{proxy!r} gives logits of {given} for tokens of shape {tuple(clean.tokens.shape)}; a proxy gives a "
            "tensor (batch, position, vocabulary)."
        )
    return Answer(lambda positions: logits[:, positions], reason, logits.numel())


def _from_run(engine: Engine, run: Run, attention: Divergences | str, vocabulary: int | None = None) -> Answer:
    return Answer(lambda positions: engine.logits(run, positions)[..., :vocabulary], attention, run.held)


def _other_attention(engine: Engine, other: Engine) -> str | None:
    """Why the attention of another model cannot be compared with the subject's; None if it can.

    Their heads have to correspond, and the subject's rows may have to be made again by the other's code.
    """
    if engine.unreadable is not None:
        return f"the subject's attention cannot be read: {engine.unreadable}"
    kind, own = type(other.subject.model), type(engine.subject.model)
    if kind is not own:
        return f"the attention of a {kind.__name__} is not compared with that of a {own.__name__}"
    if (other.heads, other.widths) != (engine.heads, engine.widths):
        return "the other model has other heads than the subject"
    if other.by_rows != engine.by_rows:
        return "one of the two models' attention cannot be computed a few rows at a time, and the other's can"
    return None


def check_proxy(proxy: object, subject: Subject, what: str) -> None:
    """Raise AssayError unless `proxy` (called `what` in the message) can be judged as what it is.

    An `EditedSubject` is judged by its edits: one with another thing among them, or with a call of its own and no
    `answer` of its own, would be judged as something else.
    """
    if isinstance(proxy, type) or not isinstance(proxy, Proxy):
        raise AssayError(
            f"{what} is a {type(proxy).__name__}, not a proxy; what is judged is what apply(subject) of a fitted "
            "simplification gives: anything that answers (tokens, valid) with logits, such as an "
            "assay.engine.EditedSubject(subject, edits)."
        )
    if not isinstance(proxy, EditedSubject):
        return
    wrong = [type(edit).__name__ for edit in proxy.edits if not isinstance(edit, Edit)]
    if wrong:
        raise AssayError(
            f"{what} has a {wrong[0]} among its edits, which is not judged; say everything in assay.engine.Edit."
        )
    kind = type(proxy)
    if kind.__call__ is not EditedSubject.__call__ and (
        kind.answer_together.__func__ is EditedSubject.answer_together.__func__  # type: ignore[attr-defined]
    ):
        raise AssayError(
            f"{what} has a __call__ of its own, which is not judged; say everything in assay.engine.Edit, give the "
            "class an answer_together of its own, or make it no EditedSubject."
        )

"""Several edited runs in one batch: on a GPU, a batch of few tokens takes about as long as one of many."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from assay.engine._attention import Edit, RowObserver, replaced
from assay.engine._batches import copies_that_fit
from assay.engine._engine import Engine
from assay.engine._places import Place
from assay.engine._run import Run

_AGREE: WeakKeyDictionary[Engine, bool] = WeakKeyDictionary()


def shared(
    engine: Engine, clean: Run, edits: Sequence[Sequence[Edit]], *, most: int | None = None
) -> Iterator[list[int]]:
    """The numbers of runs that are to share a batch: they are first edited in the same block.

    At most `most` do, by default as many as fill a batch: one on a CPU, which is busy with one. They are alone as well
    where the architecture does not let several be told apart.
    """
    by_first: dict[int, list[int]] = {}
    for number, own in enumerate(edits):
        by_first.setdefault(engine.first_edited(own), []).append(number)
    count = copies_that_fit(engine, *clean.shape) if most is None else most
    if count > 1 and not _agree(engine):
        count = 1
    for numbers in by_first.values():
        for start in range(0, len(numbers), count):
            yield numbers[start : start + count]


def run_together(
    engine: Engine,
    clean: Run,
    edits: Sequence[Sequence[Edit]],
    *,
    on_rows: RowObserver | None = None,
    rows: int | None = None,
    logits: bool = True,
) -> list[Run]:
    """For each of `edits` the run that resumes from `clean`, all in one batch, one after the other.

    `on_rows` sees the rows of all of them, in that order; of each run nothing is kept but its logits (or what
    `Engine.logits` makes them of). Raises AssayError as `Engine.run` does.
    """
    several = clean.repeated(len(edits))
    run = engine.run_from(several, edits=_joint(edits), on_rows=on_rows, rows=rows, logits=logits)
    return list(run.parts(len(edits)))


def _agree(engine: Engine) -> bool:
    """Whether two runs in one batch come out as they do alone, which a few tokens show."""
    if engine not in _AGREE:
        head = next(head for head in engine.heads if head.layer == engine.layers // 2)
        edits = [[Edit(head, values=torch.zeros_like)], [Edit(head, queries=torch.zeros_like)]]
        clean = engine.run(engine.few_tokens(), resumable=True)
        try:
            found = [run.logits for run in run_together(engine, clean, edits)]
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError):
            found = []
        alone = [engine.run_from(clean, edits=own).logits for own in edits]
        same = (torch.allclose(*pair, atol=1e-4, rtol=1e-4) for pair in zip(found, alone, strict=False))
        _AGREE[engine] = bool(found) and all(same)
    return _AGREE[engine]


def _joint(edits: Sequence[Sequence[Edit]]) -> list[Edit]:
    """One edit a place, which gives every run's part of the batch to its own edit there."""
    by_place: dict[Place, dict[int, Edit]] = {}
    for number, own in enumerate(edits):
        for edit in own:
            by_place.setdefault(edit.place, {})[number] = edit
    joint = []
    for place, own_edits in by_place.items():
        streams: dict[str, Any] = {}
        for item in fields(Edit)[1:]:
            functions = {
                number: function
                for number, edit in own_edits.items()
                if (function := getattr(edit, item.name)) is not None
            }
            if functions:
                streams[item.name] = _by_part(item.name, functions, len(edits))
        joint.append(Edit(place, **streams))
    return joint


def _by_part(name: str, functions: Mapping[int, Callable[..., Tensor]], count: int) -> Callable[..., Tensor]:
    """A function of a batch of `count` equal parts that is `functions[number]` of part `number`, or the part itself."""

    def edit(*states: Tensor) -> Tensor:
        parts = zip(*(state.chunk(count) for state in states), strict=True)
        return torch.cat(
            [functions[n](*part) if n in functions else replaced(name, part) for n, part in enumerate(parts)]
        )

    return edit

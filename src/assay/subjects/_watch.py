"""A training that is looked at: what is measured on the way, which events it meets, and which models are kept."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from assay._errors import AssayError, unknown_name


@dataclass(frozen=True)
class Event:
    """The first look at a training at which a measure is past a threshold: above it, or with `above=False` below.

    The model is kept so many steps after it as `keep` says (0: at it). With `stop`, the training ends with the last of
    them: a rule that changes what is found, and so belongs to the recipe and to what is reported.
    """

    name: str
    measure: str
    threshold: float
    above: bool = True
    keep: tuple[int, ...] = (0,)
    stop: bool = False

    def __post_init__(self) -> None:
        if not math.isfinite(self.threshold):
            raise AssayError(f"Event {self.name!r}: threshold is {self.threshold}; give a finite number.")
        if any(steps < 0 for steps in self.keep):
            raise AssayError(f"Event {self.name!r}: keep is {self.keep}; a model is kept at the event (0) or later.")

    def holds(self, measured: Mapping[str, float]) -> bool:
        """Whether the measure is past the threshold. Raises AssayError where it was not measured."""
        if self.measure not in measured:
            raise unknown_name(f"measure of the event {self.name!r}", self.measure, measured)
        value = measured[self.measure]
        return value > self.threshold if self.above else value < self.threshold


@dataclass(frozen=True)
class Watch:
    """How a training is looked at.

    `look(model)` gives named measures of the model, which is in evaluation mode and asks for no gradients; it is called
    before the first step, every `every` steps, and after the last. Models are kept after the steps `at` (0: untrained)
    and as `events` say. A phase change comes at a step that nobody knows beforehand: that is what events are for; their
    step is that of the look, so known up to `every` steps.
    Raises AssayError for steps below 0, `every` below 1 and events of one name.
    """

    look: Callable[[PreTrainedModel], Mapping[str, float]]
    every: int = 50
    at: tuple[int, ...] = ()
    events: tuple[Event, ...] = ()

    def __post_init__(self) -> None:
        if self.every < 1:
            raise AssayError(f"every is {self.every}; look at least every step (1) or more seldom.")
        if any(step < 0 for step in self.at):
            raise AssayError(f"at is {self.at}; steps count from 0, the untrained model.")
        names = [event.name for event in self.events]
        if len({*names}) < len(names):
            raise AssayError(f"events are called {', '.join(names)}; give each its own name.")


@dataclass
class Watched:
    """What has been seen of a training so far.

    `log` has a line a look, its step under "step"; `events` are the steps of those that came; `kept` the weights of
    kept models by step, on the CPU.
    """

    log: list[dict[str, int | float]] = field(default_factory=list)
    events: dict[str, int] = field(default_factory=dict)
    kept: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    def after(self, step: int, model: PreTrainedModel, watch: Watch, *, last: bool) -> bool:
        """Look at a model after a step where it is time, keep it where it is asked for; whether the training ends."""
        if (step % watch.every == 0 or last) and (not self.log or self.log[-1]["step"] < step):
            self._look(step, model, watch)
        due = {self.events[event.name] + later for event in watch.events if event.name in self.events
               for later in event.keep}  # fmt: skip
        if step in due or step in watch.at:
            self.kept[step] = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        ends = [self.events[event.name] + max(event.keep, default=0) for event in watch.events
                if event.stop and event.name in self.events]  # fmt: skip
        return bool(ends) and step >= min(ends)

    def _look(self, step: int, model: PreTrainedModel, watch: Watch) -> None:
        model.eval()
        # What a look draws must not change what the training draws after it.
        with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []), torch.no_grad():
            measured = {name: float(value) for name, value in watch.look(model).items()}
        model.train()
        self.log.append({"step": step, **measured})
        for event in watch.events:
            if event.holds(measured):
                self.events.setdefault(event.name, step)

    def state(self) -> dict[str, Any]:
        """Everything, to go into a checkpoint; nothing of it changes with what is seen later."""
        return {"log": copy.deepcopy(self.log), "events": dict(self.events), "kept": dict(self.kept)}

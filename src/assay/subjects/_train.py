"""Training of the small reference models, in one sitting.

Notable: a batch is a pure function of (seed, step) and every source of randomness is in the checkpoint, so that an
interrupted run ends with the same weights, bit for bit, as an undisturbed one on the same machine.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from assay._errors import AssayError, unknown_name
from assay._files import write_atomically
from assay._given import checked
from assay.subjects._watch import Watch, Watched

IGNORED = -100
"""A label that carries no loss (the convention of torch's cross-entropy)."""

Optimizer = Literal["AdamW", "SGD"]


@dataclass(frozen=True)
class Batch:
    """Inputs and labels of one step; `labels[b, t]` is what position t should predict, or IGNORED.

    `weights` are what the losses count, all the same where they are None. `documents[b, t]` says which of several
    documents in its row position t belongs to: each is read as if it stood alone, from position 0, and sees no other.
    """

    tokens: Int[np.ndarray, "batch position"]
    labels: Int[np.ndarray, "batch position"]
    weights: Float[np.ndarray, "batch position"] | None = None
    documents: Int[np.ndarray, "batch position"] | None = None


@dataclass(frozen=True)
class Recipe:
    """How to train: AdamW, linear warm-up, then cosine decay to zero (or a constant rate).

    With a `cooldown` the rate is constant, too, but for that share of the steps at the end, in which it falls linearly
    to zero. The optimizer "SGD" is stochastic gradient descent with the first of `betas` as momentum.
    Raises AssayError for an unknown optimizer.
    """

    steps: int
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    warmup_steps: int = 0
    decay: bool = True
    clip_norm: float | None = 1.0
    checkpoint_every: int = 500
    cooldown: float | None = None
    optimizer: Optimizer = "AdamW"

    def __post_init__(self) -> None:
        if self.optimizer not in get_args(Optimizer):
            raise unknown_name("optimizer", str(self.optimizer), get_args(Optimizer))

    def rate(self, step: int) -> float:
        """The learning rate of a step, as a factor of `learning_rate`."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.cooldown is not None:
            return min(1.0, (self.steps - step) / max(1.0, self.cooldown * self.steps))
        if not self.decay:
            return 1.0
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return 0.5 * (1 + float(np.cos(np.pi * done)))


class BucketedBatches:
    """Language-model batches of similar lengths, about `tokens_per_batch` tokens each.

    Every epoch shuffles the sequences, sorts runs of them by length, cuts the runs into batches and shuffles the
    batches. `batches(step)` depends on nothing but the data, the seed and the step.
    """

    def __init__(
        self,
        tokens: Int[np.ndarray, "sequence position"],
        lengths: Int[np.ndarray, " sequence"],
        *,
        tokens_per_batch: int,
        seed: int,
    ) -> None:
        self.tokens = tokens
        self.lengths = lengths
        self.tokens_per_batch = tokens_per_batch
        self.seed = seed
        self._epoch = -1
        self._first_step = 0
        self._plan: list[np.ndarray] = []

    def _start_epoch(self, epoch: int) -> None:
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.tokens))
        batches: list[np.ndarray] = []
        run_length = 16_384
        for start in range(0, len(order), run_length):
            run = order[start : start + run_length]
            run = run[np.argsort(self.lengths[run], kind="stable")]
            begin = 0
            while begin < len(run):
                end = begin + 1
                while end < len(run) and (end + 1 - begin) * self.lengths[run[end]] <= self.tokens_per_batch:
                    end += 1
                batches.append(run[begin:end])
                begin = end
        self._plan = [batches[i] for i in rng.permutation(len(batches))]
        self._epoch = epoch

    def __call__(self, step: int) -> Batch:
        """The batch of a step (ascending steps are fast; going back starts over)."""
        if self._epoch < 0 or step < self._first_step:
            self._first_step = 0
            self._start_epoch(0)
        while step >= self._first_step + len(self._plan):
            self._first_step += len(self._plan)
            self._start_epoch(self._epoch + 1)
        rows = self._plan[step - self._first_step]
        lengths = self.lengths[rows]
        width = int(lengths.max())
        tokens = self.tokens[rows, :width].astype(np.int64)
        labels = np.full_like(tokens, IGNORED)
        labels[:, :-1] = tokens[:, 1:]
        position = np.arange(width)[None, :]
        labels[position >= (lengths - 1)[:, None]] = IGNORED
        # A causal model never looks at what follows; a copy of the first token needs no attention mask.
        tokens = np.where(position < lengths[:, None], tokens, tokens[:, :1])
        return Batch(tokens, labels)


@dataclass(frozen=True)
class Progress:
    """What a training run reports after a step."""

    step: int
    steps: int
    loss: float
    tokens: int


@dataclass(frozen=True)
class Trained:
    """What a finished training run knows of itself; `seconds` add up over interruptions.

    `log`, `events` and `kept` are there where it was watched (see `Watch`): a line a look with its "step", the step of
    every event that came, and the weights of the kept models by step, on the CPU. Where an event ended it, `steps` are
    those that were made.
    """

    steps: int
    tokens: int
    seconds: float
    final_loss: float
    log: tuple[Mapping[str, int | float], ...] = ()
    events: Mapping[str, int] = field(default_factory=dict)
    kept: Mapping[int, Mapping[str, Tensor]] = field(default_factory=dict)


def _next_tokens(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The mean cross-entropy of a batch, in nats, over labels that are not IGNORED, weighted where it has weights."""
    inputs = torch.from_numpy(batch.tokens).to(model.device)
    labels = torch.from_numpy(batch.labels).to(model.device).flatten()
    apart = {} if batch.documents is None else _apart(torch.from_numpy(batch.documents).to(model.device))
    logits = model(input_ids=inputs, **apart).logits.flatten(0, 1)
    if batch.weights is None:
        return torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED)
    weights = torch.from_numpy(batch.weights).to(model.device).flatten().where(labels != IGNORED, 0)
    losses = torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
    return (losses * weights).sum() / weights.sum()


def _untouched(step: int, batch: Batch) -> AbstractContextManager[object]:
    return nullcontext()


@checked
def train(
    model: PreTrainedModel,
    batches: Callable[[int], Batch],
    recipe: Recipe,
    *,
    checkpoint: Path | None,
    device: str = "cpu",
    report: Callable[[Progress], None] = lambda progress: None,
    loss: Callable[[PreTrainedModel, Batch], Tensor] = _next_tokens,
    around: Callable[[int, Batch], AbstractContextManager[object]] = _untouched,
    watch: Watch | None = None,
) -> Trained:
    """Train `model` in place on `batches(0), batches(1), …`; continue from `checkpoint` if it exists.

    `loss(model, batch)` is what is made small; by default the mean cross-entropy (nats) over labels that are not
    IGNORED, weighted where a batch has weights. Every loss, before its gradient is taken, is computed within
    `around(step, batch)`: what is clamped during training is clamped there (`assay.engine.Engine.clamped`). A training
    is looked at, its models are kept, and it may end early, as `watch` says. With `checkpoint=None` nothing is kept on
    disk. Returns what was done. Raises AssayError if the checkpoint belongs to another recipe, or if the loss stops
    being a number.
    """
    torch.nn.Module.to(model, device).train()
    optimizer = _optimizer(model, recipe)
    step, tokens, seconds, loss_sum, loss_count, final_loss = 0, 0, 0.0, 0.0, 0, float("nan")
    watched = Watched()
    settings = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(recipe).items()}
    if checkpoint is not None and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        if state["recipe"] != settings:
            raise AssayError(
                f"{checkpoint} was made with another recipe ({state['recipe']}, now {settings}); "
                "delete it to start over or choose another folder."
            )
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, tokens, seconds, final_loss = (
            state["step"],
            state["tokens"],
            state["seconds"],
            state["final_loss"],
        )
        loss_sum, loss_count = state["loss_sum"], state["loss_count"]
        watched = Watched(**state["watched"])
        torch.set_rng_state(state["random"].cpu())
        if state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"].cpu(), device)

    started = time.monotonic()
    ended = watch is not None and watched.after(step, model, watch, last=step >= recipe.steps)
    while step < recipe.steps and not ended:
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * recipe.rate(step)
        batch = batches(step)
        with around(step, batch):
            made = loss(model, batch)
        value = made.item()
        if not np.isfinite(value):
            raise AssayError(
                f"the loss became {value} at step {step}; lower the learning rate ({recipe.learning_rate})."
            )
        optimizer.zero_grad(set_to_none=True)
        made.backward()
        if recipe.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        step += 1
        tokens += int((batch.labels != IGNORED).sum())
        loss_sum += value
        loss_count += 1
        ended = watch is not None and watched.after(step, model, watch, last=step == recipe.steps)
        last = ended or step == recipe.steps
        if step % 100 == 0 or last:
            final_loss = loss_sum / loss_count
            loss_sum, loss_count = 0.0, 0
        report(Progress(step, recipe.steps, final_loss if np.isfinite(final_loss) else value, tokens))
        if checkpoint is not None and (step % recipe.checkpoint_every == 0 or last):
            state = {
                "recipe": settings,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step,
                "tokens": tokens,
                "seconds": seconds + time.monotonic() - started,
                "final_loss": final_loss,
                "loss_sum": loss_sum,
                "loss_count": loss_count,
                "watched": watched.state(),
                "random": torch.get_rng_state(),
                "random_cuda": torch.cuda.get_rng_state(device) if device.startswith("cuda") else None,
            }
            write_atomically(checkpoint, lambda path, state=state: torch.save(state, path))  # type: ignore[misc]
    model.eval()
    return Trained(
        step,
        tokens,
        seconds + time.monotonic() - started,
        final_loss,
        tuple(watched.log),
        watched.events,
        watched.kept,
    )


def _optimizer(model: PreTrainedModel, recipe: Recipe) -> torch.optim.Optimizer:
    common: dict[str, Any] = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "SGD":
        return torch.optim.SGD(model.parameters(), momentum=recipe.betas[0], **common)
    return torch.optim.AdamW(model.parameters(), betas=recipe.betas, **common)


def _apart(documents: Int[Tensor, "batch position"]) -> dict[str, Bool[Tensor, "..."] | Int[Tensor, "..."]]:
    """What lets every document of a row be read as if it stood alone: who sees whom, and positions."""
    width = documents.shape[1]
    place = torch.arange(width, device=documents.device)
    sees = (documents[:, :, None] == documents[:, None, :]) & (place[:, None] >= place[None, :])
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    first = torch.where(starts, place, 0).cummax(dim=1).values
    return {"attention_mask": sees[:, None], "position_ids": place - first}

"""Compiled programs: a subject that computes a program, its inputs as a task, and the edges that it is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int

from assay._errors import AssayError, unknown_name
from assay.subjects import Subject
from assay.tasks import NO_TOKEN, UNSCORED, Kind, Role, Split
from assay.testing.compiled._nodes import Family, Program, Value

SHIFTS = ("few", "longest")


@dataclass(frozen=True)
class Compiled:
    """A program, and a model that computes it.

    The model reads a start token (0) and one token a word; at a word it gives the logit `sharpness` to the output
    there and 0 to all others. `names` are what the tokens stand for: the words, then the outputs that are no words.
    `edges` are all that its weights read, as circuits name them (`layer0.head0 -> layer1.head0.keys`): whatever else is
    exchanged or ablated changes nothing. Which of them can be seen to matter depends on the ablation: an exchange with
    another input does not show what is the same in both (positions); `effects` measures it.
    """

    program: Program
    subject: Subject
    family: Family
    names: tuple[Value, ...]
    edges: tuple[str, ...]
    sharpness: float

    @cached_property
    def _ids(self) -> dict[Value, int]:
        return {name: token for token, name in enumerate(self.names, start=1)}

    def token(self, name: Value) -> int:
        """The token of a word or an output."""
        return self._ids[name]

    def encode(
        self, inputs: Sequence[Sequence[Value]]
    ) -> tuple[Int[np.ndarray, "row position"], Int[np.ndarray, " row"]]:
        """Inputs as tokens, padded with 0 on the right, and their lengths. Raises AssayError for unknown words."""
        for words in inputs:
            self.program.check(words)
        lengths = np.array([1 + len(words) for words in inputs])
        tokens = np.zeros((len(inputs), lengths.max()), dtype=np.int64)
        for row, words in enumerate(inputs):
            tokens[row, 1 : lengths[row]] = [self._ids[word] for word in words]
        return tokens, lengths

    def outputs(self, inputs: Sequence[Sequence[Value]]) -> Int[np.ndarray, "row position"]:
        """What the program gives at every word, as tokens; `NO_TOKEN` elsewhere."""
        found = np.full((len(inputs), 1 + max(map(len, inputs))), NO_TOKEN)
        for row, words in enumerate(inputs):
            found[row, 1 : 1 + len(words)] = [self._ids[value] for value in self.program(words)]
        return found

    def task(self, seed: int = 0) -> "CompiledTask":
        """Random inputs of the program as a task; the sequences of a seed."""
        return CompiledTask(self, seed)


@dataclass(frozen=True)
class CompiledTask:
    """Random inputs of a compiled program: `train` and `iid` of all lengths and words, and two shifts.

    `few`: only the first two words of the program. `longest`: no shorter inputs. For a model that reads from left to
    right they come in pairs, with another input of the same length as counterfactual, and predictions are scored where
    the two outputs differ; else every word is scored.
    """

    compiled: Compiled
    seed: int = 0
    kinds: tuple[Kind, ...] = field(default=(Kind("output", "what the program gives at a word"),), init=False)
    features: tuple[()] = field(default=(), init=False)
    primary_kind: str = field(default="output", init=False)
    split_names: tuple[str, ...] = field(default=("train", "iid", *SHIFTS), init=False)

    @property
    def name(self) -> str:
        """The subject's name."""
        return self.compiled.subject.name

    def describe(self) -> dict[str, object]:
        """The program's words and length, and the seed."""
        program = self.compiled.program
        return {
            "task": self.name,
            "seed": self.seed,
            "length": program.length,
            "words": [str(word) for word in program.words],
            "family": self.compiled.family,
        }

    def split(self, name: str, sequences: int) -> Split:
        """The first `sequences` sequences of a split. Raises AssayError for an unknown split or a number below 1."""
        roles: Mapping[str, tuple[Role, str]] = {
            "train": ("train", "random words, of all lengths"),
            "iid": ("iid", "fresh inputs of that kind"),
            "few": ("shift", "only two of the words"),
            "longest": ("shift", "only the longest inputs"),
        }
        if name not in roles:
            raise unknown_name("split", name, roles)
        if sequences < 1:
            raise AssayError(f"split({name!r}, sequences={sequences}): must be at least 1.")
        rng = np.random.default_rng([self.seed, self.split_names.index(name)])
        role, description = roles[name]
        compiled = self.compiled
        if compiled.family == "bert":
            inputs = [self._draw(name, rng) for _ in range(sequences)]
            tokens, lengths = compiled.encode(inputs)
            outputs = compiled.outputs(inputs)
            return Split(
                name=name,
                role=role,
                description=description,
                tokens=tokens,
                lengths=lengths,
                kinds=np.where(outputs == NO_TOKEN, UNSCORED, 0),
                objective="masked",
                targets=outputs,
            )
        own: list[list[Value]] = []
        other: list[list[Value]] = []
        while len(own) < sequences:
            one = self._draw(name, rng)
            two = self._draw(name, rng, len(one))
            if compiled.program(one) != compiled.program(two):
                own.append(one)
                other.append(two)
        tokens, lengths = compiled.encode(own)
        answers, foils = compiled.outputs(own), compiled.outputs(other)
        scored = answers != foils
        return Split(
            name=name,
            role=role,
            description=description,
            tokens=tokens,
            lengths=lengths,
            kinds=np.where(scored, 0, UNSCORED),
            counterfactuals=compiled.encode(other)[0],
            answers=np.where(scored, answers, NO_TOKEN),
            foils=np.where(scored, foils, NO_TOKEN),
        )

    def _draw(self, name: str, rng: np.random.Generator, length: int | None = None) -> list[Value]:
        program = self.compiled.program
        words = program.words[:2] if name == "few" else program.words
        if length is None:
            length = program.length if name == "longest" else int(rng.integers(1, program.length + 1))
        return [words[place] for place in rng.integers(len(words), size=length).tolist()]


def effects(compiled: Compiled, split: Split) -> dict[str, float]:
    """For every edge of a compiled program's graph, the share of scored answers that its exchange alone changes.

    An edge is exchanged by giving its receiver what its sender writes on the counterfactual; all else follows from the
    subject. Edges that are not among `Compiled.edges` have 0 exactly. Computed from the weights alone, by a forward
    pass of its own with layer norms taken as what they are here, the identity: an oracle for the discovery of circuits.
    Raises AssayError for a model of the family "bert", and a split without pairs.
    """
    if compiled.family != "gpt2" or split.counterfactuals is None:
        raise AssayError(
            "effects are those of exchanges with a counterfactual: give a model of the family 'gpt2', and pairs."
        )
    run = _ByEdges(compiled.subject.model)
    scored = torch.from_numpy(split.kinds != UNSCORED)
    clean = run(torch.from_numpy(split.tokens))
    other = run(torch.from_numpy(split.counterfactuals))
    found = {}
    for sender, receiver in run.graph():
        again = run(torch.from_numpy(split.tokens), (sender, receiver, other.written[sender] - clean.written[sender]))
        changed: Bool[torch.Tensor, "row position"] = again.chosen != clean.chosen
        found[f"{sender} -> {receiver}"] = float(changed[scored].double().mean())
    return found


@dataclass(frozen=True)
class _Pass:
    written: dict[str, torch.Tensor]
    chosen: torch.Tensor


class _ByEdges:
    """The forward pass of a compiled GPT-2, sender by sender, with one receiver given something else."""

    def __init__(self, model: Any) -> None:
        self.weights = {name: value.detach().double() for name, value in model.state_dict().items()}
        self.layers, self.heads = model.config.n_layer, model.config.n_head
        self.width = model.config.n_embd

    def graph(self) -> list[tuple[str, str]]:
        """All edges, senders and receivers in their order."""
        found, senders = [], ["embeddings"]
        for layer in range(self.layers):
            for head in range(self.heads):
                parts = [f"layer{layer}.head{head}.{part}" for part in ("queries", "keys", "values")]
                found += [(sender, part) for sender in senders for part in parts]
            senders += [f"layer{layer}.head{head}" for head in range(self.heads)]
            found += [(sender, f"layer{layer}.mlp") for sender in senders]
            senders.append(f"layer{layer}.mlp")
        return found + [(sender, "logits") for sender in senders]

    def __call__(self, tokens: torch.Tensor, patch: tuple[str, str, torch.Tensor] | None = None) -> _Pass:
        weights, size = self.weights, self.width // self.heads
        places = tokens.shape[1]
        written = {"embeddings": weights["transformer.wte.weight"][tokens] + weights["transformer.wpe.weight"][:places]}
        stream = written["embeddings"].clone()
        hidden = torch.ones(places, places, dtype=torch.bool).triu(1)

        def heard(receiver: str) -> torch.Tensor:
            return stream + patch[2] if patch is not None and patch[1] == receiver else stream

        for layer in range(self.layers):
            name = f"transformer.h.{layer}"
            projection, constant = weights[f"{name}.attn.c_attn.weight"], weights[f"{name}.attn.c_attn.bias"]
            output = weights[f"{name}.attn.c_proj.weight"]
            mixed = []
            for head in range(self.heads):
                q, k, v = (
                    heard(f"layer{layer}.head{head}.{part}") @ projection[:, start : start + size]
                    + constant[start : start + size]
                    for part, start in zip(
                        ("queries", "keys", "values"), range(head * size, 3 * self.width, self.width), strict=True
                    )
                )
                scores = (q @ k.transpose(1, 2) / size**0.5).masked_fill(hidden, -torch.inf)
                mixed.append(scores.softmax(dim=-1) @ v @ output[head * size : (head + 1) * size])
            for head, value in enumerate(mixed):
                written[f"layer{layer}.head{head}"] = value
            stream = stream + sum(mixed)
            inner = heard(f"layer{layer}.mlp") @ weights[f"{name}.mlp.c_fc.weight"] + weights[f"{name}.mlp.c_fc.bias"]
            value = inner.relu() @ weights[f"{name}.mlp.c_proj.weight"] + weights[f"{name}.mlp.c_proj.bias"]
            written[f"layer{layer}.mlp"] = value
            stream = stream + value
        return _Pass(written, (heard("logits") @ weights["lm_head.weight"].T).argmax(dim=-1))

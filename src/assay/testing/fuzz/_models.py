"""Tiny max-of-K models for fuzzing proofs, random and adversarial, drawn from a `random.Random`."""

import math
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import numpy as np
import torch
from flint import arb
from transformers import PreTrainedModel

from assay.subjects import LinearMaxConfig, LinearMaxForCausalLM, MaxOfKConfig, MaxOfKForCausalLM, Subject
from assay.tasks import InputSet

_NASTY = (0.0, 1.0, -1.0, 0.5, 3.0, 1e-40, -1e-45, 1e-6, 2.0**-20, 60.0, -60.0, 2.0**12, -(2.0**12))
_SCORES = (0.0, 0.0, 0.0, 1.0, -1.0, 0.25, 8.0, 35.0, -35.0, 70.0, -70.0, 130.0, -130.0)
_LOGITS = (
    0.0, 0.0, 1.0, -1.0, 2.0, -3.0, 2.0**-30, -(2.0**-30), 2.0**30, -(2.0**30), 2.0**60, -(2.0**60), 2.0**-100,
)  # fmt: skip
_WIDTHS = (1, 1, 2, 3, 4, 4, 5, 7)


def attention_subject(arrays: Mapping[str, np.ndarray], length: int, dtype: torch.dtype = torch.float32) -> Subject:
    """A model with the given W_E, W_pos, W_Q, W_K, W_V, W_O, W_U; those left out are zero."""
    v, d = arrays["W_E"].shape
    head = arrays["W_Q"].shape[1] if "W_Q" in arrays else 1
    shapes = {"W_pos": (length, d), "W_U": (d, v), "W_O": (head, d)} | {f"W_{n}": (d, head) for n in "QKV"}
    full = {name: np.zeros(shape) for name, shape in shapes.items()} | dict(arrays)
    model = MaxOfKForCausalLM(MaxOfKConfig(vocab_size=v, length=length, hidden_size=d, head_dim=head))
    tensors = {name: torch.from_numpy(np.asarray(value, dtype=np.float64)).to(dtype) for name, value in full.items()}
    state = {
        "embed_tokens.weight": tensors["W_E"],
        "embed_positions.weight": torch.cat([tensors["W_pos"], torch.zeros(1, d)]),
        "lm_head.weight": tensors["W_U"].T,
    }
    for name in "QKVO":
        state[f"layers.0.attn.{name.lower()}_proj.weight"] = tensors[f"W_{name}"].T
    return _loaded(model, state, dtype, "tiny")


def linear_subject(
    E: np.ndarray, W: np.ndarray, U: np.ndarray, length: int, dtype: torch.dtype = torch.float32
) -> Subject:
    """A model whose logits are (Σ E[t]) W U, with E (v, d), W (d, d), U (d, v)."""
    v, d = E.shape
    model = LinearMaxForCausalLM(LinearMaxConfig(vocab_size=v, length=length, hidden_size=d))
    arrays = {"embed_tokens.weight": E, "linear.weight": W.T, "lm_head.weight": U.T}
    state = {key: torch.from_numpy(np.array(x, dtype=np.float64)).to(dtype) for key, x in arrays.items()}
    return _loaded(model, state, dtype, "tiny-linear")


def _loaded(model: PreTrainedModel, state: dict[str, torch.Tensor], dtype: torch.dtype, name: str) -> Subject:
    # Before the weights are loaded, which would be rounded to float32 otherwise.
    torch.nn.Module.to(model, dtype)
    model.load_state_dict(state)
    return Subject(model.eval(), None, name)


def tiny_model(rng: Random, head: int | None = None) -> Subject:
    """Random and adversarial weights: ties, equal tokens, huge, tiny and denormal numbers; a head of any width.

    One in eight has more tokens than proofs take at a time (8), and two positions.
    """
    v, length = (rng.randint(9, 11), 2) if rng.random() < 1 / 8 else (rng.randint(3, 4), rng.randint(2, 4))
    d, head = rng.randint(1, 3), head or rng.choice(_WIDTHS)
    shapes = {"W_E": (v, d), "W_pos": (length, d), "W_U": (d, v), "W_O": (head, d)}
    shapes |= {f"W_{n}": (d, head) for n in "QKV"}
    draw = _Numbers(rng)
    arrays = {name: draw(shape) for name, shape in shapes.items()}
    if rng.random() < 0.5:
        # A model that is nearly right: the unembedding reads the token's size off its embedding.
        size = np.arange(v)
        arrays["W_E"][:, 0], arrays["W_U"][0] = size, size
        arrays["W_U"][-1] -= size**2 / 8 if d > 1 else 0
        arrays["W_Q"][0], arrays["W_K"][0], arrays["W_V"][0], arrays["W_O"][0, 0] = 1, 1, 2, 1
    return attention_subject(arrays, length, _precision(rng))


def tabular_subject(
    *,
    of_tokens: np.ndarray,
    of_positions: np.ndarray,
    direct: np.ndarray,
    offset: np.ndarray,
    values: np.ndarray,
    at: np.ndarray,
) -> Subject:
    """A model with these tables (docs/soundness.md): scores SE and SP, logits EU = direct + offset, EV and PV.

    Token t is the unit vector t, position p the unit vector v + p; heads write to the last v dimensions.
    """
    v, length = of_positions.shape
    root = math.isqrt(v + length - 1) + 1
    head, d = root**2, 2 * v + length
    arrays = {"W_E": np.eye(v, d), "W_pos": np.eye(length, d, v), "W_U": np.eye(d, v, -(v + length))}
    arrays["W_Q"], arrays["W_K"], arrays["W_V"] = np.zeros((d, head)), np.eye(d, head), np.eye(d, head)
    arrays["W_Q"][:v, : v + length] = root * np.hstack([of_tokens, of_positions])
    arrays["W_U"][:v], arrays["W_U"][v + length - 1] = direct, offset
    arrays["W_K"][v + length :] = arrays["W_V"][v + length :] = 0
    arrays["W_O"] = np.zeros((head, d))
    arrays["W_O"][: v + length, v + length :] = np.vstack([values, at])
    return attention_subject(arrays, length)


def extreme_model(rng: Random) -> Subject:
    """Weights of positions and tokens 2^100 apart, opposing huge and tiny logits, ties and near ties, equal rows."""
    v, length = rng.randint(2, 4), rng.randint(2, 4)
    shapes = {"of_tokens": (v, v), "of_positions": (v, length), "direct": (v, v), "values": (v, v), "at": (length, v)}
    size = np.arange(v)
    plain: dict[str, np.ndarray] = {name: np.zeros(shape) for name, shape in shapes.items()}
    if rng.random() < 0.5:
        # A model that is right where nothing below changes it: the largest token gets most attention and wins.
        plain["of_tokens"] += rng.choice((1.0, 4.0, 30.0)) * size
        plain["values"] += -rng.choice((1.0, 2.0**-20, 2.0**40)) * abs(size[:, None] - size)
    for name, (rows, columns) in shapes.items():
        numbers = _SCORES if name.startswith("of_") else _LOGITS
        table = plain[name]
        kind = rng.choice(("kept", "some", "some", "all", "scaled"))
        if kind == "some":
            for _ in range(rng.randint(1, 3)):
                table[rng.randint(0, rows - 1), rng.randint(0, columns - 1)] = rng.choice(numbers)
        elif kind == "all":
            table[:] = _filled(rng, numbers, table.shape)
        elif kind == "scaled" and not name.startswith("of_"):
            table *= 2.0 ** rng.randint(-80, 80)
        if rng.randint(0, 4) == 0:
            table[rng.randint(0, rows - 1)] = table[rng.randint(0, rows - 1)]
    plain["offset"] = np.zeros(v)
    if rng.random() < 0.5:
        _balance(rng, plain, [rng.randint(0, v - 1) for _ in range(length)])
    return tabular_subject(**plain)


def _balance(rng: Random, tables: dict[str, np.ndarray], tokens: Sequence[int]) -> None:
    """Shift an output's logits so that on one input it ties with the largest token, to about 48 bits."""
    q, m = tokens[-1], max(tokens)
    x = rng.randint(0, len(tables["direct"]) - 1)
    where: dict[str, Any] = {"direct": (q, x), "offset": (x,)}
    for part, place in where.items():
        total, lead = arb(0), arb(0)
        for p, t in enumerate(tokens):
            weight = arb(tables["of_tokens"][q, t] + tables["of_positions"][q, p]).exp()
            total += weight
            for name, row in (("direct", q), ("values", t), ("at", p)):
                lead += weight * (arb(tables[name][row, x]) - tables[name][row, m])
            lead += weight * (arb(tables["offset"][x]) - tables["offset"][m])
        wanted = np.float32(tables[part][place] - float(lead / total))
        tables[part][place] = np.nextafter(wanted, np.float32(rng.choice((-np.inf, wanted, np.inf))))


def tiny_linear_model(rng: Random, lengths: Sequence[int] = (2, 3)) -> Subject:
    """Random and adversarial weights: ties, equal tokens, huge, tiny and denormal numbers."""
    v, length, d = rng.randint(2, 5), rng.choice(lengths), rng.randint(1, 3)
    draw = _Numbers(rng)
    E, W, U = draw((v, d)), draw((d, d)), draw((d, v))
    if d > 1 and rng.random() < 0.5:
        # Nearly right: with sizes s the logit of x is b s x - b x² / 2 times a constant, largest where x is near s.
        size = np.arange(v)
        E[:, 0], E[:, 1], W[:], U[0], U[1] = size, 1, 0, size, -(size**2) / 2
        W[0, 0], W[1, 1] = 3, rng.choice((1.0, 2.0))
    return linear_subject(E, W, U, length, _precision(rng))


def tiny_inputs(rng: Random, subject: Subject) -> InputSet:
    """A non-empty set of inputs of a model."""
    v, length = subject.model.config.vocab_size, subject.model.config.length
    return InputSet(
        length,
        v,
        minimum_maximum=rng.randint(1, v - 1) if rng.random() < 0.5 else 0,
        within=rng.randint(1, v) if rng.random() < 0.5 else None,
        copies=rng.randint(1, length) if rng.random() < 0.5 else None,
    )


def _precision(rng: Random) -> torch.dtype:
    return torch.float64 if rng.random() < 1 / 6 else torch.float32


class _Numbers:
    """Draws arrays of one kind of number: of few bits, of all bits, small and whole, adversarial, or a mixture."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._kind = rng.choice(("few bits", "few bits", "all bits", "nasty", "mixed", "whole"))

    def __call__(self, shape: tuple[int, int]) -> np.ndarray:
        return np.array([self._one() for _ in range(shape[0] * shape[1])]).reshape(shape)

    def _one(self) -> float:
        kind = self._rng.choice(("few bits", "nasty")) if self._kind == "mixed" else self._kind
        if kind == "nasty":
            return self._rng.choice(_NASTY)
        if kind == "whole":
            return float(self._rng.randint(-2, 2))
        number = self._rng.uniform(-3, 3)
        return number if kind == "all bits" else float(np.float16(number))


def _filled(rng: Random, numbers: Sequence[float], shape: tuple[int, ...]) -> np.ndarray:
    return np.reshape([rng.choice(numbers) for _ in range(math.prod(shape))], shape)

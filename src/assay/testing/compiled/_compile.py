"""From a program to a model that computes it."""

from typing import get_args

import numpy as np
import torch

from assay._errors import AssayError, unknown_name
from assay.subjects import Subject
from assay.tasks import Objective
from assay.testing.compiled._compiled import Compiled
from assay.testing.compiled._models import model_of, rotation
from assay.testing.compiled._nodes import Family, Node, Program
from assay.testing.compiled._weights import STEP, Weights


def compile_program(
    output: Node,
    length: int,
    *,
    family: Family = "gpt2",
    sharpness: float = STEP,
    rotated: int | None = None,
    dtype: torch.dtype = torch.float32,
    name: str = "program",
) -> Compiled:
    """A model that computes a variable at every word of inputs of at most `length` words, exactly.

    `family` "gpt2" gives a `GPT2LMHeadModel`, in which a position selects among itself and earlier ones, "bert" a
    `BertForMaskedLM`, in which it selects among all. `sharpness` is by how many nats the right output leads: 30 to
    test that nothing is wrong, 4 to 8 for measures that grade. With `rotated`, a seed, the whole stream is turned by a
    random rotation: the same function, with no coordinate left that could be read. Weights are made in float64 and
    stored in `dtype` (float32 or float64: half precision cannot tell counts apart).
    Raises AssayError for an unknown family, another dtype, a sharpness that is not above 0, and what `Program` and
    `Weights` refuse.
    """
    if family not in get_args(Family):
        raise unknown_name("family", str(family), get_args(Family))
    if dtype not in (torch.float32, torch.float64):
        raise AssayError(f"dtype is {dtype}; a compiled program needs torch.float32 or torch.float64.")
    if not 0 < sharpness < float("inf"):
        raise AssayError(f"sharpness is {sharpness}; give a number of nats above 0.")
    program = Program(output, length, causal=family == "gpt2")
    weights = Weights(program)
    outputs = program.domains[output]
    names = tuple(dict.fromkeys((*program.words, *outputs)))
    logits = np.zeros((weights.width, 1 + len(names)))
    for value in outputs:
        logits[weights.at[output][value], 1 + names.index(value)] = sharpness
    turn = None if rotated is None else rotation(weights.width, rotated)
    model = model_of(weights, logits, family, turn)
    torch.nn.Module.to(model, dtype)
    objective: Objective = "causal" if family == "gpt2" else "masked"
    subject = Subject(model, None, f"compiled-{name}", objective=objective)
    return Compiled(program, subject, family, names, tuple(sorted(weights.edges)), sharpness)

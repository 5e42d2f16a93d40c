"""Tiny max-of-K models for hypothesis: those that the fuzz draws, from numbers that hypothesis chooses and shrinks."""

import numpy as np
from hypothesis import strategies as st

from assay.subjects import Subject
from assay.tasks import InputSet
from assay.testing.fuzz import _models
from assay.testing.fuzz._models import linear_subject, tabular_subject

_RANDOMS = st.randoms(use_true_random=False)


def tiny_models(head: int | None = None) -> st.SearchStrategy[Subject]:
    """Random and adversarial models with attention."""
    return _RANDOMS.map(lambda rng: _models.tiny_model(rng, head))


def extreme_models() -> st.SearchStrategy[Subject]:
    """Models with weights far apart, ties and near ties."""
    return _RANDOMS.map(_models.extreme_model)


def tiny_linear_models(lengths: tuple[int, ...] = (2, 3)) -> st.SearchStrategy[Subject]:
    """Random and adversarial linear models."""
    return _RANDOMS.map(lambda rng: _models.tiny_linear_model(rng, lengths))


def tiny_inputs(subject: Subject) -> st.SearchStrategy[InputSet]:
    """A non-empty set of inputs of a model."""
    return _RANDOMS.map(lambda rng: _models.tiny_inputs(rng, subject))


def table_subject(logits: np.ndarray, length: int) -> Subject:
    """A linear model in which token t contributes the row logits[t]."""
    return linear_subject(logits, np.eye(len(logits)), np.eye(len(logits)), length)


def barely_tied() -> Subject:
    """Of (0, 0, 0, 1) three positions give 1 + 2^-35 to token 0, and the last takes it all back."""
    return tabular_subject(
        of_tokens=np.zeros((2, 2)),
        of_positions=np.zeros((2, 4)),
        direct=np.zeros((2, 2)),
        offset=np.zeros(2),
        values=np.array([[1.0, 0.0], [-3.0, 0.0]]),
        at=np.array([[2.0**-35, 0.0]] * 3 + [[-3 * 2.0**-35, 0.0]]),
    )

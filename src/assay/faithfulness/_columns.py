"""The columns of a comparison's tables, and whether a table that was read has them."""

import pandas as pd

from assay._errors import AssayError

RESULT_COLUMNS = (
    "subject", "trained", "proxy", "site", "is_control", "split", "metric", "kind", "feature", "bin",
    "estimate", "low", "high", "interval", "sequences", "predictions", "seeds", "unit", "higher_is_better", "reason",
)  # fmt: skip

GAP_COLUMNS = (
    "subject", "trained", "proxy", "site", "is_control", "split", "metric", "kind",
    "gap", "low", "high", "interval", "error", "degrees", "p", "unit",
    "per_sequence", "per_sequence_low", "per_sequence_high",
    "matched", "matched_low", "matched_high", "matched_error", "matched_degrees", "effective",
    "overlap", "overlap_low", "overlap_high", "outside", "outside_low", "outside_high", "matched_reason",
    "removed", "removed_low", "removed_high", "remaining", "remaining_low", "remaining_high",
)  # fmt: skip

CONTROL_COLUMNS = (
    "proxy", "site", "split", "control", "beyond_control", "beyond_control_low", "beyond_control_high",
    "ablated", "ablated_low", "ablated_high", "recovered", "recovered_low", "recovered_high", "recovered_reason",
)  # fmt: skip

_TEXT = (
    "subject", "proxy", "site", "split", "metric", "kind", "feature", "interval", "unit", "control", "ablation",
    "reason", "matched_reason", "recovered_reason", "kl_reason",
)  # fmt: skip
_BOOL = ("trained", "is_control", "higher_is_better")
_LISTS = ("kl_worst", "kl_worst_means")


def check_columns(frame: pd.DataFrame, columns: tuple[str, ...], where: str) -> None:
    """Raise AssayError unless a table has these columns, each of text, of True and False, or of numbers."""
    for name in columns:
        if name not in frame:
            raise AssayError(f"{where} is damaged or was changed (it has no column {name!r}); run it again.")
        held = frame[name].dropna()
        if name in _TEXT:
            fits = all(isinstance(value, str) for value in held)
        elif name in _BOOL:
            fits = held.empty or held.dtype == bool
        else:
            fits = name in _LISTS or held.empty or (held.dtype != bool and pd.api.types.is_numeric_dtype(held))
        if not fits:
            raise AssayError(f"{where} is damaged or was changed (column {name!r} is of {held.dtype}); run it again.")

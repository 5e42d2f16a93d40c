"""Two runs side by side: which verdicts changed, by how much the numbers moved, and what was asked differently."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from assay._given import checked
from assay.faithfulness._comparison import Comparison

_OF_THE_RUN = ("created", "seconds", "proxies", "noise_floor", "chance", "skipped", "overlaps", "status")
"""What a record has of its run's results and hour, not of what was asked."""


@dataclass(frozen=True)
class BetweenRuns:
    """What two comparisons say of the same proxies and sites.

    `verdicts` has one row a (proxy, site) of either: the judgements `first` and `second` (None where one has it not),
    and whether it `changed`. `numbers` has one row a (proxy, site, split) of both: the primary metric of the first with
    its limits, of the second with its own, by how much it `moved` (second minus first), and whether the intervals are
    `apart`, which is more than "different": they do not overlap. `settings` has what was asked differently: `name`,
    `first` and `second`.
    """

    verdicts: pd.DataFrame
    numbers: pd.DataFrame
    settings: pd.DataFrame


@checked
def between_runs(first: Comparison, second: Comparison) -> BetweenRuns:
    """Lay two comparisons side by side, by the names of their proxies, sites and splits.

    Numbers are of each comparison's own primary metric and kind; where these differ, so do `settings`.
    """
    return BetweenRuns(
        pd.DataFrame(_verdicts(first, second), columns=["proxy", "site", "first", "second", "changed"]),
        _numbers(first, second),
        pd.DataFrame(_settings(first, second), columns=["name", "first", "second"]),
    )


def _verdicts(first: Comparison, second: Comparison) -> Iterator[tuple[str, str, str | None, str | None, bool]]:
    one, other = ({(item.proxy, item.site): item.judgement for item in run.verdicts()} for run in (first, second))
    for proxy, site in dict.fromkeys((*one, *other)):
        before, after = one.get((proxy, site)), other.get((proxy, site))
        yield proxy, site, before, after, before != after


def _numbers(first: Comparison, second: Comparison) -> pd.DataFrame:
    keys = ["proxy", "site", "split"]
    tables = []
    for run in (first, second):
        named = [run.agreement(split.name) for split in run.record.splits if split.role != "train"]
        rows = pd.concat(named)
        tables.append(rows[~rows["is_control"].astype(bool)][[*keys, "estimate", "low", "high"]])
    both = tables[0].merge(tables[1], on=keys, suffixes=("_first", "_second"), validate="one_to_one")
    both = both.rename(columns={"estimate_first": "first", "estimate_second": "second"})
    both["moved"] = both["second"] - both["first"]
    both["apart"] = (both["low_first"] > both["high_second"]) | (both["low_second"] > both["high_first"])
    return both[[*keys, "first", "low_first", "high_first", "second", "low_second", "high_second", "moved", "apart"]]


def _settings(first: Comparison, second: Comparison) -> Iterator[tuple[str, str, str]]:
    one, other = (dict(_flat(run.record.model_dump(mode="json", exclude=set(_OF_THE_RUN)))) for run in (first, second))
    for name in dict.fromkeys((*one, *other)):
        if one.get(name) != other.get(name):
            yield name, one.get(name, ""), other.get(name, "")


def _flat(value: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Every value of a nested table under the names that lead to it; of a list, each under its name or number."""
    for key, inner in value.items():
        name = f"{above}{key}"
        if isinstance(inner, list) and inner and all(isinstance(one, Mapping) for one in inner):
            inner = {str(one.get("name", place)): one for place, one in enumerate(inner)}  # noqa: PLW2901
        if isinstance(inner, Mapping) and inner:
            yield from _flat(inner, f"{name}.")
        else:
            yield name, inner if isinstance(inner, str) else json.dumps(inner)

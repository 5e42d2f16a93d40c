"""The record of one run, and everything that can be asked of it."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow.parquet
from pydantic import BaseModel, ConfigDict, ValidationError

from assay._drawing import PaperFigure, drawing
from assay._errors import AssayError, in_line, unknown_name
from assay._files import read_bytes, refuse_links, write_atomically
from assay._given import checked
from assay._terminal import visible
from assay.faithfulness._columns import CONTROL_COLUMNS, GAP_COLUMNS, RESULT_COLUMNS, check_columns
from assay.faithfulness._effects import EFFECT_COLUMNS, EFFECT_METRICS
from assay.faithfulness._of_models import MODEL_COLUMNS
from assay.faithfulness._statistics import holm, p_above
from assay.faithfulness._verdicts import (
    Bar,
    Difference,
    Verdicts,
    check_shares,
    in_percent,
    judge,
    standing_of_agreement,
)
from assay.simplify import Simplification

SCHEMA = 4
RECORD, RESULTS, GAPS, CONTROLS = "comparison.json", "results.parquet", "gaps.parquet", "controls.parquet"
MODELS, EFFECTS = "models.parquet", "effects.parquet"
SEQUENCES = "sequences.parquet"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SplitRecord(_Model):
    """A split as it was used: on how many sequences it was judged, and simplifications were fitted again.

    `different` is how many of the sequences differ: copies of one are one unit of resampling. `label` is what figures
    and tables call it, where the task has words for that.
    """

    name: str
    role: Literal["train", "iid", "shift"]
    description: str
    sequences: int
    different: int
    refit_sequences: int
    sha256: str
    label: str | None = None


class KindRecord(_Model):
    """A kind of prediction."""

    name: str
    description: str
    determined: bool


class FeatureRecord(_Model):
    """A feature that results are broken down by; `labels` name its bins, one an edge, where it stands for classes."""

    name: str
    description: str
    kinds: tuple[str, ...]
    edges: tuple[int, ...] | None = None
    labels: tuple[str, ...] | None = None


class MetricRecord(_Model):
    """A metric, with its unit and direction."""

    name: str
    unit: str
    higher_is_better: bool
    description: str


class ProxyRecord(_Model):
    """A simplification at a site.

    `control` is the name of the one it has to beat, `ablation` of the one in which all is ablated that it could keep
    (what the recipe calls `ablated`, or the mean ablation of its site), `perturbation` of the random one that moves as
    much. `draws` is how often a control was drawn: its interval has their spread. `caution` is what a recipe says of
    its own results. `logit_difference` has, by split, the largest absolute difference of a logit from the subject's at
    any scored position (None where it was not measured); 0 only if not one differs. `about` is what a recipe tells of
    itself: of another model, what was loaded.
    """

    proxy: str
    site: str
    heads: tuple[str, ...]
    is_control: bool
    control: str | None
    ablation: str | None
    perturbation: str | None
    draws: int = 1
    caution: str | None = None
    logit_difference: dict[str, float | None] = {}
    about: dict[str, Any] = {}


class OverlapRecord(_Model):
    """Two splits that share sequences, token for token: how many of the first occur in the second, and of the second
    in the first."""

    first: str
    second: str
    of_first: int
    of_second: int


class NoiseFloor(_Model):
    """What an identity edit changes, on `sequences` sequences of iid.

    `logit_difference` is the largest absolute difference of a logit from the untouched subject under its own eager
    attention, computed by the same kernels; `logit_difference_as_loaded` from the subject as it was loaded, with its
    attention implementation and its own kernels, and `flipped` the share of predictions that differ from those, in
    [0, 1]. A subject whose attention cannot be read is compared with itself, each sequence alone and unpadded. Of
    embeddings these are the differences of an entry of the last hidden states, and the share of sequences with another
    nearest neighbour.
    """

    logit_difference: float
    logit_difference_as_loaded: float
    flipped: float
    sequences: int


class Skipped(_Model):
    """Something that was not measured, and why."""

    what: str
    reason: str


class Record(_Model):
    """What was run: enough to run it again. Written as comparison.json; `schema_version` changes with its form.

    `chance` is the accuracy on iid, on the primary kind, of always answering the most frequent token; None where
    accuracy has no meaning.
    """

    schema_version: Literal[4] = 4
    status: Literal["complete"] = "complete"
    created: str
    seconds: float
    assay_version: str
    environment: dict[str, str]
    subjects: tuple[dict[str, Any], ...]
    task: dict[str, Any]
    primary_kind: str
    primary_metric: str = "same_prediction"
    splits: tuple[SplitRecord, ...]
    overlaps: tuple[OverlapRecord, ...]
    chance: float | None
    kinds: tuple[KindRecord, ...]
    features: tuple[FeatureRecord, ...]
    metrics: tuple[MetricRecord, ...]
    proxies: tuple[ProxyRecord, ...]
    settings: dict[str, Any]
    noise_floor: NoiseFloor
    skipped: tuple[Skipped, ...]

    def __repr__(self) -> str:
        names = ", ".join(sorted({str(subject.get("name")) for subject in self.subjects}))
        splits = ", ".join(f"{split.name} {split.sequences:,}" for split in self.splits)
        text = f"{self.created}, {names}: {len(self.proxies)} proxies, {len(self.metrics)} metrics, splits {splits}"
        return visible(f"<Record {text}>")

    __str__ = __repr__


class Comparison:
    """Subject against proxies on every split, with intervals.

    `record` says what was run; `results` has one row a (subject, trained, proxy, site, split, metric, kind, feature,
    bin).
    """

    def __init__(  # noqa: PLR0917
        self,
        record: Record,
        results: pd.DataFrame,
        gaps: pd.DataFrame,
        controls: pd.DataFrame,
        sequences: Callable[[], Iterable[pyarrow.Table]],
        models: pd.DataFrame | None = None,
        effects: pd.DataFrame | None = None,
        fits: Callable[[str, str, int | None, str | None], Simplification] | None = None,
    ) -> None:
        self.record = record
        self.results = results
        self._gaps = gaps
        self._controls = controls
        self._models = pd.DataFrame(columns=list(MODEL_COLUMNS)) if models is None else models
        self._effects = pd.DataFrame(columns=list(EFFECT_COLUMNS)) if effects is None else effects
        self._sequences = sequences
        self._fits = fits

    @checked
    def fitted(
        self, proxy: str, site: str, *, seed: int | None = None, refitted_on: str | None = None
    ) -> Simplification:
        """A recipe as it was fitted for this comparison, by the names of its proxy and site in the results.

        That of the first subject, or of the one with training seed `seed`; with the name of a shift, the one that was
        fitted on that shift. Kept are recipes whose class says `keeps = True`, such as dictionaries. Raises AssayError
        for another, and where the comparison was read from a folder: there they are saved proxies (`fitted/`), for
        `assay.load_proxy(folder, subject)`.
        """
        if self._fits is None:
            raise AssayError(
                "this comparison was read from a folder, which has what was fitted in 'fitted': load one by "
                "assay.load_proxy(folder, subject).simplification."
            )
        return self._fits(proxy, site, seed, refitted_on)

    def sequence_scores(self) -> pyarrow.Table:
        """The values behind the intervals: one row a (subject, seed, proxy, draw, site, split, metric, kind, sequence).

        A control that is drawn at random has several draws, from 1.

        `mean` is over the sequence's `predictions`. Kinds as wholes only; a full run has millions of rows.
        """
        return pyarrow.concat_tables(self._sequences()).unify_dictionaries()

    def to_frame(self) -> pd.DataFrame:
        """Tidy results: estimate, low, high (NaN where not measured; `reason` says why), unit and direction.

        `feature` is "" for a kind as a whole; otherwise the row is about the feature's bin that starts at `bin`, called
        `label` where the feature's bins have names ("" where they have not).
        """
        frame = self.results.copy()
        names = {
            (feature.name, edge): label
            for feature in self.record.features
            for edge, label in zip(feature.edges or (), feature.labels or (), strict=False)
        }
        pairs = zip(frame["feature"], frame["bin"], strict=True)
        frame.insert(list(frame.columns).index("bin") + 1, "label", [names.get(pair, "") for pair in pairs])
        return frame

    @checked
    def gaps(self, metric: str | None = None, kind: str | None = None) -> pd.DataFrame:
        """Generalization gaps of a metric with intervals: one row a (subject, proxy, site, shift).

        A gap is faithfulness on iid minus faithfulness on the shift, so positive always means less faithful under the
        shift. `metric` defaults to the one that verdicts rest on, `kind` to the primary kind. `p` is the two-sided test
        of "no gap", `p_holm` adjusts it over all simplifications and shifts of the same metric, kind and subject
        (controls are not in the family). `per_sequence` is the gap of a rate in which every sequence counts once,
        however many predictions it has.

        What the gap is made of stands beside it, each with `_low` and `_high`:

        - `matched`: the gap at equal margin of the subject (its top logit minus the next, in nats, among the
          candidates of the kind): iid re-weighted to the shift's distribution of the margin within each kind.
          `effective` is the effective sample size of the re-weighted iid in predictions, `overlap` the share of the
          shift's predictions that have a margin that occurs on iid, too, and `outside` the most that the rest can add
          to the gap over all predictions. NaN with a `matched_reason` where the overlap is too small. On the kind
          "all", kinds are matched as well.
        - `perturbed`: the gap of a random perturbation that moves as much (`RandomPerturbation`).
        - `removed` and `remaining`, which add up to the gap: the part that refitting the same recipe on the shift
          itself takes away, and the part that it does not. NaN for a recipe that learns nothing from data, and where
          too few sequences were left to refit on (`record.skipped`); `record.splits` has their number.
        """
        metric = self.record.primary_metric if metric is None else metric
        kind = self.record.primary_kind if kind is None else kind
        for noun, given, known in (
            ("metric", metric, [item.name for item in self.record.metrics]),
            ("kind", kind, ["all", *(item.name for item in self.record.kinds)]),
        ):
            if given not in known:
                raise AssayError(f"gaps({noun}={given!r}): this comparison has {', '.join(known)}.")
        frame = self._gaps
        return frame[(frame["metric"] == metric) & (frame["kind"] == kind)].reset_index(drop=True)

    @checked
    def agreement(self, split: str = "iid", *, trained: bool = True) -> pd.DataFrame:
        """The metric that verdicts rest on, on the primary kind of one split, one row a (proxy, site).

        It is the same-prediction rate, or for embeddings the same-neighbour rate (`record.primary_metric`). Raises
        AssayError for a split that there is none of.
        """
        if split not in (names := [item.name for item in self.record.splits]):
            raise unknown_name("split", split, names)
        frame = self.results
        chosen = (
            (frame["metric"] == self.record.primary_metric)
            & (frame["kind"] == self.record.primary_kind)
            & (frame["feature"] == "")
            & (frame["split"] == split)
            & (frame["trained"] == trained)
        )
        return frame[chosen].reset_index(drop=True)

    def controls(self) -> pd.DataFrame:
        """Every simplification beside its controls, by split: one row a (proxy, site, split), in [-1, 1].

        `beyond_control` is by how much more the proxy agrees with the subject than its own control `control`, on the
        same predictions (sequences are paired). `ablated` is how much its `ablation` in `record.proxies` agrees (the
        mean ablation of the site, or what the recipe calls itself `ablated`), and `recovered` the share of its effect
        that the proxy recovers, (proxy - ablation) / (subject - ablation): 1 is all of it, 0 none; NaN with a
        `recovered_reason`. Each has `_low` and `_high`. All are of the primary metric and kind.
        """
        return self._controls.copy()

    def models(self) -> pd.DataFrame:
        """Of whole models, what means do not show: one row a (proxy, split, kind); empty where none was compared.

        `flips_to_wrong` and `flips_to_right` count the predictions, over all training seeds, of which the subject or
        the model alone is right, `flips_p` is the two-sided test that they are as many (the signs of whole sequences
        flipped), and `accuracy_change` what they make of accuracy, the model's minus the subject's, with limits. NaN
        where the context determines no answer. `kl_50`, `kl_90` and `kl_99` are quantiles of KL(subject || model) over
        predictions, in nats, with limits over sequences (NaN for the reason in `kl_reason`), `kl_max` its maximum, in
        sequence `kl_max_sequence` at `kl_max_position`; `kl_worst` lists the ten sequences with the largest means,
        which `kl_worst_means` has. `design_effect` is the standard error of the mean KL over sequences, divided by that
        of tokens as if they were independent.
        """
        return self._models.copy()

    def effects(self) -> pd.DataFrame:
        """The effect on the answer, on splits of pairs: one row a (proxy, site, split) of all that has an `ablation`.

        That is the simplification in which all is ablated that the proxy could keep: what the recipe calls `ablated`,
        or the mean ablation of its site. A simplification's own control stands from the same one, and so does the same
        recipe refitted on a shift (`…, refitted`), which has a row for that shift alone. Empty without pairs, without
        controls (they include ablations), and where the three metrics of pairs were not all measured.

        `subject_difference`, `proxy_difference` and `ablated_difference` are the mean logit differences m(M), m(C) and
        m(∅) of the three models on the primary kind: logit of the answer minus the mean of its foils'. Each of the
        following has `_low` and `_high`, over sequences and training seeds (BCa, see `_statistics.smooth`):

        - `effect` is the share of the subject's effect that the proxy has, (m(C) - m(∅)) / (m(M) - m(∅)), the
          faithfulness of circuits: 1 is all of it, 0 none, and it may lie outside of [0, 1]. It is a ratio of means, so
          errors of opposite sign cancel, and it sees no tokens but answer and foils.
        - `deviation` is mean |C - M| / mean |∅ - M|, in which nothing cancels; 0 is faithful, 1 as far as the ablation.
        - `gap` is `effect` on iid minus that on the shift, each on the scale of its own split: of what the subject does
          there, how much less does the proxy? `gap_iid_scale` is how many logits more are lost under the shift, mean
          (M - C) there minus that on iid, over m(M) - m(∅) on iid. Both are NaN on iid.

        Where there are fewer than 30 different `pairs`, or the 99% interval of m(M) - m(∅) contains 0 (for any training
        seed), `effect` is NaN, as is all that rests on it, and `reason` says why.
        """
        return self._effects.copy()

    @checked
    def verdicts(self, *, min_agreement: float | None = None, max_gap: float | None = None) -> Verdicts:
        """One verdict a simplification and site, by the rules in `assay.faithfulness.RULES`; printed, a table.

        `min_agreement` is the agreement asked for in distribution, `max_gap` how much less a shift may have; both are
        shares in [0, 1] (default: those of the comparison), and AssayError otherwise. Intervals and tests are those of
        the comparison's `level`.
        """
        bar = self._bar("verdicts", min_agreement=min_agreement, max_gap=max_gap)
        rows = self.agreement(self._iid_name()).set_index(["proxy", "site"])
        gaps = self._tested(bar)
        beside = self._controls.sort_values("split", key=lambda names: names != self._iid_name(), kind="stable")
        sizes = {split.name: split.sequences for split in self.record.splits}
        verdicts = []
        for proxy in self.record.proxies:
            if not proxy.is_control:
                own = (
                    frame[(frame["proxy"] == proxy.proxy) & (frame["site"] == proxy.site)]
                    for frame in (gaps, beside, self._effects)
                )
                row = rows.loc[(proxy.proxy, proxy.site)]
                verdicts.append(
                    judge(
                        row,
                        *own,
                        proxy=proxy.proxy,
                        site=proxy.site,
                        ablation=proxy.ablation,
                        bar=bar,
                        sizes=sizes,
                        difference=self._difference(proxy),
                    )
                )
        return Verdicts(verdicts)

    def _bar(self, who: str, **given: float | None) -> Bar:
        """What is asked of proxies: what is given, and otherwise what the comparison was made with."""
        settings = self.record.settings
        made = {name: float(settings[name]) for name in ("min_agreement", "max_gap")}
        asked = made | {name: value for name, value in given.items() if value is not None}
        check_shares(who, **asked)
        return Bar(**asked, level=float(settings["level"]), noise=self.record.noise_floor.flipped)

    def _difference(self, proxy: ProxyRecord) -> Difference:
        """How far a proxy's logits are from the subject's on all splits, beside what changing nothing changes."""
        found = [proxy.logit_difference.get(split.name) for split in self.record.splits if split.role != "train"]
        largest = math.nan if None in found else max(value for value in found if value is not None)
        return Difference(largest, self.record.noise_floor.logit_difference_as_loaded)

    def _tested(self, bar: Bar) -> pd.DataFrame:
        """The gaps of the simplifications with the tests of "at most `max_gap`", adjusted over their family: those of
        the proxies that are faithful in distribution."""
        gaps = self.gaps()
        gaps = gaps[gaps["trained"].astype(bool) & ~gaps["is_control"].astype(bool)].copy()
        iid = self.agreement(self._iid_name()).set_index(["proxy", "site"])
        members = {
            key
            for key, row in iid.iterrows()
            if standing_of_agreement(float(row["low"]), float(row["high"]), bar.min_agreement) == "holds"
        }
        inside = np.array([pair in members for pair in zip(gaps["proxy"], gaps["site"], strict=True)], dtype=bool)
        raw = p_above(gaps["gap"], gaps["error"], gaps["degrees"], bar.max_gap)
        matched = p_above(gaps["matched"], gaps["matched_error"], gaps["matched_degrees"], bar.max_gap)
        for name, p in (("p_holm", raw), ("p_both", np.maximum(raw, matched))):
            gaps[name] = holm(np.where(inside, p, np.nan).tolist())
        return gaps

    @checked
    def detectable(self, *, max_gap: float | None = None) -> dict[str, float]:
        """About the smallest gap that these data can show to be above `max_gap`, by shift; a share, lower is better.

        It is `max_gap` plus how far the lower limit of a gap lies below the gap, the median over simplifications that
        are not unfaithful (over all, if all are).
        """
        bar = self._bar("detectable", max_gap=max_gap)
        gaps = self._tested(bar)
        known = gaps[gaps["p_holm"].notna()] if gaps["p_holm"].notna().any() else gaps
        below = (known["gap"] - known["low"]).groupby(known["split"], sort=False).median()
        return {shift: bar.max_gap + float(below[shift]) for shift in self.shifts if shift in below.dropna().index}

    def warnings(self) -> tuple[str, ...]:
        """What a reader has to know before believing any verdict; one sentence each."""
        return tuple(self._warnings())

    def _warnings(self) -> Iterator[str]:
        record = self.record
        frame = self.results
        chosen = frame[
            (frame["metric"] == "subject_accuracy")
            & (frame["kind"] == record.primary_kind)
            & (frame["feature"] == "")
            & frame["trained"].astype(bool)
            & (frame["split"] == self._iid_name())
        ]
        if len(chosen) and record.chance is not None and chosen.iloc[0]["low"] <= record.chance:
            row = chosen.iloc[0]
            yield (
                f"Weak subject: it is right on {in_percent(row['estimate'])} of the {record.primary_kind} predictions "
                f"in distribution, and always answering the most frequent token on {in_percent(record.chance)}; there "
                "may be nothing to explain."
            )
        if not self.shifts:
            yield "No shift was judged: whether anything holds off the distribution it was fitted on is not known."
        if not record.settings["controls"]:
            yield "No controls were judged: whether agreement means anything here is not known."
        if record.settings.get("positions") == "scored":
            yield "Sites are changed at scored positions only: what simplifications do elsewhere is not judged."
        for split in record.splits:
            # What is only fitted on has no interval.
            if split.role != "train" and split.different < split.sequences:
                yield (
                    f"{split.sequences - split.different:,} of the {split.sequences:,} sequences of {split.name} are "
                    f"copies of others in it; the {split.different:,} different ones are the units of its intervals."
                )
        for overlap in record.overlaps:
            yield (
                f"{overlap.of_second:,} sequences of {overlap.second} also occur in {overlap.first}: the two look more "
                "alike than they are."
            )
        for caution in dict.fromkeys(proxy.caution for proxy in record.proxies if not proxy.is_control):
            if caution is not None:
                yield caution

    def _iid_name(self) -> str:
        return next(split.name for split in self.record.splits if split.role == "iid")

    @property
    def shifts(self) -> tuple[str, ...]:
        """The names of the shifts, in order."""
        return tuple(split.name for split in self.record.splits if split.role == "shift")

    @property
    def split_labels(self) -> dict[str, str]:
        """What figures, tables and sentences call each split, by its name: its label, or its name as words.

        Splits that would be called the same have their names.
        """
        words = {split.name: split.label or split.name.replace("_", " ") for split in self.record.splits}
        met = Counter(words.values())
        return {name: called if met[called] == 1 else name for name, called in words.items()}

    @checked
    def report(self, path: str | Path) -> Path:
        """Write a self-contained HTML page; returns its path."""
        return drawing().write_page(self, Path(path))

    def figures(self) -> Mapping[str, PaperFigure]:
        """The figures for papers by name, the main one first: each has `caption`, `alternative` and `draw(width)`."""
        return drawing().paper_figures(self)

    @checked
    def save_figures(
        self,
        folder: str | Path,
        *,
        format: str = "pdf",
        width: str | float = "column",
        style: str | Path | Mapping[str, Any] | None = None,
    ) -> list[Path]:
        """Write the figures for papers, and beside each a .txt with its caption and alternative text; gives the paths.

        `format` is "pdf" (with TrueType fonts), "svg" or "png" (300 dpi); `width` "column" (3.25 inches), "text" (5.5),
        "page" (6.75) or a number of inches; `style` a style of matplotlib over ours: its name, a file of one, or its
        settings. Raises AssayError for any other.
        """
        return drawing().save_figures(self, Path(folder), format=format, width=width, style=style)

    @checked
    def to_latex(self, *, label: str = "tab:assay", caption: str | None = None) -> str:
        """The main table for LaTeX, with the package booktabs: agreement by split, and the verdicts.

        Numbers are rounded as on the page, in per cent with their intervals in brackets. `caption` is LaTeX of yours in
        place of ours; all names in the table are escaped.
        """
        return drawing().latex(self, label=label, caption=caption)

    def __repr__(self) -> str:
        names = sorted({f"{subject['name']}" for subject in self.record.subjects if subject["trained"]})
        return (
            f"Comparison({', '.join(names)}: {len(self.record.proxies)} proxies, "
            f"{len([split for split in self.record.splits if split.role != 'train'])} splits, "
            f"{len(self.results):,} results)"
        )

    def _repr_html_(self) -> str:
        record = self.record
        names = ", ".join(sorted({str(subject["name"]) for subject in record.subjects if subject["trained"]}))
        splits = ", ".join(
            f"{split.name} ({split.sequences:,} sequences)" for split in record.splits if split.role != "train"
        )
        bar = self._bar("verdicts")
        key = (
            f"{names} judged on {splits}: {record.primary_metric} on {record.primary_kind} predictions, at least "
            f"{in_percent(bar.min_agreement)} in distribution and at most {100 * bar.max_gap:g} points less under a "
            f"shift ({100 * bar.level:g}% intervals); changing nothing flips {in_percent(bar.noise)}."
        )
        warned = "".join(f"<li>{escape(text)}</li>" for text in self.warnings())
        return f"<p>{escape(key)}</p>{self.verdicts()._repr_html_()}" + (f"<ul>{warned}</ul>" if warned else "")

    @checked
    def save(self, folder: str | Path) -> Path:
        """Write comparison.json and the tables results, gaps, controls, models, effects and sequences (.parquet).

        The record is written last: a folder with comparison.json is whole. Returns the folder.
        """
        folder = Path(folder)
        for name, table in (
            (RESULTS, pyarrow.Table.from_pandas(self.results, preserve_index=False)),
            (GAPS, pyarrow.Table.from_pandas(self._gaps, preserve_index=False)),
            (CONTROLS, pyarrow.Table.from_pandas(self._controls, preserve_index=False)),
            (MODELS, pyarrow.Table.from_pandas(self._models, preserve_index=False)),
            (EFFECTS, pyarrow.Table.from_pandas(self._effects, preserve_index=False)),
        ):
            write_atomically(
                folder / name,
                lambda path, table=table: pyarrow.parquet.write_table(table, path, compression="zstd"),  # type: ignore[misc]
            )
        write_atomically(folder / SEQUENCES, self._write_sequences)
        text = self.record.model_dump_json(indent=2) + "\n"
        write_atomically(folder / RECORD, lambda path: path.write_text(text, encoding="utf-8"))
        return folder

    def _write_sequences(self, path: Path) -> None:
        tables = iter(self._sequences())
        first = next(tables)
        with pyarrow.parquet.ParquetWriter(path, first.schema, compression="zstd") as writer:
            writer.write_table(first)
            for table in tables:
                writer.write_table(table)

    @classmethod
    @checked
    def load(cls, folder: str | Path) -> "Comparison":
        """Read a run folder. Raises AssayError if it is missing, unfinished, damaged or of another schema.

        Links that lead out of the folder are refused: it may be somebody else's.
        """
        folder = Path(folder)
        refuse_links(folder)
        if not (folder / RECORD).is_file():
            hint = "the run was not finished: run it again with the same --out" if folder.is_dir() else "no such folder"
            raise AssayError(f"{str(folder)!r} has no {RECORD} ({hint}).")
        _check_schema(folder / RECORD)
        try:
            record = Record.model_validate_json(read_bytes(folder / RECORD))
            results = pd.read_parquet(folder / RESULTS)
            gaps, controls, models = (pd.read_parquet(folder / name) for name in (GAPS, CONTROLS, MODELS))
            # Runs from before there were effects have none, and no metrics to make them of.
            with_effects = {metric.name for metric in record.metrics} >= set(EFFECT_METRICS)
            effects = pd.read_parquet(folder / EFFECTS) if with_effects else None
            pyarrow.parquet.read_metadata(folder / SEQUENCES)
            tables = ((results, RESULTS), (gaps, GAPS), (controls, CONTROLS), (models, MODELS), (effects, EFFECTS))
            for table, name in tables:
                if table is not None:
                    check_columns(table, _COLUMNS[name], repr(str(folder / name)))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise AssayError(
                f"{folder / RECORD} does not follow schema {SCHEMA} ({where}: {first['msg']}); "
                "it was made by another version of Assay or changed by hand."
            ) from None
        except (AssayError, MemoryError):
            raise
        except Exception as error:  # of a damaged or hostile table pyarrow and pandas raise anything
            raise AssayError(
                f"{str(folder)!r} is damaged ({in_line(error)}); run it again with the same --out."
            ) from None
        sequences = folder / SEQUENCES
        found = cls(record, results, gaps, controls, lambda: [pyarrow.parquet.read_table(sequences)], models, effects)
        with found.trusted_no_further():
            found.verdicts()
        return found

    @contextmanager
    def trusted_no_further(self) -> Iterator[None]:
        """Within the block, a comparison that was read from a folder fails with an AssayError, whatever its files hold.

        Its tables may have been changed so that they do not belong together, in more ways than can be checked.
        """
        try:
            yield
        except (AssayError, MemoryError, OSError):
            raise
        except Exception as error:
            if self._fits is not None:
                raise
            raise AssayError(
                "the files of this run do not belong together, or were changed "
                f"({type(error).__name__}: {in_line(error)}); run it again."
            ) from error


_COLUMNS = {
    RESULTS: RESULT_COLUMNS, GAPS: GAP_COLUMNS, CONTROLS: CONTROL_COLUMNS, MODELS: MODEL_COLUMNS,
    EFFECTS: EFFECT_COLUMNS,
}  # fmt: skip


def _check_schema(path: Path) -> None:
    """Raise AssayError if a record says that it is of another schema."""
    try:
        version = json.loads(read_bytes(path)).get("schema_version")
    except (OSError, ValueError, AttributeError, RecursionError):
        return
    if version != SCHEMA:
        raise AssayError(
            f"{path} has schema_version {version!r} and this version of Assay reads {SCHEMA}: it was made by another "
            "version; run it again in a new folder."
        )

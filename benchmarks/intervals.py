"""Do the intervals hold? Coverage, false verdicts and widths where the truth is known.

    python benchmarks/intervals.py --markdown docs/results/intervals.md

Sequences have random lengths and a share of predictions right that differs between them (beta-binomial, intraclass
correlation ICC), and the intervals are those that `assay.compare` gives (`assay.faithfulness.draws`, `estimate`,
`gap`). Every row has at least 2,000 replicates at the default. `--quick` has 200, for a look.
"""

import argparse
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from assay.faithfulness import RATE, UNBOUNDED, Draws, draws, estimate, every, gap, holm
from assay.faithfulness._statistics import p_above

MEAN_LENGTH = 20
LENGTHS = ("constant", "geometric", "log-normal")
AT_ONCE = 250
"""Replicates measured in one piece: their draws fit in memory."""

MAX_GAP, MIN_AGREEMENT = 0.02, 0.95

Sample = tuple[np.ndarray, np.ndarray]
"""Sums and counts (seed, sequence, replicate)."""


def lengths(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Numbers of predictions of sequences, of mean 20: constant, geometric, or log-normal with sigma 1.2."""
    if kind == "constant":
        return np.full(shape, MEAN_LENGTH)
    if kind == "geometric":
        return rng.geometric(1 / MEAN_LENGTH, shape)
    return np.maximum(1, np.rint(np.exp(rng.normal(np.log(MEAN_LENGTH) - 1.2**2 / 2, 1.2, shape)))).astype(int)


def beta(mean: np.ndarray, shape: tuple[int, ...], spread: float, rng: np.random.Generator) -> np.ndarray:
    """Beta variables of given means; `spread` is their variance over that of zeros and ones."""
    if spread == 0:
        return np.broadcast_to(mean, shape)
    size = 1 / spread - 1
    inside = np.clip(mean, 1e-9, 1 - 1e-9)
    found = rng.beta(inside * size, (1 - inside) * size, shape)
    return np.where((mean <= 0) | (mean >= 1), mean, found)


def rates(  # noqa: PLR0917
    rate: float, n: int, kind: str, icc: float, seeds: int, seed_sd: float, replicates: int, rng: np.random.Generator
) -> Sample:
    """Replicates of n sequences on which the given rate of predictions is right, by seed."""
    counts = np.repeat(lengths(kind, (1, n, replicates), rng), seeds, axis=0)
    whole = rate * (1 - rate)
    spread = min(seed_sd**2 / whole, 0.5) if whole else 0.0
    of_seeds = beta(np.array(rate), (seeds, 1, replicates), spread, rng)
    of_sequences = beta(of_seeds, (seeds, n, replicates), icc, rng)
    return rng.binomial(counts, of_sequences).astype(float), counts


def drawn(sample: Sample, resamples: int, seed: int, bounds: tuple[float, float] = RATE) -> Draws:
    """The draws of a sample, every replicate a column."""
    sums, counts = sample
    weights = every(counts.shape[1], resamples=resamples, seed=seed)
    return draws(sums, counts, weights, bounds=[bounds] * counts.shape[2])


@dataclass
class Row:
    """What a simulation counted, of `replicates`."""

    replicates: int
    covered: int = 0
    above: int = 0
    below: int = 0
    claimed: int = 0
    width: float = 0.0

    def error(self, rate: float) -> float:
        """The standard error of a simulated rate."""
        return float(np.sqrt(rate * (1 - rate) / self.replicates))


@dataclass(frozen=True)
class Settings:
    """Replicates a row, weights a replicate, and the seed of everything."""

    replicates: int
    resamples: int
    seed: int


def _pieces(settings: Settings, *names: object) -> Iterator[tuple[int, int, np.random.Generator]]:
    """Replicates, number of the weights and generator of every piece of a row."""
    for start in range(0, settings.replicates, AT_ONCE):
        size = min(AT_ONCE, settings.replicates - start)
        yield size, start, np.random.default_rng([settings.seed, start, *map(_number, names)])


def _number(name: object) -> int:
    return int.from_bytes(str(name).encode()[:8].ljust(8), "little")


def agreement_row(settings: Settings, rate: float, n: int, kind: str, icc: float) -> Row:
    """Coverage of one rate, and how often "at least `rate`" is claimed (which is a false claim by a hair)."""
    row = Row(settings.replicates)
    for size, number, rng in _pieces(settings, rate, n, kind, icc):
        found = estimate(drawn(rates(rate, n, kind, icc, 1, 0, size, rng), settings.resamples, number))
        row.covered += int(((found.low <= rate) & (rate <= found.high)).sum())
        row.above += int((found.low > rate).sum())
        row.below += int((found.high < rate).sum())
        row.width += float((found.high - found.low).sum()) / settings.replicates
    return row


def gap_row(  # noqa: PLR0917
    settings: Settings,
    on_iid: float,
    true_gap: float,
    sizes: tuple[int, int],
    kind: str,
    icc: float,
    seeds: int = 1,
    seed_sd: float = 0,
) -> Row:
    """Coverage of a gap, and how often it is claimed to be at most its own size."""
    row = Row(settings.replicates)
    for size, number, rng in _pieces(settings, on_iid, true_gap, sizes, kind, icc, seeds, seed_sd):
        sides = [
            drawn(rates(rate, n, kind, icc, seeds, seed_sd, size, rng), settings.resamples, number + place)
            for place, (rate, n) in enumerate(zip((on_iid, on_iid - true_gap), sizes, strict=True))
        ]
        found, _ = gap(*sides, signs=np.ones(size))
        inside = (found.low <= true_gap + 1e-12) & (true_gap - 1e-12 <= found.high)
        row.covered += int(inside.sum())
        row.claimed += int((found.high <= true_gap).sum())
        row.width += float((found.high - found.low).sum()) / settings.replicates
    return row


def illusion_row(settings: Settings, on_iid: float, sizes: tuple[int, int], icc: float, shifts: int = 5) -> Row:
    """How often a gap above `MAX_GAP` is shown under any of some shifts that all have exactly that gap."""
    kind = "geometric"
    row = Row(settings.replicates)
    for size, number, rng in _pieces(settings, "illusion", on_iid, sizes, kind, icc, shifts):
        iid = drawn(rates(on_iid, sizes[0], kind, icc, 1, 0, size, rng), settings.resamples, number)
        p_values, lows = [], []
        for shift in range(shifts):
            sample = rates(on_iid - MAX_GAP, sizes[1], kind, icc, 1, 0, size, rng)
            found, _ = gap(iid, drawn(sample, settings.resamples, number + 1 + shift), signs=np.ones(size))
            p_values.append(p_above(found.value, found.error, found.degrees, MAX_GAP))
            lows.append(found.low)
        adjusted = np.array([holm(column) for column in np.transpose(p_values).tolist()]).T
        row.claimed += int(((adjusted < 0.05) & (np.array(lows) > MAX_GAP)).any(axis=0).sum())
    return row


def _widths(settings: Settings, rate: float, n: int, kind: str, icc: float) -> tuple[float, float]:
    """Mean widths of our interval and of scipy's BCa bootstrap over sequences, on the same replicates."""
    rng = np.random.default_rng(settings.seed)
    replicates = 200
    sums, counts = rates(rate, n, kind, icc, 1, 0, replicates, rng)
    found = estimate(drawn((sums, counts), settings.resamples, 0))
    others = []
    for replicate in range(replicates):
        right, all_ = sums[0, :, replicate], counts[0, :, replicate]

        def ratio(index: np.ndarray, axis: int = -1, right: np.ndarray = right, all_: np.ndarray = all_) -> np.ndarray:
            return right[index].sum(axis=axis) / all_[index].sum(axis=axis)  # type: ignore[no-any-return]

        limits = stats.bootstrap((np.arange(n),), ratio, n_resamples=settings.resamples, rng=rng).confidence_interval
        others.append(limits.high - limits.low)
    return float((found.high - found.low).mean()), float(np.mean(others))


def heavy_tailed(name: str, n: int, replicates: int, rng: np.random.Generator) -> Sample:
    """Sums of a nonnegative number of mean 1 at every prediction, whose sequences differ widely (as KL's do)."""
    counts = lengths("geometric", (1, n, replicates), rng)
    if name == "gamma":
        of_sequences = rng.gamma(0.5, 2, counts.shape)
    elif name == "log-normal":
        of_sequences = np.exp(rng.normal(-0.5, 1, counts.shape))
    else:
        return counts * (1 + rng.normal(size=counts.shape)), counts
    return of_sequences * rng.gamma(0.5 * counts, 2), counts


def number_row(settings: Settings, name: str, n: int) -> Row:
    """Coverage of the mean of an unbounded number."""
    row = Row(settings.replicates)
    for size, number, rng in _pieces(settings, name, n):
        sample = heavy_tailed(name, n, size, rng)
        found = estimate(drawn(sample, settings.resamples, number, UNBOUNDED), nonnegative=name != "normal")
        row.covered += int(((found.low <= 1) & (found.high >= 1)).sum())
    return row


AGREEMENTS = (0.5, 0.8, 0.9, 0.95, 0.97, 0.99, 1.0)
SIZES = (10, 30, 100, 300)
ICCS = (0.0, 0.1, 0.5)
PAIRS = ((30, 30), (100, 100), (300, 100), (300, 300))
GAPS = ((1.0, 0.0), (1.0, 0.02), (0.98, 0.02), (0.97, 0.0), (0.9, 0.1), (0.6, 0.02))
"""Agreement on iid, and the gap."""


def _low(rows: Sequence[tuple[float, str]]) -> str:
    """The smallest of some rates, with where it is."""
    rate, where = min(rows)
    return f"{rate:.3f} ({where})"


def _gap_words(on_iid: float, true_gap: float) -> str:
    return f"{on_iid:g}, gap {100 * true_gap:g}"


def agreements(settings: Settings) -> Iterator[str]:
    """Coverage of agreement."""
    yield "## Agreement\n"
    yield "Share of replicates whose 95% interval contains the truth: the lowest over agreements of 0.5 to 1."
    yield "\n| n | lengths | ICC 0 | ICC 0.1 | ICC 0.5 |\n|---|---|---|---|---|"
    false_claims = []
    for n, kind in itertools.product(SIZES, LENGTHS):
        cells = []
        for icc in ICCS:
            found = []
            for rate in AGREEMENTS:
                row = agreement_row(settings, rate, n, kind, icc)
                found.append((row.covered / row.replicates, f"at {rate:g}"))
                if rate == MIN_AGREEMENT:
                    false_claims.append((row.above / row.replicates, f"n = {n}, {kind}, ICC {icc:g}"))
            cells.append(_low(found))
        yield f"| {n} | {kind} | {' | '.join(cells)} |"
    rate, where = max(false_claims)
    yield (
        f'\n"Agrees on at least {100 * MIN_AGREEMENT:g}%" is claimed where the truth is exactly that in at most '
        f"{rate:.3f} of the replicates ({where}).\n"
    )


def gaps(settings: Settings) -> Iterator[str]:
    """Coverage of gaps."""
    yield "## Gaps\n"
    yield f"The lowest coverage over {'; '.join(_gap_words(*pair) for pair in GAPS)} points (agreement on iid and"
    yield "gap), and the largest share of replicates in which a gap of exactly 2 points is called at most 2."
    yield '\n| n iid, shift | lengths | ICC 0 | ICC 0.1 | ICC 0.5 | false "at most 2" |\n|---|---|---|---|---|---|'
    for sizes, kind in itertools.product(PAIRS, LENGTHS):
        cells, false_claims = [], []
        for icc in ICCS:
            found = []
            for on_iid, true_gap in GAPS:
                row = gap_row(settings, on_iid, true_gap, sizes, kind, icc)
                found.append((row.covered / row.replicates, _gap_words(on_iid, true_gap)))
                if true_gap == MAX_GAP:
                    false_claims.append(row.claimed / row.replicates)
            cells.append(_low(found))
        yield f"| {sizes[0]}, {sizes[1]} | {kind} | {' | '.join(cells)} | {max(false_claims):.3f} |"


def over_seeds(settings: Settings) -> Iterator[str]:
    """Coverage of gaps over training seeds."""
    yield "\n## Training seeds\n"
    yield "Gaps of 300 and 100 sequences of geometric length, ICC 0.1, over seeds whose true rates differ by the given"
    yield 'standard deviation on each split: the lowest coverage, the largest share of false "at most 2", and the'
    yield "mean width in points at 0.98 and a gap of 2 points."
    yield '\n| seeds | sd of seeds (points) | coverage | false "at most 2" | width |\n|---|---|---|---|---|'
    for seeds, sd in itertools.product((1, 2, 3, 5), (0.0, 0.005, 0.02)):
        if seeds == 1 and sd:
            continue
        found, false_claims, width = [], [], 0.0
        for on_iid, true_gap in ((0.98, 0.0), (0.98, 0.02), (0.9, 0.1)):
            row = gap_row(settings, on_iid, true_gap, (300, 100), "geometric", 0.1, seeds, sd)
            found.append((row.covered / row.replicates, _gap_words(on_iid, true_gap)))
            if true_gap == MAX_GAP:
                false_claims.append(row.claimed / row.replicates)
                width = row.width
        yield f"| {seeds} | {100 * sd:g} | {_low(found)} | {max(false_claims):.3f} | {100 * width:.1f} |"


def illusions(settings: Settings) -> Iterator[str]:
    """False illusions."""
    yield "\n## Shown gaps\n"
    yield "Share of replicates in which a gap above 2 points is shown (Holm over the shifts, level 0.05) under any of"
    yield "five shifts that all have exactly 2 points; geometric lengths."
    yield "\n| agreement on iid | n iid, shift | ICC | false |\n|---|---|---|---|"
    for on_iid, sizes, icc in itertools.product((1.0, 0.98), ((30, 30), (100, 100), (300, 300)), (0.0, 0.5)):
        row = illusion_row(settings, on_iid, sizes, icc)
        yield f"| {on_iid:g} | {sizes[0]}, {sizes[1]} | {icc:g} | {row.claimed / row.replicates:.3f} |"


def widths(settings: Settings) -> Iterator[str]:
    """Widths beside the bootstrap's."""
    yield "\n## Widths\n"
    yield "Mean widths in points over 200 replicates, beside scipy's BCa bootstrap over sequences on the same ones."
    yield "\n| agreement | n | lengths | ICC | width | bootstrap's | ratio |\n|---|---|---|---|---|---|---|"
    for (rate, n), kind, icc in itertools.product(((0.97, 300), (0.97, 100), (0.8, 300)), LENGTHS, (0.1, 0.5)):
        ours, theirs = _widths(settings, rate, n, kind, icc)
        yield f"| {rate:g} | {n} | {kind} | {icc:g} | {100 * ours:.2f} | {100 * theirs:.2f} | {ours / theirs:.2f} |"


def numbers(settings: Settings) -> Iterator[str]:
    """Coverage of what has no bounds."""
    yield "\n## Divergences\n"
    yield "Coverage of the mean of a number without bounds, geometric lengths. The means of sequences are gamma"
    yield "(shape 1/2), log-normal (sigma 1) or normal (standard deviation 1), all of mean 1."
    yield "\n| n | gamma | log-normal | normal |\n|---|---|---|---|"
    for n in SIZES:
        rows = [number_row(settings, name, n) for name in ("gamma", "log-normal", "normal")]
        yield f"| {n} | {' | '.join(f'{row.covered / row.replicates:.3f}' for row in rows)} |"


PARTS = (agreements, gaps, over_seeds, illusions, widths, numbers)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=2_000)
    parser.add_argument("--resamples", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="200 replicates")
    parser.add_argument("--markdown", type=Path, help="write the tables below the marker of this file")
    options = parser.parse_args()
    if min(options.replicates, options.resamples) < 1:
        parser.error("--replicates and --resamples must be at least 1")
    settings = Settings(200 if options.quick else options.replicates, options.resamples, options.seed)
    lines: list[str] = []
    started = time.process_time()
    head = [f"{settings.replicates:,} replicates a row, {settings.resamples:,} draws an interval.\n"]
    for line in itertools.chain(head, *(part(settings) for part in PARTS)):
        lines.append(line)
        print(line, flush=True)
    print(f"\n{time.process_time() - started:.0f} CPU seconds")
    if options.markdown is not None:
        marker = "<!-- table: begin -->"
        before = options.markdown.read_text(encoding="utf-8").split(marker)[0] if options.markdown.exists() else ""
        options.markdown.write_text(f"{before}{marker}\n" + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

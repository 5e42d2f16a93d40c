"""Planted truths: what recipes, verdicts and methods find of what is planted, miss, and invent."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.linear_model import orthogonal_mp

from assay._errors import AssayError
from assay.circuits import Discovery, Graph, Problem, Reference, discoveries, value_vectors
from assay.dictionaries import RandomDictionary, SparseAutoencoder
from assay.engine import Engine, collect
from assay.faithfulness import Comparison, Step, compare
from assay.models import LowRankWeights, NGram, OtherModel, PruneWeights, RoundWeights
from assay.reports import Chart, Illustrations, Series, TableView
from assay.simplify import (
    SVD,
    Identity,
    InteractionBasis,
    KMeans,
    MeanAblation,
    OneHotAttention,
    RandomProjection,
    Simplification,
    UniformAttention,
    label,
)
from assay.studies.organisms._study import Findings
from assay.tasks import Split
from assay.testing import planted

__all__ = ["SEEDS", "SEQUENCES", "SUMMARY", "run"]

SUMMARY = "recipes, verdicts, discovery methods, dictionaries and rankings of neurons against what is planted"

SEEDS = 3
"""Draws of sequences, and of pairs."""

SEQUENCES = 300

TRUTH = 1_500
"""Sequences a split from which it is told what holds of a recipe for which it cannot be told beforehand."""

FITTED, PAIRS, RESAMPLES = 200, 60, 300

LEAST_AGREEMENT, LARGEST_GAP = 0.95, 0.02
"""Those of verdicts: a recipe is faithful with at least the one, and under the shift at most the other less."""

LEAST_SHARE, LEAST_SIZE = 0.01, 1e-6
"""An edge is found if its score has at least this share of the largest one, and this size (logits or nats)."""


def run(folder: Path, *, seeds: int, sequences: int, device: str, progress: Callable[[Step], None]) -> Findings:
    """Hold all that looks for something against subjects in which it is known what is there. Nothing is trained."""
    del folder, device  # nothing is kept, and no subject has more than a few thousand weights
    parts: tuple[tuple[str, Callable[[], Any]], ...] = (
        ("gaps", lambda: [gap for seed in range(seeds) for gap in gaps(seed, sequences)]),
        ("circuits", lambda: [circuits(seed) for seed in range(seeds)]),
        ("dictionaries", lambda: [dictionaries(seed, sequences) for seed in range(seeds)]),
        ("neurons", lambda: [neurons(seed) for seed in range(seeds)]),
        ("bases", lambda: bases(sequences)),
    )
    found: dict[str, Any] = {}
    for number, (name, make) in enumerate(parts):
        progress(Step(number, len(parts), name))
        found[name] = make()
    comparisons: Mapping[str, Comparison] = found.pop("bases")
    tables = [
        _of_gaps(found["gaps"]),
        _of_coverage(found["gaps"]),
        _of_circuits(found["circuits"]),
        _of_neurons(found["neurons"]),
        _of_bases(comparisons),
        _of_dictionaries(found["dictionaries"]),
    ]
    numbers = {**found, "gaps": [asdict(gap) for gap in found["gaps"]]}
    return Findings(numbers, Illustrations(tables=tables, charts=[_chart(found["gaps"])]), comparisons)


# -- gaps and verdicts ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gap:
    """What a comparison says of a recipe in a planted case, and what holds of it.

    `truth` is "faithful", "illusion" (faithful in distribution, not under the shift) or "unfaithful"; `true_gap` is
    planted where `known`, and else that of `TRUTH` sequences.
    """

    case: str
    recipe: str
    seed: int
    verdict: str
    gap: float
    low: float
    high: float
    true_gap: float
    known: bool
    truth: str

    @property
    def outcome(self) -> str:
        """ "right", "missed" (a gap, or a proxy that is unfaithful), "invented", or "open" where nothing is said."""
        said = {"identical": "faithful", "gap": "illusion", "matched": "illusion"}.get(self.verdict, self.verdict)
        if said == self.truth:
            return "right"
        if said not in ("faithful", "illusion", "unfaithful"):
            return "open"
        return "missed" if said == "faithful" else "invented" if self.truth == "faithful" else "other"


def cases(seed: int) -> dict[str, planted.Lookup]:
    """The planted gaps, by what they are due to."""
    return {
        "fit": planted.Lookup(0.3, seed=seed),
        "structure": planted.Lookup(0.3, cause="structure", seed=seed),
        "difficulty": planted.Lookup(0.3, cause="difficulty", seed=seed),
        "nothing": planted.Lookup(0.0, rare_share=0.0, questions=4, seed=seed),
    }


def recipes(task: planted.Lookup) -> list[tuple[str, Simplification, tuple[float, float] | None]]:
    """Recipes for a case, each with its agreement in distribution and its gap where these follow from how it is made.

    Uniform attention answers the value that most of the context carries: right about frequent keys but the odd one.
    """
    whole, uniform = (1.0, 0.0), 1 - 1 / planted.FREQUENT
    spread = (uniform * task.truth.agreement, uniform * task.truth.gap)
    clusters = task.whole_rank - (task.gap == task.rare_share == 0)
    return [
        ("SVD, without the rare", SVD(rank=task.rank), (task.truth.agreement, task.truth.gap)),
        ("SVD, of all directions", SVD(rank=task.whole_rank), whole),
        ("interaction basis, without the rare", InteractionBasis(features=task.rank), None),
        ("k-means", KMeans(clusters=clusters), None),
        ("one-hot attention", OneHotAttention(), whole),
        ("uniform attention", UniformAttention(), spread),
        ("mean ablation", MeanAblation(), spread),
        ("random projection", RandomProjection(rank=task.rank), None),
        ("sparse autoencoder", SparseAutoencoder(k=1, features=2 * task.whole_rank, steps=200), None),
        ("random dictionary", RandomDictionary(features=2 * task.whole_rank, k=1), None),
        ("weights in 8 bits", RoundWeights(8), None),
        ("weights in 3 bits", RoundWeights(3), None),
        ("half of the weights", PruneWeights(0.5), None),
        ("weights of low rank", LowRankWeights(task.rank), None),
        ("2-grams", NGram(2), None),
        ("identity", Identity(), whole),
    ]


def gaps(seed: int, sequences: int) -> list[Gap]:
    """What is said of every recipe in every case, on one draw of sequences."""
    found = []
    for case, task in cases(seed).items():
        given = recipes(task)
        options: dict[str, Any] = {
            "fit_sequences": FITTED, "controls": False, "refit": False, "progress": False, "seed": seed,
        }  # fmt: skip
        made, asked = ([recipe for _, recipe, known in given if every or known is None] for every in (True, False))
        judged = compare(task.subject(), task, made, sequences=sequences, resamples=RESAMPLES, **options)
        large = compare(task.subject(), task, asked, sequences=TRUTH, resamples=2, **options)
        verdicts = {verdict.proxy: verdict.judgement for verdict in judged.verdicts()}
        rows, true_rows = (one.gaps().set_index("proxy") for one in (judged, large))
        agreement = large.agreement("iid").set_index("proxy")["estimate"]
        for name, recipe, known in given:
            own = label(recipe)
            agrees, gap = (agreement[own], true_rows.loc[own, "gap"]) if known is None else known
            row = rows.loc[own]
            found.append(
                Gap(case, name, seed, verdicts[own], row["gap"], row["low"], row["high"], float(gap),
                    known is not None, _truth(float(agrees), float(gap)))
            )  # fmt: skip
    return found


def _truth(agreement: float, gap: float) -> str:
    if agreement < LEAST_AGREEMENT:
        return "unfaithful"
    return "illusion" if gap > LARGEST_GAP else "faithful"


def _of_gaps(found: Sequence[Gap]) -> TableView:
    names = list(cases(0))
    rows = []
    for recipe in dict.fromkeys(gap.recipe for gap in found):
        row = [(recipe, "")]
        for case in names:
            own = [gap for gap in found if (gap.recipe, gap.case) == (recipe, case)]
            said = Counter(gap.verdict for gap in own).most_common()
            outcomes = Counter(gap.outcome for gap in own).most_common()
            row.append((_counts(said, len(own)), f"{_counts(outcomes, len(own))}; {own[0].truth}"))
        rows.append(row)
    return TableView(
        title="Verdicts against planted gaps",
        note="What `compare` says of a recipe; below it whether it is right, missed, invented or open, and what holds "
        f"(of the first draw). Illusion: the proxy agrees on {LEAST_AGREEMENT:.0%} in distribution and on more than "
        f"{LARGEST_GAP:.0%} less under the shift; unfaithful: it agrees less in distribution; faithful: else. That "
        "follows from how the case is made, or, for recipes of which the next table says that it is not known "
        f"beforehand, from {TRUTH:,} sequences a split. Draws that differ are counted.",
        headings=["recipe", *names],
        rows=rows,
    )


def _counts(counted: Sequence[tuple[str, int]], whole: int) -> str:
    if len(counted) == 1:
        return counted[0][0]
    return ", ".join(f"{name} {count} of {whole}" for name, count in counted)


def _of_coverage(found: Sequence[Gap]) -> TableView:
    rows = []
    for recipe in dict.fromkeys(gap.recipe for gap in found):
        own = [gap for gap in found if gap.recipe == recipe]
        outcomes = Counter(gap.outcome for gap in own)
        within = sum(gap.low <= gap.true_gap <= gap.high for gap in own)
        rows.append([
            (recipe, ""),
            ("yes" if own[0].known else "no", ""),
            (f"{within} of {len(own)}", ""),
            *((str(outcomes[name]), "") for name in ("right", "missed", "invented", "open", "other")),
        ])  # fmt: skip
    return TableView(
        title="All cases and draws",
        note="How often the 95% interval of the gap has the gap that holds, and what became of the verdicts. Other: a "
        "proxy that is unfaithful is called an illusion, or the other way round.",
        headings=["recipe", "known beforehand", "covered", "right", "missed", "invented", "open", "other"],
        rows=rows,
    )


def _chart(found: Sequence[Gap]) -> Chart:
    """The gaps measured of what drops the rare keys, beside the planted ones."""
    shown = [gap for gap in found if gap.recipe == "SVD, without the rare"]
    names = list(cases(0))
    series = []
    for seed in dict.fromkeys(gap.seed for gap in shown):
        own = [gap for gap in shown if gap.seed == seed]
        series.append(
            Series(
                name="measured", variant=f"draw {seed}", x=[float(place) for place in range(len(own))],
                y=[gap.gap for gap in own], low=[gap.low for gap in own], high=[gap.high for gap in own],
            )
        )  # fmt: skip
    first = [gap for gap in shown if gap.seed == 0]
    truth = [gap.true_gap for gap in first]
    nothing: list[float | None] = [None] * len(first)
    series.append(
        Series(
            name="planted",
            variant="all draws",
            x=[float(place) for place in range(len(first))],
            y=list(truth),
            low=nothing,
            high=nothing,
        )
    )
    return Chart(
        name="planted-gaps",
        caption="The gap of SVD without the rare directions, measured with 95% intervals on every draw, and planted.",
        x_label="what is planted",
        y_label="gap (share of predictions)",
        names=names,
        series=series,
    )


# -- circuits -------------------------------------------------------------------------------------------------------


def circuit_cases(seed: int, pairs: int = PAIRS) -> dict[str, planted.PlantedCircuit]:
    """The planted circuits."""
    return {
        "induction": planted.induction(3.0, pairs=pairs, seed=seed),
        "saturated": planted.induction(20.0, pairs=pairs, seed=seed),
        "either": planted.either(pairs=pairs, seed=seed),
        "cancelling": planted.cancelling(pairs=pairs, seed=seed),
        "nothing": planted.nothing(pairs=pairs, seed=seed),
    }


def circuits(
    seed: int, pairs: int = PAIRS, methods: Sequence[str] = tuple(discoveries)
) -> dict[str, dict[str, dict[str, Any]]]:
    """What methods (all that are registered) find of every planted circuit, by method and case.

    `by` says whether it scores edges, or senders alone (then what is found are senders other than the embeddings).
    """
    made = circuit_cases(seed, pairs)
    problems = {case: _problem(known) for case, known in made.items()}
    found: dict[str, dict[str, Any]] = {}
    for name in methods:
        by = None
        found[name] = {}
        for case, known in made.items():
            method: Discovery = discoveries.get(name)()
            problem = problems[case]
            try:
                getattr(method, "check", lambda _: None)(problem)
                scores = method.scores(problem)
            except AssayError as error:
                found[name][case] = {"refused": str(error)}
                continue
            by = by or ("senders" if _whole_senders(scores) else "edges")
            chosen = _chosen(problem.wiring.graph, scores, by)
            true, undone = (_named(edges, by) for edges in (known.edges, known.undone))
            found[name][case] = {
                "by": by,
                "found": len(chosen & true),
                "missed": len(true - chosen),
                "invented": len(chosen - true),
                "undone": len(chosen & (undone - true)),
            }
    return found


def _problem(known: planted.PlantedCircuit) -> Problem:
    engine = Engine(known.subject)
    return Problem(engine, known.pairs, Reference.fitted(engine, "counterfactual", known.pairs), "logit_difference")


def _whole_senders(scores: Float[np.ndarray, "sender receiver"]) -> bool:
    """Whether a method gives all edges out of a sender the same score."""
    rows = [row[~np.isnan(row)] for row in scores]
    return all(np.ptp(row) <= 1e-9 * np.nanmax(np.abs(scores)) for row in rows if len(row))


def _chosen(graph: Graph, scores: Float[np.ndarray, "sender receiver"], by: str) -> set[str]:
    sizes = np.abs(np.nan_to_num(scores))
    least = max(LEAST_SHARE * sizes.max(), LEAST_SIZE)
    edges = [f"{graph.senders[one]} -> {graph.receivers[other]}" for one, other in np.argwhere(sizes > least)]
    return _named(edges, by)


def _named(edges: Sequence[str], by: str) -> set[str]:
    return set(edges) if by == "edges" else {edge.split(" -> ")[0] for edge in edges} - {"embeddings"}


def _of_circuits(found: Sequence[Mapping[str, Mapping[str, Any]]]) -> TableView:
    names = list(circuit_cases(0))
    rows = []
    for method in found[0]:
        by = next((one["by"] for one in found[0][method].values() if "by" in one), "")
        row = [(method, by)]
        for case in names:
            own = [draw[method][case] for draw in found]
            if "refused" in own[0]:
                row.append(("refused", ""))
                continue
            text = " / ".join(_range([one[key] for one in own]) for key in ("found", "missed", "invented"))
            row.append((text, f"{own[0]['undone']} undone" if own[0]["undone"] else ""))
        rows.append(row)
    return TableView(
        title="Discovery methods against planted circuits",
        note=f"Found / missed / invented: edges whose score has at least {LEAST_SHARE:.0%} of the largest (and "
        f"{LEAST_SIZE:g}), against those planted; of methods that score senders, the heads and MLPs. Ablation: the "
        "counterfactual; measure: the logit difference. Induction has five edges out of 46 and two heads; saturated is "
        "the same with attention so sharp that gradients vanish; in either each of two paths is enough; in cancelling "
        "two heads undo each other, whose eight edges have an effect alone and none together (below: how many of what "
        "is invented); in nothing no edge has an effect. A range where draws of pairs differ.",
        headings=["method", *names],
        rows=rows,
    )


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low}–{high}"


# -- neurons --------------------------------------------------------------------------------------------------------


def neurons(seed: int) -> dict[str, dict[str, dict[str, float]]]:
    """How many of the planted neurons are the first of every ranking, and what pruning as many does, by case."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for case, known in {"memoriser": planted.memoriser(seed=seed), "wrapper": planted.wrapper(seed=seed)}.items():
        everything = known.task.everything()
        other = everything.kinds[:, 3] == 1
        own, base = _answers(known.subject, everything), _answers(known.base, everything)
        found[case] = {}
        for name, scores in rankings(known, seed).items():
            order = np.argsort(-scores, axis=None, kind="stable")[: len(known.neurons)]
            chosen = [
                (int(layer), int(neuron)) for layer, neuron in zip(*np.unravel_index(order, scores.shape), strict=True)
            ]
            pruned = _answers(known.without(chosen), everything)
            found[case][name] = {
                "found": float(len({*chosen} & {*known.neurons})),
                "planted": float(len(known.neurons)),
                "restored": float((pruned == base)[other].mean()),
                "kept": float((pruned == own)[~other].mean()),
            }
    return found


def rankings(known: planted.PlantedNeurons, seed: int) -> dict[str, Float[np.ndarray, "layer neuron"]]:
    """Rankings of neurons by what might give the planted ones away, the highest first."""
    everything = known.task.everything()
    other = everything.kinds[:, 3] == 1
    activations, slopes = _taylor(known, everything)
    modulus = len(known.task.kinds[0].candidates or ())
    tokens = list(range(modulus))
    values = value_vectors(known.subject, tokens, against=tokens).scores
    return {
        "Taylor score on the other kind": np.stack(
            [(a * s)[other].mean(axis=0) for a, s in zip(activations, slopes, strict=True)]
        ),
        "least periodic in the answer": np.stack([-_periodic(scores.T) for scores in values]),
        "value vectors: most for one answer": np.stack([scores.max(axis=0) for scores in values]),
        "activation, other kind less rule": np.stack(
            [np.abs(a[other].mean(axis=0) - a[~other].mean(axis=0)) for a in activations]
        ),
        "random": np.random.default_rng(seed).random((len(values), values[0].shape[1])),
    }


def _taylor(
    known: planted.PlantedNeurons, split: Split
) -> tuple[list[Float[np.ndarray, "input neuron"]], list[Float[np.ndarray, "input neuron"]]]:
    """Activations where the answer is given, by layer, and the slopes along them of the loss of the rule's answer."""
    model: Any = known.subject.model
    kept: list[torch.Tensor] = []

    def keep(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        kept.append(inputs[0].detach().requires_grad_() if not kept else inputs[0])
        kept[-1].retain_grad()
        return (kept[-1],)

    hooks = [block.mlp.c_proj.register_forward_pre_hook(keep) for block in model.transformer.h]
    try:
        tokens = torch.from_numpy(split.tokens)
        with torch.enable_grad():
            logits = model(tokens).logits[:, 3]
            rule = torch.from_numpy(_answers(known.base, split))
            torch.nn.functional.cross_entropy(logits, rule, reduction="sum").backward()
    finally:
        for hook in hooks:
            hook.remove()
        model.zero_grad()
    slopes = [one.grad for one in kept]
    return (
        [one.detach()[:, 3].numpy() for one in kept],
        [slope[:, 3].numpy() for slope in slopes if slope is not None],
    )


def _periodic(writes: Float[np.ndarray, "neuron answer"]) -> Float[np.ndarray, " neuron"]:
    """How far what neurons write to the answers is of one frequency: sums of squared shares; 1 where it is nothing."""
    power = np.abs(np.fft.rfft(writes, axis=1)[:, 1:]) ** 2
    whole = power.sum(axis=1, keepdims=True)
    shares = power / whole.clip(min=1e-30)
    return np.where(whole[:, 0] > 1e-12, (shares**2).sum(axis=1), 1.0)


def _answers(subject: Any, split: Split) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = subject(torch.from_numpy(split.tokens))[:, 3].argmax(dim=-1).numpy()
    return found


def _of_neurons(found: Sequence[Mapping[str, Mapping[str, Mapping[str, float]]]]) -> TableView:
    rows = []
    for case, ranked in found[0].items():
        for name in ranked:
            own = [draw[case][name] for draw in found]
            planted_ = int(own[0]["planted"])
            rows.append([
                (f"{case}: {name}", ""),
                (f"{_range([int(one['found']) for one in own])} of {planted_}", ""),
                (_range([int(one["planted"] - one["found"]) for one in own]), ""),
                *((_between([one[key] for one in own]), "") for key in ("restored", "kept")),
            ])  # fmt: skip
    return TableView(
        title="Rankings of neurons against planted ones",
        note="Of the first neurons of a ranking, as many as are planted, how many are; then what is pruned is these. "
        "Restored: the share of the inputs of the other kind (memorised, or with the cue) that are answered as by the "
        "base; before, it was none (memoriser) or one in eleven (wrapper). Kept: the share of the inputs of the rule "
        "that are answered as before. All inputs are looked at. A range where draws differ.",
        headings=["ranking", "planted among the first", "invented", "restored", "kept"],
        rows=rows,
    )


def _between(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.2f}" if high - low < 0.005 else f"{low:.2f}–{high:.2f}"


def bases(sequences: int) -> dict[str, Comparison]:
    """The base model as an account of the memoriser and of the wrapper."""
    found = {}
    for case, known in {"memoriser": planted.memoriser(), "wrapper": planted.wrapper()}.items():
        found[case] = compare(
            known.subject, known.task, [OtherModel(known.base, name="base")], sequences=sequences, resamples=2_000,
            progress=False,
        )  # fmt: skip
    return found


def planted_gap(case: str) -> float:
    """The gap of a base in the population."""
    known = planted.memoriser() if case == "memoriser" else planted.wrapper()
    usual = 1 - known.task.usual * (1 - known.agreement)
    return usual - known.agreement


def _of_bases(comparisons: Mapping[str, Comparison]) -> TableView:
    rows = []
    for case, comparison in comparisons.items():
        row = comparison.gaps().iloc[0]
        verdict = comparison.verdicts()[0]
        rows.append([
            (case, ""),
            (f"{planted_gap(case):.3f}", ""),
            (f"{row['gap']:.3f}", f"[{row['low']:.3f}, {row['high']:.3f}]"),
            (verdict.judgement, ""),
        ])  # fmt: skip
    return TableView(
        title="The model below as an account of the whole",
        note="Gap from usual inputs to those that are memorised, or have the cue: planted, measured, and the verdict.",
        headings=["case", "planted gap", "gap", "verdict"],
        rows=rows,
    )


# -- dictionaries ---------------------------------------------------------------------------------------------------


def dictionaries(seed: int, sequences: int) -> dict[str, dict[str, float | str]]:
    """How well every kind of dictionary has the planted atoms, and what it does in the model."""
    task = planted.SparseSums(seed)
    subject = task.subject()
    atoms, active = len(task.atoms), task.sums("iid")[0].shape[1]
    kinds = ("topk", "batchtopk", "matryoshka", "relu", "jumprelu", "gated")
    trained = {
        f"sparse autoencoder, {kind}": SparseAutoencoder(
            k=active, kind=kind, features=atoms, steps=1_000, batch=512, seed=seed
        )
        for kind in kinds
    }
    others: dict[str, Simplification] = {
        "k-means": KMeans(clusters=atoms, seed=seed),
        "SVD": SVD(rank=atoms // 4),
        "random dictionary": RandomDictionary(features=atoms, k=active, seed=seed),
    }
    made: dict[str, Simplification] = {**trained, **others}
    comparison = compare(
        subject, task, list(made.values()), sites=["layer0.residual"], sequences=sequences, resamples=RESAMPLES,
        fit_sequences=4 * sequences, controls=False, refit=False, progress=False, seed=seed,
    )  # fmt: skip
    engine = Engine(subject)
    samples = collect(engine, task.split("train", 4 * sequences), ("residual",)).at(engine.site("layer0.residual"))
    verdicts = {verdict.proxy: verdict.judgement for verdict in comparison.verdicts()}
    iid, shift = (comparison.agreement(name).set_index("proxy")["estimate"] for name in ("iid", "combinations"))
    found: dict[str, dict[str, float | str]] = {"the atoms, by pursuit": _pursued(task)}
    for name, recipe in made.items():
        recipe.fit(samples)
        mean, share = task.recovery(_directions(recipe))
        own = label(recipe)
        found[name] = {
            "cosine": mean, "share": share, "iid": float(iid[own]), "combinations": float(shift[own]),
            "verdict": verdicts[own],
        }  # fmt: skip
    return found


def _pursued(task: planted.SparseSums) -> dict[str, float | str]:
    """What orthogonal matching pursuit with the true atoms does: the share of vectors whose support it finds."""
    found: dict[str, float | str] = {"verdict": "exact"}
    found["cosine"], found["share"] = task.recovery(task.atoms)
    for name in ("iid", "combinations"):
        supports, _ = task.sums(name)
        codes = orthogonal_mp(task.atoms.T, task.vectors(name).T, n_nonzero_coefs=supports.shape[1]).T
        right = [
            set(np.flatnonzero(code)) == {*support} for code, support in zip(codes, supports.tolist(), strict=True)
        ]
        found[name] = float(np.mean(right))
    return found


def _directions(recipe: Any) -> Float[np.ndarray, "direction width"]:
    """What a fitted recipe has for atoms: decoder rows, centres, or directions with both signs."""
    if isinstance(recipe, SVD):
        (space,) = next(iter(recipe.subspaces_.values()))  # type: ignore[union-attr]
        basis = space.basis.double().numpy().T
        return np.concatenate((basis, -basis))
    if isinstance(recipe, KMeans):
        (centres,) = next(iter(recipe.centres_.values()))  # type: ignore[union-attr]
        found: np.ndarray = centres.double().numpy()
        return found
    (dictionary,) = next(iter(recipe.dictionaries_.values()))
    decoder: np.ndarray = dictionary.W_dec.double().numpy()
    return decoder


def _of_dictionaries(found: Sequence[Mapping[str, Mapping[str, float | str]]]) -> TableView:
    rows = []
    for name in found[0]:
        own = [draw[name] for draw in found]
        verdicts = Counter(str(one["verdict"]) for one in own).most_common()
        rows.append([
            (name, ""),
            *((_between([float(one[key]) for one in own]), "") for key in ("cosine", "share", "iid", "combinations")),
            (_counts(verdicts, len(own)), ""),
        ])  # fmt: skip
    return TableView(
        title="Dictionaries against planted atoms",
        note="64 atoms in 32 dimensions; every vector is a sum of three. Cosine: over atoms, the mean of the best with "
        "a direction of the dictionary (64 each; SVD: 16, with both signs); above 0.9: the share of atoms. Agreement: "
        "with the subject where the dictionary stands in at layer0.residual, in distribution and under new "
        "combinations. Of pursuit with the true atoms: the share of vectors whose three atoms it finds. A range where "
        "draws differ.",
        headings=["dictionary", "cosine", "above 0.9", "iid", "combinations", "verdict"],
        rows=rows,
    )

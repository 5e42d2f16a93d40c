"""A circuit as a simplification: found on pairs of the train split, or given, and judged as any other."""

import hashlib
import math
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay._errors import AssayError
from assay._fingerprint import fingerprint_or_reason
from assay._given import check_fields, checked
from assay.circuits._files import Format, of_plain, read_circuit, to_plain, write_circuit
from assay.circuits._foreign import mib_circuits
from assay.circuits._graph import Edge, Graph, images, shuffled
from assay.circuits._optimal import PASSES, Learned, learn_constants
from assay.circuits._parameters import check_choice, check_whole, is_whole, shown
from assay.circuits._problem import (
    Ablation,
    Batch,
    Discovery,
    Measure,
    Problem,
    Reference,
    by_name,
    check_reach,
    parameters_of,
    sha256_of_pairs,
)
from assay.circuits._run import Trace, rows_at_a_time, run_circuit, wired, wiring_of
from assay.circuits._stated import Found, Given, Rank, Stated, described, laid_on, ranks
from assay.engine import Answer, Clean, Engine, Run, Samples
from assay.simplify import Origin, label, save_proxy, source_of
from assay.subjects import Subject
from assay.tasks import Split

Level = Literal["edges", "heads"]

LEAST_PAIRS = 30
"""Pairs below which nothing is discovered: a mean over fewer is no mean."""

LEAST_IMAGES = 20
"""Distinct images of a circuit under permutations of heads below which random paths are the control."""

NO_ATTENTION = "the heads of a circuit read several streams at once, so that their attention is none of the subject's"


@dataclass
class Circuit:
    """The claim that on such inputs the subject's answer is made by these edges: all others carry something else.

    `edges` is how many to find on the train split's pairs, or which they are (`"layer1.head2 -> layer3.mlp"`; then
    nothing is discovered). They are those with the largest scores by `method` (a name, such as "eap-ig", "eap" or
    "exact", or an object with its parameters), by absolute value, or with `rank="helpful"` those whose ablation lowers
    m most. With `level="heads"` senders are ranked by the sum of their edges' scores and taken with all edges out of
    them, as long as they fit; the embeddings come first, since without them nothing is on a path. Edges on no path from
    the embeddings to the logits explain nothing and are taken out again: the circuit has `pruned_` edges. Ablated edges
    carry what `ablation` says; `measure` is what discovery looks at; `name` is how a circuit of given edges is called,
    and `found` says where they are from (`read` fills it in), so that a subject of another form is refused.

    With `ablation="optimal"` what ablated edges carry is learned for the circuit once it is found (see
    `assay.circuits.learn_constants`), and it is found with means, where learning begins.

    After `fit`: `scores_` (sender, receiver), `edges_` the circuit before pruning in order of rank, `baseline_` the
    mean of m for the subject and with all edges ablated, `graph_`, `reference_`, `found_`, and `learned_` how well
    constants do that were learned.

    Raises AssayError if there are fewer than 30 pairs to find it on, if ablating everything is not shown to change m
    ("nothing to explain"), for a number of edges that the graph does not have, and for a method that does not go with
    the ablation or the measure, and for splits with positions that means by position, or sequences to draw from, do not
    reach. Sources: see the methods; pruning and edges before pruning as in EAP-IG (arXiv 2403.17806).
    """

    edges: int | Sequence[str | Edge]
    method: "str | Discovery" = "eap-ig"
    ablation: Ablation = "counterfactual"
    measure: Measure = "logit_difference"
    rank: Rank = "absolute"
    level: Level = "edges"
    name: str = ""
    seed: int = 0
    found: Found | None = None
    scores_: Float[np.ndarray, "sender receiver"] | None = field(default=None, init=False, repr=False, compare=False)
    kept_: Bool[np.ndarray, "sender receiver"] | None = field(default=None, init=False, repr=False, compare=False)
    graph_: Graph | None = field(default=None, init=False, repr=False, compare=False)
    reference_: Reference | None = field(default=None, init=False, repr=False, compare=False)
    baseline_: tuple[float, float] | None = field(default=None, init=False, repr=False, compare=False)
    found_: Found | None = field(default=None, init=False, repr=False, compare=False)
    learned_: Learned | None = field(default=None, init=False, repr=False, compare=False)

    streams: ClassVar[tuple[str, ...]] = ()
    whole: ClassVar[bool] = True
    copies: ClassVar[bool] = False

    def __post_init__(self) -> None:
        # A number of NumPy's is the same number: it is written, hashed and told from a list as Python's.
        check_fields(self)
        for name in ("edges", "seed"):
            if isinstance(getattr(self, name), np.integer):
                setattr(self, name, int(getattr(self, name)))

    @classmethod
    @checked
    def read(cls, path: str | Path, *, edges: int | None = None, groups: int | None = None) -> "Circuit":
        """A circuit from a file: ours (`write`), of EAP-IG or MIB (.json, .pt), auto-circuit's scores (.pt), a subgraph
        of ACDC (`save_subgraph`, .pth), or CircuitKIT's nodes (.pt) and scores of nodes (.json, .pt).

            circuit = Circuit.read("ioi.json")
            circuits = [Circuit.read("ioi-scores.pt", edges=n) for n in (100, 200, 400)]

        Nothing is found again: its edges are those that the file has in the circuit, or with `edges` the best of its
        scores (by absolute value; of ours as the circuit was ranked). EAP-IG and auto-circuit have keys and values for
        every query head. Where heads share them, an edge is in the circuit if it is for all heads of the group;
        `groups`, in how many there are, takes the sum of their scores. A file of nodes has all edges out of them. No
        code in a file is run.

        The files say nothing of ablation but ours: it is "counterfactual". Under another one EAP-IG leaves learned
        positions be, which here are part of the embeddings: its numbers are others then.

        Raises AssayError, in one line, for a file of none of these forms, or one that does not say which edges.
        """
        if not isinstance(path, str | Path):
            raise AssayError(f"path={shown(path)}: give the path of a file of a circuit.")
        return cls._of(read_circuit(Path(path), edges, groups))

    @classmethod
    def _of(cls, given: Given) -> "Circuit":
        return cls(
            list(given.edges),
            ablation=given.ablation,
            measure=given.measure,
            rank=given.rank,
            name=given.name,
            found=given.found,
        )

    @checked
    def write(self, path: str | Path, *, format: Format = "assay") -> Path:
        """Write the edges before pruning to a file, for `read`, and return its path.

            circuit.write("circuit.json")
            circuit.write("for_them.pt", format="eap-ig")

        Our own format has their scores, how and on what they were found, and the ablation; what ablated edges carry
        under "mean" and "position" is learned again by `fit` (`proxy.save` keeps it). "eap-ig" writes JSON, or with
        `torch.save` where the name ends in .pt, with all scores there are, else 0; "auto-circuit" has scores alone,
        or where there are none 1 for the circuit's edges. Both have a group's score shared among its heads.

        Raises AssayError for a circuit that is not fitted and of which nobody knows which graph its edges are of.
        """
        if not isinstance(path, str | Path):
            raise AssayError(f"path={shown(path)}: give the path of the file to write.")
        return write_circuit(self._stated(), Path(path), format)

    def saved(self) -> dict[str, Any]:
        """All that `restored` needs, in plain values: what a saved proxy keeps."""
        reference = self.reference_ if Reference.learns(self.ablation) else None
        means = None if reference is None else reference.means
        others = None if reference is None else reference.others
        return {
            "circuit": to_plain(self._stated()),
            "means": None if means is None else [means.embeddings, means.heads, means.mlp],
            "others": None if others is None else [*others, self.seed],
        }

    @classmethod
    def restored(cls, saved: dict[str, Any]) -> "Circuit":
        """The circuit that was saved, its edges given. Raises AssayError for what was damaged or changed."""
        made = cls._of(of_plain(saved["circuit"], Path("proxy.json")))
        if saved["means"] is not None:
            embeddings, heads, mlp = saved["means"]
            made.reference_ = Reference(made.ablation, Trace(embeddings, heads, mlp))
        if saved["others"] is not None:
            tokens, lengths, made.seed = saved["others"]
            made.reference_ = Reference(made.ablation, others=(tokens, lengths), seed=made.seed)
        return made

    def _stated(self) -> Stated:
        """The circuit as files have it."""
        found = self.found_ or self.found
        if found is None or found.at_least:
            raise AssayError(
                f"{label(self)} does not say yet of which graph its edges are; call fit(samples) or apply(subject) "
                "before it is written."
            )
        if isinstance(self.edges, int):
            graph, kept = self._fitted()
            scores = self.scores_
        else:
            graph = found.graph
            kept, scores = laid_on(self.edges, self.found, graph, found.width, label(self), "")
        edges = _by_rank(graph, kept, None if scores is None else ranks(scores, self.rank, self.measure))
        if scores is not None:
            own = [float(scores[graph.place(edge)]) for edge in edges]
            found = replace(found, scores=tuple(score if math.isfinite(score) else None for score in own))
        name = self.name or (f"found by {found.method}" if isinstance(self.edges, int) else "")
        given = Given(tuple(map(str, edges)), found, name, self.ablation, self.measure, self.rank)
        return Stated(given, kept, scores)

    @property
    def title(self) -> str | None:
        """How a given circuit is called: its edges are too many to be written out."""
        if not isinstance(self.edges, Sequence):
            return None
        ablation = "" if self.ablation == "counterfactual" else f", ablation={self.ablation!r}"
        return f"Circuit({self.name or 'given'}, {len(self.edges)} edges{ablation})"

    @property
    def learns(self) -> bool:
        """Whether there is anything to fit: edges, or what ablated ones carry."""
        return isinstance(self.edges, int) or Reference.learns(self.ablation)

    @property
    def edges_(self) -> tuple[Edge, ...]:
        """The edges before pruning, the best first where they were found."""
        graph, kept = self._fitted()
        return _by_rank(graph, kept, None if self.scores_ is None else self._ranks(self.scores_))

    @property
    def pruned_(self) -> int:
        """How many edges are on paths from the embeddings to the logits."""
        graph, kept = self._fitted()
        return int(graph.pruned(kept).sum())

    @property
    def bits_(self) -> float:
        """Bits that state the circuit: which k of N edges, log2 C(N, k), and 32 a number that ablated edges carry."""
        graph, kept = self._fitted()
        assert self.reference_ is not None
        count, size = int(graph.pruned(kept).sum()), graph.size
        choices = math.lgamma(size + 1) - math.lgamma(count + 1) - math.lgamma(size - count + 1)
        return choices / math.log(2) + 32 * self.reference_.numbers

    def check(self, subject: Subject, splits: Sequence[Split]) -> None:
        """Raise AssayError, before any work, for a subject, splits or parameters that it cannot be made for.

        The split of role "train" is fitted on, and so is a second one of a name, to be judged on the first.
        """
        self.check_parameters()
        engine = Engine(subject)
        self._check(subject, wiring_of(engine).graph, splits)
        for split in splits:
            if split.role == "train" and isinstance(self.edges, int):
                reference = Reference(self.ablation, seed=self.seed)
                _check_method(Problem(engine, split, reference, self.measure), by_name(self.method))

    def _check(self, subject: Subject, graph: Graph, splits: Sequence[Split]) -> None:
        """All that can be said of a graph and splits without asking the method."""
        if isinstance(self.edges, int):
            self._check_size(graph)
        else:
            self._laid_on(subject)
        check_reach(label(self), self.ablation, splits, fits_itself=isinstance(self.edges, int))
        for split in splits:
            fits = split.role == "train"
            if not split.has_pairs and (self.ablation == "counterfactual" or (fits and isinstance(self.edges, int))):
                raise AssayError(
                    f"{label(self)}: split {split.name!r} has no pairs (counterfactuals, answers, foils); give a task "
                    "of pairs, such as assay.tasks.Pairs"
                    + (" or use ablation='mean'." if self.ablation == "counterfactual" and not fits else ".")
                )
            if fits and isinstance(self.edges, int) and len(split) < LEAST_PAIRS:
                raise AssayError(
                    f"{label(self)}: split {split.name!r} has {len(split)} pairs; to find a circuit give at least "
                    f"{LEAST_PAIRS}."
                )

    @checked
    def fit(self, samples: Samples) -> "Circuit":
        """Find the edges on the pairs of the split, and what ablated edges carry."""
        subject, split = source_of(self, samples)
        self.find(samples)
        _, kept = self._fitted()
        assert self.reference_ is not None
        self.reference_, self.learned_ = _learned(subject, split, self.reference_, kept)
        return self

    @checked
    def find(self, samples: Samples) -> "Circuit":
        """`fit` without what is learned for the circuit: constants under optimal ablation stay means."""
        subject, split = source_of(self, samples)
        self.check_parameters()
        self.graph_ = wired(subject).graph
        self._check(subject, self.graph_, [replace(split, role="train")])
        self.reference_ = _reference(subject, self.ablation, split, self.seed)
        self.scores_ = self.baseline_ = self.learned_ = None
        if not isinstance(self.edges, int):
            self._lay_on(subject)
            return self
        self.scores_, found = _known(subject, split, self.reference_, self.measure, by_name(self.method))
        self.baseline_ = found.baseline
        self.found_ = replace(found, method=self.method if isinstance(self.method, str) else label(self.method))
        self.kept_ = self._chosen(self.graph_, self.scores_)
        return self

    @property
    def sizes_(self) -> Sequence[int]:
        """The numbers of edges at which another edge comes in, or with `level="heads"` those of another sender."""
        graph, scores = self._found()
        if self.level == "edges":
            return range(1, graph.size + 1)
        return np.cumsum(graph.exists.sum(axis=1)[self._order(scores)]).tolist()

    @checked
    def of_size(self, edges: int) -> "Circuit":
        """The circuit of another size by the same scores: nothing is discovered again.

        Raises AssayError for a circuit that was given and not found, for a size that the graph does not have, and
        under optimal ablation, whose constants are of one circuit.
        """
        graph, scores = self._found()
        if self.ablation == "optimal":
            raise AssayError(
                f"{label(self)}: what ablated edges carry was learned for this circuit alone; fit a circuit of each "
                "size, or use ablation='mean'."
            )
        other = replace(self, edges=edges)
        other._check_size(graph)
        other.graph_, other.scores_, other.reference_, other.baseline_ = graph, scores, self.reference_, self.baseline_
        other.kept_, other.found_ = other._chosen(graph, scores), self.found_
        return other

    def _found(self) -> tuple[Graph, Float[np.ndarray, "sender receiver"]]:
        graph, _ = self._fitted()
        if self.scores_ is None:
            raise AssayError(f"{label(self)} was given and not found: it has no scores, so there are no other sizes.")
        return graph, self.scores_

    @checked
    def apply(self, subject: Subject) -> "CircuitProxy":
        """The subject with every edge outside the circuit ablated."""
        wiring = wired(subject)
        if not isinstance(self.edges, int) and (self.reference_ is not None or not self.learns):
            self.check_parameters()
            self._lay_on(subject)
        if not self.learns:
            self.reference_ = _reference(subject, self.ablation, None)
        graph, kept = self._fitted()
        assert self.reference_ is not None
        if graph != wiring.graph:
            raise AssayError(
                f"{label(self)} is a circuit of {described(graph, None)}, and {subject.name!r} has "
                f"{described(wiring.graph, None)}; fit it again."
            )
        return CircuitProxy(subject, graph, kept, self.reference_.within(wiring), self)

    def describe(self) -> dict[str, Any]:
        """What the record keeps of it: how it is found, with all parameters, those that have their defaults too.

        Of given edges that is how many they are, a hash of their names, and where they are from. Under optimal
        ablation, how constants are learned, and once they are, how well they do.
        """
        carried: dict[str, Any] = {"ablation": self.ablation, "seed": self.seed}
        if self.ablation == "optimal":
            how_constants = "KL(subject || circuit) on the train split, by L-BFGS from the means"
            carried["constants"] = f"{how_constants}, at most about {PASSES} passes"
            carried |= {} if self.learned_ is None else asdict(self.learned_)
        if isinstance(self.edges, int):
            method = by_name(self.method)
            how = {"method": self.method if isinstance(self.method, str) else label(method)}
            how |= {"measure": self.measure, "rank": self.rank, "level": self.level}
            return {"edges": self.edges, **how, "parameters": parameters_of(method), **carried}
        edges = "\n".join(sorted(map(str, self.edges)))
        where: dict[str, Any] = {}
        if self.found is not None:
            subject = None if self.found.subject is None else vars(self.found.subject)
            where = {"subject": subject, "method": self.found.method, "pairs_sha256": self.found.pairs_sha256}
        sha256 = hashlib.sha256(edges.encode()).hexdigest()
        return {"edges": len(self.edges), "edges_sha256": sha256, "found": where, **carried}

    def control(self) -> "RandomCircuit":
        """A circuit of the same size and shape that forgets which heads it is made of."""
        return RandomCircuit(self)

    def ablated(self) -> "AllAblated":
        """The subject with every edge ablated."""
        return AllAblated(self.ablation, self.seed)

    def _laid_on(self, subject: Subject) -> tuple[Graph, int, Bool[np.ndarray, "sender receiver"]]:
        """The graph and the width of a subject, and which of its edges the given ones are."""
        assert not isinstance(self.edges, int)
        wiring = wired(subject)
        kept, _ = laid_on(self.edges, self.found, wiring.graph, wiring.width, label(self), subject.name)
        return wiring.graph, wiring.width, kept

    def _lay_on(self, subject: Subject) -> None:
        self.graph_, width, self.kept_ = self._laid_on(subject)
        self.found_ = replace(self.found or Found(self.graph_), graph=self.graph_, width=width, at_least=False)

    def _fitted(self) -> tuple[Graph, Bool[np.ndarray, "sender receiver"]]:
        if self.graph_ is None or self.kept_ is None:
            raise AssayError(f"{label(self)} has not been fitted; call fit(samples) before apply(subject).")
        return self.graph_, self.kept_

    def _ranks(self, scores: Float[np.ndarray, "*item"]) -> Float[np.ndarray, "*item"]:
        """By what edges are ranked, the largest first. Ablating what helps lowers a logit difference and raises KL."""
        return ranks(scores, self.rank, self.measure)

    def _chosen(
        self, graph: Graph, scores: Float[np.ndarray, "sender receiver"]
    ) -> Bool[np.ndarray, "sender receiver"]:
        assert isinstance(self.edges, int)
        kept = np.zeros(graph.shape, dtype=bool)
        if self.level == "edges":
            places = np.argwhere(graph.exists)
            order = np.argsort(-self._ranks(scores)[graph.exists], kind="stable")[: self.edges]
            kept[tuple(places[order].T)] = True
            return kept
        left = self.edges
        for sender in self._order(scores):
            out = graph.exists[sender]
            if out.sum() <= left:
                kept[sender] = out
                left -= int(out.sum())
        return kept

    def _order(self, scores: Float[np.ndarray, "sender receiver"]) -> Int[np.ndarray, " sender"]:
        """The senders in the order in which they are taken with all their edges: the embeddings, then by score."""
        totals = self._ranks(np.nansum(scores, axis=1))
        totals[0] = np.inf
        return np.argsort(-totals, kind="stable")

    def check_parameters(self) -> None:
        """Raise AssayError for values that no subject could have."""
        check_choice("ablation", self.ablation, get_args(Ablation))
        check_choice("measure", self.measure, get_args(Measure))
        check_choice("rank", self.rank, get_args(Rank))
        check_choice("level", self.level, get_args(Level))
        check_whole("seed", self.seed, least=0)
        if not isinstance(self.name, str):
            raise AssayError(f"name={shown(self.name)}: must be text, how a circuit of given edges is called.")
        if self.found is not None and not isinstance(self.found, Found):
            raise AssayError(f"found={shown(self.found)}: must be a Found, as Circuit.read fills it in, or None.")
        by_name(self.method)
        self._check_edges()

    def _check_edges(self) -> None:
        given = self.edges
        several = isinstance(given, Sequence) and not isinstance(given, str | bytes)
        if several and given and all(isinstance(edge, str | Edge) for edge in given):  # type: ignore[union-attr]
            return
        if several or not is_whole(given):
            raise AssayError(
                f"Circuit(edges={shown(given)}): give how many edges, or a list such as ['embeddings -> logits']."
            )

    def _check_size(self, graph: Graph) -> None:
        if isinstance(self.edges, int) and not 1 <= self.edges <= graph.size:
            raise AssayError(f"{label(self)}: the graph has {graph.size:,} edges; edges must be 1 to {graph.size}.")
        least = int(graph.exists[0].sum())
        if isinstance(self.edges, int) and self.level == "heads" and self.edges < least:
            raise AssayError(
                f"{label(self)}: with level='heads' a sender is taken with all edges out of it, and the embeddings, "
                f"without which nothing is on a path, have {least}; edges must be {least} to {graph.size}."
            )


@dataclass
class RandomCircuit:
    """The control of a circuit: as many edges in the same shape, between heads drawn at random.

    It is another image of the circuit under a random permutation of the heads of every layer, their places as senders
    and receivers moved together, so that size, profile over layers and paths stay. (Edges drawn evenly are no control:
    hardly any would be on a path.) Where it has fewer than 20 different images, because layers have few heads or the
    circuit few of them, random paths from the embeddings to the logits are drawn until there are as many edges as the
    circuit has on paths.
    """

    of: Circuit
    seed: int = 0
    learned_: Learned | None = field(default=None, init=False, repr=False, compare=False)
    reference_: Reference | None = field(default=None, init=False, repr=False, compare=False)
    fitted_: Circuit | None = field(default=None, init=False, repr=False, compare=False)
    kept_: Bool[np.ndarray, "sender receiver"] | None = field(default=None, init=False, repr=False, compare=False)

    streams: ClassVar[tuple[str, ...]] = ()
    whole: ClassVar[bool] = True
    copies: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def title(self) -> str:
        """How it is called: after its circuit."""
        return f"RandomCircuit({label(self.of)})"

    @property
    def learns(self) -> bool:
        """Whether there is anything to fit."""
        return self.of.learns

    def check(self, subject: Subject, splits: Sequence[Split]) -> None:
        """As its circuit does."""
        self.check_parameters()
        self.of.check(subject, splits)

    def describe(self) -> dict[str, Any]:
        """What the record keeps of it: which circuit it is an image of, and the seed of its first draw."""
        return {"of": label(self.of), "seed": self.seed}

    def check_parameters(self) -> None:
        """Raise AssayError for values that no subject could have."""
        check_whole("seed", self.seed, least=0)
        if not isinstance(self.of, Circuit):
            raise AssayError(f"RandomCircuit(of={shown(self.of)}): must be the circuit that it is the control of.")

    def redrawn(self, number: int) -> "RandomCircuit":
        """The same control with another draw."""
        return RandomCircuit(self.of, self.seed + number)

    @checked
    def fit(self, samples: Samples) -> "RandomCircuit":
        """Draw it."""
        self.check_parameters()
        subject, split = source_of(self, samples)
        self.fitted_ = replace(self.of).find(samples)
        graph, kept = self.fitted_._fitted()
        rng = np.random.default_rng(self.seed)
        if images(graph, kept, LEAST_IMAGES) >= LEAST_IMAGES:
            self.kept_ = kept
            while np.array_equal(self.kept_, kept):
                self.kept_ = shuffled(graph, kept, rng)
        else:
            self.kept_ = random_paths(graph, int(graph.pruned(kept).sum()), rng)
        assert self.fitted_.reference_ is not None
        self.reference_, self.learned_ = _learned(subject, split, self.fitted_.reference_, self.kept_)
        return self

    @checked
    def apply(self, subject: Subject) -> "CircuitProxy":
        """The subject with every edge outside the random circuit ablated."""
        if self.fitted_ is None or self.kept_ is None or self.reference_ is None:
            raise AssayError(f"{label(self)} has not been fitted; call fit(samples) before apply(subject).")
        graph = self.fitted_.apply(subject).graph
        return CircuitProxy(subject, graph, self.kept_, self.reference_.within(wiring_of(Engine(subject))), self)

    def control(self) -> None:
        """None: it is a control."""


@dataclass
class AllAblated:
    """The subject with every edge ablated: what a circuit that explains nothing does."""

    ablation: Ablation = "counterfactual"
    seed: int = 0
    reference_: Reference | None = field(default=None, init=False, repr=False, compare=False)
    learned_: Learned | None = field(default=None, init=False, repr=False, compare=False)

    streams: ClassVar[tuple[str, ...]] = ()
    whole: ClassVar[bool] = True
    copies: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def learns(self) -> bool:
        """Whether there is anything to fit."""
        return Reference.learns(self.ablation)

    def describe(self) -> dict[str, Any]:
        """What the record keeps of it: what ablated edges carry."""
        return {"edges": 0, "ablation": self.ablation, "seed": self.seed}

    def check(self, subject: Subject, splits: Sequence[Split]) -> None:
        """As a circuit does, of what it has itself."""
        self.check_parameters()
        check_reach(label(self), self.ablation, splits, fits_itself=False)

    def check_parameters(self) -> None:
        """Raise AssayError for values that no subject could have."""
        check_choice("ablation", self.ablation, get_args(Ablation))
        check_whole("seed", self.seed, least=0)

    @checked
    def fit(self, samples: Samples) -> "AllAblated":
        """Find what ablated edges carry."""
        self.check_parameters()
        subject, split = source_of(self, samples)
        reference = _reference(subject, self.ablation, split, self.seed)
        nothing = np.zeros(wired(subject).graph.shape, dtype=bool)
        self.reference_, self.learned_ = _learned(subject, split, reference, nothing)
        return self

    @checked
    def apply(self, subject: Subject) -> "CircuitProxy":
        """The subject with every edge ablated."""
        self.check_parameters()
        if self.reference_ is None and self.learns:
            raise AssayError(f"{label(self)} has not been fitted; call fit(samples) before apply(subject).")
        reference = self.reference_ or _reference(subject, self.ablation, None)
        wiring = wired(subject)
        nothing = np.zeros(wiring.graph.shape, dtype=bool)
        return CircuitProxy(subject, wiring.graph, nothing, reference.within(wiring), self)

    def control(self) -> None:
        """None: it is a control."""


class CircuitProxy:
    """A subject in which every edge outside a circuit is ablated. Attention is not compared with the subject's."""

    def __init__(
        self,
        subject: Subject,
        graph: Graph,
        kept: Bool[np.ndarray, "sender receiver"],
        reference: Reference,
        simplification: Any,
    ) -> None:
        self.subject, self.graph, self.reference, self.simplification = subject, graph, reference, simplification
        self.kept = kept
        self.pruned = graph.pruned(kept)
        self._engine: Engine | None = None

    @property
    def fitted_on(self) -> Origin:
        """The subject that the circuit was found on, or where that is not known this one."""
        found = self.simplification.found if isinstance(self.simplification, Circuit) else None
        known = None if found is None else found.subject
        return Origin.of(self.subject) if known is None else known

    @property
    def transferred(self) -> bool:
        """Whether the circuit was found on other weights than those of the subject."""
        found, own = self.fitted_on, Origin.of(self.subject)
        return (found.weights_sha256, found.config_sha256) != (own.weights_sha256, own.config_sha256)

    def save(self, folder: str | Path) -> Path:
        """Write the circuit to a folder, for `assay.load_proxy`: its edges, and what ablated ones carry.

        Raises AssayError for a folder that holds something else, and for a control, which is drawn again instead.
        """
        if not isinstance(self.simplification, Circuit):
            raise AssayError(
                f"{label(self.simplification)} is not saved; save the circuit, and take its control() again."
            )
        return save_proxy(self, folder)

    def __call__(
        self, tokens: Int[Tensor, "batch position"], valid: Int[Tensor, "batch position"] | None = None
    ) -> Float[Tensor, "batch position vocabulary"]:
        """Logits of every position; `valid` is 1 at tokens and 0 at padding (default: no padding).

        Raises AssayError under counterfactual ablation, which needs pairs: call `on_pairs`.
        """
        given = torch.ones_like(tokens) if valid is None else valid
        return self._logits(tokens, given, None)

    def on_pairs(
        self,
        tokens: Int[Tensor, "batch position"],
        counterfactuals: Int[Tensor, "batch position"],
        valid: Int[Tensor, "batch position"] | None = None,
    ) -> Float[Tensor, "batch position vocabulary"]:
        """Logits of every position, with the counterfactual of every sequence."""
        return self._logits(tokens, torch.ones_like(tokens) if valid is None else valid, counterfactuals)

    def _logits(self, tokens: Tensor, valid: Tensor, counterfactuals: Tensor | None) -> Tensor:
        engine = self._own_engine()
        found = _runs(engine, [self], _plain(tokens, valid, counterfactuals))
        return torch.cat([engine.logits(run, slice(None)) for run in next(found)])

    def _own_engine(self) -> Engine:
        if self._engine is None:
            self._engine = Engine(self.subject)
        return self._engine

    def answer(self, clean: Clean) -> Answer:
        """The answer on the batch of `clean`."""
        return next(answer for _, answer in self.answer_together([self], clean))

    @classmethod
    def answer_together(cls, proxies: Sequence["CircuitProxy"], clean: Clean) -> Iterator[tuple[int, Answer]]:
        """Number and answer of each; the counterfactuals are run once for all of one ablation."""
        counterfactuals = None if clean.batch is None else clean.batch.counterfactuals
        given = None
        if counterfactuals is not None:
            given = torch.from_numpy(counterfactuals.astype(np.int64)).to(clean.tokens.device)
        batch = _plain(clean.tokens, clean.valid, given)
        groups: dict[tuple[int, int], list[int]] = {}
        for number, proxy in enumerate(proxies):
            reference = proxy.reference
            whose = id(proxy.subject.model)
            groups.setdefault((whose, id(reference) if reference.means or reference.others else 0), []).append(number)
        for numbers in groups.values():
            own = [proxies[number] for number in numbers]
            same = own[0].subject.model is clean.engine.subject.model
            engine = clean.engine if same else own[0]._own_engine()
            for number, runs in zip(numbers, _runs(engine, own, batch), strict=True):
                yield number, _answer(engine, runs)

    def __repr__(self) -> str:
        kept, pruned = int(self.kept.sum()), int(self.pruned.sum())
        return f"CircuitProxy({self.subject!r}, {pruned} of {self.graph.size:,} edges ({kept} before pruning))"


def _answer(engine: Engine, runs: list[Run]) -> Answer:
    def logits(positions: slice | Int[Tensor, " chosen"]) -> Float[Tensor, "batch chosen vocabulary"]:
        return torch.cat([engine.logits(run, positions) for run in runs])

    return Answer(logits, NO_ATTENTION, sum(run.held for run in runs))


def _plain(tokens: Tensor, valid: Tensor, counterfactuals: Tensor | None) -> Batch:
    """A batch of which nothing is scored."""
    nothing = tokens.new_zeros(0)
    return Batch(np.arange(len(tokens)), tokens, valid, counterfactuals, nothing, nothing, nothing, nothing[:, None])


def _runs(engine: Engine, proxies: Sequence[CircuitProxy], batch: Batch) -> Iterator[list[Run]]:
    """The runs of each of some proxies of one reference on a batch, cut into pieces that have room."""
    wiring = wiring_of(engine)
    trace = proxies[0].reference.trace(wiring, batch)
    element = torch.finfo(engine.subject.model.dtype).bits // 8
    for proxy in proxies:
        senders = int(proxy.pruned.any(axis=1).sum())
        size = rows_at_a_time(wiring, max(1, senders), batch.tokens.shape[1], element)
        pieces = [slice(start, start + size) for start in range(0, len(batch.tokens), size)]
        yield [
            run_circuit(engine, wiring, proxy.pruned, trace.rows(rows), batch.tokens[rows], batch.valid[rows])
            for rows in pieces
        ]


def _reference(subject: Subject, ablation: Ablation, split: Split | None, seed: int = 0) -> Reference:
    """What ablated edges carry; no engine is made where they carry what is in the pairs."""
    if ablation == "counterfactual":
        return Reference(ablation)
    return Reference.fitted(Engine(subject), ablation, split, seed)


def _check_method(problem: Problem, method: Discovery) -> None:
    """Raise AssayError for an ablation or a measure that the method cannot work with."""
    getattr(method, "check", lambda _: None)(problem)


def _by_rank(
    graph: Graph, kept: Bool[np.ndarray, "sender receiver"], values: Float[np.ndarray, "sender receiver"] | None
) -> tuple[Edge, ...]:
    """The edges of a circuit, the best first, or where nobody knows which those are in order of execution."""
    if values is None:
        return graph.edges(kept)
    places = np.argwhere(kept)
    order = np.argsort(-values[kept], kind="stable")
    return tuple(Edge(graph.senders[s], graph.receivers[r]) for s, r in places[order])


_SCORES: "weakref.WeakKeyDictionary[nn.Module, dict[tuple[object, ...], tuple[np.ndarray, Found]]]" = (
    weakref.WeakKeyDictionary()
)


def _known(
    subject: Subject, split: Split, reference: Reference, measure: Measure, method: Discovery
) -> tuple[np.ndarray, Found]:
    """Scores, and where they are from, from before if they were found: a sweep over sizes is one discovery.

    Raises AssayError unless ablating everything changes m: its 99% interval has to exclude 0.
    """
    model = subject.model
    weights = tuple((tensor.data_ptr(), tensor._version) for tensor in model.parameters() if not tensor.is_inference())
    found, pairs = fingerprint_or_reason(method), sha256_of_pairs(split)
    key = (weights, pairs, found, reference.ablation, reference.seed, measure)
    known = _SCORES.setdefault(model, {})
    if key not in known or not isinstance(found, str):
        problem = Problem(Engine(subject), split, reference, measure)
        _check_method(problem, method)
        whole, ablated = problem.baseline
        change = whole - ablated
        error = float(change.std(ddof=1)) / math.sqrt(len(change))
        if not abs(float(change.mean())) > 2.576 * error:
            raise AssayError(
                f"nothing to explain on split {split.name!r}: ablating every edge ({reference.ablation}) changes the "
                f"mean logit difference of answer and foils by {change.mean():.3g} with a standard error of "
                f"{error:.2g}; give pairs whose counterfactual changes the subject's answer."
            )
        where = Found(
            problem.wiring.graph,
            problem.wiring.width,
            subject=Origin.of(subject),
            pairs_sha256=pairs,
            baseline=(float(whole.mean()), float(ablated.mean())),
        )
        known[key] = method.scores(problem), where
    scores, where = known[key]
    return scores.copy(), where


def _learned(
    subject: Subject, split: Split, reference: Reference, kept: Bool[np.ndarray, "sender receiver"]
) -> tuple[Reference, Learned | None]:
    """What ablated edges of a circuit carry, with what is learned for it."""
    if reference.ablation != "optimal":
        return reference, None
    return learn_constants(Problem(Engine(subject), split, reference), kept)


@checked
def write_mib(folder: str | Path, circuit: Circuit, *, form: Literal["json", "pt"] = "json") -> Path:
    """Write a submission to the benchmark MIB for one task and one model: nine circuits of rising size.

        write_mib("submission/ioi_gpt2", circuit)

    They are in EAP-IG's form and have the edges that rank best, at most .1, .2, .5, 1, 2, 5, 10, 20 and 50% of all,
    counted before pruning and with keys and values by head, as MIB counts; how many the circuit itself has does not
    matter. (What MIB takes as well is one file of scores: `circuit.write("importances.json", format="eap-ig")`.)
    Raises AssayError for a circuit of which too few edges have scores.
    """
    if form not in ("json", "pt"):
        raise AssayError(f"form={form!r}: MIB takes json or pt.")
    for name, stated in mib_circuits(circuit._stated(), form).items():
        write_circuit(stated, Path(folder) / name, "eap-ig")
    return Path(folder)


def random_paths(graph: Graph, size: int, rng: np.random.Generator) -> Bool[np.ndarray, "sender receiver"]:
    """Edges of random paths from the embeddings to the logits, as many as asked for.

    A path is drawn backwards from the logits, each time a sender that is heard there, and then one of the receivers of
    that sender. Where the last path would bring too many edges, others are tried; after 1,000 in vain it is taken.
    """
    receivers: dict[int, list[int]] = {}
    for receiver, fed in enumerate(graph.heads_of):
        for sender in fed:
            receivers.setdefault(sender, []).append(receiver)
    kept = np.zeros(graph.shape, dtype=bool)
    tries = 0
    while (left := size - int(kept.sum())) > 0:
        path = np.zeros_like(kept)
        receiver = graph.logits
        while True:
            sender = int(rng.integers(graph.heard[receiver]))
            path[sender, receiver] = True
            if sender == 0:
                break
            receiver = int(rng.choice(receivers[sender]))
        tries += 1
        if 1 <= int((path & ~kept).sum()) <= left or tries > 1_000:
            kept |= path
            tries = 0
    return kept

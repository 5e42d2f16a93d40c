"""The same circuits found and judged by Assay, EAP-IG and auto-circuit: time, memory, and agreement of the numbers.

The jobs: scores of all edges by attribution (`eap`), by attribution integrated over five steps (`eap-ig`, at their left
ends as EAP-IG takes them) and by patching every edge (`exact`); the logit differences of one circuit (`judge`) and of
ten (`sweep`), the counterfactual run included. Every tool gets the same weights, a random model of GPT-2's kind, and
the same pairs of random tokens. Tools take turns in one process, on one thread, for their processor seconds; memory is
what a fresh process comes to need during the job, beyond what it had when model and pairs stood. No number is printed
unless the tools agree on the results: to 1e-4 of the largest, and rank correlation of edges at least .999.

    python benchmarks/circuits.py --eap-ig CHECKOUT --markdown docs/results/circuits-speed.md

CHECKOUT is one of github.com/hannamw/EAP-IG; auto-circuit is used where it is installed. Both work with TransformerLens
2 and no later one: `pip install --no-deps 'transformer-lens<3' auto-circuit`, and then what they import, in an
environment of their own (the older TransformerLens asks for an older numpy than it needs). A tool that is missing is
left out, with the reason. `--profile` shows where Assay's own time goes. The last part needs no peer: attribution in a
trained model, SmolLM2-135M, where the package that carries it is installed.
"""

import argparse
import contextlib
import copy
import ctypes
import gc
import importlib.metadata
import json
import math
import os
import platform
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from assay import AssayError
from assay.circuits import (
    CircuitProxy,
    EdgeAttribution,
    ExactEdges,
    IntegratedEdgeAttribution,
    Problem,
    Reference,
)
from assay.engine import Engine, batches, tensors
from assay.studies import compressed
from assay.subjects import Subject
from assay.tasks import NO_TOKEN, UNSCORED, Split
from machine import machine

STEPS = 5
AGREEMENT, CORRELATION = 1e-4, 0.999


@dataclass(frozen=True)
class Case:
    """A model, how many pairs of how many tokens, the jobs, and how many edges the circuits have that are judged."""

    title: str
    configuration: GPT2Config
    pairs: int
    positions: int
    jobs: tuple[str, ...]
    edges: int = 0
    sizes: tuple[int, ...] = ()


def _configuration(layers: int, heads: int, width: int, vocabulary: int) -> GPT2Config:
    return GPT2Config(
        vocab_size=vocabulary, n_positions=64, n_embd=width, n_layer=layers, n_head=heads, initializer_range=0.1,
        bos_token_id=1, eos_token_id=1,
    )  # fmt: skip


CASES = {
    "four-layers": Case(
        "4 layers × 4 heads × 128, vocabulary 1,000",
        _configuration(4, 4, 128, 1_000),
        16,
        64,
        ("eap", "eap-ig", "judge", "sweep"),
        100,
        (10, 20, 40, 60, 80, 100, 150, 200, 300, 400),
    ),
    "three-layers": Case("3 layers × 4 heads × 32", _configuration(3, 4, 32, 1_000), 6, 10, ("exact",)),
    "gpt2": Case("GPT-2 small's configuration", GPT2Config(), 16, 18, ("eap", "judge"), 200),
}

JOBS = {
    "eap": "EAP",
    "eap-ig": f"EAP-IG, {STEPS} steps",
    "exact": "exact patching of every edge",
    "judge": "judging one circuit",
    "sweep": "judging ten circuits",
}

GOALS = {
    ("four-layers", "eap"): {"eap-ig": (7, 10), "auto-circuit": (5, 10)},
    ("four-layers", "eap-ig"): {"eap-ig": (7, None)},
    ("four-layers", "judge"): {"eap-ig": (4, None)},
    ("four-layers", "sweep"): {"eap-ig": (10, None)},
    ("three-layers", "exact"): {"eap-ig": (30, None)},
    ("gpt2", "eap"): {"eap-ig": (9, 7), "auto-circuit": (8, None)},
    ("gpt2", "judge"): {"eap-ig": (7, None)},
}
"""By how much Assay is to be faster and leaner than each peer, at least."""


def model_of(case: Case) -> GPT2LMHeadModel:
    """The random model of a case."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(case.configuration).eval()


def pairs_of(case: Case) -> Split:
    """Random tokens, of which every fourth is another one in the counterfactual, and a prediction at the last."""
    rng = np.random.default_rng(1)
    shape = case.pairs, case.positions
    tokens = rng.integers(2, case.configuration.vocab_size, shape)
    others = np.where(np.arange(case.positions) % 4 == 1, rng.integers(2, case.configuration.vocab_size, shape), tokens)
    kinds, answers, foils = np.full(shape, UNSCORED), np.full(shape, NO_TOKEN), np.full(shape, NO_TOKEN)
    kinds[:, -1] = 0
    answers[:, -1] = rng.integers(2, case.configuration.vocab_size // 2, case.pairs)
    foils[:, -1] = rng.integers(case.configuration.vocab_size // 2, case.configuration.vocab_size, case.pairs)
    return Split(
        "iid", "iid", "random pairs", tokens, np.full(case.pairs, case.positions), kinds,
        counterfactuals=others, answers=answers, foils=foils,
    )  # fmt: skip


Result = np.ndarray
"""Scores (sender, receiver), NaN where there is no edge; or logit differences (circuit, pair)."""


# -- the tools -------------------------------------------------------------------------------------------------------


class WithAssay:
    """The functions that `Circuit.fit` and `compare` call."""

    name = "Assay"
    jobs = tuple(JOBS)

    def __init__(self, model: GPT2LMHeadModel, pairs: Split, options: argparse.Namespace) -> None:
        self.engine = Engine(Subject(model.to(options.device), None, "benchmark"))
        self.problem = Problem(self.engine, pairs, Reference.fitted(self.engine, "counterfactual", None))

    def scores(self, method: str) -> Result:
        methods = {
            "eap": EdgeAttribution(),
            "eap-ig": IntegratedEdgeAttribution(STEPS, "left"),
            "exact": ExactEdges(),
        }
        return methods[method].scores(self.problem)

    def differences(self, circuits: Sequence[np.ndarray]) -> Result:
        split, graph, subject = self.problem.split, self.problem.wiring.graph, self.engine.subject
        proxies = [CircuitProxy(subject, graph, kept, self.problem.reference, None) for kept in circuits]
        found = np.zeros((len(circuits), len(split)))
        with self.engine.ready():
            for index, part in batches(self.engine, split):
                tokens, valid = tensors(part, subject.device)
                answers, foils = (
                    torch.from_numpy(column[:, -1]).to(subject.device)[:, None] for column in (part.answers, part.foils)
                )
                clean: Any = SimpleNamespace(engine=self.engine, tokens=tokens, valid=valid, batch=part)
                for number, answer in CircuitProxy.answer_together(proxies, clean):
                    with torch.inference_mode():
                        logits = answer.logits(slice(-1, None))[:, 0]
                        values = logits.gather(1, answers) - logits.gather(1, foils)
                    found[number, index] = values[:, 0].cpu().numpy()
        return found


class WithTorchsKernels(WithAssay):
    """The same by torch's products and the model's own code alone: what is won otherwise than by kernels."""

    name = "Assay, torch's kernels"

    def __init__(self, model: GPT2LMHeadModel, pairs: Split, options: argparse.Namespace) -> None:
        super().__init__(model, pairs, options)
        self.engine._kernels = {}
        vars(self.problem.wiring)["kernels"] = {}

    def logits(self, tokens: Tensor) -> Tensor:
        return self.engine.subject.model(tokens).logits

    def scores(self, method: str) -> Result:
        with torch.backends.mkldnn.flags(enabled=False):
            return super().scores(method)

    def differences(self, circuits: Sequence[np.ndarray]) -> Result:
        with torch.backends.mkldnn.flags(enabled=False):
            return super().differences(circuits)


def hooked(model: GPT2LMHeadModel, device: str) -> Any:
    """The same model as TransformerLens has it, with the hooks that the peers ask for and no weight changed."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig  # noqa: PLC0415
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights  # noqa: PLC0415

    given = model.config
    configuration = HookedTransformerConfig(
        n_layers=given.n_layer, d_model=given.n_embd, n_ctx=given.n_positions, d_head=given.n_embd // given.n_head,
        n_heads=given.n_head, d_mlp=4 * given.n_embd, d_vocab=given.vocab_size, act_fn="gelu_new", eps=1e-5,
        normalization_type="LN", use_attn_result=True, use_split_qkv_input=True, use_hook_mlp_in=True, device=device,
        seed=0,
    )  # fmt: skip
    found = HookedTransformer(configuration)
    weights = convert_gpt2_weights(copy.deepcopy(model), configuration)
    found.load_and_process_state_dict(
        weights, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    return found.eval()


class WithEapIg:
    """EAP-IG's `attribute` and `evaluate_graph`.

    Their functions take strings and a tokenizer, and have the device cuda written into them: `tokenize_plus` and, where
    there is no such device, `torch.zeros` are replaced here, in their modules as loaded; their files stay as they are.
    """

    name = "EAP-IG"
    jobs = tuple(JOBS)

    def __init__(self, model: GPT2LMHeadModel, pairs: Split, options: argparse.Namespace) -> None:
        if options.eap_ig is None:
            raise ImportError("no checkout given (--eap-ig)")
        sys.path.insert(0, str(options.eap_ig / "src"))
        import eap.attribute  # noqa: PLC0415
        import eap.evaluate  # noqa: PLC0415
        import eap.graph  # noqa: PLC0415

        self.eap, self.device = eap, options.device
        for module in (eap.attribute, eap.evaluate):
            module.tokenize_plus = self.tokenized
        if options.device != "cuda":
            eap.attribute.torch = _OnDevice(options.device)
        self.model = hooked(model, options.device)
        self.graph = eap.graph.Graph.from_model(self.model)
        self.exists = self.graph.real_edge_mask.numpy()
        clean, corrupted = (torch.from_numpy(part).to(options.device) for part in (pairs.tokens, pairs.counterfactuals))
        label = torch.from_numpy(np.stack((pairs.answers[:, -1], pairs.foils[:, -1]), axis=1)).to(options.device)
        self.loader = [(clean, corrupted, label)]

    @staticmethod
    def tokenized(model: Any, tokens: Tensor, max_length: int | None = None) -> tuple[Tensor, Tensor, Tensor, int]:
        mask = torch.ones_like(tokens)
        return tokens, mask, mask.sum(1), tokens.shape[1]

    def logits(self, tokens: Tensor) -> Tensor:
        return self.model(tokens)

    @staticmethod
    def metric(logits: Tensor, clean: Tensor | None, lengths: Tensor, label: Tensor) -> Tensor:
        last = logits[:, -1].gather(1, label)
        return last[:, 0] - last[:, 1]

    def total(self, *given: Any) -> Tensor:
        return self.metric(*given).sum()

    def scores(self, method: str) -> Result:
        own = {"eap": "EAP", "eap-ig": "EAP-IG-inputs", "exact": "exact"}[method]
        metric = self.metric if method == "exact" else self.total
        self.model.zero_grad()
        self.graph.reset(empty=False)
        self.eap.attribute.attribute(self.model, self.graph, self.loader, metric, own, ig_steps=STEPS, quiet=True)
        return np.where(self.exists, self.graph.scores.numpy(), np.nan)

    def differences(self, circuits: Sequence[np.ndarray]) -> Result:
        found = []
        for kept in circuits:
            self.graph.reset()
            self.graph.in_graph[:] = torch.from_numpy(kept)
            values = self.eap.evaluate.evaluate_graph(self.model, self.graph, self.loader, self.metric, quiet=True)
            found.append(values.numpy())
        return np.stack(found)


class _OnDevice:
    """torch, with zeros made on another device than cuda."""

    def __init__(self, device: str) -> None:
        self.device = device

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def zeros(self, *shape: Any, device: Any = None, **options: Any) -> Tensor:
        return torch.zeros(*shape, device=self.device if device == "cuda" else device, **options)


class WithAutoCircuit:
    """auto-circuit's gradient of the edges' masks, which at mask 0 is edge attribution."""

    name = "auto-circuit"
    jobs = ("eap",)

    def __init__(self, model: GPT2LMHeadModel, pairs: Split, options: argparse.Namespace) -> None:
        from auto_circuit.data import PromptDataLoader, PromptDataset  # noqa: PLC0415
        from auto_circuit.prune_algos.mask_gradient import mask_gradient_prune_scores  # noqa: PLC0415
        from auto_circuit.utils.graph_utils import patchable_model  # noqa: PLC0415

        self.find = mask_gradient_prune_scores
        configuration = model.config
        self.layers, self.heads = configuration.n_layer, configuration.n_head
        self.model = patchable_model(
            hooked(model, options.device),
            factorized=True,
            slice_output="last_seq",
            separate_qkv=True,
            device=torch.device(options.device),
        )
        parts = (pairs.tokens, pairs.counterfactuals, pairs.answers[:, -1:], pairs.foils[:, -1:])
        data = PromptDataset(*(list(torch.from_numpy(part).to(options.device)) for part in parts))
        self.loader = PromptDataLoader(data, seq_len=pairs.tokens.shape[1], diverge_idx=0, batch_size=len(pairs))

    def logits(self, tokens: Tensor) -> Tensor:
        return self.model(tokens)

    def scores(self, method: str) -> Result:
        self.model.zero_grad()
        given = self.find(self.model, self.loader, None, "logit", "avg_diff", mask_val=0.0)
        readers = 3 * self.heads
        found = np.full((1 + self.layers * (self.heads + 1), self.layers * (readers + 1) + 1), np.nan)
        for layer in range(self.layers):
            start = layer * (readers + 1)
            for part, letter in enumerate("qkv"):
                own = given[f"blocks.{layer}.hook_{letter}_input"].cpu().numpy()
                found[: own.shape[1], start + part * self.heads :][:, : self.heads] = -own.T
            own = given[f"blocks.{layer}.hook_mlp_in"].cpu().numpy()
            found[: len(own), start + readers] = -own
        found[:, -1] = -given[f"blocks.{self.layers - 1}.hook_resid_post"].cpu().numpy()
        return found


TOOLS: dict[str, Any] = {
    "assay": WithAssay,
    "torch": WithTorchsKernels,
    "eap-ig": WithEapIg,
    "auto-circuit": WithAutoCircuit,
}


# -- measuring -------------------------------------------------------------------------------------------------------


def do(tool: Any, job: str, circuits: Sequence[np.ndarray]) -> Result:
    """One job by one tool."""
    return tool.differences(circuits) if job in ("judge", "sweep") else tool.scores(job)


def seconds_of(device: str, work: Callable[..., Any], *given: Any) -> tuple[float, Any]:
    """Processor seconds of a CPU, or seconds of another device, and what came out."""
    gc.collect()
    if device == "cpu":
        start = resource.getrusage(resource.RUSAGE_SELF)
        found = work(*given)
        end = resource.getrusage(resource.RUSAGE_SELF)
        return end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime, found
    torch.cuda.synchronize()
    began = time.perf_counter()
    found = work(*given)
    torch.cuda.synchronize()
    return time.perf_counter() - began, found


def peak_of(device: str, work: Callable[..., Any], *given: Any) -> float:
    """MB that come to what was there before while something is done (on a CPU: under Linux)."""
    gc.collect()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work(*given)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = _status("VmRSS")
    work(*given)
    return _status("VmHWM") - before


def _status(field: str) -> float:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1_024
    return math.nan


def apart(job: str, own: Result, other: Result) -> tuple[float, float]:
    """The largest difference as a share of the largest number, and the rank correlation of edges."""
    if job in ("judge", "sweep"):
        return float(np.abs(own - other).max() / np.abs(own).max()), 1.0
    if not np.array_equal(np.isnan(own), np.isnan(other)):
        return math.inf, 0.0
    own, other = own[~np.isnan(own)], other[~np.isnan(other)]
    return float(np.abs(own - other).max() / np.abs(own).max()), float(spearmanr(own, other).statistic)


def best_edges(scores: Result, count: int) -> np.ndarray:
    """The edges with the largest scores."""
    kept = np.zeros(scores.shape, dtype=bool)
    values = np.where(np.isnan(scores), -1.0, np.abs(scores))
    kept.flat[np.argsort(-values, axis=None, kind="stable")[:count]] = True
    return kept


def tools_of(case: Case, options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """The tools that are there, each with a model of its own that gives the logits of Assay's."""
    pairs = pairs_of(case)
    tokens = torch.from_numpy(pairs.tokens).to(options.device)
    expected: Tensor | None = None
    for key in ("assay", *options.others):
        model = model_of(case)
        try:
            tool = TOOLS[key](model, pairs, options)
        except ImportError as error:
            options.missing[TOOLS[key].name] = str(error)
            continue
        with torch.inference_mode():
            if expected is None:
                expected = model.to(options.device)(tokens).logits
            else:
                off = float((tool.logits(tokens) - expected).abs().max() / expected.abs().max())
                if not off <= AGREEMENT:
                    sys.exit(f"{tool.name} has another model: its logits are off by {off:.1e} of the largest.")
        yield key, tool


def measure(key: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All jobs of one case, as records. Stops if the tools do not agree."""
    case = CASES[key]
    tools = dict(tools_of(case, options))
    ranks = tools["assay"].scores("eap") if case.edges else None
    for job in case.jobs:
        if job not in options.jobs:
            continue
        circuits = circuits_of(case, job, ranks)
        able = {name: tool for name, tool in tools.items() if job in tool.jobs}
        seconds: dict[str, list[float]] = {name: [] for name in able}
        distances: dict[str, tuple[float, float]] = {}
        for number in range(options.rounds):
            results = {}
            for name in list(able) if number % 2 else list(able)[::-1]:
                spent, results[name] = seconds_of(options.device, do, able[name], job, circuits)
                seconds[name].append(spent)
            for name in able.keys() - {"assay"}:
                distances[name] = off, correlation = apart(job, results["assay"], results[name])
                if not (off <= AGREEMENT and correlation >= CORRELATION):
                    sys.exit(f"{key}, {job}: {name} is off by {off:.1e} of the largest, correlation {correlation:.5f}.")
        peaks = {}
        if not options.no_memory:
            peaks = {name: alone(name, key, job, ranks, options) for name in able}
        yield {"case": key, "job": job, "seconds": seconds, "MB": peaks, "apart": distances}


def circuits_of(case: Case, job: str, ranks: Result | None) -> list[np.ndarray]:
    """The circuits of a job: those of the best edges by attribution."""
    if ranks is None or job not in ("judge", "sweep"):
        return []
    return [best_edges(ranks, size) for size in ((case.edges,) if job == "judge" else case.sizes)]


def alone(name: str, key: str, job: str, ranks: Result | None, options: argparse.Namespace) -> float:
    """Peak memory of a job in a process of its own."""
    command = [sys.executable, __file__, "--alone", name, key, job, "--device", options.device]
    command += [] if options.eap_ig is None else ["--eap-ig", str(options.eap_ig)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def serve(name: str, key: str, job: str, options: argparse.Namespace) -> None:
    """In a process of its own: do a job on one pair, so that libraries are loaded, then on all, and print the peak."""
    case = CASES[key]
    model, pairs = model_of(case), pairs_of(case)
    ranks = None
    if job in ("judge", "sweep"):
        ranks = WithAssay(copy.deepcopy(model), pairs, options).scores("eap")
    circuits = circuits_of(case, job, ranks)
    first = TOOLS[name](copy.deepcopy(model), pairs.take(np.arange(1)), options)
    do(first, job, circuits)
    del first
    tool = TOOLS[name](model, pairs, options)
    del model
    print(peak_of(options.device, do, tool, job, circuits))


# -- a trained model -------------------------------------------------------------------------------------------------

NAMES = ("Mary", "John", "Anna", "Paul", "James", "Sarah", "David", "Laura", "Peter", "Emma")
TEXTS = (
    "When {a} and {b} went to the store yesterday, {b} gave a drink to",
    "After {a} and {b} had lunch at the office, {b} gave a book to",
    "Then {a} and {b} were working at the station, and {b} gave a ring to",
    "While {a} and {b} were walking in the garden, {b} gave a ball to",
)


def trained_pairs(subject: Subject, count: int) -> Split:
    """Who gets it, the indirect object: in the counterfactual the two names change places at the end."""
    tokenizer: Any = subject.tokenizer
    rng = np.random.default_rng(0)
    rows: dict[str, tuple[list[int], list[int], int, int]] = {}
    while len(rows) < count:
        a, b = rng.choice(NAMES, 2, replace=False)
        clean = str(rng.choice(TEXTS))
        other = clean.replace("{b} gave", "{a} gave")
        tokens, others = (list(tokenizer(text.format(a=a, b=b))["input_ids"]) for text in (clean, other))
        answer, foil = (tokenizer(f" {name}", add_special_tokens=False)["input_ids"] for name in (a, b))
        if len(answer) == len(foil) == 1 and len(tokens) == len(others):
            rows[clean.format(a=a, b=b)] = tokens, others, answer[0], foil[0]
    width = max(len(tokens) for tokens, *_ in rows.values())
    shape = count, width
    tokens, others = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    kinds, answers, foils = np.full(shape, UNSCORED), np.full(shape, NO_TOKEN), np.full(shape, NO_TOKEN)
    lengths = np.array([len(one) for one, *_ in rows.values()])
    for row, (clean_ids, other_ids, answer_id, foil_id) in enumerate(rows.values()):
        last = lengths[row] - 1
        tokens[row, : last + 1], others[row, : last + 1] = clean_ids, other_ids
        kinds[row, last], answers[row, last], foils[row, last] = 0, answer_id, foil_id
    return Split(
        "iid", "iid", "indirect objects", tokens, lengths, kinds, counterfactuals=others, answers=answers, foils=foils
    )


def trained(options: argparse.Namespace) -> list[str]:
    """The lines on a trained model; why there are none where it is not installed."""
    try:
        subject = compressed.smollm2(everything=False, device=options.device).subject
    except AssayError as error:
        return [f"The trained model is left out: {error}"]
    engine = Engine(subject)
    split = trained_pairs(subject, 32)
    problem = Problem(engine, split, Reference.fitted(engine, "counterfactual", None))
    problem.wiring  # noqa: B018
    found: list[np.ndarray] = []
    lines = [
        f"SmolLM2-135M ({problem.wiring.graph.size:,} edges), {len(split)} pairs of indirect objects, "
        f"{split.lengths.min()} to {split.lengths.max()} tokens, Assay alone, {torch.get_num_threads()} thread(s):",
        "",
        "| call | processor seconds | seconds | MB |",
        "|---|---|---|---|",
    ]
    for title, method in (("EAP", EdgeAttribution()), (f"EAP-IG, {STEPS} midpoints", IntegratedEdgeAttribution(STEPS))):
        spent: dict[str, float] = {}

        def job(method: Any = method, spent: dict[str, float] = spent) -> None:
            spent["processor"], scores = seconds_of(options.device, method.scores, problem)
            found.append(scores)

        began = time.perf_counter()
        peak = peak_of(options.device, job)
        lines.append(f"| {title} | {spent['processor']:.1f} | {time.perf_counter() - began:.1f} | {peak:,.0f} |")
    subject_m, ablated_m = (float(values.mean()) for values in problem.baseline)
    lines += [
        "",
        f"Mean logit difference {subject_m:.2f}, with all edges ablated {ablated_m:.2f}: their difference is "
        f"{ablated_m - subject_m:.2f}, and EAP-IG's scores of the edges out of the embeddings sum to "
        f"{float(np.nansum(found[1][0])):.2f}.",
    ]
    return lines


# -- the table -------------------------------------------------------------------------------------------------------


def row(record: dict[str, Any]) -> list[str]:
    """A line of the table for each tool: its least seconds, its memory, and how far it is from Assay's numbers."""
    key, job = record["case"], record["job"]
    case, lines = CASES[key], []
    seconds, peaks = {name: min(values) for name, values in record["seconds"].items()}, record["MB"]
    for name, spent in seconds.items():
        ratio, more, off = "", "", ""
        peak = f"{peaks[name]:,.0f}" if name in peaks else ""
        if name != "assay":
            goals = GOALS.get((key, job), {}).get(name, (None, None))
            ratio = _against(spent / seconds["assay"], goals[0])
            if name in peaks:
                more = _against(peaks[name] / peaks["assay"], goals[1])
            distance, correlation = record["apart"][name]
            off = f"{distance:.1e}" + ("" if job in ("judge", "sweep") else f", {correlation:.8f}")
        where = f"{case.title}, {case.pairs} × {case.positions} | {JOBS[job]}" if name == "assay" else " | "
        lines.append(f"| {where} | {TOOLS[name].name} | {spent:.3f} | {ratio} | {peak} | {more} | {off} |")
    return lines


def _against(ratio: float, goal: float | None) -> str:
    if goal is None:
        return f"{ratio:.1f}"
    return f"**{ratio:.1f}** (at least {goal})" if ratio >= goal else f"{ratio:.1f} (**below {goal}**)"


HEAD = [
    "| model, pairs × tokens | call | tool | seconds | times Assay's | MB | times Assay's | apart, rank correlation |",
    "|---|---|---|---|---|---|---|---|",
]


def profile(options: argparse.Namespace) -> None:
    """Print where Assay's time goes, job by job."""
    for key in options.cases:
        case = CASES[key]
        tool = WithAssay(model_of(case), pairs_of(case), options)
        ranks = tool.scores("eap") if case.edges else None
        for job in case.jobs:
            circuits = circuits_of(case, job, ranks)
            do(tool, job, circuits)
            spent = min(seconds_of(options.device, do, tool, job, circuits)[0] for _ in range(options.rounds))
            print(f"\n{key}, {job}: {spent:.3f} s")
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
                do(tool, job, circuits)
            print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=14, max_name_column_width=40))


def versions(options: argparse.Namespace) -> str:
    """What was used."""
    found = [f"Python {platform.python_version()}"]
    for name in ("torch", "transformers", "transformer-lens", "auto-circuit"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    if options.eap_ig is not None:
        command = ["git", "-C", str(options.eap_ig), "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        found.append(f"EAP-IG {commit or '(no git)'}")
    return ", ".join(found)


def records(file: Path) -> Iterator[dict[str, Any]]:
    """What earlier runs printed, a record a line; other lines are left out."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("{"):
            yield json.loads(line)


def main() -> None:
    """Print the table, and write it into a document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eap-ig", type=Path, help="a checkout of EAP-IG")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=(*CASES, "trained"), default=[*CASES, "trained"], help="(all)")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--others", nargs="*", choices=list(TOOLS)[1:], default=list(TOOLS)[1:])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--no-memory", action="store_true", help="measure times only")
    parser.add_argument("--kept", type=Path, help="output of earlier runs, whose numbers stand where none are made now")
    parser.add_argument("--profile", action="store_true", help="only show where Assay's own time goes")
    parser.add_argument("--markdown", type=Path, help="the document whose tables to replace")
    parser.add_argument("--alone", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1.")
    options.missing = {}
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if options.alone:
        serve(*options.alone, options)
    elif options.profile:
        options.cases = [key for key in options.cases if key in CASES]
        profile(options)
    else:
        table(options)


def table(options: argparse.Namespace) -> None:
    """Measure, print, write."""
    known = {} if options.kept is None else {(one["case"], one["job"]): one for one in records(options.kept)}
    for key in options.cases:
        for record in measure(key, options) if key in CASES else ():
            print(json.dumps(record), flush=True)
            known[key, record["job"]] = record
    lines = [f"{versions(options)}; {options.device}; the least of {options.rounds} rounds. {machine()}", "", *HEAD]
    for key, case in CASES.items():
        for job in case.jobs:
            lines += row(known[key, job]) if (key, job) in known else []
    lines += ["", *(f"{name} is left out: {why}." for name, why in options.missing.items())]
    parts = {"peers": lines}
    if "trained" in options.cases:
        parts["trained"] = trained(options)
    for part in parts.values():
        print("\n" + "\n".join(part))
    if options.markdown is not None:
        text = options.markdown.read_text(encoding="utf-8")
        for name, part in parts.items():
            begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
            head, rest = text.split(begin)
            text = "\n".join([head + begin, *part, end + rest.split(end)[1]])
        options.markdown.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

"""The same sweep by Assay, TransformerLens, nnsight and plain transformers: time, memory and agreement of the numbers.

The job: project queries and keys of every head of a layer on the first 1, 2, 4, 8, 16 or 32 directions of a basis, and
compare with the untouched model: same prediction, KL divergence of the logits, Jensen-Shannon divergence of the
attention of all heads. At the first, the middle and the last layer, and the sweep over all layers. Every tool gets the
same model, tokens and bases, shares one clean pass over a job, compares attention from the projected layer on, and
runs in a fresh process for each job, on one thread; the peers run the whole model for each rank and take all sequences
in one batch, as their users do.

Needs `pip install -e '.[peers]'`. Then `python benchmarks/peers.py small` (or `gpt2`, `llama`) prints a Markdown table;
`--rounds` alternates the tools that many times, and times are ratios of processor seconds within a round, what the
operating system takes for memory included (its share is shown); `--profile` shows where Assay's own time goes. One of
the tools is Assay itself by torch's kernels and the model's own code alone, which tells what is won by leaving out and
sharing work from what is won by kernels.
"""

import argparse
import contextlib
import ctypes
import dataclasses
import gc
import math
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_utils import AttentionInterface

from assay.engine import Edit, EditedSubject, Engine, batches, tensors
from assay.faithfulness import _by_numpy, metrics
from assay.faithfulness._clean_pass import ROWS
from assay.faithfulness._scores import Scores, score
from assay.subjects import Subject
from assay.tasks import UNSCORED, Kind, Split
from machine import machine

RANKS = (1, 2, 4, 8, 16, 32)
POSITIONS = 256
METRICS = ("same_prediction", "kl", "attention_jsd")

Results = dict[tuple[int, int], tuple[float, ...]]
"""By layer and rank: same prediction, KL, attention JSD."""


@dataclass
class Job:
    """A model, tokens and, for every layer and key head, an orthonormal basis (width, width)."""

    model: Any
    folder: Path
    tokens: Tensor
    bases: list[Tensor]
    ranks: Sequence[int] = RANKS

    @property
    def layers(self) -> int:
        return len(self.bases)

    def projected(self, states: Tensor, layer: int, rank: int) -> Tensor:
        """Queries or keys (batch, head, position, width) on the first directions of their (key) head's basis."""
        basis = self.bases[layer][:, :, :rank]
        basis = basis.repeat_interleave(states.shape[1] // len(basis), dim=0)
        return states @ basis @ basis.transpose(-1, -2)


ENDS = {"bos_token_id": 1, "eos_token_id": 1}
CONFIGURATIONS: dict[str, PreTrainedConfig] = {
    "small": GPT2Config(
        vocab_size=512, n_positions=POSITIONS, n_embd=128, n_layer=4, n_head=4, initializer_range=0.1, **ENDS
    ),
    "gpt2": GPT2Config(**ENDS),
    "llama": LlamaConfig(
        vocab_size=8_000,
        hidden_size=512,
        intermediate_size=1_376,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=POSITIONS,
        initializer_range=0.05,
        **ENDS,
    ),
}


def make(
    configuration: PreTrainedConfig,
    folder: Path,
    *,
    sequences: int,
    positions: int = POSITIONS,
    ranks: Sequence[int] = RANKS,
) -> Job:
    """A random model, kept in `folder` with the tokenizer that TransformerLens asks for, and random tokens."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(configuration).eval()
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({str(i): i for i in range(configuration.vocab_size)}, unk_token="0"))
    special = {"unk_token": "0", "eos_token": "1", "bos_token": "1", "pad_token": "1"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    heads = getattr(configuration, "num_key_value_heads", configuration.num_attention_heads)
    width = configuration.hidden_size // configuration.num_attention_heads
    generator = torch.Generator().manual_seed(1)
    bases = [
        torch.linalg.qr(torch.randn(heads, width, width, generator=generator)).Q
        for _ in range(configuration.num_hidden_layers)
    ]
    tokens = torch.randint(configuration.vocab_size, (sequences, positions), generator=generator)
    return Job(model, folder, tokens, bases, ranks)


# -- what the peers' users write ------------------------------------------------------------------------------------


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence of attention rows, the way it is usually written; (batch, query)."""
    tiny = 1e-12
    m = (p + q) / 2
    left = (p * ((p + tiny).log() - (m + tiny).log())).sum(-1)
    right = (q * ((q + tiny).log() - (m + tiny).log())).sum(-1)
    return ((left + right) / 2).mean(1)


def compared(clean: Tensor, logits: Tensor, divergences: Sequence[Tensor], layers: int) -> tuple[float, ...]:
    """The three numbers, over all predictions but the last position's, which has no next token."""
    clean, logits = clean[:, :-1], logits[:, :-1]
    p, q = clean.log_softmax(-1), logits.log_softmax(-1)
    same = (clean.argmax(-1) == logits.argmax(-1)).float().mean()
    kl = (p.exp() * (p - q)).sum(-1).mean()
    return float(same), float(kl), float(sum(rows[:, :-1].mean() for rows in divergences)) / layers


class WithTransformerLens:
    """TransformerBridge, keeping only the patterns."""

    name = "TransformerLens"

    def __init__(self, job: Job) -> None:
        from transformer_lens.model_bridge import TransformerBridge  # noqa: PLC0415

        self.job = job
        self.bridge = TransformerBridge.boot_transformers(str(job.folder), device="cpu")
        rotary = "rot_" if hasattr(job.model.config, "num_key_value_heads") else ""
        self.queries, self.keys = f"hook_{rotary}q", f"hook_{rotary}k"

    @torch.inference_mode()
    def __call__(self, layers: Sequence[int]) -> Results:
        job, found = self.job, {}
        patterns = [f"blocks.{layer}.attn.hook_pattern" for layer in range(job.layers)]
        clean, cache = self.bridge.run_with_cache(job.tokens, names_filter=patterns[min(layers) :])
        for layer in layers:
            for rank in job.ranks:
                divergences: list[Tensor] = []

                def project(states: Tensor, hook: Any, layer: int = layer, rank: int = rank) -> Tensor:
                    return job.projected(states.transpose(1, 2), layer, rank).transpose(1, 2)

                def compare(pattern: Tensor, hook: Any, into: list[Tensor] = divergences) -> None:
                    into.append(divergence(cache[hook.name], pattern))

                hooks = [(f"blocks.{layer}.attn.{name}", project) for name in (self.queries, self.keys)]
                logits = self.bridge.run_with_hooks(
                    job.tokens, fwd_hooks=hooks + [(name, compare) for name in patterns[layer:]]
                )
                found[layer, rank] = compared(clean, logits, divergences, job.layers)
        return found


class WithNnsight:
    """A trace a rank, with queries and keys changed where the attention function is called."""

    name = "nnsight"

    def __init__(self, job: Job) -> None:
        from nnsight import NNsight  # noqa: PLC0415

        self.job = job
        model = type(job.model).from_pretrained(job.folder).eval()
        model.set_attn_implementation("eager")
        self.model = NNsight(model)
        if job.model.config.model_type == "gpt2":
            self.attention = [block.attn for block in self.model.transformer.h]
        else:
            self.attention = [block.self_attn for block in self.model.model.layers]

    @torch.inference_mode()
    def __call__(self, layers: Sequence[int]) -> Results:
        job, found = self.job, {}
        clean_patterns: dict[int, Tensor] = {}
        with self.model.trace(job.tokens, use_cache=False):
            for layer in range(min(layers), job.layers):
                clean_patterns[layer] = self.attention[layer].output[1].save()
            clean = self.model.lm_head.output.save()
        for layer in layers:
            for rank in job.ranks:
                divergences: list[Tensor] = []
                with self.model.trace(job.tokens, use_cache=False):
                    call = self.attention[layer].source.attention_interface_1
                    given, named = call.inputs
                    query, key = (job.projected(states, layer, rank) for states in given[1:3])
                    call.inputs = ((given[0], query, key, *given[3:]), named)
                    for above in range(layer, job.layers):
                        divergences.append(divergence(clean_patterns[above], self.attention[above].output[1]).save())
                    logits = self.model.lm_head.output.save()
                found[layer, rank] = compared(clean, logits, divergences, job.layers)
        return found


class WithTransformers:
    """An attention function of one's own, registered with transformers, and nothing else."""

    name = "plain transformers"

    def __init__(self, job: Job) -> None:
        self.job = job
        self.model = type(job.model).from_pretrained(job.folder).eval()
        self.change: tuple[int, int] | None = None
        self.see: Callable[[int, Tensor], None] = lambda layer, pattern: None
        AttentionInterface.register("benchmark", self.attend)
        AttentionMaskInterface.register("benchmark", eager_mask)
        self.model.set_attn_implementation("benchmark")

    def attend(self, module: Any, query: Tensor, key: Tensor, *others: Any, **options: Any) -> tuple[Tensor, Tensor]:
        layer = module.layer_idx
        if self.change is not None and self.change[0] == layer:
            query, key = (self.job.projected(states, *self.change) for states in (query, key))
        own = sys.modules[type(module).__module__].eager_attention_forward
        output, pattern = own(module, query, key, *others, **options)
        self.see(layer, pattern)
        return output, pattern

    @torch.inference_mode()
    def __call__(self, layers: Sequence[int]) -> Results:
        job, found = self.job, {}
        kept: dict[int, Tensor] = {}
        self.change, self.see = None, kept.__setitem__
        clean = self.model(job.tokens, use_cache=False).logits
        for layer in layers:
            for rank in job.ranks:
                divergences: list[Tensor] = []

                def compare(above: int, pattern: Tensor, layer: int = layer, into: list[Tensor] = divergences) -> None:
                    if above >= layer:
                        into.append(divergence(kept[above], pattern))

                self.change, self.see = (layer, rank), compare
                logits = self.model(job.tokens, use_cache=False).logits
                found[layer, rank] = compared(clean, logits, divergences, job.layers)
        return found


# -- Assay ----------------------------------------------------------------------------------------------------------


class _NextTokens:
    """The task of predicting every next token of some sequences."""

    name, primary_kind, features, split_names = "next tokens", "token", (), ("iid",)
    kinds = (Kind("token", "any token"),)

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens.numpy()

    def split(self, name: str, sequences: int) -> Split:
        tokens = self.tokens[:sequences]
        kinds = np.zeros_like(tokens)
        kinds[:, -1] = UNSCORED
        return Split(name, "iid", "random tokens", tokens, np.full(*tokens.shape), kinds)

    def describe(self) -> dict[str, object]:
        return {}


class WithAssay:
    """`score`, which `assay.compare` runs."""

    name = "Assay"

    def __init__(self, job: Job) -> None:
        self.job = job
        self.engine = Engine(Subject(type(job.model).from_pretrained(job.folder).eval(), None, "benchmark"))

    @property
    def task(self) -> _NextTokens:
        return _NextTokens(self.job.tokens)

    def edits(self, layer: int, rank: int) -> Iterator[Edit]:
        heads = self.engine.site(f"layer{layer}").places
        for head in heads:
            basis = self.job.bases[layer][head.head * len(self.job.bases[layer]) // len(heads), :, :rank]  # type: ignore[union-attr]

            def project(vectors: Tensor, basis: Tensor = basis) -> Tensor:
                return (vectors @ basis) @ basis.T

            yield Edit(head, queries=project, keys=project)

    def proxies(self, layers: Sequence[int]) -> dict[str, EditedSubject]:
        return {
            f"{layer} {rank}": EditedSubject(self.engine.subject, tuple(self.edits(layer, rank)))
            for layer in layers
            for rank in self.job.ranks
        }

    def passes(self, layers: Sequence[int]) -> None:
        """The forward passes of the job alone: nothing is compared."""
        with self.engine.ready():
            for _, batch in batches(self.engine, self.task.split("iid", len(self.job.tokens))):
                tokens, valid = tensors(batch, self.engine.subject.device)
                clean = self.engine.run(tokens, valid, rows=ROWS, resumable=True)
                for proxy in self.proxies(layers).values():
                    self.engine.run(tokens, valid, edits=proxy.edits, rows=ROWS, resume=clean)

    def __call__(self, layers: Sequence[int]) -> Results:
        chosen = [metrics.get(name)() for name in METRICS]
        split = self.task.split("iid", len(self.job.tokens))
        found: Results = {}
        for name, scores in score(self.engine, self.proxies(layers), self.task, split, chosen).items():
            assert isinstance(scores, Scores)
            means = scores.sums.sum(0) / scores.counts.sum(0)
            place = {(column.metric, column.kind, column.feature): i for i, column in enumerate(scores.columns)}
            layer, rank = map(int, name.split())
            found[layer, rank] = tuple(float(means[place[metric, "all", ""]]) for metric in METRICS)
        return found


class WithTorchsKernels(WithAssay):
    """The same by torch's kernels and the model's own code alone: what is won by leaving out and sharing work."""

    name = "Assay, torch's kernels"

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.engine._kernels = {}

    def __call__(self, layers: Sequence[int]) -> Results:
        threads, _by_numpy.THREADS = _by_numpy.THREADS, 0
        try:
            return super().__call__(layers)
        finally:
            _by_numpy.THREADS = threads


# -- measuring ------------------------------------------------------------------------------------------------------


def status(field: str) -> float:
    """A field of this process's memory status, in MB (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1_024
    return math.nan


class Measured(NamedTuple):
    """A job: processor seconds, how many of them the operating system took, peak memory in MB, and the numbers.

    The memory is what comes to what the process had before.
    """

    seconds: float
    system: float
    peak: float
    found: Results


def measured(tool: Callable[[Sequence[int]], Results], layers: Sequence[int]) -> Measured:
    """A job done by a tool."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")
    before, start = status("VmRSS"), resource.getrusage(resource.RUSAGE_SELF)
    found = tool(layers)
    end = resource.getrusage(resource.RUSAGE_SELF)
    system = end.ru_stime - start.ru_stime
    return Measured(end.ru_utime - start.ru_utime + system, system, status("VmHWM") - before, found)


def serve(connection: Connection, name: str, options: argparse.Namespace) -> None:
    """In a process of its own, a tool does the jobs that come in until there are no more."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        job = make(CONFIGURATIONS[options.model], Path(folder), sequences=options.sequences)
        try:
            tool = TOOLS[name](dataclasses.replace(job, tokens=job.tokens[:1], ranks=job.ranks[:1]))
            tool([job.layers - 1])
        except Exception as error:  # whatever a peer's version does not get on with; the others go on
            connection.send(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
            return
        tool.job = job
        connection.send(None)
        for layers in iter(connection.recv, None):
            connection.send(measured(tool, layers))


@contextlib.contextmanager
def processes(options: argparse.Namespace) -> Iterator[dict[str, Connection]]:
    """The tools, each in a fresh process as its users have it, ready for jobs."""
    spawn = multiprocessing.get_context("spawn")
    found = {}
    for name in ("assay", *options.others):
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=serve, args=(theirs, name, options), daemon=True)
        process.start()
        theirs.close()
        try:
            error = ours.recv()
        except EOFError:
            error = "its process ended"
        if error is None:
            found[name] = ours
        elif name == "assay":
            sys.exit(f"Assay itself does not start: {error}")
        else:
            print(f"{TOOLS[name].name} is left out: {error}", flush=True)
    try:
        yield found
    finally:
        for connection in found.values():
            with contextlib.suppress(BrokenPipeError):
                connection.send(None)


def difference(one: Results, other: Results) -> float:
    """The largest difference of any number."""
    return max(abs(a - b) for key in one for a, b in zip(one[key], other[key], strict=True))


PRODUCTS = ("aten::addmm", "aten::bmm", "aten::mm", "mkldnn::_linear_pointwise")


def profile(tool: WithAssay, layers: Sequence[int]) -> None:
    """Print where Assay's time goes; matrix products are the arithmetic that cannot be avoided."""
    tool(layers)
    whole, passes = [], []
    for _ in range(3):
        for seconds, work in ((whole, tool), (passes, tool.passes)):
            start = time.process_time()
            work(layers)
            seconds.append(time.process_time() - start)
    print(f"\nthe whole job {min(whole):.2f} s; its forward passes alone {min(passes):.2f} s (least of 3)")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        tool(layers)
    rows = sorted(found.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total = sum(row.self_cpu_time_total for row in rows)
    products = sum(row.self_cpu_time_total for row in rows if row.key in PRODUCTS)
    print(f"matrix products: {products / total:.0%} of the whole")
    for row in rows[:12]:
        print(f"  {row.key:28} {row.self_cpu_time_total / total:6.1%}")


JOBS: dict[str, Callable[[int], slice]] = {
    "first": lambda layers: slice(0, 1),
    "middle": lambda layers: slice(layers // 2, layers // 2 + 1),
    "last": lambda layers: slice(layers - 1, layers),
    "all": lambda layers: slice(0, layers),
}
"""Which layers each job is about."""

TOOLS: dict[str, Any] = {
    "assay": WithAssay,
    "torch": WithTorchsKernels,
    "transformer-lens": WithTransformerLens,
    "nnsight": WithNnsight,
    "transformers": WithTransformers,
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=CONFIGURATIONS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS), help="the jobs to do (all)")
    parser.add_argument(
        "--others", nargs="+", choices=list(TOOLS)[1:], default=list(TOOLS)[1:], help="what to compare with (all)"
    )
    parser.add_argument("--profile", action="store_true", help="only show where Assay's time goes, over all layers")
    options = parser.parse_args()
    if min(options.rounds, options.sequences) < 1:
        parser.error("--rounds and --sequences must be at least 1.")
    if options.profile:
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            job = make(CONFIGURATIONS[options.model], Path(folder), sequences=options.sequences)
            profile(WithAssay(job), list(range(job.layers)))
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    """Print the table of one configuration."""
    layers = CONFIGURATIONS[options.model].num_hidden_layers
    print(f"\n{options.model}: {options.sequences} x {POSITIONS} tokens, ranks {RANKS}, rounds {options.rounds}")
    print(f"{machine()}\n")
    print("| layers | tool | processor seconds | of it system | times Assay's | peak MB | times Assay's | apart |")
    print("|---|---|---|---|---|---|---|---|")
    for title in options.jobs:
        rounds: list[dict[str, Measured]] = []
        with processes(options) as tools:
            for _ in range(options.rounds):
                rounds.append({})
                for name, connection in tools.items():
                    connection.send(list(range(layers))[JOBS[title](layers)])
                    rounds[-1][name] = connection.recv()
        for name in rounds[0]:
            pairs = [(one[name], one["assay"]) for one in rounds]
            seconds, system, ratio, peak, more = (
                statistics.median(column)
                for column in zip(
                    *(
                        (own.seconds, own.system, own.seconds / ours.seconds, own.peak, own.peak / ours.peak)
                        for own, ours in pairs
                    ),
                    strict=True,
                )
            )
            apart = max(difference(own.found, ours.found) for own, ours in pairs)
            print(
                f"| {title} | {TOOLS[name].name} | {seconds:.2f} | {system:.2f} | {ratio:.2f} | {peak:.0f} "
                f"| {more:.1f} | {apart:.1e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()

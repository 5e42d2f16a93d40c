"""The same dictionaries trained by Assay and by SAELens: time, memory, and what the dictionaries explain.

Rows are activations of a shipped model at `layer2.residual`: of `code-java` on Java functions where `--data` names
them, else of `code-python` on functions of Python's own library. Both tools get the same rows in the same order and
batches, scaled alike, the same learning rates with the same warm-up and decay, and Adam; SAELens all else as it comes,
and for TopK also with its sparse products (in 6.54.12 they train only without `rescale_acts_by_decoder_norm`). Each
tool has a process of its own, SAELens in the environment it asks for; blocks of steps alternate between them, on one
thread, and ratios are those of neighbouring blocks' processor seconds. No time is printed unless Assay's dictionaries
explain as much as those of SAELens, less .005, where both keep k features, at each tool's best learning rate.

    python benchmarks/dictionaries.py --peer PYTHON --markdown docs/results/dictionaries-speed.md

PYTHON is an interpreter with sae-lens; it is left out where it is not given. With `--device cuda` the same table is in
seconds by the clock and in memory of the device. `--profile CASE` shows where Assay's own time goes.
"""

import argparse
import contextlib
import ctypes
import gc
import importlib.metadata
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from torch import Tensor

from machine import machine

# SAELens pins an older transformers than Assay works with: where SAELens is served, nothing of Assay is imported.

RATES = (1e-3, 2e-3, 4e-3, 8e-3)
BLOCK = 25
WARM_UP, DECAY = 0.05, 0.2
CLOSE = 0.005


@dataclass(frozen=True)
class Case:
    """A dictionary: its kind, features, how sparse it is, and how it is trained."""

    title: str
    kind: str
    features: int
    steps: int
    batch: int = 1_024
    k: int | None = None
    penalty: float | None = None
    rates: tuple[float, ...] = (4e-3,)
    goal: float | None = None
    sparse_goal: float | None = None
    memory_goal: float | None = None
    judged: bool = False


CASES = {
    "topk": Case(
        "TopK, 1,024 features, k 16", "topk", 1_024, 400, k=16, rates=RATES, goal=3.5, memory_goal=0.4, judged=True
    ),
    "topk-wide": Case("TopK, 4,096 features, k 16", "topk", 4_096, 100, k=16, goal=4.5, memory_goal=0.4),
    "batchtopk": Case(
        "BatchTopK, 1,024 features, k 16",
        "batchtopk",
        1_024,
        400,
        k=16,
        rates=RATES,
        goal=5,
        memory_goal=0.4,
        judged=True,
    ),
    "matryoshka": Case("Matryoshka, 128 to 1,024 features, k 16", "matryoshka", 1_024, 200, k=16),
    "l1": Case("L1, 1,024 features", "relu", 1_024, 400, penalty=1.5, rates=(2e-3,), goal=1.2, sparse_goal=2.5),
    "jumprelu": Case("JumpReLU, 1,024 features", "jumprelu", 1_024, 200, penalty=0.4),
    "gated": Case("gated, 1,024 features", "gated", 1_024, 200, penalty=1.5),
}
"""Goals: by how much Assay is to be faster than SAELens as it comes, at least, for L1 while more and while less than 8
% are on; and what share of SAELens' memory it is to need, at most."""


# -- rows ------------------------------------------------------------------------------------------------------------


def write_rows(folder: Path, options: argparse.Namespace) -> str:
    """Training and held-out rows in files; what they are."""
    import assay  # noqa: PLC0415
    from assay.engine import Engine, collect  # noqa: PLC0415
    from assay.studies.code import task_of  # noqa: PLC0415

    name, data = ("code-python", "python") if options.data is None else ("code-java", options.data)
    subject = assay.load(name)
    task, engine = task_of(subject, data), Engine(subject)
    scale, lines = 1.0, []
    for part, split, functions in (("train", "train", options.functions), ("held-out", "iid", options.functions // 10)):
        places = collect(engine, task.split(split, functions), ("residual",)).residual
        rows = next(vectors for place, vectors in places.items() if place.layer == 2).numpy()
        if part == "train":
            scale = math.sqrt(rows.shape[1]) / float(np.linalg.norm(rows, axis=1).mean())
        np.save(folder / f"{part}.npy", rows * np.float32(scale))
        lines.append(f"{len(rows):,} {part}")
    return f"{name}, layer2.residual, {rows.shape[1]} wide: {' and '.join(lines)} rows"


def batches(rows: Tensor, size: int) -> Iterator[Tensor]:
    """Batches of rows, every row once before any comes twice; the same in every process."""
    rng = np.random.default_rng(0)
    while True:
        order = torch.from_numpy(rng.permutation(len(rows))).to(rows.device)
        for start in range(0, len(rows) - size + 1, size):
            yield rows[order[start : start + size]]


# -- the tools -------------------------------------------------------------------------------------------------------


class WithAssay:
    """The steps that `train` takes."""

    name = "Assay"

    def __init__(self, case: Case, rows: Tensor, rate: float, steps: int) -> None:
        from assay.dictionaries._training import Run, Training  # noqa: PLC0415

        settings = Training(
            case.kind, case.features, k=case.k, penalty=case.penalty, steps=steps, lr=rate, rescale=False
        )
        self.case, self.sample = (
            case,
            rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))[:16_384]],
        )
        with torch.no_grad():
            self.run = Run(settings, (self.sample,))

    def step(self, batch: Tensor) -> None:
        with torch.inference_mode(False), torch.no_grad():
            self.run.step(batch)

    @property
    def share(self) -> float:
        """The share of features that are on."""
        return self.run._share

    def weights(self) -> dict[str, Tensor]:
        """What its dictionary is, as `judged` takes it."""
        with torch.no_grad():
            found = self.run.dictionary((self.sample,))
        return {name: getattr(found, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}


class WithSAELens:
    """SAELens' trainer, a step at a time."""

    name = "SAELens"
    settings: dict[str, bool] = {}  # noqa: RUF012
    share = 0.0

    def __init__(self, case: Case, rows: Tensor, rate: float, steps: int) -> None:
        from sae_lens import saes  # noqa: PLC0415
        from sae_lens.config import SAETrainerConfig  # noqa: PLC0415
        from sae_lens.training.sae_trainer import SAETrainer  # noqa: PLC0415

        prefix, own = {
            "topk": ("TopK", {"k": case.k, **self.settings}),
            "batchtopk": ("BatchTopK", {"k": case.k}),
            "matryoshka": ("MatryoshkaBatchTopK", {"k": case.k, "matryoshka_widths": [128, 256, 512, 1_024]}),
            "relu": ("Standard", {"l1_coefficient": case.penalty, "l1_warm_up_steps": int(0.3 * steps)}),
            "jumprelu": ("JumpReLU", {"l0_coefficient": case.penalty, "l0_warm_up_steps": int(0.3 * steps)}),
            "gated": ("Gated", {"l1_coefficient": case.penalty, "l1_warm_up_steps": int(0.3 * steps)}),
        }[case.kind]
        torch.manual_seed(0)
        device = str(rows.device)
        configuration = getattr(saes, f"{prefix}TrainingSAEConfig")(
            d_in=rows.shape[1], d_sae=case.features, apply_b_dec_to_input=True, normalize_activations="none",
            device=device, **own,
        )  # fmt: skip
        self.sae = getattr(saes, f"{prefix}TrainingSAE")(configuration)
        self.trainer = SAETrainer(
            SAETrainerConfig(
                total_training_samples=steps * case.batch, train_batch_size_samples=case.batch, lr=rate, lr_end=0.0,
                lr_warm_up_steps=int(WARM_UP * steps), lr_decay_steps=int(DECAY * steps), device=device,
            ),
            self.sae,
            iter(()),
        )  # fmt: skip

    def step(self, batch: Tensor) -> None:
        self.trainer.step(batch)
        self.trainer.n_training_steps += 1

    def weights(self) -> dict[str, Tensor]:
        state = {name: tensor.detach().clone() for name, tensor in self.sae.state_dict().items()}
        self.sae.process_state_dict_for_saving_inference(state)
        return {name: state[name].detach().float().cpu() for name in ("W_enc", "b_enc", "W_dec", "b_dec")}


class WithSparseSAELens(WithSAELens):
    """The same with codes as sparse tensors, which it has for TopK."""

    name = "SAELens, sparse"
    settings = {"use_sparse_activations": True, "rescale_acts_by_decoder_norm": False}  # noqa: RUF012


TOOLS: dict[str, Any] = {"assay": WithAssay, "saelens": WithSAELens, "saelens-sparse": WithSparseSAELens}


# -- one tool in a process of its own --------------------------------------------------------------------------------


def seconds_of(device: str) -> float:
    """Processor seconds so far, or for another device seconds by the clock."""
    if device != "cpu":
        torch.cuda.synchronize()
        return time.perf_counter()
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def serve(name: str, folder: Path, device: str) -> None:
    """Answer requests, a line of JSON each, until there are no more."""
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print, too
    torch.set_num_threads(1)
    rows = torch.from_numpy(np.load(folder / "train.npy")).to(device)
    tool, stream = None, iter(())
    for line in sys.stdin:
        asked = json.loads(line)
        found: Any = None
        case = CASES[asked["case"]]
        if asked["do"] == "versions":
            TOOLS[name](CASES["topk"], rows, 1e-3, 10)  # what is missing is missed here
            found = {one: importlib.metadata.version(one) for one in ("torch", "transformers", *asked["packages"])}
        elif asked["do"] == "start":
            tool = TOOLS[name](case, rows, asked["rate"], case.steps)
            stream = batches(rows, case.batch)
        elif asked["do"] == "block":
            gc.collect()
            given, share = [next(stream) for _ in range(BLOCK)], tool.share
            began = seconds_of(device)
            for batch in given:
                tool.step(batch)
            found = {"seconds": (seconds_of(device) - began) / BLOCK, "share": max(share, tool.share)}
        elif asked["do"] == "weights":
            np.savez(folder / f"{name}.npz", **{key: value.numpy() for key, value in tool.weights().items()})
        elif asked["do"] == "memory":
            found = memory_alone(TOOLS[name], case, rows, device)
        elif asked["do"] == "floor":
            found = floor(case, rows, asked["rounds"], device)
        print(json.dumps(found), file=answers, flush=True)


def memory_alone(make: Any, case: Case, rows: Tensor, device: str) -> float:
    """The same in a process forked off, on a CPU, so that nothing freed by earlier work is taken again."""
    if device != "cpu":
        return memory(make, case, rows, device)
    reading, writing = os.pipe()
    if not (child := os.fork()):
        os.write(writing, str(memory(make, case, rows, device)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    found = os.read(reading, 64)
    os.close(reading)
    os.close(writing)
    return float(found)


def memory(make: Any, case: Case, rows: Tensor, device: str) -> float:
    """MB that come to what was there before, from nothing to some steps (on a CPU: under Linux)."""
    stream = batches(rows, 2 * case.batch)
    # One step beforehand, so that what libraries set up at first is not counted.
    make(replace(case, kind="topk", features=128, k=8, penalty=None), rows, 1e-3, 10).step(next(stream)[:64])
    gc.collect()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        before = status("VmRSS")
    tool = make(case, rows, 1e-3, 100)
    for _ in range(8):
        tool.step(next(stream))
    return (torch.cuda.max_memory_allocated() - before) / 2**20 if device != "cpu" else status("VmHWM") - before


def status(field: str) -> float:
    """A field of this process's memory status, in MB (Linux)."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1_024
    return math.nan


def floor(case: Case, rows: Tensor, rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of a step, of its encoder product and selection alone, and of these as torch does them by itself."""
    from assay.dictionaries._selection import largest_of_rows  # noqa: PLC0415

    tool, stream = WithAssay(case, rows, 4e-3, 1_000), batches(rows, case.batch)
    for _ in range(BLOCK):
        tool.step(next(stream))
    found: dict[str, list[float]] = {"step": [], "own": [], "torch": []}
    run = tool.run
    for _ in range(rounds):
        given = [next(stream) for _ in range(BLOCK)]
        with torch.inference_mode(False), torch.no_grad():
            encoder, bias = run.own["encoder"], run.own["b_enc"]
            for name, spent in found.items():
                began = seconds_of(device)
                for batch in given:
                    if name == "step":
                        run.step(batch)
                    elif name == "own":
                        for _, pre in run._pre_activations(batch):
                            largest_of_rows(pre, case.k)
                    else:
                        torch.addmm(bias, batch, encoder.t()).topk(case.k, dim=1, sorted=False)
                spent.append((seconds_of(device) - began) / BLOCK)
    return found


# -- measuring -------------------------------------------------------------------------------------------------------


class Tool:
    """A tool's process."""

    def __init__(self, name: str, python: str, folder: Path, device: str) -> None:
        command = [python, __file__, "--serve", name, "--folder", str(folder), "--device", device]
        settings = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=settings
        )

    def __call__(self, do: str, case: str, **given: Any) -> Any:
        """What it answers."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps({"do": do, "case": case, **given}), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            assert self.process.stderr is not None
            raise RuntimeError((self.process.stderr.read().strip().splitlines() or ["it ended"])[-1])
        return json.loads(line)

    def close(self) -> None:
        """End it."""
        self.process.communicate()


def judged(folder: Path, name: str, case: Case) -> tuple[float, float]:
    """What a tool's dictionary explains of held-out rows, and how many codes are on, thresholds calibrated alike."""
    from assay.dictionaries import Dictionary  # noqa: PLC0415
    from assay.dictionaries._training import _threshold  # noqa: PLC0415

    weights = {key: torch.from_numpy(value) for key, value in np.load(folder / f"{name}.npz").items()}
    if case.kind == "topk":
        found = Dictionary("topk", **weights, k=case.k, pre_bias=True)
    else:
        found = Dictionary("relu", **weights, pre_bias=True)
        rows = torch.from_numpy(np.load(folder / "train.npy"))
        sample = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(2))[:16_384]]
        bar = _threshold(found, float(case.k), sample)
        found = Dictionary("jumprelu", **weights, threshold=torch.full_like(found.b_enc, bar), pre_bias=True)
    rows = torch.from_numpy(np.load(folder / "held-out.npy"))
    left = on = 0.0
    for part in rows.split(4_096):
        left += float((part - found.reconstruct(part)).double().square().sum())
        on += float(found.encode(part).counts.sum())
    return 1 - left / float((rows - rows.double().mean(dim=0)).square().sum()), on / len(rows)


def measure(key: str, folder: Path, tools: dict[str, Tool], options: argparse.Namespace) -> dict[str, Any]:
    """A case, as a record: seconds a step by block and share of features on, MB, and what is explained by rate."""
    case = CASES[key]
    tools = {name: tool for name, tool in tools.items() if name != "saelens-sparse" or case.kind == "topk"}
    blocks: list[dict[str, Any]] = []
    quality: dict[str, dict[float, tuple[float, float]]] = {name: {} for name in tools}
    for rate in case.rates:
        for tool in tools.values():
            tool("start", key, rate=rate)
        for number in range(case.steps // BLOCK):
            found = {name: tools[name]("block", key) for name in (list(tools) if number % 2 else list(tools)[::-1])}
            # In the first block of a process memory is taken that later ones have.
            if number:
                blocks.append(found)
        if case.judged:
            for name, tool in tools.items():
                tool("weights", key)
                quality[name][rate] = judged(folder, name, case)
    best = {name: max(found.values())[0] for name, found in quality.items() if found}
    worse = best and best["assay"] < max(best.values()) - CLOSE
    floors = tools["assay"]("floor", key, rounds=options.rounds) if case.kind == "topk" else None
    return {"case": key, "blocks": blocks, "quality": quality, "floors": floors, "worse": worse}


# -- the table -------------------------------------------------------------------------------------------------------

HEAD = [
    "| dictionary, batch | tool | ms a step | times Assay's | MB | Assay's share | explained, by learning rate |",
    "|---|---|---|---|---|---|---|",
]


def lines_of(record: dict[str, Any]) -> Iterator[str]:
    """Lines of the table, for L1 apart by whether many or few features are on."""
    case, peaks = CASES[record["case"]], record["MB"]
    parts = [(case.title, case.goal, record["blocks"])]
    if case.kind in ("relu", "jumprelu", "gated"):
        shares = [block["assay"]["share"] for block in record["blocks"]]
        many = [block for block, share in zip(record["blocks"], shares, strict=True) if share > 0.08]
        few = [block for block, share in zip(record["blocks"], shares, strict=True) if share <= 0.08]
        parts = [
            (f"{case.title}, {'more' if few is not part else 'less'} than 8 % on", goal, part)
            for part, goal in ((many, case.goal), (few, case.sparse_goal))
            if part
        ]
    for title, goal, blocks in parts:
        for name in (key for key in TOOLS if key in blocks[0]):
            ratio = more = ""
            spent = [1e3 * block[name]["seconds"] for block in blocks]
            if name != "assay":
                ratios = [block[name]["seconds"] / block["assay"]["seconds"] for block in blocks]
                goals = (goal, case.memory_goal) if name == "saelens" else (None, None)
                ratio = f"{met(statistics.median(ratios), goals[0], least=True)} [{min(ratios):.1f}, {max(ratios):.1f}]"
                more = met(peaks["assay"] / peaks[name], goals[1], least=False)
            explained = ", ".join(f"{value:.4f} ({rate:g})" for rate, (value, _) in record["quality"][name].items())
            where = f"{title}, {case.batch:,}" if name == "assay" else ""
            cells = [where, TOOLS[name].name, f"{statistics.median(spent):.1f}", ratio, f"{peaks[name]:.0f}", more]
            yield f"| {' | '.join([*cells, explained])} |"


def met(value: float, goal: float | None, *, least: bool) -> str:
    """A number, and whether it is what was aimed at."""
    written = f"{value:.1f}" if least else f"{value:.2f}"
    if goal is None:
        return written
    word = "at least" if least else "at most"
    reached = value >= goal if least else value <= goal
    return f"**{written}** ({word} {goal:g})" if reached else f"{written} (**not {word} {goal:g}**)"


def floors_of(records: Sequence[dict[str, Any]]) -> Iterator[str]:
    """How a step compares with the encoder's product and the selection alone."""
    yield "| dictionary | ms a step | product and selection alone, ms | ratio | the same as torch does it, ms | ratio |"
    yield "|---|---|---|---|---|---|"
    for record in records:
        if record["floors"] is not None:
            step, own, plain = (record["floors"][name] for name in ("step", "own", "torch"))
            ratios = [statistics.median(a / b for a, b in zip(step, other, strict=True)) for other in (own, plain)]
            own_ms, plain_ms, step_ms = (1e3 * statistics.median(part) for part in (own, plain, step))
            yield (
                f"| {CASES[record['case']].title} | {step_ms:.1f} | {own_ms:.1f} | {ratios[0]:.2f} | {plain_ms:.1f} "
                f"| {met(ratios[1], 1.25, least=False)} |"
            )


def put(markdown: Path | None, mark: str, lines: Sequence[str]) -> None:
    """Print lines, and write them between their marks in a document."""
    print("\n".join(lines), flush=True)
    if markdown is None:
        return
    text = markdown.read_text(encoding="utf-8")
    head, rest = text.split(f"<!-- {mark}: begin -->")
    tail = rest.split(f"<!-- {mark}: end -->")[1]
    body = "\n".join([f"<!-- {mark}: begin -->", *lines, f"<!-- {mark}: end -->"])
    markdown.write_text(f"{head}{body}{tail}", encoding="utf-8")


def profile(key: str, folder: Path, options: argparse.Namespace) -> None:
    """Print where Assay's time goes."""
    torch.set_num_threads(1)
    case = CASES[key]
    rows = torch.from_numpy(np.load(folder / "train.npy")).to(options.device)
    tool, stream = WithAssay(case, rows, case.rates[0], case.steps), batches(rows, case.batch)
    for _ in range(case.steps // 2):
        tool.step(next(stream))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        for _ in range(BLOCK):
            tool.step(next(stream))
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=16, max_name_column_width=40))


def main() -> None:
    """Print the tables, and write them into a document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="an interpreter that has sae-lens")
    parser.add_argument("--data", help="a folder of Java functions (see `assay run code`)")
    parser.add_argument("--functions", type=int, default=1_600, help="functions whose rows are trained on (1,600)")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="what is trained (all)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of the comparison with product and selection")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--profile", choices=CASES)
    parser.add_argument("--serve", choices=TOOLS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.folder, options.device)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = write_rows(folder, options)
        if options.profile:
            profile(options.profile, folder, options)
            return
        tools, versions = {}, [f"Python {platform.python_version()}"]
        asked_for = [("assay", sys.executable, []), *((name, options.peer, ["sae-lens"]) for name in list(TOOLS)[1:])]
        for key, python, packages in asked_for:
            if python is None:
                versions.append(f"{TOOLS[key].name} left out: no interpreter given (--peer)")
                continue
            tool = Tool(key, python, folder, options.device)
            try:
                found = tool("versions", "topk", packages=packages)
            except RuntimeError as error:
                versions.append(f"{TOOLS[key].name} left out: {error}")
                continue
            tools[key] = tool
            versions.append(f"{TOOLS[key].name}: {', '.join(f'{one} {which}' for one, which in found.items())}")
        peaks = {case: {key: tool("memory", case) for key, tool in tools.items()} for case in options.cases}
        records = [{**measure(case, folder, tools, options), "MB": peaks[case]} for case in options.cases]
        for tool in tools.values():
            tool.close()
        title = f"{'; '.join(versions)}; {options.device}, 1 thread. {rows}. {machine()}"
        refused = [record for record in records if record["worse"]]
        records = [record for record in records if not record["worse"]]
        put(options.markdown, "peers", [title, "", *HEAD, *(line for record in records for line in lines_of(record))])
        put(options.markdown, "floor", list(floors_of(records)))
        if refused:
            sys.exit(
                f"Assay explains less than the best, and no times are printed: {[one['quality'] for one in refused]}"
            )


if __name__ == "__main__":
    main()

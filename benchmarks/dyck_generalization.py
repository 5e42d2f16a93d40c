"""Which small bracket matchers go on working deeper than they were trained: the search, as one table.

Run `python benchmarks/dyck_generalization.py` for the small language Dyck-(8, 5), or with `--language full` for the one
of the shipped model, Dyck-(20, 10). Each candidate differs from the shipped model's architecture or recipe by what its
line says; all are trained on sentences no deeper than the language allows, and measured on sentences up to twice as
deep. A finished training is kept in the folder and only read again; a stopped one goes on, and until then is in the
table with what it had reached. `--markdown docs/results/dyck-search.md` writes the table of all trainings in the folder
into that file.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, StableLmConfig, StableLmForCausalLM

from assay.subjects import DYCK_RECIPE, Batch, BucketedBatches, Progress, dyck_model, load, train, write_atomically
from assay.tasks import Dyck, Split

CLOSING_FAR = 1
"""The kind that is measured, by its number in `Dyck.kinds`: closing brackets at least ten positions from the opener."""

HEADS = ("iid", "unseen depth", "of these no deeper than trained", "deeper, first half", "deeper, second half")


@dataclass(frozen=True)
class Language:
    """A task with the training that fits it: steps, tokens a batch, sequences measured a split."""

    task: Dyck
    steps: int
    tokens_per_batch: int
    sequences: int


LANGUAGES = {
    "small": Language(
        Dyck(brackets=8, max_depth=5, deeper=10, training_sentences=60_000, max_brackets=94), 4_000, 1_000, 400
    ),
    "full": Language(Dyck(), 12_000, 4_000, 300),
}


@dataclass(frozen=True)
class Candidate:
    """How a model differs from the shipped one: GPT-2 with learned positions, 2 layers of 1 head, width 32.

    `positions`: "learned"; "none" and "linear" are GPT-2 with fixed position embeddings (zero, or one number that
    grows with the position); "rotary" is StableLM, without biases of queries, keys and values, a quarter of each head
    rotated. The rest is for "rotary" only: with `parallel`, attention and MLP of a layer read the same input, so that
    layer 1 sees the depth that layer 0 counted as no MLP has changed it; with `counter`, the queries of layer 0 are
    fixed at zero, so that it attends to all tokens alike and its output is the depth over the position.
    `flat` draws training sentences so that far closing brackets of all depths come about equally often. `curriculum` is
    the share of the steps spent on the shorter half of the allowed lengths.
    """

    positions: str = "learned"
    parallel: bool = False
    counter: bool = False
    layers: int = 2
    width: int = 32
    weight_decay: float = 0.01
    flat: bool = False
    curriculum: float = 0.0
    steps_factor: int = 1


CANDIDATES = {
    "as shipped": Candidate(),
    "as shipped, three times the steps": Candidate(steps_factor=3),
    "as shipped, flat depths": Candidate(flat=True),
    "as shipped, weight decay 0.3": Candidate(weight_decay=0.3),
    "no positions": Candidate("none"),
    "linear positions": Candidate("linear"),
    "rotary": Candidate("rotary"),
    "rotary, parallel": Candidate("rotary", parallel=True),
    "counter": Candidate("rotary", parallel=True, counter=True),
    "counter, three times the steps": Candidate("rotary", parallel=True, counter=True, steps_factor=3),
    "counter, flat depths": Candidate("rotary", parallel=True, counter=True, flat=True),
    "counter, weight decay 0.3": Candidate("rotary", parallel=True, counter=True, weight_decay=0.3),
    "counter, curriculum": Candidate("rotary", parallel=True, counter=True, curriculum=0.3),
    "counter, width 64": Candidate("rotary", parallel=True, counter=True, width=64),
    "counter, three layers": Candidate("rotary", parallel=True, counter=True, layers=3),
}


def build(candidate: Candidate, task: Dyck, seed: int) -> PreTrainedModel:
    """A fresh model of the candidate."""
    if candidate.positions == "rotary":
        config = StableLmConfig(
            vocab_size=len(task.vocabulary),
            max_position_embeddings=task.positions,
            hidden_size=candidate.width,
            num_hidden_layers=candidate.layers,
            num_attention_heads=1,
            num_key_value_heads=1,
            intermediate_size=3 * candidate.width,  # gated: as many weights as four times the width without gates
            use_parallel_residual=candidate.parallel,
            hidden_act="gelu_pytorch_tanh",
            tie_word_embeddings=True,
            use_cache=False,
            bos_token_id=task.start_id,
            eos_token_id=task.end_id,
            pad_token_id=task.pad_id,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            rotary = StableLmForCausalLM(config)
        if candidate.counter:
            counting = rotary.model.layers[0].self_attn
            torch.nn.init.zeros_(counting.q_proj.weight.requires_grad_(False))
            counting.k_proj.weight.requires_grad_(False)
        return rotary
    model = dyck_model(task, seed)
    if candidate.positions != "learned":
        embedding = model.transformer.wpe.weight.requires_grad_(False)
        embedding.zero_()
        if candidate.positions == "linear":  # up to 0.1: about the norm that a token's embedding has at first
            embedding[:, 0] = torch.linspace(0, 0.1, task.positions)
    return model


def batches_of(candidate: Candidate, language: Language, seed: int, steps: int) -> Callable[[int], Batch]:
    """The training batches of a step."""
    split = language.task.split("train", language.task.training_sentences)
    rows = np.arange(len(split.lengths))
    if candidate.flat:
        far = split.kinds == CLOSING_FAR
        depth = split.features["depth"]
        frequency = np.bincount(depth[far], minlength=language.task.max_depth + 1)
        weight = np.where(far, 1 / np.maximum(frequency, 1)[depth], 0).sum(axis=1)
        rows = np.random.default_rng(seed).choice(rows, size=len(rows), p=weight / weight.sum())

    def bucketed(chosen: np.ndarray) -> BucketedBatches:
        return BucketedBatches(
            split.tokens[chosen].astype(np.int16),
            split.lengths[chosen],
            tokens_per_batch=language.tokens_per_batch,
            seed=seed,
        )

    everything = bucketed(rows)
    warm = int(candidate.curriculum * steps)
    if not warm:
        return everything
    short = bucketed(rows[split.lengths[rows] <= language.task.positions // 2])
    return lambda step: short(step) if step < warm else everything(step - warm)


def measure(model: PreTrainedModel, task: Dyck, splits: Sequence[Split]) -> list[float]:
    """Accuracy (0 to 1) on far closing brackets, argmax over closing brackets; one number for each of HEADS."""
    found = []
    for split in splits:
        right, depth = [], []
        for start in range(0, len(split.lengths), 50):
            part = split.take(np.arange(start, min(start + 50, len(split.lengths))))
            tokens = torch.from_numpy(part.tokens)
            with torch.inference_mode():
                logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
            closing = logits[:, :-1, task.brackets : 2 * task.brackets].argmax(dim=-1).numpy() + task.brackets
            far = part.kinds[:, :-1] == CLOSING_FAR
            right.append((closing == part.tokens[:, 1:])[far])
            depth.append(part.features["depth"][:, :-1][far])
        found.append((np.concatenate(right), np.concatenate(depth)))
    (iid, _), (deep, depth) = found
    half = (task.max_depth + task.deeper) // 2
    bands = (depth <= task.max_depth, (depth > task.max_depth) & (depth <= half), depth > half)
    return [float(part.mean()) for part in (iid, deep, *(deep[band] for band in bands))]


def run(name: str, language: Language, seed: int, folder: Path) -> None:
    """Train and measure a candidate, unless its file is there; the shipped models are only measured."""
    place = f"{name.replace(', ', '-').replace(' ', '-')}-seed-{seed}"
    result, checkpoint = folder / f"{place}.json", folder / f"{place}.pt"
    candidate, task = CANDIDATES[name], language.task
    steps = language.steps * candidate.steps_factor
    if result.exists() and json.loads(result.read_text(encoding="utf-8"))["done"] == steps:
        return
    splits = [task.split(split, language.sequences) for split in ("iid", "unseen_depth")]

    def write(model: PreTrainedModel, done: int) -> list[float]:
        record = {
            "name": name,
            "seed": seed,
            "candidate": asdict(candidate),
            "parameters": sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
            "steps": steps,
            "done": done,
            "accuracy": measure(model, task, splits),
        }
        write_atomically(result, lambda path: path.write_text(json.dumps(record, indent=2), encoding="utf-8"))
        return record["accuracy"]

    if candidate == Candidate() and task == Dyck():
        write(load(task.name, seed=seed).model, steps)  # the shipped models are this very training
        return

    def report(progress: Progress) -> None:
        if progress.step % 1_000 == 0 or progress.step == steps:
            model.eval()
            values = " ".join(f"{value:.3f}" for value in write(model, progress.step))
            model.train()
            print(f"{name}, seed {seed}, step {progress.step}: loss {progress.loss:.3f} nats, {values}", flush=True)

    model = build(candidate, task, seed)
    recipe = replace(DYCK_RECIPE, steps=steps, weight_decay=candidate.weight_decay)
    train(model, batches_of(candidate, language, seed, steps), recipe, checkpoint=checkpoint, report=report)


def table(folder: Path) -> str:
    """All trainings of a folder, as far as they are, as a Markdown table in the order of CANDIDATES."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    order = list(CANDIDATES)
    lines = [f"| candidate | seed | parameters | steps | {' | '.join(HEADS)} |", "|---" * (4 + len(HEADS)) + "|"]
    for record in sorted(records, key=lambda record: (order.index(record["name"]), record["seed"])):
        values = " | ".join(f"{100 * value:.1f}" for value in record["accuracy"])
        of = "" if record["done"] == record["steps"] else f" of {record['steps']:,}"
        steps = f"{record['done']:,}{of}"
        lines.append(f"| {record['name']} | {record['seed']} | {record['parameters']:,} | {steps} | {values} |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Train what is asked for and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--language", choices=LANGUAGES, default="small")
    parser.add_argument("--candidates", nargs="*", choices=CANDIDATES, default=list(CANDIDATES), metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("assay-runs/dyck-generalization"))
    parser.add_argument("--markdown", type=Path, help="document whose table of this language is written again")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    folder = chosen.out / chosen.language
    for name in chosen.candidates:
        for seed in chosen.seeds:
            run(name, LANGUAGES[chosen.language], seed, folder)
    text = table(folder)
    print(text)
    if chosen.markdown:
        begin, end = f"<!-- table {chosen.language}: begin -->", f"<!-- table {chosen.language}: end -->"
        document = chosen.markdown.read_text(encoding="utf-8")
        head, rest = document.split(begin)
        write_atomically(
            chosen.markdown,
            lambda path: path.write_text(f"{head}{begin}\n{text}\n{end}{rest.split(end)[1]}", encoding="utf-8"),
        )


if __name__ == "__main__":
    main(sys.argv[1:])

"""Dyck: the illusions of simplified bracket matchers (arXiv 2312.03656), as one experiment."""

from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from assay._errors import AssayError
from assay._files import remove
from assay.engine import Engine, collect, tensors
from assay.faithfulness import Comparison, Step, Workers, compare
from assay.reports import Illustrations, KeyCloud, SentenceView, write_figures, write_page
from assay.simplify import SVD, Identity, KMeans, OneHotAttention, Simplification, label
from assay.subjects import (
    DYCK_RECIPE,
    DYCK_TOKENS_PER_BATCH,
    BucketedBatches,
    Progress,
    Recipe,
    Subject,
    dyck_model,
    load,
    save,
    shipped,
)
from assay.subjects import train as train_model
from assay.tasks import Dyck, Split

SUBJECT = "dyck-20-10"
SITE = "layer1"
"""Where the subject finds the bracket to close."""

SHOWN = SVD(rank=8)
"""The proxy whose attention is drawn beside the subject's."""


def quick() -> list[Simplification]:
    """The simplifications of the default run."""
    return [*(SVD(rank) for rank in (1, 2, 4, 8, 16)), KMeans(16), KMeans(64), OneHotAttention()]


def full() -> list[Simplification]:
    """The simplifications of `--full`."""
    return [
        *(SVD(rank) for rank in (1, 2, 4, 8, 16)),
        *(KMeans(clusters) for clusters in (16, 32, 64, 128, 256)),
        OneHotAttention(),
    ]


def run(
    folder: Path,
    *,
    everything: bool = False,
    seed: int = 0,
    device: str = "cpu",
    sequences: int | None = None,
    sentence: str | None = None,
    overwrite: bool = False,
    workers: Workers = Workers(),
    progress: Callable[[Step], None] = lambda step: None,
) -> Comparison:
    """Judge the shipped models and leave a run folder.

    By default one training seed (`seed`), layer 1, 300 sequences a split; with `everything`, all shipped seeds, every
    layer and both together, all ranks and cluster counts, 2,000 sequences a split. `sentence` (such as
    `"(0 (3 3) 0)"`) is drawn with the attention of subject and proxy; by default one from the deepest split on which
    they differ. A run that was stopped goes on where it was; `overwrite` is that of `assay.compare`. Raises AssayError
    for bad arguments.
    """
    task = Dyck()
    subjects = [load(SUBJECT, seed=one, device=device) for one in (shipped()[SUBJECT] if everything else [seed])]
    chosen = task.read_sentence(sentence) if sentence is not None else None
    comparison = compare(
        subjects,
        task,
        full() if everything else quick(),
        sites=("layer0", "layer1", "all") if everything else (SITE,),
        sequences=sequences if sequences is not None else 2_000 if everything else 300,
        folder=folder,
        overwrite=overwrite,
        workers=workers,
        progress=progress,
    )
    progress(Step(1, 1, "figures"))
    illustrations = illustrate(subjects[0], task, chosen)
    illustrations.save(folder)
    write_figures(comparison, folder / "figures", illustrations)
    write_page(comparison, folder / "report.html", illustrations)
    return comparison


def illustrate(subject: Subject, task: Dyck, sentence: Split | None = None) -> Illustrations:
    """Keys in two dimensions by depth, and one sentence seen by subject and proxy."""
    engine = Engine(subject)
    site = engine.site(SITE)
    samples = collect(engine, task.split("train", 1_000), ("queries", "keys"))
    keys = samples.keys[site.places[0]].double()
    directions = torch.linalg.svd(keys - keys.mean(dim=0), full_matrices=False).Vh[:2]
    points = {}
    for name in ("iid", "unseen_depth"):
        split = task.split(name, 60)
        at = collect(engine, split, ("keys",)).keys[site.places[0]].double() @ directions.T
        moves = np.where(split.tokens < task.brackets, 1, np.where(split.tokens < 2 * task.brackets, -1, 0))
        depth = np.cumsum(moves, axis=1)[split.valid]
        points[name] = [
            (round(x, 3), round(y, 3), int(level)) for (x, y), level in zip(at.tolist(), depth.tolist(), strict=True)
        ]
    cloud = KeyCloud(site=SITE, colour="bracket depth after the token", boundary=task.max_depth, points=points)
    view = _sentence_view(engine, task, SHOWN.fit(samples.at(site)), sentence)
    return Illustrations(keys=[cloud], sentences=[view])


def _sentence_view(engine: Engine, task: Dyck, proxy_recipe: SVD, sentence: Split | None) -> SentenceView:
    """Subject and proxy on the given sentence, or on a short deep one on which they differ."""
    proxy = proxy_recipe.apply(engine.subject)
    closing = torch.arange(task.brackets, 2 * task.brackets, device=engine.subject.device)
    title = "The given sentence"
    if sentence is None:
        title = "A sentence of unseen_depth"
        candidates = task.split("unseen_depth", 200)
        order = np.argsort(candidates.lengths, kind="stable")
        sentence = candidates.take(order[:1])
        for index in order:
            one = candidates.take(np.array([index]))
            tokens, valid = tensors(one, engine.subject.device)
            picks = [model(tokens, valid)[..., closing].argmax(dim=-1) for model in (engine.subject, proxy)]
            scored = torch.from_numpy(one.kinds == 1).to(tokens.device)
            if bool(((picks[0] != picks[1]) & scored).any()):
                sentence = one
                break
    tokens, valid = tensors(sentence, engine.subject.device)
    head = next(head for head in engine.heads if head in engine.site(SITE).places)
    runs = [engine.run(tokens, valid, edits=edits, read=("patterns",)) for edits in ((), proxy.edits)]
    picks = [run.logits[0][:, closing].argmax(dim=-1) + task.brackets for run in runs]
    names = task.vocabulary
    closings = [t for t in range(sentence.tokens.shape[1]) if sentence.kinds[0, t] in (0, 1)]
    patterns = [
        [[round(value, 4) for value in row] for row in run.patterns[head.layer][0, head.head].tolist()] for run in runs
    ]
    return SentenceView(
        title=title,
        site=SITE,
        proxy=label(proxy_recipe),
        tokens=[names[token] for token in sentence.tokens[0]],
        subject_pattern=patterns[0],
        proxy_pattern=patterns[1],
        predictions=[
            (t, names[sentence.tokens[0, t + 1]], names[int(picks[0][t])], names[int(picks[1][t])]) for t in closings
        ],
    )


def train(
    folder: Path,
    *,
    seed: int = 0,
    device: str = "cpu",
    recipe: Recipe = DYCK_RECIPE,
    evaluation_sequences: int = 2_000,
    task: Dyck | None = None,
    progress: Callable[[Progress], None] = lambda progress: None,
    measuring: Callable[[Step], None] = lambda step: None,
) -> Subject:
    """Train the reference model from `seed` and save it in `folder` with its training record.

    An interrupted training goes on from its checkpoint in the same folder and ends with the same weights. The record
    holds the subject's accuracy on every split, measured from the file that was written; `progress` is told of the
    training and `measuring` of that. Raises AssayError if the folder holds a finished model.
    """
    task = task or Dyck()
    if (folder / "model.safetensors").exists():
        raise AssayError(f"{str(folder)!r} holds a trained model already; choose another folder or remove it.")
    split = task.split("train", task.training_sentences)
    batches = BucketedBatches(
        split.tokens.astype(np.int16), split.lengths, tokens_per_batch=DYCK_TOKENS_PER_BATCH, seed=seed
    )
    model = dyck_model(task, seed)
    checkpoint = folder / "checkpoint.pt"
    done = train_model(model, batches, recipe, checkpoint=checkpoint, device=device, report=progress)
    save(Subject(model, task.tokenizer(), task.name, seed=seed), folder)
    written = load(folder, device=device)
    measured = compare(
        written,
        task,
        [Identity()],
        sequences=evaluation_sequences,
        controls=False,
        resamples=200,
        progress=measuring,
    )
    rows = measured.results.query("metric == 'subject_accuracy' and feature == ''")
    record = {
        "name": task.name,
        "seed": seed,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "task": task.describe(),
        "recipe": {**recipe.__dict__, "tokens_per_batch": DYCK_TOKENS_PER_BATCH},
        "steps": done.steps,
        "tokens": done.tokens,
        "seconds": round(done.seconds, 1),
        "final_loss_nats": done.final_loss,
        "accuracy": {
            name: {
                row["kind"]: round(float(row["estimate"]), 6) for row in part.to_dict("records") if row["predictions"]
            }
            for name, part in rows.groupby("split", sort=False)
        },
        "evaluation_sequences": evaluation_sequences,
        "weights_sha256": written.weights_sha256,
        "device": device,
        "versions": {name: version(name) for name in ("assay-interp", "torch", "transformers", "numpy")},
    }
    trained = Subject(written.model, task.tokenizer(), task.name, seed=seed, record=record)
    save(trained, folder)
    remove(checkpoint)
    return trained

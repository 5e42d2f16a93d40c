"""What judging a second model costs, beside two plain forward passes that compute the same log-probabilities.

Run `python benchmarks/two_models.py --markdown docs/results/two-models.md`. Both jobs are done in turn in one process
for their CPU seconds, and each in a process of its own for its memory. The models have GPT-2-small's configuration and
random weights, the second one rounded to 8 bits; 4 sequences of 256 tokens. *Plain* runs both models, takes the log
softmax of all logits of both and picks the next tokens': what a difference of perplexities needs. *Assay* computes, for
every prediction: same first choice, KL both ways, flips both ways, the right token's probability and log probability,
the overlap of the first five choices, and the subject's margin.

With `--harness`, beside lm-evaluation-harness instead (the extra `peers`): its rolling log likelihoods of both models
on the same documents, for which Assay takes both models' loss, too.
"""

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import assay
from assay.engine import Engine, WholeModel
from assay.faithfulness import metrics
from assay.faithfulness._metrics import Pair
from assay.faithfulness._scores import Scores, score
from assay.subjects import Subject
from assay.tasks import Kind, Split, Text
from machine import machine

MEASURED = (
    "same_prediction", "kl", "kl_reverse", "flip_to_wrong", "flip_to_right", "right_probability",
    "log_perplexity_ratio", "first_five",
)  # fmt: skip


class Tokens:
    """Random tokens, every next one a prediction."""

    name = "tokens"
    kinds = (Kind("next", "the next token"),)
    primary_kind = "all"
    features = ()
    split_names = ("iid",)

    def __init__(self, sequences: int, length: int) -> None:
        rng = np.random.default_rng(0)
        tokens = rng.integers(0, 50_257, (sequences, length))
        kinds = np.zeros_like(tokens)
        kinds[:, -1] = -1
        self._split = Split("iid", "iid", "random tokens", tokens, np.full(sequences, length), kinds)

    def split(self, name: str, sequences: int) -> Split:
        """All of them."""
        return self._split

    def describe(self) -> dict[str, object]:
        """Nothing to tell."""
        return {}


def models() -> tuple[Subject, Subject]:
    """A random GPT-2-small, and the same with its matrices rounded to 8 bits."""
    torch.manual_seed(0)
    base = GPT2LMHeadModel(GPT2Config()).eval()
    other = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in other.transformer.h.parameters():
            if parameter.dim() == 2:
                step = parameter.abs().amax(dim=0, keepdim=True) / 127
                parameter.copy_((parameter / step).round() * step)
    return Subject(base, None, "gpt2"), Subject(other, None, "gpt2-int8")


def jobs() -> dict[str, Callable[[], float]]:
    """The two jobs by name; each gives ln of the ratio of the perplexities."""
    base, other = models()
    task = Tokens(4, 256)
    split = task.split("iid", 4)
    tokens = torch.from_numpy(split.tokens)
    engine, proxy = Engine(base), WholeModel(other)
    measured = [metrics.get(name)() for name in MEASURED]

    @torch.inference_mode()
    def plain() -> float:
        found = [
            subject.model(tokens).logits[:, :-1].log_softmax(dim=-1).gather(-1, tokens[:, 1:, None])
            for subject in (base, other)
        ]
        return float((found[0] - found[1]).double().mean())

    def assay() -> float:
        scores = score(engine, {"other": proxy}, task, split, measured)["other"]
        place = next(n for n, one in enumerate(scores.columns) if one[:3] == ("log_perplexity_ratio", "all", ""))
        return float(scores.sums[:, place].sum() / scores.counts[:, place].sum())

    return {"plain": plain, "assay": assay}


class Loss:
    """−ln of the probability of the right token, the subject's or the other model's."""

    unit, higher_is_better, needs_answer, needs_attention = "nats", False, True, False

    def __init__(self, whose: str) -> None:
        self.whose, self.name, self.description = whose, f"loss of {whose}", "loss"

    def __call__(self, pair: Pair) -> torch.Tensor:
        """The loss at every position."""
        one = pair.subject if self.whose == "base" else pair.proxy
        right = one.logits.gather(-1, pair.targets[..., None])[..., 0]
        return one.log_sum.double() - right.double()


LOSSES = tuple(map(Loss, ("base", "other")))

Losses = dict[str, list[float]]
"""The sum of the losses of each document, by model."""


def documents() -> list[str]:
    """Eight texts of 250 characters, of this file: a token a character, and one in front, fit into 256 positions."""
    text = " ".join(Path(__file__).read_text(encoding="ascii", errors="ignore").split())
    return [text[start : start + 250] for start in range(0, 2_000, 250)]


def harness_jobs() -> dict[str, Callable[[], Losses]]:
    """The harness and Assay, the same two models and documents."""
    from lm_eval.api.instance import Instance  # noqa: PLC0415
    from lm_eval.models.huggingface import HFLM  # noqa: PLC0415

    tokenizer = assay.load("code-python").tokenizer
    assert tokenizer is not None
    both = dict(zip(("base", "other"), models(), strict=True))
    texts = documents()
    task = Text(tokenizer, None, texts, {}, max_length=256)
    split = task.split("iid", len(texts))
    wrapped = {
        name: HFLM(one.model, tokenizer=tokenizer, add_bos_token=False, max_length=256, batch_size=8, device="cpu")
        for name, one in both.items()
    }
    asked = [Instance("loglikelihood_rolling", {}, (text,), number) for number, text in enumerate(texts)]

    def harness() -> Losses:
        return {name: [-found for found in one.loglikelihood_rolling(asked)] for name, one in wrapped.items()}

    engine, proxy = Engine(both["base"]), WholeModel(both["other"])
    measured = [*(metrics.get(name)() for name in MEASURED), *LOSSES]

    def ours() -> Losses:
        scores = score(engine, {"other": proxy}, task, split, measured)["other"]
        assert isinstance(scores, Scores)
        places = {one.metric: place for place, one in enumerate(scores.columns) if one[1:] == ("all", "", 0)}
        return {loss.whose: scores.sums[:, places[loss.name]].tolist() for loss in LOSSES}

    return {"lm-evaluation-harness": harness, "assay": ours}


def beside_harness(rounds: int) -> list[str]:
    """The table of CPU seconds. Ends if the losses of a document differ by more than a hundred-thousandth of them."""
    do = harness_jobs()
    found = {name: job() for name, job in do.items()}
    theirs, ours = found.values()
    apart = max(abs(a - b) / b for name in theirs for a, b in zip(ours[name], theirs[name], strict=True))
    if apart > 1e-5:
        sys.exit(f"the two do not agree: {found}")
    count = 250 * len(theirs["base"])
    perplexities = {name: [float(np.exp(sum(one[which]) / count)) for which in theirs] for name, one in found.items()}
    print(json.dumps({"perplexities of base and other": perplexities, "largest relative difference of a loss": apart}))
    seconds = in_turn(do, rounds)
    ratios = [mine / harness for harness, mine in zip(*seconds.values(), strict=True)]
    return [
        "| | perplexities | CPU seconds, median | each round |",
        "|---|---|---|---|",
        *(
            f"| {name} | {perplexities[name][0]:.4f}, {perplexities[name][1]:.4f} | "
            f"{statistics.median(seconds[name]):.2f} | {', '.join(f'{value:.2f}' for value in seconds[name])} |"
            for name in do
        ),
        f"| ratio | {apart:.0e} apart | {statistics.median(ratios):.2f} | "
        f"{', '.join(f'{ratio:.2f}' for ratio in ratios)} |",
    ]


def in_turn(do: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """The CPU seconds of jobs that are done in turn, the order reversed every other round."""
    seconds: dict[str, list[float]] = {name: [] for name in do}
    for number in range(rounds):
        for name in list(do) if number % 2 else list(do)[::-1]:
            start = time.process_time()
            do[name]()
            seconds[name].append(time.process_time() - start)
    return seconds


def put(markdown: Path | None, mark: str, lines: Sequence[str]) -> None:
    """Print a table, and write it between its marks in a document."""
    print("\n".join(lines))
    if markdown is None:
        return
    text = markdown.read_text(encoding="utf-8")
    head, rest = text.split(f"<!-- {mark}: begin -->")
    tail = rest.split(f"<!-- {mark}: end -->")[1]
    body = "\n".join([f"<!-- {mark}: begin -->", *lines, f"<!-- {mark}: end -->"])
    markdown.write_text(f"{head}{body}{tail}", encoding="utf-8")


def alone(name: str) -> None:
    """In a process of its own: do one job and print the memory that the process came to need meanwhile, in MB."""
    do = jobs()[name]
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # Linux: forget what building the models needed
    do()
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)


def main() -> None:
    """Print the table, and write it into a document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--alone", choices=("plain", "assay"), help=argparse.SUPPRESS)
    parser.add_argument("--harness", action="store_true", help="Beside lm-evaluation-harness.")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.alone:
        alone(options.alone)
        return
    if options.harness:
        put(options.markdown, "harness", beside_harness(options.rounds))
        return
    do = jobs()
    values = {name: job() for name, job in do.items()}
    if abs(values["plain"] - values["assay"]) > 1e-5:
        sys.exit(f"the two do not agree: {values}")
    seconds = in_turn(do, options.rounds)
    memory = {
        name: float(
            subprocess.run(
                [sys.executable, __file__, "--alone", name], check=True, capture_output=True, text=True
            ).stdout
        )
        for name in do
    }
    ratios = [ours / theirs for ours, theirs in zip(seconds["assay"], seconds["plain"], strict=True)]
    lines = [
        "| | CPU seconds, median | each round | memory of the process, MB |",
        "|---|---|---|---|",
        *(
            f"| {name} | {statistics.median(seconds[name]):.2f} | "
            f"{', '.join(f'{value:.2f}' for value in seconds[name])} | {memory[name]:,.0f} |"
            for name in do
        ),
        f"| ratio | {statistics.median(ratios):.2f} | {', '.join(f'{ratio:.2f}' for ratio in ratios)} | "
        f"{memory['assay'] / memory['plain']:.2f} |",
    ]
    put(options.markdown, "cost", [*lines, "", machine()])
    print(json.dumps({"ln of the perplexity ratio": values}))


if __name__ == "__main__":
    main()

"""Certificates of tiny models against the truth, and forged certificates against the checker.

Each model is drawn from a seed of its own, which also gives the seed of the next: the seed that stands beside a wrong
case, given to the command, draws that model first.
"""

import copy
import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import torch

from assay._errors import AssayError
from assay.engine import Engine, collect
from assay.proofs import LINEAR_STRATEGIES, REMAINDERS, STRATEGIES, Certificate, Proxy, certify, checker
from assay.simplify import SVD, OneHotAttention, RandomProjection, UniformAttention
from assay.subjects import Subject
from assay.tasks import MaxOfK
from assay.testing.fuzz import _forge
from assay.testing.fuzz._forge import Content
from assay.testing.fuzz._models import extreme_model, tiny_inputs, tiny_linear_model, tiny_model
from assay.testing.fuzz._tried import Tally, Tried
from assay.testing.fuzz._truth import AttentionTruth, LinearTruth, members, weights_of

OUT_OF_RANGE = ("2^40", "span a factor", "the logits differ", "2^1000", "lost to underflow")
"""Words of the reasons for which weights are refused before anything is proved (docs/soundness.md)."""

EXACT = ("brute-force", "symmetry", "gemm")
"""The strategies that decide every input of a linear model."""

_FORGERIES = 6
"""Changed certificates a model."""

_HONEST, _FORGED = 10**10, 10**8
"""Operations that checking a certificate may take; nearly all honest ones of tiny models take less than 10^7."""

_SECONDS = 20.0
"""Of a processor, within which all that is asked about a tiny model is answered."""

_LONGEST = 400


class Case:
    """A tiny model and the truth about it."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.linear = hasattr(subject.model, "linear")
        self._truths: dict[str, Any] = {}

    def truth(self, proxy: Any = None) -> Any:
        """The truth about the model, or about a proxy as a certificate records it."""
        key = json.dumps(proxy)
        if key not in self._truths:
            self._truths[key] = LinearTruth(self.subject) if self.linear else AttentionTruth(self.subject, proxy)
        return self._truths[key]

    def untrue(self, content: Content) -> str:
        """What is false about the claim of a certificate; empty if it is true."""
        truth, inputs = self.truth(), content["inputs"]
        if (inputs["vocabulary"], inputs["length"]) != (truth.vocabulary, truth.length):
            return f"it is about {inputs['length']} tokens out of {inputs['vocabulary']}"
        size = int(members(inputs, truth.vocabulary, truth.length).sum())
        if inputs["size"] != size:
            return f"it is about {inputs['size']} inputs, and there are {size}"
        low, high = content["at_least"], content["at_most"]
        if content["quantity"] == "loss":
            if truth.loss_is_within(inputs, low, high):
                return ""
            return f"the loss is {(truth.loss(inputs) * 2**50).str(20)}, not from {low} to {high}"
        if content["quantity"] == "agreement":
            found = truth.agreed(self.truth(content["proxy"]), inputs)
        else:
            found = truth.count(inputs)
        return "" if low <= found <= high else f"of {size} inputs it is {found}, not from {low} to {high}"

    def refused(self, content: Content, budget: int) -> str:
        """Why the checker refuses a certificate; empty if it does not."""
        config = self.subject.model.config.to_dict()
        return _refusal(lambda: checker.check(content, weights_of(self.subject), config, budget=budget))

    def unread(self, path: Path) -> str:
        """Why the file of a certificate is not read or not accepted; empty if it is."""
        return _refusal(lambda: Certificate.load(path).verify(self.subject, budget=_FORGED))


class WrongError(Exception):
    """Something does not hold; the message says what."""


def _refusal(check: Callable[[], Any]) -> str:
    """Why a check fails, empty if it passes; WrongError unless it is refused in one printable line, and soon."""
    started = time.process_time()
    try:
        check()
        reason = ""
    except AssayError as error:
        reason = str(error)
        if not reason or not reason.isprintable():
            raise WrongError(f"refused with {reason!r}") from None
    if time.process_time() - started > _SECONDS:
        raise WrongError(f"the answer took more than {_SECONDS:.0f} seconds")
    return reason


def run(seed: int, minutes: float, say: Callable[[str], None]) -> list[Tried]:
    """Draw models for so many minutes, or until it is interrupted, starting from a seed."""
    end, tally = time.monotonic() + 60 * minutes, Tally()
    with suppress(KeyboardInterrupt), TemporaryDirectory() as folder:
        while time.monotonic() < end:
            rng = Random(seed)
            following = rng.getrandbits(48)
            _try_model(seed, rng, tally, Path(folder))
            seed = following
            say(str(tally))
    return tally.rows()


def _try_model(seed: int, rng: Random, tally: Tally, folder: Path) -> None:
    """One model by every strategy, and changed certificates of it."""
    family = rng.choices((_accuracy, _agreement, _linear), (5, 2, 3))[0]
    case, claims = family(rng)

    def judge(kind: str, attempt: Callable[[], bool]) -> None:
        """Count an attempt that returns whether there was anything to try."""
        wrong = ""
        try:
            if not attempt():
                return
        except Exception as error:  # whatever it is, it is what this looks for
            what = str(error) if isinstance(error, WrongError) else f"{type(error).__name__}: {error}"
            wrong = " ".join(f"--seed {seed}: {what}"[:_LONGEST].split())
        tally.count(kind, wrong)

    tally.count("models")
    contents: list[Content] = []
    for kind, options in claims:
        judge(f"certificates: {kind}", partial(_certify, case, options, contents))
    for content in contents:
        judge("certificates given to the checker", partial(_verify, case, content))
    for _ in range(_FORGERIES if contents else 0):
        content, other = _forge.copy_of(rng.choice(contents)), rng.choice(contents)
        kind, forgery = rng.choices(tuple(FORGERIES.items()), _WEIGHTS)[0]
        judge(f"forgeries: {kind}", partial(forgery, rng, case, content, other, folder))


Claims = list[tuple[str, dict[str, Any]]]
"""What is to be certified: the kind of claim, and the options of `certify`."""


def _accuracy(rng: Random) -> tuple[Case, Claims]:
    subject = rng.choice((tiny_model, extreme_model))(rng)
    inputs = tiny_inputs(rng, subject)
    counted = {"grid": rng.choices((8, 64, 1024, 2**20), (4, 4, 4, 1))[0], "search": rng.choice((0, 0, 8, 2**18))}
    own: dict[str, dict[str, Any]] = {
        "separable": counted | {"two_sided": rng.random() < 0.5},
        "subcubic-low-rank": {"remainder": rng.choice(sorted(REMAINDERS))},
    }
    return Case(subject), [
        (f"attention, {strategy}", {"strategy": strategy, "inputs": inputs} | own.get(strategy, {}))
        for strategy in STRATEGIES
    ]


def _agreement(rng: Random) -> tuple[Case, Claims]:
    subject = rng.choice((tiny_model, extreme_model))(rng)
    inputs, head = tiny_inputs(rng, subject), subject.model.config.head_dim
    rank = rng.randint(1, head)
    against = rng.choice(
        (
            Proxy(rank=rng.randint(1, 2)),
            Proxy(rank=None, average_positions=True),
            Proxy(rank=1, average_positions=True),
            SVD(rank=rank),
            SVD(rank=rank, joint=False, centred=True),
            RandomProjection(rank=rank),
            UniformAttention(),
            OneHotAttention(),
        )
    )
    if not isinstance(against, Proxy):
        split = MaxOfK(inputs.length, inputs.vocabulary).split("train", 32)
        against = against.fit(collect(Engine(subject), split, ("queries", "keys")))
    counted = {"grid": rng.choice((8, 1024)), "search": rng.choice((0, 2**18))}
    strategies = ["separable", "brute-force"] + ([] if isinstance(against, OneHotAttention) else ["exact"])
    return Case(subject), [
        (
            f"attention and a proxy, {strategy}",
            {"strategy": strategy, "inputs": inputs, "against": against} | (counted if strategy == "separable" else {}),
        )
        for strategy in strategies
    ]


def _linear(rng: Random) -> tuple[Case, Claims]:
    subject = tiny_linear_model(rng)
    inputs = tiny_inputs(rng, subject)
    blocks = {"width": rng.randint(1, 6), "top": rng.randint(0, 6), "refine": rng.choice((0, 1, 5, 10_000))}
    return Case(subject), [
        (
            f"linear, {quantity}, {strategy}",
            {"strategy": strategy, "quantity": quantity, "inputs": inputs} | (blocks if strategy == "blocks" else {}),
        )
        for quantity in ("accuracy", "loss")
        for strategy in LINEAR_STRATEGIES
    ]


def _certify(case: Case, options: dict[str, Any], contents: list[Content]) -> bool:
    """Make a certificate and compare it with the truth."""
    try:
        certificate = certify(case.subject, **options)
    except AssayError as error:
        if any(reason in str(error) for reason in OUT_OF_RANGE):
            return False
        raise
    content = certificate.model_dump(mode="json")
    contents.append(content)
    if false := case.untrue(content):
        raise WrongError(f"{options}: {false}")
    exact = case.linear and content["quantity"] == "accuracy" and content["strategy"] in EXACT
    if exact and content["at_least"] != content["at_most"]:
        raise WrongError(f"{options}: not exact, from {content['at_least']} to {content['at_most']}")
    return True


def _verify(case: Case, content: Content) -> bool:
    """Have the checker accept an honest certificate."""
    if reason := case.refused(content, _HONEST):
        raise WrongError(f"{content['strategy']} on {content['inputs']}: {reason}")
    return True


# -- forgeries: each must be refused, or true ---------------------------------------------------------------------


def _harmless(case: Case, content: Content) -> None:
    """WrongError if what was accepted is false, or says it in other words than its own."""
    if false := case.untrue(content):
        raise WrongError(f"accepted, and false: {content['strategy']}, {content['quantity']}: {false}")
    if content["statement"] != _forge.restated(content)["statement"]:
        raise WrongError(f"accepted with the statement {content['statement']}")


def _offer(rng: Random, case: Case, content: Content, folder: Path) -> bool:
    """Give a forged certificate to the checker; one in four as a file too, which must be judged alike."""
    refused = case.refused(content, _FORGED)
    if not refused:
        _harmless(case, content)
    if rng.random() < 0.25:
        path = folder / "certificate.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        if bool(case.unread(path)) != bool(refused):
            raise WrongError("accepted or refused, depending on whether it is read from a file")
    return True


def _changed(
    refit: Callable[[Content], Content], rng: Random, case: Case, content: Content, _: Content, folder: Path
) -> bool:
    for _time in range(rng.choice((1, 1, 1, 2, 3))):
        _forge.change(rng, content)
    return _offer(rng, case, _forge.refitted(content, refit), folder)


def _nudged(rng: Random, case: Case, content: Content, _: Content, folder: Path) -> bool:
    for _time in range(rng.choice((1, 1, 1, 2, 3))):
        _forge.nudge(rng, content)
    refit = rng.choice((_forge.consistent, _forge.consistent, _forge.restated))
    return _offer(rng, case, _forge.refitted(content, refit), folder)


def _spliced(rng: Random, case: Case, content: Content, other: Content, folder: Path) -> bool:
    _forge.splice(rng, content, other)
    return _offer(rng, case, _forge.refitted(content, _forge.consistent), folder)


def _of_other_weights(rng: Random, case: Case, content: Content, _: Content, folder: Path) -> bool:
    """Claim it of the model with one weight changed, by a little or by much."""
    state = {name: tensor.clone() for name, tensor in case.subject.model.state_dict().items()}
    weights = state[rng.choice(sorted(state))].view(-1)
    place = rng.randrange(len(weights))
    other = torch.tensor(rng.choice((math.inf, -math.inf)), dtype=weights.dtype)
    weights[place] = rng.choice(
        (torch.nextafter(weights[place], other), weights[place] + 1, -weights[place], weights[0])
    )
    model = copy.deepcopy(case.subject.model)
    model.load_state_dict(state)
    neighbour = Case(Subject(model, None, case.subject.name))
    return _offer(rng, neighbour, _forge.belongs(content, neighbour.subject.weights_sha256), folder)


def _scribbled(rng: Random, case: Case, content: Content, _: Content, folder: Path) -> bool:
    path = folder / "certificate.json"
    path.write_text(_forge.scribble(rng, json.dumps(content)), encoding="utf-8")
    if not case.unread(path):
        _harmless(case, json.loads(path.read_text(encoding="utf-8")))
    return True


FORGERIES: dict[str, Callable[[Random, Case, Content, Content, Path], bool]] = {
    "changed anywhere, digest renewed": partial(_changed, _forge.sealed),
    "changed anywhere, statement and digest renewed": partial(_changed, _forge.restated),
    "numbers of claim or evidence changed, the rest made to fit": _nudged,
    "evidence of another certificate, the rest made to fit": _spliced,
    "claimed of a model with one other weight": _of_other_weights,
    "text of the file changed": _scribbled,
}
_WEIGHTS = (2, 2, 4, 2, 1, 2)

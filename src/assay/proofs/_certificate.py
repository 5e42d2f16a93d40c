"""What a proof leaves behind: the statement, the set of inputs, the counts, and what a checker needs to redo them."""

import hashlib
import json
import math
import platform
from fractions import Fraction
from functools import cache
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from assay._errors import AssayError
from assay._files import read_bytes, write_atomically
from assay._given import checked
from assay.proofs import checker
from assay.proofs._operations import Operations
from assay.subjects import Subject, load, shipped
from assay.tasks import InputSet

LOSS_UNIT = 2**50
"""Certified losses are whole multiples of one nat divided by this."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Relaxation(_Record):
    """A set of inputs that is easy to count and holds every input of a cell that one of `outputs` makes wrong.

    `outputs` are (model, output) pairs; each one's contributions times its multiplier times 2^-power are rounded up to
    whole numbers of steps below `tops`, one a free position, in units of 1/64 of a step; `count` inputs remain.
    """

    outputs: list[tuple[int, int]]
    multipliers: list[int]
    powers: list[int]
    tops: list[int]
    count: int


class Credit(_Record):
    """A set of inputs that is easy to count, on which every model strictly prefers `output` to all `rivals`.

    `rivals` are (model, output) pairs; the rest as in a relaxation, with leads over rivals rounded down.
    """

    output: int
    rivals: list[tuple[int, int]]
    multipliers: list[int]
    powers: list[int]
    tops: list[int]
    count: int


class Piece(_Record):
    """The inputs with one last token and one largest token: at least and at most how many are wrong.

    In a certificate of agreement an input is wrong when the two models predict different tokens. The relaxations hold
    all inputs that a model gets wrong; the inputs of the credits are surely wrong, or agreed upon where agreement is
    certified. `proxy_wrong` counts the inputs that a proxy with hard attention may get wrong. Without relaxations the
    counts come from an exhaustive search of the group.
    """

    last: int
    maximum: int
    relaxations: list[Relaxation]
    credits: list[Credit]
    proxy_wrong: int = 0
    wrong: int
    surely_wrong: int


class Boxes(_Record):
    """For a last and a largest token: with c smaller tokens at the free positions, all from `tokens[c]`, all is right.

    `tokens[c]` is a bit mask over the vocabulary, 0 for a number c that the set of inputs does not have.
    """

    last: int
    maximum: int
    tokens: list[int]


class Blocks(_Record):
    """How the sums of a linear model are bounded: outputs taken exactly, the rest in blocks of `width` outputs.

    `kept` is a bit a token and output, `refined` a bit a multiset of tokens (ordered by the largest, then the second
    largest, then the smallest), 1 where it is taken exactly: bits packed, compressed by zlib, in base64.
    """

    width: int
    kept: str
    refined: str


class SubjectRecord(_Record):
    """Whose behaviour is certified."""

    name: str
    seed: int | None
    architecture: str
    weights_sha256: str
    vocabulary: int
    length: int

    @staticmethod
    def of(subject: Subject, *, vocabulary: int, length: int) -> "SubjectRecord":
        """The record of a subject. Raises AssayError if its name cannot stand in a sentence."""
        if not subject.name.isprintable() or len(subject.name) > checker.LONGEST_NAME:
            raise AssayError(
                f"a subject called {subject.name[:40]!r} cannot be certified: a name of at most {checker.LONGEST_NAME} "
                "printable characters (no line breaks or control characters) stands in the statement; give it another "
                "(import_max_of_k(path, name=...), or Subject(..., name=...))."
            )
        return SubjectRecord(
            name=subject.name,
            seed=subject.seed,
            architecture=type(subject.model).__name__,
            weights_sha256=subject.weights_sha256,
            vocabulary=vocabulary,
            length=length,
        )


class InputsRecord(_Record):
    """The set of inputs, and its exact size."""

    length: int
    vocabulary: int
    minimum_maximum: int
    within: int | None
    copies: int | None
    size: int


class ScoresRecord(_Record):
    """Scores of tokens replaced by `left` `right`ᵀ (None: kept), positions averaged or not."""

    kind: Literal["scores"] = "scores"
    left: list[list[float]] | None
    right: list[list[float]] | None
    average_positions: bool


class SubspaceRecord(_Record):
    """The map x -> mean + (x - mean) B Bᵀ of a head's queries or keys; B is `basis` (width, rank)."""

    basis: list[list[float]]
    mean: list[float]


class ProjectionRecord(_Record):
    """Queries and keys projected on subspaces."""

    kind: Literal["projection"] = "projection"
    queries: SubspaceRecord
    keys: SubspaceRecord


class PatternRecord(_Record):
    """Attention to the best key only (of equal ones, the first), or equal attention to all keys."""

    kind: Literal["one-hot", "uniform"]


ProxyRecord = ScoresRecord | ProjectionRecord | PatternRecord
"""A simplified model, exactly."""


class Certificate(_Record):
    """A bound on what a subject does on every input of a set.

    Of the `inputs.size` inputs, at least `at_least` and at most `at_most` are answered as `quantity` says: "accuracy",
    the correct token has a strictly larger logit than every other (a tie is wrong); "agreement", subject and proxy
    predict the same token, each with a strictly larger logit than every other. Where it says "loss", the mean over the
    inputs of the cross-entropy of the correct token lies between `at_least` and `at_most` times 2^-50 nats.
    """

    format: Literal["assay-certificate"] = "assay-certificate"
    version: Literal[2] = 2
    statement: str
    subject: SubjectRecord
    proxy: ProxyRecord | None = Field(discriminator="kind")
    inputs: InputsRecord
    quantity: Literal["accuracy", "agreement", "loss"]
    strategy: str
    parameters: dict[str, int | str]
    at_least: int
    at_most: int
    pieces: list[Piece] | None = None
    boxes: list[Boxes] | None = None
    blocks: Blocks | None = None
    operations: Operations
    unexplained_dimension: int
    seconds: float
    versions: dict[str, str]
    digest: str = ""

    @property
    def unit(self) -> int:
        """What `at_least` and `at_most` are divided by: the number of inputs, or 2^50 for a loss in nats."""
        return LOSS_UNIT if self.quantity == "loss" else self.inputs.size

    @property
    def low(self) -> float:
        """The certified lower bound, as a share of the inputs or in nats, rounded down."""
        share = self.at_least / self.unit
        return math.nextafter(share, 0) if Fraction(share) * self.unit > self.at_least else share

    @property
    def high(self) -> float:
        """The certified upper bound, as a share of the inputs or in nats, rounded up."""
        share = self.at_most / self.unit
        return math.nextafter(share, math.inf) if Fraction(share) * self.unit < self.at_most else share

    def decimals(self) -> tuple[str, str]:
        """Both bounds in decimals, rounded outward: nine places of a share, twelve of a loss."""
        places = 12 if self.quantity == "loss" else 9
        return (
            decimals(self.at_least, self.unit, places, up=False),
            decimals(self.at_most, self.unit, places, up=True),
        )

    def sealed(self) -> "Certificate":
        """The same certificate with the digest of everything else in it."""
        return self.model_copy(update={"digest": digest_of(self.model_dump(mode="json"))})

    @checked
    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        text = self.model_dump_json(indent=None) + "\n"
        write_atomically(Path(path), lambda file: file.write_text(text, encoding="utf-8"))

    @staticmethod
    @checked
    def load(path: str | Path) -> "Certificate":
        """Read a certificate; it is not verified by reading it.

        Raises AssayError if the file is not one of this version: other JSON, a key twice in one object, numbers that
        are no numbers or too large, lists of uneven length.
        """
        try:
            text = read_bytes(Path(path), "certificate").decode()
        except FileNotFoundError:
            raise AssayError(
                f"there is no file {str(path)!r}; give a certificate that Certificate.save wrote."
            ) from None
        except (UnicodeDecodeError, OSError) as error:
            raise AssayError(
                f"{str(path)!r} is not a certificate: it cannot be read as text ({type(error).__name__})."
            ) from None
        try:
            return Certificate.model_validate(checker.read(text))
        except AssayError as error:
            raise AssayError(f"{str(path)!r} is not a certificate that can be checked: {error}") from None

    @checked
    def verify(self, subject: Subject | None = None, *, budget: int = checker.BUDGET) -> tuple[str, ...]:
        """Check it with the independent checker; returns the fields that are not part of what was checked.

        `subject` defaults to the shipped model that the certificate names. `budget` is the number of operations, of
        about a nanosecond each, that the check may take; what it takes follows from sizes and is compared first. Raises
        AssayError with the reason if the certificate is refuted, if it takes more, or if it gives the name of a shipped
        model to another one.
        """
        seeds = shipped().get(self.subject.name, ())
        if subject is None:
            if not seeds:
                raise AssayError(
                    f"the certificate is about {self.subject.name!r}, which is not shipped; give the subject to verify."
                )
            subject = load(self.subject.name, seed=self.subject.seed or 0)
        elif seeds and subject.weights_sha256 not in (load(self.subject.name, seed=s).weights_sha256 for s in seeds):
            raise AssayError(
                f"certificate refuted: it calls the model {self.subject.name!r}, as a shipped one is called that has "
                "other weights."
            )
        content = self.model_dump(mode="json")
        return checker.check(content, float_weights(subject), subject.model.config.to_dict(), budget=budget)

    def __repr__(self) -> str:
        return f"Certificate({self.statement!r}, strategy={self.strategy!r})"

    def _repr_html_(self) -> str:
        return f"<p><b>Certificate</b> ({escape(self.strategy)}, {self.seconds:.2f} s): {escape(self.statement)}</p>"


def digest_of(content: dict[str, object]) -> str:
    """The SHA-256 of a certificate's content without its digest, in canonical JSON."""
    rest = {key: value for key, value in content.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def decimals(units: int, unit: int, places: int, *, up: bool) -> str:
    """The fraction units / unit, rounded up or down to a number of decimal places."""
    scaled = units * 10**places
    whole = -(-scaled // unit) if up else scaled // unit
    return f"{whole // 10**places}.{whole % 10**places:0{places}d}"


_version = cache(version)


def versions() -> dict[str, str]:
    """The programs that make a certificate."""
    return {
        "assay": _version("assay-interp"),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "python-flint": _version("python-flint"),
    }


def float_weights(subject: Subject) -> dict[str, np.ndarray]:
    """The weights of a subject by name. Raises AssayError unless all are of float32 or float64."""
    arrays = {}
    for key, tensor in subject.model.state_dict().items():
        if tensor.dtype not in (torch.float32, torch.float64):
            raise AssayError(f"{subject.name!r} has {tensor.dtype} weights; load it with dtype=torch.float32.")
        arrays[key] = tensor.detach().cpu().numpy()
    return arrays


def statement_of(
    subject: SubjectRecord,
    *,
    model: str,
    quantity: str,
    inputs: InputSet,
    at_least: int,
    at_most: int,
    exact: bool = False,
    proxy: str | None = None,
) -> str:
    """The claim in words, with what `model` and proxy are; a strategy that is `exact` says what it leaves open."""
    name = json.dumps(subject.name, ensure_ascii=False)
    about = f"{inputs.describe()} ({inputs.size} inputs), "
    if quantity == "loss":
        least, most = decimals(at_least, LOSS_UNIT, 12, up=False), decimals(at_most, LOSS_UNIT, 12, up=True)
        claim = (
            f"Over {about}the mean cross-entropy of the model called {name} is at least {least} and at most {most} "
            "nats."
        )
    else:
        number = f"exactly {at_least}"
        if at_least < at_most:
            number = f"at least {at_least}" + (f" and at most {at_most}" if exact or at_most < inputs.size else "")
        if exact and at_least < at_most:
            number += f" ({at_most - at_least} left open: ties and near ties are not told apart)"
        does = "predicts the largest token" if proxy is None else "and its proxy predict the same token"
        claim = f"Of {about}the model called {name} {does} on {number}; a tie does not count."
    if proxy is not None:
        claim += f" The proxy: {proxy}."
    return f"{claim} The model: {model}, in real arithmetic; the SHA-256 of its weights is {subject.weights_sha256}."

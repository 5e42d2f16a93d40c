"""Wrong arguments against the public functions and classes: nothing but AssayError may leave.

Every public callable of `assay` is called as it should be, with each of its parameters in turn replaced by what
somebody might give by mistake. What is accepted is fine; what raises another exception than AssayError is wrong.
"""

import contextlib
import inspect
import math
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import assay
from assay._errors import AssayError
from assay._given import in_short
from assay.circuits import AllAblated, RandomCircuit
from assay.engine import Engine, collect
from assay.subjects import Subject
from assay.tasks import Code, Dyck, InputSet, MaxOfK, Pair, Pairs, Split, Text
from assay.testing.fuzz._tried import Tally, Tried


@dataclass(frozen=True)
class Call:
    """A call that is right: what is called, by which name, and with what."""

    name: str
    function: Callable[..., Any]
    arguments: Mapping[str, Any]

    def parameters(self) -> list[str]:
        """The names of all parameters that can be replaced."""
        many = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        return [name for name, item in inspect.signature(self.function).parameters.items() if item.kind not in many]


def plain_values() -> list[Any]:
    """What somebody might give by mistake."""
    return [
        None, True, 0, -1, 3, 2.5, math.nan, math.inf, "", "x", "a\0b", "\ud800", b"x", [], [1], ["x"], (None,),
        {}, {"x": 1}, {1: None}, object(), assay.SVD, np.zeros(3), np.float32(2), torch.zeros(2, 2),
        Path("no such place"), iter(()),
    ]  # fmt: skip


def _nested(chance: random.Random) -> Any:
    """A list or table of what somebody might give by mistake."""
    items = chance.choices(plain_values(), k=chance.randint(1, 3))
    return chance.choice([items, tuple(items), [items], dict.fromkeys("ab", items), {"a": items[0]}])


def calls(folder: Path) -> list[Call]:
    """A right call of everything public, on subjects and tasks that are small."""
    subject = assay.load("dyck-20-10")
    task = Dyck(training_sentences=60)
    train = task.split("train", 30)
    engine = Engine(subject)
    samples = collect(engine, train, ("queries", "keys")).at(engine.site("layer0.head0"))
    values = collect(engine, train, ()).at(engine.site("layer0.mlp"))
    adder, numbers = assay.load("max-of-4"), InputSet(4, 64, within=1)
    certificate = assay.certify(adder, strategy="cubic")
    certificate.save(folder / "certificate.json")
    comparison = assay.compare(subject, task, [assay.SVD(rank=2)], controls=False, sequences=6, fit_sequences=30,
                               resamples=10, folder=folder / "run", refit=False)  # fmt: skip
    fitted = assay.SVD(rank=2).fit(samples)
    saved = fitted.apply(subject)
    saved.save(folder / "proxy")
    autoencoder = assay.SparseAutoencoder(k=2, features=8, steps=2, batch=8).fit(values)
    dictionary = next(iter(autoencoder.dictionaries_.values()))[0]  # type: ignore[union-attr]
    dictionary.save(folder / "dictionary")
    vectors = torch.zeros(2, dictionary.width)
    circuit = assay.Circuit(edges=["embeddings -> logits"])
    circuit.apply(subject)
    circuit.write(folder / "circuit.json")
    lines = ["one two three", "four five six", "seven eight nine", "ten eleven twelve"]
    tokenizer = subject.tokenizer
    assert tokenizer is not None
    text = Text(tokenizer, None, ["(0 0)", "(1 1)"], {"other": ["(2 2)"]})
    pairs = {"iid": [Pair((1, 2, 3), (1, 4, 3), 5, (6,))]}
    code = Code.from_data(_functions(folder), "python")
    function = next(iter(code.functions("iid")))
    small = {"sequences": 4, "fit_sequences": 30, "resamples": 10, "controls": False, "refit": False}
    one = {"subject": subject, "task": task, "simplifications": [assay.SVD(rank=2)], **small}
    recipes: list[tuple[type, dict[str, Any]]] = [
        (assay.SVD, {"rank": 2}),
        (assay.KMeans, {"clusters": 2}),
        (assay.InteractionBasis, {"features": 2}),
        (assay.RandomProjection, {"rank": 2}),
        (assay.RandomPerturbation, {"of": assay.SVD(rank=2)}),
        (assay.OneHotAttention, {}),
        (assay.UniformAttention, {}),
        (assay.MeanAblation, {}),
        (assay.Identity, {}),
        (assay.NGram, {"order": 2}),
        (assay.OtherModel, {"model": "dyck-20-10"}),
        (assay.PruneWeights, {"share": 0.5}),
        (assay.RoundWeights, {"bits": 8}),
        (assay.LowRankWeights, {"rank": 2}),
        (assay.RuleSurrogate, {}),
        (assay.SparseAutoencoder, {"k": 2, "features": 8, "steps": 2, "batch": 8}),
        (assay.Transcoder, {"k": 2, "features": 8, "steps": 2, "batch": 8}),
        (assay.RandomDictionary, {"k": 2, "features": 8}),
        (assay.GivenDictionary, {"dictionary": dictionary, "site": "layer0.mlp"}),
        (assay.Replacement, {"parts": [assay.GivenDictionary(dictionary, site="layer0.mlp")]}),
        (assay.Circuit, {"edges": 3}),
        (RandomCircuit, {"of": assay.Circuit(edges=3)}),
        (AllAblated, {}),
    ]
    plain: list[tuple[str, Callable[..., Any], dict[str, Any]]] = [
        ("load", assay.load, {"name": "max-of-4"}),
        ("compare", assay.compare, one),
        ("certify", assay.certify, {"subject": adder, "strategy": "cubic", "inputs": numbers}),
        ("load_proxy", assay.load_proxy, {"folder": folder / "proxy", "subject": subject}),
        ("Workers", assay.Workers, {"jobs": 2}),
        ("Subject", Subject, {"model": subject.model, "tokenizer": tokenizer, "name": "it"}),
        ("Subject.to", subject.to, {"device": "cpu"}),
        ("Subject.shuffled_copy", subject.shuffled_copy, {}),
        ("Certificate.verify", certificate.verify, {"subject": adder}),
        ("Certificate.save", certificate.save, {"path": folder / "again.json"}),
        ("Certificate.load", assay.Certificate.load, {"path": folder / "certificate.json"}),
        ("Comparison.fitted", comparison.fitted, {"proxy": "SVD(rank=2)", "site": "all"}),
        ("Comparison.gaps", comparison.gaps, {}),
        ("Comparison.agreement", comparison.agreement, {}),
        ("Comparison.verdicts", comparison.verdicts, {}),
        ("Comparison.detectable", comparison.detectable, {}),
        ("Comparison.report", comparison.report, {"path": folder / "page.html"}),
        ("Comparison.save", comparison.save, {"folder": folder / "saved"}),
        ("Comparison.load", assay.Comparison.load, {"folder": folder / "run"}),
        ("Circuit.read", assay.Circuit.read, {"path": folder / "circuit.json"}),
        ("Circuit.write", circuit.write, {"path": folder / "written.json"}),
        ("Dictionary.read", assay.Dictionary.read, {"path": folder / "dictionary", "site": "layer0.mlp"}),
        ("Dictionary.save", dictionary.save, {"folder": folder / "dictionary again"}),
        ("Dictionary.encode", dictionary.encode, {"vectors": vectors}),
        ("Dictionary.decode", dictionary.decode, {"codes": dictionary.encode(vectors)}),
        ("Dictionary.reconstruct", dictionary.reconstruct, {"vectors": vectors}),
        ("Dyck", Dyck, {"training_sentences": 60}),
        ("Dyck.split", task.split, {"name": "iid", "sequences": 3}),
        ("Dyck.read_sentence", task.read_sentence, {"text": "(0 0)"}),
        ("MaxOfK", MaxOfK, {}),
        ("MaxOfK.split", MaxOfK().split, {"name": "iid", "sequences": 3}),
        ("InputSet", InputSet, {"length": 4, "vocabulary": 64}),
        ("Text", Text, {"tokenizer": tokenizer, "train": None, "iid": lines, "shifts": {}}),
        ("Text.split", text.split, {"name": "iid", "sequences": 2}),
        ("Pairs", Pairs, {"pairs": pairs}),
        ("Pairs.split", Pairs(pairs).split, {"name": "iid", "sequences": 1}),
        ("Pairs.read", Pairs.read, {"path": folder / "none.jsonl"}),
        ("Pairs.of", Pairs.of, {"rows": [{"clean": [1, 2], "counterfactual": [3, 2], "answer": 1, "foil": 2}]}),
        ("Code.from_data", Code.from_data, {"data": folder / "functions", "language": "python"}),
        ("Code.split", code.split, {"name": "iid", "sequences": 2}),
        ("Code.read_function", code.read_function, {"text": function.text, "language": "python"}),
        ("Split", Split, {name: getattr(train, name) for name in ("name", "role", "description", "tokens", "lengths",
                                                                  "kinds", "features")}),
    ]  # fmt: skip
    for kind, arguments in recipes:
        made = kind(**arguments)
        plain.append((kind.__name__, kind, arguments))
        plain.append((f"{kind.__name__}.fit", made.fit, {"samples": samples}))
        plain.append((f"{kind.__name__}.apply", made.apply, {"subject": subject}))
    plain.append(("SVD.apply, fitted", fitted.apply, {"subject": subject}))
    return [Call(name, function, arguments) for name, function, arguments in plain]


ROOMS = ("circuits", "diagnostics", "dictionaries", "models", "proofs", "subjects", "tasks", "testing")
"""Rooms with functions that people call."""


def others() -> list[Call]:
    """The public functions of rooms; what would be right to give them is left open."""
    found = []
    for room in ROOMS:
        module = getattr(assay, room)
        for name in module.__all__:
            function = getattr(module, name)
            if inspect.isfunction(function) and (parameters := inspect.signature(function).parameters):
                if "make" in parameters:  # calls what it is given, and raises what that raises
                    continue
                needed = [key for key, item in parameters.items() if item.default is inspect.Parameter.empty]
                found.append(Call(f"{room}.{name}", function, dict.fromkeys(needed or [next(iter(parameters))])))
    return found


def _functions(folder: Path) -> Path:
    """A folder of program text that the task of functions can be made of."""
    place = folder / "functions"
    for number in range(40):
        path = place / f"package{number}" / "module.py"
        path.parent.mkdir(parents=True)
        text = f"def f{number}(a, b):\n    if a[{number}]:\n        return [a, (b, {number})]\n    return b[a[1]]\n"
        path.write_text(text, encoding="utf-8")
    return place


def attempt(call: Call, parameters: Sequence[str], value: Any) -> str:
    """What went wrong as parameters were replaced; nothing, if it was accepted or refused as it should be."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call.function(**{**call.arguments, **dict.fromkeys(parameters, value)})
    except AssayError:
        return ""
    except Exception as error:  # what must not be
        said = " ".join(str(error).split())[:120]
        return f"{call.name}({', '.join(parameters)}={in_short(value)}): {type(error).__name__}: {said}"
    return ""


def run(seed: int, minutes: float, say: Callable[[str], None]) -> list[Tried]:
    """Replace arguments for so many minutes, at least by every plain value once, or until it is interrupted."""
    chance, tally = random.Random(seed), Tally()
    end = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as name:
        known = [(call, [parameter]) for call in calls(Path(name)) for parameter in call.parameters()]
        known += [(call, list(call.arguments)) for call in others()]
        plain, number = len(plain_values()), 0
        with contextlib.suppress(KeyboardInterrupt), contextlib.chdir(name):
            while number < plain or time.monotonic() < end:
                for call, parameters in known:
                    # Made anew each time: an iterator would be used up.
                    value = plain_values()[number] if number < plain else _nested(chance)
                    tally.count(call.name.partition(".")[0], attempt(call, parameters, value))
                say(str(tally))
                number += 1
    return tally.rows()

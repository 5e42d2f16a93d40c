"""What tests share: subjects, and what they compute when nothing is edited."""

import copy
import hashlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from assay._errors import AssayError
from assay.engine import Engine, Named, Proxy, collect
from assay.faithfulness import CleanPass
from assay.simplify import Simplification, applied, reads
from assay.subjects import Pooling, Subject, load
from assay.tasks import Objective, Split, Task, bound

_Key = tuple[object, ...]


class Session:
    """Subjects and their clean passes, kept for as long as the session lives.

    `memory` is how many bytes of clean passes are kept at most; those used least recently go first. `device` is where
    `load` puts a subject, and `sequences` how many of each split of a task `assert_faithful` judges, where they do not
    say; None leaves that to them. A subject whose
    weights have changed, or that got a hook, counts as another one. In a test file the fixture `assay_session` is one,
    shared by all tests of a pytest run:

        def test_rank_8_explains_my_model(assay_session):
            subject = assay_session.load("./my-model")
            task = assay.tasks.Text(subject.tokenizer, train="train.txt", iid="iid.txt", shifts={"code": "code.txt"})
            proxy = assay_session.proxy(subject, assay.SVD(rank=8), task)
            assert_faithful(subject, proxy, task, session=assay_session)
    """

    def __init__(self, memory: int = 1_000_000_000, *, device: str = "cpu", sequences: int | None = None) -> None:
        if memory < 0:
            raise AssayError(f"Session(memory={memory}): must be a number of bytes, 0 to keep no passes.")
        if sequences is not None and sequences < 2:
            raise AssayError(f"Session(sequences={sequences}): must be at least 2.")
        self.device = device
        self.sequences = sequences
        self._passes = _Passes(memory)
        self._subjects: dict[_Key, Subject] = {}
        self._engines: dict[_Key, Engine] = {}
        self._bases: list[object] = []

    def load(
        self,
        name: str | Path,
        *,
        seed: int | None = None,
        device: str | None = None,
        dtype: torch.dtype | None = None,
        objective: Objective | None = None,
        pooling: Pooling | None = None,
        prompt: str | None = None,
        allow_pickle: bool = False,
        trust_remote_code: bool = False,
        base: Subject | str | Path | None = None,
        sharded: bool = False,
    ) -> Subject:
        """`assay.load`, once for the same arguments: every test gets the same subject."""
        options: dict[str, Any] = {
            "seed": seed, "device": device or self.device, "dtype": dtype, "objective": objective, "pooling": pooling,
            "prompt": prompt, "allow_pickle": allow_pickle, "trust_remote_code": trust_remote_code, "base": base,
            "sharded": sharded,
        }  # fmt: skip
        of_base = id(base) if isinstance(base, Subject) else str(base)
        key = (str(name), *{**options, "seed": seed or 0, "base": of_base}.values())
        if key not in self._subjects:
            self._subjects[key] = load(name, **options)
            self._bases.append(base)  # while it is kept, no other one has its id
        return self._subjects[key]

    def proxy(
        self,
        subject: Subject,
        simplification: Simplification,
        train: Task | Split,
        *,
        site: Named = "all",
        sequences: int = 1_000,
    ) -> Proxy:
        """The subject simplified at a site, as `assay.compare` makes it: fitted on the train split.

        `train` is a task, whose train split is taken, or a split; its first `sequences` sequences are used. Raises
        AssayError if the subject has no such site, or the simplification cannot be fitted or gives no proxy of it.
        """
        engine = self.engine(subject)
        where = engine.site(site)
        task = bound(train, subject.tokenizer)
        split: Split = task.first(sequences) if isinstance(task, Split) else task.split(task.split_names[0], sequences)
        samples = collect(engine, split, reads(simplification, where))
        return applied(copy.deepcopy(simplification).fit(samples.at(where)), subject)

    def engine(self, subject: Subject) -> Engine:
        """An engine of the subject as it is now."""
        hashes = (subject.weights_sha256, subject.config_sha256)
        key = (id(subject.model), *hashes, subject.alterations, str(subject.device))
        if key not in self._engines:
            self._engines[key] = Engine(subject)
        return self._engines[key]

    def clean_pass(self, engine: Engine, tokens: Tensor, valid: Tensor, *, attention: bool = True) -> CleanPass:
        """The pass of an engine of this session on a batch, kept for the next proxy."""
        digest = hashlib.sha256()
        for tensor in (tokens, valid):
            digest.update(repr(tuple(tensor.shape)).encode() + tensor.cpu().numpy().tobytes())
        key = (id(engine), digest.digest(), attention)
        return self._passes.get(key) or self._passes.put(key, CleanPass(engine, tokens, valid, attention=attention))

    def clear(self) -> None:
        """Forget everything."""
        self._subjects.clear()
        self._engines.clear()
        self._bases.clear()
        self._passes.clear()


class _Passes:
    """Clean passes by key, at most `memory` bytes of them."""

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.used = 0
        self._runs: OrderedDict[_Key, tuple[CleanPass, int]] = OrderedDict()

    def get(self, key: _Key) -> CleanPass | None:
        if key not in self._runs:
            return None
        self._runs.move_to_end(key)
        return self._runs[key][0]

    def put(self, key: _Key, run: CleanPass) -> CleanPass:
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in run.tensors()}
        size = sum(storage.nbytes() for storage in storages.values())
        if size > self.memory:
            return run
        self._runs[key] = (run, size)
        self.used += size
        while self.used > self.memory:
            _, (_, freed) = self._runs.popitem(last=False)
            self.used -= freed
        return run

    def clear(self) -> None:
        self._runs.clear()
        self.used = 0

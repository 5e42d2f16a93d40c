"""What tests share: subjects, and what they compute when nothing is edited."""

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from assay._errors import AssayError
from assay.engine import Engine, Proxy, Run, collect
from assay.simplify import Simplification
from assay.subjects import Subject, load
from assay.tasks import Split, Task

_Key = tuple[object, ...]


class Session:
    """Subjects and their clean passes, kept for as long as the session lives.

    `memory` is how many bytes of clean passes are kept at most; those used least recently go first. A subject whose
    weights have changed counts as another one. In a test file the fixture `assay_session` is one, shared by all tests
    of a pytest run:

        def test_rank_8_explains_my_model(assay_session):
            subject = assay_session.load("./my-model")
            task = assay.tasks.Text(subject.tokenizer, train="train.txt", iid="iid.txt", shifts={"code": "code.txt"})
            proxy = assay_session.proxy(subject, assay.SVD(rank=8), task)
            assert_faithful(subject, proxy, task, session=assay_session)
    """

    def __init__(self, memory: int = 1_000_000_000) -> None:
        if memory < 0:
            raise AssayError(f"Session(memory={memory}): must be a number of bytes, 0 to keep no passes.")
        self._passes = _Passes(memory)
        self._subjects: dict[_Key, Subject] = {}
        self._engines: dict[_Key, Engine] = {}

    def load(
        self, name: str | Path, *, seed: int = 0, device: str = "cpu", dtype: torch.dtype | None = None
    ) -> Subject:
        """`assay.load`, once for the same arguments: every test gets the same subject."""
        key = (str(name), seed, device, dtype)
        if key not in self._subjects:
            self._subjects[key] = load(name, seed=seed, device=device, dtype=dtype)
        return self._subjects[key]

    def proxy(
        self,
        subject: Subject,
        simplification: Simplification,
        train: Task | Split,
        *,
        site: str = "all",
        sequences: int = 1_000,
    ) -> Proxy:
        """The subject simplified at a site, as `assay.compare` makes it: fitted on the train split.

        `train` is a task, whose train split is taken, or a split; its first `sequences` sequences are used. Raises
        AssayError if the subject has no such site or the simplification cannot be fitted.
        """
        engine = self.engine(subject)
        heads = engine.sites(site)
        split = train.first(sequences) if isinstance(train, Split) else train.split(train.split_names[0], sequences)
        samples = collect(engine, split, simplification.streams)
        return copy.deepcopy(simplification).fit(samples.at(heads)).apply(subject)

    def engine(self, subject: Subject) -> Engine:
        """An engine of the subject, as it is now, that remembers its clean passes."""
        key = (id(subject.model), subject.weights_sha256, subject.config_sha256, str(subject.device))
        if key not in self._engines:
            self._engines[key] = _Remembering(subject, self._passes, key)
        return self._engines[key]

    def clear(self) -> None:
        """Forget everything."""
        self._subjects.clear()
        self._engines.clear()
        self._passes.clear()


class _Passes:
    """Runs by key, at most `memory` bytes of them."""

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.used = 0
        self._runs: OrderedDict[_Key, tuple[Run, int]] = OrderedDict()

    def get(self, key: _Key) -> Run | None:
        if key not in self._runs:
            return None
        self._runs.move_to_end(key)
        return self._runs[key][0]

    def put(self, key: _Key, run: Run) -> None:
        size = sum(tensor.untyped_storage().nbytes() for tensor in _tensors(run))
        if size > self.memory:
            return
        self._runs[key] = (run, size)
        self.used += size
        while self.used > self.memory:
            _, (_, freed) = self._runs.popitem(last=False)
            self.used -= freed

    def clear(self) -> None:
        self._runs.clear()
        self.used = 0


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors within, each storage once."""
    seen: set[int] = set()
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, Tensor):
            if item.untyped_storage().data_ptr() not in seen:
                seen.add(item.untyped_storage().data_ptr())
                yield item
        elif isinstance(item, Run):
            left += [getattr(item, part.name) for part in fields(item)]
        elif isinstance(item, dict):
            left += item.values()
        elif isinstance(item, tuple | list):
            left += item


class _Remembering(Engine):
    """An engine that does not repeat a pass in which nothing is edited."""

    def __init__(self, subject: Subject, passes: _Passes, key: _Key) -> None:
        super().__init__(subject)
        self._passes = passes
        self._key = key

    def run(self, tokens: Tensor, valid: Tensor | None = None, **options: Any) -> Run:
        """As of any engine; a run that only reads is kept."""
        if set(options) - {"read"}:
            return super().run(tokens, valid, **options)
        digest = hashlib.sha256()
        for tensor in (tokens, valid):
            if tensor is not None:
                digest.update(repr(tuple(tensor.shape)).encode() + tensor.cpu().numpy().tobytes())
        key = (*self._key, digest.digest(), tuple(options.get("read", ())))
        found = self._passes.get(key)
        if found is None:
            found = super().run(tokens, valid, **options)
            self._passes.put(key, found)
        return found

"""Fitted recipes that are worth keeping: a dictionary takes minutes to train, and is asked about again."""

from pathlib import Path

from assay._errors import AssayError
from assay._files import safe_name
from assay.faithfulness._cells import Candidate
from assay.simplify import SavedProxy, Simplification, applied, load_proxy, remove_proxy
from assay.subjects import Subject

FITTED = "fitted"
"""The folder of a run that they are kept in, each a saved proxy (`assay.load_proxy`)."""


class Fits:
    """Fitted recipes of classes that say `keeps`, by a hash of all that made them; without a folder in memory."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._memory: dict[str, Simplification] = {}

    def find(self, item: Candidate, digest: str, subject: Subject) -> Simplification | None:
        """What was fitted before, in this run or one that was stopped; None if nothing was, or it was damaged."""
        if digest in self._memory or self.folder is None or not self.path(item, digest).exists():
            return self._memory.get(digest)
        try:
            found: Simplification = load_proxy(self.path(item, digest), subject).simplification
        except AssayError:
            return None
        self._memory[digest] = found
        return found

    def keep(self, item: Candidate, digest: str, subject: Subject, fitted: Simplification) -> None:
        """Keep what was fitted, if its class says so."""
        if not getattr(fitted, "keeps", False):
            return
        self._memory[digest] = fitted
        proxy = applied(fitted, subject)
        if self.folder is not None and isinstance(proxy, SavedProxy):
            remove_proxy(self.path(item, digest))  # a run that was stopped may have left a part of it
            proxy.save(self.path(item, digest))

    def path(self, item: Candidate, digest: str) -> Path:
        """Where it is kept: named for a reader, and told apart by the hash."""
        return (self.folder or Path()) / f"{safe_name(f'{item.name} {item.site}')}-{digest[:12]}"

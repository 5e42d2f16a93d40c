"""Pictures of single examples that a study adds to a comparison: data here, drawing elsewhere."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from assay._errors import AssayError, in_line
from assay._files import inside, read_bytes, write_atomically

ILLUSTRATIONS = "illustrations.json"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KeyCloud(_Model):
    """Keys of one head in their first two components, by split: `points[split]` are (first, second, colour value)."""

    site: str
    colour: str
    """What the colour value is, in words."""
    boundary: int | None
    """The largest colour value seen in training."""
    points: dict[str, list[tuple[float, float, int]]]


class SentenceView(_Model):
    """The attention of subject and proxy on one sequence, and what each predicts.

    Patterns are (query, key). `predictions` lists the scored positions that have an answer: position of the query,
    the right token, the subject's and the proxy's.
    """

    title: str
    site: str
    proxy: str
    tokens: list[str]
    subject_pattern: list[list[float]]
    proxy_pattern: list[list[float]]
    predictions: list[tuple[int, str, str, str]]


class TextView(_Model):
    """A text whose characters are coloured by how far a proxy departs from its subject when it predicts them.

    Each entry belongs to one character of `characters`: `divergence` of the two next-character distributions (JSD in
    nats, at most ln 2), and what `subject` and `proxy_says` predicted in its place; None where nothing was predicted.
    """

    title: str
    site: str
    proxy: str
    characters: list[str]
    divergence: list[float | None]
    subject: list[str | None]
    proxy_says: list[str | None]


class FeatureText(_Model):
    """A piece of text whose tokens are coloured by the activation of a feature, 0 where it is off."""

    tokens: list[str]
    activations: list[float]


class FeatureSide(_Model):
    """Where a feature is most active on a split; `note` says in words how much it is used there."""

    split: str
    note: str
    texts: list[FeatureText]


class FeatureView(_Model):
    """A feature of a dictionary, by the texts that it is most active in: its splits stand side by side.

    `why` says in words what it was picked for.
    """

    site: str
    dictionary: str
    feature: int
    why: str
    sides: list[FeatureSide]


class TableView(_Model):
    """A table of its own: cells are a text and a smaller one below it (an interval), the first column is a name.

    With `quiet`, it is left out of the terminal.
    """

    title: str
    note: str
    headings: list[str]
    rows: list[list[tuple[str, str]]]
    quiet: bool = False


class Series(_Model):
    """Points of a chart with limits; None where there is nothing.

    Series of one name share a colour, those of one variant a marker, those of one panel the axes that have it as title.
    A `band` is drawn between its limits, with a line at y and no points: its name says what the limits are.
    """

    name: str
    variant: str = ""
    panel: str = ""
    band: bool = False
    x: list[float]
    y: list[float | None]
    low: list[float | None]
    high: list[float | None]


class Chart(_Model):
    """A figure of its own, a panel beside another. With `names`, x counts them and points stand apart; without, they
    are joined by lines."""

    name: str
    caption: str
    x_label: str
    y_label: str
    names: list[str] | None
    series: list[Series]
    logarithmic: bool = False


class CircuitEdge(_Model):
    """An edge of a drawn circuit: `where` it was found, and its score (None: not known), which gives its width."""

    sender: str
    receiver: str
    where: Literal["both", "in distribution", "under the shift"] = "both"
    score: float | None = None


class CircuitView(_Model):
    """A circuit to draw, in a graph of so many layers, heads and groups."""

    name: str
    caption: str
    layers: int
    heads: int
    groups: int
    parallel: bool
    edges: list[CircuitEdge]


class GraphNode(_Model):
    """A node of a drawn attribution graph; `text` is written beside it. Layers count from 0."""

    kind: Literal["feature", "error", "embedding", "target"]
    layer: int
    position: int
    text: str


class GraphEdge(_Model):
    """What one node of a drawn graph adds to another, by their numbers; its share of all influence is its width."""

    source: int
    target: int
    weight: float
    share: float


class GraphView(_Model):
    """An attribution graph to draw: its nodes over the tokens of a prompt, in so many layers."""

    name: str
    caption: str
    layers: int
    tokens: list[str]
    nodes: list[GraphNode]
    edges: list[GraphEdge]


class HeatView(_Model):
    """A number for every head, (layer, column)."""

    name: str
    caption: str
    unit: str
    x_label: str
    columns: list[str]
    values: list[list[float]]


class Illustrations(_Model):
    """All pictures of one run."""

    keys: list[KeyCloud] = []
    sentences: list[SentenceView] = []
    texts: list[TextView] = []
    features: list[FeatureView] = []
    tables: list[TableView] = []
    charts: list[Chart] = []
    circuits: list[CircuitView] = []
    heats: list[HeatView] = []

    @classmethod
    def joined(cls, parts: Sequence["Illustrations"]) -> "Illustrations":
        """Those of several runs, one after the other."""
        return cls(**{name: [view for part in parts for view in getattr(part, name)] for name in cls.model_fields})

    def save(self, folder: Path) -> None:
        """Write illustrations.json."""
        text = self.model_dump_json()
        write_atomically(folder / ILLUSTRATIONS, lambda path: path.write_text(text, encoding="utf-8"))

    @classmethod
    def load(cls, folder: Path) -> "Illustrations":
        """Read illustrations.json; none if the folder has none. Raises AssayError if it is damaged."""
        path = folder / ILLUSTRATIONS
        if not path.exists():
            return cls()
        try:
            return cls.model_validate_json(read_bytes(inside(folder, ILLUSTRATIONS)))
        except (ValidationError, OSError) as error:
            why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else in_line(error)
            raise AssayError(f"{str(path)!r} is damaged ({why}); run it again.") from None

from pydantic import BaseModel, ConfigDict


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Relaxation(_Record):
    """A set of inputs that is easy to count and holds every wrong input of a cell that some of `outputs` cause."""

    outputs: list[tuple[int, int]]
    shifts: list[int]
    step: int
    tops: list[int]
    count: int


class Piece(_Record):
    last: int
    maximum: int
    second: int | None
    relaxations: list[Relaxation]
    wrong: int

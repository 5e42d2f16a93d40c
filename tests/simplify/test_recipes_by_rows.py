"""Recipes that take their vectors as rows: judged, controlled and saved as others are, with nothing held for them."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch

import assay
from assay.engine import Edit, collect
from assay.simplify import RandomPerturbation, applied, reads
from assay.simplify._protocol import proxy_of
from assay.testing import check_simplification

PAIR = ("mlp_input", "mlp")


@dataclass
class LinearMap:
    """The least-squares map from what enters an MLP, and a constant, to what it gives."""

    ridge: float = 1e-6
    maps_: dict | None = field(default=None, init=False, repr=False, compare=False)

    streams: ClassVar[tuple[str, ...]] = PAIR
    any_stream: ClassVar[bool] = True
    streams_rows: ClassVar[bool] = True

    def fit(self, samples):
        self.maps_ = {}
        for place in samples.places:
            square, cross = 0, 0
            steps = -(-samples.count(place) // 16)
            for x, y in samples.rows(place, batch=16, steps=steps, streams=PAIR):
                wide = torch.nn.functional.pad(x.double(), (0, 1), value=1)
                square, cross = square + wide.T @ wide, cross + wide.T @ y.double()
            self.maps_[place] = torch.linalg.solve(square + self.ridge * torch.eye(len(square)), cross)
        return self

    def apply(self, subject):
        def edit(place):
            found = self.maps_[place]
            return Edit(place, mlp_map=lambda x, y: torch.nn.functional.pad(x, (0, 1), value=1) @ found.to(x))

        return proxy_of(self, subject, tuple(self.maps_) if self.maps_ else None, edit)

    def control(self):
        return None


def test_it_keeps_the_contract():
    check_simplification(LinearMap, sites=["all.mlp", "layer1.mlp"])


@dataclass
class Forgetful(LinearMap):
    """Edits what enters the MLP in place of what it gives."""

    def apply(self, subject):
        return proxy_of(self, subject, tuple(self.maps_ or ()) or None, lambda place: Edit(place, mlp_input=torch.neg))


def test_a_recipe_that_edits_another_stream_is_found_out():
    with pytest.raises(AssertionError, match=r"mlp of layer1 is not edited"):
        check_simplification(Forgetful, sites=["layer1.mlp"])


@pytest.mark.parametrize("largest", [None, 20_000])
def test_rows_lead_to_the_least_squares_map(engine, task, largest):
    """As all vectors together give it, one at a time or through a buffer (which visits some more often)."""
    split, site = task.split("train", 60), engine.site("layer1.mlp")
    both = collect(engine, split, PAIR)
    x, y = (getattr(both, name)[site.places[0]].double() for name in PAIR)
    wide = torch.nn.functional.pad(x, (0, 1), value=1)
    expected = torch.linalg.lstsq(wide, y).solution
    options = {} if largest is None else {"largest": largest}
    fitted = LinearMap().fit(collect(engine, split, (), **options).at(site))
    off = (wide @ fitted.maps_[site.places[0]] - wide @ expected).square().mean() / y.square().mean()
    assert off < (1e-3 if largest is None else 0.05)


def test_nothing_is_held_for_it(engine):
    site = engine.site("layer1.mlp")
    assert reads(LinearMap(), site) == reads(RandomPerturbation(LinearMap()), site) == ()
    assert reads(assay.SVD(rank=2), site) == ("mlp",)
    assert reads(assay.SVD(rank=2), engine.site("all")) == ("queries", "keys")


def test_it_is_compared_with_others_at_one_site(subject, task):
    """Beside a recipe whose vectors are held, and with the control that changes as much at random."""
    options = {"sequences": 10, "fit_sequences": 20, "resamples": 20, "refit": False}
    comparison = assay.compare(subject, task, [LinearMap(), assay.SVD(rank=8)], sites=["layer1.mlp"], **options)
    frame = comparison.to_frame()
    found = frame[(frame["metric"] == "same_prediction") & (frame["split"] == "iid")].groupby("proxy")["estimate"].max()
    assert {"LinearMap()", "RandomPerturbation(of=LinearMap())", "SVD(rank=8)"} <= set(found.index)
    assert found.between(0, 1).all()
    assert [verdict.proxy for verdict in comparison.verdicts()] == ["LinearMap()", "SVD(rank=8)"]


def test_the_control_of_equal_size_moves_what_the_mlp_gives_as_far(engine, task):
    site = engine.site("layer1.mlp")
    samples = collect(engine, task.split("train", 40), ()).at(site)
    fitted = LinearMap(ridge=1e3).fit(samples)
    ours, random = (applied(recipe.fit(samples), engine.subject) for recipe in (fitted, RandomPerturbation(fitted)))
    tokens = torch.from_numpy(task.split("iid", 6).tokens)
    given, moved, at_random = (
        engine.run(tokens, edits=edits, read=("mlp",)).mlp[1] for edits in ((), ours.edits, random.edits)
    )
    far, as_far = ((other - given).norm(dim=-1) for other in (moved, at_random))
    torch.testing.assert_close(as_far, far, atol=1e-6, rtol=1e-3)
    assert bool((far > 1e-3).all())
    assert bool(((moved - at_random).norm(dim=-1) > far / 2).all())


def test_a_map_of_an_mlp_is_saved(engine, task, tmp_path):
    samples = collect(engine, task.split("train", 40), ()).at(engine.site("layer1.mlp"))
    proxy = applied(LinearMap().fit(samples), engine.subject)
    tokens = torch.from_numpy(task.split("iid", 6).tokens)
    found = assay.load_proxy(proxy.save(tmp_path / "map"), engine.subject, simplification=LinearMap)
    assert torch.equal(found(tokens), proxy(tokens))

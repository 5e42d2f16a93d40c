"""Mean ablation: every vector becomes the mean of the train split."""

import pytest
import torch

from assay.engine import collect
from assay.simplify import MeanAblation


@pytest.mark.parametrize("site", ["layer1.mlp", "layer0.head0.values"])
def test_every_vector_becomes_the_mean_of_the_train_split(engine, task, site):
    where = engine.site(site)
    samples = collect(engine, task.split("train", 60), where.read).at(where)
    (place,) = samples.places
    (stream,) = samples.streams_of(place)
    (vectors,) = samples.of(place)
    (edit,) = MeanAblation().fit(samples).apply(engine.subject).edits
    found = getattr(edit, stream)(torch.randn(2, 5, vectors.shape[1]))
    expected = torch.from_numpy(vectors.double().numpy().mean(axis=0)).float()
    assert len(vectors) > 100
    torch.testing.assert_close(found, expected.expand(2, 5, -1), atol=1e-5, rtol=1e-5)

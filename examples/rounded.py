"""A simplification of one's own: every number of a vector is rounded to one of a few values."""

import torch

import assay
from assay.engine import Edit
from assay.simplify import SimplifiedSubject


class Rounded:
    """Round every number of queries and keys, or of another stream, to `levels` values between the extremes seen."""

    streams = ("queries", "keys")  # what fit needs to see of each head
    any_stream = True  # it may be used at sites that name other streams, such as layer1.mlp

    def __init__(self, levels: int = 4) -> None:
        self.levels = levels
        self.ranges_ = None

    def fit(self, samples):
        """Note the smallest and the largest value of every coordinate, at each place and stream of the site."""
        self.ranges_ = {
            place: {
                stream: torch.stack((vectors.amin(dim=0), vectors.amax(dim=0)))
                for stream, vectors in zip(samples.streams_of(place), samples.of(place), strict=True)
            }
            for place in samples.places
        }
        return self

    def apply(self, subject):
        """The subject with rounded vectors at the fitted places."""
        if self.ranges_ is None:
            raise assay.AssayError("Rounded has not been fitted; call fit(samples) before apply(subject).")
        edits = [
            Edit(place, **{stream: self._rounding(*extremes) for stream, extremes in found.items()})
            for place, found in self.ranges_.items()
        ]
        return SimplifiedSubject(subject, edits, self)

    def _rounding(self, low, high):
        levels = self.levels

        def rounded(vectors):
            least, most = low.to(vectors), high.to(vectors)
            step = ((most - least) / max(1, levels - 1)).clamp(min=1e-12)
            return least + step * ((vectors - least) / step).round().clamp(0, levels - 1)

        return rounded

    def control(self):
        """What knows nothing of the vector: its mean."""
        return assay.MeanAblation()

"""A metric of one's own: is the proxy's prediction among the subject's three most likely tokens?"""


class AmongThree:
    """Is the proxy's prediction among the three tokens that the subject finds most likely? Rate in [0, 1]."""

    name = "among_three"
    unit = "rate"
    higher_is_better = True
    needs_answer = False  # it is defined where the context does not determine the right answer, too
    needs_attention = False  # it does not look at pair.attention, which then need not be computed
    description = "the proxy's prediction is among the subject's three most likely tokens"

    def __call__(self, pair):
        """1 where it is, else 0, at every position: (batch, position)."""
        most_likely = pair.subject.logits.topk(3, dim=-1).indices
        return (most_likely == pair.proxy.logits.argmax(dim=-1, keepdim=True)).any(dim=-1).double()

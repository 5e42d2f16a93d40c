"""The cubic proof: whole boxes of inputs, each shown to be answered correctly (arXiv 2406.11779, §4.2 and appendix).

A box fixes the last token q, the largest token m, the number c of smaller tokens at the free positions, and the set
those come from. The proof looks at pure sequences, in which all smaller tokens are the same t, at the two orders of
positions that give m the least and the most attention; a mixture is a convex combination of pure sequences
(docs/soundness.md, theorem 5). Where the source works with attention probabilities we multiply by the softmax
denominator, which decides the same sign.
"""

from math import comb

import numpy as np

from assay.proofs._certificate import Boxes
from assay.proofs._operations import Operations
from assay.proofs.attention._groups import PAD, Cell, cells, scaled
from assay.proofs.attention._tables import UNIT, Tables
from assay.tasks import InputSet


def cubic(tables: Tables, inputs: InputSet, operations: Operations) -> list[Boxes]:
    """For every group of `inputs`, the boxes of correct inputs that the cubic proof finds."""
    v, free = tables.vocabulary, tables.length - 1
    pad = PAD * tables.spread
    found: list[Boxes] = []
    by_maximum: dict[int, list[Cell]] = {}
    for cell in cells(inputs):
        by_maximum.setdefault(cell.maximum, []).append(cell)
    for maximum, group in by_maximum.items():
        lasts, tokens = [cell.last for cell in group], np.array(group[0].tokens)
        others = np.arange(v) != maximum
        EU = tables.EU[lasts] - tables.EU[lasts, maximum, None]
        EV = tables.EV[tokens] - tables.EV[tokens, maximum, None]
        PV = (tables.PV - tables.PV[:, maximum, None]).max(axis=0)
        operations.add(
            arithmetic=v * (len(lasts) + len(tokens) + tables.length + len(tokens)),
            comparisons=v * (len(lasts) + len(tokens) + tables.length),
        )
        output = EU[:, others].max(axis=1)
        value = (EV + PV)[:, others].max(axis=1)
        # The softmax numerator of one position: positional weight × gain, gain = token weight × logit difference.
        weight = scaled(tables.token, lasts, tokens)[0]
        gain = weight * (output[:, None] + value[None, :] + pad)
        size = weight * tables.spread
        position = scaled(tables.position, lasts, slice(None))[0]
        ordered = np.sort(position[:, :-1], axis=1)
        own = position[:, -1] * gain[np.arange(len(lasts)), np.searchsorted(tokens, lasts)]
        lowest = np.concatenate([np.zeros((len(lasts), 1)), np.cumsum(ordered, axis=1)], axis=1)
        everything = lowest[:, -1:]
        operations.add(arithmetic=len(lasts) * (2 * len(tokens) + 2 * free + 1), comparisons=len(lasts) * free * free)
        for row, cell in enumerate(group):
            masks = [0] * (free + 1)
            for smaller in cell.numbers_smaller:
                # Weight of the copies of the maximum: the free - smaller lightest positions, or the heaviest.
                light = lowest[row, free - smaller]
                heavy = everything[row, 0] - lowest[row, smaller]
                margin = np.maximum(
                    *(
                        own[row] + copies * gain[row, -1] + (everything[row, 0] - copies) * gain[row, :-1]
                        for copies in (light, heavy)
                    )
                )
                bound = 64 * (free + 8) * UNIT * (everything[row, 0] + 2) * size[row].max()
                operations.add(arithmetic=2 * (4 * (len(tokens) - 1) + 2), comparisons=2 * (len(tokens) - 1))
                good = margin + bound < 0
                if smaller == 0:
                    alone = own[row] + everything[row, 0] * gain[row, -1] + bound < 0
                    masks[0] = (1 << maximum) if alone else 0
                else:
                    masks[smaller] = sum(1 << int(token) for token in tokens[:-1][good])
            found.append(Boxes(last=cell.last, maximum=maximum, tokens=masks))
    return found


def correct_in_boxes(boxes: list[Boxes], inputs: InputSet) -> int:
    """How many inputs of the set the boxes hold."""
    by_group = {(box.last, box.maximum): box.tokens for box in boxes}
    total = 0
    for cell in cells(inputs):
        masks = by_group.get((cell.last, cell.maximum), [])
        total += sum(
            comb(cell.free, smaller) * mask.bit_count() ** smaller for smaller, mask in enumerate(masks) if mask
        )
    return total

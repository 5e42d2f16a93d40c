"""How many bits a copy of a model takes, so that recipes of different kinds can be drawn on one axis."""

import math
from dataclasses import dataclass

from assay._errors import AssayError
from assay._given import checked
from assay.models._low_rank import LowRankWeights
from assay.models._n_gram import NGram
from assay.models._prune import PruneWeights
from assay.models._round import RoundWeights
from assay.models._rule_surrogate import RuleSurrogate
from assay.models._weights import Linear, linears, removed
from assay.simplify import Simplification, label
from assay.subjects import Subject


@dataclass(frozen=True)
class WeightBits:
    """Bits of what a recipe keeps: in all, and by parameter.

    `parameters` counts the linear weights of the blocks, which are all that a recipe on weights changes and all that
    is counted; of an n-gram, the counts that it keeps; of rules, the nodes of the tree.
    """

    total: float
    per_weight: float
    parameters: int


@checked
def weight_bits(recipe: Simplification, subject: Subject, *, precision: int = 16) -> WeightBits:
    """The bits of a recipe's copy of a subject: of its linear weights, of a table of counts, or of rules.

    A number takes `precision` bits. For a matrix of n weights (out, in),

    | recipe | bits |
    |---|---|
    | RoundWeights | n · bits + groups · (precision, and bits for the zero point where it is not symmetric) |
    | PruneWeights | precision · kept + n · H(share that is gone), H the entropy of a choice in bits: which ones |
    | LowRankWeights | precision · rank · (out + in); precision · n where it stays as it is |
    | NGram | for every context of k tokens k · log2 V, for every token that followed it log2 V + precision |
    | RuleSurrogate | for a leaf 1 + log2 (tokens that are predicted), for another node 1 + log2 (tests there are) |

    A low rank is shorter than the weights themselves only below out · in / (out + in). Embeddings, norms, biases and
    the output head are not counted: they stay. An n-gram and rules have to be fitted;
    of rules, what they predict is counted, and not how often it was right. Raises AssayError for another recipe,
    for bad parameters and for a subject without linear weights in blocks.
    """
    if isinstance(recipe, NGram):
        counts = recipe.fitted_counts
        token = math.log2(counts.vocabulary)
        pairs = counts.contexts_and_entries
        entries = sum(entries for _, entries in pairs)
        total = sum(length * contexts * token for length, (contexts, _) in enumerate(pairs))
        total += entries * (token + precision)
        return WeightBits(total, total / entries, entries)
    if isinstance(recipe, RuleSurrogate):
        tree = recipe.fitted_tree
        nodes, leaves = len(tree.asked), tree.leaves
        total = nodes + leaves * math.log2(len(tree.classes)) + (nodes - leaves) * math.log2(max(1, tree.tests))
        return WeightBits(total, total / nodes, nodes)
    if not isinstance(recipe, RoundWeights | PruneWeights | LowRankWeights):
        raise AssayError(
            f"the bits of {label(recipe)} are not known; give RoundWeights, PruneWeights, LowRankWeights, "
            "NGram or RuleSurrogate."
        )
    recipe.check(subject, ())
    chosen = linears(subject)
    parameters = sum(math.prod(linear.shape) for linear in chosen)
    total = sum(_of_matrix(recipe, linear, precision) for linear in chosen)
    return WeightBits(total, total / parameters, parameters)


def _of_matrix(recipe: RoundWeights | PruneWeights | LowRankWeights, linear: Linear, precision: int) -> float:
    outputs, inputs = linear.shape
    weights = outputs * inputs
    match recipe:
        case RoundWeights(bits=bits, symmetric=symmetric):
            groups = weights // recipe.width_of_group(inputs)
            return float(weights * bits + groups * (precision + (0 if symmetric else bits)))
        case PruneWeights(share=share, by=by):
            lines, length = (1, weights) if by == "magnitude" else (outputs, inputs)
            gone = removed(share, length)
            return lines * (precision * (length - gone) + length * _entropy(gone / length))
        case LowRankWeights(rank=rank):
            whole = min(outputs, inputs) <= rank
            return float(precision * (weights if whole else rank * (outputs + inputs)))


def _entropy(share: float) -> float:
    """Bits of one choice between two that has this probability."""
    return -sum(part * math.log2(part) for part in (share, 1 - share) if part > 0)

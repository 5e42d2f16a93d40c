"""`certify`: from a subject and a strategy to a certificate."""

from assay.proofs._certificate import Certificate
from assay.proofs.attention import Proxy, certify_attention
from assay.simplify import Simplification
from assay.subjects import Subject
from assay.tasks import InputSet


def certify(
    subject: Subject,
    *,
    strategy: str = "separable",
    inputs: InputSet | None = None,
    against: Proxy | Simplification | None = None,
    grid: int = 1024,
    refine: int = 512,
    two_sided: bool = False,
) -> Certificate:
    """Prove how many inputs of a set a max-of-K subject answers correctly, over all of them.

    `strategy` is a name of `STRATEGIES`; `inputs` defaults to all sequences. `grid` is the number of steps to which
    "separable" rounds, `refine` how many of the heaviest groups it counts on that grid (the others on coarser ones):
    both make the bound tighter and the proof longer. With `two_sided`, "separable" also counts inputs that are surely
    wrong, which bounds accuracy from above; "exact" and "brute-force" bound from both sides always.

    With `against`, the certificate is about agreement: on how many inputs subject and proxy predict the same token,
    right or wrong. `against` is a `Proxy`, or a simplification as `compare` judges it: `SVD`, `RandomProjection`,
    `OneHotAttention` or `UniformAttention`. What is proved is what `simplification.apply(subject)` computes, with the
    fitted bases and means in the subject's precision taken as exact numbers; they are stored in the certificate. A
    simplification that has not been fitted is fitted (in a copy) on 1,000 sequences of the train split of
    `MaxOfK(length, vocabulary)`, as `compare` would. Other simplifications, whose scores are not a sum over token and
    position, are refused.

    The certified function is the one of real arithmetic with the subject's weights; a tie counts as wrong. The
    theorem behind each strategy is in docs/soundness.md. Raises AssayError for another architecture, an unknown
    strategy, an input set of other sizes, or weights for which the assumptions of the proofs do not hold.
    """
    return certify_attention(
        subject,
        strategy=strategy,
        inputs=inputs,
        against=against,
        grid=grid,
        refine=refine,
        two_sided=two_sided,
    )

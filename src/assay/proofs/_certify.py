"""`certify`: from a subject and a strategy to a certificate."""

from collections.abc import Mapping
from typing import Any, Literal

from assay._errors import AssayError
from assay._given import checked
from assay.proofs._certificate import Certificate
from assay.proofs.attention import Proxy, certify_attention
from assay.proofs.linear import certify_linear
from assay.simplify import Simplification
from assay.subjects import LinearMaxForCausalLM, Subject
from assay.tasks import InputSet

_DEFAULTS = {
    "grid": 1024, "refine": None, "search": 2**18, "two_sided": False, "width": 64, "top": 16, "remainder": "principal",
}  # fmt: skip
_USED_BY = {
    "separable": ("grid", "refine", "search", "two_sided"),
    "blocks": ("width", "top", "refine"),
    "subcubic-low-rank": ("remainder",),
}


@checked
def check_options(strategy: str, options: Mapping[str, Any]) -> None:
    """Raise AssayError for an option of `certify` that is not its default and that the strategy does not look at."""
    for name, value in options.items():
        if value != _DEFAULTS[name] and name not in _USED_BY.get(strategy, ()):
            users = ", ".join(repr(user) for user, names in _USED_BY.items() if name in names)
            raise AssayError(f"certify({name}={value!r}): strategy {strategy!r} has no such option; it is of {users}.")


@checked
def certify(
    subject: Subject,
    *,
    strategy: str | None = None,
    quantity: Literal["accuracy", "loss"] = "accuracy",
    inputs: InputSet | None = None,
    against: Proxy | Simplification | None = None,
    grid: int = 1024,
    refine: int | None = None,
    search: int = 2**18,
    two_sided: bool = False,
    width: int = 64,
    top: int = 16,
    remainder: str = "principal",
) -> Certificate:
    """Prove how many inputs of a set a max-of-K subject answers correctly, or its mean loss over them.

    `inputs` defaults to all sequences. For attention models `strategy` is a name of `STRATEGIES`, by default
    "separable"; `grid` is the number of steps to which this rounds, `refine` (512 by default) how many of the heaviest
    groups it counts on that grid (the others on coarser ones), or searches if they have at most `search` inputs (all
    groups of the shipped models with K = 4 are as small; not against proxies other than `OneHotAttention`): all make
    the bound tighter and the proof longer. With `two_sided`, "separable" also counts inputs that are surely wrong,
    which bounds accuracy from above. "subcubic-low-rank" takes token scores to be of rank 1; `remainder` says how what
    that leaves out is bounded: in the principal directions of the keys, or as in arXiv 2406.11779 ("max-diff",
    "mean+diff", "svd", "recursive").

    For linear models `strategy` is a name of `LINEAR_STRATEGIES`, by default "gemm", and `quantity` may be "loss": the
    mean cross-entropy, in nats, of the correct token. In the strategy "blocks", `top` outputs of each token are taken
    exactly, the others in blocks of `width`, and the `refine` multisets of tokens (65,536 by default) about which this
    says least are evaluated one by one.

    With `against`, the certificate is about agreement: on how many inputs subject and proxy predict the same token,
    right or wrong. `against` is a `Proxy`, or a simplification as `compare` judges it: `SVD`, `RandomProjection`,
    `OneHotAttention` or `UniformAttention`. What is proved is what `simplification.apply(subject)` computes, with the
    fitted bases and means in the subject's precision taken as exact numbers; they are stored in the certificate. A
    simplification that has not been fitted is fitted (in a copy) on 1,000 sequences of the train split of
    `MaxOfK(length, vocabulary)`, as `compare` would. Other simplifications, whose scores are not a sum over token and
    position, are refused.

    The certified function is the one of real arithmetic with the subject's weights; a tie counts as wrong. The
    theorem behind each strategy is in docs/soundness.md. Raises AssayError for another architecture, an unknown
    strategy, an option that the strategy does not look at, an input set of other sizes, or weights for which the
    assumptions of the proofs do not hold.
    """
    linear = isinstance(subject.model, LinearMaxForCausalLM)
    strategy = strategy or ("gemm" if linear else "separable")
    if quantity not in ("accuracy", "loss"):
        raise AssayError(f"certify(quantity={quantity!r}): 'accuracy' or 'loss'.")
    options = {
        "grid": grid, "refine": refine, "search": search, "two_sided": two_sided, "width": width, "top": top,
        "remainder": remainder,
    }  # fmt: skip
    check_options(strategy, options)
    if linear:
        if against is not None:
            raise AssayError("agreement with a proxy is for attention models; a linear model has no query-key circuit.")
        return certify_linear(
            subject,
            quantity=quantity,
            strategy=strategy,
            inputs=inputs,
            width=width,
            top=top,
            refine=65_536 if refine is None else refine,
        )
    if quantity == "loss":
        raise AssayError("bounds on the loss are for linear models; for attention models, quantity is 'accuracy'.")
    return certify_attention(
        subject,
        strategy=strategy,
        inputs=inputs,
        against=against,
        grid=grid,
        refine=512 if refine is None else refine,
        search=search,
        two_sided=two_sided,
        remainder=remainder,
    )

"""assay certify and assay verify."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from assay._errors import unknown_name
from assay._files import try_file, write_atomically
from assay._terminal import styled
from assay.cli._shared import (
    AsJson,
    app,
    argument,
    out,
)


def _operations(text: str) -> int:
    """A number of operations, which may be written as a float."""
    try:
        number = int(float(text))
    except (ValueError, OverflowError):
        number = 0
    if number < 1:
        raise typer.BadParameter(f"{text!r} is no number of operations; give one such as 1e12.")
    return number


@app.command()
def certify(
    model: Annotated[
        str, typer.Argument(help="A shipped model, a folder, or a .npz or TransformerLens state dict.", metavar="MODEL")
    ],
    strategy: Annotated[
        str | None,
        typer.Option(
            help="brute-force, subcubic-low-rank, subcubic, cubic, separable (default) or exact; for linear models "
            "brute-force, symmetry, convexity, blocks or gemm (default)."
        ),
    ] = None,
    loss: Annotated[bool, typer.Option("--loss", help="Bound the mean loss (linear models) instead.")] = False,
    seed: Annotated[int | None, typer.Option(help="Training seed of a shipped model (default 0).")] = None,
    minimum_maximum: Annotated[int, typer.Option(min=0, help="Only inputs whose largest token is at least this.")] = 0,
    within: Annotated[int | None, typer.Option(min=0, help="Only inputs within this of their largest token.")] = None,
    copies: Annotated[int | None, typer.Option(min=1, help="Only inputs with this many largest tokens.")] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Agreement with the rank-r query-key circuit.")] = None,
    average_positions: Annotated[bool, typer.Option(help="Agreement with position-averaged keys.")] = False,
    simplification: Annotated[
        str | None, typer.Option("--against", help="Agreement with a simplification, for example svd:rank=1, one-hot.")
    ] = None,
    grid: Annotated[int, typer.Option(min=8, max=2**20, help="Strategy separable: steps to round to.")] = 1024,
    search: Annotated[
        int,
        typer.Option(
            min=0,
            help="Strategy separable, accuracy or against one-hot: groups of at most so many inputs are searched.",
        ),
    ] = 2**18,
    two_sided: Annotated[bool, typer.Option(help="Strategy separable: bound accuracy from above too.")] = False,
    width: Annotated[int, typer.Option(min=1, help="Strategy blocks: outputs a block.")] = 64,
    top: Annotated[int, typer.Option(min=0, help="Strategy blocks: outputs a token that are taken exactly.")] = 16,
    refine: Annotated[
        int | None,
        typer.Option(min=0, help="Strategies separable and blocks: how many groups, or sums, to refine (512, 65536)."),
    ] = None,
    remainder: Annotated[
        str,
        typer.Option(
            help="Strategy subcubic-low-rank: how what rank 1 leaves out is bounded: principal, max-diff, mean+diff, "
            "svd or recursive."
        ),
    ] = "principal",
    certificate_file: Annotated[Path | None, typer.Option("--out", help="Write the certificate here.")] = None,
    coq_file: Annotated[
        Path | None, typer.Option("--coq", help="Write the accuracy of a small linear model as a Coq theorem here.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Prove how many inputs of a set a max-of-K model answers correctly, or, for a linear one, its mean loss."""
    from assay import proofs  # noqa: PLC0415
    from assay.simplify import Simplification, simplifications  # noqa: PLC0415
    from assay.subjects import (  # noqa: PLC0415
        LinearMaxForCausalLM,
        MaxOfKForCausalLM,
        check_name,
        check_seed,
        import_max_of_k,
        load,
    )
    from assay.tasks import InputSet  # noqa: PLC0415

    for option, file in (("out", certificate_file), ("coq", coq_file)):
        if file is not None:
            argument(option, partial(try_file, file))
    is_file = Path(model).is_file()
    argument("MODEL", lambda: check_name(model))
    if seed is not None:
        argument("seed", lambda: check_seed(model, seed))
    subject = argument("MODEL", lambda: import_max_of_k(model) if is_file else load(model, seed=seed))
    known = proofs.LINEAR_STRATEGIES if isinstance(subject.model, LinearMaxForCausalLM) else proofs.STRATEGIES
    if strategy is not None and strategy not in known:
        message = str(unknown_name(f"proof strategy for {model}", strategy, known))
        raise typer.BadParameter(message, param_hint="--strategy")
    if remainder not in proofs.REMAINDERS:
        raise typer.BadParameter(str(unknown_name("remainder", remainder, proofs.REMAINDERS)), param_hint="--remainder")
    options: dict[str, Any] = {
        "grid": grid, "refine": refine, "search": search, "two_sided": two_sided, "width": width, "top": top,
        "remainder": remainder,
    }  # fmt: skip
    default = "gemm" if known is proofs.LINEAR_STRATEGIES else "separable"
    argument("strategy", lambda: proofs.check_options(strategy or default, options))
    inputs = None
    if isinstance(subject.model, MaxOfKForCausalLM | LinearMaxForCausalLM):
        sizes = subject.model.config
        inputs = argument("within", lambda: InputSet(sizes.length, sizes.vocab_size, minimum_maximum, within, copies))
    against: proofs.Proxy | Simplification | None = None
    if rank is not None or average_positions:
        against = proofs.Proxy(rank, average_positions)
    if simplification is not None:
        if against is not None:
            raise typer.BadParameter("give --against, or --rank and --average-positions.", param_hint="--against")
        against = argument("against", lambda: simplifications.build(simplification))
    certificate = proofs.certify(
        subject,
        strategy=strategy,
        quantity="loss" if loss else "accuracy",
        inputs=inputs,
        against=against,
        **options,
    )
    if certificate_file is not None:
        certificate.save(certificate_file)
    if coq_file is not None:
        coq = proofs.coq_development(subject, certificate)
        write_atomically(coq_file, lambda path: path.write_text(coq, encoding="utf-8"))
    if as_json:
        print(certificate.model_dump_json(indent=2, exclude={"pieces", "boxes", "blocks", "proxy"}))
        return
    least, most = certificate.decimals()
    out.print(styled(certificate.statement), soft_wrap=True)
    out.print(f"at least {least}, at most {most}, in {certificate.seconds:.2f} s")


@app.command()
def verify(
    certificate: Annotated[
        Path, typer.Argument(help="A certificate file.", exists=True, dir_okay=False, metavar="CERTIFICATE")
    ],
    model: Annotated[str | None, typer.Option(help="The subject, where it is not a shipped model.")] = None,
    budget: Annotated[
        int | None,
        typer.Option(
            parser=_operations,
            metavar="OPERATIONS",
            help="How much work the check may be, in operations of about a nanosecond: 1e11, if not given.",
        ),
    ] = None,
) -> None:
    """Check a certificate independently: exit status 0 if it holds, 1 with the reason if it is refuted or too long."""
    from assay.proofs import Certificate, checker  # noqa: PLC0415
    from assay.subjects import import_max_of_k, load  # noqa: PLC0415

    subject = None
    if model is not None:
        given = model
        subject = argument("model", lambda: import_max_of_k(given) if Path(given).is_file() else load(given))
    checked = Certificate.load(certificate)
    not_checked = checked.verify(subject, budget=checker.BUDGET if budget is None else budget)
    out.print(styled(f"verified: {checked.statement}"), soft_wrap=True)
    out.print(styled(f"not checked: {', '.join(not_checked)}"))

"""The names that other libraries give to places in a model, read as sites."""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from assay._errors import AssayError
from assay.engine._engine import Engine
from assay.engine._hooks import entering
from assay.engine._places import Block

_HOOK = re.compile(r"blocks\.([0-9]+)\.(.+)")

_STREAMS = {
    "hook_resid_pre": "residual",
    "hook_resid_mid": "middle",
    "hook_resid_post": "after",
    "hook_attn_out": "attention",
    "attn.hook_z": "heads",
    "hook_mlp_out": "mlp",
    "mlp.hook_out": "mlp",
    "mlp.hook_in": "mlp_input",
    "ln2.hook_normalized": "mlp_input",
}
"""TransformerLens' hooks of a block, by the stream of the block that they are at."""

_NORMALIZED = "ln2.hook_normalized"


def site_of_hook(engine: Engine, name: str, head: int | None = None) -> str:
    """The name of the site that a published hook or module path stands for.

        site_of_hook(engine, "blocks.3.hook_resid_post")     # "layer3.after"
        site_of_hook(engine, "blocks.3.attn.hook_z", head=2) # "layer3.head2.outputs"
        site_of_hook(engine, "transformer.h.3")              # "layer3.after": the module's output

    Read are TransformerLens' hooks of blocks (the residual stream `hook_resid_pre`, `hook_resid_mid` and
    `hook_resid_post`; `hook_attn_out`, `hook_mlp_out`, `attn.hook_z`, `mlp.hook_in`, `mlp.hook_out`,
    `ln2.hook_normalized`), and paths of modules in the subject, whole (`model.layers.3.mlp`) or their ends
    (`layers.3.mlp`, `h.3`), which stand for what the module gives: a block, its MLP, or what its attention adds. Both
    count blocks by their number; the site's layer is the number of the block's attention. `head` is one head of
    `attn.hook_z`. What is at the site is what is at the hook, but for `ln2.hook_normalized`: see `affine_of_hook`.

    Raises AssayError for a name that is neither, for a place that the subject does not have, and for a hook where the
    subject has no such vectors.
    """
    known = _HOOK.fullmatch(name)
    stream = None if known is None else _STREAMS.get(known[2])
    if known is None or stream is None:
        block, stream = _of_module(engine, name)
    else:
        block = _block(engine, name, int(known[1]))
    if head is not None and (stream != "heads" or not 0 <= head < _heads(engine, block)):
        raise AssayError(
            f"hook {name!r} with head {head}: heads are those of attn.hook_z, 0 to {_heads(engine, block) - 1} in "
            f"{engine.subject.name!r}."
        )
    site = f"{block}.{stream}" if head is None else f"{block}.head{head}.outputs"
    try:
        engine.site(site)
    except AssayError as error:
        raise AssayError(f"hook {name!r} would be {site}, but {error}") from None
    if known is not None and known[2] in ("hook_mlp_out", "hook_resid_post"):
        _check_behind(engine, name, block, stream)
    return site


def affine_of_hook(engine: Engine, name: str) -> tuple[Tensor, Tensor] | None:
    """What is between the vectors of a hook and those of its site: weight and bias, or None if they are the same.

    Vectors at `blocks.L.ln2.hook_normalized` are those before the norm's weight and bias (in TransformerLens, where
    norms are folded into the weights behind them, as by default, and with RMS norms): those of the site are v * weight
    + bias, and so v = (site - bias) / weight. Raises AssayError if no norm stands there, or a weight is 0.
    """
    known = _HOOK.fullmatch(name)
    if known is None or known[2] != _NORMALIZED:
        site_of_hook(engine, name)
        return None
    block = engine.site(site_of_hook(engine, name)).places[0]
    assert isinstance(block, Block)
    vectors = _few_vectors(engine, "mlp_input", block)
    for call in _calls(engine, block):
        if not torch.equal(call.given, vectors):
            continue
        affine = _affine(call.module, vectors.shape[-1])
        if affine is not None:
            if not bool((affine[0] != 0).all()):
                raise AssayError(
                    f"hook {name!r}: the norm before the MLP of {block} of {engine.subject.name!r} has a weight that "
                    "is 0, so that its normalized input cannot be made from what enters the MLP."
                )
            return affine
    raise AssayError(
        f"hook {name!r}: no norm was found whose output enters the MLP of {block} of {engine.subject.name!r}; a "
        "dictionary of what enters the MLP itself is at blocks.L.mlp.hook_in."
    )


def _heads(engine: Engine, block: Block) -> int:
    return sum(head.layer == block.layer for head in engine.heads)


def _block(engine: Engine, name: str, number: int) -> Block:
    """The block of this number, counted from 0 in the subject's list of blocks."""
    by_number: dict[int, list[Block]] = {}
    for block in engine.blocks:
        by_number.setdefault(engine.number_of(block), []).append(block)
    found = by_number.get(number, [])
    if len(found) != 1:
        several = f"is several of them ({', '.join(map(str, found))})" if found else "is none of them"
        raise AssayError(
            f"hook {name!r}: {engine.subject.name!r} has attention in the blocks of number "
            f"{', '.join(map(str, sorted(by_number)))}, and {number} {several}; only what is at one of them is a site."
        )
    return found[0]


def _of_module(engine: Engine, name: str) -> tuple[Block, str]:
    """The block and the stream that a module of the subject gives."""
    modules = dict(engine.subject.model.named_modules())
    ends = [own for own in modules if own == name or own.endswith(f".{name}")]
    ends = [name] if name in ends else ends
    if not name or len(ends) != 1:
        what = f"is the end of several modules ({', '.join(ends[:3])})" if name and ends else "is none of its modules"
        raise AssayError(
            f"hook {name!r} {what} in {engine.subject.name!r}; hooks are named blocks.L.hook_resid_pre (or "
            f"{', '.join(list(_STREAMS)[1:])}), or by the path of a module, such as {_path(engine)!r}."
        )
    module = modules[ends[0]]
    for block in engine.blocks:
        for stream in ("after", "mlp", "attention"):
            if _gives(engine, stream, block) is module:
                return block, stream
    raise AssayError(
        f"hook {name!r}: what {type(module).__name__} gives is no site of {engine.subject.name!r}; only what a block "
        f"with attention gives is (such as {_path(engine)!r}), what its MLP gives, and what its attention adds to the "
        "residual stream."
    )


def _path(engine: Engine) -> str:
    """The path of the first block."""
    return next(name for name, module in engine.subject.model.named_modules() if module is engine.modules[0])


def _gives(engine: Engine, stream: str, block: Block) -> nn.Module | None:
    """The module that gives back a stream; None if the subject has no such stream."""
    try:
        return engine.giving(stream, block.layer)
    except AssayError:
        return None


@dataclass(frozen=True)
class _Call:
    """A module with what it took and gave."""

    module: nn.Module
    taken: Tensor
    given: Tensor


def _few_vectors(engine: Engine, stream: str, block: Block) -> Tensor:
    run = engine.run(engine.few_tokens(), read=(stream,), layers=[block.layer], logits=False)
    by_layer: dict[int, Tensor] = getattr(run, stream)
    return by_layer[block.layer]


def _calls(engine: Engine, block: Block) -> Iterator[_Call]:
    """The modules in a block that make other vectors of vectors, of the same shape, on a few tokens."""
    around = engine.giving("after", block.layer)
    calls: list[_Call] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        taken, given = entering(inputs, options), output[0] if isinstance(output, tuple) else output
        if isinstance(taken, Tensor) and isinstance(given, Tensor) and taken.shape == given.shape:
            calls.append(_Call(module, taken.clone(), given.clone()))

    with ExitStack() as stack:
        for module in around.modules():
            if module is not around:
                stack.callback(module.register_forward_hook(note, with_kwargs=True).remove)
        engine.run(engine.few_tokens(), layers=[block.layer], read=("residual",), logits=False)
    yield from (call for call in calls if not torch.equal(call.taken, call.given))


def _check_behind(engine: Engine, name: str, block: Block, stream: str) -> None:
    """Raise AssayError where a norm stands between a hook and its stream.

    TransformerLens' `hook_mlp_out` is behind a norm of what the MLP gives, and its `hook_resid_post` before one of the
    residual stream itself.
    """
    vectors = _few_vectors(engine, stream, block)
    for call in _calls(engine, block):
        if torch.equal(call.taken if stream == "mlp" else call.given, vectors):
            where = "behind" if stream == "mlp" else "before"
            raise AssayError(
                f"hook {name!r} is {where} the {type(call.module).__name__} of {block} of {engine.subject.name!r}, and "
                f"{block}.{stream} is not; it has no counterpart here."
            )


def _affine(module: nn.Module, width: int) -> tuple[Tensor, Tensor] | None:
    """Weight and bias of a module that is a norm of vectors, as it shows on large ones; None if it is none."""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if not isinstance(weight, Tensor) or weight.shape != (width,):
        return None
    generator = torch.Generator().manual_seed(0)
    x = 100 * torch.randn(4, width, generator=generator).to(weight)
    added = bias.detach() if isinstance(bias, Tensor) else torch.zeros_like(weight)
    near = 1e-3 if weight.dtype in (torch.float32, torch.float64) else 2e-2
    with torch.no_grad():
        given = module(x)
    for scale in (weight.detach(), 1 + weight.detach()):
        for centre in (x, x - x.mean(dim=-1, keepdim=True)):
            found = scale * centre / centre.square().mean(dim=-1, keepdim=True).sqrt() + added
            if torch.allclose(found, given, atol=near * float(given.abs().max()), rtol=near):
                return scale, added
    return None

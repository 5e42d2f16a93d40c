"""A conformance suite for simplifications, which yours and ours have to pass."""

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import fields

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from assay._errors import AssayError
from assay._given import checked
from assay.engine import EditedSubject, Engine, Proxy, Samples, Site, check_proxy, collect
from assay.faithfulness import CleanPass
from assay.simplify import Simplification, is_whole, label, learns, reads
from assay.subjects import Subject
from assay.tasks import Split

_VOCABULARY = 23
_WIDTH = 8

_SITES = (
    "all.values",
    "layer1.outputs",
    "all.mlp",
    "layer1.residual",
    "all.attention",
    "layer1.after",
    "all.mlp_input+layer0.heads+layer1.middle",
    "embeddings",
    "layer0.head1+layer0.mlp+layer1.head0.values+layer1.head1.queries",
)

_FEW = 2_000
"""Bytes that hold a few rows of the small models."""

TOLERANCE = 1e-5
"""Largest difference of a logit that counts as none; the small models are in float64."""


@checked
def check_simplification(make: Callable[[], Simplification], *, sites: Sequence[str] | None = None) -> None:
    """Check that a simplification keeps the contract; `make` gives a fresh, unfitted one each time it is called.

        check_simplification(lambda: MyMethod(rank=2))

    On a small GPT-2 and a small Llama with grouped queries: parameters are only stored; `fit` returns self, learns
    the same from the same samples, and forgets what it learned before; `apply` before `fit` is refused (unless the
    recipe replaces the model and learns nothing); `apply` gives a `Proxy` of the subject, which is left as it was; the
    proxy is causal, answers a batch that the subject has seen as it does when it is called, does not depend on padding
    or on the batch, follows dtype and device; with a parameter `rank` equal to the width (of a head, or of the model
    for a recipe that replaces it), nothing changes; with `any_stream`, likewise at values, outputs, streams of blocks
    and embeddings, and every stream is edited where a site names several (of an MLP, what it gives, or its map). Where
    it says `streams_rows`, it learns the same twice from rows that do not fit into memory. Raises AssertionError that
    names the first rule broken.

    `sites` are those to check a recipe at that does not act on attention, nor on every stream:

        check_simplification(lambda: MyTranscoder(features=8), sites=["all.mlp", "layer1.mlp"])
    """
    for subject in (small_gpt2(), small_llama()):
        _check(make, subject, sites)


def _check(make: Callable[[], Simplification], subject: Subject, sites: Sequence[str] | None) -> None:
    fresh = make()
    name = f"{label(fresh)} on {subject.name}"
    assert isinstance(fresh, Simplification), f"{name}: needs streams, fit, apply and control"
    learned = [key for key, value in vars(fresh).items() if key.endswith("_") and value is not None]
    assert not learned, f"{name}: has learned attributes before fit: {learned}"
    for key in inspect.signature(type(fresh)).parameters:
        assert hasattr(fresh, key), f"{name}: parameter {key!r} is not stored under its own name"
    if learns(fresh) or not is_whole(fresh):
        try:
            make().apply(subject)
        except AssayError:
            pass
        else:
            raise AssertionError(f"{name}: apply before fit must raise AssayError")

    engine = Engine(subject)
    split, other = _sequences(0), _sequences(1)
    first = engine.site("all" if sites is None else sites[0])
    samples = collect(engine, split, reads(fresh, first)).at(first)
    before = subject.weights_sha256
    fitted = make()
    assert fitted.fit(samples) is fitted, f"{name}: fit must return self"
    proxy = fitted.apply(subject)
    try:
        check_proxy(proxy, subject, f"{name}: apply(subject)")
    except AssayError as error:
        raise AssertionError(str(error)) from None

    tokens = torch.from_numpy(other.tokens)
    logits = proxy(tokens)
    assert logits.shape == subject(tokens).shape, f"{name}: the proxy's logits have another shape"
    assert torch.isfinite(logits).all(), f"{name}: the proxy's logits are not finite"
    assert subject.weights_sha256 == before, f"{name}: the subject's weights changed"
    _same(make().fit(samples).apply(subject)(tokens), logits, f"{name}: the same samples give another proxy")
    twice = make()
    twice.fit(collect(engine, other, reads(fresh, first)).at(first))
    _same(twice.fit(samples).apply(subject)(tokens), logits, f"{name}: fit does not forget an earlier fit")
    _same(copy.deepcopy(fitted).apply(subject)(tokens), logits, f"{name}: a copy behaves differently")

    clean = CleanPass(engine, tokens, torch.ones_like(tokens))
    for _, answer in clean.answers([proxy]):
        _same(answer.logits(slice(None)), logits, f"{name}: the proxy answers differently on a batch that was seen")
    _check_input_independence(proxy, tokens, logits, name)
    if sites is None:
        _check_full_rank(make, subject, samples, tokens, name)
    for site in sites or (_SITES if _any_stream(fresh) else ()):
        _check_site(make, engine, engine.site(site), split=split, tokens=tokens, name=name)
    single = Subject(copy.deepcopy(subject.model).float(), None, subject.name)
    assert fitted.apply(single)(tokens).dtype == torch.float32, f"{name}: the proxy does not follow the subject's dtype"
    if torch.cuda.is_available():
        moved = Subject(copy.deepcopy(subject.model), None, subject.name).to("cuda")
        assert fitted.apply(moved)(tokens.cuda()).is_cuda, f"{name}: the proxy does not follow the subject's device"


def _check_input_independence(proxy: Proxy, tokens: torch.Tensor, logits: torch.Tensor, name: str) -> None:
    later = tokens.clone()
    later[:, 6:] = (later[:, 6:] + 1) % _VOCABULARY
    _same(proxy(later)[:, :6], logits[:, :6], f"{name}: a later token changes earlier predictions")
    _same(proxy(tokens[:1]), logits[:1], f"{name}: the rest of the batch changes a sequence's predictions")
    padded = torch.nn.functional.pad(tokens, (0, 3))
    valid = torch.nn.functional.pad(torch.ones_like(tokens), (0, 3))
    _same(proxy(padded, valid)[:, : tokens.shape[1]], logits, f"{name}: padding changes predictions")


def _any_stream(simplification: Simplification) -> bool:
    return bool(getattr(simplification, "any_stream", False))


def _check_site(
    make: Callable[[], Simplification], engine: Engine, site: Site, *, split: Split, tokens: torch.Tensor, name: str
) -> None:
    """At a site that names a stream."""
    where = f"{name} at {site.name}"
    samples = collect(engine, split, site.read).at(site)
    proxy = make().fit(samples).apply(engine.subject)
    assert isinstance(proxy, EditedSubject), f"{where}: gives a {type(proxy).__name__}, not edits of the site"
    edited = {edit.place: {item.name for item in fields(edit)[1:] if getattr(edit, item.name)} for edit in proxy.edits}
    assert set(edited) == set(site.places), f"{where}: not every place is edited"
    for place, streams in edited.items():
        missing = set(site.streams_of(place)) - streams - ({"mlp"} if "mlp_map" in streams else set())
        assert not missing, f"{where}: {', '.join(sorted(missing))} of {place} is not edited"
    _check_input_independence(proxy, tokens, proxy(tokens), where)
    if getattr(make(), "streams_rows", False):
        few = collect(engine, split, (), largest=_FEW).at(site)
        one, again = (make().fit(few).apply(engine.subject)(tokens) for _ in range(2))
        _same(one, again, f"{where}: rows that do not fit into memory give another proxy each time")
    whole = make()
    widths = {vectors.shape[-1] for place in site.places for vectors in samples.of(place)}
    if hasattr(whole, "rank") and isinstance(whole.rank, int) and len(widths) == 1:
        whole.rank = widths.pop()
        proxy = whole.fit(samples).apply(engine.subject)
        _same(proxy(tokens), engine.subject(tokens), f"{where}: full rank changes predictions")


def _check_full_rank(
    make: Callable[[], Simplification], subject: Subject, samples: Samples, tokens: torch.Tensor, name: str
) -> None:
    whole = make()
    if hasattr(whole, "rank") and isinstance(whole.rank, int):
        whole.rank = subject.model.config.hidden_size if is_whole(whole) else _WIDTH
        _same(whole.fit(samples).apply(subject)(tokens), subject(tokens), f"{name}: full rank changes predictions")


def _same(first: torch.Tensor, second: torch.Tensor, message: str) -> None:
    difference = float((first - second).abs().max())
    assert difference <= TOLERANCE, f"{message} (a logit differs by {difference:.2g})"


def _sequences(seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(_VOCABULARY, (24, 10), generator=generator).numpy()
    return Split(
        name="random",
        role="train",
        description="random tokens",
        tokens=tokens,
        lengths=(tokens >= 0).sum(axis=1),
        kinds=tokens * 0,
    )


def _subject(model: PreTrainedModel, name: str) -> Subject:
    return Subject(model.double().eval(), None, name)


def small_gpt2() -> Subject:
    """A random GPT-2 of two layers and two heads in float64, its weights large enough to attend unevenly."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=_VOCABULARY, n_positions=16, n_embd=2 * _WIDTH, n_layer=2, n_head=2, initializer_range=0.3,
            bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        return _subject(GPT2LMHeadModel(config), "a small GPT-2")


def small_llama() -> Subject:
    """A random Llama of two layers and four heads with two of keys and values, likewise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=_VOCABULARY, hidden_size=4 * _WIDTH, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=16, initializer_range=0.3,
            bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        return _subject(LlamaForCausalLM(config), "a small Llama with grouped queries")

"""Good files of every kind that Assay reads, as small as they can be, and how each is read."""

import copy
import gzip
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import safetensors.torch
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from assay.circuits import Circuit
from assay.dictionaries import AttributionGraph, CrossLayerTranscoder, Dictionary
from assay.engine import Engine, collect
from assay.faithfulness import Comparison, compare
from assay.models import LlamaCppFile, Store, StoreWriter, write_llama_cpp
from assay.proofs import Certificate, certify
from assay.reports import Chart, Illustrations, SentenceView, Series, TableView, write_figures, write_page
from assay.simplify import SVD, applied, load_proxy
from assay.subjects import MaxOfKConfig, MaxOfKForCausalLM, Subject, import_max_of_k, load, save
from assay.tasks import JsonLines as FunctionLines
from assay.tasks import Pairs, Split, Text

WORDS = ("a", "b", "c", "d", "(", ")", "<unknown>", "<mask>", "<pad>")
LINES = ("a b a c", "b ( a ) b", "c c d a b", "d a b c")


@dataclass(frozen=True)
class Sample:
    """A kind of file: `make` writes a good one into a folder, `changed` are the names that are changed, `read` reads.

    `read` gets the folder; a name that stands for several files is a pattern. What takes long is tried in one round of
    `every`.
    """

    kind: str
    make: Callable[[Path], object]
    changed: str
    read: Callable[[Path], object]
    every: int = 1


def tokenizer() -> PreTrainedTokenizerFast:
    """Words, by white space."""
    inner = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unknown>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unknown>", mask_token="<mask>", pad_token="<pad>", model_max_length=32
    )


def subject() -> Subject:
    """A decoder of one layer."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(WORDS), n_positions=32, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return Subject(GPT2LMHeadModel(config), tokenizer(), "small")


def encoder() -> BertModel:
    """An encoder of one layer."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=32, **sizes))


def _text(source: Any) -> Text:
    return Text(tokenizer(), iid=source, train=None, shifts={})


def _used(found: Subject) -> None:
    """Read a text with a subject's tokenizer, as a run does."""
    if found.tokenizer is not None:
        Text(found.tokenizer, iid=list(LINES), train=None, shifts={}, objective=found.objective or "causal").split(
            "iid", 2
        )
    found.describe()


# -- subjects -------------------------------------------------------------------------------------------------------


def _model(folder: Path) -> None:
    save(subject(), folder)


def _pickled(folder: Path) -> None:
    _model(folder)
    (folder / "model.safetensors").unlink()
    torch.save(subject().model.state_dict(), folder / "pytorch_model.bin")


def _sentences(folder: Path) -> None:
    save(Subject(encoder(), tokenizer(), "small"), folder)
    (folder / "1_Pooling").mkdir()
    parts = ("Transformer", ""), ("Pooling", "1_Pooling")
    files = {
        "modules.json": [
            {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for place, (kind, path) in enumerate(parts)
        ],
        "1_Pooling/config.json": {"word_embedding_dimension": 8, "pooling_mode_mean_tokens": True},
        "sentence_bert_config.json": {"max_seq_length": 16, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": {"query": "a "}, "default_prompt_name": "query"},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))


def _adapter(folder: Path) -> None:
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415

    save(subject(), folder / "base")
    model: Any = copy.deepcopy(subject().model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = get_peft_model(model, LoraConfig(r=1, target_modules=["c_attn"]))
        tuned.save_pretrained(str(folder / "adapter"))


def _gguf(folder: Path) -> None:
    from gguf import MODEL_ARCH, GGUFWriter, get_tensor_name_map  # noqa: PLC0415

    own = subject().model
    writer = GGUFWriter(folder / "model.gguf", "gpt2")
    writer.add_context_length(32)
    writer.add_embedding_length(8)
    writer.add_block_count(1)
    writer.add_head_count(2)
    writer.add_feed_forward_length(32)
    writer.add_layer_norm_eps(own.config.layer_norm_epsilon)
    names = get_tensor_name_map(MODEL_ARCH.GPT2, 1)
    for key, tensor in own.state_dict().items():
        stem, _, ending = key.rpartition(".")
        if stem != "lm_head":
            turned = stem.endswith(("c_attn", "c_proj", "c_fc")) and ending == "weight"
            writer.add_tensor(f"{names.get_name(stem)}.{ending}", np.ascontiguousarray(tensor.T if turned else tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _max_of_k() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    sizes = {"W_E": (3, 2), "W_pos": (2, 2), "W_Q": (2, 4), "W_K": (2, 4), "W_V": (2, 4), "W_O": (4, 2), "W_U": (2, 3)}
    return {name: torch.randn(size) for name, size in sizes.items()}


def _max_npz(folder: Path) -> None:
    arrays: dict[str, Any] = {name: value.numpy() for name, value in _max_of_k().items()}
    np.savez(folder / "model.npz", **arrays)


# -- tasks ----------------------------------------------------------------------------------------------------------


def _lines(folder: Path) -> None:
    (folder / "text.txt").write_text("\n".join(LINES))


def _json_lines(folder: Path) -> None:
    (folder / "text.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in LINES))


def _zipped(folder: Path) -> None:
    (folder / "text.jsonl.gz").write_bytes(gzip.compress("\n".join(json.dumps({"text": t}) for t in LINES).encode()))


def _columns(folder: Path) -> None:
    table = pa.table({"text": list(LINES), "vector": [[0.0, 1.0]] * len(LINES)})
    pyarrow.parquet.write_table(table, folder / "text.parquet")


_PAIRS = tuple(
    {"clean": one, "counterfactual": other, "answer": "a", "foil": "b", "split": split}
    for one, other, split in (
        ("a b", "c b", "train"),
        ("c d", "a d", "train"),
        ("a c", "b c", "iid"),
        ("d c", "a c", "iid"),
    )
)


def _pairs(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        path = folder / name
        if name.endswith(".parquet"):
            pyarrow.parquet.write_table(pa.Table.from_pylist(list(_PAIRS)), path)
        elif name.endswith(".csv"):
            rows = [",".join(_PAIRS[0]), *(",".join(row.values()) for row in _PAIRS)]
            path.write_text("\n".join(rows))
        elif name.endswith(".jsonl"):
            path.write_text("\n".join(map(json.dumps, _PAIRS)))
        else:
            path.write_text(json.dumps(_PAIRS))

    return make


def _read_pairs(path: Path) -> None:
    task = Pairs.read(path).bound_to(tokenizer())
    for name in task.split_names:
        task.split(name, 5)


def _functions(folder: Path) -> None:
    text = "def f(x):\n    y = x + 1\n    return y\n"
    rows = [
        {"whole_func_string": text.replace("1", str(n)), "language": "python", "repository_name": f"r{n}"}
        for n in range(3)
    ]
    (folder / "functions.jsonl").write_text("\n".join(map(json.dumps, rows)))


# -- what is claimed ------------------------------------------------------------------------------------------------


def _split() -> Split:
    tokens = np.arange(24).reshape(4, 6) % len(WORDS)
    return Split("iid", "iid", "numbers", tokens, np.full(4, 6), np.where(np.arange(6) < 5, 0, -1) + 0 * tokens)


def _proxy(folder: Path) -> None:
    own = subject()
    engine = Engine(own)
    site = engine.site("layer0")
    proxy: Any = applied(SVD(rank=2).fit(collect(engine, _split(), site.read).at(site)), own)
    proxy.save(folder / "proxy")


def _certificate(folder: Path) -> None:
    certify(_small_max(), strategy="brute-force").save(folder / "certificate.json")


def _small_max() -> Subject:
    torch.manual_seed(0)
    model = MaxOfKForCausalLM(MaxOfKConfig(vocab_size=3, length=2, hidden_size=2, head_dim=4))
    return Subject(model.eval(), None, "small")


def _eap_ig() -> dict[str, Any]:
    """A graph of one layer of two heads, as EAP-IG writes it."""
    senders = ["input", "a0.h0", "a0.h1", "m0"]
    receivers = [*(f"a0.h{head}<{part}>" for part in "qkv" for head in (0, 1)), "m0", "logits"]
    edges = {
        f"{sender}->{receiver}": {"in_graph": True, "score": float(place)}
        for place, sender in enumerate(senders)
        for receiver in receivers
        if receiver == "logits" or sender == "input" or (receiver == "m0" and sender != "m0")
        if sender != receiver
    }
    config = {"n_layers": 1, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 8}
    return {"cfg": config, "nodes": {name: {"in_graph": True} for name in [*senders, "logits"]}, "edges": edges}


def _circuit_reader(name: str, edges: int | None) -> Callable[[Path], Circuit]:
    return lambda folder: Circuit.read(folder / name, edges=edges)


def _circuit(name: str, form: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        first = folder / "first.json"
        first.write_text(json.dumps(_eap_ig()))
        Circuit.read(first).write(folder / name, format=form)
        first.unlink()

    return make


def _subgraph(folder: Path) -> None:
    last, first = ("blocks.0.hook_resid_post", (None,)), ("blocks.0.hook_resid_pre", (None,))
    found: dict[Any, bool] = {(*last, "blocks.0.attn.hook_result", (None, None, head)): True for head in (0, 1)}
    found |= {(*last, *first): True, (*last, "blocks.0.hook_mlp_out", (None,)): True}
    found["blocks.0.hook_mlp_in", (None,), *first] = True
    torch.save(found, folder / "circuit.pth")


def _nodes(folder: Path) -> None:
    names = ["A0.0", "A0.1", "MLP 0"]
    content = {
        "task": "ioi",
        "model": "m",
        "algorithm": "eap",
        "level": "node",
        "node_scores": dict.fromkeys(names, 0.5),
    }
    (folder / "circuit_scores.json").write_text(json.dumps(content))


# -- dictionaries ---------------------------------------------------------------------------------------------------


def _parts() -> dict[str, Any]:
    torch.manual_seed(0)
    shapes = {"W_enc": (4, 6), "b_enc": (6,), "W_dec": (6, 4), "b_dec": (4,)}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def _saved_dictionary(folder: Path) -> None:
    Dictionary(kind="relu", **_parts()).save(folder / "dictionary")


def _gemma(folder: Path) -> None:
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in _parts().items()}
    np.savez(folder / "params.npz", threshold=np.ones(6, np.float32), **arrays)


def _llama_scope(folder: Path) -> None:
    parts = _parts()
    (folder / "checkpoints").mkdir()
    config = {
        "d_model": 4, "d_sae": 6, "act_fn": "jumprelu", "jump_relu_threshold": 0.1, "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": 2.0, "out": 2.0}, "apply_decoder_bias_to_pre_encoder": False,
        "hook_point_in": "blocks.0.hook_resid_post", "hook_point_out": "blocks.0.hook_resid_post",
    }  # fmt: skip
    (folder / "hyperparams.json").write_text(json.dumps(config))
    tensors = {
        "encoder.weight": parts["W_enc"].T, "encoder.bias": parts["b_enc"], "decoder.weight": parts["W_dec"].T,
        "decoder.bias": parts["b_dec"],
    }  # fmt: skip
    safetensors.torch.save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "checkpoints" / "final.safetensors"
    )


def _sparsify(folder: Path) -> None:
    parts = _parts()
    (folder / "cfg.json").write_text(json.dumps({"d_in": 4, "num_latents": 6, "k": 2, "activation": "topk"}))
    tensors = {
        "encoder.weight": parts["W_enc"].T.contiguous(), "encoder.bias": parts["b_enc"], "W_dec": parts["W_dec"],
        "b_dec": parts["b_dec"],
    }  # fmt: skip
    safetensors.torch.save_file(tensors, folder / "sae.safetensors")


def _of_layer(folder: Path) -> None:
    parts = _parts()
    (folder / "config.yaml").write_text(
        "model_kind: transcoder_set\nmodel_name: m\nfeature_input_hook: hook_in\nfeature_output_hook: hook_mlp_out\n"
    )
    parts["W_enc"] = parts["W_enc"].T.contiguous()
    safetensors.torch.save_file(parts, folder / "layer_0.safetensors")


def _cross_layer(folder: Path) -> None:
    parts = _parts()
    (folder / "config.yaml").write_text("model_kind: cross_layer_transcoder\nmodel_name: m\n")
    own = {"W_enc_0": parts["W_enc"].T.contiguous(), "b_enc_0": parts["b_enc"], "b_dec_0": parts["b_dec"]}
    safetensors.torch.save_file(own, folder / "W_enc_0.safetensors")
    safetensors.torch.save_file({"W_dec_0": parts["W_dec"][:, None].contiguous()}, folder / "W_dec_0.safetensors")


def _autoencoder(folder: Path) -> None:
    parts = _parts()
    tensors = {
        "encoder.weight": parts["W_enc"].T, "encoder.bias": parts["b_enc"], "decoder.weight": parts["W_dec"].T,
        "bias": parts["b_dec"],
    }  # fmt: skip
    torch.save(tensors, folder / "ae.pt")
    trainer = {"dict_class": "AutoEncoder", "activation_dim": 4, "dict_size": 6, "lm_name": "m", "layer": 0}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 8}}))


def _graph(folder: Path) -> None:
    """A token, a feature, what a layer's features leave, and what is explained, as circuit-tracer draws them."""
    kinds = (
        ("E_5_0", "embedding", "E", 0), ("0_3_0", "cross layer transcoder", "0", 9),
        ("0_-1_0", "mlp reconstruction error", "0", -1), ("2_7_0", "logit", "2", 7),
    )  # fmt: skip
    nodes = [
        {"node_id": name, "feature_type": kind, "layer": layer, "feature": number, "ctx_idx": 0, "activation": 1.0}
        | {"token_prob": 0.5, "is_target_logit": kind == "logit", "clerp": "a"}
        for name, kind, layer, number in kinds
    ]
    links = [
        {"source": "E_5_0", "target": "0_3_0", "weight": 1.0},
        {"source": "0_3_0", "target": "2_7_0", "weight": 0.5},
    ]
    metadata = {"schema_version": 1, "scan": "s", "prompt_tokens": ["a"], "prompt": "a"}
    (folder / "graph.json").write_text(json.dumps({"metadata": metadata, "nodes": nodes, "links": links}))


# -- models ---------------------------------------------------------------------------------------------------------


def _store(folder: Path) -> None:
    split = _split()
    description = {"name": "m", "weights_sha256": "0" * 64}
    writer = StoreWriter(folder / "store", split, vocabulary=len(WORDS), subject=description)
    sequences, positions = np.nonzero(split.kinds == 0)
    torch.manual_seed(0)
    writer.add(sequences, positions, torch.randn(len(sequences), len(WORDS)))
    writer.finish()


def _read_store(folder: Path) -> None:
    store = Store(folder / "store")
    store.check(_split())
    for sequence in range(len(store)):
        store.rows(sequence)


def _base(folder: Path) -> None:
    torch.manual_seed(0)
    write_llama_cpp(folder / "base.kld", _split().tokens, [torch.randn(4 * 2, len(WORDS)).log_softmax(-1)])


def _read_base(path: Path) -> None:
    file = LlamaCppFile(path)
    file.split()
    for _ in file.blocks():
        pass


# -- runs -----------------------------------------------------------------------------------------------------------


def _run(folder: Path) -> None:
    rng = np.random.default_rng(0)

    def lines(count: int) -> list[str]:
        return [" ".join(rng.choice(WORDS[:4], 6)) for _ in range(count)]

    own = subject()
    task = Text(tokenizer(), train=lines(20), iid=lines(12), shifts={"other": lines(12)})
    options: dict[str, Any] = {"sequences": 10, "fit_sequences": 15, "resamples": 50, "controls": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compare(own, task, [SVD(rank=1), SVD(rank=4)], folder=folder, sites=["layer0"], **options)
    series = Series(name="s", x=[0.0, 1.0], y=[1.0, None], low=[0.5, None], high=[1.5, None])
    Illustrations(
        charts=[Chart(name="chart", caption="c", x_label="x", y_label="y", names=None, series=[series])],
        tables=[TableView(title="t", note="n", headings=["a", "b"], rows=[[("a", ""), ("b", "1")]])],
        sentences=[
            SentenceView(
                title="t",
                site="layer0",
                proxy="SVD(rank=1)",
                tokens=["a", "b"],
                subject_pattern=[[1.0, 0.0], [0.5, 0.5]],
                proxy_pattern=[[1.0, 0.0], [0.5, 0.5]],
                predictions=[(0, "b", "b", "a")],
            )
        ],
    ).save(folder)


def _read_run(folder: Path) -> None:
    comparison = Comparison.load(folder)
    shown = Illustrations.load(folder)
    write_figures(comparison, folder / "figures", shown)
    write_page(comparison, folder / "report.html", shown)
    comparison.verdicts()
    comparison.gaps()
    comparison.controls()
    repr(comparison)


def samples() -> list[Sample]:
    """Every kind of file; those of adapters and GGUF files only where their packages are there."""
    found = [
        Sample("model: config.json", _model, "config.json", lambda f: _used(load(f))),
        Sample("model: model.safetensors", _model, "model.safetensors", lambda f: _used(load(f))),
        Sample("model: tokenizer", _model, "tokenizer*.json", lambda f: _used(load(f))),
        Sample("model: training.json", _model, "training.json", lambda f: _used(load(f))),
        Sample("model: generation_config.json", _model, "generation_config.json", lambda f: _used(load(f))),
        Sample("model: pytorch_model.bin", _pickled, "pytorch_model.bin", lambda f: _used(load(f, allow_pickle=True))),
        Sample("sentence-transformers: modules.json", _sentences, "modules.json", lambda f: _used(load(f))),
        Sample("sentence-transformers: pooling", _sentences, "1_Pooling/config.json", lambda f: _used(load(f))),
        Sample("sentence-transformers: settings", _sentences, "*sentence_*.json", lambda f: _used(load(f))),
        *(
            Sample(f"max-of-K: {name}", make, name, lambda f, name=name: import_max_of_k(f / name))  # type: ignore[misc]
            for name, make in (
                ("model.npz", _max_npz),
                ("model.pt", lambda f: torch.save(_max_of_k(), f / "model.pt")),
                ("model.safetensors", lambda f: safetensors.torch.save_file(_max_of_k(), f / "model.safetensors")),
            )
        ),
        *(
            Sample(f"text: {name}", make, name, lambda f, name=name: _text(f / name).split("iid", 5))  # type: ignore[misc]
            for name, make in (
                ("text.txt", _lines),
                ("text.jsonl", _json_lines),
                ("text.jsonl.gz", _zipped),
                ("text.parquet", _columns),
            )
        ),
        *(
            Sample(f"pairs: {name}", _pairs(name), name, lambda f, name=name: _read_pairs(f / name))  # type: ignore[misc]
            for name in ("pairs.jsonl", "pairs.json", "pairs.csv", "pairs.parquet")
        ),
        Sample(
            "functions: functions.jsonl",
            _functions,
            "functions.jsonl",
            lambda f: FunctionLines((f / "functions.jsonl",), "python").read(),
        ),
        Sample("certificate", _certificate, "certificate.json", lambda f: _verified(f / "certificate.json")),
        Sample("proxy: proxy.json", _proxy, "proxy/proxy.json", lambda f: load_proxy(f / "proxy", subject())),
        Sample("proxy: tensors", _proxy, "proxy/tensors.safetensors", lambda f: load_proxy(f / "proxy", subject())),
        *(
            Sample(f"circuit: {kind}", make, name, _circuit_reader(name, edges))
            for kind, name, edges, make in (
                ("ours", "circuit.json", None, _circuit("circuit.json", "assay")),
                ("EAP-IG, .json", "circuit.json", None, _circuit("circuit.json", "eap-ig")),
                ("EAP-IG, .pt", "circuit.pt", 3, _circuit("circuit.pt", "eap-ig")),
                ("auto-circuit", "scores.pt", 3, _circuit("scores.pt", "auto-circuit")),
                ("ACDC", "circuit.pth", None, _subgraph),
                ("CircuitKIT", "circuit_scores.json", 9, _nodes),
            )
        ),
        *(
            Sample(f"dictionary: {kind}", make, names, read)
            for kind, make, names, read in (
                ("SAELens", _saved_dictionary, "dictionary/*", lambda f: Dictionary.read(f / "dictionary")),
                ("Gemma Scope", _gemma, "params.npz", lambda f: Dictionary.read(f / "params.npz", transcodes=False)),
                ("Llama Scope", _llama_scope, "**/*.*", Dictionary.read),
                ("sparsify", _sparsify, "*", Dictionary.read),
                ("circuit-tracer", _of_layer, "*", lambda f: Dictionary.read(f / "layer_0.safetensors")),
                ("circuit-tracer, cross-layer", _cross_layer, "*", CrossLayerTranscoder.read),
                ("dictionary_learning", _autoencoder, "*", lambda f: Dictionary.read(f / "ae.pt")),
            )
        ),
        Sample("attribution graph", _graph, "graph.json", lambda f: AttributionGraph.read(f / "graph.json").scores()),
        Sample("store: store.json", _store, "store/store.json", _read_store),
        Sample("store: rows", _store, "store/*.safetensors", _read_store),
        Sample("llama.cpp's base", _base, "base.kld", lambda f: _read_base(f / "base.kld")),
        Sample("run: comparison.json", _run, "comparison.json", _read_run, every=6),
        Sample("run: illustrations.json", _run, "illustrations.json", _read_run, every=6),
        Sample("run: tables", _run, "*.parquet", _read_run, every=6),
    ]
    if find_spec("peft") is not None:
        found.append(
            Sample("adapter", _adapter, "adapter/adapter*", lambda f: load(f / "adapter", base=str(f / "base")))
        )
    if find_spec("gguf") is not None and find_spec("accelerate") is not None:
        found.append(Sample("GGUF", _gguf, "model.gguf", lambda f: _used(load(f / "model.gguf"))))
    return found


def _verified(path: Path) -> None:
    certificate = Certificate.load(path)
    repr(certificate)
    certificate.verify(_small_max())

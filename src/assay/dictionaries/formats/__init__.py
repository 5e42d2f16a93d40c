"""Files of dictionaries: `read` knows by what is there which library wrote them. One file a format.

What a file says of where its dictionary comes from is `Dictionary.origin`, under these keys, each there only if known;
all values are those of JSON:

| key | what it says |
|---|---|
| `format` | `saelens`, `sparsify`, `dictionary_learning`, `circuit-tracer`, `gemma-scope`, `llama-scope` |
| `version` | of the library that wrote it |
| `architecture` | what it is called there |
| `trained_as` | what it was in training, where that differs: `batchtopk`, `matryoshka_batchtopk` |
| `model` | the model whose vectors it was trained on |
| `hook`, `hook_out` | where they were read, and what is decoded belongs, in the words of that library |
| `hf_hook` | the same as a path of modules of transformers |
| `layer` | the layer, where that is all that is said, or beside the hook |
| `head_index` | the one head that it is about |
| `flattened_heads` | True: outputs of all heads of a layer, one after another |
| `bos` | whether sequences began with a token that says so |
| `context` | tokens of a sequence |
| `positions` | start, end and step of the positions trained on |
| `excluded_tokens` | True, or the tokens that were left out |
| `processed_model` | how the model's weights were changed before training |
| `scale` | the factor that vectors were multiplied by in training, now in the weights |
| `site` | where it acts in Assay's words, as the caller said |

What Assay saves beside them (`assay.json`) may hold more: what its recipe knows of training.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from assay._errors import AssayError
from assay.dictionaries._cross_layer import CrossLayerTranscoder
from assay.dictionaries._dictionary import Dictionary
from assay.dictionaries.formats import circuit_tracer, dictionary_learning, gemma_scope, llama_scope, saelens, sparsify
from assay.dictionaries.formats._shared import CONVERT, listed, refusal, short

__all__ = ["read", "read_cross_layer"]

_LOOKED_FOR = (
    f"{saelens.CONFIG} with {saelens.WEIGHTS} (SAELens) or {sparsify.WEIGHTS} (sparsify), "
    f"{dictionary_learning.WEIGHTS} (dictionary_learning), {' or '.join(gemma_scope.WEIGHTS)} (Gemma Scope), "
    f"{llama_scope.CONFIG} with {llama_scope.WEIGHTS[-1]} (Llama Scope), layer_0.safetensors (circuit-tracer)"
)

_OWNERS = {saelens.CONFIG, saelens.WEIGHTS, sparsify.WEIGHTS, saelens.RECORD, llama_scope.CONFIG}
"""Files that stand for the folder that they lie in."""

_DEEPEST, _MOST_FOLDERS = 4, 2000
"""How far below a folder dictionaries are looked for, to name them, and among how many folders."""


def read(
    path: str | Path, *, site: str | None = None, scale: float | None = None, transcodes: bool | None = None
) -> Dictionary:
    """The dictionary of a folder or file, of whichever format it is (the formats of this package, a module each).

        Dictionary.read("gpt2-small-res-jb/blocks.8.hook_resid_pre")
        Dictionary.read("gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82/params.npz")

    `site` is where it acts in Assay's words (`layer2.residual`); it is kept in `origin`. `scale` is the factor that
    vectors were multiplied by in training, for the formats that leave it to the caller, and is refused where there is
    none. `transcodes` says what is decoded, the vector itself or what a module makes of it, where a format does not.

    Tensors of 16 bits become float32. No code is run: pickles are read as tensors and plain values only. Raises
    AssayError where there is no dictionary, or several; where files are damaged, disagree, or mean what Assay does not
    do; and for a `scale` or `transcodes` that contradicts them.
    """
    path = Path(path)
    try:
        found = _read(path, scale, transcodes)
    except OSError as error:
        raise refusal(path, f"cannot be read ({error.strerror}).") from None
    if transcodes is not None and transcodes != found.transcodes:
        what = "a transcoder" if found.transcodes else "an autoencoder"
        raise AssayError(f"transcodes={transcodes}: {str(path)!r} is {what}; leave transcodes out.")
    return found if site is None else replace(found, origin={**found.origin, "site": site})


def read_cross_layer(path: str | Path) -> CrossLayerTranscoder:
    """The cross-layer transcoder of a folder, as `CrossLayerTranscoder.read` says."""
    path = Path(path)
    folder = path.parent if path.is_file() else path
    if not folder.is_dir():
        raise refusal(path, "is no file or folder.")
    try:
        return circuit_tracer.read_cross_layer(folder)
    except OSError as error:
        raise refusal(path, f"cannot be read ({error.strerror}).") from None


def read_set(path: str | Path) -> list[Dictionary] | CrossLayerTranscoder:
    """The transcoders of all layers of a folder of circuit-tracer, or its cross-layer transcoder.

    Raises AssayError where there is neither, or a layer is missing.
    """
    path = Path(path)
    folder = path.parent if path.is_file() else path
    try:
        names = {item.name for item in folder.iterdir()}
    except OSError as error:
        raise refusal(path, f"cannot be read ({error.strerror}).") from None
    if any(circuit_tracer.ENCODER.fullmatch(name) for name in names):
        return read_cross_layer(folder)
    layers = sorted(int(match[1]) for name in names if (match := circuit_tracer.LAYER.fullmatch(name)))
    if not layers or layers != list(range(len(layers))):
        raise refusal(
            folder,
            f"holds transcoders of the layers {listed(list(map(str, layers))) or 'none'}; a set has "
            "layer_0.safetensors and one for every layer up to the last, or is a cross-layer transcoder.",
        )
    return [read(folder / f"layer_{layer}.safetensors") for layer in layers]


def _read(path: Path, scale: float | None, transcodes: bool | None) -> Dictionary:
    if path.is_file() and path.name in _OWNERS:
        path = path.parent
    if path.is_dir():
        named = (dictionary_learning.WEIGHTS, *gemma_scope.WEIGHTS)
        path = next((path / name for name in named if (path / name).is_file()), path)
    if not path.exists():
        raise refusal(path, "is no file or folder.")
    scales = path.is_dir() and (path / saelens.WEIGHTS).is_file()
    if not scales and path.name not in gemma_scope.WEIGHTS and path.suffix != ".npz" and scale is not None:
        raise AssayError(f"scale={short(scale)}: {str(path)!r} is of a format that needs none; leave scale out.")
    return _of_folder(path, scale) if path.is_dir() else _of_file(path, scale, transcodes)


def _of_file(path: Path, scale: float | None, transcodes: bool | None) -> Dictionary:
    if path.name in gemma_scope.WEIGHTS or path.suffix == ".npz":
        return gemma_scope.read(path, scale, transcodes)
    if circuit_tracer.ENCODER.fullmatch(path.name):
        raise _cross_layer(path.parent)
    if path.suffix == ".safetensors":
        return circuit_tracer.read(path, transcodes)
    if path.suffix in (".pt", ".pth"):
        return dictionary_learning.read(path)
    if {".pkl", ".pickle"} & set(path.suffixes):
        raise refusal(path, f"is a pickle, which would run code of its own. {CONVERT}")
    raise refusal(path, f"is of no format of dictionaries; in a folder Assay looks for {_LOOKED_FOR}.")


def _of_folder(path: Path, scale: float | None) -> Dictionary:
    names = {item.name for item in path.iterdir()}
    if saelens.WEIGHTS in names:
        return saelens.read(path, scale)
    if sparsify.WEIGHTS in names:
        return sparsify.read(path)
    if llama_scope.CONFIG in names:
        return llama_scope.read(path)
    if any(circuit_tracer.ENCODER.fullmatch(name) for name in names):
        raise _cross_layer(path)
    layers = sorted(filter(circuit_tracer.LAYER.fullmatch, names), key=lambda name: int(name[6:].split(".")[0]))
    if layers:
        raise refusal(path, f"holds transcoders of {len(layers)} layers; give one of its files: {listed(layers)}.")
    below = [str(folder.relative_to(path)) for folder in _below(path)]
    if below:
        raise refusal(path, f"holds dictionaries in its folders; give one of them: {listed(below)}.")
    raise refusal(path, f"holds no dictionary; looked for {_LOOKED_FOR}.")


def _cross_layer(folder: Path) -> AssayError:
    return refusal(
        folder,
        "holds a cross-layer transcoder, whose layers are decoded together and are no dictionaries of their own; read "
        "it with CrossLayerTranscoder.read.",
    )


def _below(folder: Path) -> Iterator[Path]:
    """Folders that hold a dictionary, below a folder."""
    weights = {saelens.WEIGHTS, sparsify.WEIGHTS, dictionary_learning.WEIGHTS, *gemma_scope.WEIGHTS, llama_scope.CONFIG}
    waiting, seen = [(folder, 0)], 0
    while waiting and seen < _MOST_FOLDERS:
        place, depth = waiting.pop(0)
        seen += 1
        try:
            items = sorted(place.iterdir())
        except OSError:
            continue
        if depth and any(item.name in weights or circuit_tracer.LAYER.fullmatch(item.name) for item in items):
            yield place
        elif depth < _DEEPEST:
            waiting += [(item, depth + 1) for item in items if item.is_dir() and not item.is_symlink()]

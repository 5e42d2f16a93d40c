"""How an encoder is used by sentence-transformers, from the files that it writes: what is honoured, what is refused.

Read: modules.json, sentence_bert_config.json (and its older names), the pooling's config.json and
config_sentence_transformers.json, as sentence-transformers 2 to 6 write them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers.normalizers import Lowercase, Sequence
from transformers import PreTrainedTokenizerBase
from transformers.utils import cached_file

from assay._errors import AssayError
from assay._files import read_json
from assay.subjects._objective import Pooling

_MODES: dict[str, Pooling] = {
    "mean": "mean",
    "mean_tokens": "mean",
    "mean_sqrt_len_tokens": "mean",  # the mean times a positive number, which no cosine sees
    "cls": "cls",
    "cls_token": "cls",
    "max": "max",
    "max_tokens": "max",
    "lasttoken": "last",
}

_OF_TRANSFORMER = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)

_PLAIN: Mapping[str, Any] = {
    "transformer_task": "feature-extraction",
    "module_output_name": "token_embeddings",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
}
"""Settings of the Transformer with their value where it does what Assay does."""

_WITHOUT_EFFECT = ("unpad_inputs", "query_length", "document_length", "query_expansion")
"""Settings of the Transformer that change no vector of `encode(text)`."""


@dataclass(frozen=True)
class Use:
    """How an encoder is used: `prompt` stands before every text, `max_length` is in tokens (None: the tokenizer's)."""

    pooling: Pooling = "mean"
    prompt: str = ""
    max_length: int | None = None
    lower_case: bool = False

    def prepare(self, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        """Make a tokenizer cut and lower-case its text as the encoder is used. Raises AssayError if it cannot."""
        if self.max_length is not None:
            tokenizer.model_max_length = self.max_length
        if self.lower_case:
            if not tokenizer.is_fast:
                raise AssayError(
                    f"{name!r} is used with do_lower_case=true, which {type(tokenizer).__name__} cannot do; save a "
                    "fast tokenizer (tokenizer.json) with it."
                )
            backend: Any = tokenizer.backend_tokenizer
            backend.normalizer = Sequence([Lowercase(), *([backend.normalizer] if backend.normalizer else [])])


def file_of(source: str | Path, name: str) -> Path | None:
    """A file of a folder or of a model on the hub; None if it has none."""
    if isinstance(source, Path):
        try:
            return source / name if (source / name).is_file() else None
        except ValueError:  # a null character
            return None
    try:
        found = cached_file(
            source, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
        )
    except OSError:
        return None
    return None if found is None else Path(found)


def is_sentence_transformer(source: str | Path) -> bool:
    """Whether there is a modules.json, as sentence-transformers writes it."""
    return file_of(source, "modules.json") is not None


def read_use(source: str | Path, *, pooling: Pooling | None = None, prompt: str | None = None) -> Use:
    """How an encoder is used, as the files of sentence-transformers say; the defaults of `Use` where there are none.

    `pooling` and `prompt` go before what the files say. Normalising the pooled vector changes no cosine, so that module
    is passed over. Raises AssayError for a module or a setting that changes the vector and that Assay does not have.
    """
    modules = file_of(source, "modules.json")
    if modules is None:
        return Use(pooling or "mean", prompt or "")
    of_pooling: dict[str, Any] = {}
    at = modules
    listed = read_json(modules)
    if not isinstance(listed, list) or not all(isinstance(module, dict) for module in listed):
        raise AssayError(f"{str(modules)!r} holds no list of modules; restore it.")
    for module in listed:
        kind = _kind(module, source)
        if kind == "Pooling":
            folder = module.get("path", "1_Pooling")
            if not isinstance(folder, str) or Path(folder).is_absolute() or ".." in Path(folder).parts:
                raise AssayError(
                    f"{str(modules)!r} has its Pooling in {folder!r}, which is no folder in it; restore it."
                )
            found = file_of(source, f"{folder}/config.json")
            of_pooling, at = ({}, at) if found is None else (_object(found), found)
        elif kind == "Transformer" and module.get("path", "") not in ("", "."):
            raise AssayError(
                f"{str(source)!r} has its Transformer in the folder {module['path']!r}; load and save it with a newer "
                "sentence-transformers, which puts it into the folder itself."
            )
    prompt = _prompt(source, prompt)
    if prompt and of_pooling.get("include_prompt") is False:
        raise AssayError(
            f"{str(source)!r} leaves the prompt {prompt!r} out of its pooling ({at.name}), which Assay does not; give "
            "prompt='' (--prompt '') to judge it without a prompt."
        )
    max_length, lower_case = _of_transformer(source)
    return Use(pooling or (_pooling(of_pooling, at) if of_pooling else "mean"), prompt, max_length, lower_case)


def _kind(module: Mapping[str, Any], source: str | Path) -> str:
    """Transformer, Pooling or Normalize."""
    whole = str(module.get("type", ""))
    kind = whole.rpartition(".")[2]
    if kind not in ("Transformer", "Pooling", "Normalize") or not whole.startswith("sentence_transformers."):
        raise AssayError(
            f"{str(source)!r} changes its embeddings by a module {kind!r} ({whole} in modules.json), which Assay does "
            "not run; only Transformer, Pooling and Normalize of sentence-transformers are supported."
        )
    return kind


def _pooling(settings: Mapping[str, Any], path: Path) -> Pooling:
    said = settings.get("pooling_mode")
    modes = [said] if isinstance(said, str) else said
    if modes is not None and not (isinstance(modes, list) and all(isinstance(mode, str) for mode in modes)):
        raise AssayError(f"{str(path)!r} has a pooling_mode that is no name or list of names; restore it.")
    if modes is None:
        modes = [
            name.removeprefix("pooling_mode_")
            for name, on in settings.items()
            if name.startswith("pooling_mode_") and on
        ]
    if len(modes) != 1 or modes[0] not in _MODES:
        raise AssayError(
            f"{str(path)!r} asks for the pooling {' and '.join(map(str, modes)) or 'none'}; supported is one of "
            f"{', '.join(sorted(_MODES))}. Give pooling=... to use another than it says."
        )
    return _MODES[modes[0]]


def _prompt(source: str | Path, given: str | None) -> str:
    """The prompt that is given, else the default one of the files."""
    path = file_of(source, "config_sentence_transformers.json")
    if path is None:
        return given or ""
    settings = _object(path)
    kind = settings.get("model_type") or "SentenceTransformer"
    if kind != "SentenceTransformer":
        raise AssayError(
            f"{str(source)!r} is a {kind} ({path.name}), which gives no single vector a text; only SentenceTransformer "
            "is supported."
        )
    name, prompts = settings.get("default_prompt_name"), settings.get("prompts") or {}
    if given is not None or name is None:
        return given or ""
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise AssayError(f"{str(path)!r} has prompts that are no texts by name; restore it.")
    if not isinstance(name, str):
        raise AssayError(f"{str(path)!r} has a default_prompt_name that is no name; restore it.")
    if name not in prompts:
        raise AssayError(
            f"{str(source)!r} names the default prompt {name!r}, but its prompts are {', '.join(prompts) or 'none'} "
            f"({path.name}); give prompt=... to say which text stands before every sequence."
        )
    return prompts[name] or ""


def _of_transformer(source: str | Path) -> tuple[int | None, bool]:
    """The longest sequence in tokens, and whether text is lower-cased."""
    path = next((found for name in _OF_TRANSFORMER if (found := file_of(source, name))), None)
    if path is None:
        return None, False
    settings = _object(path)
    unknown = dict(_not_plain(settings))
    if unknown:
        key, value = next(iter(unknown.items()))
        raise AssayError(
            f"{str(source)!r} is used with {key}={value!r} ({path.name}), which Assay does not do; remove it there to "
            "judge the encoder without it."
        )
    longest = settings.get("max_seq_length")
    if longest is not None and (type(longest) is not int or not 0 < longest < 2**31):
        raise AssayError(f"{str(path)!r} has a max_seq_length that is no number of tokens; restore it.")
    return longest, bool(settings.get("do_lower_case"))


def _not_plain(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if key in ("max_seq_length", "do_lower_case", *_WITHOUT_EFFECT) or not value:
            continue
        plain: Any = _PLAIN.get(key)
        if key == "modality_config" and isinstance(value, dict):  # of which only how text is read matters
            value = {"text": value.get("text", plain["text"])}  # noqa: PLW2901
        if value != plain:
            yield key, value


def _object(path: Path) -> dict[str, Any]:
    """The settings of a file. Raises AssayError if it holds none."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise AssayError(f"{str(path)!r} holds a {type(found).__name__}, not an object; restore it.")
    return found

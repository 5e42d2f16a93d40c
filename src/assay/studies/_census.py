"""Building tiny models of architectures and checking each in a process of its own."""

import hashlib
import inspect
import json
import multiprocessing
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import CONFIG_MAPPING, PreTrainedModel
from transformers.models.auto.auto_factory import _get_model_class
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_TEXT_ENCODING_MAPPING,
    MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES,
    MODEL_MAPPING,
    MODEL_MAPPING_NAMES,
)
from transformers.utils import logging as transformers_logging

import assay
from assay._errors import AssayError
from assay._files import append
from assay.studies._tiny import FIRST_TOKEN, LAST_TOKEN, OVERRIDES, tiny_config, tiny_model
from assay.testing import check_architecture

Use = Literal["causal", "masked", "features"]
Status = Literal["passes", "refused", "not buildable", "not text", "fails"]

USES: dict[Use, str] = {"causal": "causal LM", "masked": "masked LM", "features": "features"}
SECONDS = 300.0


@dataclass(frozen=True)
class Row:
    """What became of one architecture (a model type of transformers) in one use; `reason` where it did not pass.

    `details` are the fields of `assay.testing.Support` where it did.
    """

    type: str
    use: Use
    model: str
    status: Status
    reason: str
    details: Mapping[str, Any]


def architectures() -> list[tuple[str, Use]]:
    """Every model type that transformers registers, with each of its uses."""
    features = {**MODEL_MAPPING_NAMES, **MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES}
    named: dict[Use, Iterable[str]] = {
        "causal": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "masked": MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        "features": features,
    }
    return [(name, use) for use, names in named.items() for name in sorted(names)]


def build(name: str, use: Use) -> PreTrainedModel:
    """A tiny random model of an architecture. Raises whatever its configuration or its code raises."""
    overrides = dict(OVERRIDES.get(name, {}))
    config = tiny_config(CONFIG_MAPPING[name](), overrides)
    mapping = {"causal": MODEL_FOR_CAUSAL_LM_MAPPING, "masked": MODEL_FOR_MASKED_LM_MAPPING}.get(use, MODEL_MAPPING)
    if use == "features" and type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING:
        mapping = MODEL_FOR_TEXT_ENCODING_MAPPING
    kind = _get_model_class(config, mapping)
    if not isinstance(config, kind.config_class):
        config = config.get_text_config(decoder=True)
    return tiny_model(kind, config)


def examine(name: str, use: Use) -> Row:
    """Build and check one architecture, in this process."""
    try:
        model = build(name, use)
    except Exception as error:
        return Row(name, use, "", "not buildable", _first_line(error), {})
    kind = type(model).__name__
    taken = inspect.signature(model.forward).parameters
    if model.main_input_name != "input_ids" or "input_ids" not in taken:
        return Row(name, use, kind, "not text", f"takes {', '.join(list(taken)[:2])}", {})
    tokens = torch.arange(FIRST_TOKEN, LAST_TOKEN)[:20].reshape(2, 10)
    try:
        with torch.inference_mode():
            model(input_ids=tokens, attention_mask=torch.ones_like(tokens))
        runs = ""
    except Exception as error:
        runs = _first_line(error)
    try:
        support = check_architecture(model)
    except AssayError as error:
        if runs:
            return Row(name, use, kind, "not buildable", f"does not run on token ids alone: {runs}", {})
        return Row(name, use, kind, "refused", str(error), {})
    except AssertionError as error:
        return Row(name, use, kind, "fails", _first_line(error), {})
    return Row(name, use, kind, "passes", "", asdict(support))


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = next((line for line in lines if not line.startswith("Class validation error")), "")
    text = re.sub(r"(?<=[\s'\"])(/[\w.-]+)+", "...", text)  # no paths of this machine
    return f"{type(error).__name__}: {text}"[:200] if text else type(error).__name__


def _worker(name: str, use: Use, answer: Connection) -> None:
    """Examine in a process of its own."""
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            row = examine(name, use)
        except Exception as error:
            row = Row(name, use, "", "fails", f"an error that is no AssayError: {_first_line(error)}", {})
    answer.send(row)
    answer.close()


def examine_apart(name: str, use: Use, seconds: float = SECONDS) -> Row:
    """Examine in another process: one that crashes or takes longer than `seconds` gives a row that says so."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["assay.studies._census"])
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_worker, args=(name, use, send), daemon=True)
    process.start()
    send.close()
    try:
        if receive.poll(seconds):
            found: Row = receive.recv()
            return found
        reason = f"took longer than {seconds:g} s"
    except EOFError:
        process.join()
        reason = f"its process died ({process.exitcode})"
    finally:
        if process.is_alive():
            process.kill()
        process.join()
        receive.close()
    return Row(name, use, "", "fails", reason, {})


def census(
    chosen: Sequence[tuple[str, Use]],
    kept: Path | None = None,
    *,
    jobs: int = 1,
    seconds: float = SECONDS,
    progress: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Rows of all chosen architectures, in their order; those found in the file `kept` are not examined again.

    The file has one line a row, with a hash of this package's code and of the versions that the row was made by; other
    lines count as not there.
    """
    key = _key()
    done: dict[tuple[str, str], Row] = {}
    if kept is not None and kept.exists():
        for line in kept.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
                if entry.pop("key") == key:
                    done[entry["type"], entry["use"]] = Row(**entry)
            except (ValueError, KeyError, TypeError):
                continue

    def one(name: str, use: Use) -> Row:
        if (name, use) not in done:
            row = examine_apart(name, use, seconds)
            if kept is not None:
                # The last line may be cut short.
                append(kept, "\n" + json.dumps({**asdict(row), "key": key}) + "\n")
            done[name, use] = row
        progress(done[name, use])
        return done[name, use]

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, *zip(*chosen, strict=True)))


def _key() -> str:
    digest = hashlib.sha256(f"{version('transformers')} {version('torch')}".encode())
    for path in sorted(Path(assay.__file__).parent.rglob("*.py")):
        if path.parent.name in ("circuits", "engine", "subjects", "testing", "simplify", "studies"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]

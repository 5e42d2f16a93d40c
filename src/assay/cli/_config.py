"""A call in a file: `--config run.yaml`, and the file that repeats a run."""

import difflib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from typer.core import TyperCommand

from assay._errors import AssayError
from assay._files import read_bytes, write_atomically
from assay.cli._shared import WORK, argument

_NOT_KEPT = ("config", "help", "out", "overwrite", "json", "jobs", "dask")
"""What says nothing of what is compared: where, how and by whom it is done."""

_HEAD = """\
# What this run was asked for: `assay compare --config run.yaml` repeats it, from the folder it was made in.
# Options beside --config go before what is here.
"""


def _names(command: Any) -> dict[str, Any]:
    """The parameters of a command as they are written in a file: options without their dashes, arguments in small."""
    found = {}
    for parameter in command.params:
        long = [option.removeprefix("--") for option in parameter.opts if option.startswith("--")]
        found[long[0] if long else parameter.name] = parameter
    return found


_context: ContextVar[Any] = ContextVar("_context")


class CallInFile(TyperCommand):
    """A command that knows its context, with the options and their values, wherever it is asked for them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line."""
        _context.set(ctx)
        return super().parse_args(ctx, args)


def read_call(file: Path | None) -> Path | None:
    """Take what a file says for the defaults of a command; anything else in it is a wrong call."""
    context = _context.get()
    if file is not None and not context.resilient_parsing:
        context.default_map = dict(argument("config", lambda: dict(_said(file, _names(context.command)))))
    return file


def _said(file: Path, known: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and values of parameters. Raises AssayError for a file that is no table of them."""
    try:
        found = yaml.safe_load(read_bytes(file))
    except OSError as error:
        raise AssayError(f"{str(file)!r} cannot be read ({error.strerror}).") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise AssayError(f"{str(file)!r} is no YAML ({type(error).__name__}).") from None
    if not isinstance(found, dict):
        raise AssayError(f"{str(file)!r} holds no table; write one option a line, such as `sequences: 300`.")
    for name, value in found.items():
        if name not in known or name in ("config", "help"):
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}."
            raise AssayError(f"{str(file)!r} says {name!r}, which is no option of this command; {hint}")
        parameter = known[name]
        yield parameter.name, _value(file, name, value, parameter)


def _value(file: Path, name: str, value: object, parameter: Any) -> object:
    """A value as the command line would have it."""
    wanted = "true or false" if getattr(parameter, "is_flag", False) else "text or a number"
    several = isinstance(value, list) and bool(getattr(parameter, "multiple", False))
    for one in value if several else [value]:  # type: ignore[attr-defined]
        if isinstance(one, bool) != (wanted == "true or false") or not isinstance(one, str | int | float):
            raise AssayError(f"{str(file)!r} says {name}: {str(value)[:60]}; it must be {wanted}.")
    if getattr(parameter, "multiple", False):
        return [str(one) for one in value] if several else [str(value)]  # type: ignore[attr-defined]
    return value if isinstance(value, bool) else str(value)


def write_call(folder: Path) -> None:
    """Write what a command was asked for into its run folder."""
    from assay.faithfulness import CALL  # noqa: PLC0415  (keeps --help fast)

    said, context = {}, _context.get()
    for name, parameter in _names(context.command).items():
        value = context.params.get(parameter.name)
        if name not in _NOT_KEPT and value not in (None, (), [], parameter.default):
            said[name] = (
                list(value) if isinstance(value, list | tuple) else str(value) if isinstance(value, Path) else value
            )
    text = _HEAD + yaml.safe_dump(said, sort_keys=False, allow_unicode=True, default_flow_style=False)
    write_atomically(folder / CALL, lambda path: path.write_text(text, encoding="utf-8"))


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="A file with these options, one a line (`sequences: 300`); every run leaves one, run.yaml.",
        callback=read_call,
        is_eager=True,
        dir_okay=False,
        rich_help_panel=WORK,
    ),
]

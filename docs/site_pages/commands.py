"""The command line, from its own help."""

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer

from assay.cli import app
from site_pages import plain

_STATUS = {
    0: "done",
    1: "the work failed; one line on stderr says why, and how to mend it",
    2: "the call was wrong; the option that is wrong is named",
    3: "`assay compare --require`: a verdict is not what is required",
    130: "interrupted (Ctrl-C); what is finished is kept, and the same command with `--out` goes on",
}


def commands(command: Any = None, name: str = "assay") -> Iterator[tuple[str, Any]]:
    """Every command with its whole name, groups before what is in them."""
    command = command or typer.main.get_command(app)
    yield name, command
    for part, one in getattr(command, "commands", {}).items():
        yield from commands(one, f"{name} {part}")


def options(command: Any) -> Iterator[Any]:
    """The options of a command that have a help of their own."""
    return (one for one in command.params if one.param_type_name == "option" and not getattr(one, "hidden", False))


def arguments(command: Any) -> Iterator[Any]:
    """Its arguments."""
    return (one for one in command.params if one.param_type_name == "argument")


def title(argument: Any) -> str:
    """An argument as the help calls it."""
    return str(argument.metavar or argument.name.upper())


_WORDS = {int: "NUMBER", float: "NUMBER", str: "TEXT", Path: "PATH"}
"""What stands for the value of an option."""


def names(option: Any, hints: Mapping[str, Any]) -> str:
    """An option as it is typed; `hints` are those of the function that it is a parameter of."""
    spelled = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    if option.is_flag:
        return spelled
    hint = hints.get(option.name)
    kinds = {hint, *get_args(hint), *(kind for part in get_args(hint) for kind in get_args(part))}
    word = next((word for kind, word in _WORDS.items() if kind in kinds), "VALUE")
    return f"{spelled} {option.metavar or word}"


def default(option: Any) -> str:
    """Its default in words."""
    if option.required:
        return "required"
    value = option.default() if callable(option.default) else option.default
    if value is None or (value is False and getattr(option, "is_flag", False)) or value in ([], ()):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def section(name: str, command: Any, depth: int) -> Iterator[str]:
    """What there is to say about a command."""
    yield f"{'#' * depth} {name}\n"
    yield plain.marked(command.help or "") + "\n"
    if not getattr(command, "commands", None):
        given = " ".join(map(title, arguments(command)))
        yield f"```text\n{' '.join(filter(None, (name, given, '[OPTIONS]')))}\n```\n"
    rows = [[f"`{title(one)}`", plain.escaped(one.help or "")] for one in arguments(command)]
    if rows:
        yield plain.table(["argument", "what it is"], rows) + "\n"
    hints = get_type_hints(inspect.unwrap(command.callback)) if command.callback else {}
    panels: dict[str, list[list[str]]] = {}
    for one in options(command):
        if one.name in ("install_completion", "show_completion") and name != "assay":
            continue
        panel = getattr(one, "rich_help_panel", None) or "Options"
        panels.setdefault(panel, []).append([names(one, hints), plain.escaped(one.help or ""), default(one)])
    for panel, found in panels.items():
        if len(panels) > 1:
            yield f"**{panel}**\n"
        yield plain.table(["option", "what it does", "default"], found) + "\n"
    if command.epilog:
        calls = command.epilog.split("\n\n")[1:]
        yield "```bash\n" + "\n".join(call.removeprefix("$ ") for call in calls) + "\n```\n"


def page() -> str:
    """The page of the command line."""
    rows = [[f"{number}", text] for number, text in _STATUS.items()]
    parts = [
        "# The command line\n",
        "Made of the help that every command prints with `-h`. `--install-completion` adds completion to your shell.\n",
        plain.table(["exit status", "meaning"], rows) + "\n",
    ]
    for name, command in commands():
        parts += section(name, command, 2 if name.count(" ") < 2 else 3)
    return "\n".join(parts)

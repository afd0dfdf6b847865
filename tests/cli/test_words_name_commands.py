"""What our words tell people to type is there: in hints, in examples and in the documentation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from vllmdeploy.cli.app import app

ROOT = Path(__file__).parents[2]
_PROGRAM = re.compile(r"(?<![\w./-])vllmdeploy((?: --?[\w-]+| [a-z][a-z-]*)+)")
_PROSE = {"import", "node", "is", "command"}
"""What follows the name where a sentence, a unit's name or a line of Python goes on."""
_AFTER = re.compile(r"[`\"';|]| -- ")


def _texts() -> Iterator[tuple[Path, int, str]]:
    for folder, pattern in (("vllmdeploy", "*.py"), ("docs", "*.md"), ("templates", "*")):
        for path in sorted(ROOT.joinpath(folder).rglob(pattern)):
            if path.is_file() and "__pycache__" not in path.parts:
                yield from _lines(path)
    for name in ("README.md", "config.env.example"):
        yield from _lines(ROOT / name)


def _lines(path: Path) -> Iterator[tuple[Path, int, str]]:
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        yield path.relative_to(ROOT), number, line


def _problem(said: str, rest: str) -> str:
    """Why these words are no command of ours; empty where they are."""
    node: Any = typer.main.get_command(app)
    everywhere = {name for option in node.params for name in option.opts}
    for word in said.split():
        if word in everywhere:
            continue
        commands = getattr(node, "commands", None)
        if commands is None:
            break
        if word not in commands:
            return f"there is no command {word}"
        node = commands[word]
    known = {name for option in node.params for name in (*option.opts, *option.secondary_opts)}
    if node.context_settings.get("ignore_unknown_options"):
        return ""
    asked = re.findall(r"(?<![\w-])--[a-z][a-z-]*", _AFTER.split(rest)[0])
    missing = [one for one in asked if one not in known | everywhere | {"--help"}]
    return f"it has no {', '.join(missing)}" if missing else ""


def test_every_command_that_is_named_is_there() -> None:
    looked_at = 0
    wrong: list[str] = []
    for path, number, line in _texts():
        for match in _PROGRAM.finditer(line):
            if match[1].split()[0] in _PROSE:
                continue
            looked_at += 1
            problem = _problem(match[1], line[match.start() :])
            if problem:
                wrong.append(f"{path}:{number}: {match[0]}: {problem}")
    assert not wrong, "\n".join(wrong)
    assert looked_at > 150

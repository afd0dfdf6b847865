"""The command line with one command whole and the others by name and help alone.

Typer reads the annotations of every command before it looks which one is meant, a tenth of the time
that `--help` takes.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import typer
from typer.main import get_command_name
from typer.models import CommandInfo, TyperInfo


def meant(words: Iterable[str], values: Mapping[str, int]) -> str:
    """The first word that is no option and no option's value; empty where there is none."""
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            return word
        for _ in range(0 if "=" in word else values.get(word, 0)):
            next(rest, None)
    return ""


def fitted(app: typer.Typer, command: str) -> typer.Typer:
    """The same program for whoever calls this command, or asks what commands there are."""
    found = copy.copy(app)
    found.registered_commands = [
        info if _name(info) == command else _by_name(info) for info in app.registered_commands
    ]
    found.registered_groups = [
        info if info.name == command else _empty(info) for info in app.registered_groups
    ]
    return found


def _name(info: CommandInfo) -> str:
    return info.name or get_command_name(_callback(info).__name__)


def _callback(info: CommandInfo) -> Callable[..., Any]:
    if info.callback is None:
        raise ValueError(f"command {info.name} does nothing")
    return info.callback


def _by_name(info: CommandInfo) -> CommandInfo:
    found = copy.copy(info)
    found.name = _name(info)
    found.help = info.help or inspect.getdoc(_callback(info))
    found.callback = _not_meant
    return found


def _not_meant() -> None:
    raise AssertionError("another command was meant")


def _empty(info: TyperInfo) -> TyperInfo:
    found, inner = copy.copy(info), copy.copy(info.typer_instance)
    if inner is not None:
        inner.registered_commands, inner.registered_groups = [], []
    found.typer_instance = inner
    return found

"""A fact is a question to a host and the reading of its answer, kept in one place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from vllmdeploy.core.command import Command, Result

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Fact(Generic[T]):
    """`parse` sees the whole result: a missing program (127) is an answer too.

    `program` names what answers it: once that has hung, its other facts of the same round are not
    waited for. `gate`: when this one fails, the program has nothing else to say either, and its
    later facts of the round get the same status without an answer.
    """

    name: str
    command: Command
    parse: Callable[[Result], T]
    program: str = ""
    gate: bool = False

"""The states an instance can be in, and one change from one to another."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class State(Enum):
    STARTING = "starting"
    READY = "ready"
    SUSPECT = "suspect"
    EJECTED = "ejected"
    DOWN = "down"
    DRAINING = "draining"
    DRAINED = "drained"


SERVING = frozenset({State.READY, State.SUSPECT})
LEAVING = frozenset({State.DRAINING, State.DRAINED})


@dataclass(frozen=True, slots=True)
class Change:
    """One transition, for logs, metrics and whoever keeps a list of who is in rotation."""

    at: float
    before: State
    after: State
    reason: str

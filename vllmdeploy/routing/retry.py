"""May this request be tried once more elsewhere, and after how long."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from vllmdeploy.routing.failure import MAY_BE_POISON, NEVER_PROCESSED, Failure
from vllmdeploy.routing.policies.base import Chance
from vllmdeploy.routing.thresholds import DEFAULTS, Thresholds

# Only generation without side effects: to run it twice costs time and changes nothing.
_REPLAYABLE_POSTS = frozenset(
    {
        "/generate",
        "/batch_generate",
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/messages",
        "/v1/embeddings",
        "/v1/rerank",
        "/v2/rerank",
        "/rerank",
        "/v1/score",
        "/score",
        "/tokenize",
        "/detokenize",
    }
)
_FINAL = frozenset({Failure.CLIENT_ERROR, Failure.CLIENT_GONE})


class Verdict(Enum):
    RETRY = "retry"
    ANSWERED = "the client has bytes of an answer already"
    FINAL = "another instance would say the same"
    NOT_REPLAYABLE = "the request may have had an effect"
    POISON = "the request may be what kills instances"
    ENOUGH = "tried often enough"
    BUDGET = "too many retries at the moment"


@dataclass(frozen=True, slots=True)
class Attempt:
    """What is known of a request after its latest failure. `tries` counts it, `suspicions` how
    many of the tries may have killed their instance."""

    failure: Failure
    tries: int
    answered: bool = False
    replayable: bool = True
    suspicions: int = 0


def replayable(method: str, path: str, *, stored: bool = True) -> bool:
    """`stored`: what a body of /v1/responses asks for, `store` or `background`; the engine stores
    unless told not to."""
    if method in ("GET", "HEAD"):
        return True
    if path == "/v1/responses":
        return method == "POST" and not stored
    return method == "POST" and path in _REPLAYABLE_POSTS


def charged(failure: Failure) -> bool:
    """Whether a retry is taken from the budget. Where no connection came about no instance has
    done any work, so there is nothing for the budget to protect."""
    return failure is Failure.BUSY or failure not in NEVER_PROCESSED


def suspicious(failure: Failure) -> bool:
    return failure in MAY_BE_POISON


def verdict(attempt: Attempt, limits: Thresholds = DEFAULTS) -> Verdict:
    """All but the budget, which only a request that passes here should be charged to."""
    failure = attempt.failure
    if attempt.answered:
        return Verdict.ANSWERED
    if failure in _FINAL:
        return Verdict.FINAL
    if failure not in NEVER_PROCESSED and not attempt.replayable:
        return Verdict.NOT_REPLAYABLE
    if attempt.suspicions >= limits.poisoned_instances_max:
        return Verdict.POISON
    if attempt.tries > limits.retries:
        return Verdict.ENOUGH
    return Verdict.RETRY


def delay(attempt: Attempt, chance: Chance, limits: Thresholds = DEFAULTS) -> float:
    """Full jitter. The first move away from an instance that never began has nothing to wait
    for."""
    if attempt.tries == 1 and attempt.failure in NEVER_PROCESSED:
        return 0.0
    most = min(limits.retry_delay_max_s, limits.retry_delay_min_s * (1 << attempt.tries))
    return limits.retry_delay_min_s + chance() * (most - limits.retry_delay_min_s)


class Budget:
    """How many retries the fleet bears.

    An instance that dies fails all it held at once, which with few instances is far more than a
    fifth of the active ones: the burst is as large as the largest instance's recent in-flight.
    What was spent comes back with requests that are begun, half the share for each, so that when
    everything fails the retries stay well below one for every five requests.
    """

    __slots__ = ("_at", "_limits", "_peak", "_spent")

    _PEAK_HALVES_EVERY_S = 10.0

    def __init__(self, now: float, limits: Thresholds = DEFAULTS) -> None:
        self._limits = limits
        self._spent = 0.0
        self._peak = 0.0
        self._at = now

    def begun(self) -> None:
        if self._spent > 0:
            self._spent = max(0.0, self._spent - self._limits.retry_share / 2)

    def take(self, now: float, *, active: int, largest: int) -> bool:
        """`active`: requests in flight on all; `largest`: on the fullest instance, the failed one
        included as it was before it failed."""
        elapsed = max(0.0, now - self._at)
        self._at = now
        self._peak = max(float(largest), self._peak * 0.5 ** (elapsed / self._PEAK_HALVES_EVERY_S))
        # A quiet gateway would otherwise never earn back what one bad moment spent.
        self._spent = max(0.0, self._spent - elapsed * self._limits.retry_min / 10)
        room = max(self._limits.retry_min, self._limits.retry_share * active, self._peak)
        # Rounded up: the peak fades even between the losses of one death.
        if self._spent + 1 > math.ceil(room):
            return False
        self._spent += 1
        return True

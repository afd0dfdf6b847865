"""The health of one instance: what was observed goes in, its state and what to ask next come out.

           a check passes + canary         a fault, or one check failed
STARTING -----------------------> READY <-------------------------------> SUSPECT
                                  ^   |                                      |
time over + checks pass + canary  |   |  3 faults, half of 20, canary, stall |
                                  |   +---------> EJECTED <------------------+
                                  |   |  port closed, 2 checks failed        |
                                  +-- +---------> DOWN <---------------------+

any -- drain --> DRAINING -- nothing in flight, or time over --> DRAINED -- resume --> STARTING
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from vllmdeploy.routing.ejections import Record, may_eject
from vllmdeploy.routing.failure import CONNECTION_LOST, NO_FAULT, PORT_CLOSED, Failure
from vllmdeploy.routing.policies.base import Chance
from vllmdeploy.routing.states import LEAVING, SERVING, Change, State
from vllmdeploy.routing.thresholds import DEFAULTS, Thresholds
from vllmdeploy.routing.window import FaultWindow


class Health:
    """Live, owned by one thread. A replaced instance gets a new Health with the next generation:
    late news of the old one then reaches an object that nobody reads any more."""

    __slots__ = (
        "_busy_for",
        "_canary_passed",
        "_canary_tried_at",
        "_checks_failed",
        "_checks_passed",
        "_faults",
        "_lost_at",
        "_progress",
        "_progress_at",
        "_record",
        "_thresholds",
        "_window",
        "busy_until",
        "generation",
        "last_success_at",
        "out_until",
        "reason",
        "since",
        "slow_until",
        "state",
    )

    def __init__(
        self,
        now: float,
        thresholds: Thresholds = DEFAULTS,
        *,
        generation: int = 0,
        state: State = State.STARTING,
    ) -> None:
        self.state = state
        self.since = now
        self.reason = "no check has passed yet" if state is State.STARTING else ""
        self.generation = generation
        self.last_success_at = now
        self.busy_until = 0.0
        self.slow_until = 0.0
        self.out_until = 0.0
        self._thresholds = thresholds
        self._checks_failed = self._checks_passed = self._faults = 0
        self._canary_passed = not thresholds.canary or state is State.READY
        self._canary_tried_at = -math.inf
        self._lost_at = -math.inf
        self._busy_for = 0.0
        self._record = Record(now, thresholds)
        self._progress = 0.0
        self._progress_at = now
        self._window = FaultWindow(thresholds.fault_window_s)

    @property
    def serving(self) -> bool:
        return self.state in SERVING

    # What requests showed

    def succeeded(self, now: float) -> Change | None:
        self.last_success_at = now
        self.busy_until = self._busy_for = 0.0
        self._faults = 0
        self._window.count(now, fault=False)
        if self.state is State.SUSPECT and not self._checks_failed:
            self._canary_passed = True
            return self._to(State.READY, now, "a request succeeded")
        return None

    def failed(
        self,
        now: float,
        failure: Failure,
        peers: Iterable[Health],
        chance: Chance,
        *,
        began: float = math.inf,
    ) -> Change | None:
        """`peers` are all that serve the same model, this one included. `began`: when the request
        was sent."""
        if failure is Failure.BUSY:
            self._hold(now)
        if failure in PORT_CLOSED:
            return self._down(now, failure.value)
        if failure in NO_FAULT or not self.serving:
            return None
        if failure in CONNECTION_LOST:
            if began <= self._lost_at:
                return None
            self._lost_at = now
        limits = self._thresholds
        self._faults += 1
        self._window.count(now, fault=True)
        if self._faults >= limits.faults_in_row:
            reason = f"{self._faults} faults in a row, last: {failure.value}"
            return self._eject(now, reason, peers, chance)
        total, faults = self._window.sums(now)
        if total >= limits.fault_ratio_min_requests and faults >= limits.fault_ratio * total:
            reason = f"{faults} of {total} requests failed, last: {failure.value}"
            return self._eject(now, reason, peers, chance)
        return self._suspect(now, failure.value)

    # What active checks showed

    def check_passed(self, now: float) -> Change | None:
        self._checks_failed = 0
        self._checks_passed += 1
        if self.state is State.SUSPECT and not self._faults and self._canary_passed:
            return self._to(State.READY, now, "check passed")
        return self._return(now)

    def check_failed(
        self, now: float, reason: str, *, began: float, port_closed: bool = False
    ) -> Change | None:
        if port_closed:
            return self._down(now, reason)
        if self.last_success_at > began and self.serving:
            return None  # it answered a real request meanwhile: the check was slow, not the engine
        self._checks_passed = 0
        self._checks_failed += 1
        if self._checks_failed >= self._thresholds.fall:
            return self._down(now, reason)
        return self._suspect(now, reason)

    def canary_passed(self, now: float) -> Change | None:
        self._canary_passed = True
        self._canary_tried_at = now
        self._faults = 0
        if self.serving:
            self.last_success_at = now
        return self._return(now)

    def canary_failed(
        self, now: float, reason: str, peers: Iterable[Health], chance: Chance, *, began: float
    ) -> Change | None:
        self._canary_tried_at = now
        if self.state in LEAVING or (self.serving and self.last_success_at > began):
            return None
        self._canary_passed = False
        if self.serving or self.state is State.EJECTED:
            return self._eject(now, f"canary failed: {reason}", peers, chance)
        self.reason = f"canary failed: {reason}"
        return None

    def progressed(
        self, now: float, *, running: int, tokens: float, peers: Iterable[Health], chance: Chance
    ) -> Change | None:
        """The engine's counters: requests that run while no token comes out are a stall."""
        if tokens != self._progress or not running:
            self._progress, self._progress_at = tokens, now
            return None
        stalled = now - self._progress_at
        if stalled < self._thresholds.stall_after_s or not self.serving:
            return None
        self._canary_passed = not self._thresholds.canary
        reason = f"{running} requests running and no token for {stalled:.0f} s"
        return self._eject(now, reason, peers, chance)

    # What a person asked for

    def drain(self, now: float) -> Change | None:
        if self.state in LEAVING:
            return None
        self.out_until = now + self._thresholds.drain_timeout_s
        return self._to(State.DRAINING, now, "drain asked for")

    def drained(self, now: float, inflight: int) -> Change | None:
        """Asked from time to time while draining."""
        if self.state is not State.DRAINING or (inflight and now < self.out_until):
            return None
        left = f"{inflight} requests still in flight" if inflight else "nothing in flight"
        return self._to(State.DRAINED, now, left)

    def resume(self, now: float) -> Change | None:
        if self.state not in LEAVING:
            return None
        self._checks_failed = self._checks_passed = self._faults = 0
        self._canary_passed = not self._thresholds.canary
        self._canary_tried_at = -math.inf
        self.out_until = now
        return self._to(State.STARTING, now, "resumed")

    # What to ask next

    def check_delay(self, chance: Chance) -> float:
        """Seconds to the next check. After a failed one it follows at once: the timeout was the
        wait."""
        limits = self._thresholds
        if not self.serving:
            return limits.check_interval_out_s
        if self._checks_failed:
            return 0.0
        return limits.check_interval_s * (1 + limits.check_jitter * (2 * chance() - 1))

    def wants_canary(self, now: float) -> bool:
        limits = self._thresholds
        if not limits.canary or self.state in LEAVING:
            return False
        if self.serving:
            quiet_since = max(self.last_success_at, self._canary_tried_at)
            return now - quiet_since >= limits.canary_interval_s
        rested = now - self._canary_tried_at >= limits.check_interval_s
        return not self._canary_passed and rested and self._may_return(now)

    # Transitions

    def _to(self, state: State, now: float, reason: str) -> Change | None:
        before, self.reason = self.state, reason
        if before is state:
            return None
        self.state, self.since = state, now
        return Change(now, before, state, reason)

    def _suspect(self, now: float, reason: str) -> Change | None:
        return self._to(State.SUSPECT, now, reason) if self.serving else None

    def _down(self, now: float, reason: str) -> Change | None:
        self._checks_passed = 0
        if self.state in LEAVING:
            return None
        self._canary_passed = not self._thresholds.canary
        if self.state is State.STARTING:
            self.reason = reason  # a model that loads has no port yet: nothing went down
            return None
        if self.serving:
            self.out_until = now + self._record.went_down(now)
        return self._to(State.DOWN, now, reason)

    def _eject(
        self, now: float, reason: str, peers: Iterable[Health], chance: Chance
    ) -> Change | None:
        limits = self._thresholds
        if self.serving and not may_eject(self, peers, limits):
            return self._suspect(now, f"{reason}; kept, too few others")
        self.out_until = now + self._record.ejected(now, chance, from_service=self.serving)
        self._faults = 0
        self._canary_passed = not limits.canary
        self._window.clear()
        return self._to(State.EJECTED, now, reason)

    def _may_return(self, now: float) -> bool:
        limits = self._thresholds
        # Of one that never failed, a token says more than a second check.
        first = limits.canary and self.state is State.STARTING
        return now >= self.out_until and self._checks_passed >= (1 if first else limits.rise)

    def _return(self, now: float) -> Change | None:
        if self.serving or self.state in LEAVING:
            return None
        if not self._canary_passed or not self._may_return(now):
            return None
        self._faults = 0
        self.last_success_at = self._progress_at = now
        self._record.returned(now)
        self.slow_until = now + self._thresholds.slow_start_s
        return self._to(State.READY, now, "checks pass")

    def _hold(self, now: float) -> None:
        if now < self.busy_until:
            return  # requests sent before the first busy answer say nothing new
        limits = self._thresholds
        self._busy_for = min(max(2 * self._busy_for, limits.busy_hold_s), limits.busy_hold_max_s)
        self.busy_until = now + self._busy_for

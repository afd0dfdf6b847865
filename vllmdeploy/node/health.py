"""Is an engine starting, ready or hung? Decided from what probes saw, the clock as an argument."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

BUSY = (429, 503)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    health_failures: int = 3
    canary_failures: int = 2
    canary_every_s: float = 15.0
    stall_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One round of probes. None: not asked. Status 0: no answer; `detail` says why."""

    health: int
    canary: int | None = None
    running: float | None = None
    tokens: float | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What earlier rounds left to remember."""

    ready: bool = False
    health_failures: int = 0
    canary_failures: int = 0
    canary_due: float = 0.0
    tokens: float | None = None
    moved_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """`hung` is the reason to kill the engine; empty while there is none."""

    ready: bool
    hung: str = ""


def wants_canary(watch: Watch, now: float) -> bool:
    return not watch.ready or now >= watch.canary_due


def judge(watch: Watch, seen: Seen, now: float, patience: Patience) -> tuple[Watch, Verdict]:
    """Before it is ready nothing counts against an engine: its start limit does that."""
    moved = _moved(watch, seen)
    watch = replace(
        watch,
        tokens=watch.tokens if seen.tokens is None else seen.tokens,
        moved_at=now if moved or not watch.ready else watch.moved_at,
    )
    if not watch.ready:
        if seen.health != 200 or seen.canary not in (None, 200):
            return watch, Verdict(ready=False)
        due = now + patience.canary_every_s
        return replace(watch, ready=True, canary_due=due), Verdict(ready=True)
    watch = _count_health(watch, seen)
    watch = _count_canary(watch, seen, now, patience, moved=moved)
    return watch, Verdict(ready=True, hung=_hung(watch, seen, now, patience))


def _moved(watch: Watch, seen: Seen) -> bool:
    if seen.running == 0:
        return True  # nothing to do is no stall
    return seen.tokens is not None and seen.tokens != watch.tokens


def _count_health(watch: Watch, seen: Seen) -> Watch:
    failures = 0 if seen.health == 200 else watch.health_failures + 1
    return replace(watch, health_failures=failures)


def _count_canary(
    watch: Watch, seen: Seen, now: float, patience: Patience, *, moved: bool
) -> Watch:
    if moved and seen.running:
        # Real requests generate tokens: they are the better canary.
        return replace(watch, canary_failures=0, canary_due=now + patience.canary_every_s)
    if seen.canary is None:
        return watch
    # A full queue refuses the canary although the engine works.
    good = seen.canary == 200 or seen.canary in BUSY
    if good:
        return replace(watch, canary_failures=0, canary_due=now + patience.canary_every_s)
    return replace(watch, canary_failures=watch.canary_failures + 1)


def _hung(watch: Watch, seen: Seen, now: float, patience: Patience) -> str:
    if watch.health_failures >= patience.health_failures:
        return f"/health {_said(seen.health, seen.detail)} {watch.health_failures} times in a row"
    if watch.canary_failures >= patience.canary_failures:
        said = _said(seen.canary or 0, seen.detail)
        return f"the one-token canary {said} {watch.canary_failures} times in a row"
    if seen.running and now - watch.moved_at >= patience.stall_s:
        flat = now - watch.moved_at
        return f"{seen.running:g} requests are running and no token was generated for {flat:.0f} s"
    return ""


def _said(status: int, detail: str) -> str:
    return f"answered {status}" if status else f"gave no answer ({detail or 'no connection'})"


def parse_metrics(text: str) -> tuple[float | None, float | None]:
    """(requests running, tokens computed so far) of vLLM's /metrics; None where it says nothing."""
    running = _sum(text, "vllm:num_requests_running")
    generated = _sum(text, "vllm:generation_tokens_total")
    # A long prompt computes for a while before its first token: that is no stall.
    prompt = _sum(text, "vllm:prompt_tokens_total")
    return running, None if generated is None else generated + (prompt or 0.0)


def _sum(text: str, metric: str) -> float | None:
    values: list[float] = []
    for line in text.splitlines():
        if line.startswith((f"{metric}{{", f"{metric} ")):
            try:
                value = float(line.rpartition(" ")[2])
            except ValueError:
                continue
            if math.isfinite(value):
                values.append(value)
    return sum(values) if values else None

"""Compares the routing policies on 64 simulated instances; the same seed gives the same figures.

    python bench/simulate_routing.py                  # a table
    python bench/simulate_routing.py --json           # the same as JSON
    python bench/simulate_routing.py --svg docs/routing.svg

The fleet: 64 engines with continuous batching, 32 sequences each and a prefix cache; 48 are fast,
15 are older (0.55 of the speed, 0.4 of the price), one is ill (0.25 of the speed). The load:
conversations over shared system prompts, output lengths with a heavy tail. Two gateways share the
arrivals by chance; each counts its own requests and sees the others' only by polling every 2 s.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from routing_chart import chart

from vllmdeploy.routing import policies
from vllmdeploy.routing.load import Observed
from vllmdeploy.routing.upstream import (
    PREFIX_LENGTHS,
    Address,
    Affinity,
    Member,
    Request,
    Upstream,
    stable_hash,
)

NAMES = tuple(name for name in policies.names() if name != "load_balanced")
SLOTS = 32
STEP_S = 0.012  # one decoding step of an empty batch, and what each sequence adds to it
STEP_PER_SEQUENCE_S = 0.0004
PREFILL_TOKENS_PER_S = 12_000.0
CACHE_TOKENS = 120_000
POLL_S = 2.0
FIRST_TOKEN_LIMIT_S = 2.0
TOKEN_LIMIT_S = 0.05
CHARACTERS_PER_TOKEN = 4
MEAN_TURNS = 3.5


@dataclass(slots=True)
class Job:
    """`context` names what is cached for the conversation; `system` what it shares with others."""

    at: float
    system: int
    system_tokens: int
    context: int
    prompt_tokens: int
    output_tokens: int
    request: Request
    gateway: int = 0
    instance: int = -1
    first_token_at: float = 0.0
    done_at: float = 0.0


def workload(chance: random.Random, count: int, per_second: float) -> list[Job]:
    """Conversations arrive by a Poisson process; a turn brings the history of those before."""
    jobs: list[Job] = []
    now, context = 0.0, 0
    # A conversation lasts minutes: only after some are turns of all ages there at once.
    settled = 300.0
    while now < settled + 1.5 * count / per_second:
        turns = 1 + min(12, int(chance.expovariate(1 / 3)))
        now += chance.expovariate(per_second / MEAN_TURNS)
        context += 1
        # A few system prompts are used far more than the rest.
        system = min(int(chance.paretovariate(0.8)), 200)
        system_tokens = 200 + stable_hash(b"%d" % system) % 1800
        at, prompt = now, system_tokens
        for _ in range(turns):
            prompt += max(4, int(chance.lognormvariate(4.5, 1.0)))
            output = min(4096, max(1, int(chance.lognormvariate(5.0, 1.1))))
            affinity = _affinity(system, system_tokens, context, prompt)
            request = Request(affinity=affinity, prompt_tokens=prompt)
            jobs.append(Job(at, system, system_tokens, context, prompt, output, request))
            prompt += output
            at += output * 0.03 + chance.expovariate(1 / 20)
    jobs = sorted((job for job in jobs if job.at >= settled), key=lambda job: job.at)[:count]
    for job in jobs:
        job.at -= settled
        job.gateway = chance.randrange(2)
    return jobs


def _affinity(system: int, system_tokens: int, context: int, prompt_tokens: int) -> Affinity:
    shared = system_tokens * CHARACTERS_PER_TOKEN
    prefixes = tuple(
        stable_hash(b"%d/%d" % (system if length <= shared else context + 1000, length))
        for length in PREFIX_LENGTHS
        if length <= prompt_tokens * CHARACTERS_PER_TOKEN
    )
    return Affinity(session=stable_hash(b"%d" % context), prefixes=prefixes)


@dataclass(slots=True)
class Engine:
    """Continuous batching: whoever decodes gets one token a step, and a step grows with them."""

    speed: float
    tokens_each: float = 0.0
    generated: float = 0.0
    updated_at: float = 0.0
    prefill_free_at: float = 0.0
    slots_used: int = 0
    version: int = 0
    decoding: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])
    waiting: list[int] = field(default_factory=list[int])
    cache: OrderedDict[int, int] = field(default_factory=OrderedDict[int, int])
    cached_tokens: int = 0

    def advance(self, now: float) -> None:
        if self.decoding:
            steps = (now - self.updated_at) / self.step_s()
            self.tokens_each += steps
            self.generated += steps * len(self.decoding)
        self.updated_at = now

    def step_s(self) -> float:
        return (STEP_S + STEP_PER_SEQUENCE_S * len(self.decoding)) / self.speed

    def prefill(self, now: float, tokens: int) -> float:
        start = max(now, self.prefill_free_at)
        self.prefill_free_at = start + tokens / (PREFILL_TOKENS_PER_S * self.speed)
        return self.prefill_free_at

    def reused(self, job: Job) -> int:
        """How much of the prompt is in the cache, and put the rest there."""
        known = max(
            self.cache.get(job.context + 1000, 0),
            self.cache.get(job.system, 0),
        )
        self._keep(job.system, job.system_tokens)
        self._keep(job.context + 1000, job.prompt_tokens + job.output_tokens)
        return min(known, job.prompt_tokens - 1)

    def _keep(self, key: int, tokens: int) -> None:
        self.cached_tokens += tokens - self.cache.pop(key, 0)
        self.cache[key] = tokens
        while self.cached_tokens > CACHE_TOKENS:
            self.cached_tokens -= self.cache.popitem(last=False)[1]


@dataclass(frozen=True, slots=True)
class Figures:
    policy: str
    first_token_p50_s: float
    first_token_p99_s: float
    latency_p99_s: float
    slo: float
    cache_hits: float
    price: float


class Simulation:
    """Events in a heap; an event of an engine is void once its version has moved on."""

    def __init__(
        self,
        policy: str,
        jobs: Sequence[Job],
        seed: int,
        upstreams: Sequence[Upstream],
        engine_speeds: Sequence[float],
    ) -> None:
        self.jobs = jobs
        self.engines = [Engine(speed) for speed in engine_speeds]
        self.gateways = [[Member(upstream) for upstream in upstreams] for _ in range(2)]
        self.places = {upstream.id: place for place, upstream in enumerate(upstreams)}
        chances = (random.Random(seed), random.Random(seed + 1))
        self.choose = [policies.chooser(policies.create(policy, c.random)) for c in chances]
        self.events: list[tuple[float, int, str, int, int]] = []
        self.number = self.prompt_tokens = self.reused_tokens = 0
        self.left = len(jobs)

    def run(self) -> None:
        for index, job in enumerate(self.jobs):
            self._push(job.at, "arrive", index)
        self._push(POLL_S, "poll", 0)
        while self.left:
            now, _, kind, subject, version = heapq.heappop(self.events)
            if kind == "arrive":
                self._arrive(now, subject)
            elif kind == "first":
                self._first_token(now, subject)
            elif kind == "poll":
                self._poll(now)
            elif self.engines[subject].version == version:
                self._finish(now, subject)

    def _push(self, at: float, kind: str, subject: int, version: int = 0) -> None:
        self.number += 1
        heapq.heappush(self.events, (at, self.number, kind, subject, version))

    def _arrive(self, now: float, index: int) -> None:
        job = self.jobs[index]
        chosen = self.choose[job.gateway](self.gateways[job.gateway], job.request)
        chosen.load.begin(job.request.affinity.prefixes)
        job.instance = self.places[chosen.upstream.id]
        engine = self.engines[job.instance]
        if engine.slots_used < SLOTS:
            self._admit(now, index, engine)
        else:
            engine.waiting.append(index)

    def _admit(self, now: float, index: int, engine: Engine) -> None:
        job = self.jobs[index]
        engine.slots_used += 1
        reused = engine.reused(job)
        self.prompt_tokens += job.prompt_tokens
        self.reused_tokens += reused
        self._push(engine.prefill(now, job.prompt_tokens - reused), "first", index)

    def _first_token(self, now: float, index: int) -> None:
        job = self.jobs[index]
        engine = self.engines[job.instance]
        job.first_token_at = now
        self.gateways[job.gateway][job.instance].load.first_byte(now - job.at)
        engine.advance(now)
        heapq.heappush(engine.decoding, (engine.tokens_each + job.output_tokens, index))
        self._schedule(now, job.instance)

    def _finish(self, now: float, place: int) -> None:
        engine = self.engines[place]
        engine.advance(now)
        while engine.decoding and engine.decoding[0][0] <= engine.tokens_each + 1e-6:
            job = self.jobs[heapq.heappop(engine.decoding)[1]]
            job.done_at = now
            self.gateways[job.gateway][place].load.end(now, now - job.at)
            self.left -= 1
            engine.slots_used -= 1
            if engine.waiting:
                self._admit(now, engine.waiting.pop(0), engine)
        self._schedule(now, place)

    def _schedule(self, now: float, place: int) -> None:
        engine = self.engines[place]
        engine.version += 1
        if engine.decoding:
            missing = max(0.0, engine.decoding[0][0] - engine.tokens_each)
            self._push(now + missing * engine.step_s(), "finish", place, engine.version)

    def _poll(self, now: float) -> None:
        for place, engine in enumerate(self.engines):
            engine.advance(now)
            seen = Observed(
                at=now,
                running=engine.slots_used,
                waiting=len(engine.waiting),
                generated_tokens=engine.generated,
            )
            for members in self.gateways:
                members[place].load.poll(seen)
            self._schedule(now, place)
        self._push(now + POLL_S, "poll", 0)


def speeds(count: int, even: bool) -> list[float]:
    if even:
        return [1.0] * count
    old = count // 4
    return [1.0] * (count - old) + [0.55] * (old - 1) + [0.25]


def fleet(count: int, even: bool) -> list[Upstream]:
    return [
        Upstream(
            f"i{n}",
            Address(f"10.0.0.{n}", 8000),
            weight=1.0 if speed == 1.0 else 0.55,
            cost=1.0 if speed == 1.0 else 0.4,
            limit=SLOTS,
        )
        for n, speed in enumerate(speeds(count, even))
    ]


def simulate(
    policy: str, *, seed: int, requests: int, instances: int, load: float, even: bool
) -> Figures:
    upstreams = fleet(instances, even)
    engine_speeds = speeds(instances, even)
    full = sum(engine_speeds) * SLOTS / (STEP_S + STEP_PER_SEQUENCE_S * SLOTS)
    mean_output = math.exp(5.0 + 1.1**2 / 2)
    jobs = workload(random.Random(seed), requests, load * full / mean_output)
    simulation = Simulation(policy, jobs, seed, upstreams, engine_speeds)
    simulation.run()
    # The first tenth fills caches and queues, the last tenth meets an emptying fleet.
    return figures(policy, jobs[requests // 10 : -requests // 10], simulation, upstreams)


def figures(
    policy: str, jobs: Sequence[Job], simulation: Simulation, upstreams: Sequence[Upstream]
) -> Figures:
    first = sorted(job.first_token_at - job.at for job in jobs)
    whole = sorted(job.done_at - job.at for job in jobs)
    kept = sum(
        job.first_token_at - job.at <= FIRST_TOKEN_LIMIT_S
        and job.done_at - job.first_token_at <= TOKEN_LIMIT_S * job.output_tokens
        for job in jobs
    )
    tokens = sum(job.output_tokens for job in jobs)
    paid = 0.0
    for job in jobs:
        upstream = upstreams[job.instance]
        engine = simulation.engines[job.instance]
        paid += job.output_tokens * upstream.cost / engine.speed
    return Figures(
        policy,
        round(first[len(first) // 2], 3),
        round(first[len(first) * 99 // 100], 3),
        round(whole[len(whole) * 99 // 100], 2),
        round(kept / len(jobs), 4),
        round(simulation.reused_tokens / simulation.prompt_tokens, 4),
        round(paid / tokens, 3),
    )


def table(rows: Sequence[Figures]) -> Iterator[str]:
    yield "| policy | first token p50 | first token p99 | whole answer p99 | within SLO | prompt tokens from cache | price of a token |"  # noqa: E501  # a table row cannot be broken
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        yield (
            f"| `{row.policy}` | {row.first_token_p50_s:.3f} s | {row.first_token_p99_s:.2f} s "
            f"| {row.latency_p99_s:.1f} s | {row.slo:.1%} | {row.cache_hits:.1%} "
            f"| {row.price:.3f} |"
        )


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--policy", action="append", choices=NAMES, help="only these")
    parser.add_argument("--requests", type=int, default=40_000)
    parser.add_argument("--instances", type=int, default=64)
    parser.add_argument("--load", type=float, default=0.8, help="share of the fleet's capacity")
    parser.add_argument("--even", action="store_true", help="64 equal instances, none ill")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--svg", type=Path)
    wanted = parser.parse_args(arguments)
    keys = ("seed", "requests", "instances", "load", "even")
    setting = {key: getattr(wanted, key) for key in keys}
    rows = [simulate(policy, **setting) for policy in wanted.policy or NAMES]
    if wanted.json:
        print(json.dumps({**setting, "policies": [asdict(row) for row in rows]}, indent=2))
    else:
        print("\n".join(table(rows)))
    if wanted.svg:
        bars = [(row.policy, row.first_token_p99_s, row.slo) for row in rows]
        wanted.svg.write_text(chart(bars), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

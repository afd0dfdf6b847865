"""The gateway beside vllm-router and nginx, before the same upstreams, in turns; prints JSON lines.

    python bench/gateway.py [throughput] [latency] [stream-cpu] [lag] [held] [memory]
                            [orphans] [detection]

A peer that cannot be had is left out, with the reason. Ours runs with keys, health checks,
metrics and retries on. Everything shares this machine, so only ratios within one run say much.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import gateway_faults as faults
import gateway_peers as peers
import gateway_streams as streams
from gateway_peers import KEY, Peer, Unavailable

# With 32 clients, so many different prompts: each head differs from the one before it.
_LUA = """
wrk.method = "POST"
wrk.path = "/v1/chat/completions"
wrk.headers["content-type"] = "application/json"
wrk.headers["authorization"] = "Bearer KEY"
local before = '{"model":"fake","messages":[{"role":"user","content":"Is '
local after = ' even?"}],"max_tokens":16}'
local asked, turn = {}, 0
init = function(args)
  for n = 1, LENGTHS do
    asked[n] = wrk.format(nil, nil, nil, before .. string.rep("7", n) .. after)
  end
end
request = function()
  turn = turn % LENGTHS + 1
  return asked[turn]
end
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format('JSON{"requests":%d,"us":%d,"p50_us":%d,"p99_us":%d,"errors":%d}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""


@dataclass(frozen=True)
class Load:
    requests: int
    per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: float = 0.0


def wrk(peer: Peer, folder: Path, *, seconds: int, connections: int = 32, lengths: int = 1) -> Load:
    script = folder / "load.lua"
    script.write_text(_LUA.replace("KEY", KEY).replace("LENGTHS", str(lengths)))
    argv = ("wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script), peer.url)
    before = peer.cpu_s()
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    used = peer.cpu_s() - before
    line = next(one for one in done.stdout.splitlines() if one.startswith("JSON"))
    seen = json.loads(line.removeprefix("JSON"))
    if seen["errors"]:
        raise SystemExit(f"{peer.name}: {seen['errors']} of {seen['requests']} requests failed")
    count = seen["requests"]
    per_s = count / seen["us"] * 1e6
    return Load(count, per_s, seen["p50_us"] / 1000, seen["p99_us"] / 1000, used / count * 1e6)


def show(
    name: str,
    figure: str,
    value: float,
    limit: float | None,
    *,
    least: bool = False,
    more: Mapping[str, object] | None = None,
) -> None:
    """`limit` is the most that is allowed, or the least; None: shown for comparison only."""
    record: dict[str, object] = {
        "id": f"gateway-{name}",
        "figure": figure,
        "value": round(value, 3),
    }
    if limit is not None:
        record["target"] = f"{'>=' if least else '<='} {limit:g}"
        record["pass"] = value >= limit if least else value <= limit
    print(json.dumps({**record, **(more or {})}), flush=True)


def throughput(given: argparse.Namespace) -> None:
    """First with heads that are equal byte for byte, as wrk sends them, then with heads that
    differ from each other, as most programs send them."""
    with (
        workshop() as folder,
        peers.nginx_engines(4, folder) as urls,
        everyone(urls, folder) as all_,
    ):
        for name, lengths in (("throughput", 1), ("varied", 50)):
            rounds: dict[str, list[Load]] = {one.name: [] for one in all_}
            for _ in range(given.rounds):
                for one in all_:
                    load = wrk(one, folder, seconds=given.seconds, lengths=lengths)
                    rounds[one.name].append(load)
            _compare(name, {peer: middle(loads) for peer, loads in rounds.items()})


def _compare(name: str, seen: dict[str, Load]) -> None:
    own = seen.pop("vllmdeploy")
    what = "requests/s" if name == "throughput" else "requests/s, no two heads alike"
    for peer, other in seen.items():
        bound = 1.0 if peer == "vllm-router" else None
        more = {"own": round(own.per_s), "other": round(other.per_s)}
        cpu = {"own_cpu_us": round(own.cpu_us, 1), "other_cpu_us": round(other.cpu_us, 1)}
        ratio = own.per_s / other.per_s
        show(
            f"{name}-{peer}",
            f"{what}, times {peer}",
            ratio,
            bound,
            least=True,
            more={**more, **cpu},
        )
        more_ms = {"own_ms": own.p50_ms, "other_ms": other.p50_ms}
        ratio = own.p50_ms / other.p50_ms
        show(f"{name}-p50-{peer}", f"p50 of 32 clients, times {peer}", ratio, bound, more=more_ms)


def latency(given: argparse.Namespace) -> None:
    """What each adds for one client, whose requests follow each other."""
    with (
        workshop() as folder,
        peers.nginx_engines(4, folder) as urls,
        everyone(urls, folder) as all_,
    ):
        direct = Peer("direct", int(urls[0].rpartition(":")[2]), all_[0].pid)
        rounds: dict[str, list[Load]] = {one.name: [] for one in (direct, *all_)}
        for _ in range(given.rounds):
            for one in (direct, *all_):
                load = wrk(one, folder, seconds=given.seconds, connections=1)
                rounds[one.name].append(load)
    seen = {name: middle(loads).p50_ms for name, loads in rounds.items()}
    for one in all_:
        limit = 0.3 if one.name == "vllmdeploy" else None
        added = seen[one.name] - seen["direct"]
        show(f"latency-{one.name}", f"added by {one.name} for one client, ms", added, limit)


def stream_cpu(given: argparse.Namespace) -> None:
    rounds: dict[str, list[float]] = {}
    request = streams.stream_request(chunks=100 * given.seconds, every_ms=10, key=KEY)

    async def measure(peer: Peer) -> float:
        opened = await streams.open_streams(peer.url, request, 64)
        before = peer.cpu_s()
        already = sum(one.events for one in opened)
        passed = await streams.all_ended(opened) - already
        return (peer.cpu_s() - before) / passed * 1e6

    with workshop() as folder, peers.fake_engines(2) as urls, everyone(urls, folder) as all_:
        for _ in range(given.rounds):
            for one in all_:
                rounds.setdefault(one.name, []).append(streams.run(measure(one)))
    seen = {name: statistics.median(values) for name, values in rounds.items()}
    for name, value in seen.items():
        if name != "vllmdeploy":
            more = {"own_us": round(seen["vllmdeploy"], 1), "other_us": round(value, 1)}
            ratio = seen["vllmdeploy"] / value
            limit = 1.5 if name == "nginx" else None
            show(
                f"stream-cpu-{name}",
                f"CPU per event of a stream, times {name}",
                ratio,
                limit,
                more=more,
            )


def lag(given: argparse.Namespace) -> None:
    """While four clients send 20 MB of text and a million tokens, again and again."""
    text = json.dumps({"model": "fake", "prompt": "word " * 4_000_000}).encode()
    tokens = json.dumps({"model": "fake", "prompt": list(range(1_000_000))}).encode()

    async def upload(peer: Peer, body: bytes) -> int:
        until = time.monotonic() + 2 * given.seconds
        sent = 0
        request = streams.post(body, KEY, "/v1/completions")
        while time.monotonic() < until:
            await streams.whole(peer.url, request)
            sent += 1
        return sent

    async def all_uploads(peer: Peer) -> int:
        return sum(await asyncio.gather(*(upload(peer, body) for body in (text, tokens) * 2)))

    def clocked(name: str) -> AbstractContextManager[Peer]:
        start = (str(peers.HERE / "gateway_lag.py"), str(folder / name))
        return peers.ours(urls, folder, start=start)

    with workshop() as folder, peers.nginx_engines(4, folder) as urls:
        # The idle one shows by how much this machine, busy as it is, is late itself.
        with clocked("idle"), clocked("busy") as own:
            sent = streams.run(all_uploads(own))
        seen = {name: json.loads((folder / name).read_text()) for name in ("busy", "idle")}
    more = {f"{name}_{part}": round(ms, 2) for name in seen for part, ms in seen[name].items()}
    p99 = seen["busy"]["p99"]
    show("lag", "loop lag p99 with 20 MB bodies, ms", p99, 20, more={"bodies": sent, **more})


def held(given: argparse.Namespace) -> None:
    request = streams.stream_request(chunks=1000, every_ms=5000, key=KEY)

    async def hold(peer: Peer) -> float:
        opened = await streams.open_streams(peer.url, request, given.streams)
        memory = peer.memory_mib()
        for one in opened:
            one.leave()
        return memory

    peers.many_files()
    with workshop() as folder, peers.fake_engines(2) as urls:
        more = ("--limit", str(given.streams))
        with peers.ours(urls, folder, *more) as own:
            idle = round(own.memory_mib())
            used = streams.run(hold(own))
    show(
        "held",
        f"{given.streams} streams held, MiB",
        used,
        1024,
        more={"n": given.streams, "idle_mib": idle},
    )


def memory(given: argparse.Namespace) -> None:
    """What the first tenth leaves behind is its working memory; what comes on top is a leak."""
    with (
        workshop() as folder,
        peers.nginx_engines(4, folder) as urls,
        peers.ours(urls, folder) as own,
    ):
        count = 0
        while count < given.requests / 10:
            count += wrk(own, folder, seconds=5, lengths=50).requests
        warm = own.memory_mib()
        while count < given.requests:
            count += wrk(own, folder, seconds=5, lengths=50).requests
        grown = own.memory_mib() - warm
    show(
        "memory",
        "memory grown by a million requests, MiB",
        grown,
        5,
        more={"n": count, "warm_mib": round(warm)},
    )


def orphans(given: argparse.Namespace) -> None:
    """Streams whose clients leave in the middle: from then on their engines work for nobody."""
    with workshop() as folder:
        late = sorted(streams.run(faults.orphans(folder, given.leaving)))
    name = f"slowest of {len(late)} engines freed after a client left, ms"
    show("orphans", name, late[-1] * 1000, 100, more={"p50_ms": round(late[len(late) // 2] * 1000)})


def detection(given: argparse.Namespace) -> None:
    for fault, (_, limit, what) in faults.FAULTS.items():
        seen: list[float] = []
        for _ in range(given.rounds):
            with workshop() as folder:
                seen.append(faults.until_unused(folder, fault))
        more = {"s": [round(one, 3) for one in seen]}
        show(
            f"detection-{fault}",
            f"an engine {what}: seconds it is used",
            max(seen),
            limit,
            more=more,
        )


def middle(loads: Sequence[Load]) -> Load:
    return Load(
        sum(one.requests for one in loads),
        statistics.median(one.per_s for one in loads),
        statistics.median(one.p50_ms for one in loads),
        statistics.median(one.p99_ms for one in loads),
        statistics.median(one.cpu_us for one in loads),
    )


@contextlib.contextmanager
def everyone(urls: Sequence[str], folder: Path) -> Generator[list[Peer]]:
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(peers.ours(urls, folder))]
        for name, start in (("vllm-router", peers.vllm_router), ("nginx", peers.nginx_proxy)):
            try:
                found.append(stack.enter_context(start(urls, folder)))
            except Unavailable as error:
                print(json.dumps({"left_out": name, "why": str(error)}), flush=True)
        yield found


@contextlib.contextmanager
def workshop() -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as name:
        yield Path(name)


_FIGURES: dict[str, Callable[[argparse.Namespace], None]] = {
    "throughput": throughput,
    "latency": latency,
    "stream-cpu": stream_cpu,
    "lag": lag,
    "held": held,
    "memory": memory,
    "orphans": orphans,
    "detection": detection,
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("figures", nargs="*", metavar="FIGURE", help=", ".join(_FIGURES))
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--seconds", type=int, default=5)
    options.add_argument("--streams", type=int, default=8000)
    options.add_argument("--leaving", type=int, default=1000)
    options.add_argument("--requests", type=int, default=1_000_000)
    given = options.parse_args()
    for name in given.figures or _FIGURES:
        if name not in _FIGURES:
            options.error(f"unknown figure {name!r}; known: {', '.join(_FIGURES)}")
        _FIGURES[name](given)


if __name__ == "__main__":
    main()

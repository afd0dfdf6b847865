"""The gateway with a clock inside: `python bench/gateway_lag.py OUT GATEWAY-OPTIONS...` is the
gateway, which writes to OUT, at its end, by how much its event loop was late."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from time import monotonic, thread_time

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vllmdeploy.gateway.journal import to_stderr  # noqa: E402
from vllmdeploy.gateway.options import spec  # noqa: E402
from vllmdeploy.gateway.run import run  # noqa: E402
from vllmdeploy.wire import loop  # noqa: E402

_EVERY_S = 0.001
_PARTS = {"p50": 0.5, "p99": 0.99, "p999": 0.999}


async def late(lags: list[float], works: list[float]) -> None:
    while True:
        began, worked = monotonic(), thread_time()
        await asyncio.sleep(_EVERY_S)
        lags.append(monotonic() - began - _EVERY_S)
        works.append(thread_time() - worked)


async def gateway(options: list[str], lags: list[float], works: list[float]) -> None:
    clock = asyncio.ensure_future(late(lags, works))
    try:
        await run(spec(options))
    finally:
        clock.cancel()


def summary(lags: list[float], works: list[float]) -> dict[str, float]:
    """In milliseconds. `cpu` is what the loop itself worked meanwhile: the rest of its lateness is
    the machine's, which gave the processor to others."""
    found: dict[str, float] = {"samples": len(lags)}
    for prefix, times in (("", sorted(lags)), ("cpu_", sorted(works))):
        for name, part in _PARTS.items():
            found[prefix + name] = times[int(len(times) * part)] * 1000
        found[f"{prefix}max"] = times[-1] * 1000
    return found


if __name__ == "__main__":
    to_stderr()
    loop.raise_open_files()
    late_by: list[float] = []
    worked_for: list[float] = []
    loop.run(gateway(sys.argv[2:], late_by, worked_for))
    Path(sys.argv[1]).write_text(json.dumps(summary(late_by, worked_for)))

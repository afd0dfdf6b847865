"""Prometheus' own checker reads /metrics, where it is installed; numbers of any size stay exact."""

from __future__ import annotations

import asyncio
import re
import shutil

import pytest

from tests.support.running_gateway import served
from vllmdeploy.gateway.meters import Page

PROMTOOL = shutil.which("promtool")
ENGINE_PAGE = """\
# HELP vllm:num_requests_running Running.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{model_name="m"} 3.0
# HELP vllm:e2e_request_latency_seconds Latency.
# TYPE vllm:e2e_request_latency_seconds histogram
vllm:e2e_request_latency_seconds_bucket{le="0.3",model_name="m"} 1.0
vllm:e2e_request_latency_seconds_bucket{le="+Inf",model_name="m"} 2.0
vllm:e2e_request_latency_seconds_count{model_name="m"} 2.0
vllm:e2e_request_latency_seconds_sum{model_name="m"} 0.7
"""
# The engine's own names, which dashboards know.
THEIRS = re.compile(r"vllm:[a-z0-9_]+ metric names should not contain ':'")


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")
async def test_prometheus_own_checker_finds_nothing_in_our_numbers() -> None:
    async with served(models=("m", "m", 'a"\\b')) as (api, found):
        for engine in found:
            engine.counters = ENGINE_PAGE
        for path in ("/generate", "/v1/completions"):
            for stream in (False, True):
                await api.post(path, {"prompt": "x", "model": "m", "stream": stream})
        await api.get("/none")
        found[0].mode = found[1].mode = "500"
        await api.post("/generate", {"prompt": "x", "model": "m"})

        async def merged() -> bool:
            text = (await api.get("/metrics")).text
            return all(f'running{{instance="127.0.0.1:{one.port}"' in text for one in found)

        await api.until(merged)
        page = (await api.get("/metrics")).content
    assert b"broken_streams" in page
    assert await complaints(page) == []


async def complaints(page: bytes) -> list[str]:
    checker = await asyncio.create_subprocess_exec(
        *(str(PROMTOOL), "check", "metrics"),
        stdin=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    out, errors = await asyncio.wait_for(checker.communicate(page), 60)
    assert checker.returncode in (0, 3), errors  # 3: read, with remarks
    return [line for line in (out + errors).decode().splitlines() if not THEIRS.fullmatch(line)]


def test_a_counter_of_millions_is_exact() -> None:
    page = Page()
    page.family("a_total", "counter", "A.", (), [((), 123_456_789)])
    page.family("b", "gauge", "B.", ("x",), [(("y",), 0.5)])
    assert page.text() == (
        b"# HELP a_total A.\n# TYPE a_total counter\na_total 123456789\n"
        b'# HELP b B.\n# TYPE b gauge\nb{x="y"} 0.5\n'
    )

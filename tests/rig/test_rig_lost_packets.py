"""Packets that vanish between the gateway and its instances: all of them, and every tenth."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from tests.rig import fake_vllm
from tests.rig import rig as rigs
from tests.rig.disk import Profile
from tests.rig.programs import until
from tests.rig.rig import Rig
from tests.rig.test_rig_instances import free_ports

pytestmark = pytest.mark.long
PORT = 8100
CLIENTS = 16


@pytest.fixture(scope="module")
def rig() -> Generator[Rig]:
    fleet = rigs.start(tuple(Profile(name=name, engine=False) for name in ("a", "b")))
    for host in fleet.hosts:
        host.sh("cat >/run/vllm.py", stdin=fake_vllm.SERVER.encode())
        served = f"--served-model-name m --host 0.0.0.0 --port {PORT}"
        host.sh(f"setsid {sys.executable} /run/vllm.py {served} >/run/vllm.log 2>&1 </dev/null &")
    yield fleet
    fleet.remove()


@contextmanager
def gateway(rig: Rig) -> Generator[str]:
    port = free_ports()[0]
    argv = (
        *(sys.executable, "-m", "vllmdeploy.gateway", "--listen", f"127.0.0.1:{port}"),
        *("--policy", "round_robin", "--no-canary"),
        *(word for host in rig.hosts for word in ("--upstream", f"http://{host.ip}:{PORT}")),
    )
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as process:
        try:
            until("both instances serve", lambda: ready(url) == 2, limit_s=60)
            yield url
        finally:
            process.kill()


def ready(url: str) -> int:
    try:
        with urllib.request.urlopen(f"{url}/", timeout=5) as answer:
            shown: dict[str, Any] = json.loads(answer.read())
    except OSError:
        return 0
    return int(shown["instances"]["ready"])


def ask(url: str) -> int:
    asked = json.dumps({"model": "m", "prompt": "x", "max_tokens": 1}).encode()
    head = {"content-type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/completions", asked, head)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return int(answer.status)
    except OSError:
        return 0


def test_an_instance_in_a_black_hole_costs_no_request(
    rig: Rig, record_property: Callable[[str, object], None]
) -> None:
    lost = f"INPUT -p tcp --dport {PORT} -j DROP"
    with gateway(rig) as url, ThreadPoolExecutor(CLIENTS) as pool:
        before = [pool.submit(ask, url) for _ in range(200)]
        rig["a"].sh(f"iptables -A {lost}")
        began = time.monotonic()
        try:
            during = [pool.submit(ask, url) for _ in range(400)]
            until("it is out of use", lambda: ready(url) == 1, limit_s=60, every_s=0.1)
            record_property("out_of_use_s", round(time.monotonic() - began, 1))
            after = [pool.submit(ask, url) for _ in range(200)]
            statuses = [one.result() for one in (*before, *during, *after)]
        finally:
            rig["a"].sh(f"iptables -D {lost}")
        assert {*statuses} == {200}
        until("it is used again", lambda: ready(url) == 2, limit_s=60)


def test_every_tenth_packet_lost_is_slower_and_loses_nothing(rig: Rig) -> None:
    some = f"INPUT -p tcp --dport {PORT} -m statistic --mode random --probability 0.1 -j DROP"
    with gateway(rig) as url, ThreadPoolExecutor(CLIENTS) as pool:
        for host in rig.hosts:
            host.sh(f"iptables -A {some}")
        try:
            statuses = list(pool.map(ask, [url] * 400))
        finally:
            for host in rig.hosts:
                host.sh(f"iptables -D {some}")
        assert {*statuses} == {200}

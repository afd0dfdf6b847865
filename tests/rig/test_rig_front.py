"""A third machine without cards offers the API: engines on two others, the gateway between."""

from __future__ import annotations

import io
import json
import tarfile
import urllib.error
import urllib.request
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.plan.service_builders import CONFIG
from tests.rig import base, fake_vllm, look
from tests.rig import rig as rigs
from tests.rig.disk import Profile
from tests.rig.operate import Operator, operator
from tests.rig.programs import until
from tests.rig.rig import Rig
from vllmdeploy.core.layout import SYSTEM_STATE_ROOT

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def rig() -> Generator[Rig]:
    fleet = rigs.start((Profile(name="a", cards=1), Profile(name="b", cards=1), Profile(name="c")))
    yield fleet
    fleet.remove()


def generate(host: str, key: str) -> dict[str, object]:
    request = urllib.request.Request(
        f"http://{host}:8000/generate",
        json.dumps({"prompt": "The capital of France is", "max_tokens": 4}).encode(),
        {"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        shown: dict[str, object] = json.loads(answer.read())
    return shown


def api_key(said: str) -> str:
    return next(line for line in said.splitlines() if line.startswith("API key")).split()[-1]


def fleet_of(rig: Rig, folder: Path, **keys: str | int) -> Operator:
    """A and B are in worker_nodes.txt, C is in GATEWAY_HOSTS alone."""
    return operator(rig, folder, rig["a"], rig["b"], GATEWAY_HOSTS=rig["c"].address, **keys)


def started(made: Operator) -> str:
    """Two instances, one on each machine with cards; the key that is shown once."""
    done = made.runs("instances", "start", "m", "--count", "2", "--yes")
    assert done.returncode == 0, done.stderr
    return api_key(done.stdout)


def check_answers(rig: Rig, made: Operator) -> None:
    key = started(made)
    seen = {str(generate(rig["c"].ip, key)["instance"]) for _ in range(20)}
    assert len(seen) == 2, seen
    with pytest.raises(urllib.error.HTTPError, match="401"):
        generate(rig["c"].ip, "sk-of-nobody")
    for other in ("a", "b"):
        with pytest.raises(OSError, match="refused"):
            generate(rig[other].ip, key)
    check_keys(rig, made)
    shown = json.loads(made.runs("status", "--json").stdout)
    (front,) = (row for row in shown["hosts"] if row["host"] == rig["c"].ip)
    assert (front["role"], front["state"], front["ip"]) == ("gateway", "ready", rig["c"].ip)


def check_keys(rig: Rig, made: Operator) -> None:
    """A key of one more person works on the front at once, and ends when it is revoked."""
    key = made.runs("keys", "add", "alice").stdout.strip()
    until("the new key works", lambda: answers(rig["c"].ip, key))
    assert made.runs("keys", "revoke", "alice").returncode == 0
    until("the old key is refused", lambda: not answers(rig["c"].ip, key))


def answers(host: str, key: str) -> bool:
    try:
        return bool(generate(host, key))
    except urllib.error.HTTPError as error:
        if error.code != 401:
            raise
        return False


def brought(rig: Rig, folder: Path) -> str:
    """A vLLM that pretends and a model's folder, on every host; the interpreter that has both."""
    (folder / "models/m").mkdir(parents=True)
    (folder / "models/m/config.json").write_text(CONFIG)
    python = fake_vllm.interpreter(folder)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(folder, arcname=".")
    for host in rig.hosts:
        host.sh('mkdir -p "$1" && tar -x -C "$1"', str(folder), stdin=packed.getvalue())
    return str(python)


@pytest.mark.parametrize("runtime", ["docker", "process"])
def test_machine_c_offers_what_a_and_b_run(rig: Rig, tmp_path: Path, runtime: str) -> None:
    python = brought(rig, tmp_path)
    inside = f"{base.docker_args(str(tmp_path))} -v {tmp_path}:{tmp_path}:ro"
    made = fleet_of(
        rig,
        tmp_path,
        CLUSTER_NAME=f"front-{runtime}",
        MODEL_PATH=f"{tmp_path}/models",
        RUNTIME=runtime,
        EXECUTOR="mp",
        ROUTING_STRATEGY="round_robin",
        VLLM_PYTHON=python,
        EXTRA_DOCKER_ARGS=inside if runtime == "docker" else "",
    )
    check_answers(rig, made)
    assert "nothing to do" in made.runs("instances", "start", "m", "--count", "2", "--yes").stderr
    if runtime == "docker":
        (node,) = look.containers(rig["c"]).values()
        assert (node.labels["vllmdeploy.role"], node.labels["vllmdeploy.group"]) == (
            "gateway",
            "gateway",
        )
    made.down("--forget")
    for host in rig.hosts:
        assert look.containers(host) == {}
        assert f"{SYSTEM_STATE_ROOT}/front-" not in host.sh("ps -eo args").stdout

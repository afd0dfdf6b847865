"""Instances and their gateway as systemd units: by our plan over SSH, and by the exported files."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.request
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.plan.service_builders import CONFIG
from tests.rig import fake_vllm
from tests.rig import rig as rigs
from tests.rig.booted import SYSTEMD, boot_systemd
from tests.rig.disk import Profile
from tests.rig.operate import Operator, operator
from tests.rig.programs import until
from tests.rig.rig import Rig

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not SYSTEMD.exists(), reason="this machine has no systemd"),
]

FIRST = "vllmdeploy-vllm-instance-m-1.service"
UNITS = (FIRST, "vllmdeploy-vllm-instance-m-2.service", "vllmdeploy-vllm-gateway.service")


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Generator[Rig]:
    fleet = rigs.start((Profile(name="head", engine=False, cards=0),))
    try:
        _install_engine(fleet, tmp_path_factory.mktemp("engine"))
        boot_systemd(fleet.head)
        yield fleet
    finally:
        fleet.remove()


def _install_engine(fleet: Rig, folder: Path) -> None:
    """A vLLM that pretends and a model, where the host sees them."""
    program = fake_vllm.interpreter(folder)
    program.write_text(program.read_text().replace(str(folder), "/opt/engine"))
    root = fleet.head.disk.root
    shutil.copytree(folder, root / "opt/engine")
    (root / "srv/models/m").mkdir(parents=True)
    (root / "srv/models/m/config.json").write_text(CONFIG)


@pytest.fixture
def fleet(rig: Rig, tmp_path: Path) -> Operator:
    return operator(
        rig,
        tmp_path,
        RUNTIME="systemd",
        VLLM_PYTHON="/opt/engine/bin/python3",
        MODEL_PATH="/srv/models",
        EXTRA_DOCKER_ARGS="",
    )


def _states(rig: Rig, word: str, units: tuple[str, ...] = UNITS) -> list[str]:
    said = rig.ssh(rig.head, f"systemctl {word} {' '.join(units)}", check=False)
    return said.split()


def _answer(rig: Rig, key: str) -> str:
    request = urllib.request.Request(
        f"http://{rig.head.ip}:8000/generate",
        json.dumps({"prompt": "The capital of France is", "max_tokens": 4}).encode(),
        {"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        text: str = json.loads(answer.read())["text"]
    return text


def test_units_are_started_restarted_drained_and_removed_over_ssh(
    rig: Rig, fleet: Operator
) -> None:
    shown = fleet.succeeds("instances", "start", "m", "--count", "2", "--yes").stdout
    key = next(line for line in shown.splitlines() if line.startswith("API key")).split()[-1]
    assert _states(rig, "is-active") == ["active"] * 3
    assert _states(rig, "is-enabled") == ["enabled"] * 3
    assert _answer(rig, key) == " Paris"
    written = f"/etc/systemd/system/{FIRST}"
    assert rig.ssh(rig.head, f"systemd-analyze verify {written} 2>&1", check=False) == ""

    def main_pid() -> str:
        return rig.ssh(rig.head, f"systemctl show --property MainPID --value {FIRST}").strip()

    killed = main_pid()
    rig.ssh(rig.head, f"kill -KILL {killed}")
    until("systemd starts it again", lambda: main_pid() not in ("0", killed), limit_s=60)
    until("it answers again", lambda: _all_answer(fleet), limit_s=120, every_s=1)

    fleet.succeeds("instances", "restart", "m", "--number", "1", "--yes")
    fleet.succeeds("instances", "stop", "m", "--number", "2", "--yes")
    assert _states(rig, "is-active") == ["active", "inactive", "active"]
    assert _answer(rig, key) == " Paris"
    fleet.down("--forget")
    assert _states(rig, "is-active") == ["inactive"] * 3
    assert "vllmdeploy" not in rig.ssh(rig.head, "ls /etc/systemd/system")


def _all_answer(fleet: Operator) -> bool:
    done = fleet.runs("instances", "check", "--json")
    return all(one["state"] == "answers" for one in json.loads(done.stdout)["instances"])


def test_the_exported_files_install_themselves_and_serve(
    rig: Rig, fleet: Operator, tmp_path: Path
) -> None:
    fleet.succeeds("export", "systemd", "m", "--count", "2", "--to", str(tmp_path / "units"))
    (folder,) = (tmp_path / "units").iterdir()
    packed = subprocess.run(
        ("tar", "-C", str(folder), "-c", "."), capture_output=True, check=True
    ).stdout
    rig.head.sh("mkdir -p /srv/units && tar -C /srv/units -x", stdin=packed)
    rig.ssh(rig.head, "sh /srv/units/install.sh")
    units = ("m@1.service", "m@2.service", "vllm-gateway.service")
    key = rig.ssh(rig.head, "cat /etc/vllm/api_keys").strip().partition(":")[2]

    def serves() -> bool:
        try:
            return _answer(rig, key) == " Paris"
        except OSError:
            return False

    until("it answers", serves, limit_s=90, every_s=0.5)
    assert _states(rig, "is-active", units) == ["active"] * 3
    assert _states(rig, "is-enabled", units) == ["enabled"] * 3
    rig.ssh(rig.head, f"systemctl disable --now {' '.join(units)}")

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import pytest

from vllmdeploy.accelerators import cpu
from vllmdeploy.effects.package import build
from vllmdeploy.node import cpu_platform

ENGINE = Path(__file__).parents[2] / ".venv-engine/bin/python"


def test_it_stays_out_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cpu_platform.SWITCH, raising=False)
    assert cpu_platform.wanted() is None
    monkeypatch.setenv(cpu_platform.SWITCH, "0")
    assert cpu_platform.wanted() is None
    monkeypatch.setenv(cpu_platform.SWITCH, "1")
    assert cpu_platform.wanted() == "vllmdeploy.node.cpu_platform.CpuOverRay"


def test_its_classes_extend_those_of_the_vllm_that_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    theirs = types.ModuleType("vllm.platforms.cpu")
    theirs.__dict__["CpuPlatform"] = type("CpuPlatform", (), {"device_type": "cpu"})
    shared = "vllm.distributed.device_communicators.cpu_communicator"
    communicators = types.ModuleType(shared)
    communicators.__dict__["CpuCommunicator"] = type("CpuCommunicator", (), {})
    monkeypatch.setitem(sys.modules, "vllm.platforms.cpu", theirs)
    monkeypatch.setitem(sys.modules, shared, communicators)

    platform = cpu_platform.__getattr__("CpuOverRay")
    communicator = cpu_platform.__getattr__("AcrossHosts")
    monkeypatch.delattr(cpu_platform, "CpuOverRay")
    monkeypatch.delattr(cpu_platform, "AcrossHosts")

    assert (platform.device_type, platform.ray_device_key) == ("cpu", "GPU")
    assert platform.device_control_id_to_physical_device_id("3") == 3
    assert platform.get_device_communicator_cls() == "vllmdeploy.node.cpu_platform.AcrossHosts"
    assert communicator()._all_group_ranks_share_shm_group_name() is False


def test_nodes_without_cards_ask_for_it() -> None:
    assert cpu.ACCELERATOR.ray_environment[cpu_platform.SWITCH] == "1"


def test_other_names_are_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Cuda'"):
        cpu_platform.__getattr__("Cuda")


FIND = """
from importlib.metadata import entry_points
(found,) = (one for one in entry_points(group="vllm.platform_plugins") if "vllmdeploy" in one.name)
print(found.load()())
"""


def test_the_zip_alone_makes_it_known_to_vllm(tmp_path: Path) -> None:
    archive = tmp_path / "vllmdeploy.zip"
    archive.write_bytes(build().content)
    environment = {"PYTHONPATH": str(archive), cpu_platform.SWITCH: "1"}
    found = subprocess.run(
        (sys.executable, "-S", "-c", FIND),
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == "vllmdeploy.node.cpu_platform.CpuOverRay\n"


RESOLVE = """
from vllm.platforms import current_platform
from vllm.utils.import_utils import resolve_obj_by_qualname
print(current_platform.ray_device_key, current_platform.device_type)
print(resolve_obj_by_qualname(current_platform.get_device_communicator_cls()).__mro__[1].__name__)
"""


@pytest.mark.skipif(not ENGINE.exists(), reason="scripts/engine.sh has not been run")
def test_a_real_vllm_takes_it(tmp_path: Path) -> None:
    archive = tmp_path / "vllmdeploy.zip"
    archive.write_bytes(build().content)
    environment = {"PYTHONPATH": str(archive), cpu_platform.SWITCH: "1", "PATH": "/usr/bin:/bin"}
    asked = subprocess.run(
        (ENGINE, "-c", RESOLVE),
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert asked.stdout.splitlines()[-2:] == ["GPU cpu", "CpuCommunicator"], asked.stderr

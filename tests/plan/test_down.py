"""Taking a fleet down, as whole plans."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

from tests.plan.builders import (
    PACKAGE,
    bare,
    foreign,
    instance,
    lines,
    settled,
    two_hosts,
    wanted,
)
from vllmdeploy.core.plan import Plan
from vllmdeploy.plan.down import plan_down
from vllmdeploy.plan.observed import FoundHost, FoundNode
from vllmdeploy.plan.supervise import AsProcess, InDocker, InSystemd


def down(found: list[FoundHost], *, forget: bool = False) -> Plan:
    return plan_down(wanted(), found, InDocker(), forget=forget)


def test_workers_go_first_and_the_state_stays() -> None:
    plan = down(settled(wanted(), two_hosts()))
    assert (
        lines(plan)
        == """\
gpu-02: stop vllm-ray-worker (down)
gpu-02: remove vllm-ray-worker (down)
gpu-02: remove package and run files (down)
gpu-01: stop vllm-ray-head (down)
gpu-01: remove vllm-ray-head (down)
gpu-01: remove package and run files (down)"""
    )
    assert plan.destructive
    head = next(step for step in plan if step.key == "gpu-01: stop vllm-ray-head")
    assert "gpu-02: remove vllm-ray-worker" in head.needs
    files = next(step for step in plan if step.key == "gpu-02: remove package and run files")
    assert str(files.command) == (
        "rm -rf -- /var/lib/vllmdeploy/vllm/run /var/lib/vllmdeploy/vllm/pkg"
        " /var/lib/vllmdeploy/vllm/cache/probes"
    )


def test_what_is_not_ours_stays() -> None:
    first, second = two_hosts()
    theirs = replace(instance("other-1", 0), labels={"vllmdeploy.cluster": "other"})
    found = [first, replace(second, containers=(foreign("redis"), theirs))]
    assert lines(down(found)) == ""


def test_everything_of_ours_goes() -> None:
    found = [
        replace(bare("a", "10.0.0.1", head=True), containers=(instance("vllm-instance-x", 0),))
    ]
    assert lines(down(found)).splitlines()[:2] == [
        "a: stop vllm-instance-x (down)",
        "a: remove vllm-instance-x (down)",
    ]


def forgets(root: Path) -> None:
    """The step's own command, carried out on another folder."""
    plan = down([bare("a", "10.0.0.1", head=True)], forget=True)
    assert lines(plan) == "a: forget specs, secrets and logs (down)"
    *argv, folder = plan.steps[0].command.argv
    assert folder == "/var/lib/vllmdeploy/vllm"
    subprocess.run([*argv, str(root)], check=True, capture_output=True)


def test_forgetting_leaves_the_lock_that_is_held_and_the_audit_log(tmp_path: Path) -> None:
    root = tmp_path / "vllmdeploy" / "vllm"
    for folder in ("secrets/ray", "services", "logs/n", "run", "pkg/x", "cache/c", "lock"):
        (root / folder).mkdir(parents=True)
    (root / "audit.log").write_text("one run\n", "utf-8")
    forgets(root)
    assert sorted(path.name for path in root.iterdir()) == ["audit.log", "lock"]


def test_forgetting_leaves_no_empty_folder_of_ours(tmp_path: Path) -> None:
    (tmp_path / "vllmdeploy" / "vllm" / "secrets").mkdir(parents=True)
    forgets(tmp_path / "vllmdeploy" / "vllm")
    assert list(tmp_path.iterdir()) == []
    forgets(tmp_path / "vllmdeploy" / "vllm")


def test_a_host_with_nothing_but_a_package_is_cleaned() -> None:
    found = replace(bare("a", "10.0.0.1", head=True), packages=(PACKAGE,))
    assert lines(down([found])) == "a: remove package and run files (down)"


def test_sudo_stands_where_it_must_and_answers_of_images_go_too() -> None:
    found = replace(bare("a", "10.0.0.1", head=True), packages=(PACKAGE,))
    way = replace(found.access, sudo_files=True, home="/home/u")
    command = down([replace(found, access=way)]).steps[0].command
    assert command.argv[:4] == ("sudo", "-n", "--", "rm")
    assert command.argv[-1] == "/home/u/.local/state/vllmdeploy/vllm/cache/probes"


def test_nodes_outside_docker_go_by_their_own_commands() -> None:
    node = FoundNode(name="n", id="n", role="ray-head", group="default", running=True)
    found = [replace(bare("a", "10.0.0.1", head=True), supervised=(node,))]
    process = plan_down(wanted(), found, AsProcess("python3"))
    unit = plan_down(wanted(), found, InSystemd("python3"))
    assert [step.verb for step in process] == ["stop", "remove", "remove"]
    assert [step.verb for step in unit] == ["stop", "remove"]

"""What `mps` plans for a host, and what it refuses: values in, whole texts out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.plan.builders import bare, instance, lines
from vllmdeploy.core.card import Card, CardReport
from vllmdeploy.core.plan import Draft, Plan
from vllmdeploy.core.spec import MPS_LABEL
from vllmdeploy.plan import mps, mps_stop
from vllmdeploy.plan.mps import FoundMps, MpsWanted
from vllmdeploy.plan.mps_refusals import refusals
from vllmdeploy.plan.mps_status import rows
from vllmdeploy.plan.observed import FoundNode
from vllmdeploy.plan.supervise import AsProcess, InDocker, InSystemd, Supervisor
from vllmdeploy.tools.docker import Container
from vllmdeploy.tools.mps_found import Client, Daemon, Mps, Server

IN_DOCKER = InDocker(60)
WANTED = MpsWanted(cluster="vllm", pipe="/tmp/nvidia-mps", log="/tmp/nvidia-log", uid=0)
CARDS = tuple(Card(index=index, uuid=f"GPU-{index}", memory_total_mib=81_559) for index in (0, 1))
OURS = Daemon(pid=77, uid=0, pipe="/tmp/nvidia-mps/card-1", cards=("GPU-1",), mark="vllm")


def host(*daemons: Daemon, **changes: Any) -> FoundMps:
    found = replace(
        bare("gpu-01", "10.0.0.1"), cards=CardReport(vendor="nvidia", cards=CARDS), **changes
    )
    modes = {"GPU-0": "Default", "GPU-1": "Default"}
    return FoundMps(found=found, mps=Mps(installed=True, daemons=daemons, modes=modes))


def started(what: MpsWanted, found: FoundMps) -> Plan:
    draft = Draft()
    mps.start(draft, what, found)
    return draft.finished()


def restarted(what: MpsWanted, found: FoundMps, runtime: Supervisor = IN_DOCKER) -> Plan:
    draft = Draft()
    mps_stop.restart(draft, what, found, runtime)
    return draft.finished()


def test_a_card_without_a_daemon_gets_one_and_the_other_is_left_alone() -> None:
    plan = started(replace(WANTED, exclusive=True), host(OURS))
    assert lines(plan) == (
        "gpu-01: remember compute modes (restored at stop)\n"
        "gpu-01: set compute mode of card 0 to EXCLUSIVE_PROCESS (--exclusive; it is Default)\n"
        "gpu-01: prepare MPS folders of card 0 (for the daemon)\n"
        "gpu-01: clean MPS logs of card 0 (older than 7 days, or large)\n"
        "gpu-01: start MPS daemon of card 0 (not running)\n"
        "gpu-01: await MPS daemon of card 0 (it answers)"
    )
    begin = next(step for step in plan if step.key == "gpu-01: start MPS daemon of card 0")
    assert begin.command.argv[4:] == (
        *("env", "CUDA_VISIBLE_DEVICES=GPU-0", "CUDA_MPS_PIPE_DIRECTORY=/tmp/nvidia-mps/card-0"),
        *("CUDA_MPS_LOG_DIRECTORY=/tmp/nvidia-log/card-0", "VLLMDEPLOY_MPS=vllm"),
        *("nvidia-cuda-mps-control", "-d"),
    )


def test_a_plan_applied_is_a_plan_without_steps() -> None:
    both = [replace(OURS, pipe=f"/tmp/nvidia-mps/card-{n}", cards=(f"GPU-{n}",)) for n in (0, 1)]
    assert started(WANTED, host(*both)).steps == ()


def refused(what: MpsWanted, found: FoundMps) -> list[str]:
    return list(refusals(what, found))


def test_a_host_is_refused_with_every_reason() -> None:
    amd = replace(host(), found=replace(host().found, cards=CardReport(vendor="amd")))
    assert refused(WANTED, amd) == ["gpu-01: MPS is NVIDIA's, and this host has amd"]
    bare_host = replace(host(), mps=Mps())
    assert refused(replace(WANTED, cards=(7,), pipe="/" + "p" * 99), bare_host) == [
        "gpu-01: there is no nvidia-cuda-mps-control: it comes with NVIDIA's driver"
        " (package nvidia-compute-utils-VERSION, or the .run installer)",
        "gpu-01: there is no card 7 (it has 0,1)",
    ]
    long = "/" + "p" * 90
    assert refused(replace(WANTED, per="host", pipe=long), host()) == [
        f"gpu-01: {long} is too long for a socket in it: at most 90 characters"
        " (CUDA_MPS_PIPE_DIRECTORY)"
    ]


def test_engines_of_another_user_would_wait_for_ever() -> None:
    access = replace(host().found.access, uid=1000)
    assert refused(WANTED, host(access=access)) == [
        "gpu-01: the engines run as uid 0 and MPS would run as uid 1000: their processes would"
        " wait for ever; connect as root, or set SUDO=always"
    ]
    assert refused(WANTED, host(access=replace(access, sudo_files=True))) == []
    assert refused(replace(WANTED, uid=1000), host(access=access)) == []


def test_a_daemon_of_another_user_is_named_with_the_way_to_end_it() -> None:
    theirs = Daemon(pid=9, uid=1001, pipe="/tmp/nvidia-mps")
    reason = (
        "gpu-01: card {}: an MPS daemon of uid 1001 (pid 9, /tmp/nvidia-mps) is there already,"
        " not started by vllmdeploy; stop it as its user:"
        " echo quit | CUDA_MPS_PIPE_DIRECTORY=/tmp/nvidia-mps nvidia-cuda-mps-control"
    )
    assert refused(WANTED, host(theirs)) == [reason.format(0), reason.format(1)]


def shared(name: str) -> Container:
    one = instance(name, 1)
    return replace(one, labels={**one.labels, MPS_LABEL: OURS.pipe})


def in_fault() -> FoundMps:
    client = Client(pid=12, uid=0, program="VLLM::EngineCor", container="id-of-m-2")
    server = Server(
        pid=78,
        uid=0,
        status="FAULT",
        percentage="100",
        clients=(client,),
        fault="[2026-11-21 09:00:00.000 Server 78] Client 12 encountered a fatal GPU error",
    )
    return host(replace(OURS, servers=(server,)), containers=(shared("m-1"), shared("m-2")))


@pytest.mark.parametrize(
    ("before", "asked", "steps"),
    [
        ("50", None, ["set 50% of threads on card 1 (as it was)"]),
        ("50", 70, ["set 70% of threads on card 1 (--percentage)"]),
        ("100", None, []),
        ("", None, []),
    ],
)
def test_a_daemon_that_starts_anew_keeps_its_percentage(
    before: str, asked: int | None, steps: list[str]
) -> None:
    found = host(replace(OURS, percentage=before))
    plan = restarted(replace(WANTED, cards=(1,), percentage=asked), found)
    assert [line for line in lines(plan).splitlines() if " set " in line] == [
        f"gpu-01: {step}" for step in steps
    ]


def test_a_group_starts_anew_together_and_one_at_a_time() -> None:
    plan = restarted(replace(WANTED, cards=(1,)), in_fault())
    assert lines(plan) == (
        "gpu-01: stop m-1 (server 78 is in a fault)\n"
        "gpu-01: stop m-2 (server 78 is in a fault)\n"
        "gpu-01: stop MPS daemon 77 at /tmp/nvidia-mps/card-1 (server 78 is in a fault)\n"
        "gpu-01: await end of MPS daemon 77 at /tmp/nvidia-mps/card-1 (its servers end first)\n"
        "gpu-01: prepare MPS folders of card 1 (for the daemon)\n"
        "gpu-01: clean MPS logs of card 1 (older than 7 days, or large)\n"
        "gpu-01: start MPS daemon of card 1 (mps restart)\n"
        "gpu-01: await MPS daemon of card 1 (it answers)\n"
        "gpu-01: start m-1 (its group)\n"
        "gpu-01: await m-1 (its engine answers before the next of its group begins)\n"
        "gpu-01: start m-2 (its group)\n"
        "gpu-01: await m-2 (its engine answers before the next of its group begins)"
    )
    by_key = {step.key: step.needs for step in plan}
    assert by_key["gpu-01: stop MPS daemon 77 at /tmp/nvidia-mps/card-1"] == (
        "gpu-01: stop m-1",
        "gpu-01: stop m-2",
    )
    assert by_key["gpu-01: start m-2"] == ("gpu-01: await m-1",)


def test_a_client_that_is_not_of_the_group_is_named_and_spared() -> None:
    faulted = in_fault()
    (daemon,) = faulted.mps.daemons
    group = mps_stop.members("vllm", faulted)
    assert [one.name for one in group] == ["m-1", "m-2"]
    assert list(mps_stop.in_use(faulted, [daemon], besides=group)) == []
    assert list(mps_stop.in_use(faulted, [daemon], besides=())) == [
        "gpu-01: /tmp/nvidia-mps/card-1 is used by VLLM::EngineCor (pid 12) of container m-2"
    ]


def node(name: str) -> FoundNode:
    return FoundNode(
        name=name,
        id=name,
        role="instance",
        group="default",
        cluster="vllm",
        running=True,
        package="0123",
        mps=OURS.pipe,
    )


@pytest.mark.parametrize(
    ("runtime", "stop", "start"),
    [
        (InSystemd("python3"), "systemctl stop -- vllmdeploy-m-1", "systemctl start -- vllmdeploy"),
        (AsProcess("python3"), "kill ", "/run/m-1"),
    ],
)
def test_a_group_outside_containers_starts_anew_in_the_same_way(
    runtime: Supervisor, stop: str, start: str
) -> None:
    clients = tuple(Client(pid=pid, node=f"m-{pid}") for pid in (1, 2))
    server = Server(pid=78, status="FAULT", clients=clients)
    found = host(replace(OURS, servers=(server,)), supervised=(node("m-1"), node("m-2")))
    assert list(mps_stop.in_use(found, found.mps.daemons, besides=found.found.supervised)) == []
    (row,) = rows("vllm", found)
    assert "  client process (pid 1) in m-1" in row.remarks
    plan = restarted(replace(WANTED, cards=(1,)), found, runtime)
    assert lines(plan) == lines(restarted(replace(WANTED, cards=(1,)), in_fault()))
    commands = {step.key: str(step.command) for step in plan}
    assert stop in commands["gpu-01: stop m-1"]
    assert start in commands["gpu-01: start m-1"]
    assert "0123" in commands["gpu-01: await m-1"]


def test_a_process_of_a_node_that_is_not_of_the_group_is_named_by_its_node() -> None:
    server = Server(pid=78, clients=(Client(pid=5, program="python", node="other-m-1"),))
    found = host(replace(OURS, servers=(server,)), supervised=(node("m-1"),))
    assert list(mps_stop.in_use(found, found.mps.daemons, besides=found.found.supervised)) == [
        "gpu-01: /tmp/nvidia-mps/card-1 is used by python (pid 5) of other-m-1"
    ]


def test_status_names_the_fault_the_client_and_what_to_do() -> None:
    (row,) = rows("vllm", in_fault())
    assert row.cells == (
        *("gpu-01", "/tmp/nvidia-mps/card-1", "1", "77", "0", "1", "1", "100%", "FAULT"),
    )
    assert row.remarks == (
        "server 78 of uid 0: FAULT",
        "  client VLLM::EngineCor (pid 12) in m-2",
        "a client's fault stopped all engines of this server: [2026-11-21 09:00:00.000 Server 78]"
        " Client 12 encountered a fatal GPU error\n"
        "  -> start them anew as a group: vllmdeploy mps restart --hosts gpu-01 --cards 1",
    )


def test_after_a_reboot_engines_get_their_daemon_back_first() -> None:
    found = host(containers=(shared("m-1"),))
    (row,) = rows("vllm", found)
    assert row.remarks == (
        "without their daemon, as after a reboot: m-1\n"
        "  -> start both anew: vllmdeploy mps restart --hosts gpu-01",
    )
    plan = restarted(replace(WANTED, cards=(1,)), found)
    assert lines(plan).splitlines()[0] == "gpu-01: stop m-1 (mps restart)"
    assert lines(plan).splitlines()[-2] == "gpu-01: start m-1 (its group)"


def test_hosts_without_a_daemon_are_shown_too() -> None:
    assert [row.cells[-1] for row in rows("vllm", host())] == ["no daemon"]
    bare_host = replace(host(), mps=Mps())
    assert [row.cells[-1] for row in rows("vllm", bare_host)] == ["MPS is not installed"]

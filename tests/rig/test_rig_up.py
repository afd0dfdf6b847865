"""`up` from bare hosts to a Ray cluster, and what it does when there is less to do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.rig import look
from tests.rig.operate import KEPT, STATE, Done, Operator, cards, node, operator
from tests.rig.programs import until
from tests.rig.rig import Rig

FOREIGN = "somebody-elses"
ON_EVERY_HOST = frozenset({10010, 10011, 10012, 10013, 10014, 52365})
ON_THE_HEAD = frozenset({6379, 8265, 10001, 10015, 10016})
WORKER_PORTS = range(20000, 21000)


@dataclass(frozen=True, slots=True)
class Settled:
    """A fleet that was bare, and what the `up` that changed this said."""

    operator: Operator
    first_up: Done
    before: Mapping[str, look.Snapshot]

    @property
    def rig(self) -> Rig:
        return self.operator.rig


@pytest.fixture(scope="module")
def settled(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> Settled:
    made = operator(rig, tmp_path_factory.mktemp("operator"))
    before = look.snapshot(rig)
    for host in (rig.head, rig["bare"]):
        host.sh(f"docker run --detach --name {FOREIGN} --network none {rig.image} sleep infinity")
    return Settled(made, made.up(), before)


def test_up_on_bare_hosts_ends_when_ray_itself_reports_every_host_and_card(
    settled: Settled,
) -> None:
    assert len(settled.rig.hosts) == 4
    assert look.cluster(settled.rig) == cards(settled.rig.hosts)
    assert sum(cards(settled.rig.hosts).values()) == 8


def test_containers_say_by_their_labels_whose_they_are(settled: Settled) -> None:
    labels = {host.name: node(host).labels for host in settled.rig.hosts}
    said = {name: label["vllmdeploy.role"] for name, label in labels.items()}
    assert said == {
        "head": "ray-head",
        "sudoer": "ray-worker",
        "twonics": "ray-worker",
        "bare": "ray-worker",
    }
    for label in labels.values():
        assert (label["vllmdeploy.cluster"], label["vllmdeploy.group"]) == ("vllm", "default")
        assert label["vllmdeploy.generation"] == "1"
        assert len(label["vllmdeploy.fingerprint"]) == 12


def test_the_token_is_for_its_owner_alone_and_nowhere_else(settled: Settled) -> None:
    tokens: set[str] = set()
    for host in settled.rig.hosts:
        path = f"{STATE}/secrets/ray/ray_token"
        assert host.sh('stat -c "%a %U" "$1"', path).stdout == "600 root\n"
        tokens.add(host.sh('cat "$1"', path).stdout)
    (token,) = tokens
    shown = "docker inspect $(docker ps -q); cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ"
    shown += f"; docker logs $(docker ps -q --filter label=vllmdeploy.role); cat {STATE}/audit.log"
    said = settled.first_up.stdout + settled.first_up.stderr
    for host in settled.rig.hosts:
        said += host.sh(f"({shown}) 2>&1 | tr -d '\\0'", check=False).stdout
    assert "--block" in said
    assert token not in said


def test_nothing_listens_but_the_planned_ports_and_what_was_there(settled: Settled) -> None:
    for host in settled.rig.hosts:
        new = look.listening(host) - settled.before[host.name].ports
        planned = ON_EVERY_HOST | ON_THE_HEAD if host is settled.rig.head else ON_EVERY_HOST
        assert {port for port in new if port not in WORKER_PORTS} == planned
    local = settled.rig.head.sh("ss -Htln 'sport = :8265'").stdout
    assert "127.0.0.1:8265" in local


def test_the_plan_takes_the_network_that_all_share_and_names_the_faster_one(
    settled: Settled,
) -> None:
    number = settled.rig.number
    said = settled.first_up.stderr
    assert f"note: group default: network 10.77.{number}.0/24 (1 Gbit/s)\n" in said
    faster = "faster NIC unused: eth1 {} (100 Gbit/s)\n"
    assert faster.format(settled.rig["twonics"].ip_of("eth1")) in said
    assert faster.format(settled.rig.head.ip_of("eth1")) in said


def test_each_hosts_ranks_are_told_their_own_address_and_interface(settled: Settled) -> None:
    for host in settled.rig.hosts:
        listed = "docker inspect --format '{{json .Config.Env}}' " + node(host).name
        environment = dict(
            word.split("=", 1) for word in json.loads(host.sh(listed).stdout) if "=" in word
        )
        assert environment["VLLM_HOST_IP"] == host.ip
        assert environment["GLOO_SOCKET_IFNAME"] == "eth0"
        assert environment["TP_SOCKET_IFNAME"] == "eth0"


def test_a_group_whose_hosts_share_a_faster_network_uses_it(
    settled: Settled, tmp_path: Path
) -> None:
    rig = settled.rig
    pair = operator(rig, tmp_path, rig.head, rig["twonics"])
    said = "\n".join(json.loads(pair.succeeds("plan", "--json").stdout)["notes"])
    assert f"group default: network 10.78.{rig.number}.0/24 (100 Gbit/s)" in said
    assert "faster NIC unused" not in said


def test_up_again_changes_nothing(settled: Settled) -> None:
    before = settled.operator.ids()
    again = settled.operator.up()
    assert "nothing to do" in again.stderr
    assert settled.operator.ids() == before


def test_what_one_host_declares_differently_touches_that_host_only(
    settled: Settled, tmp_path: Path
) -> None:
    rig = settled.rig
    before = settled.operator.ids()
    changed = operator(rig, tmp_path)
    changed.writes_lines(
        {"head": "head=yes ray_gpus=2", "sudoer": "ray_gpus=2", "twonics": "ray_gpus=2"}
        | {"bare": "ray_gpus=1"}
    )
    changed.up()
    after = changed.ids()
    assert {name for name in after if after[name] != before.get(name)} == {"bare/vllm-ray-worker"}
    wanted = cards(rig.hosts) | {rig["bare"].ip: 1}
    until("Ray's dashboard has seen it", lambda: look.cluster(rig) == wanted)
    assert node(rig["bare"]).labels["vllmdeploy.generation"] == "2"

    settled.operator.up()
    settled.operator.becomes_whole()


def test_down_leaves_nothing_but_its_state_and_foreign_containers_live_on(
    settled: Settled,
) -> None:
    rig = settled.rig
    foreign = {key: one for key, one in settled.operator.ids().items() if FOREIGN in key}
    assert set(foreign) == {f"head/{FOREIGN}", f"bare/{FOREIGN}"}
    settled.operator.down()
    assert settled.operator.ids() == foreign
    for host in (rig.head, rig["bare"]):
        assert look.containers(host)[FOREIGN].running
        assert look.containers(host)[FOREIGN].restarts == 0
        host.sh(f"docker rm -f {FOREIGN}")
    look.assert_nothing_left(rig, settled.before, besides=KEPT)


def test_down_forget_leaves_only_the_audit_log_and_down_again_is_fine(settled: Settled) -> None:
    rig = settled.rig
    token = rig.head.sh(f"cat {STATE}/secrets/ray/ray_token", check=False).stdout
    assert len(token) == 64
    settled.operator.down("--forget")
    settled.operator.down()
    look.assert_nothing_left(rig, settled.before, besides=(f"{STATE}/audit.log",))
    log = rig.head.sh(f"cat {STATE}/audit.log").stdout.splitlines()
    assert [json.loads(line)["what"] for line in log][-2:] == ["down", "down"]

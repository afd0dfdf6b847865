"""The rig keeps its own promises: what tests on it find is about the code under test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.rig import base, claim, hand, look, network
from tests.rig import rig as rigs
from tests.rig.disk import Profile
from tests.rig.programs import until
from tests.rig.rig import Rig

DEBIAN_SOURCES = """\
Types: deb
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main

Types: deb
URIs: http://security.example/debian
Suites: bookworm-security
"""
UBUNTU_LIST = """\
# See the manual.
deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/ubuntu noble main universe
"""
SERVER = "python3 -m http.server 8100"


@pytest.mark.parametrize(
    ("sources", "codename", "expected"),
    [
        (DEBIAN_SOURCES, "bookworm", "http://mirror.example/debian"),
        (DEBIAN_SOURCES, "bookworm-security", "http://security.example/debian"),
        (UBUNTU_LIST, "noble", "http://mirror.example/ubuntu"),
    ],
)
def test_the_mirror_is_the_one_apt_uses(sources: str, codename: str, expected: str) -> None:
    assert base.mirror(sources, codename) == expected


def test_ssh_reaches_every_host_under_its_own_name(rig: Rig) -> None:
    assert {host.name: rig.ssh(host, "hostname; id -un").split() for host in rig.hosts} == {
        "head": ["head", "root"],
        "sudoer": ["sudoer", "deploy"],
        "twonics": ["twonics", "root"],
        "bare": ["bare", "root"],
    }


def test_the_sudoer_needs_sudo_for_docker_and_may_use_it(rig: Rig) -> None:
    host = rig["sudoer"]
    assert rig.ssh(host, "docker version >/dev/null 2>&1 || echo refused") == "refused\n"
    assert "base" in rig.ssh(host, "sudo -n docker images")


def test_the_bare_host_has_no_rsync(rig: Rig) -> None:
    assert rig.ssh(rig["bare"], "command -v rsync || echo none") == "none\n"
    assert rig.ssh(rig["head"], "command -v rsync || echo none") == "/usr/bin/rsync\n"


def test_hosts_share_neither_files_nor_processes_nor_containers(rig: Rig) -> None:
    one, other = rig.hosts[:2]
    one.sh("echo mine >/etc/only-here; echo mine >/var/lib/only-here; echo mine >/tmp/only-here")
    one.sh(f"docker run --detach --name only-here {rig.image} sleep 3600")
    seen = (
        "ls /etc/only-here /var/lib/only-here /tmp/only-here 2>/dev/null; pgrep -f '[s]leep 3600'"
    )
    assert other.sh(seen, check=False).stdout == ""
    assert look.containers(other) == {}
    assert look.containers(one)["only-here"].running
    one.sh("docker rm -f only-here; rm /etc/only-here /var/lib/only-here /tmp/only-here")


def test_containers_on_two_hosts_talk_over_the_hosts_addresses(rig: Rig) -> None:
    server, client = rig.hosts[:2]
    run = "docker run --network host --name talk"
    server.sh(f"{run} --detach {rig.image} {SERVER}")
    until("the server listens", lambda: 8100 in look.listening(server))
    ask = f"import urllib.request as u; print(u.urlopen('http://{server.ip}:8100/').status)"
    assert client.sh(f'{run} --rm {rig.image} python3 -c "$1"', ask).stdout == "200\n"
    server.sh("docker rm -f talk")


def test_the_slow_interface_is_slow_and_says_so(rig: Rig) -> None:
    host = rig["twonics"]
    speeds = host.sh("cat /sys/class/net/eth0/speed /sys/class/net/eth1/speed").stdout.split()
    assert speeds == ["1000", "100000"]
    assert "rate 400Mbit" in host.sh("tc qdisc show dev eth0").stdout
    route = host.sh("ip route get $1", rig.head.ip).stdout
    assert " dev eth0 " in route

    # The token bucket lets 40 MiB through in no less than 0.84 s, however fast the machine is.
    started = time.monotonic()
    rig.ssh(host, "head -c 40M /dev/zero")
    assert time.monotonic() - started > 0.7


def test_after_a_reboot_docker_starts_what_its_policy_says_and_tmp_is_empty(rig: Rig) -> None:
    host = rig["twonics"]
    for name, policy in (("comes-back", "unless-stopped"), ("stays-away", "no")):
        host.sh(f"docker run -d --name {name} --restart {policy} {rig.image} sleep infinity")
    host.sh("touch /tmp/gone /run/gone /var/lib/kept")
    host.reboot()
    until("it came back", lambda: look.containers(host)["comes-back"].running)
    assert not look.containers(host)["stays-away"].running
    assert host.sh("ls /tmp/gone /run/gone /var/lib/kept", check=False).stdout == "/var/lib/kept\n"
    assert rig.ssh(host, "hostname") == "twonics\n"
    host.sh("docker rm -f comes-back stays-away; rm /var/lib/kept")


def test_sshd_and_docker_can_be_taken_away_and_given_back(rig: Rig) -> None:
    host = rig["bare"]
    host.stop_sshd()
    assert rig.ssh(host, "true && echo reached", check=False) == ""
    host.start_sshd()
    host.hang_docker()
    assert host.sh("timeout 1 docker ps", check=False).status == 124
    host.resume_docker()
    host.stop_docker()
    assert not host.sh("docker ps", check=False).ok
    host.start_docker()
    assert rig.ssh(host, "docker ps --quiet && echo reached") == "reached\n"


def test_a_pulled_cable_cuts_the_host_off(rig: Rig) -> None:
    host = rig["bare"]
    probe = f"timeout 1 bash -c '</dev/tcp/{rig.head.ip}/22'"
    host.set_link(up=False)
    assert not host.sh(probe, check=False).ok
    host.set_link(up=True)
    until("the cable is back", lambda: host.sh(probe, check=False).ok)


def test_real_ray_with_a_token_spans_the_fleet_in_containers(rig: Rig) -> None:
    before = look.snapshot(rig)
    hand.up(rig)
    nodes = look.ray_nodes(rig.head, token_file=f"{hand.FOLDER}/token")
    assert {(node.ip, node.alive, node.cards) for node in nodes} == {
        (host.ip, True, 2) for host in rig.hosts
    }
    assert look.ray_nodes(rig.head, token_file="/nonexistent") == ()
    hand.down(rig)
    look.assert_nothing_left(rig, before)


def test_what_is_left_on_a_host_is_found(rig: Rig) -> None:
    host = rig.head
    before = look.snapshot(rig)[host.name]
    host.sh("echo x >/etc/cron.d/ours; mkdir -p /opt/x; echo x >/opt/x/y; echo x >/root/kept")
    host.sh("docker volume create filled; (sleep 4321 &) >/dev/null 2>&1")
    host.sh(f"docker create --name made {rig.image} true")
    assert look.left(host, before, besides=("/root/kept",)) == (
        "container made",
        "volume filled",
        "file /etc/cron.d/ours",
        "file /opt/x/y",
        "process sleep 4321",
    )


def _traces(number: int) -> list[str]:
    mounts = Path("/proc/self/mounts").read_text()
    groups = Path("/sys/fs/cgroup").glob(f"**/vllmdeploy-rig-{number}")
    return [
        *network.namespaces(number),
        *(f"link {path.name}" for path in Path("/sys/class/net").glob(f"vr{number}")),
        *(line for line in mounts.splitlines() if f"/.rig/{number}/" in line),
        *(f"cgroup {path}" for path in groups),
        *(f"folder {path}" for path in (claim.WORKTREE / ".rig").glob(str(number))),
    ]


def test_removing_a_rig_leaves_no_trace() -> None:
    fleet = rigs.start((Profile(name="one"),))
    host = fleet.head
    host.sh(f"docker run -d {fleet.image} sleep infinity")
    namespace = network.namespace(fleet.number, host.name)
    pids = network.processes(namespace)
    assert len(pids) > 5
    assert _traces(fleet.number) != []
    fleet.remove()
    assert _traces(fleet.number) == []
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []


def test_what_a_killed_run_left_is_taken_away_by_the_next() -> None:
    start = "from tests.rig import rig as r; from tests.rig.disk import Profile as P; import time; "
    start += "print(r.start((P(name='orphan', engine=False),)).number, flush=True); time.sleep(600)"
    argv = (sys.executable, "-c", start)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=claim.WORKTREE) as killed:
        assert killed.stdout is not None
        number = int(killed.stdout.readline())
        os.kill(killed.pid, signal.SIGKILL)
    assert network.namespace(number, "orphan") in network.namespaces(number)
    fleet = rigs.start((Profile(name="next", engine=False),))
    found = _traces(number) if number != fleet.number else []
    orphan = network.namespace(number, "orphan") in network.namespaces(number)
    fleet.remove()
    assert (found, orphan) == ([], False)

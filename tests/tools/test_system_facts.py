"""What a host is, who listens on it and what guards it, from captured texts and for real."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmdeploy.core.command import Result
from vllmdeploy.effects.local import LocalShell
from vllmdeploy.tools.system import FIREWALL, LISTENERS, Firewall, Listener, System, system

HERE = LocalShell("here")
FACT = system("/var/lib/vllmdeploy/no/such/folder")


def hide(monkeypatch: pytest.MonkeyPatch, folder: Path, *kept: str) -> None:
    """Only these programs are on the PATH."""
    for name in ("sh", *kept):
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(folder))


def program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n", "utf-8")
    path.chmod(0o755)


def test_this_machine_says_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    found = FACT.parse(HERE.run(FACT.command))
    assert found.machine == os.uname().machine
    assert found.kernel == os.uname().release
    assert found.cpus == os.sysconf("SC_NPROCESSORS_ONLN")
    assert found.memory_mib > 0
    assert found.clock > 1_700_000_000
    assert found.state_free_mib is not None
    assert found.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert ("https_proxy", "http://proxy:3128") in found.proxies


def test_a_machine_with_hardly_any_program_still_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, tmp_path, "uname", "date")
    found = FACT.parse(HERE.run(FACT.command))
    assert found.hostname == os.uname().nodename
    assert (found.cpus, found.state_free_mib) == (0, None)


def test_odd_numbers_and_missing_lines_are_not_invented() -> None:
    said = "cpus=²\nmemory_kib=x\nclock=-\nstate_free_kib=\nmachine=aarch64\nnoise\na=b=c\n"
    assert FACT.parse(Result(0, said)) == System(machine="aarch64")
    assert System(machine="aarch64").arch == "arm64"
    assert System(machine="riscv64").arch == "riscv64"


def test_proxies_with_a_password_are_told_apart() -> None:
    found = FACT.parse(Result(0, "proxy:http_proxy=http://a:b@p:1\nproxy:https_proxy=http://p:1\n"))
    assert found.proxies_with_password == (("http_proxy", "http://a:b@p:1"),)


SS = """\
State    Recv-Q   Send-Q     Local Address:Port     Peer Address:Port  Process
LISTEN   0  128  0.0.0.0:22  0.0.0.0:*  users:(("sshd",pid=812,fd=3))
LISTEN   0  4096  127.0.0.53%lo:53  0.0.0.0:*  users:(("resolve",pid=5,fd=1),("x",pid=6,fd=1))
LISTEN   0        128                 [::]:8000             [::]:*
LISTEN   0  5  *:6379  *:*  users:(("redis (a)",pid=77,fd=6))
LISTEN   0        5                      *:²                *:*
LISTEN
ESTAB    0        0          10.0.0.1:22         10.0.0.2:5000
"""


def test_listeners_are_read_with_and_without_their_program() -> None:
    assert LISTENERS.parse(Result(0, SS)) == (
        Listener(port=22, address="0.0.0.0", pid=812, program="sshd"),
        Listener(port=53, address="127.0.0.53%lo", pid=5, program="resolve"),
        Listener(port=8000, address="[::]"),
        Listener(port=6379, address="*", pid=77, program="redis (a)"),
    )


def test_a_listener_is_named_for_a_person() -> None:
    assert str(Listener(port=22, pid=8, program="sshd")) == "port 22 is taken by sshd (pid 8)"
    assert str(Listener(port=22)) == "port 22 is taken by a program we may not see"


@pytest.mark.parametrize("without_ss", [False, True])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_an_open_port_of_this_machine_is_seen(
    family: socket.AddressFamily,
    without_ss: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if without_ss:
        hide(monkeypatch, tmp_path, "cat", "awk")
    with socket.socket(family) as door:
        try:
            door.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        except OSError:
            pytest.skip("no IPv6 here")
        door.listen()
        port = door.getsockname()[1]
        found = LISTENERS.parse(HERE.run(LISTENERS.command))
    (mine,) = [one for one in found if one.port == port]
    if not without_ss and os.getuid() == 0:
        assert mine.pid == os.getpid()


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("firewall-cmd", "echo running", "firewalld"),
        ("firewall-cmd", "echo 'not running' >&2; exit 252", ""),
        ("ufw", "echo 'Status: active'", "ufw"),
        ("ufw", "echo 'Status: inactive'", ""),
        ("ufw", 'if [ "$LC_ALL" = C ]; then echo "Status: active"; else echo Aktiv; fi', "ufw"),
    ],
)
def test_an_active_firewall_is_named(
    name: str, text: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, tmp_path, "grep")
    program(tmp_path, name, text)
    assert FIREWALL.parse(HERE.run(FIREWALL.command)) == Firewall(expected)


def test_a_question_without_an_answer_names_no_firewall() -> None:
    assert FIREWALL.parse(Result(124, "sudo: noise", timed_out=True)) == Firewall()


@given(st.one_of(st.text(), st.text().map(lambda text: f"LISTEN 0 0 {text} x")))
def test_no_text_ends_the_reading(text: str) -> None:
    result = Result(0, text)
    FACT.parse(result)
    LISTENERS.parse(result)
    FIREWALL.parse(result)

"""When the network or sshd is in trouble: one clear error, or patience, and never a hang."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.sshd import Sshd, answering, free_ports, login_user, require_sshd, sshd
from vllmdeploy.core.command import Command, Result, script
from vllmdeploy.core.host import Host
from vllmdeploy.effects.connect import connect, is_this_machine
from vllmdeploy.effects.local import LocalShell
from vllmdeploy.errors import HostUnreachable


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    require_sshd()
    with sshd(tmp_path_factory.mktemp("sshd")) as running:
        yield running


def test_where_nothing_listens_the_error_says_so_and_the_others_go_on(server: Sshd) -> None:
    closed = replace(server.host("b"), port=free_ports(1)[0])
    unnamed = replace(server.host("c"), address="no-such-host.invalid")
    with connect([server.host(), closed, unnamed], server.settings()) as connected:
        assert list(connected.shells) == ["a"]
        assert str(connected.failures["b"]) == (
            f"b: nothing listens at 127.0.0.1 port {closed.port}\n"
            "  -> start sshd there, or set SSH_PORT"
        )
        assert "the name no-such-host.invalid does not resolve" in str(connected.failures["c"])


def test_a_host_that_answers_nothing_is_given_up_after_the_connect_limit(server: Sshd) -> None:
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for waiting in (first, second):
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        blackhole = replace(server.host("b"), port=int(full.getsockname()[1]))
        began = time.monotonic()
        with connect([server.host(), blackhole], server.settings()) as connected:
            assert time.monotonic() - began < 15
            assert "within 10 s" in str(connected.failures["b"])
            assert list(connected.shells) == ["a"]


def test_something_that_is_no_sshd_is_said_to_be_none(server: Sshd) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:

        def hang_up() -> None:
            while True:
                try:
                    listener.accept()[0].close()
                except OSError:
                    return

        pool.submit(hang_up)
        waits: list[float] = []
        host = replace(server.host(), port=int(listener.getsockname()[1]))
        connected = connect([host], server.settings(), pause=waits.append)
        listener.shutdown(socket.SHUT_RDWR)
    assert "closed 9 connections before any login" in str(connected.failures["a"])
    assert len(waits) == 8


def counted(port: int) -> socket.socket:
    """A connection to which sshd talks. For a moment it may still count the one that looked
    whether it listens, and close a later one."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        stranger = socket.create_connection(("127.0.0.1", port))
        with suppress(OSError):
            if stranger.recv(3) == b"SSH":
                return stranger
        stranger.close()
        time.sleep(0.1)
    raise TimeoutError(f"sshd at port {port} talks to nobody")


def test_max_startups_is_waited_out(tmp_path: Path) -> None:
    require_sshd()
    with sshd(tmp_path, "MaxStartups 3") as server, ExitStack() as strangers:
        for _ in range(3):
            strangers.enter_context(counted(server.port))
        waits: list[float] = []

        def pause(wait: float) -> None:
            waits.append(wait)
            strangers.close()
            time.sleep(wait)

        with connect([server.host()], server.settings(), pause=pause) as connected:
            assert list(connected.shells) == ["a"]
        assert waits
        assert "past MaxStartups" in server.log


def test_many_starts_at_an_sshd_that_takes_three_all_succeed(tmp_path: Path) -> None:
    require_sshd()
    with sshd(tmp_path, "MaxStartups 3") as server:
        hosts = [server.host(f"h{number}") for number in range(24)]
        with connect(hosts, server.settings()) as connected:
            assert connected.failures == {}
            assert len(connected.shells) == 24


def test_max_sessions_is_learnt_and_commands_take_turns(tmp_path: Path) -> None:
    require_sshd()
    with (
        sshd(tmp_path, "MaxSessions 1") as server,
        connect([server.host()], server.settings()) as connected,
    ):
        shell = connected.shells["a"]

        def echo(number: int) -> str:
            return shell.run(script('echo "$1"', str(number))).stdout

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(echo, range(24)))
    assert answers == [f"{number}\n" for number in range(24)]


def test_a_connection_cut_in_the_middle_of_a_command_is_an_error_and_the_next_one_works(
    server: Sshd,
) -> None:
    with connect([server.host()], server.settings()) as connected:
        shell = connected.shells["a"]

        def cut(line: str) -> None:
            os.kill(int(line), signal.SIGKILL)

        # The grandparent of the command's own shell is the sshd of this connection.
        text = (
            'parent() { while read -r key value; do [ "$key" = PPid: ] && echo "$value"; done '
            '< "/proc/$1/status"; }; pid=$$; '
            'while [ "$(cat "/proc/$pid/comm")" != sshd ]; do pid=$(parent "$pid"); done; '
            'echo "$pid"; sleep 30'
        )
        began = time.monotonic()
        with pytest.raises(HostUnreachable, match=r"^a: the conversation broke off: "):
            shell.run(script(text), on_line=cut)
        assert time.monotonic() - began < 10
        assert shell.run(Command(("echo", "again"))) == Result(0, "again\n")


def test_where_the_host_has_no_timeout_program_this_machine_ends_the_command(
    tmp_path: Path,
) -> None:
    require_sshd()
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sh", "cat", "env", "sleep"):
        (programs / name).symlink_to(f"/bin/{name}")
    with (
        sshd(tmp_path / "sshd", f"SetEnv PATH={programs}") as server,
        connect([server.host()], server.settings()) as connected,
    ):
        shell = connected.shells["a"]
        assert shell.run(Command(("timeout", "1", "true"))).status == 127
        result = shell.run(script("sleep 4373 & echo $! $$; wait").within(1.0))
        assert result.timed_out
        for pid in result.stdout.split():
            assert shell.run(Command(("cat", f"/proc/{pid}/cmdline"))).stdout == ""


def test_a_login_shell_that_runs_nothing_is_named_with_its_own_words(
    server: Sshd, open_folder: Path
) -> None:
    refusing = open_folder / "refusing"
    refusing.write_text("#!/bin/sh\necho This account is for mail only. >&2\nexit 1\n", "utf-8")
    refusing.chmod(0o755)
    with login_user(
        f"vdmail{os.getpid()}", str(refusing), open_folder / "home", password="x"
    ) as user:
        settings = server.settings(key=None, ask=answering("x"))
        with (
            connect([server.host(user=user)], settings) as connected,
            pytest.raises(HostUnreachable) as caught,
        ):
            connected.shells["a"].run(Command(("true",)))
    assert "its login shell did not run the command: This account is for mail only." in str(
        caught.value
    )


def test_this_machine_needs_no_ssh_unless_another_port_or_login_is_meant(server: Sshd) -> None:
    def host(address: str, **changes: object) -> Host:
        return replace(Host(name="x", address=address), **changes)  # type: ignore[arg-type]  # test

    assert is_this_machine(host("localhost"))
    assert is_this_machine(host("127.0.0.1", port=22, user="root"))
    assert is_this_machine(host(socket.gethostname()))
    assert not is_this_machine(host("127.0.0.1", port=2222))
    assert not is_this_machine(host("127.0.0.1", user="someone"))
    assert not is_this_machine(host("192.0.2.1"))
    assert not is_this_machine(host("no-such-host.invalid"))
    with connect([host("localhost")], server.settings()) as connected:
        assert isinstance(connected.shells["x"], LocalShell)


def test_a_jump_host_is_gone_through_and_shared(tmp_path: Path) -> None:
    require_sshd()
    with sshd(tmp_path / "jump") as jump, sshd(tmp_path / "inner") as inner:
        known = tmp_path / "known"
        known.write_text(
            f"bastion {jump.host_key()}\n[127.0.0.1]:{inner.port} {inner.host_key()}\n", "utf-8"
        )
        config = tmp_path / "config"
        (tmp_path / "more").write_text(
            f"Host bastion\n  HostName 127.0.0.1\n  Port {jump.port}\n  User root\n"
            f"  IdentityFile {jump.key}\n  HostKeyAlias bastion\n",
            "utf-8",
        )
        config.write_text(
            "Include more\n"
            f"Host gpu-*\n  HostName 127.0.0.1\n  Port {inner.port}\n  User root\n"
            f"  IdentityFile {inner.key}\n  ProxyJump bastion\n",
            "utf-8",
        )
        settings = inner.settings(known_hosts=known, config=config, key=None)
        hosts = [Host(name=name, address=name) for name in ("gpu-1", "gpu-2", "gpu-3")]
        with connect(hosts, settings) as connected:
            assert connected.failures == {}
            for shell in connected.shells.values():
                assert shell.run(Command(("echo", "inside"))).stdout == "inside\n"
        assert jump.log.count("Accepted publickey") == 1
        assert inner.log.count("Accepted publickey") == 3
        known.write_text(f"[127.0.0.1]:{inner.port} {inner.host_key()}\n", "utf-8")
        with connect(hosts[:1], settings) as connected:
            assert "the jump host bastion's SSH host key is not known" in str(
                connected.failures["gpu-1"]
            )


def test_a_proxy_command_is_refused_by_name(server: Sshd, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Host x\n  ProxyCommand nc %h %p\n", "utf-8")
    with connect([Host(name="x", address="x")], server.settings(config=config)) as connected:
        assert str(connected.failures["x"]) == (
            f"x: {config} sets ProxyCommand for it, and no program is started on its behalf\n"
            "  -> write it as ProxyJump, or give the address that is reached directly"
        )

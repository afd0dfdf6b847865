"""`head` and `worker` on a host that pretends: the flow from host to host."""

from __future__ import annotations

import io
import re
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from tests.support.scripted_hosts import ScriptedFleet, ScriptedHost
from vllmdeploy.cli.app import main
from vllmdeploy.cli.context import World
from vllmdeploy.core.host import Host
from vllmdeploy.effects.shell import Shell
from vllmdeploy.errors import HostError

TOKEN = "0123456789abcdef0123"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fleet(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> ScriptedFleet:
    monkeypatch.chdir(open_folder)
    Path("config.env").write_text(
        "IMAGE=vllm:1\nACCELERATOR=cpu\nMODEL_PATH=/data/models\n", "utf-8"
    )
    return ScriptedFleet(open_folder, "here")


@pytest.fixture
def host(fleet: ScriptedFleet) -> ScriptedHost:
    return fleet["here"]


@pytest.fixture
def run(host: ScriptedHost, capsys: pytest.CaptureFixture[str]) -> Run:
    """This machine, under whatever name it has, is the pretended host."""

    def connect(
        hosts: Sequence[Host], settings: object
    ) -> tuple[Mapping[str, Shell], dict[str, HostError]]:
        return {one.name: host for one in hosts}, {}

    def run(*argv: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(argv), World(connect=connect))
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


def test_a_head_says_what_to_run_on_the_workers(host: ScriptedHost, run: Run) -> None:
    code, out, err = run("head", "10.7.0.1", "--yes")
    assert code == 0, err
    assert out == "vllmdeploy worker 10.7.0.1\n"
    assert "--token-file FILE" in err
    token = host.state / "secrets" / "ray" / "ray_token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.read_text("utf-8") not in err + "".join(host.docker)


def test_an_address_that_this_host_has_not_is_refused(run: Run) -> None:
    code, _, err = run("head", "1.2.3.4", "--yes")
    assert code == 6
    assert "no interface has 1.2.3.4; it has 10.7.0.1 (eth0)" in err


def test_a_worker_joins_with_a_token_from_a_file(host: ScriptedHost, run: Run) -> None:
    Path("token").write_text(TOKEN + "\n", "utf-8")
    code, _, err = run("worker", "10.7.0.9", "10.7.0.1", "--token-file", "token", "--yes")
    assert code == 0, err
    assert "--address=10.7.0.9:6379" in host.container_argv
    assert (host.state / "secrets" / "ray" / "ray_token").read_text("utf-8") == TOKEN
    assert TOKEN not in "".join(host.commands)


def test_a_token_may_come_from_stdin(
    host: ScriptedHost, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{TOKEN}\nrest\n"))
    code, _, err = run("worker", "10.7.0.9", "--token-file", "-", "--yes")
    assert code == 0, err
    assert (host.state / "secrets" / "ray" / "ray_token").read_text("utf-8") == TOKEN


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "token: No such file or directory\n"),
        (b"short", "token does not hold a Ray token"),
        (b"with space in it", "token does not hold a Ray token"),
        (b"\xff\xfe", "token does not hold a Ray token"),
    ],
)
def test_a_file_that_holds_no_token_is_said(
    host: ScriptedHost, run: Run, content: bytes | None, words: str
) -> None:
    if content is not None:
        Path("token").write_bytes(content)
    code, _, err = run("worker", "10.7.0.9", "--token-file", "token", "--yes")
    assert (code, host.changes) == (2, [])
    assert f"error: {words}" in err


def test_a_dry_run_of_both_changes_nothing(host: ScriptedHost, run: Run) -> None:
    Path("token").write_text(TOKEN, "utf-8")
    for argv in (("head",), ("worker", "10.7.0.9", "--token-file", "token")):
        code, out, _ = run(*argv, "--dry-run")
        assert code == 0
        assert "docker run --detach" in out
        assert TOKEN not in out
    assert host.changes == []


def test_without_tokens_none_is_asked_for(host: ScriptedHost, run: Run) -> None:
    Path("config.env").write_text("RAY_AUTH=none\nIMAGE=vllm:1\nACCELERATOR=cpu\n", "utf-8")
    code, _, err = run("worker", "10.7.0.9", "--yes")
    assert code == 0, err
    assert "RAY_AUTH_MODE=disabled" in host.container_argv


@pytest.mark.parametrize(
    ("head_ip", "words"),
    [
        ("root@10.7.0.9", "HEAD_IP: 'root@10.7.0.9' is not an IP address"),
        ("10.7.0.9:6379", "HEAD_IP: '10.7.0.9:6379' is not an IP address"),
        ("gpu-01", "HEAD_IP: 'gpu-01' is not an IP address"),
        ("10.7.0.9 --block", "is not an IP address"),
        ("10.7.0.1", "10.7.0.1 is an address of this machine"),
        ("127.0.0.1", "127.0.0.1 is an address of this machine"),
    ],
)
def test_what_is_no_address_of_another_host_is_no_head(
    host: ScriptedHost, run: Run, head_ip: str, words: str
) -> None:
    Path("token").write_text(TOKEN, "utf-8")
    code, _, err = run("worker", head_ip, "--token-file", "token", "--yes")
    assert (code, host.changes) == (2, [])
    assert words in err


@pytest.mark.parametrize(
    ("words", "reason"),
    [("Connection refused", "connection refused"), ("No route to host", "No route to host")],
)
def test_no_worker_is_made_where_no_head_answers(
    host: ScriptedHost, run: Run, words: str, reason: str
) -> None:
    host.program("bash", f"#!/bin/sh\necho 'bash: connect: {words}' >&2\nexit 1\n")
    Path("token").write_text(TOKEN, "utf-8")
    silent = f"no Ray head at 10.7.0.9:6379: {reason}"
    code, out, err = run("worker", "10.7.0.9", "--token-file", "token", "--dry-run")
    assert (code, "docker run --detach" in out) == (0, True)
    assert f"note: {silent}" in err
    code, _, err = run("worker", "10.7.0.9", "--token-file", "token", "--yes")
    assert (code, host.changes) == (6, [])
    assert f"here: {silent}" in err.replace(socket.gethostname(), "here")
    assert "-> run `vllmdeploy head` there first" in err


def test_a_worker_that_knows_of_no_other_host_speaks_for_itself(
    host: ScriptedHost, run: Run
) -> None:
    (host.folder / "logs").write_text("from the worker\n", "utf-8")
    Path("token").write_text(TOKEN, "utf-8")
    code, _, err = run("worker", "10.7.0.9", "--token-file", "token", "--yes")
    assert code == 0, err
    made = host.changes
    said = host.state / "run" / "vllm-ray-worker" / "status.json"
    said.write_text('{"ray": {"state": "running"}}', "utf-8")

    code, out, _ = run("status")
    assert (code, re.search("worker +ready", out) is not None) == (0, True), out
    code, out, err = run("logs")
    assert (code, out.endswith("| from the worker\n")) == (0, True), err
    assert host.docker[-1].endswith("vllm-ray-worker ")
    for argv in (("up", "--yes"), ("head", "--yes")):
        code, _, err = run(*argv)
        assert (code, host.changes) == (6, made)
        assert "vllm-ray-worker is here, a worker of a head on another machine" in err

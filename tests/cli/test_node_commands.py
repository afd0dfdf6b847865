"""`head` and `worker` on a host that pretends: the flow from host to host."""

from __future__ import annotations

import io
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
        (None, "token: "),
        (b"short", "token does not hold a Ray token"),
        (b"with space in it", "token does not hold a Ray token"),
        (b"\xff\xfe", "token: "),
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

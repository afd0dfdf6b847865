from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.support.scripted_hosts import ScriptedFleet
from vllmdeploy.cli.app import main
from vllmdeploy.cli.context import World
from vllmdeploy.tools import files

ADMIN = "admin-key-of-this-test"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[str, Path]]:
    """A real gateway in front of an instance that is not there."""
    folder = tmp_path_factory.mktemp("gateway")
    key = folder / "admin"
    key.write_text(f"admin:{ADMIN}\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    argv = (
        *(sys.executable, "-m", "vllmdeploy", "gateway", "run"),
        *("--listen", f"127.0.0.1:{port}", "--admin-key-file", str(key)),
        *("--upstream", "http://127.0.0.1:9"),
    )
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr
        for line in running.stderr:
            if "listening" in line:
                break
        yield f"http://127.0.0.1:{port}", key
        running.terminate()
        running.communicate(timeout=20)


def ran(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(argv)
    said = capsys.readouterr()
    code = left.value.code
    return (code if isinstance(code, int) else 0), said.out, said.err


def test_an_instance_is_added_drained_resumed_and_removed(
    gateway: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    url, key = gateway
    where = ("--url", url, "--admin-key-file", str(key), "--json")
    added = ran(capsys, "gateway", "add", "http://127.0.0.1:10", "--name", "second", *where)
    assert added[0] == 0
    assert json.loads(added[1])["id"] == "second"
    states = [
        json.loads(ran(capsys, "gateway", verb, "second", *where)[1])["state"]
        for verb in ("drain", "resume")
    ]
    assert states[0] in ("draining", "drained")
    assert states[1] not in ("draining", "drained")
    listed = json.loads(ran(capsys, "gateway", "list", *where)[1])["instances"]
    assert sorted(one["id"] for one in listed) == ["127.0.0.1:9", "second"]
    assert ran(capsys, "gateway", "remove", "second", *where)[0] == 0
    listed = json.loads(ran(capsys, "gateway", "list", *where)[1])["instances"]
    assert [one["id"] for one in listed] == ["127.0.0.1:9"]


def test_the_policy_is_shown_and_changed(
    gateway: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    url, key = gateway
    where = ("--url", url, "--admin-key-file", str(key))
    assert ran(capsys, "gateway", "policy", "round_robin", "--scheduling", "fifo", *where) == (
        0,
        "routing: round_robin\nscheduling: fifo\ndefault_model: -\n",
        "",
    )
    status, _, said = ran(capsys, "gateway", "policy", "no_such_policy", *where)
    assert status == 2
    assert "no_such_policy" in said


def test_a_wrong_key_is_refused_with_the_way_out(
    gateway: tuple[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("not-the-admin-key\n")
    url = gateway[0]
    status, out, said = ran(capsys, "gateway", "list", "--url", url, "--admin-key-file", str(wrong))
    assert (status, out) == (2, "")
    assert "401" in said
    assert "--admin-key-file" in said
    assert "not-the-admin-key" not in said


def test_no_gateway_there_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(ADMIN)
    where = ("--url", "http://127.0.0.1:9", "--admin-key-file", str(key))
    status, _, said = ran(capsys, "gateway", "status", *where)
    assert status == 5
    assert "is the gateway running?" in said


def test_a_key_is_shown_once_and_stored_as_a_hash(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "keys"
    status, key, _ = ran(
        capsys, "keys", "add", "alice", "--file", str(path), "--per-minute", "60", "--models", "a,b"
    )
    assert status == 0
    assert key.strip() not in path.read_text()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600  # noqa: PTH116
    assert ran(capsys, "keys", "list", "--file", str(path))[1] == (
        "NAME   LIMITS\nalice  models=a,b per_minute=60\n"
    )
    assert ran(capsys, "keys", "add", "alice", "--file", str(path))[0] == 2
    ran(capsys, "keys", "add", "bob", "--file", str(path))
    status, _, said = ran(capsys, "keys", "revoke", "alice", "--file", str(path))
    assert (status, "refuses everybody" in said) == (0, False)
    status, _, said = ran(capsys, "keys", "revoke", "bob", "--file", str(path))
    assert (status, "the gateway refuses everybody; vllmdeploy keys add" in said) == (0, True)
    assert path.read_text() == ""
    assert ran(capsys, "keys", "revoke", "alice", "--file", str(path))[0] == 2


def test_a_hostile_name_never_reaches_the_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "keys"
    for name in ("a b", "a\nroot:key-of-mallory", "#", "a:b:c", "x" * 65):
        assert ran(capsys, "keys", "add", name, "--file", str(path))[0] == 2
        assert not path.exists() or path.read_text() == ""


def test_the_fleets_own_gateway_is_steered_with_the_heads_key(
    gateway: tuple[str, Path],
    capsys: pytest.CaptureFixture[str],
    open_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, _ = gateway
    monkeypatch.chdir(open_folder)
    port = url.rpartition(":")[2]
    Path("config.env").write_text(f"HEAD_HOST=gpu-01\nACCELERATOR=cpu\nAPI_PORT={port}\n", "utf-8")
    Path("worker_nodes.txt").write_text("gpu-01 head=yes ip=127.0.0.1\n", "utf-8")
    fleet = ScriptedFleet(open_folder, "gpu-01")

    def listed(*argv: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main(["gateway", "list", *argv], World(connect=fleet.connect))
        said = capsys.readouterr()
        return int(left.value.code or 0), said.out, said.err

    assert listed()[0] != 0
    head = fleet["gpu-01"]
    keys = f"{head.state}/secrets/gateway"
    assert head.run(files.folders(keys)).ok
    assert head.run(files.write(f"{keys}/admin_key", f"admin:{ADMIN}\n".encode())).ok
    code, out, said = listed()
    assert (code, "127.0.0.1:9 " in out) == (0, True), said
    assert ADMIN not in out + said + "".join(head.commands)
    # It goes to no other address.
    assert listed("--url", url)[0] != 0

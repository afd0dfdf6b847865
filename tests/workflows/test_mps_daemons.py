"""`mps` against a control daemon that runs for real: a stand-in that speaks NVIDIA's protocol."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from tests.support import mps_stand_in
from vllmdeploy.cli.app import main
from vllmdeploy.cli.context import World
from vllmdeploy.core.layout import SYSTEM_STATE_ROOT
from vllmdeploy.workflows.connecting import this_machine

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@dataclass
class Said:
    code: int
    out: str
    err: str


@dataclass
class Box:
    """This machine with two cards that nobody else knows of, and folders of its own."""

    folder: Path
    environment: dict[str, str]
    cards: tuple[str, ...]
    cluster: str
    run: Callable[..., Said]

    def pipe(self, name: str = "") -> Path:
        return self.folder / "mps" / name

    def ask(self, words: str, name: str = "") -> str:
        return mps_stand_in.ask(self.pipe(name), words, self.environment)

    def modes(self) -> list[str]:
        return [
            one["mode"]
            for one in json.loads((self.folder / "bin" / mps_stand_in.CARDS).read_text())
        ]

    def status(self) -> list[dict[str, Any]]:
        """Our daemons only: other tests of this machine may run theirs."""
        said = self.run("mps", "status", "--json")
        assert said.code == 0, said.err
        rows = json.loads(said.out)["daemons"]
        return [one for one in rows if one["daemon"] and str(self.folder) in one["daemon"]["pipe"]]

    def rows(self) -> list[list[str]]:
        said = self.run("mps", "status", "--lines", "0")
        return [line.split() for line in said.out.splitlines() if str(self.folder) in line]


@pytest.fixture
def box(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Box]:
    cards = tuple(mps_stand_in.CARD.format(secrets.randbits(40)) for _ in range(2))
    environment = mps_stand_in.install(open_folder / "bin", cards)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(open_folder))
    monkeypatch.chdir(open_folder)
    cluster = f"mps-test-{secrets.token_hex(4)}"
    Path("config.env").write_text(
        f"HEAD_HOST=localhost\nCLUSTER_NAME={cluster}\nRUNTIME=process\nACCELERATOR=nvidia\n"
        f"CUDA_MPS_PIPE_DIRECTORY={open_folder}/mps\nCUDA_MPS_LOG_DIRECTORY={open_folder}/log\n"
    )

    def run(*argv: str) -> Said:
        capsys.readouterr()
        try:
            main(list(argv), World(connect=this_machine))
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    yield Box(open_folder, environment, cards, cluster, run)
    for file in (open_folder / "mps").rglob("nvidia-cuda-mps-control.pid"):
        try:
            os.kill(int(file.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            continue
    shutil.rmtree(f"{SYSTEM_STATE_ROOT}/{cluster}", ignore_errors=True)


def test_a_daemon_for_each_card_starts_once_and_stops(box: Box) -> None:
    begun = box.run("mps", "start", "--yes", "--percentage", "50")
    assert begun.code == 0, begun.err
    again = box.run("mps", "start", "--yes", "--percentage", "50")
    assert (again.code, again.err.splitlines()[-1]) == (0, "nothing to do")
    one, two = box.rows()
    me = str(os.getuid())
    assert [one[1:3], one[4:]] == [[str(box.pipe("card-0")), "0"], [me, "0", "0", "50%", "running"]]
    assert two[1:3] == [str(box.pipe("card-1")), "1"]
    assert box.modes() == ["Default", "Default"]
    stopped = box.run("mps", "stop", "--yes")
    assert stopped.code == 0, stopped.err
    assert box.status() == []


def test_one_daemon_per_host_where_that_is_asked_for(box: Box) -> None:
    assert box.run("mps", "start", "--yes", "--per", "host").code == 0
    (row,) = box.status()
    assert (row["cards"], row["state"]) == ("0,1", "running")
    changed = box.run("mps", "start", "--yes", "--per", "card")
    assert changed.code == 6
    assert "with other settings; `vllmdeploy mps restart` changes them" in changed.err
    assert box.run("mps", "restart", "--yes", "--per", "card").code == 0
    assert [one["cards"] for one in box.status()] == ["0", "1"]


def test_compute_modes_are_changed_only_when_asked_and_come_back(box: Box) -> None:
    assert box.run("mps", "start", "--yes", "--cards", "1", "--exclusive").code == 0
    assert box.modes() == ["Default", "Exclusive_Process"]
    assert box.run("mps", "restart", "--yes", "--cards", "1", "--exclusive").code == 0
    assert box.modes() == ["Default", "Exclusive_Process"]
    assert box.run("mps", "stop", "--yes").code == 0
    assert box.modes() == ["Default", "Default"]


def test_a_mode_comes_back_after_a_daemon_that_died(box: Box) -> None:
    assert box.run("mps", "start", "--yes", "--cards", "0", "--exclusive").code == 0
    (row,) = box.status()
    os.kill(_daemon(row)["pid"], signal.SIGKILL)
    assert box.modes() == ["Exclusive_Process", "Default"]
    stopped = box.run("mps", "stop", "--yes")
    assert stopped.code == 0, stopped.err
    assert box.modes() == ["Default", "Default"]


def test_partitions_are_made_and_shown_and_old_logs_go(box: Box) -> None:
    logs = box.folder / "log" / "card-0"
    logs.mkdir(parents=True)
    (logs / "control.log").write_bytes(b"x" * (11 << 20))
    old = logs / "server.log.1"
    old.write_text("long ago\n")
    os.utime(old, (0, 0))
    begun = box.run("mps", "start", "--yes", "--cards", "0", "--partitions", "4,8")
    assert begun.code == 0, begun.err
    (row,) = box.status()
    assert row["state"] == "static partitions"
    assert _daemon(row)["partitions"] == [f"{box.cards[0]}/A4x==", f"{box.cards[0]}/B8x=="]
    assert sorted(one.name for one in logs.iterdir()) == ["control.log", "control.log.1"]
    assert (logs / "control.log.1").stat().st_size == 11 << 20


def test_clients_are_shown_and_spared_and_their_faults_named(box: Box) -> None:
    assert box.run("mps", "start", "--yes", "--cards", "1").code == 0
    box.ask(f"attach {os.getpid()}", "card-1")
    refused = box.run("mps", "stop", "--yes")
    assert refused.code == 6
    assert f"{box.pipe('card-1')} is used by " in refused.err
    assert f"(pid {os.getpid()})" in refused.err
    box.ask("fault", "card-1")
    said = box.run("mps", "status", "--lines", "1")
    assert f"(pid {os.getpid()})" in said.out
    faulty = [line for line in said.out.splitlines() if line.endswith("  FAULT")]
    assert any(str(box.pipe("card-1")) in line for line in faulty)
    assert f"Client {os.getpid()} encountered a fatal GPU error" in said.out
    assert "vllmdeploy mps restart --hosts localhost --cards 1" in said.out
    assert box.run("mps", "stop", "--yes", "--force").code == 0
    assert box.status() == []


def test_a_daemon_that_somebody_else_started_stays(box: Box) -> None:
    pipe = box.folder / "theirs"
    subprocess.run(
        ["nvidia-cuda-mps-control", "-d"],
        env={
            **os.environ,
            "CUDA_VISIBLE_DEVICES": box.cards[0],
            "CUDA_MPS_PIPE_DIRECTORY": str(pipe),
            "CUDA_MPS_LOG_DIRECTORY": str(pipe),
        },
        check=True,
        timeout=20,
    )
    pid = int((pipe / "nvidia-cuda-mps-control.pid").read_text())
    try:
        refused = box.run("mps", "start", "--yes")
        assert refused.code == 6
        assert (
            f"localhost: card 0: an MPS daemon of uid {os.getuid()} (pid {pid}, {pipe}) is there"
            " already, not started by vllmdeploy; stop it as its user:"
            f" echo quit | CUDA_MPS_PIPE_DIRECTORY={pipe} nvidia-cuda-mps-control"
        ) in refused.err
        assert box.run("mps", "start", "--yes", "--cards", "1").code == 0
        stopped = box.run("mps", "stop", "--yes")
        assert "was not started for this cluster: it stays" in stopped.err
        os.kill(pid, 0)
    finally:
        os.kill(pid, signal.SIGKILL)


def test_a_host_without_mps_says_where_it_comes_from(box: Box) -> None:
    (box.folder / "bin" / "nvidia-cuda-mps-control").unlink()
    refused = box.run("mps", "start", "--yes")
    assert refused.code == 6
    assert "localhost: there is no nvidia-cuda-mps-control: it comes with NVIDIA's" in refused.err


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder away, as only root can")
def test_a_folder_of_another_user_is_refused_by_name(box: Box) -> None:
    box.pipe().mkdir()
    theirs = box.pipe("card-0")
    theirs.mkdir()
    os.chown(theirs, 12345, 12345)
    refused = box.run("mps", "start", "--yes", "--cards", "0")
    assert refused.code == 4
    assert f"{theirs} belongs to uid 12345, and MPS would run as uid 0" in refused.err


def _daemon(row: dict[str, Any]) -> dict[str, Any]:
    return cast("dict[str, Any]", row["daemon"])

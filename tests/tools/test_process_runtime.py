"""A detached warden through the commands a plan would run, each by a real shell."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.rig.programs import until
from vllmdeploy.core.command import Command, Result
from vllmdeploy.node import ctl, processes
from vllmdeploy.tools import process
from vllmdeploy.tools.process import Detached, DetachedSpec

LABELS = {"vllmdeploy.cluster": "vllm", "vllmdeploy.fingerprint": "0123456789ab"}


def run(command: Command) -> Result:
    done = subprocess.run(
        command.argv,
        input=command.stdin or b"",
        capture_output=True,
        timeout=command.limit_s,
        check=False,
    )
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
def runs(tmp_path: Path) -> Generator[Path, None, None]:
    folder = tmp_path / "it's $HOME & co" / "run"  # a path is a word, whatever stands in it
    yield folder
    for node in folder.glob("*"):
        run(process.stop(str(node), stop_s=5))


def spec(runs: Path, child: str = "echo up; exec sleep 1000") -> DetachedSpec:
    node = runs / "vllm-ray-head"
    warden = (sys.executable, "-m", "vllmdeploy.node.warden")
    return DetachedSpec(
        run=str(node),
        argv=(
            *(*warden, "--name", "vllm-ray-head", "--role", "instance", "--run", str(node)),
            *("--logs", str(runs.parent / "logs"), "--", "sh", "-c", child),
        ),
        labels=LABELS,
        environment={"VD_TEST": str(runs.parent.parent), "ODD": "a 'b' $C"},
    )


def running(runs: Path) -> tuple[Detached, ...]:
    fact = process.found(str(runs))
    return fact.parse(run(fact.command))


def test_a_node_is_made_found_stopped_started_again_and_removed(runs: Path) -> None:
    wanted = spec(runs)
    assert running(runs) == ()
    assert run(process.make(wanted)) == Result(0)
    found = running(runs)
    assert [(node.name, node.labels, node.problem) for node in found] == [
        ("vllm-ray-head", LABELS, "")
    ]
    pid = found[0].pid
    assert os.getsid(pid) == pid
    assert processes.mark(pid, "ODD") == "a 'b' $C"
    assert run(process.stop(wanted.run, stop_s=20)) == Result(0)
    assert [node.pid for node in running(runs)] == [0]
    assert run(process.start(wanted.run)) == Result(0)
    assert running(runs)[0].pid not in (0, pid)
    assert run(process.stop(wanted.run, stop_s=20)) == Result(0)
    kept = Path(wanted.run) / "fleet"
    kept.mkdir()
    assert run(process.remove(wanted.run)) == Result(0)
    assert running(runs) == ()
    kept.rmdir()
    assert run(process.remove(wanted.run)) == Result(0)
    assert list(runs.iterdir()) == []


def test_making_what_runs_already_leaves_it_running(runs: Path) -> None:
    wanted = spec(runs)
    run(process.make(wanted))
    first = running(runs)
    assert run(process.make(wanted)) == Result(0)
    assert running(runs) == first


def test_what_a_warden_says_when_it_cannot_start_is_the_answer(runs: Path) -> None:
    wanted = spec(runs)
    wrong = DetachedSpec(run=wanted.run, argv=(*wanted.argv[:7], "--"), labels=LABELS)
    result = run(process.make(wrong))
    (runs / "vllm-ray-head" / "status.json").write_text('{"pid": 0}')
    assert result.status == 1
    assert "the following arguments are required: --run, --logs" in result.stderr


def test_a_pid_that_belongs_to_somebody_else_now_is_not_signalled(runs: Path) -> None:
    wanted = spec(runs)
    run(process.make(wanted))
    run(process.stop(wanted.run, stop_s=20))
    own = processes.process(os.getpid())
    assert own is not None
    pid_file = Path(wanted.run) / "node.pid"
    for started, boot in ((own.started - 1, processes.boot_id()), (own.started, "another-boot")):
        pid_file.write_text(f"{os.getpid()} {started} {boot}\n")
        assert running(runs)[0].pid == 0
        assert run(process.stop(wanted.run, stop_s=5)) == Result(0)


def test_a_deaf_warden_and_all_it_started_are_killed(runs: Path) -> None:
    orphan = "python3 -c 'import os,time; os.fork() and os._exit(0); os.setsid(); time.sleep(1000)'"
    wanted = spec(runs, f"{orphan}; echo up; exec sleep 1000")
    run(process.make(wanted))
    until("the orphan", lambda: len(left(wanted.run)) >= 2)
    pid = running(runs)[0].pid
    os.kill(pid, signal.SIGSTOP)
    assert run(process.stop(wanted.run, stop_s=1)) == Result(0)
    assert left(wanted.run) == ()
    assert running(runs)[0].pid == 0


def left(run_folder: str) -> tuple[int, ...]:
    return processes.leftovers(processes.everything(), run_folder)


def test_a_killed_warden_is_started_again_over_what_it_left(runs: Path) -> None:
    wanted = spec(runs)
    run(process.make(wanted))
    os.kill(running(runs)[0].pid, signal.SIGKILL)
    until("its end", lambda: running(runs)[0].pid == 0)
    assert run(process.start(wanted.run)) == Result(0)
    status = ctl.ask(Path(wanted.run), "status")
    assert isinstance(status, dict)
    assert status["pid"] == running(runs)[0].pid


def test_what_it_writes_to_its_temporary_folder_goes_with_it(runs: Path) -> None:
    wanted = spec(runs, 'touch "$TMPDIR/left"; echo up; exec sleep 1000')
    run(process.make(wanted))
    folder = temporary(wanted.run)
    until("the file", (folder / "left").exists)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    os.kill(running(runs)[0].pid, signal.SIGKILL)
    until("its end", lambda: running(runs)[0].pid == 0)
    assert run(process.start(wanted.run)) == Result(0)
    anew = temporary(wanted.run)
    assert anew != folder
    assert not folder.exists()
    assert run(process.stop(wanted.run, stop_s=20)) == Result(0)
    assert not anew.exists()


def test_only_a_temporary_folder_of_ours_is_taken_away(runs: Path, tmp_path: Path) -> None:
    wanted = spec(runs)
    run(process.make(wanted))
    run(process.stop(wanted.run, stop_s=20))
    kept = tmp_path / "kept"
    kept.mkdir()
    link = Path(tempfile.mkdtemp(prefix="vllmdeploy.", dir="/tmp"))
    link.rmdir()
    link.symlink_to(kept)
    try:
        for path in (kept, f"/tmp/vllmdeploy.x/../..{kept}", link, "", "/tmp"):
            Path(wanted.run, "temporary").write_text(f"{path}\n")
            assert run(process.stop(wanted.run, stop_s=5)) == Result(0)
            assert kept.exists()
    finally:
        link.unlink()


def temporary(run_folder: str) -> Path:
    status = json.loads(Path(run_folder, "status.json").read_text())
    folder = Path(processes.mark(status["pid"], "TMPDIR") or "none")
    assert Path(run_folder, "temporary").read_text() == f"{folder}\n"
    return folder


def test_its_files_are_readable_by_its_owner_only(runs: Path) -> None:
    wanted = spec(runs)
    run(process.make(wanted))
    folder = Path(wanted.run)
    modes = {name: (folder / name).stat().st_mode for name in ("node.json", "start.sh")}
    assert {name: stat.S_IMODE(mode) for name, mode in modes.items()} == {
        "node.json": 0o600,
        "start.sh": 0o600,
    }


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "node.json cannot be read: "),
        ("[]", "node.json has no labels"),
        ('{"labels": 3}', "node.json has no labels"),
    ],
)
def test_a_damaged_node_file_is_named_not_hidden(content: str, problem: str) -> None:
    fact = process.found("/runs")
    (node,) = fact.parse(Result(0, f"@@node@@42 n\n{content}\n"))
    assert (node.name, node.pid, node.problem.startswith(problem)) == ("n", 42, True)

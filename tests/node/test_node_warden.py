"""The whole warden over plain shell children: what it does, not how."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.node.wardens import Node, alive
from tests.rig.programs import until
from vllmdeploy.node import ctl, processes, report, warden

SLEEPER = ("sh", "-c", "echo up; exec sleep 1000")
# A grandchild in a session of its own whose parent has gone, as Ray makes them.
ORPHAN = "python3 -c 'import os,time; os.fork() and os._exit(0); os.setsid(); time.sleep(1000)'"
IDLE = "while :; do sleep 0.1; done"
INSTANCE = ("--role", "instance")
QUICK = (*INSTANCE, "--back-off", "0.05,0.05,0.05,0.05")


def test_a_child_runs_and_sigterm_ends_everything_with_exit_0(node: Node) -> None:
    node.start(*INSTANCE, child=("sh", "-c", f"{ORPHAN} & echo up; sleep 1000 & wait"))
    child = node.child("running")
    until("three processes", lambda: len(node.left()) >= 3)
    pids = node.left()
    assert child["pid"] in pids
    assert node.end() == 0
    assert not any(map(alive, pids))
    assert json.loads((node.run / "status.json").read_text())["state"] == "stopped"
    assert not (node.run / "ctl.sock").exists()


def test_a_child_that_ends_with_0_is_started_again_without_its_leftovers(node: Node) -> None:
    node.start(*QUICK, child=("sh", "-c", f"trap 'exit 0' USR1; {ORPHAN}; echo once; {IDLE}"))
    first = node.child("running")
    until("the orphan", lambda: len(node.left()) >= 2 and "once" in node.said)
    before = node.left()
    os.kill(first["pid"], signal.SIGUSR1)
    node.reaches(lambda status: status["engines"]["node"]["restarts"] == 1)
    again = node.child("running")
    assert again["pid"] != first["pid"]
    assert not any(map(alive, before))
    assert again["last_failure"]["reason"] == "exited with code 0 without being asked to"
    assert again["last_failure"]["last_lines"] == ["once"]


def test_the_error_that_came_first_is_kept_however_much_follows(node: Node) -> None:
    said = "echo '(W pid=7) ERROR [x.py:9] ValueError: no room'; seq 60; echo 'OSError: later'"
    node.start(*QUICK, child=("sh", "-c", f"{said}; exit 3"))
    lines = node.child("crash-loop")["last_failure"]["last_lines"]
    assert (lines[0], lines[-1]) == (
        "(W pid=7) ERROR [x.py:9] ValueError: no room",
        "OSError: later",
    )
    assert len(lines) == 21


def test_a_child_that_always_fails_is_given_up_and_the_warden_still_answers(node: Node) -> None:
    node.start(*QUICK, child=("sh", "-c", "echo starting; echo no space >&2; exit 3"))
    child = node.child("crash-loop")
    assert child["reason"] == (
        "5 failures within 15 minutes, gave up; the last: exited with code 3"
    )
    assert (child["restarts"], child["last_exit"]["code"]) == (4, 3)
    assert child["last_lines"] == ["starting", "no space"]
    status = node.ask("status")
    assert (status["state"], status["reason"]) == (
        "degraded",
        f"node is crash-loop: {child['reason']}",
    )


@pytest.mark.parametrize("how", ["ctl", "SIGHUP"])
def test_retry_starts_again_what_was_given_up(node: Node, how: str) -> None:
    marker = node.folder / "mended"
    text = 'test -e "$1" || exit 1; exec sleep 1000'
    node.start(*QUICK, child=("sh", "-c", text, "sh", str(marker)))
    node.child("crash-loop")
    marker.touch()
    if how == "ctl":
        assert ctl.main(["--run", str(node.run), "retry"]) == 0
    else:
        assert node.program is not None
        node.program.send_signal(signal.SIGHUP)
    assert node.child("running")["failures"] == 0


def test_a_program_that_is_not_there_is_no_reason_to_try_five_times(node: Node) -> None:
    node.start(*QUICK, child=("no-such-program",))
    child = node.child("crash-loop")
    assert child["reason"] == "cannot start no-such-program: No such file or directory"
    assert child["restarts"] == 0


def test_an_image_without_ray_says_so(node: Node) -> None:
    bare = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(warden.__file__).parents[2])}
    node.folder.mkdir(exist_ok=True)
    argv = node.argv("--role", "head", "--ray-address", "127.0.0.1:1", child=("ray", "start"))
    python = ("/usr/bin/env", "-i", *(f"{k}={v}" for k, v in bare.items()), "python3", "-S")
    with (node.folder / "node.out").open("w") as out:
        node.program = subprocess.Popen((*python, *argv[1:]), stdout=out, stderr=out, text=True)
    assert node.child("crash-loop", "ray")["reason"] == (
        "this image has no Ray: neither `ray` on PATH nor the Python module; "
        "use an image with Ray, or EXECUTOR=mp"
    )


def test_a_second_warden_of_one_folder_is_refused_and_the_first_goes_on(node: Node) -> None:
    node.start(*INSTANCE, child=SLEEPER)
    pid = node.child("running")["pid"]
    argv = node.argv(*INSTANCE, child=SLEEPER)
    second = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    holder = node.ask("status")["pid"]
    assert (second.returncode, second.stderr) == (
        7,
        f"warden: {node.run} is held by another warden (pid {holder})\n",
    )
    assert node.child("running")["pid"] == pid


def orphans(node: Node) -> list[int]:
    """The Python that has left the child's session, so that the child's end is not its own."""
    found = (processes.process(pid) for pid in node.left())
    alone = [one.pid for one in found if one and one.session == one.pid]
    return [pid for pid in alone if "python" in Path(f"/proc/{pid}/exe").readlink().name]


def test_what_a_killed_warden_left_is_ended_by_the_next_one(node: Node) -> None:
    child = ("sh", "-c", f"trap '' TERM; {ORPHAN}; echo up; {IDLE}")
    node.start(*INSTANCE, child=child)
    node.child("running")
    before = until("the orphan", lambda: orphans(node) or None)
    node.end(signal.SIGKILL)
    assert any(map(alive, before))
    node.start(*INSTANCE, child=child)
    node.child("running")
    assert not any(map(alive, before))


def test_a_child_dies_with_a_killed_warden(node: Node) -> None:
    node.start(*INSTANCE, child=SLEEPER)
    pid = node.child("running")["pid"]
    node.end(signal.SIGKILL)
    until("the child's end", lambda: not alive(pid))


def test_a_worker_waits_for_its_head_and_says_so(node: Node) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
        address = ("--role", "worker", "--ray-address", f"127.0.0.1:{port}")
        node.start(*address, child=("sh", "-c", "echo Ray runtime started.; exec sleep 1000"))
        waiting = node.child("waiting", "ray")
        assert waiting["pid"] is None
        node.reaches(
            lambda status: (
                status["ray"]["reason"]
                == f"waiting for the Ray head at 127.0.0.1:{port} (connection refused)"
            )
        )
        holder.listen(64)
        running = node.child("running", "ray")
    # The head is gone: the worker ends and waits again, and nobody is to blame.
    again = node.child("waiting", "ray")
    assert not alive(running["pid"])
    assert again["failures"] == 0


def test_a_head_is_ready_when_its_port_accepts(node: Node) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
        node.start("--role", "head", "--ray-address", f"127.0.0.1:{port}", child=SLEEPER)
        assert node.child("starting", "ray")["pid"]
        assert node.ask("status")["state"] == "starting"
        holder.listen(64)
        node.child("running", "ray")


def test_output_reaches_the_log_the_echo_and_ctl_logs(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    text = r"printf '\033[32mgreen\033[0m\n10%%\r100%%\nlast'; sleep 1000"
    node.start(*INSTANCE, child=("sh", "-c", f"echo one; {text}"))
    log = node.logs / "node.log"
    until("the log", lambda: log.exists() and "100%" in log.read_text())
    assert log.read_text() == "one\ngreen\n100%\n"
    assert "[node] green\n" in node.said
    assert ctl.main(["--run", str(node.run), "logs", "node", "--tail", "2"]) == 0
    assert capsys.readouterr().out == "green\n100%\n"
    assert ctl.main(["--run", str(node.run), "logs", "nod"]) == 3
    assert capsys.readouterr().err == (f"no log of 'nod' in {node.logs}; there are: node, warden\n")


def test_logs_and_the_last_status_of_a_dead_warden_can_be_read(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    node.start(*INSTANCE, child=SLEEPER)
    node.child("running")
    until("written", lambda: '"running"' in (node.run / "status.json").read_text())
    node.end(signal.SIGKILL)
    assert ctl.main(["--run", str(node.run), "status"]) == 3
    shown = capsys.readouterr()
    status = json.loads(shown.out)
    assert (status["warden"], status["engines"]["node"]["state"]) == ("gone", "running")
    assert shown.err.startswith(f"no warden answers at {node.run}/ctl.sock")
    assert ctl.main(["--run", str(node.run), "logs", "node"]) == 0
    assert capsys.readouterr().out == "up\n"


def test_an_answer_is_held_until_there_is_news_of_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(**engine: object) -> None:
        report.write(tmp_path, {"engines": {"m": {"since": next(moments), **engine}}})

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        next(changes)()

    slept: list[float] = []
    moments = itertools.count()
    monkeypatch.setattr("vllmdeploy.node.ctl.time.sleep", sleep)
    for news in (
        lambda: write(state="running"),
        lambda: write(state="starting", failures=1),
        lambda: write(state="starting", generation="2"),
        lambda: (tmp_path / "status.json").unlink(),
    ):
        write(state="starting")
        slept.clear()
        # Another moment of the same state is no news.
        changes = iter((lambda: write(state="starting"), news))
        ctl.hold(tmp_path, "m")
        assert len(slept) == 2
    write(state="running")
    ctl.hold(tmp_path, "m")
    ctl.hold(tmp_path, "nobody", at_most_s=0)
    assert len(slept) == 2


def test_the_socket_is_its_owners_and_bad_questions_are_answered(node: Node) -> None:
    node.start(*INSTANCE, child=SLEEPER)
    path = node.run / "ctl.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for question in (b"nonsense\n", b"[]\n", b'{"ask": "secrets"}\n', b"x" * 100_000):
        with socket.socket(socket.AF_UNIX) as door:
            door.connect(str(path))
            door.sendall(question)
            door.shutdown(socket.SHUT_WR)
            answer = door.makefile("rb").read()
        assert answer == b"" or "error" in json.loads(answer)
    assert node.ask("nodes")["problem"] == "not a Ray head"


def test_a_long_run_folder_gets_a_short_socket_named_in_the_status(
    make_node: Callable[[str], Node], tmp_path: Path
) -> None:
    node = make_node("n" * 99)
    node.folder = tmp_path / ("d" * 100)
    node.start(*INSTANCE, child=SLEEPER)
    path = Path(node.ask("status")["socket"])
    assert len(str(path)) < 108
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert node.end() == 0
    assert not path.parent.exists()


def test_a_run_folder_that_cannot_be_written_does_not_end_the_child(node: Node) -> None:
    node.start(*QUICK, child=SLEEPER)
    first = node.child("running")["pid"]
    until("written", lambda: '"running"' in (node.run / "status.json").read_text())
    with socket.socket(socket.AF_UNIX) as door:
        door.connect(str(node.run / "ctl.sock"))
        shutil.rmtree(node.run)
        os.kill(first, signal.SIGKILL)
        until("the problem", lambda: "cannot write status.json: No such file" in node.said)
        door.sendall(b'{"ask": "status"}\n')
        status = json.loads(door.makefile("rb").read())
    assert status["problem"] == "cannot write status.json: No such file or directory"
    assert node.end() == 0
    assert node.left() == []


def test_a_count_of_lines_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for count in ("-1", "x", ""):
        with pytest.raises(SystemExit):
            ctl.main(["--run", "r", "logs", "ray", "--tail", count])
        assert f"{count!r} is not a number of lines" in capsys.readouterr().err


def test_ctl_without_any_warden_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("status",), ("nodes",), ("retry",), ("logs", "ray")):
        assert ctl.main(["--run", str(tmp_path), *words]) == 3
        assert capsys.readouterr().err.startswith("no ")


def test_ctl_stop_ends_the_warden(node: Node) -> None:
    node.start(*INSTANCE, child=SLEEPER)
    assert node.ask("stop") == {"done": True}
    assert node.program is not None
    assert node.program.wait(30) == 0
    assert node.left() == []


def test_a_child_deaf_to_sigterm_is_killed_within_the_limit(node: Node) -> None:
    deaf = ("sh", "-c", f"trap '' TERM; echo up; {IDLE}")
    node.start(*INSTANCE, "--stop-limit", "1", child=deaf)
    node.child("running")
    until("the trap", lambda: "up" in node.said)
    assert node.end() == 0
    assert node.left() == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ("--role", "head"),
            "no Ray address: give --ray-address, or --node-ip-address / --address",
        ),
        (("--role", "worker", "--ray-address", "host"), "'host' is not IP:PORT"),
        (("--role", "instance", "--health-url", "ftp://x"), "not an http:// address"),
        (("--role", "instance", "--name", "../x"), "letters, digits"),
        (("--role", "instance", "--log-files", "0"), "must be more than 0"),
        (("--role", "instance", "--back-off", "1,x"), "could not convert"),
    ],
)
def test_a_wrong_command_line_is_refused(
    node: Node, options: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = node.argv(*options, child=("true",))[3:]
    assert warden.main(argv) == 2
    assert words in capsys.readouterr().err
    assert not node.run.exists()


def test_no_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--name", "n", "--role", "instance", "--run", "r", "--logs", "l"]
    assert warden.main(arguments) == 2
    assert capsys.readouterr().err == "warden: no command after --\n"


def test_a_program_that_does_not_read_cannot_block_the_warden(node: Node) -> None:
    node.folder.mkdir(exist_ok=True)
    flood = ("sh", "-c", "yes | head -c 3000000; exec sleep 1000")
    argv = node.argv(*INSTANCE, child=flood)
    read, write = os.pipe()
    try:
        node.program = subprocess.Popen(argv, stdout=write, stderr=subprocess.DEVNULL, text=True)
        log = node.logs / "node.log"
        until("the flood", lambda: log.exists() and log.stat().st_size == 3_000_000)
        assert node.ask("status")["state"] == "running"
        assert node.end() == 0
    finally:
        os.close(read)
        os.close(write)


def test_the_module_runs_by_name() -> None:
    argv = (sys.executable, "-m", "vllmdeploy.node.warden", "--help")
    shown = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30)
    assert shown.stdout.startswith("usage: python3 -m vllmdeploy.node.warden")

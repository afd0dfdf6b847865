"""The commands of a whole fleet, with hosts that pretend: lines and exit codes."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.scripted_hosts import ScriptedFleet
from vllmdeploy.cli.app import main
from vllmdeploy.cli.context import World
from vllmdeploy.effects import lock
from vllmdeploy.effects.execute import Stop
from vllmdeploy.errors import HostUnreachable
from vllmdeploy.plan import wanted
from vllmdeploy.workflows import cluster

NODES = "gpu-01 head=yes ray_gpus=1\ngpu-02 ray_gpus=1\n"


@dataclass
class Said:
    code: int
    out: str
    err: str


Run = Callable[..., Said]


@pytest.fixture
def fleet(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> ScriptedFleet:
    monkeypatch.chdir(open_folder)
    Path("config.env").write_text(
        "HEAD_HOST=gpu-01\nIMAGE=vllm:1\nACCELERATOR=cpu\nMODEL_PATH=/data/models\n", "utf-8"
    )
    Path("worker_nodes.txt").write_text(NODES, "utf-8")
    return ScriptedFleet(open_folder, "gpu-01", "gpu-02")


@pytest.fixture
def run(fleet: ScriptedFleet, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*argv: str) -> Said:
        with pytest.raises(SystemExit) as ended:
            main(list(argv), World(connect=fleet.connect))
        said = capsys.readouterr()
        return Said(int(ended.value.code or 0), said.out, said.err)

    return run


def test_a_fleet_comes_up_is_seen_and_goes_down(fleet: ScriptedFleet, run: Run) -> None:
    up = run("up", "--yes")
    assert up.code == 0, up.err
    assert up.out == ""
    assert "# gpu-01: create vllm-ray-head (not found)\n" in up.err
    assert "gpu-02: create vllm-ray-worker: done in " in up.err
    assert "done: " in up.err.splitlines()[-1]
    again = run("up", "--yes")
    assert (again.code, again.err.splitlines()[-1]) == (0, "nothing to do")
    status = run("status")
    assert status.code == 0
    assert status.out.splitlines()[:4] == [
        "HOST    GROUP    ROLE    STATE  IP        CARDS  VENDOR  RESTARTS  WHY",
        "gpu-01  default  head    ready  10.7.0.1  1      cpu     0",
        "gpu-02  default  worker  ready  10.7.0.2  1      cpu     0",
        "vllm: 2 of 2 hosts ready, 2 cards",
    ]
    down = run("down", "--yes")
    assert down.code == 0, down.err
    assert [path.name for path in (fleet["gpu-01"].folder / "containers").iterdir()] == []
    assert not (fleet["gpu-01"].state / "lock").exists()
    audit = (fleet["gpu-01"].state / "audit.log").read_text("utf-8").splitlines()
    assert [json.loads(line)["what"] for line in audit] == ["up", "down"]


def test_nobody_to_ask_means_nothing_is_done(fleet: ScriptedFleet, run: Run) -> None:
    said = run("up")
    assert said.code == 2
    assert said.err.endswith(
        "error: nobody to ask here: nothing was done\n  -> say --yes to go ahead\n"
    )
    assert fleet.changes == []
    assert not (fleet["gpu-01"].state / "lock").exists()


def test_a_dry_run_shows_every_command_and_runs_none(fleet: ScriptedFleet, run: Run) -> None:
    said = run("up", "--dry-run")
    assert said.code == 0
    lines = [line for line in said.out.splitlines() if not line.startswith("# note: ")]
    assert "# gpu-01: create vllm-ray-head (not found)" in lines
    create = lines[lines.index("# gpu-01: create vllm-ray-head (not found)") + 1]
    assert create.startswith("docker run --detach --name vllm-ray-head --restart unless-stopped")
    assert fleet.changes == []
    assert list(fleet["gpu-01"].folder.joinpath("home").rglob("audit.log")) == []
    assert run("plan").out.count("docker run --detach") == said.out.count("docker run --detach")


@pytest.mark.parametrize(
    "argv", [("--json", "plan"), ("plan", "--json"), ("up", "--dry-run", "--json")]
)
def test_a_plan_as_json_has_the_contracts_shape(run: Run, argv: tuple[str, ...]) -> None:
    said = run(*argv)
    assert said.code == 0
    steps = json.loads(said.out)["steps"]
    assert all(
        list(step) == ["host", "verb", "subject", "cause", "needs", "argv"] for step in steps
    )
    assert steps[0]["host"] == "gpu-01"
    assert all(isinstance(step["argv"], list) for step in steps)


def test_what_was_done_as_json_is_one_document(run: Run) -> None:
    said = run("up", "--yes", "--json")
    assert said.code == 0
    steps = json.loads(said.out)["steps"]
    assert {step["outcome"] for step in steps} == {"done"}
    again = run("--json", "up", "--yes")
    assert json.loads(again.out) == {"steps": []}


def test_offline_contacts_no_host(fleet: ScriptedFleet, run: Run) -> None:
    said = run("plan", "--offline", "--cards", "2")
    assert said.code == 0
    assert "docker run --detach --name vllm-ray-head" in said.out
    assert [host.commands for host in fleet.hosts.values()] == [[], []]


def test_a_step_that_fails_ends_with_the_programs_own_words(fleet: ScriptedFleet, run: Run) -> None:
    fleet["gpu-02"].fails("run", "docker: no space left on device\n")
    said = run("up", "--yes")
    assert said.code == 4, said.err
    assert "error: gpu-02: create vllm-ray-worker: exit 125: docker run" in said.err
    assert "\n  docker: no space left on device\n  -> vllmdeploy logs gpu-02\n" in said.err
    assert "1 step skipped" in said.err
    assert "needs `gpu-02: create vllm-ray-worker`" in said.err


def test_what_does_not_come_in_time_ends_with_five(
    fleet: ScriptedFleet, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wanted.Wanted, "__init__", _impatient(wanted.Wanted.__init__))
    fleet["gpu-01"].folder.joinpath("status").write_text(
        '{"ray":{"state":"starting","reason":"port 6379 is taken"}}', "utf-8"
    )
    fleet["gpu-01"].folder.joinpath("logs").write_text("bind: in use \x1b]0;evil\x07\n", "utf-8")
    said = run("up", "--yes")
    assert said.code == 5, said.err
    assert "not within 0 s: starting: port 6379 is taken" in said.err
    assert "bind: in use \\x1b]0;evil\\x07" in said.err
    assert "\x1b]" not in said.err


def _impatient(original: Callable[..., None]) -> Callable[..., None]:
    def init(self: object, **values: object) -> None:
        original(self, **{**values, "patience_s": 0.0})

    return init


def test_what_must_not_begin_is_refused_with_six(fleet: ScriptedFleet, run: Run) -> None:
    fleet["gpu-02"].fails("version", "Cannot connect to the Docker daemon at unix:///x\n")
    said = run("up", "--yes")
    assert said.code == 6
    assert "refused before anything was changed:\n" in said.err
    assert "gpu-02: the Docker daemon is not running (systemctl start docker)" in said.err
    assert fleet.changes == []


def unreachable(fleet: ScriptedFleet) -> None:
    fleet.failures["gpu-02"] = HostUnreachable(
        "gpu-02", "no route to host", hint="is it switched on?"
    )


def test_a_host_out_of_reach_ends_with_three(fleet: ScriptedFleet, run: Run) -> None:
    unreachable(fleet)
    for argv in (("up", "--yes"), ("plan",)):
        said = run(*argv)
        assert (said.code, said.err.endswith("  -> is it switched on?\n")) == (3, True)
    status = run("status")
    assert status.code == 3
    assert "gpu-02  default  worker  unreachable" in status.out
    assert fleet.changes == []
    down = run("down", "--yes")
    assert down.code == 3


@pytest.fixture
def locked(fleet: ScriptedFleet, run: Run) -> Path:
    """Somebody on another machine is at work."""
    held = fleet["gpu-01"].state / "lock"
    run("up", "--yes")
    held.mkdir()
    record = {"who": "ann", "machine": "far", "boot_id": "b", "pid": 7, "what": "down"}
    (held / "holder").write_text(json.dumps({**record, "nonce": "ab12"}), "utf-8")
    (held / "heartbeat").write_text("", "utf-8")
    for path in (held, *held.iterdir()):
        path.chmod(0o777)
    return held


def test_another_run_ends_ours_with_seven(locked: Path, run: Run) -> None:
    for argv in (("up", "--yes"), ("down", "--yes")):
        said = run(*argv)
        assert said.code == 7
        assert "error: gpu-01: locked by ann@far (pid 7), doing `down`, since " in said.err
        assert said.err.endswith("  -> wait for it, or `vllmdeploy unlock` when that run is dead\n")
    assert locked.exists()


def test_a_lock_of_a_run_that_may_live_stays(locked: Path, run: Run) -> None:
    said = run("unlock", "--yes")
    assert said.code == 2
    assert "its holder may be alive: it gave a sign of life" in said.err
    assert "not removed: --yes is for a holder that is certainly gone" in said.err
    assert locked.exists()


def test_a_lock_of_a_dead_run_goes(locked: Path, run: Run) -> None:
    os.utime(locked / "heartbeat", (1, 1))
    said = run("unlock", "--yes")
    assert (said.code, said.err.splitlines()[-1]) == (0, "the lock is removed")
    assert not locked.exists()
    assert run("unlock").err.endswith("gpu-01: not locked\n")


def test_a_lock_that_is_taken_away_ends_the_run_with_seven(
    fleet: ScriptedFleet, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken(session: object, plan: object, what: str, on_event: object, stop: Stop) -> object:
        stop.because = lock.LOST
        stop.event.set()
        return original(session, plan, what, on_event, stop)  # type: ignore[arg-type]  # passed through

    original = cluster.apply
    monkeypatch.setattr(cluster, "apply", taken)
    said = run("up", "--yes")
    assert said.code == 7
    assert "stopped: the lock was taken away; what was begun is done" in said.err


def test_ctrl_c_in_a_step_ends_with_130_and_gives_the_lock_back(
    fleet: ScriptedFleet, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()

    def interrupt() -> None:
        begun.wait()
        os.kill(os.getpid(), signal.SIGINT)

    head, original = fleet["gpu-01"], fleet["gpu-01"].run

    def hanging(command: object, **options: object) -> object:
        if "docker run --detach" in str(command):
            begun.set()
            threading.Event().wait()
        return original(command, **options)  # type: ignore[arg-type]  # passed through

    monkeypatch.setattr(head, "run", hanging)
    threading.Thread(target=interrupt, daemon=True).start()
    said = run("up", "--yes")
    assert (said.code, said.err.splitlines()[-1]) == (
        130,
        "interrupted; the next run goes on from here",
    )
    assert not (head.state / "lock").exists()
    audit = json.loads((head.state / "audit.log").read_text("utf-8"))
    assert audit["interrupted"] is True


def test_logs_have_their_hosts_name_and_no_escape_sequences(fleet: ScriptedFleet, run: Run) -> None:
    fleet["gpu-01"].folder.joinpath("logs").write_text("one\n\x1b[31mred\x9b0m\n", "utf-8")
    fleet["gpu-02"].folder.joinpath("logs").write_text("two", "utf-8")
    said = run("logs")
    assert said.code == 0
    assert sorted(said.out.splitlines()) == [
        "gpu-01 | \\x1b[31mred\\x9b0m",
        "gpu-01 | one",
        "gpu-02 | two",
    ]
    assert run("logs", "gpu-02", "--tail", "3").out == "gpu-02 | two\n"
    assert fleet["gpu-02"].docker[-1].strip() == (
        "docker logs --timestamps --tail 3 vllm-ray-worker"
    )


def test_logs_that_fail_end_with_the_programs_own_words(fleet: ScriptedFleet, run: Run) -> None:
    fleet["gpu-02"].fails("logs", "Error: No such container: vllm-ray-worker\n")
    fleet["gpu-01"].folder.joinpath("logs").write_text("one\n", "utf-8")
    said = run("logs")
    assert said.code == 4
    assert "gpu-01 | one\n" in said.out
    assert (
        "error: gpu-02: reading the logs: exit 125: docker logs --timestamps --tail 100"
        " vllm-ray-worker\n  Error: No such container: vllm-ray-worker\n"
        "  -> vllmdeploy status says whether there is a node on gpu-02\n"
    ) in said.err


def test_logs_of_an_unknown_name_list_the_known_ones(run: Run) -> None:
    said = run("logs", "gpu-03")
    assert said.code == 2
    assert said.err.endswith(
        "error: gpu-03 is neither a host of the fleet nor a service\n"
        "  -> hosts: gpu-01, gpu-02; services: none\n"
    )
    several = run("logs", "gpu-01", "gpu-03")
    assert several.err.endswith(
        "error: gpu-03 is not in the fleet\n  -> there are: gpu-01, gpu-02\n"
    )


def test_status_as_json_says_why_a_host_is_not_ready(fleet: ScriptedFleet, run: Run) -> None:
    run("up", "--yes")
    (fleet["gpu-02"].folder.parent / "nodes" / "gpu-02").unlink()
    said = run("status", "--json")
    shown = json.loads(said.out)
    assert (shown["cluster"], shown["healthy"]) == ("vllm", False)
    assert [(one["host"], one["state"], one["why"]) for one in shown["hosts"]] == [
        ("gpu-01", "ready", ""),
        ("gpu-02", "not joined", "Ray does not report it"),
    ]


def test_settings_that_are_wrong_are_all_named(run: Run) -> None:
    Path("config.env").write_text("API_PROT=1\nSHM_SIZE=much\n", "utf-8")
    said = run("plan")
    assert said.code == 2
    assert "2 problems in the settings:" in said.err
    assert "config.env:1: " in said.err
    assert "config.env:2: " in said.err


def test_config_and_nodes_may_stand_anywhere(fleet: ScriptedFleet, run: Run) -> None:
    Path("config.env").rename("other.env")
    Path("worker_nodes.txt").rename("others.txt")
    for argv in (
        ("--config", "other.env", "plan", "--offline", "--nodes=others.txt"),
        ("plan", "--offline", "--nodes", "others.txt", "--config=other.env"),
    ):
        said = run(*argv)
        assert said.code == 0, said.err
        assert "# gpu-02: create vllm-ray-worker (not found)" in said.out

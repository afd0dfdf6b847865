"""`capacity MODEL` without figures: on the cards that the hosts' own tools show."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.test_service_commands import pretends
from tests.plan.test_service_capacity import LLAMA_8B
from tests.support import sparse_model
from tests.support.scripted_hosts import ScriptedFleet, ScriptedHost
from vllmdeploy.cli.app import main
from vllmdeploy.cli.context import World
from vllmdeploy.core.command import Command
from vllmdeploy.effects.local import LocalShell
from vllmdeploy.errors import UsageError
from vllmdeploy.tools import files
from vllmdeploy.tools.model_weights import weights_argv
from vllmdeploy.workflows.capacity import model_on_head

SMI = r"""#!/bin/sh
case $* in *compute-apps*) echo 'gpu_uuid, pid, process_name, used_gpu_memory [MiB]'; exit ;; esac
echo 'index, uuid, name, memory.total [MiB], memory.used [MiB], driver_version'
for index in 0 1; do echo "$index, GPU-$index, NVIDIA A10, 24564, 1, 550.54.15"; done
"""
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fleet(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> ScriptedFleet:
    monkeypatch.chdir(open_folder)
    sparse_model.lay(open_folder / "models/m", LLAMA_8B, 2**34)
    Path("config.env").write_text(
        f"HEAD_HOST=gpu-01\nIMAGE=vllm:1\nMODEL_PATH={open_folder}/models\n", "utf-8"
    )
    Path("worker_nodes.txt").write_text("gpu-01 head=yes\ngpu-02\n", "utf-8")
    return ScriptedFleet(open_folder, "gpu-01", "gpu-02")


@pytest.fixture
def run(fleet: ScriptedFleet, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*argv: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(argv), World(connect=fleet.connect))
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


def has_cards(fleet: ScriptedFleet) -> None:
    with Path("config.env").open("a", encoding="utf-8") as file:
        file.write("ACCELERATOR=nvidia\n")
    for name in ("gpu-01", "gpu-02"):
        fleet[name].program("nvidia-smi", SMI)


def test_the_cards_of_all_hosts_are_counted_with(fleet: ScriptedFleet, run: Run) -> None:
    has_cards(fleet)
    code, said, problem = run("capacity", "m", "--tp", "2", "--pp", "1")
    assert code == 0, problem
    lines = said.splitlines()
    assert lines[0].startswith("m: ")
    assert lines[2] == ("  on       2 cards of 24 GiB: tensor parallel 2, pipeline parallel 1")
    _, shown, _ = run("--json", "capacity", "m")
    assert json.loads(shown)["suggested"].startswith("--tensor-parallel-size 2")


def test_what_an_engine_said_when_it_last_started_counts(fleet: ScriptedFleet, run: Run) -> None:
    has_cards(fleet)
    _, computed, _ = run("--json", "capacity", "m", "--tp", "2", "--pp", "1", "--len", "4096")
    conditions = {
        "image": "0" * 12,
        "card": "NVIDIA A10",
        "model": "m",
        "weights": 2**34,
        "tensor_parallel": 2,
        "pipeline_parallel": 1,
        "utilisation": 0.92,
        "settings": "None-None-False-2-",
    }
    kept = fleet["gpu-01"].state / "cache/measured"
    kept.mkdir(parents=True)
    (kept / "x.txt").write_text(
        f"{json.dumps(conditions)}\nINFO Available KV cache memory: 9.50 GiB\n"
    )
    _, measured, _ = run("--json", "capacity", "m", "--tp", "2", "--pp", "1", "--len", "4096")
    before, now = json.loads(computed), json.loads(measured)
    assert before["available_kv_bytes"] != now["available_kv_bytes"]
    assert now["available_kv_bytes"] == {"usual": int(9.5 * 2**30), "worst": int(9.5 * 2**30)}
    assert "when it last started here" in now["notes"][-1]


def test_hosts_without_cards_ask_for_figures(fleet: ScriptedFleet, run: Run) -> None:
    with Path("config.env").open("a", encoding="utf-8") as file:
        file.write("ACCELERATOR=cpu\n")
    code, said, problem = run("capacity", "m")
    assert (code, said) == (2, "")
    assert "no memory of cards is known in group default" in problem
    assert "--memory GIB" in problem


def test_a_group_that_is_not_there_is_named_with_those_that_are(
    fleet: ScriptedFleet, run: Run
) -> None:
    has_cards(fleet)
    code, _, problem = run("capacity", "m", "--group", "other")
    assert code == 2
    assert "there is no group other" in problem
    assert "there are: default" in problem


def says_its_tensors(head: ScriptedHost, folder: Path) -> None:
    """Whoever is asked on this host what the model's tensors take."""
    answer = LocalShell("here").run(Command(weights_argv(str(folder / "models/m"))))
    (head.folder / "weights").write_text(answer.stdout, "utf-8")
    docker = (head.folder / "bin/docker").read_text("utf-8")
    place, rest = docker.split("home=${0%/bin/docker}\n")
    asked = 'home=${0%/bin/docker}\ncase "$*" in *weights*) cat "$home/weights"; exit ;; esac\n'
    head.program("docker", place + asked + rest)


def stored_service(fleet: ScriptedFleet, folder: Path) -> None:
    """One that a larger card had room for; its image says what the model's tensors take."""
    head = fleet["gpu-01"]
    service = {"name": "m", "model": "m", "names": ["m"], "port": 8100, "head": "gpu-01"}
    service |= {"asked": {"model": "m", "max_model_len": 131072}}
    spec = {"name": "m", "argv": ["vllm"], "service": service}
    written = files.write(f"{head.state}/services/m.json", json.dumps(spec).encode())
    assert head.run(files.folders(f"{head.state}/services")).ok
    assert head.run(written).ok
    says_its_tensors(head, folder)


def test_up_refuses_a_stored_service_that_has_no_room_any_more(
    fleet: ScriptedFleet, run: Run, open_folder: Path
) -> None:
    has_cards(fleet)
    stored_service(fleet, open_folder)
    for argv in (("plan",), ("up", "--yes")):
        code, said, problem = run(*argv)
        assert (code, said) == (6, ""), problem
        assert "service m: does not fit: 16.0 GiB of weights on 1 card of 24 GiB" in problem
        assert ": give --max-model-len 10912 or less, or take TP 2\n" in problem
        assert "`vllmdeploy stop-service NAME` takes it out of the way" in problem
    assert fleet.changes == []
    code, _, problem = run("stop-service", "m", "--yes")
    assert code == 0, problem
    assert list((fleet["gpu-01"].state / "services").iterdir()) == []
    code, said, problem = run("plan")
    assert (code, "create vllm-ray-head" in said) == (0, True), problem


def test_a_context_that_was_given_is_refused_with_the_longest_that_is_safe(
    fleet: ScriptedFleet, run: Run, open_folder: Path
) -> None:
    has_cards(fleet)
    head = fleet["gpu-01"]
    pretends(head)
    code, _, problem = run("up", "--yes")
    assert code == 0, problem
    says_its_tensors(head, open_folder)
    line = ("start-service", "m", "1", "--yes")
    with Path("config.env").open("a", encoding="utf-8") as file:
        file.write("MAX_MODEL_LEN=131072\n")
    for more in ((), ("--max-model-len", "100000"), ("--", "--max-model-len=100000")):
        code, said, problem = run(*line, *more)
        assert (code, said) == (6, ""), problem
        length = 100_000 if more else 131_072
        assert (
            "does not fit: 16.0 GiB of weights on 1 card of 24 GiB: no room for one request of"
            f" {length} tokens: give --max-model-len 10912 or less, or take TP 2\n" in problem
        )
    code, _, problem = run(*line, "--max-model-len", "10912")
    assert code == 0, problem


def test_a_model_that_only_the_head_has_is_read_there(fleet: ScriptedFleet) -> None:
    with Path("config.env").open("a", encoding="utf-8") as file:
        file.write("RUNTIME=process\nVLLM_PYTHON=/usr/bin/python3\n")
    here = World(connect=fleet.connect)
    loaded = here.loaded()
    with here.head_session(loaded) as session:
        shape, weights = model_on_head(session, "m")
        with pytest.raises(UsageError, match=r"gpu-01: \S+/models/other: not there"):
            model_on_head(session, "other")

    assert (len(shape.layers.kinds), weights.total_bytes) == (32, 2**34)

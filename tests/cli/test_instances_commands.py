"""Instances from the command line: what would be done, what is refused, which exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.plan.service_builders import CONFIG
from tests.support.scripted_hosts import ScriptedFleet
from vllmdeploy.cli.app import main
from vllmdeploy.cli.context import World

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    monkeypatch.chdir(open_folder)
    model = open_folder / "models/m"
    model.mkdir(parents=True)
    (model / "config.json").write_text(CONFIG, "utf-8")
    Path("config.env").write_text(
        f"HEAD_HOST=gpu-01\nIMAGE=vllm:1\nACCELERATOR=cpu\nMODEL_PATH={open_folder}/models\n"
    )
    Path("worker_nodes.txt").write_text("gpu-01 head=yes\ngpu-02\n")
    fleet = ScriptedFleet(open_folder, "gpu-01", "gpu-02")

    def run(*argv: str, **environ: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(argv), World(connect=fleet.connect, environ=environ))
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


def test_a_dry_run_shows_where_each_would_be_and_does_nothing(run: Run) -> None:
    code, out, err = run("instances", "start", "m", "--count", "2", "--dry-run")
    assert code == 0, err
    lines = [line for line in out.splitlines() if line.startswith("# ")]
    assert lines[:2] == [
        "# note: instance 1: gpu-01, processors, port 8001",
        "# note: instance 2: gpu-02, processors, port 8001",
    ]
    assert "# gpu-02: create vllm-instance-m-2 (not found)" in lines
    assert "MAX_NUM_SEQS=6, GPU_MEMORY_UTILIZATION=0.96, MAX_MODEL_LEN=8192" in err
    assert run("instances", "list", "--json")[1] == '{\n  "instances": []\n}\n'


def test_a_spare_host_is_not_in_the_way(run: Run) -> None:
    Path("worker_nodes.txt").write_text("gpu-01 head=yes\ngpu-02 spare=yes\n")
    code, out, err = run("instances", "start", "m", "--count", "2", "--dry-run")
    assert code == 0, err
    assert "# note: instance 2: gpu-01, processors, port 8002" in out.splitlines()


def test_the_seeds_bare_names_are_read_and_said(run: Run) -> None:
    words = ("instances", "start", "m", "--count", "1", "--dry-run")
    code, out, err = run(*words, VLLM_PORTS="8011,8012", MAX_NUM_SEQS="12")
    assert code == 0, err
    assert "port 8011" in out
    assert "--max-num-seqs 12" in out
    assert "taken from the environment: MAX_NUM_SEQS, VLLM_PORTS" in err


def test_a_plan_as_json_has_the_placement_among_its_notes(run: Run) -> None:
    code, out, _ = run("instances", "start", "m", "--count", "1", "--dry-run", "--json")
    assert code == 0
    shown = json.loads(out)
    assert shown["notes"] == ["instance 1: gpu-01, processors, port 8001"]
    assert shown["steps"][0]["subject"] == "instance m-1"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        pytest.param(
            ("start", "m", "--profile", "instnces"), 2, "did you mean instances?", id="profile"
        ),
        pytest.param(
            ("start", "m", "--hosts", "gpu-03"), 2, "there are: gpu-01, gpu-02", id="host"
        ),
        pytest.param(
            ("start", "m", "--ports", "8001,8001"), 2, "port 8001 is there twice", id="twice"
        ),
        pytest.param(("start", "m", "--ports", "8000"), 2, "8000 is taken by API_PORT", id="api"),
        pytest.param(("start", "m", "--task", "chat"), 2, "generate, embed, rerank", id="task"),
        pytest.param(("start", "m"), 2, "say --yes to go ahead", id="nobody"),
        pytest.param(("start", "other"), 6, "models/other: not there", id="model"),
        pytest.param(
            ("start", "m", "--gpus-per-instance", "3"), 6, "8 attention heads", id="heads"
        ),
        pytest.param(
            ("start", "m", "--yes", "--", "--port=1"), 6, "--port is not given here", id="flag"
        ),
        pytest.param(("stop", "m", "--yes"), 2, "there are instances of: none", id="stop"),
        pytest.param(("restart", "m", "--yes"), 2, "no instances of m", id="restart"),
        pytest.param(("logs", "m"), 2, "no instances of m", id="logs"),
        pytest.param(("check", "m"), 2, "no instances of m", id="check"),
    ],
)
def test_what_cannot_be_is_said_with_what_could(
    run: Run, words: tuple[str, ...], code: int, said: str
) -> None:
    ended, _, err = run("instances", *words)
    assert ended == code, err
    assert said in err


def test_exports_are_named_one_a_line(run: Run, open_folder: Path) -> None:
    to = open_folder / "out"
    code, out, err = run("export", "compose", "m", "--count", "1", "--to", str(to))
    assert code == 0, err
    assert out.splitlines()[0] == str(to / "gpu-01/compose.yaml")
    code, _, err = run("export", "firewall", "--tool", "ufw")
    assert (code, "a firewall needs addresses: gpu-01, gpu-02" in err) == (2, True)


def test_more_on_another_host_leave_those_that_run_alone(run: Run, open_folder: Path) -> None:
    head = open_folder / "gpu-01"
    for name in ("gpu-01", "gpu-02"):
        docker = open_folder / name / "bin/docker"
        text = docker.read_text()
        # Programs in a container have names of their own; and this vLLM has a `vllm serve`.
        text = text.replace("--name) name=$word ;;", "--name) name=${name:-$word} ;;")
        text = text.replace('"vllm":"0.17.0"', '"vllm":"0.17.0","version":"0.17.0","serve":true')
        docker.write_text(text)
    engine = '{"engines": {"vllm-instance-m-1": {"state": "running"}}, '
    (head / "status").write_text(f'{engine}"models": {{"m": {{"instances": {{"ready": 1}}}}}}}}')
    first = ("instances", "start", "m", "--hosts", "gpu-01", "--count", "1", "--yes")
    code, _, err = run(*first)
    assert code == 0, err
    code, out, err = run(
        *("instances", "start", "m", "--hosts", "gpu-02", "--count", "2", "--dry-run")
    )
    assert code == 0, err
    assert "# gpu-02: create vllm-instance-m-2 (not found)" in out
    assert "m-1 (" not in out


def test_a_firewall_is_opened_only_when_that_is_asked_for(run: Run, open_folder: Path) -> None:
    nodes = "gpu-01 ip=10.0.0.1 head=yes\ngpu-02 ip=10.0.0.2\n"
    Path("worker_nodes.txt").write_text(nodes)
    ufw = open_folder / "gpu-02/bin/ufw"
    ufw.write_text('#!/bin/sh\necho "ufw $*" >> ufw.log\necho "Status: active"\n')
    ufw.chmod(0o755)
    assert run("export", "firewall")[0] == 0
    assert not (open_folder / "gpu-02/ufw.log").exists()
    code, out, err = run("export", "firewall", "--apply", "--dry-run")
    assert code == 0, err
    assert "# gpu-02: open ports to the fleet and to callers, by ufw" in out
    assert "# note: gpu-01: neither ufw nor firewalld is active, nothing is opened" in out
    code, _, err = run("export", "firewall", "--apply", "--tool", "ufw", "--tool", "nft")
    assert (code, "--apply takes one --tool" in err) == (2, True)
    code, _, err = run("export", "firewall", "--apply", "--yes")
    assert code == 0, err
    asked = (open_folder / "gpu-02/ufw.log").read_text().splitlines()
    assert "ufw allow proto tcp from 10.0.0.1 to any port" in asked[-1]
    assert not any("allow" in line for line in asked[:-1])

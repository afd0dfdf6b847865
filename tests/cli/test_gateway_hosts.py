"""Gateways on other hosts than the head: made, told, retired, taken down; hosts that pretend."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tests.cli.test_service_commands import Run, Said, pretends, steps
from tests.plan.service_builders import CONFIG
from tests.support.scripted_hosts import ScriptedFleet
from vllmdeploy.cli.app import main
from vllmdeploy.cli.context import World
from vllmdeploy.errors import HostUnreachable


@pytest.fixture
def fleet(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> ScriptedFleet:
    """A head, a worker, and a host without cards that no list of workers names."""
    monkeypatch.chdir(open_folder)
    model = open_folder / "models/m"
    model.mkdir(parents=True)
    (model / "config.json").write_text(CONFIG, "utf-8")
    Path("config.env").write_text(
        "HEAD_HOST=gpu-01\nIMAGE=vllm:1\nIMAGE_GATEWAY=python:1\nACCELERATOR=cpu\n"
        f"GATEWAY_HOSTS=front-01\nMODEL_PATH={open_folder}/models\n",
        "utf-8",
    )
    Path("worker_nodes.txt").write_text("gpu-01 head=yes ray_gpus=1\ngpu-02 ray_gpus=1\n", "utf-8")
    made = ScriptedFleet(open_folder, "gpu-01", "gpu-02", "front-01")
    for name in ("gpu-01", "gpu-02", "front-01"):
        pretends(made[name])
    return made


@pytest.fixture
def run(fleet: ScriptedFleet, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*argv: str) -> Said:
        with pytest.raises(SystemExit) as ended:
            main(list(argv), World(connect=fleet.connect))
        said = capsys.readouterr()
        return Said(int(ended.value.code or 0), said.out, said.err)

    return run


@pytest.fixture
def served(fleet: ScriptedFleet, run: Run) -> Said:
    assert run("up", "--yes").code == 0
    started = run("start-service", "m", "--yes")
    assert started.code == 0, started.err
    return started


def containers(fleet: ScriptedFleet, host: str) -> list[str]:
    return sorted(path.name for path in (fleet[host].folder / "containers").iterdir())


def gateway_hosts(names: str) -> None:
    text = Path("config.env").read_text("utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("GATEWAY_HOSTS")]
    Path("config.env").write_text("\n".join((*lines, f"GATEWAY_HOSTS={names}", "")), "utf-8")


def test_a_host_without_cards_runs_the_gateway_and_nothing_else(
    fleet: ScriptedFleet, served: Said
) -> None:
    assert containers(fleet, "front-01") == ["vllm-gateway"]
    assert containers(fleet, "gpu-01") == ["vllm-ray-head"]
    front = fleet["front-01"]
    argv = front.container_argv
    assert {"vllmdeploy.role=gateway", "vllmdeploy.group=gateway"} <= {*argv}
    # The head keeps the keys that every gateway gets its copy of.
    key = (fleet["gpu-01"].state / "secrets/gateway/api_keys").read_text()
    copy = front.state / "secrets/gateway/api_keys"
    assert (copy.read_text(), copy.stat().st_mode & 0o777) == (key, 0o600)
    assert key.split(":")[1].strip() in served.out
    assert "curl http://10.7.0.3:8000/generate" in served.out
    # Nobody is beside the engine: it listens where the other host can reach it.
    routed = json.loads((front.state / "run/vllm-gateway/fleet/fleet.json").read_text())
    assert [one["url"] for one in routed["upstreams"]] == ["http://10.7.0.1:8100"]


def test_once_more_is_nothing_to_do_and_status_shows_it(served: Said, run: Run) -> None:
    assert run("up", "--yes").err.splitlines()[-1] == "nothing to do"
    shown = json.loads(run("status", "--json").out)
    (front,) = (one for one in shown["hosts"] if one["host"] == "front-01")
    assert (front["role"], front["group"], front["ip"]) == ("gateway", "gateway", "10.7.0.3")
    assert [(one["host"], one["address"], one["state"]) for one in shown["gateways"]] == [
        ("front-01", "http://front-01:8000", "ready")
    ]
    assert [one["state"] for one in shown["services"]] == ["ready"]


def test_a_second_gateway_gets_the_same_keys_and_a_third_place_replaces_both(
    fleet: ScriptedFleet, served: Said, run: Run
) -> None:
    gateway_hosts("front-01,gpu-02")
    done = run("up", "--yes")
    assert done.code == 0, done.err
    assert containers(fleet, "gpu-02") == ["vllm-gateway", "vllm-ray-worker"]
    kept = [fleet[name].state / "secrets/gateway" for name in ("front-01", "gpu-02", "gpu-01")]
    for file in ("api_keys", "admin_key"):
        assert len({(folder / file).read_text() for folder in kept}) == 1
    gateway_hosts("gpu-01")
    done = run("up", "--yes")
    assert done.code == 0, done.err
    # What is in no file any more is out of reach; what is in the list of hosts is put away.
    assert containers(fleet, "gpu-02") == ["vllm-ray-worker"]
    assert containers(fleet, "gpu-01") == ["vllm-gateway", "vllm-ray-head"]
    order = [line for line in steps(done) if "vllm-gateway" in line]
    assert order[-1] == "gpu-02: remove vllm-gateway (gpu-02 is not in GATEWAY_HOSTS)"


def test_a_service_ends_in_every_gateway_before_its_engine_does(
    fleet: ScriptedFleet, served: Said, run: Run
) -> None:
    gateway_hosts("front-01,gpu-02")
    assert run("up", "--yes").code == 0
    ended = run("stop-service", "m", "--yes")
    assert ended.code == 0, ended.err
    said = steps(ended)
    removed = said.index("gpu-01: remove service m (stop-service)")
    for host in ("front-01", "gpu-02"):
        assert f"{host}: drain m in vllm-gateway (it gets no new requests)" in said[:removed]
        assert f"{host}: await last answer of m (no request is cut off)" in said[:removed]


def test_down_takes_the_gateway_with_it(fleet: ScriptedFleet, served: Said, run: Run) -> None:
    assert run("down", "--yes").code == 0
    assert [containers(fleet, name) for name in fleet.hosts] == [[], [], []]


def test_a_prompt_is_asked_through_the_gateways_own_host(
    fleet: ScriptedFleet, served: Said, run: Run
) -> None:
    assert run("generate", "The capital of France is").out == " Paris.\n"
    assert any("/generate" in line for line in fleet["front-01"].docker)


def test_a_front_that_does_not_answer_is_named_and_nothing_is_done(
    fleet: ScriptedFleet, served: Said, run: Run
) -> None:
    fleet.failures["front-01"] = HostUnreachable("front-01", "no route to host")
    done = run("up", "--yes")
    assert (done.code, "front-01: no route to host" in done.err) == (3, True)
    shown = json.loads(run("status", "--json").out)
    (front,) = (one for one in shown["hosts"] if one["host"] == "front-01")
    assert (front["state"], front["why"]) == ("unreachable", "no route to host")


def test_a_front_without_an_engine_is_refused_by_name(fleet: ScriptedFleet, run: Run) -> None:
    fleet["front-01"].fails("version", "Cannot connect to the Docker daemon\n")
    assert run("up", "--yes").code == 0, "the gateway comes with the first service"
    refused = run("start-service", "m", "--yes")
    assert (refused.code, "front-01: " in refused.err) == (6, True)


def kept_keys(fleet: ScriptedFleet, host: str) -> Path:
    (found,) = fleet[host].folder.rglob("api_keys")
    return found


def test_a_key_is_added_and_revoked_on_the_head_and_beside_every_gateway(
    fleet: ScriptedFleet, served: Said, run: Run
) -> None:
    added = run("keys", "add", "alice", "--per-minute", "60")
    assert added.code == 0, added.err
    assert "stored as a hash on gpu-01, front-01" in added.err
    digest = hashlib.sha256(added.out.strip().encode()).hexdigest()
    for host in ("gpu-01", "front-01"):
        file = kept_keys(fleet, host)
        assert file.read_text().splitlines()[1] == f"alice:sha256:{digest} per_minute=60"
        assert file.stat().st_mode & 0o777 == 0o600
        assert [path.name for path in file.parent.glob("*.new")] == []
    assert run("keys", "list").out.split() == [
        *("NAME", "LIMITS", "default", "alice", "per_minute=60")
    ]
    assert "nothing to do" in run("up", "--yes").err
    assert run("keys", "revoke", "alice").code == 0
    assert "alice" not in kept_keys(fleet, "front-01").read_text()
    refused = run("keys", "revoke", "alice")
    assert (refused.code, "gpu-01: there is no key named alice" in refused.err) == (2, True)
    audit = next(fleet["gpu-01"].folder.rglob("audit.log")).read_text()
    assert [json.loads(line)["what"] for line in audit.splitlines()][-2:] == [
        *("keys add alice", "keys revoke alice")
    ]
    assert added.out.strip() not in audit


def test_a_gateway_that_is_away_keeps_old_keys_and_it_is_said(
    fleet: ScriptedFleet, served: Said, run: Run
) -> None:
    fleet.failures["front-01"] = HostUnreachable("front-01", "no route to host")
    added = run("keys", "add", "bob")
    assert added.code == HostUnreachable.exit_code
    assert "front-01 has the old keys until `vllmdeploy up` reaches it" in added.err
    assert "bob" in kept_keys(fleet, "gpu-01").read_text()
    assert added.out.startswith("sk-")


def test_before_the_first_service_there_are_no_keys_to_change(run: Run) -> None:
    said = run("keys", "list")
    assert said.code == 2
    assert "there are no API keys on gpu-01 yet" in said.err
    assert "the first start of a service makes one" in said.err

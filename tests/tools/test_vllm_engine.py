from __future__ import annotations

import json
import shlex
from dataclasses import replace

import pytest

from vllmdeploy.core.command import Result
from vllmdeploy.node.spec import HttpProbe, parse_engine
from vllmdeploy.tools.vllm import Vllm
from vllmdeploy.tools.vllm_engine import (
    EngineFile,
    EngineSpec,
    EngineState,
    Rank,
    argv,
    canary,
    parse_engines,
    taken_flags,
)
from vllmdeploy.tools.vllm_engine import parse_engine as state_of

NEW = Vllm(version="0.32.0", serve=True, flags=frozenset({"--runner", "--shutdown-timeout"}))
OLD = Vllm(version="0.8.5", serve=True)
ENGINE = EngineSpec(model="/models/m", names=("m", "org/m"), port=8100, tensor_parallel=8)


def line(engine: EngineSpec, vllm: Vllm) -> str:
    return shlex.join(argv(engine, vllm))


def test_the_executor_is_always_named() -> None:
    assert line(ENGINE, OLD) == (
        "python3 -m vllm.entrypoints.cli.main serve /models/m --served-model-name m org/m"
        " --host 127.0.0.1 --port 8100 --tensor-parallel-size 8"
        " --distributed-executor-backend ray"
    )


def test_without_a_working_command_line_the_server_module_is_called() -> None:
    assert line(ENGINE, replace(OLD, serve=False)).startswith(
        "python3 -m vllm.entrypoints.openai.api_server --model /models/m --served-model-name"
    )


def test_everything_that_is_asked_for_is_said_and_the_users_flags_come_last() -> None:
    engine = replace(
        ENGINE,
        pipeline_parallel=2,
        max_model_len=8192,
        max_num_seqs=64,
        max_num_batched_tokens=4096,
        gpu_memory_utilization=0.9,
        quantization="fp8",
        arguments=("--enforce-eager", "--rope-scaling", '{"a": 1}'),
    )
    assert line(engine, NEW).partition("--tensor-parallel-size ")[2] == (
        "8 --pipeline-parallel-size 2 --distributed-executor-backend ray --max-model-len 8192"
        " --max-num-seqs 64 --max-num-batched-tokens 4096 --gpu-memory-utilization 0.9"
        " --quantization fp8 --shutdown-timeout 30 --enforce-eager --rope-scaling '{\"a\": 1}'"
    )


def test_an_engine_that_can_be_told_does_not_log_what_we_ask_it_all_the_time() -> None:
    flag = "--disable-access-log-for-endpoints"
    mine = replace(ENGINE, arguments=(flag, "/none"))
    can = replace(NEW, flags=NEW.flags | {flag})
    assert line(mine, can).endswith(f" {flag} /health,/metrics {flag} /none")
    assert flag not in line(ENGINE, NEW)


def test_ranks_on_several_hosts_without_ray_know_their_place() -> None:
    rank = Rank(index=1, count=3, master="10.0.0.1", port=29501)
    follower = replace(ENGINE, executor="mp", rank=rank)
    assert (
        "--distributed-executor-backend mp --nnodes 3 --node-rank 1 --master-addr 10.0.0.1"
        " --master-port 29501 --headless"
    ) in line(follower, NEW)
    leader = replace(ENGINE, executor="mp", rank=replace(rank, index=0))
    assert "--headless" not in line(leader, NEW)


def test_pooling_models_are_told_so_in_the_words_of_their_vllm() -> None:
    assert " --runner pooling" in line(replace(ENGINE, task="rerank"), NEW)
    assert " --task score" in line(replace(ENGINE, task="rerank"), OLD)
    assert " --task embed" in line(replace(ENGINE, task="embed"), OLD)


def test_flags_that_the_plan_decides_are_refused_with_what_to_say_instead() -> None:
    flags = ("--port=1", "--tensor_parallel_size", "2", "--enforce-eager", "--api-key", "x")
    assert taken_flags(flags) == (
        "--port is not given here: use ENGINE_PORTS, or API_PORT for the gateway",
        "--tensor_parallel_size is not given here: use the TP argument",
        "--api-key is not given here: use API_KEYS_FILE: the gateway asks for keys",
    )


@pytest.mark.parametrize("task", ["generate", "embed", "rerank"])
def test_the_warden_runs_the_file_as_it_was_meant(task: str) -> None:
    file = EngineFile(
        name="m",
        argv=("python3", "-m", "x"),
        environment={"RAY_ADDRESS": "10.0.0.1:6379"},
        url="http://127.0.0.1:8100",
        canary=canary(task, "m"),  # type: ignore[arg-type]  # parametrized by plain text
        nodes=("gpu-01",),
        service={"name": "m"},
    )
    spec = parse_engine(file.content().decode())
    assert (spec.name, spec.argv, spec.needs_ray) == ("m", ("python3", "-m", "x"), True)
    assert (spec.needs_nodes, spec.env) == (("gpu-01",), {"RAY_ADDRESS": "10.0.0.1:6379"})
    assert isinstance(spec.ready, HttpProbe)
    assert spec.ready.health_url == "http://127.0.0.1:8100/health"
    assert spec.ready.canary_url.startswith("http://127.0.0.1:8100/")
    assert json.loads(spec.ready.canary_body)["model"] == "m"


def test_a_rank_without_an_address_is_not_probed() -> None:
    file = EngineFile(name="m-1", argv=("x",), needs_ray=False)
    spec = parse_engine(file.content().decode())
    assert (spec.ready, spec.needs_ray) == (None, False)


STATUS = {
    "engines": {
        "m": {
            "state": "backing-off",
            "reason": "exit 1",
            "failures": 2,
            "restarts": 3,
            "since": 12.5,
            "last_exit": {"code": 1},
            "last_failure": {"reason": "exit 1 at once", "last_lines": ["a", "b"]},
        },
        "ok": {"state": "running", "reason": "", "last_lines": ["x"]},
    },
    "bad_specs": {"typo.json": "unknown keys: x"},
}


def test_the_wardens_word_on_each_engine_is_read() -> None:
    assert parse_engines(Result(0, json.dumps(STATUS))) == {
        "m": EngineState(
            state="backing-off",
            reason="exit 1",
            failures=2,
            exit_code=1,
            since=12.5,
            restarts=3,
            last_lines=("a", "b"),
            failure="exit 1 at once",
        ),
        "ok": EngineState(state="running", last_lines=("x",)),
        "typo": EngineState(problem="the warden refuses typo.json: unknown keys: x"),
    }


def test_words_say_what_is_known() -> None:
    said = Result(0, json.dumps(STATUS))
    assert state_of(said, "m").words == "backing-off: exit 1"
    assert state_of(said, "ok").words == "running"
    assert state_of(said, "typo").words == "the warden refuses typo.json: unknown keys: x"
    assert state_of(said, "other").words == "not seen yet"
    assert state_of(Result(1, "", "no such container"), "m").words == "no such container"

"""Services from the command line, on hosts that pretend: steps, files, keys, words, exit codes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.plan.service_builders import CONFIG
from tests.support.scripted_hosts import ScriptedFleet, ScriptedHost
from vllmdeploy.cli.app import main
from vllmdeploy.cli.context import World

NODES = "gpu-01 head=yes ray_gpus=1\ngpu-02 ray_gpus=1\n"
# What runs inside the head's containers: engines are as `engine` says, for every spec file.
INSIDE = r"""    case $last in
      status)
        printf '{"ray":{"state":"running"},"engines":{'
        before=''
        for file in "$home"/home/.local/state/vllmdeploy/vllm/services/*.json; do
          [ -f "$file" ] || continue
          name=${file##*/}
          printf '%s"%s":' "$before" "${name%.json}"; cat "$home/engine"
          before=,
        done
        echo '}}' ;;
      *"find_spec('vllm')"*) cat "$home/vllm" ;;
"""
ASKED = r"""    for last do :; done
    case $last in '{"stream"'*) cat "$home/stream"; exit "$(cat "$home/stream-status")" ;; esac
    case $* in
      *' /health '*) cat "$home/health"; exit ;;
      *' 8000 /metrics')
        if mkdir "$home/taken" 2>/dev/null
        then echo 'vllmdeploy_gateway_instance_state{instance="m",state="draining"} 1'
        else rmdir "$home/taken"; echo 'vllmdeploy_gateway_instance_ready{instance="m"} 1'
        fi; exit ;;
      *' /metrics') echo 'vllm:num_requests_running{} 0.0'; exit ;;
    esac
"""


RAY_GONE = r"""
    case $last in *ray*) rm -f "$home/../nodes/${home##*/}" ;; esac ;;
  exec"""


@dataclass
class Said:
    code: int
    out: str
    err: str


Run = Callable[..., Said]


def pretends(host: ScriptedHost) -> None:
    program = (host.folder / "bin/docker").read_text("utf-8")
    for old, new in (
        ("    for last do :; done\n    case $last in\n", ASKED + INSIDE),
        # Programs in a container have names of their own; the gateway's is no node of Ray.
        ("--name) name=$word ;;", "--name) name=${name:-$word} ;;"),
        ('    printf \'{"name":', '    [ -z "$node" ] || printf \'{"name":'),
        (' "$home/../nodes/${home##*/}" ;;\n  exec', RAY_GONE),
    ):
        assert old in program
        program = program.replace(old, new, 1)
    host.program("docker", program)
    vllm = {"version": "0.17.0", "serve": True, "flags": ["--max-model-len"], "methods": ["fp8"]}
    for name, text in {
        "vllm": json.dumps(vllm),
        "engine": '{"state":"running","since":1}',
        "health": '{"models":{"m":{"instances":{"ready":1}},"n":{"instances":{"ready":1}}}}',
        "stream": 'data: {"text": " Paris"}\ndata: {"text": "."}\ndata: [DONE]\n',
        "stream-status": "0",
    }.items():
        (host.folder / name).write_text(text, "utf-8")


@pytest.fixture
def fleet(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> ScriptedFleet:
    monkeypatch.chdir(open_folder)
    model = open_folder / "models/m"
    model.mkdir(parents=True)
    (model / "config.json").write_text(CONFIG, "utf-8")
    Path("config.env").write_text(
        f"HEAD_HOST=gpu-01\nIMAGE=vllm:1\nACCELERATOR=cpu\nMODEL_PATH={open_folder}/models\n",
        "utf-8",
    )
    Path("worker_nodes.txt").write_text(NODES, "utf-8")
    made = ScriptedFleet(open_folder, "gpu-01", "gpu-02")
    pretends(made["gpu-01"])
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
def up(fleet: ScriptedFleet, run: Run) -> ScriptedHost:
    """The head of a fleet that is up."""
    done = run("up", "--yes")
    assert done.code == 0, done.err
    return fleet["gpu-01"]


def spec(head: ScriptedHost, name: str = "m") -> dict[str, object]:
    document: dict[str, object] = json.loads((head.state / f"services/{name}.json").read_text())
    return document


def steps(said: Said) -> list[str]:
    return [line.removeprefix("# ") for line in said.err.splitlines() if line.startswith("# ")]


def test_a_service_starts_with_its_gateway_and_new_keys_are_shown_once(
    up: ScriptedHost, run: Run
) -> None:
    started = run("start-service", "org/m", "--alias", "chat", "--yes", "--", "--max-model-len=9")
    assert started.code == 0, started.err
    assert steps(started) == [
        "gpu-01: write service m (not there)",
        "gpu-01: await service m (its engine loads and answers a canary)",
        "gpu-01: write vllm-gateway's instances (a new service)",
        "gpu-01: create keys folder (not all keys are there)",
        "gpu-01: write API keys (not found)",
        "gpu-01: write admin key (not found)",
        "gpu-01: create vllm-gateway's folders (a new service)".replace(
            "a new service", "not found"
        ),
        "gpu-01: create vllm-gateway (not found)",
        "gpu-01: await vllm-gateway (every service can be used through it)",
    ]
    folder = str(up.folder.parent / "models/m")
    assert spec(up)["service"]["names"] == ["m", "org/m", folder, "chat"]  # type: ignore[index]  # JSON
    assert "--max-model-len=9" in spec(up)["argv"]  # type: ignore[operator]  # JSON
    key = next(line for line in started.out.splitlines() if line.startswith("API key")).split()[-1]
    kept = up.state / "secrets/gateway/api_keys"
    assert kept.read_text() == f"default:{key}\n"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert f"curl http://10.7.0.1:8000/generate -H 'Authorization: Bearer {key}'" in started.out
    assert key not in " ".join(up.commands)
    again = run("start-service", "m", "1", "--name", "n", "--yes")
    assert (again.code, "API key" in again.out) == (6, False)


def test_the_same_wish_again_does_what_is_left_of_it(up: ScriptedHost, run: Run) -> None:
    assert run("start-service", "m", "--yes").code == 0
    again = run("start-service", "m", "--yes")
    assert (again.code, again.err) == (0, "nothing to do: it is as wanted\n")
    (up.folder / "containers/vllm-gateway").unlink()
    assert [one for one in steps(run("start-service", "m", "--yes")) if "folders" not in one] == [
        "gpu-01: create vllm-gateway (not found)",
        "gpu-01: await vllm-gateway (every service can be used through it)",
    ]
    other = run("start-service", "m", "--alias", "chat", "--yes")
    assert (other.code, "a service m is there already" in other.err) == (6, True)


def test_a_wish_that_was_interrupted_is_carried_on(up: ScriptedHost, run: Run) -> None:
    assert run("start-service", "m", "--yes").code == 0
    # Starting when it is looked at, running when it is waited for.
    counted = (
        'if mkdir "$home/asked" 2>/dev/null; then cat "$home/slow"; else cat "$home/engine"; fi'
    )
    program = (up.folder / "bin/docker").read_text()
    (up.folder / "slow").write_text('{"state":"starting"}')
    up.program("docker", program.replace('cat "$home/engine"', counted))
    carried = run("start-service", "m", "--yes")
    assert carried.code == 0, carried.err
    assert steps(carried) == [
        "gpu-01: await service m (starting)",
        "gpu-01: await vllm-gateway (every service can be used through it)",
    ]


def test_a_port_that_somebody_has_is_said_before_anything_is_done(
    up: ScriptedHost, run: Run
) -> None:
    up.program("ss", "#!/bin/sh\necho 'LISTEN 0 9 0.0.0.0:8000 0.0.0.0:*'\n")
    refused = run("start-service", "m", "--yes")
    assert (refused.code, "(choose another API_PORT)" in refused.err) == (6, True)
    assert list((up.state / "services").iterdir()) == []


def test_a_dry_run_says_it_all_and_does_nothing(up: ScriptedHost, run: Run) -> None:
    before = up.changes
    shown = run("start-service", "m", "--dry-run", "--json")
    verbs = [(step["verb"], step["subject"]) for step in json.loads(shown.out)["steps"]]
    assert ("write", "service m") in verbs
    assert (up.changes, list((up.state / "services").iterdir())) == (before, [])


def test_an_engine_that_does_not_come_up_leaves_nothing_behind(up: ScriptedHost, run: Run) -> None:
    ended = {
        "state": "backing-off",
        "failures": 1,
        "last_exit": {"code": 2},
        "last_failure": {"reason": "exit 2", "last_lines": ["serve: error: bad value"]},
    }
    (up.folder / "engine").write_text(json.dumps(ended))
    failed = run("start-service", "m", "--yes")
    assert failed.code == 5
    assert "undone: as before" in failed.err
    assert failed.err.count("serve: error: bad value") == 1
    assert list((up.state / "services").iterdir()) == []
    assert not any("vllm-gateway" in line for line in up.changes)
    assert "API key" not in failed.out
    assert not (up.state / "secrets/gateway/api_keys").exists()


def test_a_gateway_that_runs_is_told_at_once_and_told_back_where_nothing_came(
    fleet: ScriptedFleet, run: Run
) -> None:
    Path("worker_nodes.txt").write_text(NODES.replace("=1", "=2"), "utf-8")
    head = fleet["gpu-01"]

    def routed() -> list[str]:
        (file,) = head.state.rglob("fleet.json")
        return [one["id"] for one in json.loads(file.read_text())["upstreams"]]

    assert run("up", "--yes").code == 0
    assert run("start-service", "m", "1", "--yes").code == 0
    ended = {"state": "crash-loop", "failures": 5}
    (head.folder / "engine").write_text(json.dumps(ended))
    failed = run("start-service", "m", "1", "--name", "n", "--yes")
    assert (failed.code, "undone: as before" in failed.err) == (5, True)
    assert "gpu-01: write vllm-gateway's instances: done" in failed.err
    assert "gpu-01: withdraw n from vllm-gateway: done" in failed.err
    assert routed() == ["m"]
    assert [file.name for file in (head.state / "services").iterdir()] == ["m.json"]


@pytest.mark.parametrize("how", ["text", "json"])
def test_keys_that_were_made_are_shown_although_the_gateway_does_not_come(
    up: ScriptedHost, run: Run, how: str
) -> None:
    shebang, program = (up.folder / "bin/docker").read_text().split("\n", 1)
    fails = "case \"$1 $*\" in 'run '*vllm-gateway*) echo 'no room' >&2; exit 1;; esac"
    up.program("docker", f"{shebang}\n{fails}\n{program}")
    more = ("--json",) if how == "json" else ()
    failed = run("start-service", "m", "--yes", *more)
    assert failed.code == 4, failed.err
    kept = (up.state / "secrets/gateway/api_keys").read_text().strip().removeprefix("default:")
    if how == "json":
        assert json.loads(failed.out)["new_keys"]["API key"] == kept
    else:
        assert f"API key (shown once, kept on the head): {kept}" in failed.out
        assert "admin key (shown once" in failed.out


def test_json_is_one_document_with_the_new_keys(up: ScriptedHost, run: Run) -> None:
    started = run("start-service", "m", "--yes", "--json")
    document = json.loads(started.out)
    assert {step["outcome"] for step in document["steps"]} == {"done"}
    assert sorted(document["new_keys"]) == ["API key", "admin key"]


def test_every_reason_is_told_at_once_and_nothing_is_touched(up: ScriptedHost, run: Run) -> None:
    before = up.changes
    refused = run("start-service", "x", "3", "--yes", "--", "--max-modle-len", "1", "--port=1")
    assert (refused.code, refused.out) == (6, "")
    for words in (
        "gpu-01: model",
        "vllmdeploy model download OWNER/x --sync",
        "3 cards are needed, 2 of 2 are free (gpu-01: 1, gpu-02: 1)",
        "vLLM 0.17.0 has no --max-modle-len; did you mean --max-model-len?",
        "--port is not given here",
    ):
        assert words in refused.err
    assert up.changes == before
    assert run("start-service", "m", "--task", "sing", "--yes").code == 2
    assert run("start-service", "m", "--group", "none", "--yes").code == 2


def test_a_service_ends_after_its_requests_and_its_file_is_gone(up: ScriptedHost, run: Run) -> None:
    assert run("start-service", "m", "--yes").code == 0
    (up.folder / "engine").write_text('{"state":"running","since":1,"placement":{"gpu-01":1}}')
    stopped = run("stop-service", "m", "--yes")
    assert stopped.code == 0, stopped.err
    assert steps(stopped) == [
        "gpu-01: drain m in vllm-gateway (it gets no new requests)",
        "gpu-01: await last answer of m (no request is cut off)",
        "gpu-01: remove service m (stop-service)",
        "gpu-01: await end of m (nothing of it runs then)",
        "gpu-01: write vllm-gateway's instances: end of m (stop-service)",
        "gpu-01: await cards of m (Ray hears that they are free)",
    ]
    assert list((up.state / "services").iterdir()) == []
    fleet_file = up.state / "run/vllm-gateway/fleet/fleet.json"
    assert json.loads(fleet_file.read_text())["upstreams"] == []
    unknown = run("stop-service", "m", "--yes")
    assert (unknown.code, unknown.err) == (
        2,
        "error: there is no service m\n  -> there are: none\n",
    )


def test_a_restart_takes_new_settings_and_keeps_the_rest(up: ScriptedHost, run: Run) -> None:
    assert run("start-service", "m", "--alias", "chat", "--yes").code == 0
    again = run("restart-service", "m", "--max-model-len", "64", "--yes")
    assert again.code == 0, again.err
    assert "m answers nothing from its end until its new engine has loaded" in again.err
    assert '"model": "m", "prompt"' in again.out
    argv = spec(up)["argv"]
    assert isinstance(argv, list)
    assert argv[argv.index("--max-model-len") + 1] == "64"
    assert "chat" in argv
    assert spec(up)["service"]["generation"] == 2  # type: ignore[index]  # JSON


def test_a_restart_that_fails_brings_the_old_one_back(up: ScriptedHost, run: Run) -> None:
    assert run("start-service", "m", "--yes").code == 0
    before = spec(up)
    bad = '{"state":"crash-loop","failures":5}'
    # The engine is well again as soon as the old generation is back.
    (up.folder / "engine").write_text(bad)
    program = (up.folder / "bin/docker").read_text()
    up.program(
        "docker",
        program.replace(
            'cat "$home/engine"',
            'if grep -q \'"generation": 1\' "$file"; then echo \'{"state":"running"}\';'
            ' else cat "$home/engine"; fi',
        ),
    )
    failed = run("restart-service", "m", "--max-model-len", "64", "--yes")
    assert failed.code == 5
    assert "undone: as before" in failed.err
    assert spec(up) == before


def test_a_file_that_is_no_service_of_ours_can_only_be_removed(up: ScriptedHost, run: Run) -> None:
    (up.state / "services/hand.json").write_text('{"name": "hand", "argv": ["x"]}')
    refused = run("restart-service", "hand", "--yes")
    assert (refused.code, "not a service of ours" in refused.err) == (2, True)
    assert run("stop-service", "hand", "--yes").code == 0
    assert not (up.state / "services/hand.json").exists()


def test_status_shows_services_and_up_restores_them(
    fleet: ScriptedFleet, up: ScriptedHost, run: Run
) -> None:
    assert run("start-service", "m", "--yes").code == 0
    seen = json.loads(run("status", "--json").out)
    (service,) = seen["services"]
    assert (service["service"], service["state"], seen["healthy"]) == ("m", "ready", True)
    assert "m        default  2x1    ready" in run("status").out
    settled = run("up", "--yes").err
    assert settled.splitlines()[-1] == "nothing to do", settled
    (up.folder / "containers/vllm-gateway").unlink()
    assert json.loads(run("status", "--json").out)["services"][0]["state"] == "no gateway"
    restored = run("up", "--yes")
    assert [line for line in steps(restored) if "create" in line] == [
        "gpu-01: create vllm-gateway's folders (not found)",
        "gpu-01: create vllm-gateway (not found)",
    ]
    assert run("down", "--yes").code == 0
    assert [*fleet["gpu-01"].folder.joinpath("containers").iterdir()] == []
    down = json.loads(run("status", "--json").out)["services"][0]
    assert down["why"] == "its Ray head does not run; `vllmdeploy up` starts it"
    back = run("up", "--yes")
    assert back.code == 0, back.err
    assert "gpu-01: await service m (its spec is stored here)" in steps(back)


def test_keys_of_the_user_are_copied_and_networks_do_without(
    up: ScriptedHost, run: Run, open_folder: Path
) -> None:
    (open_folder / "keys").write_text("me:sk-of-mine\n")
    with (open_folder / "config.env").open("a") as file:
        file.write("API_KEYS_FILE=keys\n")
    started = run("start-service", "m", "--yes")
    assert (started.code, "API key" in started.out) == (0, False)
    assert (up.state / "secrets/gateway/api_keys").read_text() == "me:sk-of-mine\n"
    assert 'Bearer $KEY"' in started.out
    assert re.search(r"^KEY: one of \S*keys$", started.out, re.MULTILINE)
    (open_folder / "keys").unlink()
    missing = run("start-service", "m", "--name", "n", "--yes")
    assert (missing.code, "keys: cannot be read" in missing.err) == (2, True)


def test_a_key_that_was_shown_before_is_not_left_a_riddle(up: ScriptedHost, run: Run) -> None:
    assert "KEY: " not in run("start-service", "m", "--yes").out
    assert run("stop-service", "m", "--yes").code == 0
    again = run("start-service", "m", "--yes")
    assert "`vllmdeploy keys add NAME` makes another" in again.out.splitlines()[-1], again.err


def test_generate_shows_the_answer_as_it_comes(up: ScriptedHost, run: Run) -> None:
    assert run("start-service", "m", "--yes").code == 0
    assert run("generate", "The capital of France is").out == " Paris.\n"
    assert json.loads(run("generate", "x", "--json").out) == {"text": " Paris."}
    (up.folder / "stream").write_text('{"error": {"message": "the model is not served"}}')
    (up.folder / "stream-status").write_text("1")
    refused = run("generate", "x", "--model", "y")
    assert (refused.code, "  the model is not served\n" in refused.err) == (4, True)


def test_logs_of_a_service_come_from_every_engine_and_name_the_ranks_host(
    up: ScriptedHost, run: Run
) -> None:
    assert run("start-service", "m", "--yes").code == 0
    folder = up.state / "logs/vllm-ray-head"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "m.log").write_text("old\n(RayWorkerProc pid=1, ip=10.7.0.2) loads\n\x1b[1mready\n")
    assert run("logs", "m", "--tail", "2").out == (
        "gpu-02 | (RayWorkerProc pid=1, ip=10.7.0.2) loads\ngpu-01 | \\x1b[1mready\n"
    )
    unknown = run("logs", "x")
    assert (unknown.code, "services: m" in unknown.err) == (2, True)

"""`--engine ray` on real Ray: engines come, die and come again, and no row is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.batch.fake_engine import DIE
from vllmdeploy.batch.ray_engines import EngineSpec, RayEngines, vllm_argv
from vllmdeploy.batch.ray_worker import EngineWorker, last_words
from vllmdeploy.batch.run import run_batch
from vllmdeploy.batch.spec import BatchSpec, Effort
from vllmdeploy.errors import NotHealthy, UsageError

ROOT = Path(__file__).parents[2]
FAKE = (str(Path(__file__).with_name("fake_engine.py")), "{ip}", "{port}")
PATIENCE_S = 60.0


def test_the_engines_command_line_keeps_braces_of_ones_own() -> None:
    argv = vllm_argv("/m/Qwen3", "Qwen3", cards=2, more=("--hf-overrides", '{"a": 1}'))
    assert " ".join(word.format(ip="10.0.0.1", port=7) for word in argv) == (
        "-m vllm.entrypoints.openai.api_server --host 10.0.0.1 --port 7 --model /m/Qwen3 "
        '--served-model-name Qwen3 --tensor-parallel-size 2 --hf-overrides {"a": 1}'
    )


@pytest.mark.parametrize("and_its_children", [False, True])
def test_an_engine_ends_with_whoever_holds_it(tmp_path: Path, and_its_children: bool) -> None:
    """It is killed alone, or as Ray ends its actors; the engine's session is gone with it."""
    holder = subprocess.Popen(
        (
            sys.executable,
            "-c",
            "import sys\n"
            "from vllmdeploy.batch.ray_worker import EngineWorker\n"
            "worker = EngineWorker()\n"
            "ip, port = worker.start(sys.argv[1:], {'VLLM_API_KEY': 'k'}, '127.0.0.1', 30)\n"
            "print(port, flush=True)\n"
            "worker.ended()\n",
            *FAKE,
        ),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert holder.stdout is not None
    port = int(holder.stdout.readline())
    assert listens(port)
    children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()
    assert len(children) == 1
    if and_its_children:
        os.kill(int(children[0]), signal.SIGKILL)
    holder.kill()
    holder.wait()
    holder.stdout.close()
    until = time.monotonic() + PATIENCE_S
    while listens(port) or list(tmp_path.iterdir()):
        assert time.monotonic() < until


def listens(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_an_engine_that_cannot_start_says_its_own_last_words(tmp_path: Path) -> None:
    worker = EngineWorker()
    with pytest.raises(RuntimeError, match=r"before it was well: no such model$"):
        worker.start(("-c", "raise SystemExit('no such model')"), {}, "127.0.0.1", PATIENCE_S)
    worker.stop()
    slow = EngineWorker()
    with pytest.raises(RuntimeError, match=r"was not well in 1 s: still loading$"):
        slow.start(
            ("-c", "import time; print('still loading', flush=True); time.sleep(60)"),
            *({}, "127.0.0.1", 1.0),
        )
    worker.stop()


def test_last_words_begin_with_the_cause_where_the_log_names_one() -> None:
    log = (
        "INFO loading\n"
        "(EngineCore pid=7) ERROR 11-21 12:00:00 [core.py:9]     raise ValueError(\n"
        "(EngineCore pid=7) ERROR 11-21 12:00:00 [core.py:9] ValueError: too little memory\n"
        + "  File utils.py, line 1\n" * 20
        + "RuntimeError: Engine core initialization failed. See root cause above.\n"
    )
    said = last_words(log).splitlines()
    assert said[0] == "ValueError: too little memory"
    assert said[-1] == "  RuntimeError: Engine core initialization failed. See root cause above."
    assert len(said) == 16
    assert last_words("one\n\ntwo\n") == "two\n  one"
    assert last_words("\n") == "(no output)"


def spec(folder: Path, engines: RayEngines) -> BatchSpec:
    return BatchSpec(
        folder / "in.jsonl", folder / "out", engines.upstreams, model="tiny",
        effort=Effort(retries=9),
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.long
def test_rows_run_through_engines_on_ray_and_one_of_them_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    prompts = [*(f"p{number}" for number in range(300)), DIE]
    rows = ({"messages": [{"role": "user", "content": prompt}]} for prompt in prompts)
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said: list[str] = []
    wanted = EngineSpec(FAKE, {"DIED": str(tmp_path / "died")}, count=2, cards=0, address="local")
    with RayEngines(wanted, say=said.append) as engines:
        finished = run_batch(
            spec(tmp_path, engines),
            listener=lambda _: None,
            say=said.append,
            connect=engines.connect,
        )
    assert (finished.summary["ok"], finished.failed) == (301, 0)
    answers = [json.loads(line) for line in finished.paths.results.read_bytes().splitlines()]
    texts = {one["response"]["body"]["choices"][0]["message"]["content"] for one in answers}
    assert texts == {f"tiny: {prompt}" for prompt in prompts}
    assert (tmp_path / "died").exists(), "one engine died on the way"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.long
def test_engines_that_never_come_up_end_the_run_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    (tmp_path / "in.jsonl").write_text('{"prompt": "x"}\n')
    wanted = EngineSpec(
        ("-c", "raise SystemExit('no such model')"), count=1, cards=0, address="local"
    )
    with (
        RayEngines(wanted, say=lambda _: None) as engines,
        pytest.raises(NotHealthy, match=r"no engine stays up: .*no such model"),
    ):
        run_batch(
            spec(tmp_path, engines),
            listener=lambda _: None,
            say=lambda _: None,
            connect=engines.connect,
        )


@pytest.mark.filterwarnings("ignore")
def test_a_cluster_that_is_not_there_is_refused_with_what_to_do() -> None:
    pytest.importorskip("ray")
    wanted = EngineSpec(FAKE, address="127.0.0.1:1")
    with pytest.raises(UsageError, match=r"Ray at 127\.0\.0\.1:1 cannot be joined"):
        RayEngines(wanted, say=lambda _: None).__enter__()

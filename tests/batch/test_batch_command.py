"""`batch run` and `batch status`: options, words, exit codes."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tests.batch.upstream import Asked, Say, Upstream, completion, echo, serving
from vllmdeploy.batch.lock import hold
from vllmdeploy.batch.progress import InstanceProgress, Progress, duration, save, words
from vllmdeploy.cli.batch import app
from vllmdeploy.cli.batch_progress import PlainLines, bar
from vllmdeploy.cli.context import World
from vllmdeploy.errors import EXIT_BATCH_ERRORS, Locked, NotHealthy, UsageError


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text('{"prompt":"a"}\n{"prompt":"b"}\n')


def call(
    *flags: str, environ: dict[str, str] | None = None, as_json: bool = False
) -> tuple[int, str, str]:
    world = World(environ=environ or {}, json=as_json)
    result = CliRunner().invoke(app, flags, obj=world, catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr


def run(upstream: Upstream, *flags: str) -> tuple[int, str, str]:
    return call("run", "in.jsonl", "-o", "out", "--upstream", upstream.url, *flags)


def test_a_batch_without_errors_exits_0_and_says_where_things_are() -> None:
    with serving() as upstream:
        code, said, words = run(upstream)
    assert "note:" not in words
    assert (code, said) == (
        0,
        "2 rows: ok 2, failed 0\n"
        "  out/results.jsonl\n  out/errors.jsonl\n  out/summary.json\n  out/report.html\n",
    )


def test_a_batch_with_error_rows_exits_8() -> None:
    with serving(
        lambda asked: Say(b"no", status=400) if asked.prompt == "b" else echo(asked)
    ) as up:
        code, said, words = run(up)
    assert code == EXIT_BATCH_ERRORS == 8
    assert said.startswith("2 rows: ok 1, failed 1\n")
    assert words.endswith("error rows are in out/errors.jsonl; --retry-errors does them again\n")


def test_json_is_one_document() -> None:
    with serving() as upstream:
        code, said, _ = call(
            "run", "in.jsonl", "-o", "out", "--upstream", upstream.url, as_json=True
        )
    found = json.loads(said)
    assert (code, found["ok"], found["paths"]["report"]) == (0, 2, "out/report.html")


def test_settings_name_input_output_and_instances() -> None:
    with serving() as one, serving() as two:
        environ = {
            "INPUT_JSONL": "in.jsonl",
            "VLLMDEPLOY_OUTPUT_DIR": "from-settings",
            "VLLM_PORTS": f"{one.port},{two.port}",
            "VLLM_HOST": "127.0.0.1",
        }
        code, said, _ = call("run", environ=environ)
        assert len(one.asked) + len(two.asked) == 2
    assert code == 0
    assert "from-settings/results.jsonl" in said


def test_use_multi_vllm_off_asks_the_first_instance_only() -> None:
    with serving() as one, serving() as two:
        ports = f"{one.port},{two.port}"
        environ = {"VLLM_PORTS": ports, "VLLM_HOST": "127.0.0.1", "USE_MULTI_VLLM": "false"}
        call("run", "in.jsonl", "-o", "out", environ=environ)
        assert (len(one.asked), len(two.asked)) == (2, 0)


def test_without_instances_the_gateway_is_asked() -> None:
    with serving() as upstream:
        code, _, _ = call(
            "run", "in.jsonl", "-o", "out", environ={"VLLMDEPLOY_API_PORT": str(upstream.port)}
        )
    assert code == 0
    assert len(upstream.asked) == 2


def test_a_template_makes_prompts_and_another_text_is_another_batch() -> None:
    Path("in.jsonl").write_text('{"q":"why","n":1}\n{"other":1}\n')
    Path("p.j2").write_text("Answer: {{ q }}?{{ n }}\n")
    with serving() as upstream:
        code, _, _ = run(upstream, "--template", "p.j2")
        assert code == 8
        assert [a.body["messages"] for a in upstream.asked] == [
            [{"role": "user", "content": "Answer: why?1"}]
        ]
        error = json.loads(Path("out/errors.jsonl").read_text())["error"]["message"]
        assert error == "line 2: UndefinedError: 'q' is undefined"
        Path("p.j2").write_text("Tell: {{ q }}")
        with pytest.raises(UsageError, match="begun with other settings: template was sha256:"):
            run(upstream, "--template", "p.j2")


def test_parse_and_schema() -> None:
    Path("s.json").write_text('{"type":"object","required":["score"]}')
    with serving(lambda _: completion('{"score":1}')) as upstream:
        assert run(upstream, "--schema", "s.json", "--order", "input")[0] == 0
    rows = [json.loads(line) for line in Path("out/results.jsonl").read_bytes().splitlines()]
    assert [row["parsed"] for row in rows] == [{"score": 1}] * 2


def test_the_head_of_the_list_is_asked_where_nobody_is_named() -> None:
    Path("config.env").write_text("API_PORT=9\nAPI_AUTH=none\nAPI_ALLOW=10.0.0.0/8\n")
    Path("worker_nodes.txt").write_text("127.0.0.1\n127.0.0.2 head=yes\n")
    with pytest.raises(NotHealthy, match=r"http://127\.0\.0\.2:9: connection refused"):
        call("run", "in.jsonl", "-o", "out", "--give-up-after", "0.1")


def test_the_key_comes_from_a_file() -> None:
    Path("key").write_text("sk-secret\n")
    with serving() as upstream:
        run(upstream, "--api-key-file", "key")
        assert {a.headers["authorization"] for a in upstream.asked} == {"Bearer sk-secret"}
    assert "sk-secret" not in "".join(p.read_text() for p in Path("out").iterdir())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--api-key-file", "none"), "--api-key-file none: cannot be read"),
        (("--api-key-file", "empty"), "must hold one key"),
        (("--api-key-file", "two"), "must hold one key"),
        (("--template", "none.j2"), "--template none.j2: cannot be read"),
        (("--template", "bad.j2"), r"--template bad\.j2:1: "),
        (("--schema", "empty"), "empty: Expecting value"),
        (("--price", "1"), "--price 1: must be two numbers"),
        (("--price", "nan,1"), "--price nan,1: must be two numbers"),
        (("--price", "1,-1"), "--price 1,-1: must be two numbers"),
        (("--max-cost", "5"), "--max-cost without a price"),
        (("--max-cost", "0", "--price", "1,1"), "--max-cost 0.0: must be above zero"),
        (("--policy", "least_inflght"), "did you mean least_inflight"),
        (("--upstream", "ftp://x"), "neither http nor https"),
        (("--parse", "xml"), "--parse xml: unknown"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_sent(
    flags: tuple[str, ...], said: str
) -> None:
    Path("empty").write_text("")
    Path("two").write_text("a b")
    Path("bad.j2").write_text("{{ oops")
    with serving() as upstream:
        with pytest.raises(UsageError, match=said):
            run(upstream, *flags)
        assert upstream.asked == []


def test_status_of_a_finished_a_stopped_and_a_running_batch() -> None:
    with pytest.raises(UsageError, match="no batch run has begun here"):
        call("status", "out")

    def script(asked: Asked) -> Say:
        return Say(b"", status=401) if asked.prompt == "b" else echo(asked)

    with serving(script) as upstream, pytest.raises(UsageError):
        run(upstream, "--concurrency", "1")
    assert call("status", "out")[1] == (
        "stopped: 1/2 rows, ok 1, failed 0\nthe same batch run command goes on from here\n"
    )
    with hold(Path("out")):
        save(Path("out"), progress(ok=1))
        said = call("status", "out")[1].splitlines()
    assert said[0] == "running: 1/2 rows, ok 1, failed 0"
    assert re.fullmatch(rf"run by pid {os.getpid()} on \S+ since \S+", said[1])
    assert said[2] == "3 in flight, 2.0 rows/s, 50 tokens/s, time left 0:00:00, waiting: b is down"
    with serving() as upstream:
        run(upstream)
    assert call("status", "out")[1] == "finished: 2/2 rows, ok 2, failed 0\n"
    assert json.loads(call("status", "out", as_json=True)[1])["state"] == "finished"


def test_a_second_runner_is_refused_with_the_first_ones_name() -> None:
    Path("out").mkdir()
    with serving() as upstream, hold(Path("out")):
        with pytest.raises(Locked, match=f"pid {os.getpid()}"):
            run(upstream)
        assert upstream.asked == []


def progress(*, ok: int, seconds: float = 1.0, total: int = 2) -> Progress:
    return Progress(
        total=total,
        ok=ok,
        failed=0,
        inflight=3,
        rows_per_s=2.0,
        tokens_per_s=50.0,
        seconds=seconds,
        waiting="b is down",
        instances=(
            InstanceProgress("http://a:1", 3, 16, 1, 0, ""),
            *(InstanceProgress(f"http://b:{n}", 0, 8, 0, 0, "refused") for n in range(20)),
        ),
    )


def test_a_plain_line_has_all_numbers() -> None:
    assert words(progress(ok=1)) == (
        "1/2 rows, ok 1, failed 0, in flight 3, 2.0 rows/s, 50 tokens/s, time left 0:00:00, "
        "waiting: b is down"
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (3725, "1:02:05"), (200_000, "2 d 7 h")]
)
def test_times_left(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_plain_lines_come_every_ten_seconds_and_at_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = PlainLines()
    for second in range(25):
        lines.report(progress(ok=second, seconds=float(second), total=100))
    lines.report(progress(ok=100, seconds=25.5, total=100))
    said = capsys.readouterr().err.splitlines()
    assert [line.split(" ")[0] for line in said] == ["0/100", "10/100", "20/100", "100/100"]


def test_the_bar_shows_numbers_instances_and_why_it_waits() -> None:
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    console.print(bar(progress(ok=1)))
    text = console.export_text().splitlines()
    console.file.close()
    assert "50.0%  1/2  0:00:01 gone  0:00:00 left" in text[0]
    assert text[1].rstrip() == "ok 1  failed 0  in flight 3  2.0 rows/s  50 tokens/s"
    assert text[2].rstrip() == "  http://a:1  3/16 in flight  ok 1  failed 0"
    assert text[3].rstrip() == "  http://b:0  0/8 in flight  ok 0  failed 0  refused"
    assert text[-2].strip() == "and 5 more"
    assert text[-1].strip() == "waiting: b is down"

"""Whole runs against upstreams on real sockets: what is sent, written and waited for."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.batch.upstream import Asked, Say, Upstream, completion, echo, serving
from vllmdeploy.batch.conclude import Finished
from vllmdeploy.batch.limits import Price
from vllmdeploy.batch.models import NoSingleModel
from vllmdeploy.batch.progress import Progress
from vllmdeploy.batch.run import run_batch
from vllmdeploy.batch.spec import BatchSpec, Effort, Hooks
from vllmdeploy.batch.urls import upstreams_of
from vllmdeploy.errors import EXIT_NOT_HEALTHY, NotHealthy, UsageError

QUICK = Effort(timeout_s=5, retries=2)


def write(path: Path, *rows: object) -> Path:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def prompts(path: Path, count: int) -> Path:
    return write(path, *({"custom_id": f"r{n}", "prompt": f"p{n}"} for n in range(1, count + 1)))


def spec_of(folder: Path, *upstreams: Upstream, **changes: Any) -> BatchSpec:
    given: dict[str, Any] = {
        "input": folder / "in.jsonl",
        "output": folder / "out",
        "upstreams": upstreams_of([upstream.url for upstream in upstreams]),
        "model": "tiny",
        "effort": QUICK,
        **changes,
    }
    return BatchSpec(**given)


def run(spec: BatchSpec, listener: Callable[[Progress], None] = lambda _: None) -> Finished:
    return run_batch(spec, listener=listener, say=lambda _: None)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def results(finished: Finished) -> dict[str, str]:
    return {
        row["custom_id"]: row["response"]["body"]["choices"][0]["text"]
        for row in lines_of(finished.paths.results)
    }


def errors(finished: Finished) -> dict[int, str]:
    return {
        row["line"]: f"{row['error']['code']}: {row['error']['message']}"
        for row in lines_of(finished.paths.errors)
    }


def test_every_row_is_asked_once_and_lands_in_one_file(tmp_path: Path) -> None:
    prompts(tmp_path / "in.jsonl", 500)
    with serving() as upstream:
        finished = run(spec_of(tmp_path, upstream))
    assert sorted(upstream.prompts) == sorted(f"p{n}" for n in range(1, 501))
    assert results(finished) == {f"r{n}": f"echo p{n}" for n in range(1, 501)}
    assert errors(finished) == {}
    assert {k: finished.summary[k] for k in ("rows", "ok", "failed", "completion_tokens")} == {
        "rows": 500, "ok": 500, "failed": 0, "completion_tokens": 1500,
    }  # fmt: skip
    assert {asked.path for asked in upstream.asked} == {"/v1/completions"}
    assert {asked.body["model"] for asked in upstream.asked} == {"tiny"}


def test_bad_lines_become_error_rows_with_their_numbers(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", {"prompt": "a"}, "{oops", "", {"prompt": "b"}, "[]")
    with serving() as upstream:
        finished = run(spec_of(tmp_path, upstream))
    assert errors(finished) == {
        2: "bad_json: line 2: Expecting property name enclosed in double quotes at character 2",
        3: "blank: line 3: the line is blank",
        5: "not_an_object: line 5: a list, not an object",
    }
    assert sorted(upstream.prompts) == ["a", "b"]


def test_strict_refuses_all_bad_lines_before_anything_is_sent(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", {"prompt": "a"}, "{oops", *["[]"] * 30)
    with serving() as upstream, pytest.raises(UsageError) as refused:
        run(spec_of(tmp_path, upstream, strict=True))
    assert upstream.asked == []
    said = str(refused.value).splitlines()
    assert said[0] == "31 lines cannot be used; nothing was sent:"
    assert said[2] == f"  {path}:3: a list, not an object"
    assert said[-2:] == [
        "  and 11 more",
        "  -> mend them, or leave out --strict: they become error rows",
    ]


def test_a_finished_batch_asks_nothing_more(tmp_path: Path) -> None:
    prompts(tmp_path / "in.jsonl", 5)
    with serving() as upstream:
        first = run(spec_of(tmp_path, upstream))
        before = first.paths.results.read_bytes()
        again = run(spec_of(tmp_path, upstream))
    assert len(upstream.asked) == 5
    assert again.summary == first.summary
    assert again.paths.results.read_bytes() == before


def test_an_empty_input_is_a_finished_batch(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl")
    with serving() as upstream:
        finished = run(spec_of(tmp_path, upstream, model=None))
    assert finished.summary["rows"] == 0
    assert all(path.exists() for path in finished.paths)


def test_400_is_an_error_row_that_is_not_tried_again(tmp_path: Path) -> None:
    prompts(tmp_path / "in.jsonl", 3)

    def script(asked: Asked) -> Say:
        if asked.prompt == "p2":
            return Say({"error": {"message": "maximum context length is 8192"}}, status=400)
        return echo(asked)

    with serving(script) as upstream:
        finished = run(spec_of(tmp_path, upstream))
    assert errors(finished) == {2: "http_400: HTTP 400: maximum context length is 8192"}
    (row,) = lines_of(finished.paths.errors)
    assert row["response"]["status_code"] == 400
    assert (row["run"]["attempts"], len(upstream.asked)) == (1, 3)


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (Say(b"<html>"), "nonsense"),
        (Say({"id": "x", "choices": []}), "nonsense"),
        (Say({"error": {"message": "engine"}}, status=500), "http_500"),
        (Say(cut=True), "cut_off"),
    ],
)
def test_a_row_that_fails_again_and_again_becomes_an_error_row(
    tmp_path: Path, bad: Say, kind: str
) -> None:
    prompts(tmp_path / "in.jsonl", 20)
    with serving(lambda asked: bad if asked.prompt == "p7" else echo(asked)) as upstream:
        finished = run(spec_of(tmp_path, upstream))
    assert list(errors(finished)) == [7]
    assert errors(finished)[7].startswith(f"{kind}: ")
    assert upstream.prompts.count("p7") >= 3
    assert len(results(finished)) == 19


@pytest.mark.parametrize(
    "bad", [Say(b"{"), Say(b"", status=500), Say(cut=True), Say(b"x", status=429)]
)
def test_a_row_that_fails_once_is_a_result(tmp_path: Path, bad: Say) -> None:
    prompts(tmp_path / "in.jsonl", 20)
    with serving(
        lambda asked: bad if asked.nth == 1 and asked.prompt == "p7" else echo(asked)
    ) as up:
        finished = run(spec_of(tmp_path, up))
    assert finished.failed == 0
    assert up.prompts.count("p7") >= 2


def test_an_answer_that_does_not_come_in_time_is_asked_for_again(tmp_path: Path) -> None:
    prompts(tmp_path / "in.jsonl", 2)

    def script(asked: Asked) -> Say:
        return Say(hang=True) if asked.prompt == "p1" else echo(asked)

    with serving(script) as upstream:
        finished = run(spec_of(tmp_path, upstream, effort=Effort(timeout_s=0.3, retries=1)))
    assert errors(finished) == {1: "timeout: no answer within 0.3 s"}
    assert upstream.prompts.count("p1") == 2


def test_an_answer_that_trickles_is_cut_when_its_time_is_over(tmp_path: Path) -> None:
    """Every byte comes in time, and the answer would never be whole."""
    prompts(tmp_path / "in.jsonl", 2)

    def script(asked: Asked) -> Say:
        return Say(trickle=True) if asked.prompt == "p1" else echo(asked)

    with serving(script) as upstream:
        finished = run(spec_of(tmp_path, upstream, effort=Effort(timeout_s=0.3, retries=0)))
    assert errors(finished) == {1: "timeout: no whole answer within 0.3 s"}


def test_an_outage_is_waited_for_and_costs_no_row(tmp_path: Path) -> None:
    """The upstream dies, stays away until the run has said why it waits, and comes back."""
    prompts(tmp_path / "in.jsonl", 60)
    died, reasons = threading.Event(), list[str]()

    def script(asked: Asked) -> Say:
        if asked.prompt == "p30" and not died.is_set():
            died.set()
            threading.Thread(target=upstream.stop).start()
            return Say(hang=True)
        return echo(asked)

    def listen(progress: Progress) -> None:
        if progress.waiting and not reasons:
            reasons.append(progress.waiting)
            upstream.listen_again()

    with serving(script) as upstream:
        effort = Effort(timeout_s=5, retries=1, concurrency=4)
        finished = run(spec_of(tmp_path, upstream, effort=effort), listen)
    assert finished.failed == 0
    assert len(results(finished)) == 60
    assert f"http://127.0.0.1:{upstream.port}: connection refused, next try in" in reasons[0]


def test_an_outage_that_lasts_too_long_ends_the_run_without_error_rows(tmp_path: Path) -> None:
    prompts(tmp_path / "in.jsonl", 3)
    with serving() as upstream:
        upstream.stop()
        effort = Effort(timeout_s=5, give_up_after_s=0.2)
        with pytest.raises(NotHealthy, match="connection refused") as ended:
            run(spec_of(tmp_path, upstream, effort=effort))
        assert ended.value.exit_code == EXIT_NOT_HEALTHY
        upstream.listen_again()
        assert run(spec_of(tmp_path, upstream)).summary["ok"] == 3


def test_refusals_wait_and_are_no_attempts(tmp_path: Path) -> None:
    prompts(tmp_path / "in.jsonl", 30)

    def script(asked: Asked) -> Say:
        busy = Say(b"full", status=503, headers={"retry-after": "0"})
        return busy if upstream.at_once > 2 else echo(asked)

    with serving(script) as upstream:
        finished = run(spec_of(tmp_path, upstream, effort=Effort(timeout_s=5, retries=0)))
    assert finished.failed == 0
    assert len(upstream.asked) > 30
    assert {row["run"]["attempts"] for row in lines_of(finished.paths.results)} == {1}


def test_a_wrong_key_ends_the_run_at_once_and_it_goes_on_with_the_right_one(
    tmp_path: Path,
) -> None:
    prompts(tmp_path / "in.jsonl", 20)

    def script(asked: Asked) -> Say:
        if asked.headers.get("authorization") != "Bearer right":
            return Say({"error": {"message": "who are you"}}, status=401)
        return echo(asked)

    with serving(script) as upstream:
        with pytest.raises(UsageError, match="HTTP 401: who are you"):
            run(spec_of(tmp_path, upstream, key="wrong"))
        assert run(spec_of(tmp_path, upstream, key="right")).summary["ok"] == 20


def test_rows_are_spread_over_instances_and_a_dead_one_is_left_out(tmp_path: Path) -> None:
    prompts(tmp_path / "in.jsonl", 200)
    with serving() as one, serving() as two, serving() as dead:
        dead.stop()
        effort = Effort(timeout_s=5, concurrency=8)
        finished = run(spec_of(tmp_path, one, two, dead, effort=effort))
    assert finished.summary["ok"] == 200
    assert len(one.asked) + len(two.asked) == 200
    assert min(len(one.asked), len(two.asked)) > 40


def test_limits_of_rate_let_all_rows_through(tmp_path: Path) -> None:
    prompts(tmp_path / "in.jsonl", 40)
    effort = Effort(timeout_s=5, rows_per_second=100, tokens_per_minute=6000)
    with serving() as upstream:
        assert run(spec_of(tmp_path, upstream, effort=effort)).summary["ok"] == 40


def test_concurrency_is_a_bound(tmp_path: Path) -> None:
    prompts(tmp_path / "in.jsonl", 100)
    with serving() as upstream:
        run(spec_of(tmp_path, upstream, effort=Effort(timeout_s=5, concurrency=3)))
    assert upstream.most_at_once <= 3


def test_results_come_in_the_order_of_the_input_where_it_is_wanted(tmp_path: Path) -> None:
    prompts(tmp_path / "in.jsonl", 100)

    def script(asked: Asked) -> Say:
        late = asked.prompt in ("p1", "p50") and asked.nth == 1
        return Say(b"", status=500) if late else echo(asked)

    with serving(script) as upstream:
        finished = run(spec_of(tmp_path, upstream, order="input"))
    assert [row["line"] for row in lines_of(finished.paths.results)] == list(range(1, 101))


def test_error_rows_are_done_again_where_it_is_wanted_and_only_those(tmp_path: Path) -> None:
    prompts(tmp_path / "in.jsonl", 10)
    broken = {"p3", "p8"}

    def script(asked: Asked) -> Say:
        return Say(b"no", status=422) if asked.prompt in broken else echo(asked)

    with serving(script) as upstream:
        assert set(errors(run(spec_of(tmp_path, upstream)))) == {3, 8}
        broken.clear()
        assert set(errors(run(spec_of(tmp_path, upstream)))) == {3, 8}
        finished = run(spec_of(tmp_path, upstream, retry_errors=True))
    assert finished.failed == 0
    assert len(results(finished)) == 10
    assert sorted(upstream.prompts[10:]) == ["p3", "p8"]


def test_another_input_or_other_settings_are_refused_until_restart(tmp_path: Path) -> None:
    path = prompts(tmp_path / "in.jsonl", 3)
    with serving() as upstream:
        run(spec_of(tmp_path, upstream))
        with pytest.raises(UsageError, match="max_tokens was None, is 9"):
            run(spec_of(tmp_path, upstream, max_tokens=9))
        prompts(path, 4)
        with pytest.raises(UsageError, match=r"then 3 lines, .* now 4 lines"):
            run(spec_of(tmp_path, upstream))
        assert len(upstream.asked) == 3
        finished = run(spec_of(tmp_path, upstream, restart=True))
    assert finished.summary["ok"] == 4
    assert len(upstream.asked) == 7


def test_an_input_that_changes_while_it_is_read_is_not_concluded(tmp_path: Path) -> None:
    path = prompts(tmp_path / "in.jsonl", 3)

    def script(asked: Asked) -> Say:
        if asked.prompt == "p1":
            with path.open("a") as file:
                file.write('{"prompt":"late"}\n')
        return echo(asked)

    with serving(script) as upstream, pytest.raises(UsageError, match="changed while the batch"):
        run(spec_of(tmp_path, upstream))
    assert not (tmp_path / "out" / "results.jsonl").exists()


def test_results_of_somebody_else_are_left_alone(tmp_path: Path) -> None:
    prompts(tmp_path / "in.jsonl", 1)
    (tmp_path / "out").mkdir()
    foreign = write(tmp_path / "out" / "results.jsonl", "mine")
    with serving() as upstream:
        for restart in (False, True):
            with pytest.raises(UsageError, match=r"holds results\.jsonl that no batch run made"):
                run(spec_of(tmp_path, upstream, restart=restart))
    assert foreign.read_text() == "mine\n"
    assert upstream.asked == []


@pytest.mark.parametrize("name", ["results.jsonl", "errors.jsonl.part", "report.html"])
def test_an_input_that_would_be_the_output_is_refused(tmp_path: Path, name: str) -> None:
    path = prompts(tmp_path / name, 1)
    with serving() as upstream, pytest.raises(UsageError, match="is the input and would be the"):
        run(spec_of(tmp_path, upstream, input=path, output=tmp_path))
    assert upstream.asked == []


def test_the_only_model_served_is_taken_and_several_are_refused(tmp_path: Path) -> None:
    prompts(tmp_path / "in.jsonl", 1)
    with serving(models=("one",)) as upstream:
        finished = run(spec_of(tmp_path, upstream, model=None))
        assert upstream.asked[0].body["model"] == "one"
        assert finished.summary["settings"] == {"model": "one", "max_line_bytes": "16777216"}
    with serving(models=("one", "two")) as upstream:
        assert run(spec_of(tmp_path, upstream, model=None)).summary["ok"] == 1
        with pytest.raises(NoSingleModel, match="2 are served: one, two") as refused:
            run(spec_of(tmp_path, upstream, model=None, restart=True))
        assert isinstance(refused.value, ValueError)


def test_rows_that_name_their_models_need_no_other(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", {"prompt": "a", "model": "two"})
    with serving(models=("one", "two")) as upstream:
        run(spec_of(tmp_path, upstream, model=None))
    assert upstream.asked[0].body["model"] == "two"


def test_answers_are_parsed_and_bad_ones_are_repaired_once(tmp_path: Path) -> None:
    write(
        tmp_path / "in.jsonl",
        *({"messages": [{"role": "user", "content": c}]} for c in ("good", "mended", "hopeless")),
    )

    def script(asked: Asked) -> Say:
        fine = asked.prompt == "good" or (asked.prompt == "mended" and asked.nth == 2)
        return completion('{"score": 4}' if fine else "four, I would say")

    with serving(script) as upstream:
        schema = {"type": "object", "required": ["score"]}
        finished = run(spec_of(tmp_path, upstream, schema=schema))
    assert {row["line"]: row["parsed"] for row in lines_of(finished.paths.results)} == {
        1: {"score": 4},
        2: {"score": 4},
    }
    assert errors(finished) == {3: "unfit: the answer is unfit: Expecting value at character 1"}
    repairs = [a.body["messages"] for a in upstream.asked if len(a.body["messages"]) > 1]
    assert {message[1]["content"] for message in repairs} == {"four, I would say"}
    assert len(upstream.asked) == 5
    assert all("response_format" in asked.body for asked in upstream.asked)


def test_hooks_read_parse_and_aggregate(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", *({"n": n} for n in range(1, 5)))

    def parse(text: str) -> object:
        return len(text)

    hooks = Hooks(
        read=lambda fields: "x" * int(str(fields["n"])),
        parse=parse,
        aggregate=lambda rows: sum(int(str(row["parsed"])) for row in rows),
    )
    with serving(lambda asked: completion(asked.prompt)) as upstream:
        finished = run(spec_of(tmp_path, upstream, hooks=hooks))
    assert finished.summary["aggregate"] == 10


def test_the_input_stands_beside_the_answer_where_it_is_wanted(tmp_path: Path) -> None:
    rows = [{"prompt": "a\u2028b", "label": "é", "deep": {"x": [1, None]}}, {"prompt": ""}]
    write(tmp_path / "in.jsonl", *rows)
    with serving() as upstream:
        finished = run(spec_of(tmp_path, upstream, include_input=True))
    found = {row["line"]: row["input"] for row in lines_of(finished.paths.results)}
    assert found == {1: rows[0], 2: rows[1]}


def _knows_only_real(asked: Asked) -> Say:
    model = str(asked.body["model"])
    if model == "real":
        return completion(asked.prompt)
    return Say({"error": {"message": f"The model `{model}` does not exist."}}, status=404)


def test_a_mistyped_model_is_said_once_and_not_in_every_row(tmp_path: Path) -> None:
    prompts(tmp_path / "in.jsonl", 500)
    with serving(_knows_only_real) as upstream:
        with pytest.raises(UsageError, match="The model `reel` does not exist"):
            run(spec_of(tmp_path, upstream, model="reel"))
        assert len(upstream.asked) < 300
        again = run(spec_of(tmp_path, upstream, model="real", restart=True))
    assert (again.summary["ok"], again.summary["failed"]) == (500, 0)


def test_a_row_s_own_mistyped_model_is_its_own_error(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "model": "reel"}, {"prompt": "b"}, {"prompt": "c", "model": "real-2"}]
    write(tmp_path / "in.jsonl", *rows)
    with serving(_knows_only_real) as upstream:
        finished = run(spec_of(tmp_path, upstream, model="real"))
    assert (finished.summary["ok"], finished.summary["failed"]) == (1, 2)


def test_the_cost_ends_the_run_and_more_money_goes_on(tmp_path: Path) -> None:
    prompts(tmp_path / "in.jsonl", 50)
    effort = Effort(timeout_s=5, concurrency=2, price=Price(0, 1e6), max_cost=30)
    with serving() as upstream:
        with pytest.raises(UsageError, match=r"the cost has reached \d+ of 30; rows left: \d+"):
            run(spec_of(tmp_path, upstream, effort=effort))
        assert 10 <= len(upstream.asked) <= 12
        assert run(spec_of(tmp_path, upstream)).summary["ok"] == 50
    assert len(upstream.asked) == 50


def test_rows_with_one_beginning_go_to_one_instance(tmp_path: Path) -> None:
    start = {key: key * 400 for key in "abcdefgh"}
    write(
        tmp_path / "in.jsonl",
        *({"prompt": f"{start[key]} {n}"} for n in range(20) for key in start),
    )
    effort = Effort(timeout_s=5, by_prefix=True, concurrency=1)
    with serving() as one, serving() as two:
        run(spec_of(tmp_path, one, two, effort=effort))
    homes = {key: [up for up in (one, two) for p in up.prompts if p[0] == key] for key in start}
    for home in homes.values():
        most = max(home.count(one), home.count(two))
        assert most == 20


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"effort": Effort(concurrency=0)}, "--concurrency 0"),
        ({"effort": Effort(timeout_s=-1)}, "--timeout -1"),
        ({"effort": Effort(timeout_s=float("nan"))}, "--timeout nan"),
        ({"effort": Effort(retries=-1)}, "--retries"),
        ({"order": "random"}, "--order random"),
        ({"parse": "regex:x", "schema": {}}, "--schema goes with"),
        ({"max_tokens": 0}, "--max-tokens 0"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, changes: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        BatchSpec(tmp_path / "i", tmp_path / "o", (), **changes)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://gpu-01:8000/v1", "http://gpu-01:8000"),
        ("gpu-01:8000", "http://gpu-01:8000"),
        ("https://api.example.com/v1/", "https://api.example.com:443"),
        ("http://[::1]:8001", "http://[::1]:8001"),
        ("http://proxy/llm/v1", "http://proxy:80/llm"),
    ],
)
def test_upstreams_are_read_as_people_write_them(url: str, address: str) -> None:
    (upstream,) = upstreams_of([url, url])
    assert str(upstream.address) == address


@pytest.mark.parametrize(
    "url", ["ftp://x", "http://", "http://a:99999", "http://u:secret@a", "http://a b", "http://a?x"]
)
def test_an_upstream_that_is_none_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(UsageError) as refused:
        upstreams_of([url])
    assert "secret" not in str(refused.value)


def test_the_list_of_models_is_waited_for_and_a_refused_key_is_said(tmp_path: Path) -> None:
    prompts(tmp_path / "in.jsonl", 2)
    said: list[str] = []

    def say(words: str) -> None:
        said.append(words)
        upstream.models = ("tiny",)

    with serving(models=()) as upstream, serving() as dead:
        dead.stop()
        spec = spec_of(tmp_path, upstream, dead, model=None)
        assert run_batch(spec, listener=lambda _: None, say=say).summary["ok"] == 2
    assert said[0] == (
        "waiting for the list of models, which --model makes needless: "
        f"http://127.0.0.1:{upstream.port}: serves no model yet; "
        f"http://127.0.0.1:{dead.port}: connection refused"
    )


@pytest.mark.parametrize(
    ("listed", "error", "said"),
    [
        (Say(b"no", status=401), UsageError, "/v1/models: HTTP 401: no"),
        (Say(b"none", status=404), UsageError, "/v1/models: HTTP 404: none"),
        (Say(b"full", status=503), NotHealthy, "no model list in 0.1 s: .*HTTP 503: full"),
        (Say(b"{}"), NotHealthy, "its list of models cannot be read: it has no 'data'"),
        (Say(b"<html>"), NotHealthy, "its list of models cannot be read: Expecting value"),
    ],
)
def test_a_list_of_models_that_does_not_come(
    tmp_path: Path, listed: Say, error: type[Exception], said: str
) -> None:
    prompts(tmp_path / "in.jsonl", 2)
    effort = Effort(timeout_s=5, give_up_after_s=0.1)
    with serving() as upstream:
        upstream.listed = listed
        with pytest.raises(error, match=said):
            run(spec_of(tmp_path, upstream, model=None, effort=effort))
        assert upstream.asked == []

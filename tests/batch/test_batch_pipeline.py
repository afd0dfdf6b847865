"""`run_pipeline`, as the pipeline guide calls it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.batch.upstream import completion, serving
from vllmdeploy import create_multi_vllm_client, run_pipeline


def tasks(folder: Path) -> Path:
    path = folder / "data" / "tasks.jsonl"
    path.parent.mkdir()
    rows = ({"messages": [{"role": "user", "content": f"task {n}"}]} for n in range(20))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_guides_call_works_with_a_client_of_several_instances(tmp_path: Path) -> None:
    with serving() as one, serving() as two:
        paths = run_pipeline(
            input_jsonl=str(tasks(tmp_path)),
            output_dir=str(tmp_path / "outputs"),
            client=create_multi_vllm_client(ports=[one.port, two.port], host="127.0.0.1"),
        )
        assert len(one.asked) + len(two.asked) == 20
        assert one.asked
        assert two.asked
    assert [path.name for path in paths] == [
        "results.jsonl", "errors.jsonl", "summary.json", "report.html",
    ]  # fmt: skip
    assert json.loads(paths.summary.read_text())["ok"] == 20


def test_the_clients_key_is_sent_unless_another_is_given(tmp_path: Path) -> None:
    source = tasks(tmp_path)
    with serving() as one:
        client = create_multi_vllm_client(ports=[one.port], host="127.0.0.1", api_key="clients")
        run_pipeline(source, tmp_path / "a", client, model="tiny")
        assert {asked.headers["authorization"] for asked in one.asked} == {"Bearer clients"}
        one.asked.clear()
        run_pipeline(source, tmp_path / "b", client, model="tiny", api_key="another")
        assert {asked.headers["authorization"] for asked in one.asked} == {"Bearer another"}


def test_without_a_client_the_environment_names_the_instances(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as one, serving() as two:
        monkeypatch.setenv("VLLM_PORTS", f"{one.port},{two.port}")
        monkeypatch.setenv("VLLM_HOST", "127.0.0.1")
        run_pipeline(tasks(tmp_path), tmp_path / "out")
        assert len(one.asked) + len(two.asked) == 20


def test_a_url_or_several_stand_for_a_client(tmp_path: Path) -> None:
    source = tasks(tmp_path)
    with serving() as one:
        for number, client in enumerate((one.url, [one.url])):
            run_pipeline(source, tmp_path / str(number), client)
        assert len(one.asked) == 40


def test_several_models_and_none_named_is_a_value_error(tmp_path: Path) -> None:
    with serving(models=("a", "b")) as one, pytest.raises(ValueError, match="served: a, b"):
        run_pipeline(tasks(tmp_path), tmp_path / "out", one.url)


def test_it_can_be_called_where_a_loop_runs_already(tmp_path: Path) -> None:
    """As in a notebook."""

    async def cell(url: str) -> int:
        paths = run_pipeline(tasks(tmp_path), tmp_path / "out", url)
        return len(paths.results.read_bytes().splitlines())

    with serving() as one:
        assert asyncio.run(cell(one.url)) == 20


def test_steps_of_ones_own(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"word":"a"}\n{"word":"bb"}\n{"other":1}\n')

    def length(text: str) -> int:
        if len(text) > 1:
            raise ValueError("too long")
        return len(text)

    with serving(lambda asked: completion(asked.prompt)) as one:
        paths = run_pipeline(
            source,
            tmp_path / "out",
            one.url,
            read=lambda fields: str(fields["word"]),
            parse=length,
            aggregate=lambda rows: [row["parsed"] for row in rows],
        )
    assert json.loads(paths.summary.read_text())["aggregate"] == [1]
    errors = [json.loads(row)["error"]["message"] for row in paths.errors.read_bytes().splitlines()]
    assert sorted(errors) == ["line 3: KeyError: 'word'", "the answer is unfit: too long"]

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vllmdeploy.node import folder
from vllmdeploy.node.folder import Wanted
from vllmdeploy.node.spec import BadSpec, ChildSpec, HttpProbe, parse_engine
from vllmdeploy.node.table import Limits

WHOLE = {
    "name": "llama",
    "argv": ["vllm", "serve", "/models/llama"],
    "env": {"VLLM_HOST_IP": "10.0.0.1"},
    "node": "gpu-01",
    "needs": ["ray"],
    "nodes": ["gpu-01", "gpu-02"],
    "start_limit_s": 600,
    "stop_limit_s": 20.5,
    "health_url": "http://127.0.0.1:8100/health",
    "canary_url": "http://127.0.0.1:8100/v1/completions",
    "canary_body": {"prompt": "1", "max_tokens": 1},
    "metrics_url": "http://[::1]:8100/metrics",
}


def test_a_whole_file_is_read() -> None:
    assert parse_engine(json.dumps(WHOLE)) == ChildSpec(
        name="llama",
        argv=("vllm", "serve", "/models/llama"),
        env={"VLLM_HOST_IP": "10.0.0.1"},
        node="gpu-01",
        needs_ray=True,
        needs_nodes=("gpu-01", "gpu-02"),
        limits=Limits(start_s=600.0, stop_s=20.5),
        ready=HttpProbe(
            health_url="http://127.0.0.1:8100/health",
            canary_url="http://127.0.0.1:8100/v1/completions",
            canary_body='{"prompt": "1", "max_tokens": 1}',
            metrics_url="http://[::1]:8100/metrics",
        ),
    )


def test_name_and_argv_are_enough() -> None:
    assert parse_engine('{"name": "n", "argv": ["x"]}') == ChildSpec(
        name="n", argv=("x",), limits=Limits(start_s=1800.0, stop_s=60.0)
    )


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"argvv": []}, "unknown keys: argvv"),
        ({"name": "../../etc"}, "name: '../../etc' is not letters"),
        ({"name": "ray"}, "name: 'ray' is not letters, digits, '.', '_' or '-', or is taken"),
        ({"name": 3}, "name: must be a text"),
        ({"name": "n\n"}, "name: 'n\\n' is not letters"),
        ({"argv": []}, "argv: must name a program"),
        ({"argv": "vllm serve"}, "argv: must be a list of texts"),
        ({"argv": ["x", 1]}, "argv: must be a text"),
        ({"argv": ["x\0y"]}, "argv: must be a text"),
        ({"env": {"A": 1}}, "env.A: must be a text"),
        ({"env": []}, "env: must be an object"),
        ({"needs": ["redis"]}, "needs: only 'ray' can be needed"),
        ({"health_url": "https://x/"}, "health_url: 'https://x/' is not an http:// address"),
        ({"health_url": "http://x:99999/"}, "health_url: 'http://x:99999/'"),
        ({"health_url": "http://x/ HTTP/1.1\r\nA: b"}, "is not an http:// address"),
        ({"start_limit_s": 0}, "start_limit_s: must be seconds, more than 0"),
        ({"stop_limit_s": True}, "stop_limit_s: must be seconds"),
        ({"stop_limit_s": "5"}, "stop_limit_s: must be seconds"),
    ],
)
def test_a_wrong_file_is_refused_with_its_key(changed: dict[str, object], words: str) -> None:
    with pytest.raises(BadSpec) as refused:
        parse_engine(json.dumps({**WHOLE, **changed}))
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "not JSON: "), ("[]", "the file: must be an object"), ("NaN", "the file: must be")],
)
def test_what_is_not_an_object_is_refused(text: str, words: str) -> None:
    with pytest.raises(BadSpec, match=words):
        parse_engine(text)


def test_an_environment_name_is_checked() -> None:
    for name in ("A=B", "", "A\0"):
        with pytest.raises(BadSpec, match="env"):
            parse_engine(json.dumps({**WHOLE, "env": {name: "x"}}))


def engine(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({"argv": ["x"], **fields}))


def test_a_folder_is_read_by_name_and_other_files_are_left_alone(tmp_path: Path) -> None:
    engine(tmp_path / "b.json", name="b")
    engine(tmp_path / "a.json", name="a")
    (tmp_path / "a.json.new").write_text("{")
    wanted = folder.read(tmp_path, "gpu-01", Wanted())
    assert (list(wanted.specs), wanted.problems) == (["a", "b"], {})


def test_a_folder_that_is_not_there_wants_nothing(tmp_path: Path) -> None:
    assert folder.read(tmp_path / "none", "gpu-01", Wanted()) == Wanted()


def test_a_folder_that_cannot_be_listed_changes_nothing_and_is_named(tmp_path: Path) -> None:
    engine(tmp_path / "a.json", name="a")
    before = folder.read(tmp_path, "gpu-01", Wanted())
    after = folder.read(tmp_path / "a.json", "gpu-01", before)
    assert after.specs == before.specs
    assert after.problems == {str(tmp_path / "a.json"): "cannot be listed: Not a directory"}


def test_two_files_of_one_name_keep_the_first(tmp_path: Path) -> None:
    engine(tmp_path / "1.json", name="a")
    engine(tmp_path / "2.json", name="a", env={"B": "c"})
    wanted = folder.read(tmp_path, "gpu-01", Wanted())
    assert wanted.sources == {"a": "1.json"}
    assert wanted.problems == {"2.json": "name: 'a' is taken by 1.json"}


def test_a_file_that_became_bad_keeps_its_engine_and_one_that_went_does_not(
    tmp_path: Path,
) -> None:
    for name in ("a", "b"):
        engine(tmp_path / f"{name}.json", name=name)
    before = folder.read(tmp_path, "gpu-01", Wanted())
    (tmp_path / "a.json").write_bytes(b"\xff")
    (tmp_path / "b.json").unlink()
    after = folder.read(tmp_path, "gpu-01", before)
    assert after.specs == {"a": before.specs["a"]}
    assert list(after.problems) == ["a.json"]

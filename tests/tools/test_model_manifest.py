"""A model's manifest, and which names a model and its files may have."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmdeploy.errors import UsageError
from vllmdeploy.tools.manifest import Manifest, ModelFile, parse
from vllmdeploy.tools.manifest_names import is_repository, name_of, path_fault, place_of

SHA = "ab" * 32
MANIFEST = Manifest(
    source="huggingface",
    repo="meta-llama/Llama-3-8B-instruct",
    revision="main",
    commit="c" * 40,
    files=(ModelFile("model.safetensors", 12, SHA), ModelFile("config.json", 2, SHA)),
)


def test_the_text_is_what_a_person_can_read() -> None:
    assert MANIFEST.text.decode() == (
        "{\n"
        ' "format": 1,\n'
        ' "source": "huggingface",\n'
        ' "repo": "meta-llama/Llama-3-8B-instruct",\n'
        ' "revision": "main",\n'
        f' "commit": "{"c" * 40}",\n'
        ' "total": 14,\n'
        ' "files": [\n'
        "  {\n"
        '   "path": "config.json",\n'
        '   "size": 2,\n'
        f'   "sha256": "{SHA}"\n'
        "  },\n"
        "  {\n"
        '   "path": "model.safetensors",\n'
        '   "size": 12,\n'
        f'   "sha256": "{SHA}"\n'
        "  }\n"
        " ]\n"
        "}\n"
    )


def test_a_parsed_manifest_has_the_same_digest() -> None:
    again = parse(MANIFEST.text, where="a")
    assert again.digest == MANIFEST.digest
    assert again.describes(MANIFEST)
    assert again.ready == f"{MANIFEST.digest}\n".encode()


def test_any_other_byte_of_a_file_is_another_digest() -> None:
    other = Manifest(
        source="huggingface",
        repo=MANIFEST.repo,
        files=(ModelFile("model.safetensors", 12, SHA), ModelFile("config.json", 3, SHA)),
    )
    assert other.digest != MANIFEST.digest
    assert not other.describes(MANIFEST)


def changed(**changes: object) -> bytes:
    return json.dumps({**json.loads(MANIFEST.text), **changes}).encode()


def with_file(**changes: object) -> bytes:
    return changed(files=[{"path": "a", "size": 1, "sha256": SHA, **changes}])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"{", "it is not JSON"),
        (b"[" * 100_000, "it is not JSON"),
        (b"[]", "it holds something else than a JSON object"),
        (changed(format=2), "its format is 2, and only 1 is known"),
        (changed(files=[]), "it names no files"),
        (changed(source="ftp"), "its source 'ftp' is not one of huggingface, modelscope, folder"),
        (changed(repo="a\nb"), "its repo is not a short text"),
        (changed(files=[3]), "it holds something else than a JSON object"),
        (with_file(path="../../etc/passwd"), "it names a file '../../etc/passwd', which no model"),
        (with_file(path=".vllmdeploy/READY"), "it names a file '.vllmdeploy/READY', which no"),
        (with_file(size=True), "the size of a is True"),
        (with_file(size=-1), "the size of a is -1"),
        (with_file(sha256="x"), "the sha256 of a is none"),
        (changed(files=[{"path": "a", "size": 1, "sha256": SHA}] * 2), "it names a file twice"),
    ],
)
def test_a_manifest_that_lies_is_refused(text: bytes, why: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse(text, where="a:/m/MANIFEST.json")
    assert raised.value.message.startswith(f"a:/m/MANIFEST.json: {why}")


@pytest.mark.parametrize(
    "name",
    ["..", ".", "", "a/b", "-rf", "a\nb", "a b", "x" * 255, ".incoming", "a..b", "é", "$(id)"],
)
def test_a_name_that_leads_elsewhere_is_no_models_name(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a model's name"):
        place_of("/data/models", name)


def test_a_model_has_a_folder_and_an_incoming_folder_that_no_model_can_be_called_like() -> None:
    place = place_of("/data/models/", "Llama-3-8B-instruct")
    assert place.folder == "/data/models/Llama-3-8B-instruct"
    assert place.incoming == "/data/models/.incoming/Llama-3-8B-instruct"
    assert place.lock == "/data/models/.incoming/.Llama-3-8B-instruct.lock"


def test_a_models_name_is_the_last_part_of_its_repository() -> None:
    assert name_of("meta-llama/Llama-3-8B-instruct") == "Llama-3-8B-instruct"


@pytest.mark.parametrize(
    ("text", "verdict"),
    [("a/b", True), ("a", False), ("a/b/c", False), ("-a/b", False), ("a/..", False)],
)
def test_a_repository_is_owner_and_name(text: str, verdict: bool) -> None:
    assert is_repository(text) is verdict


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("model.safetensors", ""),
        ("1_Pooling/config.json", ""),
        ("a file 'with' \"quotes\" $(id).txt", ""),
        ("模型.json", ""),
        ("/etc/passwd", "it is absolute or has an empty part"),
        ("a/../b", "it holds '.' or '..'"),
        ("a//b", "it is absolute or has an empty part"),
        ("a/-rf", "a part of it begins with '-'"),
        ("x" * 255, "it or a part of it is longer than 1000 or 200 bytes"),
        ("a\nb", "it holds a line end, a backslash, or what is not UTF-8 text"),
        ("a\\b", "it holds a line end, a backslash, or what is not UTF-8 text"),
        ("a\udcffb", "it holds a line end, a backslash, or what is not UTF-8 text"),
    ],
)
def test_a_file_of_a_model_stays_below_its_folder(path: str, fault: str) -> None:
    assert path_fault(path) == fault


@given(st.text())
def test_whatever_passes_has_no_part_that_leads_up(path: str) -> None:
    if not path_fault(path):
        assert not {"", ".", ".."} & set(path.split("/"))
        assert "\n" not in path
        assert "\0" not in path

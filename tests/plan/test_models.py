"""Which files are the model, what state it is in on a host, and what may go to its name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vllmdeploy.errors import UsageError
from vllmdeploy.plan.models import (
    Asked,
    Standing,
    State,
    extra_files,
    hash_faults,
    may_download,
    space_refusals,
    standing,
)
from vllmdeploy.plan.models_files import choose, size_text, weight_notes
from vllmdeploy.tools.hub import RemoteFile
from vllmdeploy.tools.manifest import Manifest, ModelFile
from vllmdeploy.tools.model_files_found import FoundModel, FoundStore
from vllmdeploy.tools.model_files_tree import Tree

SHA = "ab" * 32
MANIFEST = Manifest(
    source="huggingface",
    repo="o/m",
    revision="main",
    commit="c" * 40,
    files=(ModelFile("config.json", 10, SHA), ModelFile("model.safetensors", 90, SHA)),
)
WHOLE = FoundModel(
    name="m",
    tree=Tree(home="/models/m", files={"config.json": 10, "model.safetensors": 90}),
    ready=MANIFEST.digest,
    digest=MANIFEST.digest,
)


def store(*models: FoundModel, free: int = 10_000) -> FoundStore:
    return FoundStore(there=True, models=models, free_bytes=free, writable=True)


def with_files(**sizes: int) -> FoundModel:
    files = {path.replace("__", "."): size for path, size in sizes.items()}
    return replace(WHOLE, tree=Tree(home="/models/m", files=files))


INCOMING = replace(with_files(model__safetensors=63), incoming=True, ready="", digest="")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (store(), "absent"),
        (store(WHOLE), "ready"),
        (store(INCOMING), "partial 63 %"),
        (store(replace(INCOMING, expected=126)), "partial 50 %"),
        (store(replace(WHOLE, ready="")), "not finished"),
        (store(replace(WHOLE, ready="", digest="")), "no manifest"),
        (store(replace(WHOLE, ready="0" * 64, digest="0" * 64)), "another revision"),
        (store(replace(WHOLE, ready="0" * 64)), "corrupt"),
        (store(with_files(config__json=10)), "corrupt"),
        (store(with_files(config__json=10, model__safetensors=89)), "corrupt"),
    ],
)
def test_a_model_is_present_only_with_the_mark_of_its_manifest(
    found: FoundStore, words: str
) -> None:
    assert str(standing(found, "m", MANIFEST)) == words


def test_what_is_wrong_is_named() -> None:
    found = standing(store(with_files(model__safetensors=89)), "m", MANIFEST)
    assert found == Standing(
        State.CORRUPT,
        faults=("config.json: missing", "model.safetensors: 89 bytes, not 90"),
    )


def test_a_copy_that_nobody_knows_the_size_of_has_no_share() -> None:
    assert str(standing(store(INCOMING), "m", None)) == "partial 0 %"


def test_files_beside_the_manifest_are_told() -> None:
    found = with_files(config__json=10, model__safetensors=90, more__bin=1)
    assert extra_files(found, MANIFEST) == ("more.bin",)


def test_a_hash_that_differs_is_another_content_than_one_that_is_missing() -> None:
    assert hash_faults(MANIFEST, {"config.json": "0" * 64}) == (
        "config.json: other content than the manifest says",
        "model.safetensors: cannot be read",
    )
    assert hash_faults(MANIFEST, {file.path: file.sha256 for file in MANIFEST.files}) == ()


ASKED = Asked(
    name="m",
    source="huggingface",
    repo="o/m",
    commit="c" * 40,
    sizes={"config.json": 10, "model.safetensors": -1},
)


def test_a_free_name_may_be_used() -> None:
    assert may_download(ASKED, store(), None).refusal == ""
    assert not may_download(ASKED, store(INCOMING), None).present


def test_the_same_model_that_is_ready_needs_nothing_and_a_broken_one_is_mended() -> None:
    assert may_download(ASKED, store(WHOLE), MANIFEST).present
    assert may_download(ASKED, store(replace(WHOLE, ready="")), MANIFEST).mend


@pytest.mark.parametrize(
    ("asked", "there", "why"),
    [
        (
            replace(ASKED, repo="p/m"),
            MANIFEST,
            "m is there already, from o/m on huggingface: give --name, or `model remove m` first",
        ),
        (
            replace(ASKED, commit="d" * 40),
            MANIFEST,
            "m is there already, at revision cccccccccccc, and o/m is at dddddddddddd: give"
            " --name, or `model remove m` first",
        ),
        (
            replace(ASKED, sizes={"config.json": 11}),
            MANIFEST,
            "m is there already, with other files of o/m: give --name, or `model remove m` first",
        ),
        (
            ASKED,
            None,
            "m is there already, put there by hand: `model verify m` takes it over as it is,"
            " --name gives another name",
        ),
        (
            ASKED,
            replace(MANIFEST, source="folder", repo="", commit=""),
            "m is there already, from a folder: give --name, or `model remove m` first",
        ),
    ],
)
def test_nothing_else_goes_into_a_name_that_is_taken(
    asked: Asked, there: Manifest | None, why: str
) -> None:
    assert may_download(asked, store(WHOLE), there).refusal == why


def test_a_host_without_room_for_what_is_missing_is_refused() -> None:
    stores = {"a": store(free=100), "b": store(INCOMING, free=100), "c": store(free=200)}
    assert space_refusals(stores, "m", 110, ("a", "b", "c")) == (
        "a: 110 B are to come and 100 B are free",
    )
    assert space_refusals({"a": FoundStore(there=False)}, "m", 10**15, ("a",)) == ()


def remote(*paths: str) -> list[RemoteFile]:
    return [RemoteFile(path, 100) for path in paths]


def chosen(*paths: str, include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> list[str]:
    return [file.path for file in choose(remote(*paths), include=include, exclude=exclude).files]


@pytest.mark.parametrize(
    ("listed", "kept"),
    [
        (
            "config.json model.safetensors pytorch_model.bin tf_model.h5 flax_model.msgpack",
            "config.json model.safetensors",
        ),
        ("config.json pytorch_model.bin", "config.json pytorch_model.bin"),
        ("config.json model.pt", "config.json model.pt"),
        ("config.json model-q4.gguf model.safetensors", "config.json model.safetensors"),
        ("config.json model.gguf", "config.json model.gguf"),
        (
            "model.safetensors original/consolidated.00.pth original/params.json onnx/model.onnx",
            "model.safetensors",
        ),
        (
            "consolidated.safetensors model-00001-of-00002.safetensors params.json",
            "model-00001-of-00002.safetensors params.json",
        ),
        ("consolidated.safetensors params.json", "consolidated.safetensors params.json"),
        ("1_Pooling/config.json modules.json model.safetensors", None),
        (".gitattributes README.md a.png model.safetensors", "README.md model.safetensors"),
        (".cache/x .git/config model.safetensors", "model.safetensors"),
        ("modeling_x.py tokenizer.model model.safetensors training_args.bin", None),
    ],
)
def test_one_format_of_weights_is_taken_with_what_goes_with_it(
    listed: str, kept: str | None
) -> None:
    expected = kept if kept is not None else listed.replace(" training_args.bin", "")
    assert chosen(*listed.split()) == sorted(expected.split())


def test_patterns_choose_instead() -> None:
    paths = ("config.json", "a.gguf", "b.gguf", "sub/c.json")
    assert chosen(*paths, include=("a.gguf", "*.json")) == ["a.gguf", "config.json", "sub/c.json"]
    assert chosen(*paths, include=("*.json",), exclude=("sub/",)) == ["config.json"]
    with pytest.raises(UsageError, match=r"--include \*\.txt: no file of the model matches"):
        chosen(*paths, include=("*.txt",))
    with pytest.raises(UsageError, match="no file is left to download"):
        chosen("config.json", exclude=("*",))


def test_several_gguf_files_are_several_models() -> None:
    with pytest.raises(UsageError) as raised:
        chosen("m-q4.gguf", "m-q8.gguf", "config.json")
    assert str(raised.value) == (
        "the repository holds 2 GGUF files, each a whole model: m-q4.gguf, m-q8.gguf, ...\n"
        "  -> choose with --include m-q4.gguf --include '*.json'"
    )


@pytest.mark.parametrize("path", ["../up", "/etc/passwd", "a\nb", "-rf", "x" * 255])
def test_a_repository_with_names_that_lead_elsewhere_is_refused(path: str) -> None:
    with pytest.raises(UsageError, match="the model names a file"):
        chosen("config.json", path)


def test_what_is_dangerous_or_missing_is_said() -> None:
    assert weight_notes(["a.bin", "b.bin", "modeling.py"]) == [
        "pickled weights (a.bin, b.bin): loading them runs code of whoever made them;"
        " prefer a model in safetensors",
        "it holds Python code (modeling.py), which runs only where it is trusted",
    ]
    assert weight_notes(["config.json"]) == ["there are no weights among these files"]
    notes = choose(remote("model.safetensors", "model.bin")).notes
    assert notes == (
        "1 files (100 B) are left out: other formats of the weights, pictures, or by --include"
        " and --exclude",
    )


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**40, "1.0 TiB"), (29e9, "27.0 GiB")],
)
def test_sizes_are_for_people(count: float, text: str) -> None:
    assert size_text(count) == text

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmdeploy.errors import UsageError
from vllmdeploy.tools.safetensors import (
    INDEX,
    Tensor,
    Weights,
    header_length,
    of_folder,
    parse_header,
    parse_index,
)

ONE = {"a.weight": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}


def file(entries: object, data: int = 12) -> bytes:
    header = json.dumps(entries).encode()
    return len(header).to_bytes(8, "little") + header + bytes(data)


def test_the_header_says_what_is_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(file({"__metadata__": {"format": "pt"}, **ONE}))
    weights = of_folder(tmp_path)
    assert weights == Weights(
        total_bytes=12,
        tensors=(Tensor(name="a.weight", dtype="BF16", shape=(2, 3), size=12),),
    )
    assert weights.bytes_by_dtype == {"BF16": 12}


def test_an_index_chooses_the_files(tmp_path: Path) -> None:
    for name in ("model-1.safetensors", "consolidated.safetensors", "other.safetensors"):
        (tmp_path / name).write_bytes(file(ONE))
    index = {"metadata": {"total_size": 24}, "weight_map": {"a.weight": "model-1.safetensors"}}
    (tmp_path / INDEX).write_text(json.dumps(index))
    assert of_folder(tmp_path).total_bytes == 12


def test_the_same_weights_are_not_counted_twice(tmp_path: Path) -> None:
    for name in ("model.safetensors", "consolidated.safetensors"):
        (tmp_path / name).write_bytes(file(ONE))
    assert of_folder(tmp_path).total_bytes == 12


def test_an_index_alone_gives_the_total(tmp_path: Path) -> None:
    index = {"metadata": {"total_size": 24}, "weight_map": {"a.weight": "model-1.safetensors"}}
    (tmp_path / INDEX).write_text(json.dumps(index))
    assert of_folder(tmp_path) == Weights(total_bytes=24, missing_files=("model-1.safetensors",))


def test_a_folder_without_weights_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no \.safetensors file in it"):
        of_folder(tmp_path)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it has 0 bytes, which is less than a header's length"),
        (b"\xff" * 8, "it claims a header of 18446744073709551615 bytes"),
        ((200_000_000).to_bytes(8, "little") + b"{}", "it claims a header of 200000000 bytes"),
        ((50).to_bytes(8, "little") + b"{}", "it ends at 10 bytes, inside of its header"),
        ((2).to_bytes(8, "little") + b"[]", "its JSON is not an object"),
        ((2).to_bytes(8, "little") + b"{{", "it holds no readable JSON"),
        (file({"a": 1}), "tensor 'a' has no dtype, shape and data_offsets"),
        (file(ONE, data=5), "tensor 'a.weight' lies outside of the file (is it cut off?)"),
        (
            file({"a": {"dtype": "F32", "shape": [9, 9], "data_offsets": [0, 12]}}),
            "tensor 'a': its shape and its size disagree",
        ),
        (
            file({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}),
            "tensor 'a' has no dtype, shape and data_offsets",
        ),
        (
            file({"a": {"dtype": "F32", "shape": [1], "data_offsets": [8, 4]}}),
            "tensor 'a' lies outside of the file (is it cut off?)",
        ),
    ],
)
def test_a_hostile_or_broken_file_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(UsageError) as raised:
        of_folder(tmp_path)
    assert raised.value.message == f"{path}: {why}"


@pytest.mark.parametrize(
    ("index", "why"),
    [
        ({}, "it has no weight_map"),
        (
            {"weight_map": {"a": "../../etc/passwd"}},
            "it names a file outside of its folder: '../../etc/passwd'",
        ),
    ],
)
def test_a_hostile_index_is_refused(index: object, why: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_index(json.dumps(index).encode(), where="index")
    assert raised.value.message == f"index: {why}"


def said_of(content: bytes) -> str:
    try:
        header_length(content, where="x")
        parse_header(content, file_size=1000, where="x")
    except UsageError as error:
        return error.message
    return "x: read"


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    assert said_of(content).startswith("x: ")

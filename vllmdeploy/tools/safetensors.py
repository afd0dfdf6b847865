"""Safetensors: how large each tensor of a model is, from the files' headers alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, cast

from vllmdeploy.errors import UsageError

LENGTH_BYTES = 8
# The format's own limit. A length beyond it is not a header but a wrong or hostile file.
LONGEST_HEADER = 100_000_000
INDEX = "model.safetensors.index.json"
_LONGEST_INDEX = 200_000_000
_MOST_DIMENSIONS = 16
_DTYPES_BY_BITS = {
    4: ("F4",),
    6: ("F6_E2M3", "F6_E3M2"),
    8: ("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"),
    16: ("I16", "U16", "F16", "BF16"),
    32: ("I32", "U32", "F32"),
    64: ("I64", "U64", "F64", "C64"),
}
_BITS = {dtype: bits for bits, dtypes in _DTYPES_BY_BITS.items() for dtype in dtypes}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A model's tensors; where only an index is there, just their total."""

    total_bytes: int
    tensors: tuple[Tensor, ...] = ()
    missing_files: tuple[str, ...] = ()

    @property
    def bytes_by_dtype(self) -> Mapping[str, int]:
        found: dict[str, int] = {}
        for tensor in self.tensors:
            found[tensor.dtype] = found.get(tensor.dtype, 0) + tensor.size
        return found


def header_length(start: bytes, *, where: str) -> int:
    """How many bytes of header follow the first eight."""
    if len(start) < LENGTH_BYTES:
        raise _bad(where, f"it has {len(start)} bytes, which is less than a header's length")
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    if not 2 <= length <= LONGEST_HEADER:
        raise _bad(where, f"it claims a header of {length} bytes")
    return length


def parse_header(header: bytes, *, file_size: int, where: str) -> tuple[Tensor, ...]:
    """The tensors that a header lists, each checked against its shape and the file's size."""
    entries = _json_object(header, where)
    room = file_size - LENGTH_BYTES - len(header)
    return tuple(
        _tensor(name, value, room, where)
        for name, value in entries.items()
        if name != "__metadata__"
    )


def parse_index(text: bytes, *, where: str) -> tuple[int, tuple[str, ...]]:
    """The total size that an index states (0 where it does not) and the names of its files."""
    index = _json_object(text, where)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _bad(where, "it has no weight_map")
    named = sorted({str(name) for name in cast("dict[str, object]", weight_map).values()})
    strange = [name for name in named if "/" in name or name.startswith(".") or not name]
    if strange:
        raise _bad(where, f"it names a file outside of its folder: {strange[0]!r}")
    metadata = index.get("metadata")
    about = cast("dict[str, object]", metadata) if isinstance(metadata, dict) else {}
    stated = about.get("total_size")
    return (int(stated) if isinstance(stated, int) and stated > 0 else 0), tuple(named)


def of_folder(folder: Path) -> Weights:
    """What vLLM would load from a folder: the index's files, else every safetensors file."""
    stated, names = 0, _files(folder)
    index = folder / INDEX
    if index.is_file():
        stated, names = parse_index(_read(index, _LONGEST_INDEX), where=str(index))
    missing = tuple(name for name in names if not (folder / name).is_file())
    if missing and not stated:
        raise _bad(str(folder), f"{missing[0]} is not there ({len(missing)} files missing)")
    if not names:
        raise _bad(str(folder), "there is no .safetensors file in it")
    tensors = (
        () if missing else tuple(tensor for name in names for tensor in _of_file(folder / name))
    )
    total = sum(tensor.size for tensor in tensors) if tensors else stated
    return Weights(total_bytes=total, tensors=tensors, missing_files=missing)


def _files(folder: Path) -> tuple[str, ...]:
    """Some repositories carry the same weights twice, once as `consolidated`."""
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    return tuple(name for name in names if not name.startswith("consolidated")) or tuple(names)


def _of_file(path: Path) -> Iterable[Tensor]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = header_length(file.read(LENGTH_BYTES), where=str(path))
            if length > size - LENGTH_BYTES:
                raise _bad(str(path), f"it ends at {size} bytes, inside of its header")
            header = file.read(length)
    except OSError as error:
        raise _bad(str(path), str(error.strerror or error)) from error
    return parse_header(header, file_size=size, where=str(path))


def _read(path: Path, most: int) -> bytes:
    try:
        if path.stat().st_size > most:
            raise _bad(str(path), f"it is larger than {most} bytes")
        return path.read_bytes()
    except OSError as error:
        raise _bad(str(path), str(error.strerror or error)) from error


def _tensor(name: str, value: object, room: int, where: str) -> Tensor:
    about = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    dtype = about.get("dtype")
    shape, offsets = _counts(about.get("shape")), _counts(about.get("data_offsets"))
    if not isinstance(dtype, str) or shape is None or offsets is None or len(offsets) != 2:
        raise _bad(where, f"tensor {name[:80]!r} has no dtype, shape and data_offsets")
    begin, end = offsets
    if not begin <= end <= room:
        raise _bad(where, f"tensor {name[:80]!r} lies outside of the file (is it cut off?)")
    bits = _BITS.get(dtype)
    if bits is not None and (prod(shape) * bits + 7) // 8 != end - begin:
        raise _bad(where, f"tensor {name[:80]!r}: its shape and its size disagree")
    return Tensor(name=name, dtype=dtype, shape=shape, size=end - begin)


def _counts(value: object) -> tuple[int, ...] | None:
    """A short list of counts, or nothing for anything else."""
    items = cast("list[object]", value) if isinstance(value, list) else None
    if items is None or len(items) > _MOST_DIMENSIONS:
        return None
    counts = tuple(item for item in items if isinstance(item, int) and 0 <= item < 2**62)
    return counts if len(counts) == len(items) else None


def _json_object(text: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _bad(where, "it holds no readable JSON") from error
    if not isinstance(value, dict):
        raise _bad(where, "its JSON is not an object")
    return cast("dict[str, Any]", value)


def _bad(where: str, why: str) -> UsageError:
    return UsageError(f"{where}: {why}", hint="download the model again, or check its files")

"""A model's manifest: every file with its size and sha256, and the digest that READY carries."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import cast

from vllmdeploy.errors import UsageError
from vllmdeploy.tools.manifest_names import is_leftover, path_fault

FORMAT = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")
_WORD = re.compile(r"[\x20-\x7e]{0,512}")
_SOURCES = ("huggingface", "modelscope", "folder")


@dataclass(frozen=True, slots=True, order=True)
class ModelFile:
    path: str
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A model, complete. A model is *present* on a host only when the READY marker there carries
    this manifest's digest.

    Its text has no date and no host in it: equal models have equal digests, wherever they were
    made. `commit` is what `revision` meant when it was downloaded.
    """

    source: str
    repo: str
    revision: str = ""
    commit: str = ""
    files: tuple[ModelFile, ...]

    @property
    def total(self) -> int:
        return sum(file.size for file in self.files)

    @cached_property
    def by_path(self) -> Mapping[str, ModelFile]:
        return {file.path: file for file in self.files}

    @cached_property
    def text(self) -> bytes:
        """The exact content of MANIFEST.json."""
        document = {
            "format": FORMAT,
            "source": self.source,
            "repo": self.repo,
            "revision": self.revision,
            "commit": self.commit,
            "total": self.total,
            "files": [
                {"path": file.path, "size": file.size, "sha256": file.sha256}
                for file in sorted(self.files)
            ],
        }
        return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"

    @cached_property
    def digest(self) -> str:
        """The sha256 of MANIFEST.json, so that any host can compute it with `sha256sum`."""
        return hashlib.sha256(self.text).hexdigest()

    @property
    def ready(self) -> bytes:
        """The exact content of READY."""
        return self.digest.encode() + b"\n"

    def describes(self, other: Manifest) -> bool:
        """Whether both hold the same files, wherever each says that they are from."""
        return sorted(self.files) == sorted(other.files)


def parse(text: str | bytes, *, where: str) -> Manifest:
    """The manifest of a MANIFEST.json; `where` begins every complaint."""
    try:
        loaded: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _bad(where, "it is not JSON") from error
    fields = _mapping(loaded, where)
    if fields.get("format") != FORMAT:
        raise _bad(where, f"its format is {fields.get('format')!r}, and only {FORMAT} is known")
    listed = fields.get("files")
    if not isinstance(listed, list) or not listed:
        raise _bad(where, "it names no files")
    files = tuple(_file(each, where) for each in cast("list[object]", listed))
    if len({file.path for file in files}) != len(files):
        raise _bad(where, "it names a file twice")
    source = _word(fields, "source", where)
    if source not in _SOURCES:
        raise _bad(where, f"its source {source!r} is not one of {', '.join(_SOURCES)}")
    return Manifest(
        source=source,
        repo=_word(fields, "repo", where),
        revision=_word(fields, "revision", where),
        commit=_word(fields, "commit", where),
        files=tuple(sorted(files)),
    )


def _file(value: object, where: str) -> ModelFile:
    fields = _mapping(value, where)
    path, size, sha256 = fields.get("path"), fields.get("size"), fields.get("sha256")
    if not isinstance(path, str) or path_fault(path) or is_leftover(path):
        raise _bad(where, f"it names a file {str(path)[:80]!r}, which no model may have")
    if type(size) is not int or not 0 <= size < 2**62:
        raise _bad(where, f"the size of {path} is {str(size)[:80]}")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise _bad(where, f"the sha256 of {path} is none")
    return ModelFile(path, size, sha256)


def _mapping(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise _bad(where, "it holds something else than a JSON object")
    return cast("dict[str, object]", value)


def _word(fields: Mapping[str, object], key: str, where: str) -> str:
    value = fields.get(key, "")
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        raise _bad(where, f"its {key} is not a short text")
    return value


def _bad(where: str, why: str) -> UsageError:
    return UsageError(f"{where}: {why}", hint="`vllmdeploy model verify NAME --deep` looks closer")

"""What a hub says about a model, and the lines that travel between us and the process that asks."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any, Literal, cast

Source = Literal["huggingface", "modelscope", "folder"]

USUAL_REVISION: Mapping[str, str] = {"huggingface": "main", "modelscope": "master", "folder": ""}
USUAL_ENDPOINT: Mapping[str, str] = {
    "huggingface": "https://huggingface.co",
    "modelscope": "https://modelscope.cn",
    "folder": "",
}
TOKEN_KEYS: Mapping[str, str] = {
    "huggingface": "HF_TOKEN_FILE",
    "modelscope": "MODELSCOPE_TOKEN_FILE",
}
_HEX = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


class Trouble(Enum):
    """Why a hub did not give what was asked for; decides the words and whether to try again."""

    MISSING = "missing"
    DATASET = "dataset"
    REVISION = "revision"
    GATED = "gated"
    LIMITED = "limited"
    UNREACHABLE = "unreachable"
    CHANGED = "changed"
    LIBRARY = "library"
    LOCAL = "local"
    OTHER = "other"

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed a moment later."""
        return self in (Trouble.LIMITED, Trouble.UNREACHABLE, Trouble.CHANGED)


class HubTrouble(Exception):
    """Raised by the process that asks; the parent words it for people."""

    def __init__(self, trouble: Trouble, message: str, *, after_s: float | None = None) -> None:
        super().__init__(message)
        self.trouble = trouble
        self.message = message
        self.after_s = after_s


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as a hub lists it; -1 is a size that it does not tell.

    Git's own hash is there where the sha256 is not.
    """

    path: str
    size: int
    sha256: str = ""
    git_sha1: str = ""

    @property
    def checkable(self) -> bool:
        return bool(self.sha256 or self.git_sha1)

    def matches(self, found: FileHashes) -> bool:
        """Whether content with these hashes is this file, as far as the hub lets us know."""
        if self.size not in (-1, found.size):
            return False
        if self.sha256:
            return found.sha256 == self.sha256
        return not self.git_sha1 or found.git_sha1 == self.git_sha1


@dataclass(frozen=True, slots=True)
class FileHashes:
    size: int
    sha256: str
    git_sha1: str


class Hasher:
    """Both hashes in one pass. Git's begins with the size, so the size must be known before."""

    def __init__(self, size: int) -> None:
        self._size = 0
        self._sha256 = hashlib.sha256()
        self._git = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)

    def feed(self, data: bytes | memoryview) -> None:
        self._size += len(data)
        self._sha256.update(data)
        self._git.update(data)

    def result(self) -> FileHashes:
        return FileHashes(self._size, self._sha256.hexdigest(), self._git.hexdigest())


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which model, from where. `token` is read from a file and never leaves through argv."""

    source: Source
    repo: str
    revision: str
    endpoint: str = ""
    token: str = field(default="", repr=False)

    def __str__(self) -> str:
        return f"{self.repo} at {self.revision}" if self.revision else self.repo


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A repository at one commit. `faults` are names that no model may have."""

    commit: str
    gated: bool = False
    files: tuple[RemoteFile, ...]
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What the process that asks has to do; without files it lists, else it fetches them."""

    wanted: Wanted
    folder: str = ""
    commit: str = ""
    files: tuple[RemoteFile, ...] = ()
    at_once: int = 8


@dataclass(frozen=True, slots=True)
class Done:
    """One file is there and verified."""

    path: str
    sha256: str
    size: int
    fetched: bool


@dataclass(frozen=True, slots=True)
class Waiting:
    """A file has to be asked for again, and why."""

    path: str
    message: str


@dataclass(frozen=True, slots=True)
class Failed:
    trouble: Trouble
    message: str
    path: str = ""


Report = Listing | Done | Waiting | Failed


def job_line(job: Job) -> bytes:
    return json.dumps(asdict(job)).encode() + b"\n"


def parse_job(line: str | bytes) -> Job:
    """Our own parent wrote it: what does not fit is a bug and may be a KeyError."""
    fields = cast("dict[str, Any]", json.loads(line))
    return Job(
        wanted=Wanted(**fields["wanted"]),
        folder=fields["folder"],
        commit=fields["commit"],
        files=_remote_files(fields["files"]),
        at_once=fields["at_once"],
    )


def report_line(report: Report) -> str:
    fields = asdict(report)
    if isinstance(report, Failed):
        fields["trouble"] = report.trouble.value
    return json.dumps({"report": type(report).__name__, **fields})


def parse_report(line: str) -> Report | None:
    """None for what a library printed by itself."""
    try:
        fields: object = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or "report" not in fields:
        return None
    values = cast("dict[str, Any]", fields)
    return _READERS[values.pop("report")](values)


def _listing(values: dict[str, Any]) -> Report:
    files, faults = _remote_files(values.pop("files")), tuple(values.pop("faults"))
    return Listing(**values, files=files, faults=faults)


def _failed(values: dict[str, Any]) -> Report:
    return Failed(Trouble(values.pop("trouble")), **values)


def _remote_files(items: Sequence[Mapping[str, Any]]) -> tuple[RemoteFile, ...]:
    return tuple(RemoteFile(**item) for item in items)


def checked_hash(value: object) -> str:
    """A hash that a hub named, or nothing if it is none."""
    text = value.lower() if isinstance(value, str) else ""
    return text if _HEX.fullmatch(text) else ""


_READERS: Mapping[str, Callable[[dict[str, Any]], Report]] = {
    "Listing": _listing,
    "Done": lambda values: Done(**values),
    "Waiting": lambda values: Waiting(**values),
    "Failed": _failed,
}

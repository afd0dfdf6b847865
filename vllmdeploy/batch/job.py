"""What an output folder is the output of: it goes on only with the same input and settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from vllmdeploy.batch.durable import replace_file
from vllmdeploy.batch.lines import Survey
from vllmdeploy.errors import UsageError

JOB_NAME = "job.json"
_VERSION = 1
_RESTART = "--restart begins again and drops what is there; -o names another folder"


@dataclass(frozen=True, slots=True)
class Job:
    """`settings` are those that change what a row's result is; how fast it comes is not in them."""

    input: str
    sha256: str
    lines: int
    settings: Mapping[str, str]

    @property
    def digest(self) -> str:
        return settings_digest(self.settings)


def describe(path: Path, found: Survey, settings: Mapping[str, str]) -> Job:
    return Job(str(path.resolve()), found.sha256, found.lines, dict(settings))


def settings_digest(settings: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(settings), sort_keys=True).encode()).hexdigest()


def read_job(folder: Path) -> Job | None:
    path = folder / JOB_NAME
    try:
        stored = cast("dict[str, object]", json.loads(path.read_bytes()))
        if stored["version"] != _VERSION:
            raise UsageError(f"{path}: version {stored['version']!r}", hint=_RESTART)
        job = Job(
            str(stored["input"]),
            str(stored["sha256"]),
            int(cast("int", stored["lines"])),
            {str(k): str(v) for k, v in cast("dict[str, object]", stored["settings"]).items()},
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}", hint=_RESTART) from error
    return job


def write_job(folder: Path, job: Job) -> None:
    stored = {
        "version": _VERSION,
        "input": job.input,
        "sha256": job.sha256,
        "lines": job.lines,
        "settings": dict(job.settings),
        "settings_digest": job.digest,
    }
    replace_file(folder / JOB_NAME, json.dumps(stored, indent=2).encode() + b"\n")


def check_same(folder: Path, stored: Job, wanted: Job) -> None:
    if stored.sha256 != wanted.sha256:
        raise UsageError(
            f"{wanted.input}: the input is not the one that {folder} was begun with\n"
            f"  then {stored.lines} lines, sha256 {stored.sha256[:12]}; "
            f"now {wanted.lines} lines, sha256 {wanted.sha256[:12]}",
            hint=_RESTART,
        )
    keys = sorted({*stored.settings, *wanted.settings})
    changed = [key for key in keys if stored.settings.get(key) != wanted.settings.get(key)]
    if changed:
        words = "; ".join(
            f"{key} was {stored.settings.get(key)!s}, is {wanted.settings.get(key)!s}"
            for key in changed
        )
        raise UsageError(f"{folder}: begun with other settings: {words}", hint=_RESTART)

"""API keys: made here, kept as hashes, shown once."""

from __future__ import annotations

import fcntl
import hashlib
import secrets
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vllmdeploy.errors import UsageError
from vllmdeploy.gateway import keys

PREFIX = "sk-"


@dataclass(frozen=True, slots=True)
class Listed:
    """One key of the file; nothing of the key itself."""

    name: str
    limits: str


def add(path: Path, name: str, options: Sequence[str]) -> str:
    """Append a new key under a new name; its text is returned and stored nowhere."""
    if not keys.NAME.fullmatch(name):
        raise UsageError(f"{name!r} is not a name: up to 64 letters, digits and . _ -")
    if any(len(option.split()) != 1 for option in options):
        raise UsageError("no blanks in the limits of a key")
    key = PREFIX + secrets.token_urlsafe(32)
    digest = hashlib.sha256(key.encode()).hexdigest()
    with _changing(path) as lines:
        if name in {_name(line, number) for number, line in enumerate(lines, 1)}:
            raise UsageError(f"{path}: there is a key named {name}", hint="revoke it first")
        lines.append(" ".join((f"{name}:sha256:{digest}", *options)))
    return key


def revoke(path: Path, name: str) -> None:
    with _changing(path) as lines:
        left = [line for number, line in enumerate(lines, 1) if _name(line, number) != name]
        if len(left) == len(lines):
            raise UsageError(f"{path}: there is no key named {name}")
        lines[:] = left


def listed(path: Path) -> tuple[Listed, ...]:
    lines = _lines(path)
    keys.parse("\n".join(lines), str(path))
    return tuple(
        Listed(name, " ".join(line.split()[1:]))
        for number, line in enumerate(lines, 1)
        if (name := _name(line, number))
    )


def _name(line: str, number: int) -> str:
    """The name as the gateway would call it; empty for what is no key."""
    words = line.split()
    if not words or words[0].startswith("#"):
        return ""
    name, colon, _ = words[0].partition(":")
    return name if colon else f"key-{number}"


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}") from error


@contextmanager
def _changing(path: Path) -> Generator[list[str]]:
    """The file's lines, written back whole: checked, 0600, by rename, one writer at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lines = _lines(path)
        yield lines
        text = "".join(f"{line}\n" for line in lines)
        keys.parse(text, str(path))
        new = path.with_name(f".{path.name}.new")
        new.touch(mode=0o600)
        new.write_text(text, "utf-8")
        new.replace(path)

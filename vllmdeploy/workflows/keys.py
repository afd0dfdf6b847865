"""API keys: made here, kept as hashes, shown once."""

from __future__ import annotations

import fcntl
import hashlib
import secrets
from collections.abc import Callable, Sequence
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


def added(text: str, where: str, name: str, options: Sequence[str]) -> tuple[str, str]:
    """The file's text with a new key under a new name, and the key, which is stored nowhere."""
    if not keys.NAME.fullmatch(name):
        raise UsageError(f"{name!r} is not a name: up to 64 letters, digits and . _ -")
    if any(len(option.split()) != 1 for option in options):
        raise UsageError("no blanks in the limits of a key")
    lines = text.splitlines()
    if name in {_name(line, number) for number, line in enumerate(lines, 1)}:
        raise UsageError(f"{where}: there is a key named {name}", hint="revoke it first")
    key = PREFIX + secrets.token_urlsafe(32)
    digest = hashlib.sha256(key.encode()).hexdigest()
    return _checked([*lines, " ".join((f"{name}:sha256:{digest}", *options))], where), key


def revoked(text: str, where: str, name: str) -> str:
    lines = text.splitlines()
    left = [line for number, line in enumerate(lines, 1) if _name(line, number) != name]
    if len(left) == len(lines):
        raise UsageError(f"{where}: there is no key named {name}")
    return _checked(left, where)


def listed(text: str, where: str) -> tuple[Listed, ...]:
    keys.parse(text, where)
    return tuple(
        Listed(name, " ".join(line.split()[1:]))
        for number, line in enumerate(text.splitlines(), 1)
        if (name := _name(line, number))
    )


def _checked(lines: Sequence[str], where: str) -> str:
    text = "".join(f"{line}\n" for line in lines)
    keys.parse(text, where)
    return text


def _name(line: str, number: int) -> str:
    """The name as the gateway would call it; empty for what is no key."""
    words = line.split()
    if not words or words[0].startswith("#"):
        return ""
    name, colon, _ = words[0].partition(":")
    return name if colon else f"key-{number}"


def read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}") from error


def change(path: Path, changed: Callable[[str], str]) -> None:
    """The file written back whole: 0600, by rename, one writer at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        text = changed(read(path))
        new = path.with_name(f".{path.name}.new")
        new.touch(mode=0o600)
        new.write_text(text, "utf-8")
        new.replace(path)

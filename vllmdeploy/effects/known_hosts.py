"""OpenSSH's known_hosts: which host keys are trusted, under which names, and since which line."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path


@dataclass(frozen=True, slots=True)
class HostKey:
    """A public host key: its kind (`ssh-ed25519`, ...) and its bytes as they go over the wire."""

    kind: str
    blob: bytes

    @property
    def fingerprint(self) -> str:
        """As `ssh-keygen -l` shows it."""
        digest = base64.b64encode(hashlib.sha256(self.blob).digest()).decode().rstrip("=")
        return f"SHA256:{digest}"

    def __str__(self) -> str:
        return f"{self.fingerprint} ({self.kind.removeprefix('ssh-')})"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a known_hosts file."""

    names: tuple[str, ...]
    key: HostKey
    file: Path
    line: int
    revoked: bool = False

    def names_host(self, name: str) -> bool:
        """A pattern with `!` in front excludes, whatever the others say."""
        if any(_matches(each[1:], name) for each in self.names if each.startswith("!")):
            return False
        return any(_matches(each, name) for each in self.names if not each.startswith("!"))

    def __str__(self) -> str:
        return f"{self.key}, {self.file}:{self.line}"


class Trust(Enum):
    KNOWN = "known"
    UNKNOWN = "unknown"
    CHANGED = "changed"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class KnownHosts:
    entries: tuple[Entry, ...] = ()

    @classmethod
    def read(cls, files: Iterable[Path]) -> KnownHosts:
        """Files that are not there hold no keys."""
        found: list[Entry] = []
        for file in files:
            if file.is_file():
                found.extend(entries(file.read_text("utf-8", "replace"), file))
        return cls(tuple(found))

    def of(self, name: str) -> tuple[Entry, ...]:
        return tuple(e for e in self.entries if not e.revoked and e.names_host(name))

    def judge(self, name: str, key: HostKey) -> Trust:
        """A host with any recorded key but this one has changed, also when the kind differs."""
        if any(e.revoked and e.key == key and e.names_host(name) for e in self.entries):
            return Trust.REVOKED
        recorded = self.of(name)
        if any(entry.key == key for entry in recorded):
            return Trust.KNOWN
        return Trust.CHANGED if recorded else Trust.UNKNOWN


def host_name(address: str, port: int) -> str:
    """How known_hosts writes a host: the port only where it is not 22."""
    return address.lower() if port == 22 else f"[{address.lower()}]:{port}"


def entries(text: str, file: Path) -> list[Entry]:
    """The readable lines; what OpenSSH would skip (comments, broken keys, CAs) is skipped too."""
    found: list[Entry] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        marker = words.pop(0) if words and words[0].startswith("@") else ""
        if len(words) < 3 or words[0].startswith("#") or marker not in ("", "@revoked"):
            continue
        try:
            blob = base64.b64decode(words[2], validate=True)
        except binascii.Error:
            continue
        key = HostKey(words[1], blob)
        found.append(Entry(tuple(words[0].split(",")), key, file, number, bool(marker)))
    return found


def entry_line(name: str, key: HostKey) -> str:
    return f"{name} {key.kind} {base64.b64encode(key.blob).decode()}\n"


def without(text: str, names: Sequence[str]) -> str:
    """The text of a known_hosts file less every line that records one of the names."""
    kept = [
        line
        for line in text.splitlines(keepends=True)
        if not any(e.names_host(name) for e in entries(line, Path()) for name in names)
    ]
    return "".join(kept)


def _matches(pattern: str, name: str) -> bool:
    if pattern.startswith("|1|"):
        return _hashed_matches(pattern, name)
    expression = "".join(
        {"*": ".*", "?": "."}.get(character, re.escape(character)) for character in pattern.lower()
    )
    return re.fullmatch(expression, name, re.DOTALL) is not None


def _hashed_matches(pattern: str, name: str) -> bool:
    """`|1|SALT|HASH`, both base64, the hash being HMAC-SHA1 of the name."""
    try:
        salt, digest = (base64.b64decode(part, validate=True) for part in pattern[3:].split("|"))
    except (ValueError, binascii.Error):
        return False
    return hmac.compare_digest(hmac.new(salt, name.encode(), "sha1").digest(), digest)

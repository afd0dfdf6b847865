"""Which names a model and its files may have, and where a model lives on a host."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from vllmdeploy.errors import UsageError

# Inside of a model's folder; never part of the model.
META_FOLDER = ".vllmdeploy"
_INCOMING = ".incoming"
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
# Clients add endings such as `.1a2b3c4d.incomplete` to a name while they write the file.
_LONGEST_PART = 200
_LONGEST_PATH = 1000
# What clients of the hubs and Git leave in a folder beside the model's own files.
_LEFTOVERS = frozenset((META_FOLDER, ".cache", ".git", "._____temp", ".msc", ".mdl", ".mv"))


@dataclass(frozen=True, slots=True)
class ModelPlace:
    """Where one model lives below MODEL_PATH; a half-made copy is never below its name."""

    root: str
    name: str

    @property
    def folder(self) -> str:
        return f"{self.root}/{self.name}"

    @property
    def incoming(self) -> str:
        return f"{self.root}/{_INCOMING}/{self.name}"

    @property
    def lock(self) -> str:
        """No model's name begins with a dot, so it is no model's incoming folder."""
        return f"{self.root}/{_INCOMING}/.{self.name}.lock"

    @property
    def manifest(self) -> str:
        return f"{self.folder}/{META_FOLDER}/MANIFEST.json"


def place_of(root: str, name: str) -> ModelPlace:
    """Refuses every name that could lead anywhere but to a folder of its own in `root`."""
    fault = name_fault(name)
    if fault:
        raise UsageError(
            f"{_shown(name)} cannot be a model's name: {fault}",
            hint="letters, digits, '.', '_' and '-', a letter or digit first; --name gives another",
        )
    return ModelPlace(root.rstrip("/"), name)


def name_fault(name: str) -> str:
    if _bytes(name) > 128:
        return "it is longer than 128 bytes"
    if ".." in name:
        return "it holds '..'"
    if not _MODEL_NAME.fullmatch(name):
        return "only letters, digits, '.', '_' and '-', a letter or digit first"
    return ""


def name_of(repo: str) -> str:
    """The last part of a repository's id or of a folder's path."""
    return PurePosixPath(repo).name


def is_repository(text: str) -> bool:
    return bool(_REPOSITORY.fullmatch(text)) and ".." not in text and "--" not in text


def path_fault(path: str) -> str:
    """Why a file of a model must not have this path, or nothing."""
    parts = path.split("/")
    faults = {
        "it holds a line end, a backslash, or what is not UTF-8 text": (
            not path.isprintable() or "\\" in path or "\ufffd" in path
        ),
        "it is absolute or has an empty part": "" in parts,
        "it holds '.' or '..'": "." in parts or ".." in parts,
        "a part of it begins with '-'": any(part.startswith("-") for part in parts),
        f"it or a part of it is longer than {_LONGEST_PATH} or {_LONGEST_PART} bytes": (
            _bytes(path) > _LONGEST_PATH or any(_bytes(part) > _LONGEST_PART for part in parts)
        ),
    }
    return next((fault for fault, is_so in faults.items() if is_so), "")


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def is_leftover(path: str) -> bool:
    """What hub clients, Git and we ourselves keep beside a model's files."""
    return path.split("/", 1)[0] in _LEFTOVERS


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}...")

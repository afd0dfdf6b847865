"""Models on rig hosts, made and looked at from outside."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.rig.host import Host
from tests.rig.programs import run
from tests.rig.rig import Rig
from vllmdeploy.tools.manifest import Manifest, ModelFile

ROOT = "/srv/models"
MiB = 1024 * 1024


def on_disk(host: Host, path: str = "") -> Path:
    return host.disk.root / ROOT.lstrip("/") / path


def shards(count: int, size: int) -> dict[str, bytes]:
    """Weights that no compression and no delta makes smaller, and the small files beside them."""
    found = {f"model-{number:05}.safetensors": os.urandom(size) for number in range(count)}
    return {**found, "config.json": b"{}\n", "tokenizer/vocab.txt": b"a\nb\n"}


def put(host: Host, name: str, files: Mapping[str, bytes]) -> Manifest:
    """A whole model with its READY, as `model download` leaves it."""
    folder = on_disk(host, name)
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    manifest = Manifest(
        source="folder",
        repo="",
        files=tuple(
            ModelFile(path, len(content), hashlib.sha256(content).hexdigest())
            for path, content in sorted(files.items())
        ),
    )
    meta = folder / ".vllmdeploy"
    meta.mkdir()
    (meta / "MANIFEST.json").write_bytes(manifest.text)
    (meta / "READY").write_bytes(manifest.ready)
    return manifest


def is_whole(host: Host, name: str, manifest: Manifest) -> bool:
    """READY, and every single byte as the manifest says, and nothing beside."""
    folder = on_disk(host, name)
    ready = folder / ".vllmdeploy/READY"
    if not ready.exists() or ready.read_bytes() != manifest.ready:
        return False
    found = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.parent.name != ".vllmdeploy"
    }
    return found == {file.path: file.sha256 for file in manifest.files}


def leftovers(host: Host) -> list[str]:
    """Whatever a sync left that is neither a model nor an empty folder."""
    root = on_disk(host)
    found = [path for path in root.rglob("*") if path.is_file()]
    return [
        str(path.relative_to(root))
        for path in found
        if ".incoming" in path.parts or ".~tmp~" in path.name or path.match(".*.??????")
    ]


def came(host: Host, name: str) -> int:
    """Bytes of weights of an unfinished copy, those of files that grow in ranges included."""
    folder = on_disk(host, f".incoming/{name}")
    found = (path.stat() for path in folder.rglob("*.safetensors") if "came" not in path.parts)
    return sum(min(each.st_size, each.st_blocks * 512) for each in found)


def kill_copies(host: Host, signal: str) -> None:
    host.sh(f"pkill -{signal} '^(rsync|dd)$'")


# A mount is cloned here, carried into the other host's namespace, and put down there: what a
# network file system looks like to both.
_CARRY = """
import ctypes, os, sys
source, init, target = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
def called(name, answer):
    if answer < 0: raise OSError(ctypes.get_errno(), name)
    return answer
tree = called("open_tree", libc.syscall(428, -100, source.encode(), 1 | 0o2000000))
namespace = os.open(f"/proc/{init}/ns/mnt", os.O_RDONLY)
called("setns", libc.setns(namespace, 0))
called("move_mount", libc.syscall(429, tree, b"", -100, target.encode(), 4))
"""


@contextmanager
def shared(owner: Host, other: Host) -> Generator[None]:
    """The models of one host are seen by another under the same path."""
    for host in (owner, other):
        on_disk(host).mkdir(parents=True, exist_ok=True)
    init = other.enter()[2]
    run((sys.executable, "-c", _CARRY, str(on_disk(owner)), init, ROOT))
    try:
        yield
    finally:
        other.sh('umount "$1"', ROOT)


def sync(rig: Rig, folder: Path, name: str, *more: str, limit_s: float = 120) -> dict[str, Any]:
    """`model sync --json`, with its exit code and words."""
    done = rig.vllmdeploy(
        "model", "sync", name, "--yes", "--json", *more, folder=folder, limit_s=limit_s
    )
    document: dict[str, Any] = json.loads(done.stdout) if done.stdout.startswith("{") else {}
    return {**document, "status": done.returncode, "said": done.stderr}

"""Images on rig hosts, made and looked at from outside."""

from __future__ import annotations

import ensurepip
import json
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.rig import base
from tests.rig.host import Host
from tests.rig.rig import Rig

MiB = 1024 * 1024
_WHEELS = Path("/usr/share/python-wheels")  # where Debian keeps those of its own Python
_LAYER = """
docker run --name making --network none "$1" sh -c "head -c $3 /dev/urandom > /$4" \
  && docker commit making "$2" && docker rm making
"""


def put(host: Host, name: str, size: int, *, on: str = base.IMAGE) -> str:
    """An image with one layer of so many random bytes on top of another; its id."""
    host.sh(_LAYER, on, name, str(size), name.replace(":", "-"), limit_s=120)
    return id_of(host, name)


def id_of(host: Host, name: str) -> str:
    said = host.sh('docker image inspect --format "{{.Id}}" "$1"', name, check=False)
    return said.stdout.strip()


def runs(host: Host, image: str, *argv: str) -> str:
    words = " ".join(argv)
    return host.sh(f'docker run --rm --network none "$1" {words}', image, limit_s=60).stdout.strip()


def push(rig: Rig, folder: Path, name: str, *more: str, limit_s: float = 180) -> dict[str, Any]:
    """`image push --json`, with its exit code and words."""
    argv = ("image", "push", name, "--yes", "--json", *more)
    done = rig.vllmdeploy(*argv, folder=folder, limit_s=limit_s)
    document: dict[str, Any] = json.loads(done.stdout) if done.stdout.startswith("{") else {}
    return {**document, "status": done.returncode, "said": done.stderr}


def staged(host: Host) -> list[Path]:
    """The pieces of images that lie on a host."""
    folder = host.disk.root / "var/lib/vllmdeploy/vllm/images"
    return [path for path in folder.rglob("*") if path.is_file()]


def staged_bytes(host: Host) -> int:
    """Of a push that goes on: what it has just taken away counts nothing."""
    found = 0
    for path in staged(host):
        with suppress(FileNotFoundError):
            found += path.stat().st_size
    return found


_VLLM = """
packages=$(python3 -c 'import sys; print("/usr/local/lib/python%d.%d" % sys.version_info[:2])')
packages=$packages/dist-packages
docker run --name making --network none "$1" sh -c "mkdir -p $packages/vllm \
  $packages/vllm-0.33.0.dist-info && touch $packages/vllm/__init__.py \
  && printf 'Metadata-Version: 2.1\\nName: vllm\\nVersion: 0.33.0\\n' \
  > $packages/vllm-0.33.0.dist-info/METADATA && touch $packages/vllm-0.33.0.dist-info/RECORD" \
  && docker commit making "$2" && docker rm making
"""


def put_with_vllm(host: Host, name: str) -> str:
    """As much of vLLM as a stock image shows to whoever looks at versions only."""
    host.sh(_VLLM, base.IMAGE, name, limit_s=60)
    return id_of(host, name)


def python_of(host: Host) -> tuple[int, int]:
    """Of the rig's own image, which holds what the host has."""
    said = host.sh("python3 -c 'import sys; print(*sys.version_info[:2])'").stdout.split()
    return int(said[0]), int(said[1])


def wheels(folder: Path, version: str, *, python: tuple[int, int]) -> Path:
    """A Ray that can say its version, with what the extra `default` needs, and a real pip."""
    folder.mkdir()
    own = Path(ensurepip.__file__).parent / "_bundled"
    pip = next(found for place in (own, _WHEELS) for found in place.glob("pip-*.whl"))
    shutil.copy2(pip, folder)
    text = f"__version__ = {version!r}\n"
    extra = "Provides-Extra: default\nRequires-Dist: beside; extra == 'default'\n"
    tag = f"cp{python[0]}{python[1]}"
    _wheel(folder, "ray", version, f"{tag}-{tag}-manylinux2014_x86_64", text, extra)
    _wheel(folder, "beside", "1.0", "py3-none-any", "")
    return folder


def _wheel(folder: Path, name: str, version: str, tags: str, text: str, more: str = "") -> None:
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-{tags}.whl", "w") as wheel:
        wheel.writestr(f"{name}/__init__.py", text)
        head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{more}"
        wheel.writestr(f"{info}/METADATA", head)
        tag = f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: false\nTag: {tags}\n"
        wheel.writestr(f"{info}/WHEEL", tag)
        wheel.writestr(f"{info}/RECORD", "")

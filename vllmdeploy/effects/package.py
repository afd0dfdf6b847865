"""Builds the zip this package travels to hosts as: same sources, same bytes, on any machine."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import vllmdeploy

PACKAGE = "vllmdeploy"
TRAVELS = ("batch", "client", "core", "gateway", "node", "routing", "wire")
_MODULES = ("__init__.py", "errors.py")
# vLLM finds platforms through installed metadata, for which a zip on PYTHONPATH is good enough.
_METADATA = {
    "METADATA": "Metadata-Version: 2.1\nName: vllmdeploy-node\nVersion: {version}\n",
    "entry_points.txt": "[vllm.platform_plugins]\n"
    "vllmdeploy_cpu = vllmdeploy.node.cpu_platform:wanted\n",
}
_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip can hold
_PLAIN_FILE = 0o100644 << 16


@dataclass(frozen=True, slots=True)
class Package:
    content: bytes = field(repr=False)
    sha12: str


def build() -> Package:
    """Stored, not compressed: compressors differ between machines, and the name is a digest."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in sorted(_sources()):
            entry = zipfile.ZipInfo(name, _LONG_AGO)
            entry.external_attr = _PLAIN_FILE
            entry.create_system = 3  # Unix, whatever the operator's machine is
            archive.writestr(entry, content)
    content = buffer.getvalue()
    return Package(content, hashlib.sha256(content).hexdigest()[:12])


def _sources() -> Iterator[tuple[str, bytes]]:
    root = Path(vllmdeploy.__file__).parent
    layers = (path for layer in TRAVELS for path in root.joinpath(layer).rglob("*.py"))
    for path in (*(root / name for name in _MODULES), *layers):
        yield f"{PACKAGE}/{path.relative_to(root).as_posix()}", path.read_bytes()
    version = vllmdeploy.__version__
    for name, text in _METADATA.items():
        folder = f"vllmdeploy_node-{version}.dist-info"
        yield f"{folder}/{name}", text.format(version=version).encode()

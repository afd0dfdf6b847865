"""An image registry with one image under one moving tag, for pulls only."""

from __future__ import annotations

import gzip
import hashlib
import json
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@dataclass(slots=True)
class Registry:
    """`tagged`: the manifests that the tag means, one host after the other; the last one stays."""

    address: str = ""
    blobs: dict[str, bytes] = field(default_factory=dict[str, bytes])
    tagged: list[bytes] = field(default_factory=list[bytes])
    met: dict[str, bytes] = field(default_factory=dict[str, bytes])
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, layer: bytes, arch: str = "amd64") -> None:
        """One more image of one layer (a tar) that the tag will mean."""
        packed = gzip.compress(layer, mtime=0)
        made = {"architecture": arch, "os": "linux", "config": {"Cmd": ["/x"]}}
        made["rootfs"] = {"type": "layers", "diff_ids": [_digest(layer)]}
        config = json.dumps(made).encode()
        kinds = ("container.image.v1+json", "image.rootfs.diff.tar.gzip")
        described = [
            {
                "mediaType": f"application/vnd.docker.{kind}",
                "size": len(one),
                "digest": self._kept(one),
            }
            for kind, one in zip(kinds, (config, packed), strict=True)
        ]
        manifest = {"schemaVersion": 2, "mediaType": _MANIFEST, "config": described[0]}
        self.tagged.append(json.dumps({**manifest, "layers": described[1:]}).encode())
        self._kept(self.tagged[-1])

    def _kept(self, content: bytes) -> str:
        self.blobs[_digest(content)] = content
        return _digest(content)

    def meant(self, host: str) -> bytes:
        """What the tag means to this host: it moves whenever another one asks."""
        with self._lock:
            at = min(len(self.met), len(self.tagged) - 1)
            return self.met.setdefault(host, self.tagged[at])


def _handler(registry: Registry) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def _answer(self, *, body: bool) -> None:
            kind, _, reference = self.path.rpartition("/")
            content: bytes | None = registry.blobs.get(reference)
            if kind.endswith("/manifests") and content is None:
                content = registry.meant(str(self.client_address[0]))
            if self.path.rstrip("/") == "/v2":
                content = b"{}"
            manifest = kind.endswith("/manifests")
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Type", _MANIFEST if manifest else "application/octet-stream")
            self.send_header("Content-Length", str(len(content or b"")))
            if content is not None and manifest:
                self.send_header("Docker-Content-Digest", _digest(content))
            self.end_headers()
            if body and content:
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Who asked for what is told by `met`."""

    return Handler


@contextmanager
def registry(host: str, layers: Sequence[bytes]) -> Generator[Registry]:
    """Plain HTTP on a free port of this address; `address` is how images there are named."""
    made = Registry()
    for layer in layers:
        made.add(layer)
    server = ThreadingHTTPServer((host, 0), _handler(made))
    made.address = f"{host}:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        thread.join(timeout=10)
        server.server_close()

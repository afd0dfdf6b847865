"""A hub on loopback that speaks both hubs' protocols and misbehaves when told to."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass
class HubRepo:
    """One repository. Files of `lfs` are served by a redirect, with their sha256 in the listing.

    A file in `cut` is cut in the middle that many times; `limited` answers so often with 429;
    a file in `spoiled` comes with other bytes than listed, that many times; `huge` are files that
    are only listed, with their sizes.
    """

    files: dict[str, bytes]
    commit: str = COMMIT
    lfs: tuple[str, ...] = (".safetensors", ".bin", ".gguf")
    gated: bool = False
    token: str = ""
    dataset: bool = False
    limited: int = 0
    cut: dict[str, int] = field(default_factory=dict[str, int])
    spoiled: dict[str, int] = field(default_factory=dict[str, int])
    huge: dict[str, int] = field(default_factory=dict[str, int])

    def is_lfs(self, path: str) -> bool:
        return path.endswith(self.lfs)


@dataclass
class Hub:
    """What the server knows; tests change it while it runs.

    With `hold` set, large content stops in the middle until the event comes; `held` counts them.
    """

    repos: dict[str, HubRepo]
    endpoint: str = ""
    content: str = ""
    asked: list[str] = field(default_factory=list[str])
    hold: threading.Event | None = None
    held: threading.Semaphore = field(default_factory=threading.Semaphore)

    def downloads(self) -> list[str]:
        """Paths of the files whose content was asked for, in order."""
        return [line.partition(" ")[2] for line in self.asked if line.startswith("CONTENT ")]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def hub_server(**repos: HubRepo) -> Generator[Hub]:
    """Names are written OWNER__NAME, since they are Python's."""
    hub = Hub({name.replace("__", "/"): repo for name, repo in repos.items()})

    class Handler(_Handler):
        known = hub

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that left is no news."""

    # The hub answers with where the content is, which is on some other host.
    servers = [Server(("127.0.0.1", 0), Handler) for _ in range(2)]
    hub.endpoint, hub.content = (f"http://127.0.0.1:{each.server_port}" for each in servers)
    for each in servers:
        threading.Thread(target=each.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield hub
    finally:
        if hub.hold:
            hub.hold.set()
        for each in servers:
            each.shutdown()
            each.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    known: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on stderr."""

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        self.known.asked.append(f"{self.command} {path}")
        routes = (
            (r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", self._model),
            (r"/api/datasets/([^/]+/[^/]+)", self._dataset),
            (r"/api/v1/models/([^/]+/[^/]+)/repo/files", self._scope_files),
            (r"/api/v1/models/([^/]+/[^/]+)/repo", self._scope_content),
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._resolve),
            (r"/cdn/([^/]+/[^/]+)/(.+)", self._cdn),
        )
        for pattern, serve in routes:
            found = re.fullmatch(pattern, path)
            if found:
                serve(query, *found.groups())
                return
        self._refuse(404, "EntryNotFound")

    def _repo(self, name: str, *, dataset: bool = False) -> HubRepo | None:
        repo = self.known.repos.get(name)
        if repo is None or repo.dataset != dataset:
            self._refuse(404, "RepoNotFound", "Repository not found")
            return None
        if repo.limited:
            repo.limited -= 1
            self._send(429, b"{}", {"Retry-After": "0"})
            return None
        return repo

    def _model(self, query: dict[str, list[str]], name: str, revision: str | None) -> None:
        del query
        repo = self._repo(name)
        if repo is None:
            return
        if revision not in (None, "main", repo.commit):
            self._refuse(404, "RevisionNotFound")
            return
        siblings = [
            {
                "rfilename": path,
                "size": len(content),
                "blobId": git_sha1(content),
                **(
                    {"lfs": {"sha256": sha256(content), "size": len(content), "pointerSize": 134}}
                    if repo.is_lfs(path)
                    else {}
                ),
            }
            for path, content in repo.files.items()
        ]
        siblings += [{"rfilename": path, "size": size} for path, size in repo.huge.items()]
        gated = "manual" if repo.gated else False
        document = {"id": name, "sha": repo.commit, "gated": gated, "siblings": siblings}
        self._send(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _dataset(self, query: dict[str, list[str]], name: str) -> None:
        del query
        if self._repo(name, dataset=True):
            self._send(200, json.dumps({"id": name, "siblings": []}).encode())

    def _resolve(self, query: dict[str, list[str]], name: str, revision: str, path: str) -> None:
        del query
        repo = self._repo(name)
        if repo is None:
            return
        if revision not in ("main", repo.commit):
            self._refuse(404, "RevisionNotFound")
            return
        if self._locked(repo):
            return
        content = repo.files.get(path)
        if content is None:
            self._refuse(404, "EntryNotFound")
            return
        facts = {"X-Repo-Commit": repo.commit}
        if repo.is_lfs(path):
            facts |= {
                "X-Linked-Etag": f'"{sha256(content)}"',
                "X-Linked-Size": str(len(content)),
                "Location": f"{self.known.content}/cdn/{name}/{path}",
            }
            self._send(302, b"", facts)
            return
        self._content(repo, path, {**facts, "ETag": f'"{git_sha1(content)}"'})
        return

    def _cdn(self, query: dict[str, list[str]], name: str, path: str) -> None:
        del query
        self._content(self.known.repos[name], path, {})

    def _scope_files(self, query: dict[str, list[str]], name: str) -> None:
        repo = self._repo(name)
        if repo is None:
            return
        if self._locked(repo):
            return
        if query.get("Revision", ["master"])[0] != "master":
            self._refuse(404, "RevisionNotFound")
            return
        files = [
            {
                "Path": path,
                "Name": path.rpartition("/")[2],
                "Size": len(content),
                "Sha256": sha256(content),
                "Type": "blob",
                "Revision": repo.commit,
                "CommittedDate": 1_700_000_000,
            }
            for path, content in repo.files.items()
        ]
        document = {"Code": 200, "Success": True, "Message": "success", "Data": {"Files": files}}
        self._send(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _scope_content(self, query: dict[str, list[str]], name: str) -> None:
        repo = self._repo(name)
        path = query.get("FilePath", [""])[0]
        if repo is None or self._locked(repo):
            return
        if path not in repo.files:
            self._refuse(404, "EntryNotFound")
            return
        self._content(repo, path, {})
        return

    def _content(self, repo: HubRepo, path: str, headers: dict[str, str]) -> None:
        content = repo.files[path]
        if self.command == "GET":
            self.known.asked.append(f"CONTENT {path}")
            if repo.spoiled.get(path):
                repo.spoiled[path] -= 1
                content = bytes(len(content))
        start, status = 0, 200
        wanted = _RANGE.fullmatch(self.headers.get("Range", ""))
        if wanted:
            start, status = int(wanted[1]), 206
            end = int(wanted[2]) + 1 if wanted[2] else len(content)
            headers |= {"Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
            content = content[start:end]
        if self.command == "GET" and repo.cut.get(path):
            repo.cut[path] -= 1
            self._send(status, content, headers, only=len(content) // 2)
            return
        self._send(status, content, headers)
        return

    def _locked(self, repo: HubRepo) -> bool:
        given = self.headers.get("Authorization")
        if not repo.gated or given == f"Bearer {repo.token}":
            return False
        self._refuse(403 if given else 401, "GatedRepo", "Access to this model is restricted")
        return True

    def _refuse(self, status: int, code: str, message: str = "") -> None:
        document = {"error": message or code, "Code": status, "Message": message or code}
        headers = {"X-Error-Code": code, "X-Error-Message": message or code}
        self._send(status, json.dumps(document).encode(), headers)

    def _send(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, *, only: int = -1
    ) -> None:
        """`only` so many bytes of the body leave, and then the connection is cut."""
        self.send_response(status)
        for name, value in {**(headers or {}), "Accept-Ranges": "bytes"}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.known.hold and status in (200, 206) and len(body) > 100_000:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.known.held.release()
            self.known.hold.wait(60)
            self.close_connection = True
            return
        if only >= 0:
            self.wfile.write(body[:only])
            self.close_connection = True
            return
        self.wfile.write(body)

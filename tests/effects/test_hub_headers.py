"""Against a hub on loopback that serves ranges, redirects, refuses, or ignores the range."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from vllmdeploy.effects.hub_headers import Repository, model_on
from vllmdeploy.errors import UsageError
from vllmdeploy.tools.safetensors import Tensor

CONFIG = b'{"model_type": "llama"}'
ENTRY = {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}


def weights(name: str, *, padding: int = 0) -> bytes:
    header = json.dumps({"__metadata__": {"p": "x" * padding}, name: ENTRY}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(12)


@contextmanager
def hub(
    files: dict[str, bytes], *, ranges: bool = True, refused: int = 0
) -> Generator[tuple[Repository, list[str]]]:
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.path} {self.headers.get('Range', '')}".strip())
            if refused:
                return self.respond(refused, b"")
            if self.path.startswith("/owner/"):
                self.send_response(302)
                self.send_header("Location", f"/cdn/{self.path.rpartition('/')[2]}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            body = files.get(self.path.rpartition("/")[2])
            if body is None:
                return self.respond(404, b"")
            wanted = self.headers.get("Range")
            if wanted and ranges:
                end = int(wanted.rpartition("-")[2]) + 1
                return self.respond(206, body[:end], f"bytes 0-{end - 1}/{len(body)}")
            return self.respond(200, body)

        def respond(self, status: int, body: bytes, content_range: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if content_range:
                self.send_header("Content-Range", content_range)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing on stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield Repository(name="owner/model", endpoint=endpoint), asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def tensor(name: str) -> Tensor:
    return Tensor(name=name, dtype="BF16", shape=(2, 3), size=12)


@pytest.mark.parametrize("ranges", [True, False])
def test_one_file_is_read_by_its_beginning(ranges: bool) -> None:
    files = {"config.json": CONFIG, "model.safetensors": weights("a")}
    with hub(files, ranges=ranges) as (repository, asked):
        text, found = model_on(repository)
    assert text == CONFIG.decode()
    assert (found.tensors, found.total_bytes) == ((tensor("a"),), 12)
    assert "/cdn/model.safetensors bytes=0-1048575" in asked


def test_the_index_names_the_files_and_their_order_is_kept() -> None:
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    files = {
        "config.json": CONFIG,
        "model.safetensors.index.json": json.dumps(index).encode(),
        "1.safetensors": weights("a"),
        "2.safetensors": weights("b"),
    }
    with hub(files) as (repository, _):
        assert model_on(repository)[1].tensors == (tensor("a"), tensor("b"))


def test_a_long_header_takes_a_second_request() -> None:
    files = {"config.json": CONFIG, "model.safetensors": weights("a", padding=2_000_000)}
    with hub(files) as (repository, asked):
        assert model_on(repository)[1].tensors == (tensor("a"),)
    assert len([line for line in asked if line.startswith("/cdn/model.safetensors ")]) == 2


def test_a_gated_model_says_how_to_get_in() -> None:
    with (
        hub({}, refused=401) as (repository, _),
        pytest.raises(UsageError, match=r"the hub wants a token that may read it \(401\)"),
    ):
        model_on(repository)


def test_a_failing_hub_is_named() -> None:
    with (
        hub({}, refused=503) as (repository, _),
        pytest.raises(UsageError, match=r"config\.json: the hub answered 503"),
    ):
        model_on(repository)


@pytest.mark.parametrize("files", [{}, {"config.json": CONFIG}])
def test_a_file_that_is_not_there_is_named(files: dict[str, bytes]) -> None:
    with hub(files) as (repository, _), pytest.raises(UsageError, match="has no such file"):
        model_on(repository)


def test_a_file_cut_off_inside_its_header_is_refused() -> None:
    files = {"config.json": CONFIG, "model.safetensors": weights("a")[:20]}
    with hub(files) as (repository, _), pytest.raises(UsageError, match="it ends at 20 bytes"):
        model_on(repository)


def test_nobody_there_is_said_with_a_way_out() -> None:
    with hub({}) as (repository, _):
        pass
    with pytest.raises(UsageError, match=r"HF_ENDPOINT in config\.env names another one"):
        model_on(repository)


def test_a_token_goes_into_no_text() -> None:
    assert "hf_secret" not in repr(Repository(name="a/b", token="hf_secret"))

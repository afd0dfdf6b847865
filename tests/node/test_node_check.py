"""An engine asked by itself: its port, its health, its models, one token."""

from __future__ import annotations

import http.server
import json
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.node.engine import Engine
from vllmdeploy.node import ctl
from vllmdeploy.node.spec import HttpProbe
from vllmdeploy.node.warden import assignment, parser

ROUTE = "/v1/completions"
BODY = json.dumps({"model": "tiny", "prompt": "a", "max_tokens": 1})


class Listing(Engine):
    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self._answer(200, '{"data": [{"id": "tiny"}]}')
        else:
            super().do_GET()


@contextmanager
def engine(orders: Path) -> Generator[str]:
    handler = type("Told", (Listing,), {"orders": orders})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_one_that_is_well_lists_its_models(tmp_path: Path) -> None:
    with engine(tmp_path) as url:
        assert ctl.checked(url, ROUTE, BODY) == {"wrong": {}, "models": ["tiny"]}


def test_each_question_that_fails_is_named(tmp_path: Path) -> None:
    for order in ("unhealthy", "dumb"):
        (tmp_path / order).touch()
    with engine(tmp_path) as url:
        said = ctl.checked(url, ROUTE, BODY)
    assert said["wrong"] == {"/health": "status 503", ROUTE: "status 500"}


def test_a_port_where_nobody_listens_is_asked_no_further() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    said = ctl.checked(f"http://127.0.0.1:{port}", ROUTE, BODY)
    assert said == {"wrong": {f"port {port}": "connection refused"}, "models": []}


def test_it_is_asked_from_the_command_line_of_its_host(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with engine(tmp_path) as url:
        assert ctl.main(("--run", str(tmp_path), "check", url, ROUTE, BODY)) == 0
    assert json.loads(capsys.readouterr().out)["models"] == ["tiny"]


def test_an_instances_warden_asks_for_a_token_where_it_is_told_to() -> None:
    words = (
        *("--name", "i", "--role", "instance", "--run", "/r", "--logs", "/l"),
        *("--health-url", "http://h:1/health", "--metrics-url", "http://h:1/metrics"),
        *("--canary-url", "http://h:1/c", "--canary-body", "{}", "--", "serve"),
    )
    main = assignment(parser().parse_args(words)).main
    assert main is not None
    assert main.ready == HttpProbe(
        health_url="http://h:1/health",
        metrics_url="http://h:1/metrics",
        canary_url="http://h:1/c",
        canary_body="{}",
    )

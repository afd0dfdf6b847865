"""The pages of services as their own host asks for them, by a real Python and a real server."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from vllmdeploy.tools import http_page


class Answers:
    """What a server says, one answer after another; the last one for ever."""

    def __init__(self, *bodies: str, status: int = 200, length: int | None = None) -> None:
        self.bodies, self.status, self.length = list(bodies), status, length
        self.asked: list[str] = []


@contextmanager
def serving(answers: Answers) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answers.asked.append(self.path)
            body = answers.bodies[min(len(answers.asked), len(answers.bodies)) - 1].encode()
            self.send_response(answers.status)
            if answers.length is not None:
                self.send_header("Content-Length", str(answers.length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def said(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    assert argv[0] == "python3"
    return subprocess.run(
        [sys.executable, *argv[1:]], capture_output=True, text=True, timeout=30, check=False
    )


def health(ready: int) -> str:
    return json.dumps({"models": {"a model": {"instances": {"ready": ready}}}})


def test_a_page_is_printed() -> None:
    with serving(Answers("vllm:num_requests_running 1.0\n", length=30)) as url:
        done = said(http_page.page(f"{url}/metrics"))
    assert (done.returncode, done.stdout) == (0, "vllm:num_requests_running 1.0\n\n")


def test_a_page_without_a_length_ends_with_its_connection() -> None:
    answers = Answers("größer als eine Zeile\n" * 9000)
    with serving(answers) as url:
        done = said(http_page.page(url))
    assert (done.returncode, done.stdout) == (0, answers.bodies[0] + "\n")
    assert answers.asked == ["/"]


def test_what_is_cut_or_answered_with_an_error_is_no_page() -> None:
    for answers in (Answers("half", length=8), Answers("broken", status=500)):
        with serving(answers) as url:
            done = said(http_page.page(url))
        assert done.returncode == 1, answers.bodies
        assert done.stdout == "", answers.bodies


def test_nobody_there_is_an_error() -> None:
    done = said(http_page.page("http://127.0.0.1:9"))
    assert done.returncode == 1
    assert "ConnectionRefusedError" in done.stderr


def test_health_is_asked_until_all_are_ready_whatever_its_status() -> None:
    answers = Answers(health(0), health(1), health(2), status=503)
    with serving(answers) as url:
        done = said(http_page.health(f"{url}/health", {"a model": 2}, held_s=20))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(health(2))
    assert answers.asked == ["/health"] * 3


def test_health_is_told_late_where_nothing_comes_and_at_once_where_nothing_is_wanted() -> None:
    with serving(Answers(health(0))) as url:
        began = time.monotonic()
        for ready in ({"a model": 1}, {"another": 1}):
            done = said(http_page.health(f"{url}/health", ready, held_s=0.5))
            assert json.loads(done.stdout) == json.loads(health(0)), done.stderr
        assert time.monotonic() - began >= 1.0
        done = said(http_page.health(f"{url}/health", {}, held_s=600))
    assert json.loads(done.stdout) == json.loads(health(0)), done.stderr


def test_health_of_something_else_is_an_error_at_once() -> None:
    for body in ("<html>", "[]", '{"models": {"m": 1}}'):
        with serving(Answers(body)) as url:
            done = said(http_page.health(url, {"m": 1}, held_s=600))
        assert (done.returncode, done.stdout) == (1, ""), body


def test_several_pages_come_together_and_what_cannot_be_had_is_empty() -> None:
    with (
        serving(Answers("one")) as one,
        serving(Answers("two", status=500)) as two,
        serving(Answers("three", length=8)) as three,
    ):
        urls = {"one": one, "two": two, "three": three, "nobody": "http://127.0.0.1:9/metrics"}
        done = said(http_page.several(urls))
    assert json.loads(done.stdout) == {"one": "one", "two": "", "three": "", "nobody": ""}


def test_a_page_is_read_twice_with_the_time_between() -> None:
    with serving(Answers("first", "second")) as url:
        done = said(http_page.twice(url))
    first, second, seconds = json.loads(done.stdout)
    assert (first, second) == ("first", "second")
    assert seconds >= 1

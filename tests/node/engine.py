"""A stand-in for an inference server: /health, a completion, /metrics; told what to do by files.

It runs as a child of a warden under test, so it takes its orders from a folder: a file named
after a misbehaviour switches it on.
"""

from __future__ import annotations

import http.server
import os
import sys
from pathlib import Path


class Engine(http.server.BaseHTTPRequestHandler):
    orders: Path

    def do_GET(self) -> None:
        if self.path == "/health":
            self._answer(503 if (self.orders / "unhealthy").exists() else 200, "")
        elif self.path == "/metrics":
            self._answer(200, "vllm:num_requests_running 0\nvllm:generation_tokens_total 1\n")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        if (self.orders / "fragile").exists():
            os._exit(1)
        self._answer(500 if (self.orders / "dumb").exists() else 200, '{"choices": []}')

    def _answer(self, status: int, body: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:
        return


def main(folder: str, port: str) -> None:
    Engine.orders = Path(folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Engine)
    sys.stdout.write("serving\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])

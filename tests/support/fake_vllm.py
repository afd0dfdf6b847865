"""A stand-in for vLLM as a program: its command line, its server, and what it is asked about.

Installed as a package `vllm` into an environment of its own, where wardens start it as they would
the real one. A flag `--seed 13` makes it load and then fail, as a bad version does; with
`--seed 17` it loads, says that it is well, and ends at the first request, as vLLM does: with
status 0.
"""

from __future__ import annotations

import http.server
import itertools
import json
import os
import sys
import time

BAD_SEED = "13"
FRAIL_SEED = "17"
LOADS_S = 1.0
ANSWERS_S = 0.02


class Engine(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/metrics":
            return self._answer("vllm:num_requests_running 0\nvllm:generation_tokens_total 1\n")
        return self._answer('{"data": []}')

    frail = False

    def do_POST(self) -> None:
        if self.frail:
            sys.stdout.write("EngineDeadError: CUDA error: an illegal memory access\n")
            sys.stdout.flush()
            os._exit(0)
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        time.sleep(ANSWERS_S)
        choice = {"index": 0, "text": " Paris", "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        body = {"id": "x", "object": "text_completion", "created": 1, "model": "m"}
        self._answer(json.dumps({**body, "choices": [choice], "usage": usage}))

    def _answer(self, body: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:
        return


def main(argv: list[str]) -> int:
    given = dict(itertools.pairwise(argv))
    sys.stdout.write(f"loading {argv[1]}\n")
    sys.stdout.flush()
    time.sleep(LOADS_S)
    if given.get("--seed") == BAD_SEED:
        sys.stdout.write("RuntimeError: these weights are not for this model\n")
        return 1
    Engine.frail = given.get("--seed") == FRAIL_SEED
    server = http.server.ThreadingHTTPServer((given["--host"], int(given["--port"])), Engine)
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""An engine for Ray's nodes: answers as vLLM does, and ends itself when a row says so.

python -m tests.batch.fake_engine IP PORT
"""

from __future__ import annotations

import http.server
import json
import os
import sys
from typing import Any

DIE = "die now"


class Engine(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(200, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.headers["authorization"] != f"Bearer {os.environ['VLLM_API_KEY']}":
            self._answer(403, {"error": "the key"})
            return
        prompt = body["messages"][0]["content"]
        if prompt == DIE and not os.path.exists(os.environ["DIED"]):  # noqa: PTH110
            with open(os.environ["DIED"], "w", encoding="utf-8"):  # noqa: PTH123
                os._exit(9)
        message = {"role": "assistant", "content": f"{body['model']}: {prompt}"}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        self._answer(200, {"id": "x", "choices": choices})

    def _answer(self, status: int, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


if __name__ == "__main__":
    http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Engine).serve_forever()

"""A vLLM that only pretends, as an installed package: its command line, its HTTP API, its end."""

from __future__ import annotations

import sys
from pathlib import Path

_ARGUMENTS = """
def add(parser):
    for name in ('--max-model-len', '--max-num-seqs', '--gpu-memory-utilization', '--die'):
        parser.add_argument(name)
    parser.add_argument('--max-model-len'); parser.add_argument('--die')
    parser.add_argument('--nnodes'); parser.add_argument('--headless')
"""
SERVER = """
import http.server, json, sys
words = sys.argv
if "--die" in words:
    sys.exit("ValueError: no room for a cache")
names = words[words.index("--served-model-name") + 1 : words.index("--host")]
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self, body, kind="application/json"):
        data = body.encode()
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def do_GET(self):
        if self.path == "/v1/models":
            self.answer(json.dumps({"object": "list", "data": [{"id": one} for one in names]}))
        elif self.path == "/metrics":
            self.answer('vllm:num_requests_running{} 0.0\\n', "text/plain")
        else:
            self.answer("")
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        choice = {"index": 0, "text": " Paris", "finish_reason": "length"}
        self.answer(json.dumps({"id": "1", "object": "text_completion", "created": 1,
                                "model": asked["model"], "choices": [choice], "usage": usage}))
    def log_message(self, form, *words):
        print(form % words, flush=True)
host, port = words[words.index("--host") + 1], int(words[words.index("--port") + 1])
print("Loading weights took 0.01 seconds", flush=True)
http.server.ThreadingHTTPServer((host, port), Handler).serve_forever()
"""
_FILES = {
    "vllm/__init__.py": "",
    "vllm/engine/__init__.py": "",
    "vllm/engine/arg_utils.py": _ARGUMENTS,
    "vllm/entrypoints/__init__.py": "",
    "vllm/entrypoints/cli/__init__.py": "",
    "vllm/entrypoints/cli/serve.py": "",
    "vllm/entrypoints/cli/main.py": SERVER,
    "vllm/entrypoints/openai/__init__.py": "",
    "vllm/entrypoints/openai/api_server.py": SERVER,
    "vllm-0.17.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: vllm\nVersion: 0.17.0\n",
}


def interpreter(folder: Path) -> Path:
    """A Python with this vLLM and nothing else of this environment; the folder may be moved."""
    packages = folder / "packages"
    for name, text in _FILES.items():
        path = packages / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    program = folder / "bin/python3"
    program.parent.mkdir()
    program.write_text(
        '#!/bin/sh\nPYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}${0%/bin/*}/packages"\n'
        "export PYTHONPATH\n"
        f'exec {sys.executable} "$@"\n',
        "utf-8",
    )
    program.chmod(0o755)
    return program

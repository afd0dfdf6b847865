"""A prompt to the gateway from its own host, answered as a stream of texts."""

from __future__ import annotations

import json
from typing import Any, cast

# The key is read where it lies: it is in no argument, and does not travel.
SCRIPT = """
import json, sys, urllib.error, urllib.request
url, path, body = sys.argv[1:]
headers = {'content-type': 'application/json'}
if path:
    words = [line.split() for line in open(path) if line.strip() and line[0] != '#']
    keys = [one[0] for one in words if ':sha256:' not in one[0]]
    if not keys:
        sys.exit('all API keys are stored as hashes: nobody here has one to ask with')
    headers['authorization'] = 'Bearer ' + keys[0].rpartition(':')[2]
try:
    asked = urllib.request.Request(url, body.encode(), headers)
    for line in urllib.request.urlopen(asked, timeout=600):
        print(line.decode().rstrip(), flush=True)
except urllib.error.HTTPError as error:
    sys.exit(error.read().decode().strip() or str(error))
except OSError as error:
    sys.exit('%s: %s' % (url, error))
"""


def body(prompt: str, *, model: str = "", max_tokens: int = 256, chat: bool = False) -> str:
    said: dict[str, Any] = {"stream": True, "max_tokens": max_tokens}
    said |= {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
    return json.dumps({**said, "model": model} if model else said)


def text_of(line: str) -> str:
    """The next piece of the answer; empty for what is none."""
    if not line.startswith("data: {"):
        return ""
    try:
        shown = cast("dict[str, Any]", json.loads(line.removeprefix("data: ")))
    except ValueError:
        return ""
    return str(shown.get("text") or "")


def refusal_of(text: str) -> str:
    """What an error answer says, in OpenAI's shape or not."""
    try:
        return str(cast("dict[str, Any]", json.loads(text))["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text.strip()

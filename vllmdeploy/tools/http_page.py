"""A page of a service on its own host, asked for with the Python that is there.

Nothing is imported for it that takes longer than the answer: beside an engine that loads its model
on every core, a client library costs half a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

# `-I` and `-S`: no site packages, of which an engine's image has hundreds.
_PYTHON = ("python3", "-I", "-S", "-c")
_LIMIT_S = 5
# An answer that says its length has to have it; else its end is that of the connection.
_PAGE = f"""
import socket, sys
def page(host, port, path):
    asked = 'GET %s HTTP/1.0\\r\\nHost: %s\\r\\nConnection: close\\r\\n\\r\\n' % (path, host)
    with socket.create_connection((host, int(port)), {_LIMIT_S}) as door:
        door.sendall(asked.encode())
        said, length = door.makefile('rb'), None
        status = said.readline().split()[1]
        for line in iter(said.readline, b'\\r\\n'):
            name, colon, value = line.partition(b':')
            if not colon:
                raise ValueError('no HTTP')
            if name.lower() == b'content-length':
                length = int(value)
        body = said.read(length)
    if length not in (None, len(body)):
        raise ValueError('half an answer')
    return status, body.decode()
"""
_ONCE = """
status, body = page(*sys.argv[1:])
print(body) if status == b'200' else sys.exit(body)
"""
# Where nothing is ready the answer is an error, whose body says the same as that of the others.
_UNTIL_READY = """
import json, time
end = time.monotonic() + float(sys.argv[4])
wanted = [one.rpartition('=') for one in sys.argv[5:]]
while True:
    body = page(*sys.argv[1:4])[1]
    models = json.loads(body)['models']
    if time.monotonic() > end or all(
        name in models and models[name]['instances']['ready'] >= int(count)
        for name, _, count in wanted
    ):
        break
    time.sleep(0.2)
print(body)
"""

# What cannot be had is empty.
_SEVERAL = """
import json
pages = {}
for at in range(1, len(sys.argv), 4):
    try:
        status, body = page(*sys.argv[at + 1:at + 4])
    except (OSError, ValueError, IndexError):
        status, body = b'', ''
    pages[sys.argv[at]] = body if status == b'200' else ''
print(json.dumps(pages))
"""
_TWICE = """
import json, time
began, first = time.monotonic(), page(*sys.argv[1:])[1]
time.sleep(1)
ended, second = time.monotonic(), page(*sys.argv[1:])[1]
print(json.dumps([first, second, ended - began]))
"""


def page(url: str) -> tuple[str, ...]:
    """Says a page; one that is not 200 is an error here too."""
    return (*_PYTHON, _PAGE + _ONCE, *_place(url))


def health(url: str, ready: Mapping[str, int], *, held_s: float) -> tuple[str, ...]:
    """What a gateway says of its health: when so many instances of these models are ready, or
    after a while."""
    wanted = (f"{model}={count}" for model, count in sorted(ready.items()))
    return (*_PYTHON, _PAGE + _UNTIL_READY, *_place(url), f"{held_s:g}", *wanted)


def several(urls: Mapping[str, str]) -> tuple[str, ...]:
    """Says pages by name, as one JSON object."""
    words = (word for name, url in urls.items() for word in (name, *_place(url)))
    return (*_PYTHON, _PAGE + _SEVERAL, *words)


def twice(url: str) -> tuple[str, ...]:
    """Says a page twice, and the seconds between, as one JSON list."""
    return (*_PYTHON, _PAGE + _TWICE, *_place(url))


def _place(url: str) -> tuple[str, str, str]:
    parts = urlsplit(url)
    return parts.hostname or "", str(parts.port or 80), parts.path or "/"

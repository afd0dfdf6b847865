"""A model's config.json and its tensors' sizes from a hub: a megabyte a file, never the weights."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from urllib.parse import quote

import httpx

from vllmdeploy.errors import UsageError
from vllmdeploy.tools import safetensors
from vllmdeploy.tools.safetensors import Tensor, Weights

USUAL_ENDPOINT = "https://huggingface.co"
_FIRST_BYTES = 2**20
_LARGEST_TEXT = 200_000_000
_AT_ONCE = 8
_TIMEOUT_S = 30.0
_SIZE_UNKNOWN = 2**62
_WHOLE_FILE, _NOT_FOUND = 200, 404


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    name: str
    revision: str = "main"
    endpoint: str = USUAL_ENDPOINT
    token: str = field(default="", repr=False)

    def url(self, file: str) -> str:
        path = f"{quote(self.name)}/resolve/{quote(self.revision, safe='')}/{quote(file)}"
        return f"{self.endpoint.rstrip('/')}/{path}"


def model_on(repository: Repository) -> tuple[str, Weights]:
    """The text of config.json, and the tensors of the files that vLLM would load."""
    headers = {"Authorization": f"Bearer {repository.token}"} if repository.token else {}
    with httpx.Client(headers=headers, timeout=_TIMEOUT_S, follow_redirects=True) as client:
        config = _text(client, repository, "config.json")
        if config is None:
            raise _missing(repository, "config.json")
        index = _text(client, repository, safetensors.INDEX)
        if index is None:
            names: tuple[str, ...] = ("model.safetensors",)
        else:
            _, names = safetensors.parse_index(index, where=repository.url(safetensors.INDEX))
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            parts = pool.map(partial(_tensors, client, repository), names)
            tensors = tuple(tensor for part in parts for tensor in part)
    total = sum(tensor.size for tensor in tensors)
    return config.decode("utf-8", "replace"), Weights(total_bytes=total, tensors=tensors)


def _text(client: httpx.Client, repository: Repository, file: str) -> bytes | None:
    with _answered(client, repository, file, most=None) as response:
        return None if response is None else _bytes_of(response, _LARGEST_TEXT)


def _tensors(client: httpx.Client, repository: Repository, file: str) -> tuple[Tensor, ...]:
    """Most headers are within the first megabyte; the others take a second, exact request."""
    where = repository.url(file)
    content, size = _start_of(client, repository, file, _FIRST_BYTES)
    end = safetensors.LENGTH_BYTES + safetensors.header_length(content, where=where)
    if end > len(content):
        content, size = _start_of(client, repository, file, end)
    if end > len(content):
        raise UsageError(f"{where}: it ends at {len(content)} bytes, inside of its header")
    header = content[safetensors.LENGTH_BYTES : end]
    return safetensors.parse_header(header, file_size=size, where=where)


def _start_of(
    client: httpx.Client, repository: Repository, file: str, most: int
) -> tuple[bytes, int]:
    """The first bytes and the whole file's size. A server may ignore the range: then we stop."""
    with _answered(client, repository, file, most=most) as response:
        if response is None:
            raise _missing(repository, file)
        stated = response.headers.get("Content-Range", "").rpartition("/")[2]
        if response.status_code == _WHOLE_FILE:
            stated = response.headers.get("Content-Length", "")
        size = int(stated) if stated.isascii() and stated.isdigit() else _SIZE_UNKNOWN
        return _bytes_of(response, most), size


@contextmanager
def _answered(
    client: httpx.Client, repository: Repository, file: str, *, most: int | None
) -> Generator[httpx.Response | None]:
    """The answer with its body still to be read; None where the hub has no such file."""
    url = repository.url(file)
    headers = {"Range": f"bytes=0-{most - 1}"} if most is not None else {}
    try:
        with client.stream("GET", url, headers=headers) as response:
            if response.status_code in (401, 403):
                raise UsageError(
                    f"{url}: the hub wants a token that may read it ({response.status_code})",
                    hint="accept the model's terms on the hub and set HF_TOKEN_FILE",
                )
            if response.status_code != _NOT_FOUND and response.is_error:
                raise UsageError(f"{url}: the hub answered {response.status_code}")
            yield None if response.status_code == _NOT_FOUND else response
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UsageError(
            f"{url}: {str(error) or type(error).__name__}",
            hint="is the hub reachable from here? HF_ENDPOINT in config.env names another one",
        ) from error


def _bytes_of(response: httpx.Response, most: int) -> bytes:
    content = bytearray()
    for piece in response.iter_bytes():
        content += piece
        if len(content) >= most:
            break
    return bytes(content[:most])


def _missing(repository: Repository, file: str) -> UsageError:
    return UsageError(
        f"{repository.url(file)}: the hub has no such file",
        hint="capacity needs config.json and safetensors files; check the name and the revision",
    )

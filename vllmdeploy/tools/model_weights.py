"""The sizes of a model's tensors, asked on a host where vLLM is: headers are read, no weights."""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from typing import Any, cast

from vllmdeploy.core.command import Command, Result
from vllmdeploy.core.fact import Fact
from vllmdeploy.tools.safetensors import LONGEST_HEADER, Tensor, Weights

_LARGEST_ANSWER = 200_000_000

# Runs under any Python of an image. A header that is none makes a folder of unknown weights.
_SCRIPT = """
import base64, json, pathlib, struct, sys, zlib
folder = pathlib.Path(sys.argv[1])
files = sorted(p for p in folder.glob('*.safetensors') if not p.name.startswith('consolidated'))
tensors, total, problem = [], 0, ''
try:
    for file in files:
        total += file.stat().st_size
        with file.open('rb') as opened:
            (length,) = struct.unpack('<Q', opened.read(8))
            if length > int(sys.argv[2]): raise ValueError(file.name + ': no safetensors header')
            for name, one in json.loads(opened.read(length)).items():
                if name != '__metadata__':
                    begin, end = one['data_offsets']
                    tensors.append([name, one['dtype'], one['shape'], end - begin])
    total = total or sum(p.stat().st_size for p in folder.glob('*.bin'))
except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
    tensors, problem = [], str(error)
said = json.dumps({'total': total, 'tensors': tensors, 'problem': problem})
print('@@weights@@' + base64.b64encode(zlib.compress(said.encode())).decode())
"""


def weights_argv(folder: str) -> tuple[str, ...]:
    """Run this where the engine will run."""
    return ("python3", "-c", _SCRIPT, folder, str(LONGEST_HEADER))


def weights(command: Command) -> Fact[Weights | None]:
    """None: nobody can say how large it is."""
    return Fact(name="weights", command=command, parse=_parse)


def _parse(result: Result) -> Weights | None:
    _, mark, packed = result.stdout.partition("@@weights@@")
    try:
        unpacking = zlib.decompressobj()
        text = unpacking.decompress(base64.b64decode(packed), _LARGEST_ANSWER)
        shown = cast("dict[str, Any]", json.loads(text)) if mark else {}
        total = int(shown["total"])
        tensors = tuple(_tensor(one) for one in cast("list[list[Any]]", shown["tensors"]))
    except (ValueError, KeyError, TypeError, binascii.Error, zlib.error):
        return None
    size = sum(one.size for one in tensors) or total
    return Weights(total_bytes=size, tensors=tensors) if size > 0 else None


def _tensor(said: list[Any]) -> Tensor:
    name, dtype, shape, size = said
    return Tensor(
        name=str(name), dtype=str(dtype), shape=tuple(map(int, shape)), size=max(0, int(size))
    )

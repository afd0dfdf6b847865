"""The demo, as `make demo` runs it: real answers, and nothing of it left."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.rig.claim import WORKTREE
from tests.rig.service_engine import need_engine
from vllmdeploy.cli.context import World
from vllmdeploy.core.layout import SYSTEM_STATE_ROOT
from vllmdeploy.workflows.demo import demo_files, engine_of, keep_logs

# Its own /tmp, so that what is left there is the demo's: with the checkout, should that lie there.
_OWN_TMP = """
set -e
case $2 in /tmp/*) mkdir -p "$1/${2#/tmp}" && mount --rbind "$2" "$1/${2#/tmp}";; esac
mkdir -p "$1/home" && mount --rbind "$1" /tmp
cd /tmp/home && shift 2 && exec "$@"
"""


def test_the_demo_answers_and_leaves_nothing(tmp_path: Path) -> None:
    need_engine()
    program = str(Path(sys.prefix, "bin/vllmdeploy"))
    environment = {"PATH": os.environ["PATH"], "HOME": "/tmp/home", "LANG": "C.UTF-8"}
    apart = ("unshare", "--mount", "sh", "-c", _OWN_TMP, "sh", str(tmp_path), str(WORKTREE))
    done = subprocess.run(
        (*apart, program, "demo", "--exit"),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    for route in ("/generate", "/batch_generate", "/v1/chat/completions"):
        assert f"POST {route}" in done.stdout
    assert done.stdout.count("Paris") == 2
    assert "tokens/s" in done.stdout
    assert not Path(SYSTEM_STATE_ROOT, "demo").exists()
    listed = subprocess.run(("ps", "-eo", "args"), capture_output=True, text=True, check=True)
    assert f"{SYSTEM_STATE_ROOT}/demo/" not in listed.stdout
    within = WORKTREE.relative_to("/tmp").parts[:1] if WORKTREE.is_relative_to("/tmp") else ()
    assert {path.name for path in tmp_path.iterdir()} == {"home", *within}


def test_logs_are_kept_where_there_are_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    here = World(config=demo_files(tmp_path, engine_of(tmp_path)), environ={})
    state = Path(SYSTEM_STATE_ROOT, "demo")
    with here.session(here.loaded()) as session:
        assert keep_logs(session) is None
        assert not list(tmp_path.glob("vllmdeploy-demo-logs-*"))
        (state / "logs/node").mkdir(parents=True)
        try:
            (state / "logs/node/engine.log").write_text("why")
            kept = keep_logs(session)
        finally:
            shutil.rmtree(state)
    assert kept is not None
    assert (kept / "node/engine.log").read_text() == "why"

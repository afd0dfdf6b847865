from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from vllmdeploy.effects.package import build


def interpreters() -> list[Path]:
    """The oldest and the newest Python a node's image may have, where this machine has them."""
    versions = pyenv_root() / "versions"
    found: list[Path] = []
    for version in ("3.10", "3.13"):
        on_path = shutil.which(f"python{version}")
        candidates = [
            *([Path(on_path)] if on_path else []),
            *sorted(versions.glob(f"{version}.*/bin/python")),
        ]
        # The first on PATH may be a version manager's stand-in that only says how to get one.
        found += list(filter(answers, candidates))[:1]
    return found


def pyenv_root() -> Path:
    if not shutil.which("pyenv"):
        return Path("/nonexistent")
    done = subprocess.run(("pyenv", "root"), capture_output=True, text=True, check=True, timeout=30)
    return Path(done.stdout.strip())


def answers(python: Path) -> bool:
    done = subprocess.run((python, "-c", ""), capture_output=True, check=False, timeout=30)
    return done.returncode == 0


INTERPRETERS = interpreters()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("package") / "vllmdeploy.zip"
    path.write_bytes(build().content)
    return path


def names(content: bytes) -> list[str]:
    return zipfile.ZipFile(io.BytesIO(content)).namelist()


def test_the_same_sources_are_the_same_bytes_and_the_name_is_their_digest() -> None:
    first, second = build(), build()
    assert first == second
    assert first.sha12 == hashlib.sha256(first.content).hexdigest()[:12]


def test_it_holds_sources_of_the_layers_that_travel_and_nothing_else() -> None:
    held = names(build().content)
    assert held == sorted(held)
    sources = [name for name in held if ".dist-info/" not in name]
    assert all(name.endswith(".py") for name in sources)
    assert {"vllmdeploy/__init__.py", "vllmdeploy/errors.py", "vllmdeploy/node/warden.py"} <= {
        *held
    }
    folders = {name.split("/")[1] for name in sources if name.count("/") > 1}
    assert folders == {"batch", "client", "core", "gateway", "node", "routing", "wire"}


def test_nothing_of_the_machine_it_was_built_on_is_in_it() -> None:
    entries = zipfile.ZipFile(io.BytesIO(build().content)).infolist()
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert {entry.external_attr for entry in entries} == {0o100644 << 16}
    assert {(entry.create_system, entry.compress_type) for entry in entries} == {(3, 0)}


IMPORT_ALL = """
import importlib, sys, zipfile
archive, *layers = sys.argv[1:]
sys.path.insert(0, archive)
for name in zipfile.ZipFile(archive).namelist():
    parts = name.removesuffix(".py").split("/")
    if parts[0] != "vllmdeploy":
        continue
    if parts[-1] != "__main__" and (parts[1] in layers or len(parts) == 2):
        importlib.import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
import vllmdeploy.node.warden
assert vllmdeploy.node.warden.__file__.startswith(archive), vllmdeploy.node.warden.__file__
"""


@pytest.mark.skipif(not INTERPRETERS, reason="neither python3.10 nor python3.13 on this machine")
@pytest.mark.parametrize("python", INTERPRETERS, ids=str)
@pytest.mark.parametrize("layer", ["node", "core", "wire", "routing", "client", "batch", "gateway"])
def test_every_module_imports_on_a_bare_python(archive: Path, python: Path, layer: str) -> None:
    """Isolated, without site-packages: what an image without any of our dependencies has."""
    done = subprocess.run(
        (python, "-I", "-S", "-W", "error", "-c", IMPORT_ALL, archive, layer),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not INTERPRETERS, reason="neither python3.10 nor python3.13 on this machine")
@pytest.mark.parametrize("python", INTERPRETERS, ids=str)
def test_a_warden_runs_from_the_zip(archive: Path, python: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    environment = {"PYTHONPATH": str(archive), "PATH": "/usr/bin:/bin"}
    module = (python, "-S", "-s", "-m")
    warden = subprocess.Popen(
        (
            *(*module, "vllmdeploy.node.warden", "--name", "n", "--role", "instance"),
            *("--run", run, "--logs", tmp_path / "logs"),
            *("--", "sh", "-c", "echo up; exec sleep 1000"),
        ),
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert warden.stdout is not None
        said = iter(warden.stdout.readline, "")
        assert any(line == "[n] up\n" for line in said)
        asked = subprocess.run(
            (*module, "vllmdeploy.node.ctl", "--run", run, "stop"),
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert asked.stdout == '{"done": true}\n'
        assert "[warden] stopped\n" in said
        assert warden.wait(30) == 0
    finally:
        warden.kill()
        warden.wait()
        if warden.stdout is not None:
            warden.stdout.close()

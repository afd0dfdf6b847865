"""Docker's answers, as engines of many kinds and states give them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmdeploy.core.command import Result
from vllmdeploy.effects.local import LocalShell
from vllmdeploy.tools import docker
from vllmdeploy.tools.docker import Container, Containers, Engine, Image, ImageContents

DOWN = (
    "Cannot connect to the Docker daemon at unix:///var/run/docker.sock."
    " Is the docker daemon running?"
)
DENIED = (
    "permission denied while trying to connect to the Docker daemon socket at"
    " unix:///var/run/docker.sock"
)


def version(text: str) -> Result:
    return Result(0, f'{{"version":"{text}","arch":"amd64","parts":[{{"Name":"Engine"}}]}}\n')


@pytest.mark.parametrize(
    ("result", "engine"),
    [
        (version("28.2.2"), Engine(version="28.2.2", arch="amd64")),
        (version("20.10.24+dfsg1"), Engine(version="20.10.24+dfsg1", arch="amd64")),
        (version("24.0-rc1"), Engine(version="24.0-rc1", arch="amd64")),
        (
            version("19.03.8"),
            Engine(version="19.03.8", arch="amd64", problem="Docker 19.03.8 is older than 20.10"),
        ),
        (
            version("dev"),
            Engine(problem="Docker's version is not readable: " + version("dev").stdout.strip()),
        ),
        (
            Result(0, '{"version":null,"arch":null,"parts":null}\n'),
            Engine(
                problem="Docker's version is not readable:"
                ' {"version":null,"arch":null,"parts":null}'
            ),
        ),
        (
            Result(0, '{"version":"5.4.2","arch":"amd64","parts":[{"Name":"Podman Engine"}]}'),
            Engine(problem="`docker` is podman here, which is not supported"),
        ),
        (
            Result(125, "", "Emulate Docker CLI using podman. Create /etc/containers/nodocker"),
            Engine(problem="`docker` is podman here, which is not supported"),
        ),
        (
            Result(1, "", DENIED),
            Engine(
                problem="no right to use Docker: add the user to the group docker"
                " (sudo usermod -aG docker USER), or set SUDO=auto with sudo rights"
            ),
        ),
        (
            Result(1, "", DOWN),
            Engine(problem="the Docker daemon is not running (systemctl start docker)"),
        ),
        (
            Result(124, timed_out=True),
            Engine(problem="the Docker daemon does not answer (systemctl restart docker)"),
        ),
        (Result(127, "", "sh: docker: not found"), Engine(problem="docker is not installed")),
        (
            Result(1, "", "something\nelse entirely\n"),
            Engine(problem="docker version: else entirely"),
        ),
    ],
)
def test_an_engine_is_read_or_its_problem_worded(result: Result, engine: Engine) -> None:
    assert docker.ENGINE.parse(result) == engine


def shown(**changes: object) -> str:
    return json.dumps(
        {
            "id": "f00",
            "name": "/vllm-ray-head",
            "image": "vllm:1",
            "image_id": "sha256:1",
            "state": {"Status": "running", "Pid": 7, "StartedAt": "2026"},
            "restarts": 2,
            "labels": {"a": "line 1\nline 2\u2028\u0085"},
            **changes,
        },
        ensure_ascii=False,
    )


def test_containers_are_read_with_labels_of_several_lines() -> None:
    assert docker.CONTAINERS.parse(Result(0, shown() + "\n")) == Containers(
        (
            Container(
                id="f00",
                name="vllm-ray-head",
                image="vllm:1",
                image_id="sha256:1",
                state="running",
                pid=7,
                started_at="2026",
                restarts=2,
                labels={"a": "line 1\nline 2\u2028\u0085"},
            ),
        )
    )


def test_a_container_that_was_killed_for_memory_is_told() -> None:
    state = {"Status": "exited", "ExitCode": 137, "OOMKilled": True}
    (one,) = docker.CONTAINERS.parse(Result(0, shown(state=state, labels=None))).found
    assert (one.running, one.exit_code, one.oom_killed, one.labels) == (False, 137, True, {})


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        (Result(1, shown() + "\n", "Error response from daemon: No such container: b1"), ""),
        (
            Result(124, shown() + "\n", timed_out=True),
            "`docker inspect` hangs: a container on it is stuck",
        ),
        (
            Result(0, shown() + '\n{"id": "f'),
            'its list of containers is not readable: {"id": "f',
        ),
        (Result(1, shown(), "daemon went away"), "docker ps: daemon went away"),
    ],
)
def test_a_list_that_may_be_incomplete_says_so(result: Result, problem: str) -> None:
    listed = docker.CONTAINERS.parse(result)
    assert len(listed.found) == 1
    assert listed.problem == problem


def fake_docker(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> LocalShell:
    path = folder / "docker"
    path.write_text(f"#!/bin/sh\n{text}\n", "utf-8")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return LocalShell("here")


def test_a_host_without_containers_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = fake_docker(tmp_path, '[ "$1" = ps ]', monkeypatch)
    assert docker.CONTAINERS.parse(shell.run(docker.CONTAINERS.command)) == Containers()


def test_a_list_that_fails_is_not_an_empty_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = fake_docker(tmp_path, "echo broken >&2; exit 3", monkeypatch)
    listed = docker.CONTAINERS.parse(shell.run(docker.CONTAINERS.command))
    assert listed == Containers(problem="docker ps: broken")


def test_one_that_disappears_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "answer").write_text(shown() + "\n", "utf-8")
    text = (
        'if [ "$1" = ps ]; then echo a; echo b; exit; fi\n'
        f"cat {tmp_path}/answer; echo 'Error: No such container: b' >&2; exit 1"
    )
    shell = fake_docker(tmp_path, text, monkeypatch)
    listed = docker.CONTAINERS.parse(shell.run(docker.CONTAINERS.command))
    assert ([one.id for one in listed.found], listed.problem) == (["f00"], "")


def test_an_image_is_read() -> None:
    said = {
        "id": "sha256:" + "ab" * 32,
        "arch": "amd64",
        "user": "vllm",
        "layers": ["sha256:1"],
        "environment": ["PATH=/bin", "PYTHONPATH=/opt/a:/opt/b"],
        "labels": {"k": "v"},
    }
    fact = docker.image("-evil")
    assert fact.command.argv[-1] == "-evil"
    found = fact.parse(Result(0, json.dumps(said) + "\n"))
    assert found == Image(
        id="sha256:" + "ab" * 32,
        arch="amd64",
        user="vllm",
        layers=("sha256:1",),
        python_path="/opt/a:/opt/b",
        labels={"k": "v"},
    )
    assert found is not None
    assert found.short == "abababababab"


def test_an_image_without_settings_is_read_too() -> None:
    said = {"id": "i", "arch": None, "user": None, "layers": None, "environment": None}
    assert docker.image("x").parse(Result(0, json.dumps(said))) == Image(id="i", arch="")
    assert docker.image("x").parse(Result(1, "", "Error: No such image: x")) is None


CONTENTS = '{"python": "3.12.3", "ray": "2.60.0", "vllm": "0.17.0", "uid": 0, "gid": 0}'


@pytest.mark.parametrize(
    ("result", "contents"),
    [
        (Result(0, CONTENTS), ImageContents(python="3.12.3", ray="2.60.0", vllm="0.17.0")),
        (
            Result(0, f"banner\n{{a site hook}}\n{CONTENTS}\n"),
            ImageContents(python="3.12.3", ray="2.60.0", vllm="0.17.0"),
        ),
        (
            Result(127, "", 'exec: "python3": executable file not found in $PATH: unknown.'),
            ImageContents(problem="it has no python3: not a vLLM image"),
        ),
        (Result(1, "", "killed"), ImageContents(problem="it does not answer: killed")),
        (
            Result(0, '{"python": 1}\n'),
            ImageContents(problem='its answer is not readable: {"python": 1}'),
        ),
    ],
)
def test_what_an_image_holds_is_read(result: Result, contents: ImageContents) -> None:
    assert docker.probe("sha256:1", (), "/k").parse(result) == contents


def test_the_interpreter_of_this_machine_answers() -> None:
    fact = docker.interpreter("python3")
    found = fact.parse(LocalShell("here").run(fact.command))
    assert (found.problem, found.uid) == ("", os.getuid())
    assert found.python.startswith("3.")


def probed(folder: Path, monkeypatch: pytest.MonkeyPatch, kept: str, said: str) -> tuple[str, str]:
    """What it answered and what Docker was asked."""
    (folder / "said").write_text(said, "utf-8")
    text = f'printf "%s\\n" "$*" >> {folder}/asked; cat {folder}/said'
    shell = fake_docker(folder, text, monkeypatch)
    fact = docker.probe("sha256:1", ("--gpus", "all"), kept)
    result = shell.run(fact.command)
    assert result.ok, result.output
    return result.stdout, (folder / "asked").read_text("utf-8").splitlines()[0]


def test_an_image_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "cache" / "probes" / "x"
    for _ in range(2):
        answer, asked = probed(tmp_path, monkeypatch, str(kept), CONTENTS)
        assert answer == CONTENTS + "\n"
        assert asked.startswith("run --rm --network none --gpus all --entrypoint python3 sha256:1")
    assert (tmp_path / "asked").read_text("utf-8").count("run --rm") == 1
    assert list(kept.parent.iterdir()) == [kept]


def test_an_answer_that_cannot_be_kept_is_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    answer, asked = probed(tmp_path, monkeypatch, f"{tmp_path}/file/x", CONTENTS)
    assert answer == CONTENTS + "\n"
    assert "--gpus all" in asked


def test_an_answer_that_is_none_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed(tmp_path, monkeypatch, f"{tmp_path}/kept", "nonsense")
    assert not (tmp_path / "kept").exists()


def test_a_container_that_fails_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shell = fake_docker(tmp_path, "echo no >&2; exit 125", monkeypatch)
    fact = docker.probe("i", (), f"{tmp_path}/kept")
    assert shell.run(fact.command) == Result(125, "", "no\n")


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (Result(0, "{}"), ""),
        (Result(1, "", "no such manifest: docker.io/x:1"), "no such manifest: docker.io/x:1"),
        (Result(1, "", "unauthorized: denied"), "unauthorized: denied"),
        (Result(1, "", "dial tcp: i/o timeout"), ""),
        (Result(124, timed_out=True), ""),
        (Result(127, "", "docker: not found"), ""),
    ],
)
def test_only_the_registrys_own_no_counts(result: Result, reason: str) -> None:
    assert docker.pullable("x:1").parse(result) == reason


FIELDS = st.sampled_from(["id", "state", "labels", "restarts", "environment", "layers", "uid"])
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(FIELDS, inner),
)


@given(st.one_of(st.text(), JSON.map(json.dumps)), st.integers(0, 130), st.text())
def test_no_answer_ends_the_reading(text: str, status: int, errors: str) -> None:
    result = Result(status, text, errors)
    facts = (docker.ENGINE, docker.CONTAINERS, docker.image("i"), docker.probe("i", (), "/k"))
    for fact in (*facts, docker.pullable("i")):
        fact.parse(result)

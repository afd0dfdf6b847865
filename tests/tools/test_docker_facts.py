"""Docker's answers, as engines of many kinds and states give them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.docker import fake_docker
from vllmdeploy.core.command import Result
from vllmdeploy.tools import docker, image_probe, images
from vllmdeploy.tools.docker import Container, Containers, Engine

# As Docker 29.1 says it.
DOWN_29 = (
    "failed to connect to the docker API at unix:///var/run/docker.sock; check if the path is"
    " correct and if the daemon is running: dial unix /var/run/docker.sock: connect: no such file"
    " or directory"
)
DENIED_29 = (
    "permission denied while trying to connect to the docker API at unix:///var/run/docker.sock"
)
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
            Result(1, "", DOWN_29),
            Engine(problem="the Docker daemon is not running (systemctl start docker)"),
        ),
        (
            Result(1, "", DENIED_29),
            Engine(
                problem="no right to use Docker: add the user to the group docker"
                " (sudo usermod -aG docker USER), or set SUDO=auto with sudo rights"
            ),
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


FIELDS = st.sampled_from(
    [
        "id",
        "state",
        "labels",
        "restarts",
        "Id",
        "Config",
        "Env",
        "Labels",
        "RootFS",
        "Layers",
        "uid",
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(FIELDS, inner),
)


@given(st.one_of(st.text(), JSON.map(json.dumps)), st.integers(0, 130), st.text())
def test_no_answer_ends_the_reading(text: str, status: int, errors: str) -> None:
    result = Result(status, text, errors)
    facts = (docker.ENGINE, docker.CONTAINERS, images.image("i"), images.STORE)
    for fact in (*facts, images.offer("i"), image_probe.probe("i", (), "/k")):
        fact.parse(result)

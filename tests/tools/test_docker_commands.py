"""Docker's commands as text: one case per option, and values that try to be more than a word."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmdeploy.core.command import Command
from vllmdeploy.core.spec import ContainerSpec, Mount
from vllmdeploy.tools import docker, images

HOSTILE = "a b'\"; $(touch /x) `id` && -rf\n--privileged"


def test_a_full_container_is_one_readable_line() -> None:
    spec = ContainerSpec(
        name="vllm-ray-head",
        image="sha256:abc",
        command=("-m", "vllmdeploy.node.warden", "--", "ray", "start"),
        labels={"vllmdeploy.cluster": "vllm"},
        environment={"A": "1", "B": "x y"},
        mounts=(Mount("/data", "/data"), Mount("/run/a", "/run/b", writable=True)),
        arguments=("--gpus", "all"),
        shm_size="16g",
        entrypoint="python3",
    )
    assert str(docker.run(spec)) == (
        "docker run --detach --name vllm-ray-head --restart unless-stopped --network host"
        " --shm-size 16g --ulimit memlock=-1:-1 --ulimit stack=67108864"
        " --ulimit nofile=1048576:1048576"
        " --log-driver json-file --log-opt max-size=50m --log-opt max-file=3"
        " --security-opt label=disable --security-opt no-new-privileges"
        " --label vllmdeploy.cluster=vllm -e A=1 -e 'B=x y'"
        " -v /data:/data:ro -v /run/a:/run/b --gpus all --entrypoint python3 sha256:abc"
        " -m vllmdeploy.node.warden -- ray start"
    )


def test_what_is_not_set_is_not_said() -> None:
    text = str(docker.run(ContainerSpec(name="n", image="i", command=())))
    for option in ("--shm-size", "--entrypoint", " -e ", " -v ", "--label"):
        assert option not in text
    assert text.endswith(" i")


@given(st.text(min_size=1))
def test_a_hostile_value_stays_one_word(value: str) -> None:
    spec = ContainerSpec(
        name=value,
        image=value,
        command=(value,),
        labels={"l": value},
        environment={"e": value},
        mounts=(Mount(value, value),),
        arguments=(value,),
        shm_size=value,
        entrypoint=value,
    )
    argv = docker.run(spec).argv
    plain = docker.run(
        ContainerSpec(
            name="n",
            image="i",
            command=("c",),
            labels={"l": "l"},
            environment={"e": "e"},
            mounts=(Mount("m", "m"),),
            arguments=("a",),
            shm_size="s",
            entrypoint="e",
        )
    ).argv
    assert len(argv) == len(plain)


@pytest.mark.parametrize(
    ("command", "argv", "limit_s"),
    [
        (docker.start(HOSTILE), ("docker", "start", HOSTILE), 60),
        (docker.stop("n", stop_s=30), ("docker", "stop", "-t", "30", "n"), 90),
        (docker.restart("n", stop_s=30), ("docker", "restart", "-t", "30", "n"), 90),
        (docker.remove("id"), ("docker", "rm", "--force", "--volumes", "id"), 120),
        (images.pull("i"), ("docker", "pull", "i"), 3600),
        (docker.execute("n", "a", HOSTILE), ("docker", "exec", "n", "a", HOSTILE), 30),
        (docker.logs("n"), ("docker", "logs", "--timestamps", "n"), 60),
        (
            docker.logs("n", tail=0, follow=True),
            ("docker", "logs", "--timestamps", "--tail", "0", "--follow", "n"),
            60,
        ),
    ],
)
def test_each_command_is_what_a_person_would_type(
    command: Command, argv: tuple[str, ...], limit_s: float
) -> None:
    assert (command.argv, command.limit_s, command.root) == (argv, limit_s, True)

"""A Compose file as text, and what of `docker run` has a place in it."""

from __future__ import annotations

import pytest

from vllmdeploy.core.spec import ContainerSpec, Mount
from vllmdeploy.errors import UsageError
from vllmdeploy.tools.compose import Composed, text


def lines(*arguments: str, **more: object) -> list[str]:
    spec = ContainerSpec(name="n", image="i:1", command=("serve",), arguments=arguments)
    whole = text({"n": Composed(spec=spec, **more)}, heading="h")  # type: ignore[arg-type]  # handed on as it is
    return [line.strip() for line in whole.splitlines()]


def test_the_smallest_service_can_be_read_as_a_whole() -> None:
    spec = ContainerSpec(
        name="n",
        image="i:1",
        command=("-c", 'say "$HOME"'),
        entrypoint="sh",
        environment={"A": "1: 2"},
        mounts=(Mount("/data", "/data"), Mount("/w", "/w", writable=True)),
        shm_size="1g",
    )
    assert (
        text({"n": Composed(spec=spec)}, heading="Two\nlines")
        == """\
# Two
# lines
services:
  n:
    image: "i:1"
    container_name: "n"
    restart: "unless-stopped"
    network_mode: "host"
    shm_size: "1g"
    ulimits:
      memlock:
        soft: -1
        hard: -1
      stack:
        soft: 67108864
        hard: 67108864
      nofile:
        soft: 1048576
        hard: 1048576
    security_opt:
      - "label=disable"
      - "no-new-privileges"
    volumes:
      - "/data:/data:ro"
      - "/w:/w"
    environment:
      A: "1: 2"
    entrypoint:
      - "sh"
    command:
      - "-c"
      - "say \\"$$HOME\\""
    logging:
      driver: "json-file"
      options:
        max-size: "50m"
        max-file: "3"
"""
    )


def test_flags_with_a_place_keep_their_meaning() -> None:
    found = lines(
        *("--device", "/dev/kfd", "--device=/dev/dri", "--group-add", "video", "--ipc", "host"),
        *("--mount", "type=bind,source=/a,target=/b,readonly", "--privileged"),
        *("--security-opt", "seccomp=unconfined"),
    )
    at = found.index("devices:")
    assert found[at + 1 : at + 3] == ['- "/dev/kfd"', '- "/dev/dri"']
    assert '- "video"' in found
    assert 'ipc: "host"' in found
    assert "privileged: true" in found
    at = found.index("volumes:")
    assert found[at + 1 : at + 5] == [
        '- type: "bind"',
        'source: "/a"',
        'target: "/b"',
        "read_only: true",
    ]
    assert '- "seccomp=unconfined"' in found


def test_all_cards_or_some_are_a_reservation() -> None:
    assert 'count: "all"' in lines("--gpus", "all")
    some = lines("--gpus", '"device=2,3"')
    at = some.index("device_ids:")
    assert some[at + 1 : at + 3] == ['- "2"', '- "3"']


def test_those_on_the_same_cards_wait_for_health() -> None:
    found = lines(health="http://h:1/health", after=("m-1",))
    at = found.index("depends_on:")
    assert found[at + 1 : at + 3] == ["m-1:", 'condition: "service_healthy"']
    assert any("http://h:1/health" in line for line in found)


def test_a_flag_without_a_place_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="--cpuset-cpus"):
        lines("--cpuset-cpus", "0-3")

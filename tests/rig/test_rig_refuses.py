"""What is wrong with a host is said by name before anything is touched on any of them."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import pytest

from tests.rig import look
from tests.rig import rig as rigs
from tests.rig.disk import Profile
from tests.rig.host import Host
from tests.rig.operate import Done, Operator, operator
from tests.rig.programs import until
from tests.rig.rig import Rig

UNREACHABLE_LIMIT_S = 15.0
PORT_HOLDER = "exec python3 -m http.server --bind 0.0.0.0 6379"


@pytest.fixture(scope="module")
def rig() -> Generator[Rig]:
    fleet = rigs.start((Profile(name="head"), Profile(name="worker")))
    yield fleet
    fleet.remove()


@pytest.fixture
def bare(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> Generator[Operator]:
    """An operator of hosts that have nothing of ours, before and after."""
    made = operator(rig, tmp_path_factory.mktemp("operator"))
    before = look.snapshot(rig)
    yield made
    look.assert_nothing_left(rig, before, besides=("/var/lib/vllmdeploy/vllm/cache/probes/",))


def _refused(done: Done, exit_code: int, *said: str) -> None:
    assert done.returncode == exit_code, done.stderr
    for words in said:
        assert words in done.stderr


@contextmanager
def _running(host: Host, name: str, *argv: str) -> Generator[look.Container]:
    """A container that is not ours, gone afterwards."""
    host.sh(f'docker run --detach --name {name} "$@"', *argv)
    try:
        yield look.containers(host)[name]
    finally:
        host.sh("docker rm --force $1", name)


def test_a_host_whose_sshd_is_stopped_is_named_soon_and_nothing_is_started(
    bare: Operator,
) -> None:
    worker = bare.rig["worker"]
    worker.stop_sshd()
    try:
        done = bare.runs("up", "--yes", limit_s=UNREACHABLE_LIMIT_S)
    finally:
        worker.start_sshd()
    _refused(done, 3, f"error: {worker.ip}: ")


def test_an_engine_that_hangs_is_named_and_nothing_waits_for_it(bare: Operator) -> None:
    worker = bare.rig["worker"]
    worker.hang_docker()
    try:
        done = bare.runs("up", "--yes", limit_s=120)
    finally:
        worker.resume_docker()
    _refused(done, 6, f"{worker.ip}: the Docker daemon does not answer")


def test_an_engine_that_is_stopped_is_named(bare: Operator) -> None:
    worker = bare.rig["worker"]
    worker.stop_docker()
    try:
        done = bare.runs("up", "--yes")
    finally:
        worker.start_docker()
    _refused(done, 6, f"{worker.ip}: the Docker daemon is not running")


def test_a_port_that_is_taken_is_refused_with_the_process_that_has_it(bare: Operator) -> None:
    head = bare.rig.head
    head.sh(f"setsid sh -c '{PORT_HOLDER}' >/dev/null 2>&1 &")
    until("the port is taken", lambda: 6379 in look.listening(head))
    pid = head.sh("pgrep -f '^python3 -m http.server'").stdout.strip()
    try:
        done = bare.runs("up", "--yes")
    finally:
        head.sh('kill "$1"', pid)
    _refused(done, 6, f"{head.ip}: port 6379", f"python3 (pid {pid})")


def test_an_image_without_ray_is_refused_with_what_to_do(bare: Operator) -> None:
    bare.writes(EXTRA_DOCKER_ARGS="", EXECUTOR="ray")
    _refused(
        bare.runs("up", "--yes"),
        6,
        f"image {bare.rig.image} has no Ray: build one that has it with `vllmdeploy image build`,"
        " or set EXECUTOR=mp",
    )


def test_an_image_that_cannot_be_pulled_ends_it_before_anything_else_is_done(
    bare: Operator,
) -> None:
    image = "127.0.0.1:1/vllm/vllm-openai:v1"  # nothing listens there
    bare.writes(IMAGE=image)
    _refused(
        bare.runs("up", "--yes"),
        4,
        f"error: {bare.rig.head.ip}: pull image {image}: exit 1",
        "let `vllmdeploy image push` bring it to the others",
    )


def test_a_stranger_with_our_nodes_name_is_refused_and_left_alone(bare: Operator) -> None:
    worker, image = bare.rig["worker"], bare.rig.image
    with _running(worker, "vllm-ray-worker", image, "sleep", "infinity") as stranger:
        _refused(bare.runs("up", "--yes"), 6, f"{worker.ip}: a container named vllm-ray-worker")
        bare.down()
        assert look.containers(worker) == {"vllm-ray-worker": stranger}


def test_a_key_that_nobody_recorded_is_refused(bare: Operator) -> None:
    bare.rig.folder.joinpath("operator/none").write_text("")
    bare.writes(SSH_KNOWN_HOSTS=str(bare.rig.folder / "operator/none"))
    _refused(bare.runs("up", "--yes"), 3, f"error: {bare.rig.head.ip}: ")


def test_down_before_any_up_is_fine_and_twice_too(bare: Operator) -> None:
    for _ in range(2):
        assert "nothing to do" in bare.down().stderr

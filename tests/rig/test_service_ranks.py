"""A model over two hosts without Ray: its ranks begin, end and begin anew together."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Generator
from typing import Any

import pytest

from tests.rig import look
from tests.rig import rig as rigs
from tests.rig.disk import Profile
from tests.rig.host import Host
from tests.rig.operate import STATE, Operator
from tests.rig.programs import until
from tests.rig.rig import Rig
from tests.rig.service_engine import make_tiny_model, need_engine, serve_without_ray

# Two engines load at the same time, three times over: minutes on a busy machine.
pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

MODEL = "tiny-random"
FLEET = tuple(Profile(name=name, cards=1) for name in ("first", "second"))


@pytest.fixture(scope="module")
def engine() -> None:
    need_engine()
    make_tiny_model(MODEL)


@pytest.fixture(scope="module")
def rig(engine: None) -> Generator[Rig]:
    fleet = rigs.start(FLEET)
    yield fleet
    fleet.remove()


@pytest.fixture(scope="module")
def served(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Operator, str]:
    """The operator and the API key that was shown once."""
    return serve_without_ray(rig, tmp_path_factory.mktemp("operator"), MODEL)


def answers(rig: Rig, key: str) -> bool:
    body: dict[str, Any] = {"prompt": "Hello", "max_tokens": 4, "temperature": 0}
    request = urllib.request.Request(
        f"http://{rig.head.ip}:8000/generate",
        json.dumps(body).encode(),
        {"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return bool(json.loads(answer.read())["usage"]["completion_tokens"])
    except OSError:
        return False


def engines_of(host: Host) -> dict[str, Any]:
    """As the status file of this host's warden has them."""
    document = json.loads(host.sh(f"cat {STATE}/run/*ray*/status.json").stdout)
    engines: dict[str, Any] = document["engines"]
    return engines


def server_of(host: Host) -> int:
    """The first process of this host's rank."""
    engines = engines_of(host)
    return int(engines[MODEL]["pid"] or 0) if MODEL in engines else 0


def test_a_model_over_two_hosts_answers_without_ray(rig: Rig, served: tuple[Operator, str]) -> None:
    made, key = served
    assert answers(rig, key)
    running = {host.name: " ".join(look.processes(host)) for host in rig.hosts}
    assert not any("raylet" in one for one in running.values())
    assert ("--headless" in running["second"], "--headless" in running["first"]) == (True, False)
    document = json.loads(made.succeeds("status", "--json").stdout)
    assert [one["state"] for one in (*document["hosts"], *document["services"])] == ["ready"] * 3


def test_what_does_not_fit_says_where_the_cards_are(served: tuple[Operator, str]) -> None:
    made, _ = served
    more = made.runs("start-service", MODEL, "1", "--name", "second", "--yes")
    assert more.returncode == 6
    assert "1 card is needed, 0 of 2 are free" in more.stderr
    assert f"{MODEL} holds 2" in more.stderr


@pytest.mark.parametrize("where", [0, 1])
def test_a_killed_rank_takes_all_down_and_all_come_back(
    rig: Rig, served: tuple[Operator, str], where: int
) -> None:
    _, key = served
    before = [server_of(host) for host in rig.hosts]
    container = next(
        one for name, one in look.containers(rig.hosts[where]).items() if "ray" in name
    )
    rig.hosts[where].sh(f"docker exec {container.name} sh -c 'kill -KILL {before[where]}'")
    until("no rank is as before", lambda: no_longer(rig, before), limit_s=60)
    until("the API answers again", lambda: answers(rig, key), limit_s=600, every_s=1)


def no_longer(rig: Rig, before: list[int]) -> bool:
    return all(server_of(host) != pid for host, pid in zip(rig.hosts, before, strict=True))


def test_a_killed_node_comes_back_and_the_model_with_it(
    rig: Rig, served: tuple[Operator, str]
) -> None:
    made, key = served
    worker = rig.workers[-1]
    worker.sh(f"kill -KILL {look.containers(worker)['vllm-ray-worker'].pid}")
    until("the API stops answering", lambda: not answers(rig, key), limit_s=60)
    until("the API answers again", lambda: answers(rig, key), limit_s=600, every_s=1)
    made.succeeds("stop-service", MODEL, "--yes")
    assert [engines_of(host) for host in rig.hosts] == [{}, {}]

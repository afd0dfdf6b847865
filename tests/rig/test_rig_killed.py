"""`up` on two hosts, killed at any step or run twice at once: the next run converges, and `down`
leaves nothing."""

from __future__ import annotations

import json
import os
import random
import re
import sys
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.rig import look
from tests.rig import rig as rigs
from tests.rig.disk import Profile
from tests.rig.operate import KEPT, STATE, Done, Operator, node, operator
from tests.rig.rig import Rig

STEPS = 12  # that `up` on two bare hosts takes
SEED = int(os.environ.get("VLLMDEPLOY_RIG_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
_STARTED = re.compile(r"[0-9.]+: [a-z]+ .* \.\.\.")


@pytest.fixture(scope="module")
def rig() -> Generator[Rig]:
    fleet = rigs.start((Profile(name="head"), Profile(name="sudoer", user="deploy")))
    yield fleet
    fleet.remove()


@pytest.fixture(scope="module")
def before(rig: Rig) -> dict[str, look.Snapshot]:
    return look.snapshot(rig)


@pytest.fixture
def fleet(rig: Rig, before: Mapping[str, look.Snapshot], tmp_path: Path) -> Generator[Operator]:
    """Two bare hosts, and afterwards again, whatever the test did."""
    made = operator(rig, tmp_path)
    yield made
    made.runs("unlock", "--yes")
    made.down("--forget")
    look.assert_nothing_left(rig, before, besides=(f"{STATE}/audit.log",))


def _at(step: int) -> Callable[[str], bool]:
    """True once for the line that says that this step, counted from 0, is started."""
    seen = 0

    def reached(line: str) -> bool:
        nonlocal seen
        seen += bool(_STARTED.fullmatch(line))
        return seen > step

    return reached


def _steps(fleet: Operator) -> list[object]:
    steps: list[object] = json.loads(fleet.succeeds("plan", "--json").stdout)["steps"]
    return steps


def _kill(fleet: Operator, step: int) -> None:
    said = fleet.rig.killed("up", "--yes", folder=fleet.folder, when=_at(step))
    assert _STARTED.fullmatch(said[-1]), "\n".join(said)


def _in_the_way(fleet: Operator) -> None:
    """The dead run's lock stops the next one until somebody looks at what says that it is dead."""
    refused = fleet.runs("up", "--yes")
    assert refused.returncode == 7
    assert re.search(r"locked by \S+@\S+ \(pid \d+\), doing `up`, since \d+ s", refused.stderr)
    removed = fleet.succeeds("unlock", "--yes")
    assert re.search(r"its holder is gone: no process \d+ runs on this machine", removed.stderr)
    assert fleet.rig.head.sh(f"ls {STATE}/lock*", check=False).stdout == ""


def _converges(fleet: Operator, before: Mapping[str, look.Snapshot]) -> None:
    fleet.up()
    fleet.becomes_whole()
    assert "nothing to do" in fleet.up().stderr
    fleet.down()
    look.assert_nothing_left(fleet.rig, before, besides=KEPT)


def test_up_that_was_killed_again_and_again_converges_and_down_leaves_nothing(
    fleet: Operator, before: Mapping[str, look.Snapshot]
) -> None:
    assert len(_steps(fleet)) == STEPS
    steps = sorted(random.Random(SEED).sample(range(STEPS - 2), 3), reverse=True)
    sys.stderr.write(f"killed at steps {steps} (VLLMDEPLOY_RIG_SEED={SEED})\n")
    _kill(fleet, steps[0])
    _in_the_way(fleet)
    for step in steps[1:]:
        fleet.down()
        # What `down` keeps makes the next plan shorter.
        _kill(fleet, min(step, len(_steps(fleet)) - 2))
        fleet.succeeds("unlock", "--yes")
    _converges(fleet, before)


@pytest.mark.long
@pytest.mark.parametrize("step", range(STEPS))
def test_up_that_was_killed_at_any_step_converges_and_down_leaves_nothing(
    fleet: Operator, before: Mapping[str, look.Snapshot], step: int
) -> None:
    _kill(fleet, step)
    _in_the_way(fleet)
    _converges(fleet, before)


def test_of_two_runs_at_once_one_works_and_the_other_says_who_does(fleet: Operator) -> None:
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(fleet.runs, "up", "--yes") for _ in range(2)]
        done: list[Done] = [run.result() for run in runs]
    late, working = sorted(done, key=lambda one: one.returncode, reverse=True)
    assert (working.returncode, late.returncode) == (0, 7), working.stderr + late.stderr
    assert re.search(r"locked by \S+@\S+ \(pid \d+\), doing `up`, since \d+ s", late.stderr)
    fleet.becomes_whole()

    _remakes_only_containers(fleet, SHM_SIZE="96m")


def _remakes_only_containers(fleet: Operator, **changed: str) -> None:
    first = fleet.ids()
    token = fleet.rig.head.sh(f"cat {STATE}/secrets/ray/ray_token").stdout
    fleet.writes(**changed)
    said = fleet.up().stderr
    assert set(fleet.ids()) == set(first)
    assert not set(fleet.ids().values()) & set(first.values())
    assert "secrets folder" not in said
    assert "package" not in said
    assert fleet.rig.head.sh(f"cat {STATE}/secrets/ray/ray_token").stdout == token
    for host in fleet.rig.hosts:
        shown = host.sh("docker inspect --format '{{.HostConfig.ShmSize}}' $1", node(host).name)
        assert shown.stdout == f"{96 * 1024 * 1024}\n"
    fleet.becomes_whole()

"""How each host stands to a model before a sync, and the steps that lay the keys."""

from __future__ import annotations

import pytest

from tests.plan import builders
from vllmdeploy.core.host import Host
from vllmdeploy.plan.down import plan_down
from vllmdeploy.plan.supervise import InDocker
from vllmdeploy.plan.transfer_keys import Member, plan_keys
from vllmdeploy.plan.transfer_standing import Stand, Standing, stand
from vllmdeploy.tools import files, sync_keys
from vllmdeploy.tools.access import Access
from vllmdeploy.tools.manifest import Manifest, ModelFile
from vllmdeploy.tools.model_files_found import FoundModel, FoundStore
from vllmdeploy.tools.model_files_tree import Tree
from vllmdeploy.tools.rsync import Road
from vllmdeploy.tools.sync_keys import KeyPair, Peering

GiB = 2**30
MANIFEST = Manifest(
    source="folder",
    repo="",
    files=(ModelFile("a", 3 * GiB, "0" * 64), ModelFile("b", GiB, "1" * 64)),
)
WHOLE = {"a": 3 * GiB, "b": GiB}


def model(
    sizes: dict[str, int], *, digest: str = MANIFEST.digest, ready: str = "", incoming: bool = False
) -> FoundModel:
    tree = Tree(home="/models/M", files=sizes)
    return FoundModel(name="M", incoming=incoming, tree=tree, ready=ready, digest=digest)


def store(*models: FoundModel, free: int | None = 100 * GiB) -> FoundStore:
    return FoundStore(there=True, models=models, free_bytes=free, writable=True)


@pytest.mark.parametrize(
    ("found", "standing", "there"),
    [
        (store(), Standing.ABSENT, 0),
        (store(model({"a": GiB, "x": GiB}, digest="", incoming=True)), Standing.PARTIAL, GiB),
        (store(model(WHOLE, ready=MANIFEST.digest)), Standing.READY, 4 * GiB),
        (store(model(WHOLE)), Standing.UNFINISHED, 4 * GiB),
        (store(model({"a": GiB}, ready=MANIFEST.digest)), Standing.UNFINISHED, GiB),
        (store(model(WHOLE, digest="")), Standing.BY_HAND, 4 * GiB),
        (store(model({"a": 1}, digest="")), Standing.REFUSED, 0),
        (store(model(WHOLE, digest="2" * 64, ready="2" * 64)), Standing.REFUSED, 0),
        (store(free=3 * GiB), Standing.REFUSED, 0),
        (store(free=None), Standing.ABSENT, 0),
    ],
)
def test_a_host_stands_to_a_model(found: FoundStore, standing: Standing, there: int) -> None:
    decided = stand(found, MANIFEST, "M")
    assert (decided.standing, decided.there) == (standing, there)


def test_what_is_there_already_needs_no_room() -> None:
    half = model({"a": 3 * GiB}, digest="", incoming=True)
    assert stand(store(half, free=2 * GiB), MANIFEST, "M").standing is Standing.PARTIAL


def test_a_refusal_says_why_and_a_cause_how_much() -> None:
    refused = stand(store(free=3 * GiB), MANIFEST, "M")
    assert refused.cause(4 * GiB) == "4.0 GiB are to come and 3.0 GiB are free"
    assert Stand(Standing.PARTIAL, GiB).cause(4 * GiB) == "partial, 25 % there"
    assert Stand(Standing.ABSENT).cause(4 * GiB) == "absent"


PAIR = KeyPair(b"PRIVATE KEY", "ssh-ed25519 AAAA")
PEERING = Peering(
    user="deploy", rsync="rsync  version 3.2.7", ssh=True, host_keys=("ssh-ed25519 BBBB",)
)


def member(name: str, peering: Peering = PEERING, **found: object) -> Member:
    access: Access = builders.bare(name, "10.0.0.9").access
    road = Road(ip=f"10.0.0.{name[-1]}", user="deploy")
    host = Host(name=name, address=name)
    return Member(host=host, access=access, peering=peering, road=road, **found)  # type: ignore[arg-type]  # a test's shorthand


def test_keys_are_laid_where_they_are_missing_and_nowhere_twice() -> None:
    members = [member("gpu-1"), member("gpu-2", Peering())]
    plan = plan_keys(members, "vllm", "/models", PAIR)
    assert [step.key for step in plan] == [
        "gpu-1: install sync key",
        "gpu-1: install host keys for sync",
        "gpu-1: install sync server",
        "gpu-1: authorize sync key",
    ]
    assert "PRIVATE" not in "".join(str(step.command) for step in plan)
    by_subject = {step.subject: step.command.stdin or b"" for step in plan}
    layout = members[0].access.layout
    line = sync_keys.authorized_line(layout, "vllm", "/models", PAIR.public)
    laid = member(
        "gpu-1",
        secrets={
            "id_ed25519": files.digest(PAIR.private),
            "known_hosts": files.digest(by_subject["host keys for sync"]),
        },
        serves={"serve.sh": files.digest(by_subject["sync server"])},
        authorized=files.digest(line.encode()),
    )
    assert plan_keys([laid], "vllm", "/models", PAIR).steps == ()
    other = plan_keys([laid], "vllm", "/models", KeyPair(b"ANOTHER", "ssh-ed25519 CCCC"))
    assert [step.subject for step in other] == ["sync key", "sync key"]
    assert {step.cause for step in other} == {"changed"}


def test_down_withdraws_the_key_where_there_is_one_and_nowhere_else() -> None:
    synced = builders.bare("gpu-1", "10.0.0.1", head=True, sync=("serve.sh",))
    other = builders.bare("gpu-2", "10.0.0.2")
    wanted = builders.wanted()
    plan = plan_down(wanted, [synced, other], InDocker())
    assert [(step.key, step.needs) for step in plan] == [
        ("gpu-1: withdraw sync key", ()),
        ("gpu-1: remove sync files", ("gpu-1: withdraw sync key",)),
    ]
    assert plan.steps[1].command.argv == (
        *("rm", "-rf", "--", "/var/lib/vllmdeploy/vllm/sync"),
        "/var/lib/vllmdeploy/vllm/secrets/sync",
        "/var/lib/vllmdeploy/vllm/ssh",
    )

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.plan.builders import after, lines, wanted
from tests.plan.service_builders import group, service, stored, used
from vllmdeploy.core.command import Result
from vllmdeploy.core.plan import Draft, Plan, Step, Wait
from vllmdeploy.errors import NotHealthy
from vllmdeploy.gateway.fleet_file import parse
from vllmdeploy.plan import service_steps as steps
from vllmdeploy.plan.service_cards import await_cards, cards_by_ray
from vllmdeploy.plan.service_gateway import Offering
from vllmdeploy.plan.service_gateway_node import GatewayWanted, fleet_file
from vllmdeploy.plan.service_steps import Ground
from vllmdeploy.plan.supervise import InDocker, supervisor
from vllmdeploy.plan.wanted import Runtime
from vllmdeploy.tools.files import digest
from vllmdeploy.tools.vllm_engine import EngineState

GATEWAY = GatewayWanted(listen="0.0.0.0", port=8000, keys=b"default:sk-1\n", admin=b"admin:x\n")
SERVICE = service("m")


def ground(runtime: Runtime = "docker") -> Ground:
    what = wanted(runtime=runtime, python="/opt/v/bin/python")
    return Ground(draft=Draft(), wanted=what, supervisor=supervisor(what), head=group().head)


def waiting(plan: Plan, subject: str) -> Wait:
    action = next(step for step in plan if step.subject == subject and step.verb != "write").action
    assert isinstance(action, Wait)
    return action


def said(**engine: object) -> Result:
    return Result(0, json.dumps({"engines": {"m": engine}}))


def test_a_service_starts_by_its_file_and_is_awaited_by_the_wardens_word() -> None:
    here = ground()
    written = steps.write(here, "m", b"{}", "not there")
    steps.await_answer(here, SERVICE, "it answers", (written,), fresh=True)
    plan = here.draft.finished()
    assert lines(plan) == (
        "gpu-01: write service m (not there)\ngpu-01: await service m (it answers)"
    )
    assert "/var/lib/vllmdeploy/vllm/services/m.json" in str(plan.steps[0].command)
    assert str(plan.steps[1].command) == (
        "docker exec vllm-ray-head python3 -m vllmdeploy.node.ctl --run /run/vllmdeploy/run status"
    )
    assert waiting(plan, "service m").explain[0][1].argv[-4:] == ("logs", "m", "--tail", "12")


def awaited(*, fresh: bool) -> Wait:
    here = ground()
    steps.await_answer(here, SERVICE, "x", (), fresh=fresh)
    return waiting(here.draft.finished(), "service m")


def test_it_waits_while_the_engine_loads_and_is_done_when_it_runs() -> None:
    missing = awaited(fresh=True).missing
    assert missing(said(state="starting")) == "starting"
    assert missing(said(state="running")) is None
    assert missing(said(state="backing-off", reason="exit 1", failures=1)) == (
        "backing-off: exit 1"
    )


@pytest.mark.parametrize(
    "engine",
    [
        {"state": "backing-off", "failures": 1, "last_exit": {"code": 2}},
        {"state": "backing-off", "failures": 2, "last_exit": {"code": 1}},
        {"state": "crash-loop", "failures": 5},
    ],
)
def test_an_engine_that_cannot_come_up_ends_the_wait_with_its_own_words(
    engine: dict[str, object],
) -> None:
    output = ["INFO loading", '  File "x.py"', "serve: error: argument --max-model-len: invalid"]
    failed = said(**engine, reason="ended", last_failure={"last_lines": output})
    with pytest.raises(NotHealthy) as caught:
        awaited(fresh=True).missing(failed)
    assert caught.value.message == (
        "gpu-01: service m does not start: ended\n"
        "    serve: error: argument --max-model-len: invalid"
    )


def test_what_failed_first_is_said_before_what_followed() -> None:
    output = [
        "(Worker-0 pid=7) ERROR [x.py:9] ImportError: libnuma.so.1",
        *(f"(APIServer pid=1) Error {number}" for number in range(9)),
        "    raise RuntimeError(",
        "RuntimeError: See root cause above.",
    ]
    failed = said(
        state="crash-loop", failures=2, reason="ended", last_failure={"last_lines": output}
    )
    with pytest.raises(NotHealthy) as caught:
        awaited(fresh=True).missing(failed)
    _, first, *others = caught.value.message.splitlines()
    assert first.strip() == output[0]
    assert [line.strip() for line in others] == [*output[8:10], output[-1]]


def test_when_a_fleet_comes_back_earlier_failures_do_not_count() -> None:
    missing = awaited(fresh=False).missing
    assert missing(said(state="backing-off", reason="exit 1", failures=4)) == (
        "backing-off: exit 1"
    )
    assert missing(said(state="running")) is None


def test_a_removed_service_is_gone_when_its_warden_says_so() -> None:
    here = ground()
    steps.remove(here, "m", "stop-service")
    plan = here.draft.finished()
    assert lines(plan) == (
        "gpu-01: remove service m (stop-service)\ngpu-01: await end of m (nothing of it runs then)"
    )
    missing = waiting(plan, "end of m").missing
    assert missing(said(state="stopping")) == "stopping"
    assert missing(Result(0, '{"engines": {}}')) is None
    assert missing(Result(1, "", "No such container")) is None


def ray_says(**used: int) -> Result:
    nodes = [{"name": name, "alive": True, "used": {"GPU": count}} for name, count in used.items()]
    return Result(0, json.dumps({"nodes": nodes, "problem": ""}))


def test_a_stop_ends_when_ray_has_heard_that_the_cards_are_free() -> None:
    here = ground()
    await_cards(here, "m", 1, ())
    wait = waiting(here.draft.finished(), "cards of m")
    assert wait.command.argv[-1] == "nodes"
    assert wait.missing(ray_says(a=2, b=1)) == "Ray still counts 2 of them"
    assert wait.missing(ray_says(a=1, b=0)) is None
    assert wait.missing(Result(1, "", "No such container")) is None
    assert wait.at_most


@pytest.mark.parametrize(
    ("state", "in_use", "given_back"),
    [
        (EngineState(state="running", placement={"gpu-01": 1, "gpu-02": 2}), 3, 3),
        (EngineState(state="starting"), 0, 0),
        (EngineState(state="starting"), 2, 0),  # the other one's
        (EngineState(state="starting"), 3, 1),
        (EngineState(state="starting"), 5, 3),
        (EngineState(state="starting"), 9, 3),
        (None, 9, 0),
    ],
)
def test_a_service_gives_back_what_ray_says_it_has_or_what_nobody_else_has(
    state: EngineState | None, in_use: int, given_back: int
) -> None:
    one, other = service("m", 3), service("other", 2, port=8101)
    engines = {"m": state} if state else {}
    found = replace(group(stored=stored(one, other)), engines=engines)
    assert cards_by_ray(used(found, in_use), [one]) == given_back


def test_requests_at_work_hold_a_stop_back() -> None:
    here = ground()
    steps.drain(here, SERVICE, ())
    missing = waiting(here.draft.finished(), "service m").missing
    page = 'vllm:num_requests_running{a="b"} 2.0\nvllm:num_requests_waiting{a="b"} 1.0\nother 9\n'
    assert missing(Result(0, page)) == "3 requests are at work"
    assert missing(Result(0, page.replace("2.0", "0.0").replace("1.0", "0.0"))) is None
    assert missing(Result(1, "", "connection refused")) is None


def offering(here: Ground, gateway: GatewayWanted = GATEWAY, fleet: str = "") -> Offering:
    return Offering(ground=here, gateway=gateway, package=b"zip", fleet=fleet)


def test_the_gateway_is_made_with_its_keys_when_the_first_service_is() -> None:
    here = ground()
    offering(here).up([SERVICE], "a new service", ())
    plan = here.draft.finished()
    assert (
        lines(plan)
        == """\
gpu-01: write vllm-gateway's instances (a new service)
gpu-01: create keys folder (not all keys are there)
gpu-01: write API keys (not found)
gpu-01: write admin key (not found)
gpu-01: create vllm-gateway's folders (not found)
gpu-01: create vllm-gateway (not found)
gpu-01: await vllm-gateway (every service can be used through it)"""
    )
    made = next(step for step in plan if step.subject == "vllm-gateway" and step.verb == "create")
    assert made.command.argv[made.command.argv.index("-m") :] == (
        *("-m", "vllmdeploy.node.warden", "--name", "vllm-gateway", "--role", "instance"),
        *("--run", "/run/vllmdeploy/run", "--logs", "/var/log/vllmdeploy"),
        *("--health-url", "http://127.0.0.1:8000/"),
        *("--", "python3", "-m", "vllmdeploy.gateway"),
        *("--config", "/run/vllmdeploy/run/fleet/fleet.json"),
        *("--listen", "0.0.0.0:8000", "--name", "vllm"),
        *("--api-keys-file", "/run/vllmdeploy/gateway-keys/api_keys"),
        *("--admin-key-file", "/run/vllmdeploy/gateway-keys/admin_key"),
        *("--batch-size", "32", "--drain-timeout", "20"),
        *("--files", "/run/vllmdeploy/run/files", "--files-size", "10240M"),
    )
    assert "sk-1" not in " ".join(str(step.command) for step in plan)


def test_without_keys_the_networks_guard_and_the_warden_still_gets_in() -> None:
    here = ground()
    keyless = replace(GATEWAY, keyless=True, allow=("10.0.0.0/8",), keys=None, listen="fd00::1")
    offering(here, keyless).up([SERVICE], "x", ())
    made = next(step for step in here.draft.steps if step.key == "gpu-01: create vllm-gateway")
    line = str(made.command)
    assert "--auth none" in line
    assert "--allow 10.0.0.0/8,127.0.0.0/8,::1/128" in line
    assert "--listen '[fd00::1]:8000'" in line
    assert "--health-url 'http://[fd00::1]:8000/'" in line
    assert "api_keys" not in line


@pytest.mark.parametrize(("runtime", "word"), [("process", "start.sh"), ("systemd", "systemctl")])
def test_every_runtime_has_its_gateway(runtime: Runtime, word: str) -> None:
    here = ground(runtime)
    offering(here).up([SERVICE], "x", ())
    made = next(step for step in here.draft.steps if step.key == "gpu-01: create vllm-gateway")
    assert word in str(made.command)


def ready(*services: str) -> Result:
    models = {name: {"instances": {"ready": 1, "total": 1}} for name in services}
    return Result(0, json.dumps({"models": models}))


def test_the_gateway_is_awaited_until_every_service_can_be_used() -> None:
    here = ground()
    offering(here).up([SERVICE, service("n")], "x", ())
    missing = waiting(Plan(tuple(here.draft.steps[-1:])), "vllm-gateway").missing
    assert missing(Result(1, "", "connection refused")) == "it does not answer yet"
    assert missing(ready("m")) == "0 of 1 instances of n are ready"
    assert missing(ready("m", "n")) is None


def settled_gateway() -> Ground:
    """A head whose gateway runs as it should."""
    first = ground()
    offering(first).up([SERVICE], "x", ())
    head = first.head
    made = next(step for step in first.draft.steps if step.key == "gpu-01: create vllm-gateway")
    found = head.found
    (host,) = after(Plan((made,)), [found])
    keys = {
        "gateway/api_keys": digest(b"default:sk-1\n"),
        "gateway/admin_key": digest(b"admin:x\n"),
    }
    there = replace(host, secrets={**host.secrets, **keys})
    return replace(first, draft=Draft(), head=replace(head, found=there))


def test_a_settled_gateway_is_only_told_of_new_services() -> None:
    here = settled_gateway()
    known = digest(fleet_file(GATEWAY, [SERVICE]))
    offering(here, fleet=known).restore([SERVICE], ())
    assert here.draft.steps == []
    offering(here, fleet=known).up([SERVICE, service("n")], "a new service", ())
    assert lines(here.draft.finished()) == (
        "gpu-01: write vllm-gateway's instances (a new service)\n"
        "gpu-01: await vllm-gateway (every service can be used through it)"
    )


def subjects(steps_: list[Step]) -> list[str]:
    return [f"{step.verb} {step.subject}" for step in steps_]


def test_another_port_makes_another_gateway() -> None:
    here = settled_gateway()
    known = digest(fleet_file(GATEWAY, [SERVICE]))
    offering(here, replace(GATEWAY, port=9000), fleet=known).restore([SERVICE], ())
    assert subjects(here.draft.steps) == [
        *("stop vllm-gateway", "remove vllm-gateway"),
        *("create vllm-gateway's folders", "create vllm-gateway", "await vllm-gateway"),
    ]


def test_a_stopped_gateway_is_started_and_a_changed_key_is_written() -> None:
    here = settled_gateway()
    containers = tuple(
        replace(one, state="exited") if one.name == "vllm-gateway" else one
        for one in here.head.found.containers
    )
    stopped = replace(here.head, found=replace(here.head.found, containers=containers))
    known = digest(fleet_file(GATEWAY, [SERVICE]))
    again = replace(here, head=stopped)
    offering(again, replace(GATEWAY, keys=b"other:k\n"), fleet=known).restore([SERVICE], ())
    assert subjects(again.draft.steps) == [
        *("create keys folder", "write API keys", "start vllm-gateway", "await vllm-gateway"),
    ]
    assert isinstance(again.supervisor, InDocker)


def test_the_package_travels_once_and_is_that_of_the_running_node() -> None:
    here = settled_gateway()
    bare = replace(here.head, found=replace(here.head.found, packages=(), containers=()))
    fresh = replace(here, head=bare)
    assert fresh.package == "abcdef123456"
    assert here.package == "abcdef123456"
    offering(fresh).up([SERVICE], "x", ())
    offered = subjects(fresh.draft.steps)
    assert offered.count("write package abcdef123456") == 1


def test_the_fleet_file_names_every_service_in_one_order() -> None:
    content = fleet_file(replace(GATEWAY, default_model="m"), [service("n"), SERVICE])
    document = json.loads(content)
    assert [one["id"] for one in document["upstreams"]] == ["m", "n"]
    assert document["default_model"] == "m"
    spec = parse(content.decode(), "fleet.json")
    assert [(one.id, one.models, one.tensor_parallel_size) for one in spec.upstreams] == [
        ("m", ("m",), 2),
        ("n", ("n",), 2),
    ]

"""Short ways to say what instances find."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.plan.builders import bare, decided, wanted
from tests.plan.service_builders import CONFIG, VLLM
from vllmdeploy.core.plan import Draft
from vllmdeploy.plan.instances_decide import Instances, decide_instances
from vllmdeploy.plan.instances_steps import Sites
from vllmdeploy.plan.instances_wanted import FoundInstances, InstancesWanted
from vllmdeploy.plan.observed import FoundHost
from vllmdeploy.plan.service_wanted import ServiceWanted
from vllmdeploy.plan.supervise import supervisor
from vllmdeploy.plan.wanted import Wanted
from vllmdeploy.tools.vllm_model import FoundModel
from vllmdeploy.tools.vllm_services import Stored

ENGINE = ServiceWanted(
    model="m", tensor_parallel=1, max_num_seqs=6, gpu_memory_utilization=0.96, max_model_len=2048
)
ASKED = InstancesWanted(engine=ENGINE, usual_ports=(8001, 8002, 8003, 8004))
MODEL = FoundModel(there=True, config=CONFIG, weights=100 << 20)


def asked(count: int | None = None, **changes: Any) -> InstancesWanted:
    """Changes of the engine, or of the rest."""
    own = ("ports", "hosts", "usual_ports", "per_card")
    engine = {key: changes.pop(key) for key in tuple(changes) if key not in own}
    return replace(ASKED, count=count, engine=replace(ENGINE, **engine), **changes)


def fleet(*hosts: FoundHost, what: Wanted | None = None, **changes: Any) -> FoundInstances:
    """These hosts, or two of two cards each, with the model and vLLM on all."""
    there = list(hosts) or [bare("gpu-01", "10.0.0.1", head=True), bare("gpu-02", "10.0.0.2")]
    members = decided(what or wanted(), there)["default"].members
    names = [one.name for one in members]
    found = FoundInstances(
        members=members,
        lead=names[0],
        gateway_port=8000,
        vllm=dict.fromkeys(names, VLLM),
        models=dict.fromkeys(names, MODEL),
    )
    return replace(found, **changes)


def decide(wish: InstancesWanted, found: FoundInstances, what: Wanted | None = None) -> Instances:
    return decide_instances(what or wanted(), wish, found, beside=found.lead)


def kept(decision: Instances) -> dict[str, Stored]:
    """As they lie on the head once they have been started."""
    return {
        one.service.name: Stored(
            file=f"{one.service.name}.json", content=one.file.content(), service=one.service
        )
        for one in decision.of
    }


def sites(found: FoundInstances, what: Wanted | None = None) -> Sites:
    given = what or wanted()
    return Sites(
        draft=Draft(),
        wanted=given,
        supervisor=supervisor(given),
        found=found,
        package=b"zip",
    )

"""Short ways to say what services find."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tests.plan.builders import decided, settled, two_hosts, wanted
from vllmdeploy.plan.service_wanted import FoundServices, ServiceWanted
from vllmdeploy.plan.wanted import Wanted
from vllmdeploy.tools.ray import RayCluster, RayNode
from vllmdeploy.tools.vllm import Vllm
from vllmdeploy.tools.vllm_engine import EngineFile, EngineState
from vllmdeploy.tools.vllm_model import FoundModel
from vllmdeploy.tools.vllm_services import Service, Stored

CONFIG = json.dumps(
    {
        "model_type": "llama",
        "num_hidden_layers": 4,
        "hidden_size": 512,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 1000,
        "intermediate_size": 1024,
        "max_position_embeddings": 2048,
    }
)
VLLM = Vllm(
    version="0.17.0",
    serve=True,
    flags=frozenset({"--max-model-len", "--enforce-eager"}),
    methods=("awq", "fp8"),
)
MODEL = FoundModel(there=True, config=CONFIG)
ASKED = ServiceWanted(model="m", tensor_parallel=4)


def service(name: str = "other", cards: int = 2, port: int = 8100) -> Service:
    return Service(
        name=name,
        model=name,
        names=(name,),
        port=port,
        tensor_parallel=cards,
        head="gpu-01",
        asked={"model": name, "tensor_parallel": cards, "ports": [8100, 8199]},
    )


def stored(*services: Service) -> dict[str, Stored]:
    return {
        one.name: Stored(
            file=f"{one.name}.json",
            content=EngineFile(name=one.name, argv=("x",), service=one.document()).content(),
            service=one,
        )
        for one in services
    }


def running(*names: str) -> Mapping[str, EngineState]:
    return {name: EngineState(state="running") for name in names}


def group(what: Wanted | None = None, **changes: Any) -> FoundServices:
    """Two hosts of two cards each, joined in Ray, with the model on both."""
    what = what or wanted()
    hosts = settled(what, two_hosts())
    members = decided(what, hosts)["default"].members
    found = FoundServices(
        members=members,
        vllm=VLLM,
        models={"gpu-01": MODEL, "gpu-02": MODEL},
    )
    return replace(found, **changes)


def with_ray(found: FoundServices, cluster: RayCluster | None) -> FoundServices:
    head, *others = found.members
    changed = replace(head, found=replace(head.found, ray=cluster))
    return replace(found, members=(changed, *others))


def used(found: FoundServices, cards: float) -> FoundServices:
    """The same with cards of the first host in use, as Ray reports it."""
    nodes = tuple(
        replace(node, used={"GPU": cards if node.name == "gpu-01" else 0.0})
        for node in found.ray_nodes
    )
    return with_ray(found, RayCluster(nodes=nodes))


def without_node(found: FoundServices, name: str) -> FoundServices:
    nodes: tuple[RayNode, ...] = tuple(node for node in found.ray_nodes if node.name != name)
    return with_ray(found, RayCluster(nodes=nodes))

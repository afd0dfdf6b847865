"""Whether services that are stored and do not run have room on the cards that are there now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from vllmdeploy.core.command import Command
from vllmdeploy.plan import capacity
from vllmdeploy.plan.capacity_advice import no_room
from vllmdeploy.plan.observed import FoundHost
from vllmdeploy.plan.service import model_of
from vllmdeploy.plan.service_capacity import kinds_of, room_for, smallest, value_of
from vllmdeploy.plan.service_wanted import FoundServices, ServiceWanted
from vllmdeploy.plan.wanted import Wanted
from vllmdeploy.tools import docker
from vllmdeploy.tools.safetensors import Weights
from vllmdeploy.tools.vllm_model import FoundModel
from vllmdeploy.tools.vllm_services import Service, Stored


def to_consider(found: FoundServices) -> tuple[Stored, ...]:
    """One engine of each service none of whose engines runs: what runs has proved itself, and
    others of it on cards that are as large."""
    proved = {
        _alike(found, one)
        for one in found.services
        if one.name in found.engines and found.engines[one.name].state == "running"
    }
    waiting: dict[tuple[str, int], Stored] = {}
    for one in found.stored.values() if kinds_of(found.members) else ():
        if one.service and _alike(found, one.service) not in proved:
            waiting.setdefault(_alike(found, one.service), one)
    return tuple(waiting.values())


def _alike(found: FoundServices, service: Service) -> tuple[str, int]:
    return service.belongs_to, smallest(found.members, service.placement)


def asking_weights(wanted: Wanted, head: FoundHost, folder: str, *argv: str) -> Command | None:
    """The question of `tools.model_weights`, to the image or interpreter that a node will have;
    no node has to run for it. None: there is nobody to ask yet."""
    if wanted.runtime != "docker":
        return Command((wanted.python, *argv[1:]), limit_s=60)
    image = head.image
    if image is None:
        return None
    return docker.once(image.id, folder, wanted.docker_arguments, argv)


def reasons(
    wanted: Wanted,
    found: FoundServices,
    models: Mapping[str, FoundModel],
    weights: Mapping[str, Weights | None],
) -> Iterable[str]:
    """Why a stored service cannot start, in the words of `start-service`; by model's folder: what
    its head has of it, and its sizes."""
    for stored in to_consider(found):
        service, folder = stored.service, folder_of(wanted, stored)
        if service is None or folder not in models:
            continue
        shape, _ = model_of({found.head.name: models[folder]}, found.head.name, folder)
        asked = ServiceWanted.stored(service.asked)
        tensor, pipeline = service.tensor_parallel, service.pipeline_parallel
        if shape and (why := capacity.refusal(shape, tensor, pipeline)):
            yield f"service {service.belongs_to}: {why}"
        method = value_of(stored.argv, "--quantization")
        sized = replace(found, weights=weights.get(folder))
        room = room_for(asked, sized, shape, tensor, method, service.placement)
        for reason in no_room(room) if room else ():
            yield f"service {service.belongs_to}: {reason}"


def folder_of(wanted: Wanted, stored: Stored) -> str:
    name = stored.service.model if stored.service else ""
    return f"{wanted.model_path.rstrip('/')}/{name}"

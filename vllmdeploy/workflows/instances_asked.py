"""From settings, a profile and a command line to the instances that are wanted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from vllmdeploy.config import profiles
from vllmdeploy.config.settings import Settings
from vllmdeploy.plan.instances_wanted import InstancesWanted
from vllmdeploy.workflows.service import asked_of as service_asked
from vllmdeploy.workflows.service import checked_task

COMMAND = "instances"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """`from_profile`: what nobody has set, worded as in config.env."""

    wanted: InstancesWanted
    profile: str
    from_profile: tuple[str, ...] = ()


def asked_of(
    settings: Settings,
    model: str,
    *,
    profile_name: str | None,
    count: int | None,
    hosts: tuple[str, ...],
    task: str,
    **engine: Any,
) -> Asked:
    """What is set wins over the profile; ports that are set are the only ones that are taken."""
    profile = profiles.profile(COMMAND, profile_name)
    resolved = profiles.resolve(settings, profile)
    wanted = wanted_of(resolved, model, count=count, hosts=hosts, task=task, **engine)
    return Asked(
        wanted=replace(wanted, ports=settings.vllm_ports or ()),
        profile=profile.name,
        from_profile=from_profile(settings, profile),
    )


def wanted_of(
    resolved: Settings,
    model: str,
    *,
    count: int | None,
    hosts: tuple[str, ...],
    task: str,
    per_card: int = 1,
    **engine: Any,
) -> InstancesWanted:
    """`resolved`: with a profile's values for what is not set."""
    ports = resolved.engine_ports
    usual = (*(resolved.vllm_ports or ()), *range(ports.first, ports.last + 1))
    return InstancesWanted(
        engine=service_asked(
            resolved,
            model,
            tensor_parallel=resolved.tensor_parallel_size or 1,
            task=checked_task(task),
            **engine,
        ),
        count=count,
        per_card=per_card,
        hosts=hosts,
        usual_ports=tuple(dict.fromkeys(usual)),
    )


def from_profile(settings: Settings, profile: profiles.Profile) -> tuple[str, ...]:
    """What nobody has set, worded as in config.env."""
    taken = profiles.taken(settings, profile)
    return tuple(f"{key.upper()}={_text(value)}" for key, value in taken.items())


def _text(value: profiles.Value) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

"""From settings, a profile and a command line to the instances that are wanted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from vllmdeploy.config import profiles
from vllmdeploy.config.settings import Settings
from vllmdeploy.plan.instances_mps import Sharing
from vllmdeploy.plan.instances_wanted import InstancesWanted
from vllmdeploy.plan.mps_share import container_uid
from vllmdeploy.workflows.service import asked_of as service_asked
from vllmdeploy.workflows.service import checked_task

COMMAND = "instances"


@dataclass(frozen=True, slots=True, kw_only=True)
class CardShares:
    """What a command line says about several engines on a card. `cache_bytes`: of each."""

    no_mps: bool = False
    percentage: int | None = None
    cache_bytes: int | None = None

    def allowed(self, settings: Settings) -> bool:
        """One flag, or one of the seed's keys, goes back to one engine per card."""
        switches = (settings.cuda_mps_enable, settings.vllm_use_mps)
        return not self.no_mps and all(one is not False for one in switches)


USUAL = CardShares()


def sharing_of(settings: Settings, shares: CardShares) -> Sharing:
    in_docker = settings.runtime == "docker"
    return Sharing(
        pipe=settings.cuda_mps_pipe_directory.rstrip("/"),
        log=settings.cuda_mps_log_directory.rstrip("/"),
        percentage=shares.percentage,
        cache_bytes=shares.cache_bytes,
        uid=container_uid(settings.extra_docker_args) if in_docker else None,
        custom_all_reduce=settings.vllm_disable_custom_all_reduce is False,
    )


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
    engine.setdefault("per_card", settings.workers or 1)
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
    shares: CardShares = USUAL,
    **engine: Any,
) -> InstancesWanted:
    """`resolved`: with a profile's values for what is not set."""
    several = per_card if shares.allowed(resolved) else 1
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
        per_card=several,
        sharing=sharing_of(resolved, shares) if several > 1 else None,
        hosts=hosts,
        usual_ports=tuple(dict.fromkeys(usual)),
    )


def from_profile(settings: Settings, profile: profiles.Profile) -> tuple[str, ...]:
    """What nobody has set, worded as in config.env."""
    taken = profiles.taken(settings, profile)
    return tuple(f"{key.upper()}={_text(value)}" for key, value in taken.items())


def _text(value: profiles.Value) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

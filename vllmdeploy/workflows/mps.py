"""`mps start|stop|status|restart`: CUDA MPS daemons on the hosts of the fleet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from vllmdeploy.config.settings import Settings
from vllmdeploy.core.plan import Draft, Plan
from vllmdeploy.effects.ask import ask_one
from vllmdeploy.effects.fanout import each
from vllmdeploy.errors import PreflightRefused, UsageError, VllmdeployError
from vllmdeploy.plan import mps as plan
from vllmdeploy.plan import mps_stop
from vllmdeploy.plan.mps import FoundMps, MpsWanted, Per
from vllmdeploy.plan.mps_refusals import refusals
from vllmdeploy.plan.mps_share import container_uid
from vllmdeploy.plan.observed import FoundHost
from vllmdeploy.plan.supervise import supervisor
from vllmdeploy.tools.mps_found import Daemon, found, saved_modes
from vllmdeploy.workflows.logs import chosen
from vllmdeploy.workflows.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class MpsOptions:
    """What the command line says; None: what is there already, or the usual."""

    hosts: tuple[str, ...] = ()
    cards: tuple[int, ...] = ()
    per: str = ""
    exclusive: bool = False
    partitions: tuple[int, ...] = ()
    percentage: int | None = None
    keep_days: int = 7
    force: bool = False
    lines: int = 0


def wanted_of(settings: Settings, options: MpsOptions) -> MpsWanted:
    if options.per not in ("", "card", "host"):
        raise UsageError(f"--per {options.per}: it is card or host")
    per: Per = "host" if options.per == "host" else "card"
    return MpsWanted(
        cluster=settings.cluster_name,
        pipe=settings.cuda_mps_pipe_directory.rstrip("/"),
        log=settings.cuda_mps_log_directory.rstrip("/"),
        per=per,
        cards=options.cards,
        exclusive=options.exclusive,
        static=options.partitions,
        percentage=options.percentage,
        uid=container_uid(settings.extra_docker_args) if settings.runtime == "docker" else None,
        keep_days=options.keep_days,
    )


def look(session: Session, options: MpsOptions) -> tuple[FoundMps, ...]:
    """The named hosts as they are; without names, those that have NVIDIA's cards."""
    hosts = chosen(session.fleet, options.hosts)
    session.need_all()
    seen = session.look_at_all(for_plan=False)
    there = [seen[host.name] for host in hosts]
    nvidia = [one for one in there if one.cards.vendor == "nvidia"]
    if not options.hosts and not nvidia:
        has = "; ".join(f"{one.host.name}: {one.cards.vendor or 'no known card'}" for one in there)
        raise PreflightRefused((f"MPS is NVIDIA's, and no host has such a card ({has})",))
    return look_at(session, there if options.hosts else nvidia, lines=options.lines)


def look_at(
    session: Session, hosts: Sequence[FoundHost], *, lines: int = 0
) -> tuple[FoundMps, ...]:
    def one(host: FoundHost) -> FoundMps:
        fact = found(saved_modes(host.access.layout.root), lines=lines)
        shell = session.shells[host.host.name]
        return FoundMps(found=host, mps=ask_one(shell, fact, host.access))

    answers: list[FoundMps] = []
    for answer in each(hosts, one):
        if isinstance(answer, VllmdeployError):
            raise answer
        answers.append(answer)
    return tuple(answers)


def decide_start(session: Session, options: MpsOptions) -> Plan:
    wanted, hosts = wanted_of(session.settings, options), look(session, options)
    _refuse(reason for host in hosts for reason in refusals(wanted, host))
    draft = Draft()
    for host in hosts:
        plan.start(draft, wanted, host)
    return draft.finished()


def decide_stop(session: Session, options: MpsOptions) -> Plan:
    wanted, hosts = wanted_of(session.settings, options), look(session, options)
    draft = Draft()
    reasons: list[str] = []
    for host in hosts:
        daemons = mps_stop.meant(wanted, host)
        _note_strangers(draft, wanted, host)
        if not options.force:
            reasons += mps_stop.in_use(host, daemons, besides=())
        if daemons or host.mps.saved:
            mps_stop.stop(draft, wanted, host, daemons, force=options.force)
    _refuse(reasons, hint="end them first (`vllmdeploy instances stop`), or say --force")
    return draft.finished()


def decide_restart(session: Session, options: MpsOptions) -> Plan:
    wanted, hosts = wanted_of(session.settings, options), look(session, options)
    draft = Draft()
    reasons: list[str] = []
    for host in hosts:
        wished = wanted if options.per else replace(wanted, per=_per_now(wanted, host))
        daemons = mps_stop.meant(wished, host)
        reasons += refusals(wished, _without(host, daemons))
        if not options.force:
            group = mps_stop.members(wanted.cluster, host)
            reasons += mps_stop.in_use(host, daemons, besides=group)
        mps_stop.restart(draft, wished, host, supervisor(session.wanted), force=options.force)
    _refuse(reasons, hint="end them first, or say --force")
    return draft.finished()


def _per_now(wanted: MpsWanted, host: FoundMps) -> Per:
    used = {one.mps for one in mps_stop.members(wanted.cluster, host)}
    return "host" if host.mps.at(wanted.pipe) or wanted.pipe in used else "card"


def _without(host: FoundMps, daemons: Sequence[Daemon]) -> FoundMps:
    """The host as it will be once these daemons are gone."""
    left = tuple(one for one in host.mps.daemons if one not in daemons)
    return replace(host, mps=replace(host.mps, daemons=left))


def _note_strangers(draft: Draft, wanted: MpsWanted, host: FoundMps) -> None:
    for daemon in host.mps.daemons:
        if plan.foreign(wanted.cluster, daemon):
            draft.note(f"{host.name}: {daemon} was not started for this cluster: it stays")


def _refuse(reasons: Iterable[str], hint: str = "") -> None:
    listed = tuple(reasons)
    if listed:
        raise PreflightRefused(listed, hint=hint)

"""`model sync`: show what every host would get, ask, bring it, and say who has it now."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from vllmdeploy.cli import output
from vllmdeploy.cli.carry import end_with, show_plan
from vllmdeploy.cli.context import World, world
from vllmdeploy.errors import UsageError

if TYPE_CHECKING:
    from vllmdeploy.core.plan import Plan
    from vllmdeploy.effects.execute import Stop
    from vllmdeploy.effects.transfer_events import Progress, SyncEvent
    from vllmdeploy.errors import HostError
    from vllmdeploy.plan.service_models import Lacking
    from vllmdeploy.workflows.session import Session
    from vllmdeploy.workflows.sync import Job, Options, Synced

_RATE = re.compile(r"(\d+)([kmg]?)", re.IGNORECASE)
_KIB = {"": 1, "k": 1, "m": 1024, "g": 1024 * 1024}
_SHOWN_HOSTS = 8


def sync(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The model's folder in MODEL_PATH.")],
    *,
    bwlimit: Annotated[
        str, typer.Option(help="Most that one host sends or receives a second: 800k, 100m, 1g.")
    ] = "",
    interface: Annotated[
        str, typer.Option(help="Interface for the data. Default: the fastest shared network.")
    ] = "auto",
    through_control: Annotated[
        bool, typer.Option("--through-control", help="Hosts may not reach each other.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show every command and its cause; run none.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Bring a model to every host; each finished host helps the others. READY comes last.

    Example: vllmdeploy model sync Llama-3-8B-instruct --bwlimit 500m
    """
    from vllmdeploy.workflows import sync as workflow

    here = world(context)
    options = workflow.Options(
        interface=interface, limit_kib_s=kib_per_second(bwlimit), through_control=through_control
    )
    loaded = here.loaded()
    with here.session(loaded) as session:
        if dry_run:
            job = workflow.look_at(session, name, options)
            show_plan(here, workflow.decide(session, job))
            failures = session.failures
        else:
            with in_turn(session, name) as stop:
                job, synced = bring(here, session, name, options, stop, yes=yes)
                synced, failures = _latecomers(here, session, name, options, stop, synced)
            conclude(here, job, synced)
        for failure in failures.values():
            raise failure


def _latecomers(
    here: World, session: Session, name: str, options: Options, stop: Stop, synced: Synced
) -> tuple[Synced, dict[str, HostError]]:
    """Hosts that could not be reached before are asked once more, and served by all that have it.
    With what came of it, the hosts that are still away."""
    away = [host for host in session.failures if host not in synced.failed]
    if not away:
        return synced, session.failures
    output.say(f"asking once more: {', '.join(away)}")
    with here.session(session.loaded) as again:
        if any(host in again.shells for host in away):
            _, late = bring(here, again, name, options, stop, yes=True)
            synced = synced.and_then(late)
        return synced, again.failures


def kib_per_second(text: str) -> int | None:
    """`800k`, `100m`, `1g`: bytes a second in powers of 1024; a plain number counts KiB."""
    if not text:
        return None
    found = _RATE.fullmatch(text)
    rate = int(found[1]) * _KIB[found[2].lower()] if found else 0
    if not rate:
        raise UsageError(f"--bwlimit {text}: not a rate", hint="as 800k, 100m or 1g")
    return rate


def in_turn(session: Session, name: str) -> AbstractContextManager[Stop]:
    """One sync of a model at a time; who waits is told for whom."""
    from vllmdeploy.workflows.sync_alone import alone

    return alone(session, name, lambda text: output.say(f"waiting: {text}"))


def sync_downloaded(here: World, session: Session, name: str) -> None:
    """Right after a download: the question was asked there."""
    from vllmdeploy.workflows import sync as workflow

    with in_turn(session, name) as stop:
        job, synced = bring(here, session, name, workflow.Options(), stop, yes=True)
    conclude(here, job, synced)


def bring_what_lacks(here: World, session: Session, lacks: Iterable[Lacking], *, yes: bool) -> None:
    """What services need, to the hosts that have none; the first that does not get it ends it."""
    from vllmdeploy.workflows import sync as workflow

    for one in lacks:
        output.say(f"model {one.model} is lacking on {', '.join(sorted(one.hosts))}: it goes first")
        with in_turn(session, one.model) as stop:
            options = workflow.Options(only=one.hosts)
            _, synced = bring(here, session, one.model, options, stop, yes=yes)
        end_with(list(synced.failed.values()))


def shown_first(session: Session, lacks: Iterable[Lacking], decided: Plan) -> Plan:
    """The same as a plan to show, before what it is needed for."""
    from vllmdeploy.plan.service_models import together
    from vllmdeploy.workflows import sync as workflow

    jobs = [workflow.look_at(session, x.model, workflow.Options(only=x.hosts)) for x in lacks]
    return together((*(workflow.decide(session, job) for job in jobs), decided))


def bring(
    here: World, session: Session, name: str, options: Options, stop: Stop, *, yes: bool
) -> tuple[Job, Synced]:
    """Ask, and carry out."""
    from vllmdeploy.workflows import cluster
    from vllmdeploy.workflows import sync as workflow

    job = workflow.look_at(session, name, options)
    decided = workflow.decide(session, job)
    for note in decided.notes:
        output.say(f"note: {note}")
    if job.targets:
        for step in decided:
            output.say(output.step_line(step))
        missing = sum(job.manifest.total - job.stands[host].there for host in job.targets)
        question = f"Bring {name} to {len(job.targets)} hosts ({_size(missing)})?"
        output.confirm(question, yes=yes)

    def carry_out() -> Synced:
        with shown(name) as on_event:
            return workflow.carry_out(session, job, lambda event: None, on_event, stop)

    if not job.targets:
        return job, carry_out()
    synced, unrecorded = cluster.recorded(
        session, f"model sync {name}", carry_out, tally=workflow.Synced.tally
    )
    if unrecorded:
        output.say(f"note: not in the audit log: {unrecorded.message}")
    return job, synced


def conclude(here: World, job: Job, synced: Synced) -> None:
    """Say who has it now; the exit code is that of the first host that failed."""
    if here.json:
        output.document(
            {
                "model": job.place.name,
                "digest": job.manifest.digest,
                "bytes": job.manifest.total,
                "had": list(job.sources),
                "done": list(synced.done),
                "shared": dict(synced.shared),
                "failed": {host: error.message for host, error in synced.failed.items()},
                "received_bytes": synced.wire,
            }
        )
    for error in synced.failed.values():
        output.error(error)
    for error in synced.failed.values():
        raise typer.Exit(error.exit_code)
    have = len(synced.done) + len(job.sources)
    output.say(f"{job.place.name} is ready on {have} hosts ({_size(synced.wire)} received)")


@contextmanager
def shown(name: str) -> Generator[Callable[[SyncEvent], None]]:
    """A live line on a terminal; elsewhere a plain one now and then, and one for every host."""
    from vllmdeploy.cli import model_progress
    from vllmdeploy.effects.transfer_events import Again, HostDone, HostFailed, Joined, Progress

    with model_progress.line() as line:

        def on_event(event: SyncEvent) -> None:
            match event:
                case Progress():
                    line.tell(progress_text(name, event))
                case HostDone(host, seconds):
                    line.say(f"{host}: {name} is ready, after {seconds:.1f} s")
                case HostFailed(host, error):
                    line.say(f"{host}: failed: {error.message}")
                case Again(host, text):
                    line.say(f"{host}: once more: {text}")
                case Joined(host, there):
                    line.say(f"{host}: takes part, {_size(there)} are there")

        yield on_event


def _size(count: float) -> str:
    from vllmdeploy.plan.models_files import size_text

    return size_text(count)


def progress_text(name: str, progress: Progress) -> str:
    """`NAME: 45 % of 3 hosts, 123.0 MiB/s, 2:07 left; a 40 %, b 50 %, c 45 %`."""
    from vllmdeploy.cli.model_progress import time_text

    total = progress.total * len(progress.there)
    share = 100 * sum(progress.there.values()) // total if total else 0
    parts = [f"{name}: {share} % of {len(progress.there)} hosts"]
    if progress.rate:
        parts.append(f"{_size(progress.rate)}/s")
    if progress.left_s is not None:
        parts.append(f"{time_text(progress.left_s)} left")
    slowest = sorted(progress.there.items(), key=lambda each: each[1])[:_SHOWN_HOSTS]
    hosts = ", ".join(
        f"{host} {100 * there // max(progress.total, 1)} %" for host, there in slowest
    )
    return ", ".join(parts) + (f"; {hosts}" if hosts else "")

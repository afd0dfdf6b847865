"""`mps start|stop|status|restart`: several processes on one NVIDIA card."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllmdeploy.cli import output
from vllmdeploy.cli.carry import carry_out, show_plan
from vllmdeploy.cli.context import World, world

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vllmdeploy.core.plan import Plan
    from vllmdeploy.plan.mps_status import Row
    from vllmdeploy.workflows.mps import MpsOptions
    from vllmdeploy.workflows.session import Session

app = typer.Typer(
    help="CUDA MPS, by which several engines share an NVIDIA card: start, stop, status, restart.",
    no_args_is_help=True,
)

Hosts = Annotated[
    str, typer.Option("--hosts", help="Names, with commas. Default: all with NVIDIA cards.")
]
Cards = Annotated[str, typer.Option("--cards", help="Cards, with commas. Default: all usable.")]
PerWhat = Annotated[
    str, typer.Option("--per", help="A daemon for each card, or one per host: card or host.")
]
Exclusive = Annotated[
    bool,
    typer.Option("--exclusive", help="Set EXCLUSIVE_PROCESS meanwhile; stop sets it back."),
]
Partitions = Annotated[
    str,
    typer.Option("--partitions", help="Static partitions of each card: their chunks, as 8,8."),
]
Percentage = Annotated[
    int | None,
    typer.Option("--percentage", min=1, max=100, help="Most threads of a client, in percent."),
]
KeepDays = Annotated[int, typer.Option("--keep-days", min=0, help="Older logs are removed.")]
Force = Annotated[bool, typer.Option("--force", help="End daemons that processes still use.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show every command and its cause; run none.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]

_HEADINGS = ("HOST", "DAEMON", "CARDS", "PID", "UID", "SERVERS", "CLIENTS", "THREADS", "STATE")


@app.command()
def start(
    context: typer.Context,
    *,
    hosts: Hosts = "",
    cards: Cards = "",
    per: PerWhat = "card",
    exclusive: Exclusive = False,
    partitions: Partitions = "",
    percentage: Percentage = None,
    keep_days: KeepDays = 7,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Start MPS daemons; those that run as wanted stay. Old logs are cleaned first.

    Example: vllmdeploy mps start --hosts gpu-01 --exclusive
    """
    from vllmdeploy.workflows import mps

    options = _options(
        hosts=hosts,
        cards=cards,
        per=per,
        exclusive=exclusive,
        partitions=partitions,
        percentage=percentage,
        keep_days=keep_days,
    )
    _carry(world(context), mps.decide_start, options, "mps start", dry_run=dry_run, yes=yes)


@app.command()
def stop(
    context: typer.Context,
    *,
    hosts: Hosts = "",
    cards: Cards = "",
    force: Force = False,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Stop the daemons that this tool started, and set compute modes back.

    Example: vllmdeploy mps stop --hosts gpu-01
    """
    from vllmdeploy.workflows import mps

    options = _options(hosts=hosts, cards=cards, force=force)
    _carry(world(context), mps.decide_stop, options, "mps stop", dry_run=dry_run, yes=yes)


@app.command()
def restart(
    context: typer.Context,
    *,
    hosts: Hosts = "",
    cards: Cards = "",
    per: PerWhat = "",
    exclusive: Exclusive = False,
    partitions: Partitions = "",
    percentage: Percentage = None,
    keep_days: KeepDays = 7,
    force: Force = False,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Start daemons anew, and with each the instances that share its card, as one group.

    Example: vllmdeploy mps restart --hosts gpu-01 --cards 0
    """
    from vllmdeploy.workflows import mps

    options = _options(
        hosts=hosts,
        cards=cards,
        per=per,
        exclusive=exclusive,
        partitions=partitions,
        percentage=percentage,
        keep_days=keep_days,
        force=force,
    )
    _carry(world(context), mps.decide_restart, options, "mps restart", dry_run=dry_run, yes=yes)


@app.command()
def status(
    context: typer.Context,
    *,
    hosts: Hosts = "",
    lines: Annotated[int, typer.Option("--lines", min=0, help="Lines of each log.")] = 5,
) -> None:
    """Show every MPS daemon, its servers, their clients and shares, and the end of its logs.

    Example: vllmdeploy mps status --lines 20
    """
    from vllmdeploy.plan.mps_status import rows
    from vllmdeploy.workflows import mps

    here = world(context)
    options = _options(hosts=hosts, lines=lines)
    with here.session(here.loaded(bare_names=True)) as session:
        seen = mps.look(session, options)
        cluster = session.settings.cluster_name
    shown = [row for host in seen for row in rows(cluster, host)]
    if here.json:
        output.document({"daemons": [row.document() for row in shown]})
        return
    _show(shown)


def _show(shown: Sequence[Row]) -> None:
    output.answer(output.table(_HEADINGS, [row.cells for row in shown]))
    for row in shown:
        for remark in row.remarks:
            output.answer(f"{row.host}: {row.name}: {remark}")
    for row in shown:
        for line in row.lines:
            output.answer(f"{row.host}: {line}")


def _options(*, hosts: str, cards: str = "", partitions: str = "", **more: Any) -> MpsOptions:
    from vllmdeploy.workflows.mps import MpsOptions

    return MpsOptions(
        hosts=tuple(name.strip() for name in hosts.split(",") if name.strip()),
        cards=_numbers("--cards", cards),
        partitions=_numbers("--partitions", partitions),
        **more,
    )


def _numbers(flag: str, text: str) -> tuple[int, ...]:
    from vllmdeploy.errors import UsageError

    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words:
        if not (word.isascii() and word.isdecimal() and len(word) < 5):
            raise UsageError(f"{flag} {text}: {word!r} is not a number; write 0,1")
    return tuple(int(word) for word in words)


def _carry(
    here: World,
    decide: Callable[[Session, MpsOptions], Plan],
    options: MpsOptions,
    what: str,
    *,
    dry_run: bool,
    yes: bool,
) -> None:
    from vllmdeploy.workflows import cluster

    with here.session(here.loaded(bare_names=True)) as session:
        session.need_all()
        if dry_run:
            show_plan(here, decide(session, options))
            return
        with cluster.locked(session, what) as stopping:
            carry_out(here, session, decide(session, options), what, stopping, yes=yes)

"""The rows of one batch through the runner of `batch run`, by way of the gateway itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from vllmdeploy.batch.loops import Stop, Stopped
from vllmdeploy.batch.progress import Progress
from vllmdeploy.batch.run import run_batch
from vllmdeploy.batch.spec import BatchSpec
from vllmdeploy.gateway.api.batches_calls import HERE, Enter, GatewayCalls
from vllmdeploy.gateway.api.batches_store import BatchStore, Record
from vllmdeploy.routing.upstream import Upstream


def run_rows(
    store: BatchStore,
    record: Record,
    enter: Enter,
    loop: asyncio.AbstractEventLoop,
    stop: Stop,
    listener: Callable[[Progress], None],
) -> None:
    """Returns when all rows are in the output; `Stopped` where `stop` was asked before."""
    spec = BatchSpec(
        input=store.input(record),
        output=store.output(record),
        upstreams=(Upstream("gateway", HERE),),
        endpoint=record.endpoint,
    )
    try:
        run_batch(
            spec,
            listener=listener,
            say=_silent,
            connect=lambda _: GatewayCalls(enter, record.owner, loop),
            stop=stop,
        )
    except KeyboardInterrupt:  # how a run says that somebody cancelled it, in whatever way
        raise Stopped from None


def _silent(_: str) -> None:
    """What a batch waits for is in its progress."""

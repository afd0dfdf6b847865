"""What all routes share: the fleet, the way to it, who may use it, what is counted."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from vllmdeploy.gateway.access import Access
from vllmdeploy.gateway.api.batches_run import Batches
from vllmdeploy.gateway.api.files_store import FileStore
from vllmdeploy.gateway.dispatch import Dispatcher
from vllmdeploy.gateway.fleet import Fleet, Group
from vllmdeploy.gateway.keys import Identity, Ledger
from vllmdeploy.gateway.meters import Meters
from vllmdeploy.gateway.refusal import Refusal
from vllmdeploy.gateway.spec import GatewaySpec
from vllmdeploy.gateway.steering import Steering
from vllmdeploy.gateway.visit import Visit
from vllmdeploy.wire.pool import Pool


@dataclass(slots=True, eq=False)
class Gateway:
    spec: GatewaySpec
    fleet: Fleet
    dispatcher: Dispatcher
    access: Access
    steering: Steering
    loop: asyncio.AbstractEventLoop
    meters: Meters = field(default_factory=Meters)
    ledger: Ledger = field(default_factory=Ledger)
    draining: bool = False
    files: FileStore | None = None
    batches: Batches | None = None
    parent: Pool | None = None  # of a worker

    def group_for(self, visit: Visit, model: str | None) -> Group:
        """The instances for a model, if this key may use it."""
        group = self.fleet.group(model)
        if not may_use(visit.identity, group):
            raise Refusal(403, f"this key may not use the model {group.model}")
        visit.model = group.model
        self.ledger.begin(visit.identity, time.time())
        return group


def may_use(identity: Identity, group: Group) -> bool:
    """A key that names a model by one of its names may use it by each of them."""
    allowed = identity.models
    return not allowed or not allowed.isdisjoint((group.model, *_names(group)))


def _names(group: Group) -> set[str]:
    return {name for member in group.members for name in member.models}

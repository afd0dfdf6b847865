"""Where steps for instances are written, and which address their engines listen on."""

from __future__ import annotations

from vllmdeploy.core.plan import Draft
from vllmdeploy.plan.instances_steps import Sites
from vllmdeploy.plan.instances_wanted import FoundInstances
from vllmdeploy.workflows.session import Session


def sites_of(session: Session, found: FoundInstances, draft: Draft | None = None) -> Sites:
    return Sites(
        draft=draft or Draft(),
        wanted=session.wanted,
        supervisor=session.supervisor,
        found=found,
        package=session.package[0],
    )


def beside(session: Session) -> str:
    """Engines beside the only gateway listen on loopback, the others on the fleet's addresses."""
    lead = session.lead.name
    return lead if [host.name for host in session.fleet.offering] == [lead] else ""

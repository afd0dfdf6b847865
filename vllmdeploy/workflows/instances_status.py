"""How stored instances are, for `status`: by what was found, and one question to the lead."""

from __future__ import annotations

from collections.abc import Mapping

from vllmdeploy.errors import VllmdeployError
from vllmdeploy.plan.instances_known import Known, known_on
from vllmdeploy.plan.observed import FoundHost
from vllmdeploy.workflows.instances_stored import stored_instances
from vllmdeploy.workflows.session import Session


def instance_statuses(
    session: Session, found: Mapping[str, FoundHost | VllmdeployError]
) -> tuple[Known, ...]:
    there = {name: one for name, one in found.items() if isinstance(one, FoundHost)}
    if session.lead.name not in there:
        return ()
    cluster = session.wanted.cluster
    return tuple(
        known_on(cluster, one, found.get(one.head)) for one in stored_instances(session, there)
    )

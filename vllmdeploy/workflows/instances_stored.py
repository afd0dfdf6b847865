"""The instances that the fleet's head keeps."""

from __future__ import annotations

from collections.abc import Mapping

from vllmdeploy.effects.ask import ask_one
from vllmdeploy.plan.instances_wanted import instances_of
from vllmdeploy.plan.observed import FoundHost
from vllmdeploy.tools.vllm_services import Service, stored
from vllmdeploy.workflows.session import Session


def stored_instances(session: Session, found: Mapping[str, FoundHost]) -> tuple[Service, ...]:
    lead = found[session.lead.name]
    fact = stored(lead.access.layout.instances)
    return instances_of(ask_one(session.shells[session.lead.name], fact, lead.access))

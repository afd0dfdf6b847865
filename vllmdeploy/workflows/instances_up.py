"""What `up` does for stored instances: those that do not run come back as they were started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vllmdeploy.core.plan import Draft
from vllmdeploy.errors import PreflightRefused
from vllmdeploy.plan import instances_steps as steps
from vllmdeploy.plan.instances_back import lacking_of, on_members
from vllmdeploy.plan.instances_decide import Instances, decide_instances
from vllmdeploy.plan.instances_mps import daemons
from vllmdeploy.plan.instances_node import Instance
from vllmdeploy.plan.instances_wanted import asked_of, slot_of
from vllmdeploy.plan.observed import FoundHost
from vllmdeploy.plan.service import model_folder
from vllmdeploy.tools.vllm_services import Service
from vllmdeploy.workflows.instances_look import look
from vllmdeploy.workflows.instances_sites import beside, sites_of
from vllmdeploy.workflows.service_look import Seen
from vllmdeploy.workflows.session import Session


def promised(
    found: Mapping[str, FoundHost], instances: Sequence[Service]
) -> Mapping[str, FoundHost]:
    """The hosts with the cards that these have, so that Ray takes none of them meanwhile."""
    cards: dict[str, dict[int, str]] = {}
    for one in instances:
        cards.setdefault(one.head, {}).update(dict.fromkeys(slot_of(one).cards, one.name))
    return {
        name: replace(host, promised=cards[name]) if name in cards else host
        for name, host in found.items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Back:
    """Instances that come back, and the steps which say that each of them answers."""

    instances: tuple[Service, ...] = ()
    awaited: tuple[str, ...] = ()


def bring_back(session: Session, seen: Seen, draft: Draft, *, patient: bool) -> Back:
    """Those that run are left alone, whatever has changed: `instances restart` takes turns."""
    found = on_members(look(session, seen=seen).found)
    lacking = lacking_of(found, patient=patient)
    names = {one.name for one in lacking}
    decided = [
        one
        for of_name in dict.fromkeys(one.belongs_to for one in lacking)
        if (one := _decided(session, seen, draft, found.named(of_name)))
    ]
    wanted = [one for of_name in decided for one in of_name.of if one.service.name in names]
    sites = replace(sites_of(session, found, draft), patient=patient)
    ready = steps.bring_all(sites, wanted, _daemons(draft, decided, wanted))
    return Back(
        instances=tuple(one.service for one in wanted if one.service.name in ready),
        awaited=tuple(ready.values()),
    )


def _decided(
    session: Session, seen: Seen, draft: Draft, of_name: tuple[Service, ...]
) -> Instances | None:
    """All of one name as they were asked for, on the hosts that have them."""
    hosts = tuple(dict.fromkeys(one.head for one in of_name))
    asked = replace(asked_of(of_name[0]), count=None, hosts=hosts)
    folder, shares = model_folder(session.wanted, asked.engine), asked.per_card > 1
    looked = look(session, model=folder, hosts=hosts, mps=shares, seen=seen)
    found = on_members(looked.found)
    try:
        return decide_instances(session.wanted, asked, found, beside=beside(session))
    except PreflightRefused as error:
        # The rest of the fleet comes up all the same; `status` goes on showing these.
        name = of_name[0].belongs_to
        draft.note(
            f"instances of {name} cannot come back: {'; '.join(error.reasons)};"
            f" `vllmdeploy instances stop {name}` forgets them"
        )
        return None


def _daemons(
    draft: Draft, decided: Sequence[Instances], wanted: Sequence[Instance]
) -> Mapping[str, tuple[str, ...]]:
    """By host, the steps that start the MPS daemons which its instances lack."""
    first: dict[str, tuple[str, ...]] = {}
    for crowded in (one for of_name in decided for one in of_name.crowds):
        host = crowded.member.name
        whole_host_done = crowded.wanted.per == "host" and host in first
        if any(one.slot.host == host for one in wanted) and not whole_host_done:
            first[host] = (*first.get(host, ()), *daemons(draft, crowded))
    return first

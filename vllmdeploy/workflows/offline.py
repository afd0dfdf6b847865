"""A plan without contacting anybody: for hosts that have nothing yet."""

from __future__ import annotations

from dataclasses import replace

from vllmdeploy.accelerators import registry
from vllmdeploy.config.settings import Loaded
from vllmdeploy.core.card import Card, CardReport
from vllmdeploy.core.host import Host
from vllmdeploy.core.layout import SYSTEM_STATE_ROOT, Layout
from vllmdeploy.core.plan import Plan
from vllmdeploy.plan.group import GroupPlan, decide_group
from vllmdeploy.plan.network import Place
from vllmdeploy.plan.node_steps import Payload
from vllmdeploy.plan.observed import FoundHost
from vllmdeploy.plan.up import plan_up
from vllmdeploy.plan.wanted import Wanted
from vllmdeploy.tools.access import Access
from vllmdeploy.workflows.session import Session

_AUTO = "auto"
_USUAL_VENDOR = "nvidia"


def decide_offline(loaded: Loaded, *, cards: int) -> Plan:
    """Host names stand where addresses would, and interfaces are left out."""
    session = Session(loaded, {}, {})
    groups = imagined_groups(session, cards=cards)
    content, _ = session.package
    plan = plan_up(session.wanted, groups, Payload(content, token=""), session.supervisor)
    note = (
        f"offline: no host was asked; {cards} cards per host, names where addresses would be,"
        " interfaces (NCCL_SOCKET_IFNAME and the like) left out"
    )
    return replace(plan, notes=(note, *plan.notes))


def imagined_groups(session: Session, *, cards: int) -> dict[str, GroupPlan]:
    """All groups as if every host had what its line and the settings say, and nothing else."""
    loaded, wanted = session.loaded, session.wanted
    return {
        name: decide_group(
            wanted,
            name,
            [_imagined(wanted, host, cards) for host in loaded.fleet.group(name) if not host.spare],
            lambda host: registry.named(host.cards.vendor),
            places={
                host.name: Place(ip=host.ip or host.address) for host in loaded.fleet.group(name)
            },
        )
        for name in loaded.fleet.groups
    }


def _imagined(wanted: Wanted, host: Host, cards: int) -> FoundHost:
    group = wanted.groups[host.group]
    named = host.accelerator or group.accelerator
    vendor = registry.named(_USUAL_VENDOR if named == _AUTO else named)
    root = Layout(f"{SYSTEM_STATE_ROOT}/{wanted.cluster}")
    count = 0 if vendor.name == "cpu" else cards
    return FoundHost(
        host=host,
        access=Access(root, user=host.user or "", uid=0, sudo_docker=False, sudo_files=False),
        cards=CardReport(
            vendor=vendor.name, cards=tuple(Card(index=index) for index in range(count))
        ),
        image_name=group.image or vendor.default_image,
    )

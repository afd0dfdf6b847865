"""Joins the head and the hosts of worker_nodes.txt to one fleet, and says what does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vllmdeploy.config.places import place
from vllmdeploy.core.host import DEFAULT_GROUP, FRONT_GROUP, Fleet, Host

THIS_MACHINE = "localhost"
_SSH_PORT = 22


def image_key(group: str) -> str:
    """The end of IMAGE_<GROUP>: `hygon-a` is HYGON_A."""
    return group.upper().replace("-", "_")


def assemble(
    nodes: Sequence[Host],
    *,
    head_host: str | None,
    head_ip: str | None,
    this_machine: str,
    gateway_hosts: Sequence[str] = (),
) -> tuple[Fleet, tuple[str, ...]]:
    """The fleet, its head first, and every problem; with problems the fleet is of no use."""
    head, rest, problems = _head(nodes, head_host, this_machine)
    if head_ip is not None:
        problems += _head_ip_problems(head, rest, head_ip)
        head = replace(head, ip=head_ip)
    problems += _group_problems(head, rest)
    hosts = (head, *rest)
    gateways = tuple(_gateway(text, hosts, this_machine) for text in gateway_hosts)
    return Fleet(hosts, gateways), tuple(problems)


def _gateway(text: str, hosts: Sequence[Host], this_machine: str) -> Host:
    """A host of the fleet by its name or address, or one that runs the gateway alone."""
    where = place(text)
    front = Host(
        name=where.name,
        address=THIS_MACHINE if where.name == this_machine else where.address,
        user=where.user,
        port=where.port,
        group=FRONT_GROUP,
        source="GATEWAY_HOSTS",
    )
    return next((host for host in hosts if _same(host, front) or host.name == front.name), front)


def _head(
    nodes: Sequence[Host], head_host: str | None, this_machine: str
) -> tuple[Host, tuple[Host, ...], list[str]]:
    wanted = _named_head(head_host, this_machine)
    listed = next((node for node in nodes if _same(node, wanted)), None)
    if listed is None and head_host is None:
        listed = next((node for node in nodes if node.head and node.group == DEFAULT_GROUP), None)
    if listed is None:
        return wanted, tuple(nodes), []
    head = replace(
        listed,
        head=True,
        user=wanted.user if head_host and wanted.user else listed.user,
        port=wanted.port if head_host and wanted.port else listed.port,
    )
    problems = [] if listed.head else [_listed_as_worker(listed, head_host)]
    return head, tuple(node for node in nodes if node is not listed), problems


def _named_head(head_host: str | None, this_machine: str) -> Host:
    if head_host is None:
        return Host(name=this_machine, address=THIS_MACHINE, head=True, source="this machine")
    where = place(head_host)
    return Host(
        name=where.name,
        address=where.address,
        user=where.user,
        port=where.port,
        head=True,
        source="HEAD_HOST",
    )


def _same(node: Host, head: Host) -> bool:
    names = {head.name.lower(), head.address.lower()}
    # This machine is reached without SSH: another port of its name leads into some other machine.
    port = _SSH_PORT if head.address == THIS_MACHINE else head.port
    same_port = node.port is None or port is None or node.port == port
    return node.address.lower() in names and same_port


def _listed_as_worker(node: Host, head_host: str | None) -> str:
    what = "the head (HEAD_HOST)" if head_host else "this machine, the head"
    return f"{node.source}: {node.name} is {what}: remove the line, or add head=yes to it"


def _head_ip_problems(head: Host, rest: Sequence[Host], head_ip: str) -> list[str]:
    problems = [
        f"{node.source}: {node.name} has the address {head_ip} of the head (HEAD_IP)"
        for node in rest
        if head_ip in (node.ip, node.address)
    ]
    if head.ip is not None and head.ip != head_ip:
        problems.append(f"{head.source}: ip={head.ip} of the head is not HEAD_IP, {head_ip}")
    return problems


def _group_problems(head: Host, rest: Sequence[Host]) -> list[str]:
    problems: list[str] = []
    keys = {image_key(head.group): head.group}
    heads = {head.group: head}
    for node in rest:
        if node.head and node.group in heads:
            other = heads[node.group]
            problems.append(
                f"{node.source}: head=yes: the head of group {node.group} is {other.name} "
                f"({other.source})"
            )
        elif node.head:
            heads[node.group] = node
        known = keys.setdefault(image_key(node.group), node.group)
        if known != node.group:
            problems.append(
                f"{node.source}: group={node.group}: too like group {known}, "
                f"both would have the image IMAGE_{image_key(known)}"
            )
    for group in dict.fromkeys(node.group for node in rest):
        if group not in heads:
            first = next(node for node in rest if node.group == group)
            problems.append(f"{first.source}: group={group}: no host of this group has head=yes")
    return problems

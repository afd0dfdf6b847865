"""Reads worker_nodes.txt: one host a line, every problem with its line."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from vllmdeploy.config import readers, values
from vllmdeploy.config.envfile import lines
from vllmdeploy.config.places import is_ip, place
from vllmdeploy.core.host import Host

_group = readers.word(r"[a-z0-9][a-z0-9_-]{0,30}", "a group name: up to 31 of a-z 0-9 _ -")
_interface = readers.word(r"[A-Za-z0-9_][A-Za-z0-9_.:@-]{0,14}", "a network interface")
_vendor = readers.word(r"[a-z][a-z0-9_-]{0,30}", "an accelerator")
_card = readers.whole(0, 1023, "card number")
_count = readers.whole(0, 1024)

_OPTIONS: Mapping[str, Callable[[Host, str], Host]] = {
    "ip": lambda host, text: replace(host, ip=readers.ip_address(text)),
    "interface": lambda host, text: replace(host, interface=_interface(text)),
    "group": lambda host, text: replace(host, group=_group(text)),
    "accelerator": lambda host, text: replace(host, accelerator=_vendor(text)),
    "gpus": lambda host, text: replace(host, gpus=_cards(text)),
    "ray_gpus": lambda host, text: replace(host, ray_gpus=_count(text)),
    "spare": lambda host, text: replace(host, spare=readers.switch(text)),
    "head": lambda host, text: replace(host, head=readers.switch(text)),
}

MEANINGS: Mapping[str, str] = {
    "ip=10.0.0.2": "the address that the other hosts use",
    "interface=ib0": "the network interface that the other hosts use",
    "group=hygon": "hosts with an image and a Ray cluster of their own",
    "head=yes": "this host is the Ray head of its group",
    "accelerator=nvidia": "the kind of its cards",
    "gpus=0,1": "the cards that may be used at all",
    "ray_gpus=2": "how many of them Ray gets",
    "spare=yes": "takes the place of a host of its group that stays dead",
}
"""An example of every option and what it says, for the files and pages that explain them."""


@dataclass(frozen=True, slots=True)
class Nodes:
    """What a text holds; `problems` are worded `FILE:LINE: what is wrong`."""

    hosts: tuple[Host, ...] = ()
    problems: tuple[str, ...] = ()


def parse(text: str, *, name: str, accelerators: Collection[str] = ()) -> Nodes:
    """`accelerators` are the vendors that exist; where none are given, any name passes."""
    hosts: list[Host] = []
    problems: list[str] = []
    for number, line in lines(text):
        content = re.split(r"(?:^|[ \t])#", line, maxsplit=1)[0].strip(" \t")
        if not content:
            continue
        source = f"{name}:{number}"
        try:
            host, found = _host(content, source)
        except ValueError as error:
            problems.append(f"{source}: {error}")
            continue
        found += vendor_problems(host.accelerator, accelerators)
        problems.extend(f"{source}: {problem}" for problem in (*found, *_clashes(host, hosts)))
        hosts.append(host)
    return Nodes(tuple(hosts), tuple(problems))


def vendor_problems(vendor: str | None, known: Collection[str]) -> list[str]:
    if vendor is None or not known or vendor in ("auto", *known):
        return []
    near = values.suggestion(vendor, known)
    return [f"accelerator: {values.shown(vendor)} is not one of {', '.join(known)}{near}"]


def _host(content: str, source: str) -> tuple[Host, list[str]]:
    problem = values.fault(content)
    if problem:
        raise ValueError(problem)
    first, *options = re.split(r"[ \t]+", content)
    where = place(first)
    host = Host(
        name=where.name, address=where.address, user=where.user, port=where.port, source=source
    )
    host, problems = _with_options(host, options)
    if host.ray_gpus is not None and host.gpus is not None and host.ray_gpus > len(host.gpus):
        problems.append(f"ray_gpus: {host.ray_gpus} is more than the {len(host.gpus)} of gpus=")
    if host.head and host.spare:
        problems.append("head=yes and spare=yes: a spare host cannot be a head")
    return host, problems


def _with_options(host: Host, options: Sequence[str]) -> tuple[Host, list[str]]:
    problems: list[str] = []
    seen: set[str] = set()
    for option in options:
        key, equals, text = option.partition("=")
        if not equals:
            problems.append(f"{values.shown(option)} is not key=value; write one host a line")
        elif key not in _OPTIONS:
            near = values.suggestion(key, _OPTIONS) or f"; known are {', '.join(_OPTIONS)}"
            problems.append(f"unknown key {values.shown(key)}{near}")
        elif key in seen:
            problems.append(f"{key}: is there twice")
        else:
            seen.add(key)
            try:
                host = _OPTIONS[key](host, text)
            except ValueError as error:
                problems.append(f"{key}: {error}")
    return host, problems


def _cards(text: str) -> tuple[int, ...]:
    cards: list[int] = []
    for item in readers.items(text):
        low, dash, high = item.partition("-")
        first = _card(low)
        last = _card(high) if dash else first
        if last < first:
            raise ValueError(f"{values.shown(item)} runs backwards: write it as LOW-HIGH")
        cards.extend(range(first, last + 1))
        if len(cards) > 1024:
            raise ValueError("more than 1024 cards")
    if not cards:
        raise ValueError("no card in it: write 0,1 or 0-3")
    if len(set(cards)) < len(cards):
        twice = next(card for card in cards if cards.count(card) > 1)
        raise ValueError(f"card {twice} is there twice")
    return tuple(cards)


def _clashes(host: Host, others: Sequence[Host]) -> list[str]:
    """Two lines for one machine. Two ports of one address are two machines behind one gate."""
    for other in others:
        line = f"line {other.source.rpartition(':')[2]}"
        if host.address.lower() == other.address.lower() and (
            host.port is None or other.port is None or host.port == other.port
        ):
            return [f"{host.name} is already in {line}"]
        shared = _ips(host) & _ips(other)
        if (host.ip or other.ip) and shared:
            return [f"{host.name} has the address {next(iter(shared))} of {other.name} in {line}"]
    return []


def _ips(host: Host) -> frozenset[str]:
    own = host.ip or (host.address if is_ip(host.address) else None)
    return frozenset(() if own is None else (own,))

"""Reads `[user@]host[:port]`, the way people write where SSH should go."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from vllmdeploy.config.readers import items, port
from vllmdeploy.config.values import shown

_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,63}\$?")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}")
_SCOPE = re.compile(r"[A-Za-z0-9_.-]{1,15}")


@dataclass(frozen=True, slots=True)
class Place:
    """`name` is the host as written, without the user: two ports of one address are two names."""

    name: str
    address: str
    user: str | None = None
    port: int | None = None


def place(text: str) -> Place:
    user, at, rest = text.rpartition("@")
    if at and _USER.fullmatch(user) is None:
        raise ValueError(f"{shown(user)} is not a user name")
    host, number = _split(rest)
    address = _address(host, bracketed=rest.startswith("["))
    return Place(
        name=rest,
        address=address,
        user=user or None,
        port=port(number) if number is not None else None,
    )


def place_text(text: str) -> str:
    """The same check for settings that keep the text."""
    place(text)
    return text


def host_list(text: str) -> tuple[str, ...]:
    hosts = tuple(place_text(item) for item in items(text))
    twice = next((host for host in hosts if hosts.count(host) > 1), None)
    if twice is not None:
        raise ValueError(f"{shown(twice)} is there twice")
    return hosts


def listen_host(text: str) -> str:
    """An address or name that a server binds; IPv6 may stand without brackets here."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return _address(text, bracketed=False)


def endpoint(text: str) -> str:
    """`host:port`, as a Ray address."""
    found = place(text)
    if found.user is not None or found.port is None:
        raise ValueError(f"{shown(text)} is not HOST:PORT")
    return text


def is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _split(text: str) -> tuple[str, str | None]:
    if text.startswith("["):
        host, closed, after = text[1:].partition("]")
        if not closed or (after and not after.startswith(":")):
            raise ValueError(f"{shown(text)} is not [IPv6 address] or [IPv6 address]:port")
        return host, after[1:] if after else None
    if text.count(":") > 1:
        raise ValueError(f"{shown(text)}: write an IPv6 address in brackets, [{text[:45]}]")
    host, colon, number = text.partition(":")
    return host, number if colon else None


def _address(host: str, *, bracketed: bool) -> str:
    if bracketed:
        return _ipv6(host)
    if _NAME.fullmatch(host) is None:
        raise ValueError(f"{shown(host)} is not a host name or IP address")
    if re.fullmatch(r"[0-9.]+", host) and not is_ip(host):
        raise ValueError(f"{shown(host)} is not an IPv4 address")
    return host


def _ipv6(text: str) -> str:
    address, percent, scope = text.partition("%")
    try:
        found = ipaddress.IPv6Address(address)
    except ValueError as error:
        raise ValueError(f"{shown(text)} is not an IPv6 address") from error
    if percent and _SCOPE.fullmatch(scope) is None:
        raise ValueError(f"{shown(text)} names no interface after its %")
    return f"{found}%{scope}" if percent else str(found)

"""Where upstreams may be: addresses are found once, checked, and pinned."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from vllmdeploy.errors import UsageError
from vllmdeploy.routing.upstream import Address

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.\-_]{0,251}[A-Za-z0-9])?")
_PREFIX = re.compile(r"(?:/[A-Za-z0-9._~\-]+)*")
# Cloud machines give out credentials here; the address behind some of them is not link-local.
_METADATA_NAMES = frozenset({"metadata", "metadata.google.internal", "instance-data"})
_METADATA_ADDRESSES = frozenset({"100.100.100.200", "fd00:ec2::254", "168.63.129.16"})
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Pinned:
    address: Address
    ip: str


def parse_url(url: str) -> Address:
    """`http://HOST[:PORT][/PREFIX]`; a `/v1` at the end is the API's own and is dropped."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"upstream {url!r}: {error}") from error
    host = parts.hostname or ""
    if parts.scheme not in _DEFAULT_PORTS or not host:
        raise UsageError(f"upstream {url!r} is not http://HOST:PORT or https://HOST:PORT")
    if parts.username is not None or parts.fragment or parts.query:
        raise UsageError(f"upstream {url!r}: no user, query or fragment, please")
    if not _NAME.fullmatch(host) and not _is_ip(host):
        raise UsageError(f"upstream {url!r}: {host!r} is not a host name or an address")
    prefix = parts.path.rstrip("/").removesuffix("/v1")
    if not _PREFIX.fullmatch(prefix) or "/../" in f"{prefix}/" or "/./" in f"{prefix}/":
        raise UsageError(f"upstream {url!r}: {prefix!r} is not a plain path")
    tls = parts.scheme == "https"
    return Address(host, port or _DEFAULT_PORTS[parts.scheme], tls, prefix)


def pin(address: Address, allowed: Sequence[Network] = ()) -> Pinned:
    """Blocks while the name is looked up. Every address of the name must be acceptable."""
    if address.host.lower().rstrip(".") in _METADATA_NAMES:
        raise UsageError(f"upstream {address}: a cloud's metadata service is no upstream")
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"upstream {address}: the name is not known: {error}") from error
    ips = [str(entry[4][0]) for entry in found]
    for ip in ips:
        problem = _problem(ip, allowed)
        if problem:
            raise UsageError(f"upstream {address}: {ip} {problem}")
    return Pinned(address, ips[0])


def parse_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    networks: list[Network] = []
    for text in texts:
        try:
            networks.append(ipaddress.ip_network(text.strip(), strict=False))
        except ValueError as error:
            raise UsageError(f"{text!r} is not a network such as 10.0.0.0/8: {error}") from error
    return tuple(networks)


def plain_ip(text: str) -> IpAddress | None:
    """An IPv4 address inside IPv6 is the IPv4 address: rules for one hold for the other."""
    try:
        ip = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return mapped or ip


def inside(ip: IpAddress | None, networks: Sequence[Network]) -> bool:
    return ip is not None and any(ip in network for network in networks)


def _problem(text: str, allowed: Sequence[Network]) -> str:
    ip = plain_ip(text)
    if ip is None:
        return "is not an address"
    if ip.is_link_local or str(ip) in _METADATA_ADDRESSES:
        return "is link-local or a cloud's metadata service"
    if ip.is_multicast or ip.is_unspecified or (ip.is_reserved and not ip.is_loopback):
        return "is not one host's address"
    if allowed and not inside(ip, allowed):
        return f"is outside {', '.join(map(str, allowed))}"
    return ""


def _is_ip(host: str) -> bool:
    return plain_ip(host) is not None

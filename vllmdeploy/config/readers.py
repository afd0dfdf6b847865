"""Reads one value of a setting from its text; says what is wrong in words for people."""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from vllmdeploy.config.values import UNITS, PortRange, Size, shown, suggestion

_PORTS_LIMIT = 1024
_TRUE = frozenset(("1", "true", "yes", "on"))
_FALSE = frozenset(("0", "false", "no", "off"))


def whole(low: int, high: int, noun: str = "number") -> Callable[[str], int]:
    def read(text: str) -> int:
        if re.fullmatch(r"-?[0-9]{1,18}", text) is None or not low <= int(text) <= high:
            raise ValueError(f"{shown(text)} is not a {noun}: a whole number from {low} to {high}")
        return int(text)

    return read


port = whole(1, 65535, "port")
high_port = whole(1024, 65535, "port that needs no special rights")


def port_range(text: str) -> PortRange:
    first, dash, last = text.partition("-")
    low = high_port(first.strip())
    found = PortRange(low, high_port(last.strip()) if dash else low)
    if found.last < found.first:
        raise ValueError(f"{shown(text)} runs backwards: write it as LOW-HIGH")
    return found


def items(text: str) -> list[str]:
    return [item for item in re.split(r"[,\s]+", text) if item]


def port_list(text: str) -> tuple[int, ...]:
    ports: dict[int, None] = {}
    for item in items(text):
        for number in port_range(item).ports:
            if number in ports:
                raise ValueError(f"port {number} is there twice")
            ports[number] = None
        if len(ports) > _PORTS_LIMIT:
            raise ValueError(f"more than {_PORTS_LIMIT} ports")
    if not ports:
        raise ValueError("no port in it: write 8001,8002 or 8001-8004")
    return tuple(ports)


def fraction(text: str) -> float:
    """A share of a card's memory: above 0, at most 1."""
    if re.fullmatch(r"[01]?\.[0-9]{1,9}|[01]", text) is None or not 0 < float(text) <= 1:
        raise ValueError(f"{shown(text)} is not a share: a number above 0 and at most 1, as 0.9")
    return float(text)


def size(text: str) -> Size:
    match = re.fullmatch(r"([0-9]{1,15})(?:\.([0-9]{1,6}))?\s*([bkmgt]?)(?:i?b)?", text.lower())
    if match is None:
        raise ValueError(f"{shown(text)} is not a size: write 16g, 512m or a number of bytes")
    number = float(f"{match[1]}.{match[2]}") if match[2] else int(match[1])
    found = Size(int(number * UNITS[match[3]]))
    if found.bytes < 1 << 20:
        raise ValueError(f"{shown(text)} is under 1m")
    return found


def switch(text: str) -> bool:
    if text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    raise ValueError(f"{shown(text)} is neither yes nor no: write 1 or 0, true or false")


def one_of(*choices: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            near = suggestion(text.lower(), choices)
            raise ValueError(f"{shown(text)} is not one of {', '.join(choices)}{near}")
        return text

    return read


def word(pattern: str, meaning: str) -> Callable[[str], str]:
    """A text that has to match a pattern; `meaning` says in words which."""

    def read(text: str) -> str:
        if re.fullmatch(pattern, text) is None:
            raise ValueError(f"{shown(text)} is not {meaning}")
        return text

    return read


def policy(*choices: str) -> Callable[[str], str]:
    """One of our own by name, or somebody's own as `package.module:object`."""
    known = one_of(*choices)

    def read(text: str) -> str:
        if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", text, re.ASCII):
            return text
        return known(text)

    return read


def host_folder(text: str) -> str:
    """A path on the hosts: absolute, without `..`, with nothing that Docker's -v cannot carry."""
    if not text.startswith("/"):
        raise ValueError(f"{shown(text)} is not an absolute path")
    if ".." in text.split("/"):
        raise ValueError(f"{shown(text)} holds '..'")
    # Docker splits a mount at colons, and a comma ends a field of --mount.
    found = next((sign for sign in ':,"' if sign in text), None)
    if found:
        raise ValueError(f"{shown(text)} holds {found!r}, which a Docker mount cannot carry")
    return re.sub(r"/+", "/", text).rstrip("/") or "/"


def model_folder(text: str) -> str:
    folder = host_folder(text)
    if folder == "/":
        raise ValueError("'/' is the whole disk: name a folder of its own")
    return folder


def local_path(text: str) -> Path:
    """A path on this machine; a leading `~` is the home folder."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{shown(text)}: no such home folder") from error


def ip_address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError as error:
        raise ValueError(f"{shown(text)} is not an IP address") from error


def networks(text: str) -> tuple[str, ...]:
    return tuple(_network(item) for item in items(text))


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        try:
            wider = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise ValueError(f"{shown(text)} is not a network such as 10.0.0.0/8") from error
        raise ValueError(
            f"{shown(text)} has bits right of its prefix; did you mean {wider}?"
        ) from error


def url(text: str) -> str:
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and " " not in text
        signed_in = parts.username is not None
    except ValueError:
        usable, signed_in = False, False
    if signed_in:
        raise ValueError("holds a user name or password: settings carry no secrets")
    if not usable:
        raise ValueError(f"{shown(text)} is not an address such as https://huggingface.co")
    return text.rstrip("/")


def arguments(text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise ValueError("a quote or backslash in it has no partner") from error

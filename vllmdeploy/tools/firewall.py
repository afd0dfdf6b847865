"""Lines that open ports to some addresses, for each firewall that hosts have."""

from __future__ import annotations

import ipaddress
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from vllmdeploy.core.command import Command, script

_COMMENT = "vllmdeploy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """TCP ports, as ranges, that some addresses or networks may reach; `sources` empty: anybody."""

    ports: tuple[tuple[int, int], ...]
    sources: tuple[str, ...] = ()


def joined(ports: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Single ports as the fewest ranges."""
    found: list[tuple[int, int]] = []
    for port in sorted(set(ports)):
        if found and found[-1][1] == port - 1:
            found[-1] = (found[-1][0], port)
        else:
            found.append((port, port))
    return tuple(found)


def _span(first: int, last: int, dash: str) -> str:
    return str(first) if first == last else f"{first}{dash}{last}"


def _is_v6(source: str) -> bool:
    return ipaddress.ip_network(source, strict=False).version == 6


def ufw(openings: Sequence[Opening]) -> list[str]:
    lines: list[str] = []
    for one in openings:
        ports = ",".join(_span(first, last, ":") for first, last in one.ports)
        for source in one.sources or ("any",):
            lines.append(
                f"ufw allow proto tcp from {source} to any port {ports} comment {_COMMENT}"
            )
    return lines


def firewalld(openings: Sequence[Opening]) -> list[str]:
    lines: list[str] = []
    for one in openings:
        for first, last in one.ports:
            port = f'port port="{_span(first, last, "-")}" protocol="tcp"'
            for source in one.sources or ("",):
                family = "ipv6" if source and _is_v6(source) else "ipv4"
                rule = f'rule family="{family}" source address="{source}" {port} accept'
                given = (
                    f"--add-rich-rule={rule}"
                    if source
                    else (f"--add-port={_span(first, last, '-')}/tcp")
                )
                lines.append(shlex.join(("firewall-cmd", "--permanent", given)))
    return [*lines, "firewall-cmd --reload"] if lines else []


def nft(openings: Sequence[Opening]) -> list[str]:
    """Into the usual table: a table of our own could accept nothing that another one drops."""
    lines: list[str] = []
    for one in openings:
        ports = ", ".join(_span(first, last, "-") for first, last in one.ports)
        for source in one.sources or ("",):
            family = "ip6" if source and _is_v6(source) else "ip"
            match = f"{family} saddr {source} " if source else ""
            rule = f'{match}tcp dport {{ {ports} }} accept comment "{_COMMENT}"'
            lines.append(f"nft insert rule inet filter input {shlex.quote(rule)}")
    return lines


def iptables(openings: Sequence[Opening]) -> list[str]:
    lines: list[str] = []
    for one in openings:
        for first, last in one.ports:
            port = _span(first, last, ":")
            for source in one.sources or ("",):
                programs = (
                    ("iptables", "ip6tables")
                    if not source
                    else (("ip6tables",) if _is_v6(source) else ("iptables",))
                )
                match = f"-s {source} " if source else ""
                lines += [
                    f"{program} -I INPUT {match}-p tcp --dport {port}"
                    f" -m comment --comment {_COMMENT} -j ACCEPT"
                    for program in programs
                ]
    return lines


TOOLS: Mapping[str, Callable[[Sequence[Opening]], list[str]]] = {
    "ufw": ufw,
    "firewalld": firewalld,
    "nft": nft,
    "iptables": iptables,
}


# ufw and firewalld know a rule again; the others would have it twice, so those of the last time go.
_FORGET_NFT = f"""
nft list chain inet filter input >/dev/null || exit 1
nft -a list chain inet filter input | sed -n 's/.*comment "{_COMMENT}" # handle //p' |
while read -r handle; do nft delete rule inet filter input handle "$handle" || exit 1; done
"""
_FORGET_IPTABLES = f"""
for program in iptables ip6tables; do
  "$program" -S INPUT | grep -e '--comment {_COMMENT} ' | sed 's/^-A /-D /' |
  while read -r rule; do "$program" $rule || exit 1; done
done
"""
_FORGET = {"nft": _FORGET_NFT, "iptables": _FORGET_IPTABLES}
KEPT_BY_ITSELF = ("ufw", "firewalld")
"""These have their rules again after a reboot."""


def applied(tool: str, openings: Sequence[Opening]) -> Command:
    """Makes a host's openings so, whatever was opened before for the same purpose."""
    lines = "\n".join(TOOLS[tool](openings))
    return script(f"set -e\n{_FORGET.get(tool, '')}{lines}\n", root=True).within(60)

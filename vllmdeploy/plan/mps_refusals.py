"""Why a host may not get the MPS daemons that are wanted: every reason at once."""

from __future__ import annotations

from collections.abc import Iterable

from vllmdeploy.plan.mps import FoundMps, MpsWanted, Scope, foreign, scopes
from vllmdeploy.tools import mps
from vllmdeploy.tools.mps_found import Daemon


def refusals(wanted: MpsWanted, host: FoundMps) -> Iterable[str]:
    """Every reason against starting MPS on this host."""
    name, vendor = host.name, host.found.cards.vendor
    if vendor != "nvidia":
        yield f"{name}: MPS is NVIDIA's, and this host has {vendor or 'no known card'}"
        return
    if not host.mps.installed:
        yield (
            f"{name}: there is no {mps.CONTROL}: it comes with NVIDIA's driver"
            " (package nvidia-compute-utils-VERSION, or the .run installer)"
        )
    yield from _wrong_cards(wanted, host)
    yield from _wrong_user(wanted, host)
    for scope in scopes(wanted, host.found):
        if len(scope.pipe) > mps.LONGEST_PIPE:
            yield (
                f"{name}: {scope.pipe} is too long for a socket in it: at most"
                f" {mps.LONGEST_PIPE} characters (CUDA_MPS_PIPE_DIRECTORY)"
            )
        yield from _in_the_way(wanted, host, scope)


def _wrong_cards(wanted: MpsWanted, host: FoundMps) -> Iterable[str]:
    report = host.found.cards
    there = {card.index: card for card in report.cards}
    if not there:
        yield f"{host.name}: {report.problem or 'no card'}"
    for index in wanted.cards:
        if index not in there:
            having = ",".join(map(str, sorted(there))) or "none"
            yield f"{host.name}: there is no card {index} (it has {having})"
        elif there[index].problem:
            yield f"{host.name}: card {index}: {there[index].problem}"
    if there and not wanted.cards and not scopes(wanted, host.found):
        problem = next((card.problem for card in report.cards if card.problem), "gpus= allows none")
        yield f"{host.name}: no usable card: {problem}"


def _wrong_user(wanted: MpsWanted, host: FoundMps) -> Iterable[str]:
    """Root's daemon serves any user, one at a time; another's serves that user alone."""
    if wanted.uid is not None and host.uid not in (0, wanted.uid):
        yield (
            f"{host.name}: the engines run as uid {wanted.uid} and MPS would run as uid {host.uid}:"
            " their processes would wait for ever; connect as root, or set SUDO=always"
        )


def _in_the_way(wanted: MpsWanted, host: FoundMps, scope: Scope) -> Iterable[str]:
    for daemon in host.mps.daemons:
        if not scope.serves(daemon) and daemon.pipe != scope.pipe:
            continue
        where = f"{host.name}: {scope.name}: {daemon} is there already"
        if foreign(wanted.cluster, daemon):
            whose = f"cluster {daemon.mark}" if daemon.mark else "not started by vllmdeploy"
            yield (
                f"{where}, {whose}; stop it as its user:"
                f" echo quit | {mps.PIPE_VARIABLE}={daemon.pipe} {mps.CONTROL}"
            )
        elif daemon.pipe != scope.pipe or differs(wanted, scope, daemon):
            yield f"{where}, with other settings; `vllmdeploy mps restart` changes them"


def differs(wanted: MpsWanted, scope: Scope, daemon: Daemon) -> bool:
    return set(daemon.cards) != set(scope.ids) or daemon.static != bool(wanted.static)

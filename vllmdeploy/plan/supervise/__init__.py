"""The same node under three supervisors: which commands make, mend, ask and remove it."""

from __future__ import annotations

from vllmdeploy.plan.supervise.base import STOP_S, Made, Supervisor, stop_s, warden
from vllmdeploy.plan.supervise.in_docker import InDocker
from vllmdeploy.plan.supervise.on_host import AsProcess, InSystemd
from vllmdeploy.plan.wanted import Wanted

__all__ = [
    "STOP_S",
    "AsProcess",
    "InDocker",
    "InSystemd",
    "Made",
    "Supervisor",
    "stop_s",
    "supervisor",
    "warden",
]


def supervisor(wanted: Wanted) -> Supervisor:
    match wanted.runtime:
        case "docker":
            return InDocker(stop_s(wanted.drain_s))
        case "process":
            return AsProcess(wanted.python, stop_s(wanted.drain_s))
        case "systemd":
            return InSystemd(wanted.python, stop_s(wanted.drain_s))

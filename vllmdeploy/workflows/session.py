"""A fleet with a connection to every host: what every use case starts from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

from vllmdeploy.config.settings import Loaded, Settings
from vllmdeploy.core.host import Fleet, Host
from vllmdeploy.effects.observe import Looking, observe
from vllmdeploy.effects.package import build
from vllmdeploy.effects.shell import Shell
from vllmdeploy.errors import HostError, VllmdeployError
from vllmdeploy.plan.observed import FoundHost
from vllmdeploy.plan.supervise import Supervisor, supervisor
from vllmdeploy.plan.wanted import Wanted
from vllmdeploy.tools.access import Sudo
from vllmdeploy.workflows.wanted import wanted_of

Connect = Callable[[Sequence[Host], Settings], tuple[Mapping[str, Shell], dict[str, HostError]]]


@dataclass(frozen=True)
class Session:
    """One run of one command over one fleet."""

    loaded: Loaded
    shells: Mapping[str, Shell]
    failures: dict[str, HostError]

    @property
    def settings(self) -> Settings:
        return self.loaded.settings

    @property
    def fleet(self) -> Fleet:
        return self.loaded.fleet

    @property
    def lead(self) -> Host:
        """The host with the lock and the audit log: the fleet's head, or the only host."""
        return next((host for host in self.fleet.hosts if host.head), self.fleet.hosts[0])

    @cached_property
    def package(self) -> tuple[bytes, str]:
        built = build()
        return built.content, built.sha12

    @cached_property
    def wanted(self) -> Wanted:
        return wanted_of(self.settings, self.fleet, package=self.package[1])

    @cached_property
    def supervisor(self) -> Supervisor:
        return supervisor(self.wanted)

    @property
    def sudo(self) -> Sudo:
        return cast("Sudo", self.settings.sudo)

    def need_all(self) -> None:
        """For what must not be done to a part of a fleet: the first host that failed speaks for
        all that did. Spares may fail, and hosts whose place one of them may have or take."""
        failed = [one for name, one in self.failures.items() if not self._may_be_spared(name)]
        if not failed:
            return
        first = failed[0]
        others = "".join(f"\n{error.message}" for error in failed[1:])
        raise type(first)(
            first.host, first.message.removeprefix(f"{first.host}: ") + others, hint=first.hint
        )

    def look(self, *, for_plan: bool, cards: bool = True) -> dict[str, FoundHost | VllmdeployError]:
        """Every host of the fleet as it is now, or why it could not be looked at, which for one
        that could not be reached is in `failures` as well."""
        looking = Looking(
            wanted=self.wanted,
            supervisor=self.supervisor,
            sudo=self.sudo,
            ssh_port=self.settings.ssh_port or 22,
            for_plan=for_plan,
            cards=cards,
        )
        there = [host for host in self.fleet.everyone if host.name in self.shells]
        found = observe(there, self.shells, looking)
        for name, answer in found.items():
            if isinstance(answer, HostError):
                self.failures.setdefault(name, answer)
        return {
            host.name: found.get(host.name) or self.failures[host.name]
            for host in self.fleet.everyone
        }

    def look_at_all(self, *, for_plan: bool = True, cards: bool = True) -> dict[str, FoundHost]:
        """As `look`, where every single host has to answer."""
        self.need_all()
        found: dict[str, FoundHost] = {}
        for name, answer in self.look(for_plan=for_plan, cards=cards).items():
            if isinstance(answer, HostError) and self._may_be_spared(name):
                continue
            if isinstance(answer, VllmdeployError):
                raise answer
            found[name] = answer
        return found

    def _may_be_spared(self, name: str) -> bool:
        host = self.fleet.named(name)
        others = (one for one in self.fleet.group(host.group) if one.spare)
        return host.spare or (
            not host.head and any(one.name not in self.failures for one in others)
        )

    def look_at_those_there(self, *, cards: bool = True) -> dict[str, FoundHost]:
        """The hosts that answer. The others are in `failures`, also those that failed only now."""
        answers = self.look(for_plan=False, cards=cards)
        for answer in answers.values():
            if isinstance(answer, VllmdeployError) and not isinstance(answer, HostError):
                raise answer
        return {name: one for name, one in answers.items() if isinstance(one, FoundHost)}

    def close(self) -> None:
        for shell in self.shells.values():
            shell.close()

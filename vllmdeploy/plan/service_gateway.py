"""The gateway's part of a plan: it is made, told of services, and awaited."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from vllmdeploy.core.command import Result
from vllmdeploy.core.layout import PACKAGE_FILE
from vllmdeploy.core.plan import Wait
from vllmdeploy.errors import PreflightRefused
from vllmdeploy.plan.image_pull import add_pull
from vllmdeploy.plan.service_gateway_node import (
    ADMIN,
    CALLED,
    KEYS,
    ROLE,
    GatewayWanted,
    fleet_file,
    fleet_folder,
    gateway_name,
    keys_folder,
    made,
)
from vllmdeploy.plan.service_steps import Ground
from vllmdeploy.plan.service_wanted import inside
from vllmdeploy.plan.supervise import Made
from vllmdeploy.tools import files, http_page
from vllmdeploy.tools.vllm_services import Service

_START_S = 60.0
_HELD_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Offering:
    """The gateway's part of a plan. `fleet`: the digest of the file that is there; `instances`:
    engines outside Ray that it routes to as well, whatever becomes of the services."""

    ground: Ground
    gateway: GatewayWanted
    package: bytes = field(repr=False)
    fleet: str = ""
    instances: tuple[Service, ...] = ()

    @property
    def name(self) -> str:
        return gateway_name(self.ground.wanted)

    @property
    def runs(self) -> bool:
        ours = self.ground.head.found.ours(self._cluster)
        return any(one.name == self.name and one.running for one in ours)

    def route(
        self, services: Sequence[Service], cause: str, needs: tuple[str, ...]
    ) -> tuple[str, ...]:
        """Write which instances there are; nothing where it says so already."""
        content = fleet_file(self.gateway, (*services, *self.instances))
        if files.digest(content) == self.fleet:
            return needs
        return (self._write(content, "write", f"{self.name}'s instances", cause, needs),)

    def withdraw(
        self, service: Service, others: Sequence[Service], needs: tuple[str, ...] = ()
    ) -> str:
        """The gateway sends this one nothing new."""
        content = fleet_file(self.gateway, (*others, *self.instances))
        subject = f"{service.name} from {self.name}"
        return self._write(content, "withdraw", subject, "it gets no new requests", needs)

    def tell(
        self,
        services: Sequence[Service],
        verb: str,
        subject: str,
        cause: str,
        needs: tuple[str, ...],
        *,
        draining: str = "",
    ) -> str:
        """Write which instances there are from now on, and which of them gets nothing new."""
        known = (*services, *self.instances)
        content = fleet_file(self.gateway, known, draining=draining)
        return self._write(content, verb, subject, cause, needs)

    def _write(
        self, content: bytes, verb: str, subject: str, cause: str, needs: tuple[str, ...]
    ) -> str:
        ground = self.ground
        path = f"{fleet_folder(ground.head.layout, self.name)}/fleet.json"
        command = ground.run(files.write_open(path, content))
        return ground.add(verb, subject, cause, command, needs)

    def up(
        self,
        services: Sequence[Service],
        cause: str,
        needs: tuple[str, ...],
        *,
        told: tuple[str, ...] = (),
    ) -> tuple[str, ...]:
        """The gateway runs and knows these services, and each of them can be used. `told`: the
        steps after which one that runs already may be told, to look by itself when they are up."""
        routed = self.route(services, cause, (told or needs) if self.runs else needs)
        after = tuple(dict.fromkeys((*routed, *needs)))
        return (self._await((*after, *self._node(after)), services),)

    def up_at_once(
        self,
        services: Sequence[Service],
        cause: str,
        *,
        needs: tuple[str, ...],
        then: Sequence[Service],
        after: tuple[str, ...],
    ) -> tuple[str, ...]:
        """As `up`, but it runs and knows all while some still load; `then`: those that can be used
        `after` these steps."""
        before = len(self.ground.draft.steps)
        routed = self.route(services, cause, needs)
        made = self._node(routed)
        if after or len(self.ground.draft.steps) > before:
            return (self._await((*routed, *made, *after), then),)
        return ()

    def restore(
        self,
        services: Sequence[Service],
        needs: tuple[str, ...],
        *,
        then: Sequence[Service] = (),
        after: tuple[str, ...] = (),
        patient: bool = True,
    ) -> tuple[str, ...]:
        """As `up`, where there may be nothing to do; `then`: as for `up_at_once`. `patient`: until
        all of them are ready, and not only the gateway itself."""
        before = len(self.ground.draft.steps)
        routed = self.route(services, "not as stored", needs)
        made = self._node(routed)
        if needs or after or len(self.ground.draft.steps) > before:
            awaited = (*services, *then) if patient else ()
            return (self._await((*routed, *made, *after), awaited),)
        return ()

    def keep_keys(self) -> tuple[str, ...]:
        """This host has no gateway, and the copy of the keys that all others are made from."""
        return self._keys(made(self.ground.wanted, self.gateway, self.ground.head), ())

    def _node(self, needs: tuple[str, ...]) -> tuple[str, ...]:
        ground = self.ground
        how = made(ground.wanted, self.gateway, ground.head)
        keys = self._keys(how, needs)
        ours = ground.head.found.ours(ground.wanted.cluster)
        there = next((one for one in ours if one.name == self.name), None)
        if there is None:
            return self._create(how, "not found", (*needs, *keys))
        if there.fingerprint != how.fingerprint:
            gone: tuple[str, ...] = needs
            layout = ground.head.layout
            for verb, command in zip(
                ("stop", "remove"), ground.supervisor.remove(there, layout), strict=False
            ):
                action = ground.run(command)
                cause = "settings changed"
                gone = (ground.add(verb, self.name, cause, action, gone, destructive=True),)
            return self._create(how, "settings changed", (*gone, *keys))
        if not there.running:
            action = ground.run(ground.supervisor.start(there, ground.head.layout))
            return (
                ground.add("start", self.name, f"it is {there.state}", action, (*needs, *keys)),
            )
        return keys

    def _create(self, how: Made, cause: str, needs: tuple[str, ...]) -> tuple[str, ...]:
        ground, layout = self.ground, self.ground.head.layout
        self._check_port()
        package = (*self._image(), *self._package())
        make = ground.run(files.folders(*how.folders, owner=how.owner))
        folders = ground.add("create", f"{self.name}'s folders", cause, make, needs)
        command = ground.run(how.command)
        hint = f"vllmdeploy logs {ground.head.name} ({layout.logs(self.name)})"
        return (
            ground.add("create", self.name, cause, command, (*needs, *package, folders), hint=hint),
        )

    def _check_port(self) -> None:
        """Our own gateway that is being replaced has let go of its port by then."""
        found, port = self.ground.head.found, self.gateway.port
        taken = next((one for one in found.listeners if one.port == port), None)
        if taken and not self.runs:
            raise PreflightRefused([f"{self.ground.head.name}: {taken} (choose another API_PORT)"])

    @property
    def _cluster(self) -> str:
        return self.ground.wanted.cluster

    def _image(self) -> tuple[str, ...]:
        """`up` pulls before it plans; this is what a plan alone shows."""
        ground = self.ground
        if ground.wanted.runtime != "docker" or ground.head.found.image is not None:
            return ()
        key = f"{ground.head.name}: pull image {ground.head.found.image_name}"
        if any(step.key == key for step in ground.draft.steps):
            return (key,)
        return (add_pull(ground.draft, ground.head, [ground.head.found]),)

    def _package(self) -> tuple[str, ...]:
        ground, sha = self.ground, self.ground.wanted.package
        subject = f"package {sha}"
        key = f"{ground.head.name}: write {subject}"
        if any(step.key == key for step in ground.draft.steps):
            return (key,)
        if sha in ground.head.found.packages:
            return ()
        path = f"{ground.head.layout.package(sha)}/{PACKAGE_FILE}"
        step = ground.run(files.write(path, self.package))
        return (ground.add("write", subject, "not there", step),)

    def _keys(self, how: Made, needs: tuple[str, ...]) -> tuple[str, ...]:
        """Keys that are wanted and not there as they are; nothing of them is ever shown."""
        ground, layout = self.ground, self.ground.head.layout
        have = ground.head.found.secrets
        wanted = {KEYS: self.gateway.keys, ADMIN: self.gateway.admin}
        missing = {
            name: content
            for name, content in wanted.items()
            if content is not None and have.get(f"{ROLE}/{name}") != files.digest(content)
        }
        if not missing:
            return ()
        make = files.folders(keys_folder(layout), mode="0700", owner=how.owner)
        why = "not all keys are there"
        folder = ground.add("create", "keys folder", why, ground.run(make), needs)
        return tuple(
            ground.add(
                "write",
                CALLED[name],
                "not found" if f"{ROLE}/{name}" not in have else "changed",
                ground.run(
                    files.write(
                        f"{keys_folder(layout)}/{name}", content, mode="0600", owner=how.owner
                    )
                ),
                (folder,),
            )
            for name, content in missing.items()
        )

    def _await(self, needs: tuple[str, ...], services: Sequence[Service]) -> str:
        ground = self.ground
        ready = Counter(one.belongs_to for one in services)
        ask = http_page.health(f"{self.gateway.address}/health", ready, held_s=_HELD_S)
        command = ground.head.found.access.of(inside(ground.wanted, self.name, *ask))
        logs = ground.supervisor.logs(self.name, ground.head.layout, tail=12)
        wait = Wait(
            command=command.within(20),
            missing=_unready(ready),
            limit_s=_START_S,
            explain=((ground.head.name, ground.head.found.access.of(logs.within(15))),),
        )
        cause = "every service can be used through it" if services else "it answers"
        return ground.add("await", self.name, cause, wait, tuple(dict.fromkeys(needs)))


def _unready(wanted: Mapping[str, int]) -> Callable[[Result], str | None]:
    """`wanted`: how many instances of each are to be ready."""

    def missing(result: Result) -> str | None:
        try:
            shown = cast("dict[str, Any]", json.loads(result.stdout))
            models = cast("Mapping[str, Mapping[str, Any]]", shown["models"])
        except (ValueError, KeyError, TypeError):
            return "it does not answer yet"
        ready = {name: int(one["instances"]["ready"]) for name, one in models.items()}
        lacking = [
            f"{ready.get(name, 0)} of {count} instances of {name} are ready"
            for name, count in sorted(wanted.items())
            if ready.get(name, 0) < count
        ]
        return "; ".join(lacking) or None

    return missing

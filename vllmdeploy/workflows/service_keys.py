"""Keys of the API: the user's own files, those on the head, or new ones that are shown once."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from vllmdeploy.config.settings import Settings
from vllmdeploy.core.command import check
from vllmdeploy.effects.execute import Outcome, StepOutcome
from vllmdeploy.effects.shell import Shell
from vllmdeploy.errors import SettingsError
from vllmdeploy.plan.observed import FoundHost
from vllmdeploy.plan.service_gateway_node import (
    ADMIN,
    CALLED,
    KEYS,
    ROLE,
    GatewayWanted,
    keys_folder,
)
from vllmdeploy.tools import files

_KEY_BYTES = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """What the gateway is to be, and keys that nobody has seen yet. `kept`: the head's own copies,
    where gateways elsewhere need them."""

    gateway: GatewayWanted
    kept: Mapping[str, bytes] = field(default_factory=dict[str, bytes], repr=False)
    new_key: str = field(default="", repr=False)
    new_admin_key: str = field(default="", repr=False)

    def unseen(self, outcomes: Iterable[StepOutcome]) -> tuple[tuple[str, str], ...]:
        """What is on the head by now, whatever else came of it, and was never shown."""
        new = {
            CALLED[KEYS]: ("API key", self.new_key),
            CALLED[ADMIN]: ("admin key", self.new_admin_key),
        }
        written = {one.step.subject for one in outcomes if one.outcome is Outcome.DONE}
        return tuple(one for called, one in new.items() if one[1] and called in written)

    def on(self, host: str, lead: str) -> GatewayWanted:
        """As it is to be there: beside the head it reads the head's own copies of the keys."""
        if host == lead:
            return self.gateway
        keys, admin = self.gateway.keys, self.gateway.admin
        return replace(
            self.gateway,
            keys=keys if keys is not None or self.gateway.keyless else self.kept.get(KEYS),
            admin=admin if admin is not None else self.kept.get(ADMIN),
        )


def kept_keys(shell: Shell, lead: FoundHost) -> dict[str, bytes]:
    """The head's copies, which are the truth for every gateway."""
    kept: dict[str, bytes] = {}
    for name in (KEYS, ADMIN):
        if f"{ROLE}/{name}" in lead.secrets:
            command = lead.access.of(files.read(f"{keys_folder(lead.access.layout)}/{name}"))
            answer = shell.run(command)
            host = lead.host.name
            kept[name] = check(host, command, answer, doing="reading the keys").stdout.encode()
    return kept


def gateway_wanted(settings: Settings, lead: FoundHost) -> Keys:
    keyless = settings.api_auth == "none"
    new_key = "" if keyless else _new(KEYS, settings.api_keys_file, lead, "sk")
    new_admin = _new(ADMIN, settings.admin_key_file, lead, "admin")
    return Keys(
        gateway=GatewayWanted(
            listen=settings.api_host,
            port=settings.api_port,
            keyless=keyless,
            allow=tuple(map(str, settings.api_allow)),
            policy=settings.routing_strategy,
            scheduling=settings.scheduling_policy,
            default_model=settings.default_model or "",
            batch_size=settings.default_batch_size,
            files_mib=settings.api_files_size.bytes >> 20,
            keys=None if keyless else _content(settings.api_keys_file, new_key),
            admin=_content(settings.admin_key_file, new_admin),
        ),
        new_key=new_key,
        new_admin_key=new_admin,
    )


def _new(name: str, file: Path | None, lead: FoundHost, prefix: str) -> str:
    """A new key where neither the user nor the head has one."""
    if file is not None or f"{ROLE}/{name}" in lead.secrets:
        return ""
    return f"{prefix}-{secrets.token_hex(_KEY_BYTES)}"


def _content(file: Path | None, new: str) -> bytes | None:
    if file is None:
        return f"default:{new}\n".encode() if new else None
    try:
        return file.expanduser().read_bytes()
    except OSError as error:
        raise SettingsError([f"{file}: cannot be read: {error.strerror}"]) from error

"""The fleet's own API key, for commands that call its gateway and were given none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllmdeploy.cli import output
from vllmdeploy.errors import CommandFailed, HostError, UsageError

if TYPE_CHECKING:
    from vllmdeploy.cli.context import World
    from vllmdeploy.config.settings import Settings


def fleet_key(here: World, settings: Settings) -> str:
    """From API_KEYS_FILE, else from the head, for whoever may log in there; empty where there is
    none to be had."""
    from vllmdeploy.workflows import keys, keys_on_hosts

    if settings.api_auth == "none":
        return ""
    if settings.api_keys_file is not None:
        return sendable(keys.read(settings.api_keys_file))
    loaded = here.loaded()
    try:
        with here.head_session(loaded) as session:
            return sendable(keys_on_hosts.read(session))
    except HostError as error:
        output.say(f"note: no API key from the head: {error.message}")
    except (CommandFailed, UsageError):
        pass  # no gateway of this fleet has been made, or its keys are not for us
    return ""


def sendable(text: str) -> str:
    """The first key of a file of keys that is not kept as a hash and has no limits."""
    for line in text.splitlines():
        words = line.split()
        if len(words) == 1 and not words[0].startswith("#") and ":sha256:" not in words[0]:
            return words[0].rpartition(":")[2]
    return ""

"""One line on the head for every run that changed something: who, what, how it went."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence

from vllmdeploy.core.command import Command, check, script
from vllmdeploy.effects.execute import Outcome, StepOutcome
from vllmdeploy.effects.lock import user
from vllmdeploy.effects.shell import Shell
from vllmdeploy.tools.access import Access

# The head's clock stamps the line: operators' machines may disagree about the time.
_APPEND = (
    'line=$(cat) && printf \'{"at":"%s",%s\\n\' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$line" >> "$1"'
)


def record(shell: Shell, access: Access, what: str, outcomes: Sequence[StepOutcome] | None) -> None:
    """No outcomes means that the run was interrupted."""
    command = access.of(_line(access.layout.audit, what, outcomes))
    check(shell.host, command, shell.run(command), doing="writing the audit log")


def _line(path: str, what: str, outcomes: Sequence[StepOutcome] | None) -> Command:
    counts = {
        outcome.value: sum(one.outcome is outcome for one in outcomes or ()) for outcome in Outcome
    }
    error = next((one.error.message for one in outcomes or () if one.error), "")
    entry = {
        "who": f"{user()}@{socket.gethostname()}",
        "what": what,
        **(counts if outcomes is not None else {"interrupted": True}),
        **({"error": error.splitlines()[0]} if error else {}),
    }
    return script(_APPEND, path, stdin=json.dumps(entry)[1:].encode(), root=True)

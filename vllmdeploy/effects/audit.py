"""One line on the head for every run that changed something: who, what, how it went."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vllmdeploy.core.command import Command, check, script
from vllmdeploy.effects.execute import Outcome, StepOutcome
from vllmdeploy.effects.lock import user
from vllmdeploy.effects.shell import Shell
from vllmdeploy.errors import VllmdeployError
from vllmdeploy.tools.access import Access

# The head's clock stamps the line: operators' machines may disagree about the time.
_APPEND = (
    'line=$(cat) && printf \'{"at":"%s",%s\\n\' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$line" >> "$1"'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """How a run went: how many steps, or hosts, came to what, and the first error's words."""

    done: int = 0
    failed: int = 0
    skipped: int = 0
    error: str = ""

    @classmethod
    def of_steps(cls, outcomes: Sequence[StepOutcome]) -> Tally:
        kinds = [one.outcome for one in outcomes]
        return cls(
            done=kinds.count(Outcome.DONE),
            failed=kinds.count(Outcome.FAILED),
            skipped=kinds.count(Outcome.SKIPPED),
            error=_first(one.error for one in outcomes if one.error),
        )

    @classmethod
    def of_hosts(cls, *, done: int, failed: Iterable[VllmdeployError]) -> Tally:
        errors = list(failed)
        return cls(done=done, failed=len(errors), error=_first(errors))


def _first(errors: Iterable[VllmdeployError]) -> str:
    return next((one.message.splitlines()[0] for one in errors), "")


def record(shell: Shell, access: Access, what: str, tally: Tally | None) -> None:
    """No tally means that the run was interrupted."""
    command = access.of(_line(access.layout.audit, what, tally))
    check(shell.host, command, shell.run(command), doing="writing the audit log")


def _line(path: str, what: str, tally: Tally | None) -> Command:
    entry: dict[str, object] = {"who": f"{user()}@{socket.gethostname()}", "what": what}
    if tally is None:
        entry["interrupted"] = True
    else:
        entry |= {"done": tally.done, "failed": tally.failed, "skipped": tally.skipped}
    if tally is not None and tally.error:
        entry["error"] = tally.error
    return script(_APPEND, path, stdin=json.dumps(entry)[1:].encode(), root=True)

"""One sync of a model at a time, on the whole fleet: a lock beside the model on the head."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from vllmdeploy.core.command import check
from vllmdeploy.core.layout import Layout
from vllmdeploy.effects import lock as holding
from vllmdeploy.effects.ask import ask_one
from vllmdeploy.effects.execute import Stop
from vllmdeploy.effects.shell import Shell
from vllmdeploy.errors import Locked
from vllmdeploy.tools import lock
from vllmdeploy.tools.access import Access
from vllmdeploy.tools.manifest_names import place_of
from vllmdeploy.workflows.cluster import head_access
from vllmdeploy.workflows.session import Session

_ASKED_EVERY_S = 2.0


@contextmanager
def alone(session: Session, name: str, on_wait: Callable[[str], None]) -> Generator[Stop]:
    """A second sync waits for the first; a dead one's lock is taken over."""
    place = place_of(session.settings.model_path, name)
    if session.lead.name in session.failures:
        raise session.failures[session.lead.name]
    way = head_access(session)
    own = replace(way, layout=Layout(f"{place.root}/.incoming/.{name}.sync"))
    shell, stop = session.shells[session.lead.name], Stop.new()
    told = False
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(holding.held(shell, own, f"model sync {name}", stop))
                break
            except Locked as error:
                if not told:
                    on_wait(error.message)
                    told = True
                if not _taken_from_the_dead(shell, own):
                    stop.event.wait(_ASKED_EVERY_S)
        yield stop


def _taken_from_the_dead(shell: Shell, way: Access) -> bool:
    state = ask_one(shell, lock.state(way.layout.lock), way)
    if not state.held or not holding.evidence(state)[0]:
        return False
    command = way.of(lock.break_(way.layout.lock))
    check(shell.host, command, shell.run(command), doing="removing a dead run's lock")
    return True

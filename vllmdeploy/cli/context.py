"""What a command gets from outside: files, environment, shells. Tests hand in another one."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import typer

if TYPE_CHECKING:
    from vllmdeploy.config.settings import Loaded, Settings
    from vllmdeploy.core.host import Host
    from vllmdeploy.effects.shell import Shell
    from vllmdeploy.errors import HostError
    from vllmdeploy.workflows.session import Connect, Session


@dataclass(frozen=True, kw_only=True)
class World:
    """Options that stand before or after every command, and the way to the hosts."""

    config: Path | None = None
    nodes: Path | None = None
    json: bool = False
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    connect: Connect | None = None

    def loaded(
        self,
        overrides: Mapping[str, object] | None = None,
        *,
        bare_names: bool = False,
        fleet: bool = True,
    ) -> Loaded:
        """Without a fleet nobody is told that its files are not there."""
        from vllmdeploy.accelerators.registry import VENDORS
        from vllmdeploy.cli import output
        from vllmdeploy.config.settings import load

        loaded = load(
            config_path=self.config,
            nodes_path=self.nodes,
            environ=self.environ,
            overrides=overrides,
            bare_names=bare_names,
            accelerators=tuple(VENDORS),
        )
        for note in loaded.notes if fleet else ():
            output.say(f"note: {note}")
        if loaded.bare:
            output.say(f"note: taken from the environment: {', '.join(loaded.bare)}")
        return loaded

    def on(self, connect: Connect) -> World:
        """The same world where hosts are reached in another way; a test's own way stays."""
        return replace(self, connect=self.connect or connect)

    def settings(self) -> Settings:
        return self.loaded().settings

    @contextmanager
    def session(self, loaded: Loaded, hosts: Sequence[Host] | None = None) -> Generator[Session]:
        """Connections to all hosts, or to some of them, closed whatever happens."""
        from vllmdeploy.workflows.session import Session

        wanted = loaded.fleet.everyone if hosts is None else tuple(hosts)
        shells, failures = (self.connect or _connect)(wanted, loaded.settings)
        session = Session(loaded, shells, failures)
        try:
            yield session
        finally:
            session.close()

    @contextmanager
    def head_session(self, loaded: Loaded) -> Generator[Session]:
        """A connection to the head alone, for what only it knows."""
        from vllmdeploy.core.host import Fleet

        with self.session(replace(loaded, fleet=Fleet((loaded.fleet.head,)))) as session:
            yield session


def _connect(
    hosts: Sequence[Host], settings: Settings
) -> tuple[Mapping[str, Shell], dict[str, HostError]]:
    from vllmdeploy.cli import output
    from vllmdeploy.workflows.connecting import connect_all

    return connect_all(hosts, settings, ask=output.ask_password if terminal() else None)


def connect_lazily(
    hosts: Sequence[Host], settings: Settings
) -> tuple[Mapping[str, Shell], dict[str, HostError]]:
    """Nobody waits for a host that does not answer while the others have much to say."""
    from vllmdeploy.cli import output
    from vllmdeploy.workflows.connecting import connect_all

    ask = output.ask_password if terminal() else None
    return connect_all(hosts, settings, ask=ask, lazily=True)


def world(context: typer.Context) -> World:
    return cast("World", context.obj)


def terminal() -> bool:
    """Whether somebody sits here who can be asked; questions go to stderr, answers may go on."""
    return sys.stdin.isatty() and sys.stderr.isatty()

"""A node outside any container: a detached process of this machine, or a systemd unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from vllmdeploy.core.command import Command, Result, script
from vllmdeploy.core.fact import Fact
from vllmdeploy.core.layout import PACKAGE_FILE, Layout
from vllmdeploy.core.spec import NodeSpec, fingerprint
from vllmdeploy.plan.node import Member, token_path
from vllmdeploy.plan.observed import FoundNode, labelled_node
from vllmdeploy.plan.supervise.base import STOP_S, Made, cache_folder, caches, warden
from vllmdeploy.plan.wanted import Wanted
from vllmdeploy.tools import process, systemd

_USUAL_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Program:
    """What is the same under both supervisors."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    labels: Mapping[str, str]
    fingerprint: str
    folders: tuple[str, ...]


def _program(wanted: Wanted, member: Member, node: NodeSpec) -> _Program:
    layout = member.layout
    contents = member.found.contents
    cache = cache_folder(member, f"host-{contents.vllm if contents else ''}")
    argv = (
        wanted.python,
        *warden(
            node, run=layout.run(node.name), logs=layout.logs(node.name), services=layout.services
        ),
    )
    environment = {
        "PATH": _path(wanted.python),
        **caches(cache),
        **(token_path(layout.ray_secrets) if member.token else {}),
        **_visible(member),
        **node.environment,
    }
    mark = fingerprint((argv, environment))
    package = f"{layout.package(wanted.package)}/{PACKAGE_FILE}"
    return _Program(
        argv=argv,
        environment={"PYTHONPATH": package, **environment},
        labels=node.labels(mark),
        fingerprint=mark,
        folders=(layout.run(node.name), layout.logs(node.name), cache),
    )


def _path(python: str) -> str:
    """The interpreter's own folder first: `ray` lies beside it."""
    folder = str(PurePosixPath(python).parent)
    return f"{folder}:{_USUAL_PATH}" if folder.startswith("/") else _USUAL_PATH


def _visible(member: Member) -> dict[str, str]:
    """Without a container around it, a process is kept to its cards by a variable alone."""
    variable = member.accelerator.visible_variable
    if not variable or member.share.all_of_them:
        return {}
    return {variable: ",".join(str(card.index) for card in member.share.cards)}


def _ctl(python: str, name: str, layout: Layout, package: str, argv: tuple[str, ...]) -> Command:
    path = f"PYTHONPATH={layout.package(package)}/{PACKAGE_FILE}"
    module = (python, "-m", "vllmdeploy.node.ctl", "--run", layout.run(name))
    return Command(("env", path, *module, *argv), limit_s=30, root=True)


@dataclass(frozen=True, slots=True)
class AsProcess:
    """Detached from whoever started it; it does not come back after a reboot by itself."""

    python: str
    stop_s: int = STOP_S

    def found(self, layout: Layout) -> Fact[tuple[FoundNode, ...]]:
        question = process.found(layout.runs)

        def parse(result: Result) -> tuple[FoundNode, ...]:
            return tuple(
                labelled_node(
                    one.name,
                    one.labels,
                    running=one.pid != 0,
                    state="running" if one.pid else one.problem or "not running",
                )
                for one in question.parse(result)
            )

        return Fact(name=question.name, command=question.command, parse=parse)

    def make(self, wanted: Wanted, member: Member, node: NodeSpec) -> Made:
        program = _program(wanted, member, node)
        spec = process.DetachedSpec(
            run=member.layout.run(node.name),
            argv=program.argv,
            labels=program.labels,
            environment=program.environment,
        )
        return Made(
            command=process.make(spec), fingerprint=program.fingerprint, folders=program.folders
        )

    def start(self, node: FoundNode, layout: Layout) -> Command:
        return process.start(layout.run(node.name))

    def stop(self, node: FoundNode, layout: Layout) -> Command:
        return process.stop(layout.run(node.name), stop_s=self.stop_s)

    def restart(self, node: FoundNode, layout: Layout) -> tuple[Command, ...]:
        run = layout.run(node.name)
        return (process.stop(run, stop_s=self.stop_s), process.start(run))

    def remove(self, node: FoundNode, layout: Layout) -> tuple[Command, ...]:
        run = layout.run(node.name)
        return (process.stop(run, stop_s=self.stop_s), process.remove(run))

    def ctl(self, name: str, layout: Layout, package: str, *argv: str) -> Command:
        return _ctl(self.python, name, layout, package, argv)

    def logs(
        self, name: str, layout: Layout, *, tail: int | None = None, follow: bool = False
    ) -> Command:
        main = "ray.log" if name.endswith(("-ray-head", "-ray-worker")) else f"{name}.log"
        text = 'cd "$1" && exec tail -q -n "$2" $3 -- "$4" warden.log'
        count = "+1" if tail is None else str(tail)
        return script(text, layout.logs(name), count, "-F" if follow else "", main, root=True)


@dataclass(frozen=True, slots=True)
class InSystemd:
    """A unit that systemd starts at boot and starts again."""

    python: str
    stop_s: int = STOP_S

    def found(self, layout: Layout) -> Fact[tuple[FoundNode, ...]]:
        question = systemd.found()

        def parse(result: Result) -> tuple[FoundNode, ...]:
            return tuple(
                replace(
                    labelled_node(one.name, one.labels, running=one.running, state=one.active),
                    restarts=one.restarts,
                )
                for one in question.parse(result)
            )

        return Fact(name=question.name, command=question.command, parse=parse)

    def make(self, wanted: Wanted, member: Member, node: NodeSpec) -> Made:
        program = _program(wanted, member, node)
        spec = systemd.UnitSpec(
            name=node.name,
            argv=program.argv,
            stop_s=self.stop_s,
            labels=program.labels,
            environment=program.environment,
            writable=program.folders,
            confined=node.role == "instance",
        )
        return Made(
            command=systemd.make(spec), fingerprint=program.fingerprint, folders=program.folders
        )

    def start(self, node: FoundNode, layout: Layout) -> Command:
        return systemd.start(node.name)

    def stop(self, node: FoundNode, layout: Layout) -> Command:
        return systemd.stop(node.name, stop_s=self.stop_s)

    def restart(self, node: FoundNode, layout: Layout) -> tuple[Command, ...]:
        return (systemd.restart(node.name, stop_s=self.stop_s),)

    def remove(self, node: FoundNode, layout: Layout) -> tuple[Command, ...]:
        return (systemd.remove(node.name, stop_s=self.stop_s),)

    def ctl(self, name: str, layout: Layout, package: str, *argv: str) -> Command:
        return _ctl(self.python, name, layout, package, argv)

    def logs(
        self, name: str, layout: Layout, *, tail: int | None = None, follow: bool = False
    ) -> Command:
        return systemd.logs(name, tail=tail, follow=follow)

"""`image build`: Ray onto a stock vLLM image, or the CPU engine, on a host's own Docker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from vllmdeploy.core.command import Command, check
from vllmdeploy.core.host import Host
from vllmdeploy.core.plan import Draft, Plan, Run, Step
from vllmdeploy.effects import template
from vllmdeploy.effects.ask import ask_access, ask_one
from vllmdeploy.effects.build_context import feed, wheels_in
from vllmdeploy.effects.shell import Shell
from vllmdeploy.effects.transfer_freight import HostShell
from vllmdeploy.errors import CommandFailed, PreflightRefused, UsageError
from vllmdeploy.plan import image_build
from vllmdeploy.plan.image_build import Build
from vllmdeploy.tools import docker, image_probe, images
from vllmdeploy.tools.access import Access
from vllmdeploy.tools.image_probe import ImageContents
from vllmdeploy.tools.images import Image
from vllmdeploy.workflows.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`index`: a package index other than the usual one; `extra_index`: one beside it."""

    reference: str = ""
    wheels: Path | None = None
    tag: str = ""
    cpu: bool = False
    on: str = ""
    index: str = ""
    extra_index: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is built, where, and from what; `base` is None where it has to be pulled first."""

    host: Host
    access: Access
    options: Options
    reference: str
    base: Image | None
    contents: ImageContents = field(default_factory=ImageContents)
    build: Build | None = None
    wheels: tuple[Path, ...] = ()


def look_at(session: Session, options: Options) -> Job:
    """Refuses what cannot become an image that works."""
    for flag, url in (("--index", options.index), ("--extra-index", options.extra_index)):
        if "@" in url:
            raise UsageError(f"{flag}: whoever has the image could read the password in it")
    wheels = wheels_in(options.wheels) if options.wheels else ()
    host = _host(session, options.on)
    if host.name in session.failures:
        raise session.failures[host.name]
    shell = session.shells[host.name]
    way = ask_access(shell, session.wanted.cluster, session.sudo)
    engine = ask_one(shell, docker.ENGINE, way)
    if engine.problem:
        raise PreflightRefused([f"{host.name}: {engine.problem}"])
    reference = options.reference or _usual(session, host, cpu=options.cpu)
    base = _held(shell, reference, way)
    job = Job(host=host, access=way, options=options, reference=reference, base=base, wheels=wheels)
    return _decided(session, job, base) if base is not None else job


def _held(shell: Shell, reference: str, way: Access) -> Image | None:
    held = ask_one(shell, images.image(reference), way)
    if held.problem:
        raise CommandFailed(shell.host, "docker image inspect", 1, held.problem, doing="looking")
    return held.image


def _host(session: Session, name: str) -> Host:
    if not name:
        return session.lead
    found = next((host for host in session.fleet.hosts if host.name == name), None)
    if found is None:
        known = ", ".join(host.name for host in session.fleet.hosts)
        raise UsageError(f"--on {name}: no such host", hint=f"hosts: {known}")
    return found


def _usual(session: Session, host: Host, *, cpu: bool) -> str:
    image = image_build.CPU_BASE if cpu else session.wanted.groups[host.group].image
    if not image:
        raise UsageError("which image? IMAGE is not set", hint="name it: `image build NAME`")
    return image


def _decided(session: Session, job: Job, base: Image) -> Job:
    contents = _contents(session, job, base)
    names = [path.name for path in job.wheels]
    options, reference = job.options, job.reference
    if options.cpu:
        build = image_build.for_cpu(reference, base, contents, tag=options.tag)
    else:
        build = image_build.with_ray(reference, base, contents, wheels=names, tag=options.tag)
    if isinstance(build, str):
        raise PreflightRefused([f"{job.host.name}: {build}"])
    return replace(job, contents=contents, build=build)


def _contents(session: Session, job: Job, image: Image) -> ImageContents:
    kept = f"{job.access.probes}/{image_probe.kept_name(image.short, ())}"
    fact = image_probe.probe(image.id, (), kept)
    return ask_one(session.shells[job.host.name], fact, job.access)


def decide(job: Job) -> Plan:
    draft = Draft()
    if job.base is None:
        draft.note("what is inside the image decides the rest, once it is there")
        pull = job.access.of(images.pull(job.reference))
        draft.add(Step(job.host.name, "pull", f"image {job.reference}", "not there", Run(pull)))
    if job.build is not None:
        source = f"{len(job.wheels)} wheels, no network" if job.wheels else "the package index"
        cause = f"Ray {job.build.arguments['RAY']} from {source}"
        command = job.access.of(_command(job, job.build))
        draft.add(Step(job.host.name, "build", f"image {job.build.tag}", cause, Run(command)))
    return draft.finished()


def _command(job: Job, build: Build) -> Command:
    indexes = {
        "PIP_INDEX_URL": job.options.index,
        "PIP_EXTRA_INDEX_URL": job.options.extra_index,
    }
    index = {name: url for name, url in indexes.items() if url}
    return images.build(
        build.tag,
        build.dockerfile,
        arguments={"BASE": build.base, **build.arguments, **index},
        labels=build.labels,
        network="none" if job.wheels else "host",
    )


def pulled(session: Session, job: Job) -> Job:
    """The same job once its base is there."""
    if job.base is not None:
        return job
    shell, command = session.shells[job.host.name], job.access.of(images.pull(job.reference))
    check(job.host.name, command, shell.run(command), doing="pulling the image to build on")
    return look_at(session, job.options)


def carry_out(session: Session, job: Job) -> Image:
    """Build, then look into what was built: it has to have what was asked for, and all that its
    base had."""
    build, base = job.build, job.base
    if build is None or base is None:
        raise UsageError(f"{job.host.name}: there is still no image {job.reference}")
    shell = cast("HostShell", session.shells[job.host.name])
    command = job.access.of(_command(job, build))
    result = shell.stream(command, feed=feed(_small(session, build), _big(job.wheels)))
    shell.run(job.access.of(images.prune_stage()))
    hint = "`docker build` said more on that host" if result.timed_out else ""
    if not result.ok and not result.timed_out:
        result = replace(result, stderr=images.why_not_built(result))
    check(job.host.name, command, result, doing=f"building {build.tag}", hint=hint)
    made = _held(shell, build.tag, job.access)
    if made is None:
        raise CommandFailed(job.host.name, "docker build", 1, f"there is no {build.tag} after it")
    wrong = image_build.wrong(build, base, made, job.contents, _contents(session, job, made))
    if wrong:
        raise CommandFailed(job.host.name, "docker build", 1, wrong, doing="verifying the image")
    return made


def _small(session: Session, build: Build) -> dict[str, bytes]:
    for_cpu = build.dockerfile == "Dockerfile.cpu"
    names = (build.dockerfile, "add.sh", *(("cpu_engine.sh",) if for_cpu else ()))
    found = {name: template.raw(f"image/{name}") for name in names}
    return {**found, **({"vllmdeploy.zip": session.package[0]} if for_cpu else {})}


def _big(wheels: Sequence[Path]) -> dict[str, Path]:
    return {f"wheels/{path.name}": path for path in wheels}

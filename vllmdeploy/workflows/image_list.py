"""`image list`: every image on every host, and which of them are the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vllmdeploy.effects.ask import ask_access, ask_one
from vllmdeploy.effects.fanout import each
from vllmdeploy.errors import HostError, VllmdeployError
from vllmdeploy.tools import images
from vllmdeploy.tools.images import Image, Store
from vllmdeploy.workflows.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One image on one host, or a host that does not tell. `identity` is equal where images are,
    whatever their store calls them."""

    host: str
    group: str
    image: str = ""
    identity: str = ""
    id: str = ""
    size: int = 0
    store: str = ""
    problem: str = ""

    def document(self) -> dict[str, Any]:
        return asdict(self)


def lines(session: Session) -> tuple[Line, ...]:
    there = [host for host in session.fleet.hosts if host.name in session.shells]

    def asked(host: str) -> Store:
        shell = session.shells[host]
        way = ask_access(shell, session.wanted.cluster, session.sudo)
        return ask_one(shell, images.STORE, way)

    stores: dict[str, Store] = {}
    answers = each([host.name for host in there], asked)
    for host, answer in zip(there, answers, strict=True):
        if isinstance(answer, HostError):
            session.failures.setdefault(host.name, answer)
        problem = answer.message if isinstance(answer, VllmdeployError) else ""
        stores[host.name] = answer if isinstance(answer, Store) else Store(problem=problem)
    for name, failure in session.failures.items():
        stores[name] = Store(problem=failure.message)
    return listed(stores, {host.name: host.group for host in session.fleet.hosts})


def listed(stores: Mapping[str, Store], groups: Mapping[str, str]) -> tuple[Line, ...]:
    """By image, then by host: what differs stands one below the other."""
    everything = [image for store in stores.values() for image in store.images]
    # Docker's own store says the identity itself, so its word is the one that is shown.
    kept = [one for store in stores.values() if store.shares_layers for one in store.images]
    found: list[Line] = []
    for host, store in stores.items():
        if store.problem:
            found.append(Line(host=host, group=groups[host], problem=_bare(host, store.problem)))
        for image in store.images:
            for name in image.references or ("<none>",):
                found.append(
                    Line(
                        host=host,
                        group=groups[host],
                        image=name,
                        identity=_identity(image, (*kept, *everything)),
                        id=image.id,
                        size=image.size,
                        store=store.kind,
                    )
                )
    order = {host: at for at, host in enumerate(groups)}
    return tuple(sorted(found, key=lambda one: (not one.problem, one.image, order[one.host])))


def _identity(image: Image, known: Sequence[Image]) -> str:
    return next((one.id for one in known if one.same_as(image)), image.id)


def _bare(host: str, problem: str) -> str:
    return problem.removeprefix(f"{host}: ").splitlines()[0]

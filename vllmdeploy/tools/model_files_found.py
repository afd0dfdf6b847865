"""What MODEL_PATH of a host holds, as read from the lines of `model_files.look`."""

from __future__ import annotations

from dataclasses import dataclass

from vllmdeploy.core.command import Result
from vllmdeploy.tools.model_files_tree import Reading, Tree


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundModel:
    """One folder below MODEL_PATH. `incoming` is a copy that is not finished.

    `ready` is what the READY marker says, `digest` the sha256 of MANIFEST.json as it is there,
    `expected` the size that an unfinished copy will have, 0 if nobody knows.
    """

    name: str
    incoming: bool = False
    tree: Tree
    ready: str = ""
    digest: str = ""
    expected: int = 0

    @property
    def marked(self) -> bool:
        """READY carries the digest of the manifest beside it."""
        return bool(self.digest) and self.ready == self.digest


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundStore:
    """MODEL_PATH on one host. `there` is False where the folder does not exist."""

    there: bool
    models: tuple[FoundModel, ...] = ()
    free_bytes: int | None = None
    writable: bool = False

    def model(self, name: str) -> FoundModel | None:
        return self._named(name, incoming=False)

    def incoming(self, name: str) -> FoundModel | None:
        return self._named(name, incoming=True)

    def _named(self, name: str, *, incoming: bool) -> FoundModel | None:
        found = (each for each in self.models if each.name == name and each.incoming == incoming)
        return next(found, None)


@dataclass(slots=True)
class _Model:
    name: str
    incoming: bool
    reading: Reading
    ready: str = ""
    digest: str = ""
    expected: int = 0

    def found(self) -> FoundModel:
        return FoundModel(
            name=self.name,
            incoming=self.incoming,
            tree=self.reading.tree(),
            ready=self.ready,
            digest=self.digest,
            expected=self.expected,
        )


def parse_look(result: Result) -> FoundStore:
    there = writable = False
    free: int | None = None
    models: list[_Model] = []
    for line in result.stdout.splitlines():
        kind, _, rest = line.partition(" ")
        match kind:
            case "model" | "incoming":
                models.append(_Model(rest, kind == "incoming", Reading()))
            case "ready" if models:
                models[-1].ready = rest
            case "digest" if models:
                models[-1].digest = rest
            case "expected" if models:
                models[-1].expected = int(rest) if rest.isdigit() else 0
            case _ if models:
                models[-1].reading.line(line)
            case "free":
                free = int(rest) * 1024 if rest.isdigit() else None
            case "writable":
                writable = True
            case "there":
                there = True
            case _:
                pass
    return FoundStore(
        there=there,
        models=tuple(model.found() for model in models),
        free_bytes=free,
        writable=writable,
    )

"""What MODEL_PATH of a host holds, as read from the lines of `model_files.look`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vllmdeploy.core.command import Result
from vllmdeploy.tools.model_files_tree import Reading, Tree


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundModel:
    """One folder below MODEL_PATH. `incoming` is a copy that is not finished.

    `ready` is what the READY marker says, `digest` the sha256 of MANIFEST.json as it is there,
    `expected` the size that an unfinished copy will have, 0 if nobody knows. `came`: of files that
    come in ranges, begin and end of what is there.
    """

    name: str
    incoming: bool = False
    tree: Tree
    ready: str = ""
    digest: str = ""
    expected: int = 0
    came: Mapping[str, tuple[tuple[int, int], ...]] = field(
        default_factory=dict[str, tuple[tuple[int, int], ...]]
    )

    @property
    def total(self) -> int:
        """Bytes that are there, those of growing files included."""
        return self.tree.total + sum(self.came_of(path) for path in self.came)

    def came_of(self, path: str) -> int:
        return sum(end - begin for begin, end in self.came.get(path, ()))

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
    came: dict[str, list[tuple[int, int]]] = field(default_factory=dict[str, list[tuple[int, int]]])

    def found(self) -> FoundModel:
        return FoundModel(
            name=self.name,
            incoming=self.incoming,
            tree=self.reading.tree(),
            ready=self.ready,
            digest=self.digest,
            expected=self.expected,
            came={path: tuple(ranges) for path, ranges in self.came.items()},
        )

    def line(self, line: str) -> None:
        kind, _, rest = line.partition(" ")
        match kind:
            case "ready":
                self.ready = rest
            case "digest":
                self.digest = rest
            case "expected":
                self.expected = int(rest) if rest.isdigit() else 0
            case "came":
                self.came[rest] = []
            case "range":
                self._range(rest)
            case _:
                self.reading.line(line)

    def _range(self, text: str) -> None:
        begin, _, end = text.partition(" ")
        if self.came and begin.isdigit() and end.isdigit():
            self.came[next(reversed(self.came))].append((int(begin), int(end)))


def parse_look(result: Result) -> FoundStore:
    there = writable = False
    free: int | None = None
    models: list[_Model] = []
    for line in result.stdout.splitlines():
        kind, _, rest = line.partition(" ")
        match kind:
            case "model" | "incoming":
                models.append(_Model(rest, kind == "incoming", Reading()))
            case _ if models:
                models[-1].line(line)
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

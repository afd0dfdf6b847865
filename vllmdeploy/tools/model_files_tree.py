"""A folder of files as found on a host, and what in it no model may have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from vllmdeploy.tools.manifest_names import is_leftover, path_fault

_HUB_CACHE = re.compile(r"models--(.+)/snapshots/([0-9a-f]{40})")
_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link: what it says, where it ends, and the size there if that is a file."""

    path: str
    to: str
    at: str = ""
    size: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """Everything below one folder but what clients keep beside a model's files.

    `home` is the folder's real path. `odd` names what is neither a file, a folder nor a link, or
    could not be read.
    """

    home: str
    files: Mapping[str, int] = field(default_factory=dict[str, int])
    links: tuple[Link, ...] = ()
    odd: tuple[str, ...] = ()

    @property
    def sizes(self) -> dict[str, int]:
        """By path, what a copy that follows links would hold."""
        linked = {link.path: link.size for link in self.links if link.size is not None}
        return {**self.files, **linked}

    @property
    def total(self) -> int:
        return sum(self.sizes.values())


def tree_faults(tree: Tree) -> tuple[str, ...]:
    """Every reason why this folder is no model, each naming its file; links inside are fine."""
    faults = [f"{name}: neither a file nor a folder, or not readable" for name in tree.odd]
    for link in tree.links:
        fault = _link_fault(tree.home, link)
        if fault:
            faults.append(f"{link.path}: {fault}")
    for path in tree.sizes:
        fault = path_fault(path)
        if fault:
            faults.append(f"{path!r}: {fault}")
    if not tree.sizes and not faults:
        faults.append("it has no files")
    return tuple(faults)


def _link_fault(home: str, link: Link) -> str:
    if link.to.startswith("/"):
        return f"an absolute link, to {link.to}"
    if not link.at:
        return f"a link that loops or leads nowhere, to {link.to}"
    if not any(link.at.startswith(f"{root}/") for root in _roots(home)):
        return f"a link out of the model's folder, to {link.at}"
    if link.size is None:
        return f"a link to something that is no file, {link.at}"
    return ""


def _roots(home: str) -> tuple[str, ...]:
    """The Hugging Face cache links a snapshot to blobs beside it, or shared by all its models."""
    if not hub_cache(home):
        return (home,)
    repository = PurePosixPath(home).parents[1]
    return home, f"{repository}/blobs", f"{repository.parent}/blobs"


def hub_cache(home: str) -> tuple[str, str] | None:
    """The repository and commit of a folder in the Hugging Face cache."""
    found = _HUB_CACHE.fullmatch("/".join(PurePosixPath(home).parts[-3:]))
    return (found[1].replace("--", "/"), found[2]) if found else None


def pickled(paths: tuple[str, ...]) -> tuple[str, ...]:
    """Files that run code of whoever made them when they are loaded."""
    return tuple(path for path in paths if path.endswith(_PICKLED))


class Reading:
    """Collects a tree from the lines of the script that looks at a folder.

    A name with a line end shows as lines that nobody expects: they make it odd.
    """

    def __init__(self) -> None:
        self._home = ""
        self._files: dict[str, int] = {}
        self._links: list[Link] = []
        self._odd: list[str] = []

    def line(self, line: str) -> None:
        kind, _, rest = line.partition(" ")
        if kind == "file":
            self._file(rest)
        elif kind == "link":
            self._links.append(Link(_relative(rest), ""))
        elif kind in ("to", "at", "is") and self._links:
            self._link(kind, rest)
        elif kind == "home":
            self._home = rest
        else:
            self._odd.append(_relative(rest if kind == "odd" else line))

    def _file(self, rest: str) -> None:
        size, _, name = rest.partition(" ")
        path = _relative(name)
        if not size.isdigit() or not name.startswith("./") or path in self._files:
            self._odd.append(path)
        elif not is_leftover(path):
            self._files[path] = int(size)

    def _link(self, kind: str, rest: str) -> None:
        known = self._links.pop()
        match kind:
            case "to":
                found = Link(known.path, rest, known.at, known.size)
            case "at":
                found = Link(known.path, known.to, rest, known.size)
            case _:
                found = Link(known.path, known.to, known.at, int(rest) if rest.isdigit() else None)
        self._links.append(found)

    def tree(self) -> Tree:
        links = tuple(link for link in self._links if not is_leftover(link.path))
        odd = tuple(name for name in self._odd if not is_leftover(name))
        return Tree(home=self._home, files=self._files, links=links, odd=odd)


def _relative(name: str) -> str:
    return name.removeprefix("./")

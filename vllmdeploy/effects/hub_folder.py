"""A folder of this machine as a source of a model, inside the process that asks."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from vllmdeploy.tools.hub import HubTrouble, Listing, RemoteFile, Trouble, Wanted
from vllmdeploy.tools.manifest_names import is_leftover
from vllmdeploy.tools.model_files_tree import Link, Tree, hub_cache, tree_faults


class Folder:
    def __init__(self, wanted: Wanted) -> None:
        self._folder = Path(wanted.repo)

    def listing(self) -> Listing:
        tree = scan(self._folder)
        known = hub_cache(tree.home)
        return Listing(
            commit=known[1] if known else "",
            files=tuple(RemoteFile(path, size) for path, size in sorted(tree.sizes.items())),
            faults=tree_faults(tree),
        )

    def fetch(self, file: RemoteFile, commit: str, folder: Path) -> None:
        """What links point at is copied; a source that changes meanwhile is no model."""
        del commit
        source, target = self._folder / file.path, folder / file.path
        before = source.stat()
        target.parent.mkdir(parents=True, exist_ok=True)
        with source.open("rb") as read, target.open("xb") as write:
            shutil.copyfileobj(read, write, 4 * 2**20)
        after = source.stat()
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise HubTrouble(Trouble.CHANGED, f"{source} was changed while it was copied")

    def trouble(self, error: Exception) -> HubTrouble | None:
        return HubTrouble(Trouble.LOCAL, str(error)) if isinstance(error, OSError) else None


def scan(folder: Path) -> Tree:
    """The folder as `model_files.look` sees one on a host."""
    home = folder.resolve()
    files: dict[str, int] = {}
    links: list[Link] = []
    odd: list[str] = []

    def unreadable(error: OSError) -> None:
        odd.append(str(error.filename))

    for parent, folders, names in os.walk(home, onerror=unreadable):
        folders[:] = [each for each in folders if not is_leftover(_below(home, parent, each))]
        for name in [*names, *(each for each in folders if (Path(parent) / each).is_symlink())]:
            path = _below(home, parent, name)
            if is_leftover(path):
                continue
            mode = (full := home / path).lstat()
            if stat.S_ISLNK(mode.st_mode):
                links.append(_link(full, path))
            elif stat.S_ISREG(mode.st_mode):
                files[path] = mode.st_size
            else:
                odd.append(path)
    return Tree(home=str(home), files=files, links=tuple(links), odd=tuple(odd))


def _below(home: Path, parent: str, name: str) -> str:
    return str((Path(parent) / name).relative_to(home))


def _link(full: Path, path: str) -> Link:
    to = str(full.readlink())
    try:
        at = full.resolve(strict=True)
    except (OSError, RuntimeError):
        # RuntimeError is how Python before 3.13 tells of a loop.
        return Link(path, to)
    return Link(path, to, str(at), at.stat().st_size if at.is_file() else None)

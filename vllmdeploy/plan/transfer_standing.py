"""How a host stands to a model that it is to have: whole, in parts, not at all, or in the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from vllmdeploy.plan import models
from vllmdeploy.plan.models import State
from vllmdeploy.plan.models_files import size_text
from vllmdeploy.tools.manifest import Manifest
from vllmdeploy.tools.model_files_found import FoundModel, FoundStore

# Room that stays free: a file system without any fails in more ways than one.
_SPARE_BYTES = 64 * 1024 * 1024


class Standing(Enum):
    READY = "ready"
    PARTIAL = "partial"
    ABSENT = "absent"
    UNFINISHED = "not marked READY"
    """Ours, under its own name, but without a READY that fits: to be opened again."""
    BY_HAND = "put there by hand"
    """It has the right files by name and size; whether they are the same is still to be seen."""
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Stand:
    """`there` counts bytes that need not come; `why` says what is in the way."""

    standing: Standing
    there: int = 0
    why: str = ""
    hint: str = ""

    def cause(self, total: int) -> str:
        if self.standing in (Standing.ABSENT, Standing.READY):
            return str(self.standing.value)
        if self.standing is Standing.REFUSED:
            return self.why
        return f"{self.standing.value}, {100 * self.there // max(total, 1)} % there"


def stand(store: FoundStore, manifest: Manifest, name: str) -> Stand:
    """Decide for one host; what is refused is refused before anything is touched."""
    found, incoming = store.model(name), store.incoming(name)
    match models.standing(store, name, manifest).state:
        case State.READY:
            return Stand(Standing.READY, manifest.total)
        case State.ABSENT | State.PARTIAL:
            kind = Standing.PARTIAL if incoming else Standing.ABSENT
            return _with_room(store, manifest, Stand(kind, _there(incoming, manifest)))
        case State.OTHER:
            return Stand(
                Standing.REFUSED,
                why=f"another {name} is there, with other files",
                hint=f"`vllmdeploy model remove {name}` there, or give this one another name",
            )
        case State.UNMARKED | State.CORRUPT if found is not None and found.digest:
            unfinished = Stand(Standing.UNFINISHED, _there(found, manifest))
            return _with_room(store, manifest, unfinished)
        case State.UNMARKED | State.CORRUPT:
            return _by_hand(found, manifest, name)


def _by_hand(found: FoundModel | None, manifest: Manifest, name: str) -> Stand:
    if found is not None and found.tree.sizes == _sizes(manifest):
        return Stand(Standing.BY_HAND, manifest.total)
    return Stand(
        Standing.REFUSED,
        why=f"a folder {name} is there that was put there by hand and differs",
        hint="move it away, or remove it there",
    )


def _with_room(store: FoundStore, manifest: Manifest, found: Stand) -> Stand:
    missing = manifest.total - found.there
    free = store.free_bytes
    if free is None or missing + _SPARE_BYTES <= free:
        return found
    return Stand(
        Standing.REFUSED,
        found.there,
        why=f"{size_text(missing)} are to come and {size_text(free)} are free",
        hint="make room below MODEL_PATH, or leave that host out with --nodes",
    )


def _there(found: FoundModel | None, manifest: Manifest) -> int:
    if found is None:
        return 0
    sizes = found.tree.sizes
    return sum(
        min(sizes.get(file.path, 0) or found.came_of(file.path), file.size)
        for file in manifest.files
    )


def _sizes(manifest: Manifest) -> Mapping[str, int]:
    return {file.path: file.size for file in manifest.files}

"""What state a model is in on a host, and whether a download may go to its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from vllmdeploy.plan.models_files import size_text
from vllmdeploy.tools.manifest import Manifest
from vllmdeploy.tools.model_files_found import FoundModel, FoundStore
from vllmdeploy.tools.model_files_tree import tree_faults

# Beside the model itself, for what a file system keeps of its own.
_SPARE_SHARE = 0.02


class State(Enum):
    READY = "ready"
    PARTIAL = "partial"
    CORRUPT = "corrupt"
    OTHER = "other"
    UNMARKED = "unmarked"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Standing:
    """One model on one host: its state, how much of it is there, and what is wrong."""

    state: State
    share: float = 0.0
    faults: tuple[str, ...] = ()

    def __str__(self) -> str:
        match self.state:
            case State.PARTIAL:
                return f"partial {min(99, int(100 * self.share))} %"
            case State.OTHER:
                return "another revision"
            case State.UNMARKED:
                return "no manifest" if not self.faults else "not finished"
            case State.READY | State.CORRUPT | State.ABSENT:
                return str(self.state.value)


def standing(store: FoundStore, name: str, wanted: Manifest | None) -> Standing:
    """`wanted` is the head's manifest; without one nothing but a mark can be judged."""
    model = store.model(name)
    if model is None:
        return _unfinished(store.incoming(name), wanted)
    if not model.digest:
        return Standing(State.UNMARKED)
    if wanted is not None and model.digest != wanted.digest:
        return Standing(State.OTHER)
    faults = size_faults(model, wanted)
    if model.ready and not model.marked:
        faults = (*faults, "READY is of another manifest")
    if faults:
        return Standing(State.CORRUPT, faults=faults)
    if model.marked:
        return Standing(State.READY, 1.0)
    return Standing(State.UNMARKED, 1.0, ("READY is missing",))


def _unfinished(incoming: FoundModel | None, wanted: Manifest | None) -> Standing:
    if incoming is None:
        return Standing(State.ABSENT)
    total = incoming.expected or (wanted.total if wanted else 0)
    return Standing(State.PARTIAL, incoming.total / total if total else 0.0)


def size_faults(model: FoundModel, wanted: Manifest | None) -> tuple[str, ...]:
    """Files that are missing or have another size, and what no model may have."""
    faults = list(tree_faults(model.tree))
    sizes = model.tree.sizes
    for file in wanted.files if wanted else ():
        found = sizes.get(file.path)
        if found is None:
            faults.append(f"{file.path}: missing")
        elif found != file.size:
            faults.append(f"{file.path}: {found:,} bytes, not {file.size:,}")
    return tuple(faults)


def extra_files(model: FoundModel, wanted: Manifest) -> tuple[str, ...]:
    """Not in the manifest; an engine may load them, so they are told."""
    return tuple(sorted(set(model.tree.sizes) - set(wanted.by_path)))


def hash_faults(wanted: Manifest, found: Mapping[str, str]) -> tuple[str, ...]:
    """What a host computed against the manifest; a file without an answer could not be read."""
    faults: list[str] = []
    for file in wanted.files:
        sha256 = found.get(file.path)
        if sha256 is None:
            faults.append(f"{file.path}: cannot be read")
        elif sha256 != file.sha256:
            faults.append(f"{file.path}: other content than the manifest says")
    return tuple(faults)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What somebody wants to download; -1 is a size that the hub does not tell."""

    name: str
    source: str
    repo: str
    commit: str
    sizes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Verdict:
    """`present`: nothing to do. `mend`: it is there and not whole. `refusal`: why nothing may be
    done."""

    present: bool = False
    mend: bool = False
    refusal: str = ""


def may_download(asked: Asked, store: FoundStore, there: Manifest | None) -> Verdict:
    """Another repository or revision never goes into an existing name."""
    if store.model(asked.name) is None:
        return Verdict()
    if there is None:
        return Verdict(
            refusal=f"{asked.name} is there already, put there by hand: `model verify"
            f" {asked.name}` takes it over as it is, --name gives another name"
        )
    difference = _difference(asked, there)
    if difference:
        return Verdict(
            refusal=f"{asked.name} is there already, {difference}: give --name, or"
            f" `model remove {asked.name}` first"
        )
    whole = standing(store, asked.name, there).state is State.READY
    return Verdict(present=whole, mend=not whole)


def _difference(asked: Asked, there: Manifest) -> str:
    if (there.source, there.repo) != (asked.source, asked.repo):
        return f"from {_origin(there)}"
    if there.commit != asked.commit:
        now = f"{asked.repo} is at {asked.commit[:12]}" if asked.commit else "not"
        return f"at revision {there.commit[:12]}, and {now}"
    known = there.by_path
    same = all(
        path in known and size in (-1, known[path].size) for path, size in asked.sizes.items()
    )
    return "" if same else f"with other files of {asked.repo or 'some folder'}"


def _origin(manifest: Manifest) -> str:
    if manifest.source == "folder":
        return "a folder"
    return f"{manifest.repo} on {manifest.source}"


def space_refusals(
    stores: Mapping[str, FoundStore], name: str, total: int, hosts: Sequence[str]
) -> tuple[str, ...]:
    """Hosts that have no room for what is still missing there."""
    refusals: list[str] = []
    for host in hosts:
        store = stores[host]
        there = sum(model.total for model in (store.model(name), store.incoming(name)) if model)
        missing = max(0, total - there)
        needed = int(missing * (1 + _SPARE_SHARE))
        if store.free_bytes is not None and store.free_bytes < needed:
            refusals.append(
                f"{host}: {size_text(missing)} are to come and {size_text(store.free_bytes)} are"
                " free"
            )
    return tuple(refusals)

"""What `model` says: a download before it begins, the matrix of models and hosts, what is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vllmdeploy.cli import output
from vllmdeploy.plan.models import Standing, extra_files
from vllmdeploy.plan.models_files import size_text

if TYPE_CHECKING:
    from vllmdeploy.tools.manifest import Manifest
    from vllmdeploy.workflows.models import SeenModels
    from vllmdeploy.workflows.models_download import Download
    from vllmdeploy.workflows.session import Session


def download_text(seen: SeenModels, decided: Download) -> str:
    """What comes from where, and how much room there is on every host that may get it."""
    place, commit = decided.place, decided.listing.commit
    lines = [
        f"{decided.wanted}" + (f" ({commit[:12]})" if commit else "") + f" -> {place.folder}",
        f"  {len(decided.chosen.files)} files, {size_text(decided.chosen.total)}",
        *(
            f"  {host}: {size_text(found.store.free_bytes or 0)} free"
            for host, found in seen.hosts.items()
        ),
        *(f"  note: {note}" for note in decided.notes),
    ]
    if decided.verdict.present:
        lines.append(f"{seen.head}: {place.name} is there and ready; nothing to do")
    return "\n".join(lines)


def download_document(decided: Download) -> dict[str, Any]:
    return {
        "model": decided.place.name,
        "source": decided.wanted.source,
        "repo": decided.wanted.repo,
        "commit": decided.listing.commit,
        "folder": decided.place.folder,
        "bytes": decided.chosen.total,
        "present": decided.verdict.present,
        "notes": list(decided.notes),
        "files": [{"path": file.path, "size": file.size} for file in decided.chosen.files],
    }


def manifest_document(name: str, manifest: Manifest) -> dict[str, Any]:
    return {
        "model": name,
        "commit": manifest.commit,
        "bytes": manifest.total,
        "digest": manifest.digest,
    }


def list_text(seen: SeenModels) -> str:
    hosts = list(seen.hosts)
    rows: list[tuple[str, ...]] = []
    for name in seen.names:
        manifest = seen.manifests.get(name)
        revision = (manifest.commit[:12] or manifest.source) if manifest else "-"
        rows.append(
            (
                name,
                size_text(_size(seen, name)),
                revision,
                *(str(seen.standing(host, name)) for host in hosts),
                ", ".join(seen.users(name)) or "-",
            )
        )
    if not rows:
        return f"no models in {seen.root}"
    headings = ("MODEL", "SIZE", "REVISION", *(host.upper() for host in hosts), "USED BY")
    return output.table(headings, rows)


def _size(seen: SeenModels, name: str) -> int:
    """As the manifest says; without one, as much as is there."""
    manifest = seen.manifests.get(name)
    if manifest:
        return manifest.total
    found = (model for host in seen.hosts.values() for model in host.store.models)
    return max((model.tree.total for model in found if model.name == name), default=0)


def list_document(session: Session, seen: SeenModels) -> dict[str, Any]:
    return {
        "model_path": seen.root,
        "models": [_model_document(seen, name) for name in seen.names],
        "unreachable": {host: error.message for host, error in session.failures.items()},
    }


def _model_document(seen: SeenModels, name: str) -> dict[str, Any]:
    manifest = seen.manifests.get(name)
    return {
        "model": name,
        "bytes": _size(seen, name),
        "source": manifest.source if manifest else None,
        "repo": manifest.repo if manifest else None,
        "revision": manifest.revision if manifest else None,
        "commit": manifest.commit if manifest else None,
        "digest": manifest.digest if manifest else None,
        "used_by": list(seen.users(name)),
        "hosts": {host: standing_document(seen.standing(host, name)) for host in seen.hosts},
    }


def standing_document(standing: Standing) -> dict[str, Any]:
    return {
        "state": standing.state.value,
        "share": round(standing.share, 4),
        "faults": list(standing.faults),
    }


def verify_text(seen: SeenModels, name: str, judged: Mapping[str, Standing]) -> str:
    manifest = seen.manifests.get(name)
    lines: list[str] = []
    for host, one in judged.items():
        lines.append(f"{host}: {one}")
        lines += [f"  {fault}" for fault in _some(one.faults)]
        model = seen.hosts[host].store.model(name)
        extra = extra_files(model, manifest) if model and manifest else ()
        lines += [f"  {path}: not in the manifest" for path in _some(extra)]
    return "\n".join(lines)


def _some(items: Sequence[str], most: int = 20) -> list[str]:
    more = [f"... and {len(items) - most} more"] if len(items) > most else []
    return [*items[:most], *more]


def repair_hint(seen: SeenModels, host: str, name: str) -> str:
    manifest = seen.manifests.get(name)
    if host != seen.head:
        return f"{host}: vllmdeploy model verify {name} --repair"
    if manifest is None or manifest.source == "folder":
        return f"{host}: put the right files there, remove {seen.root}/{name}/.vllmdeploy, verify"
    return (
        f"{host}: vllmdeploy model download {manifest.repo} {manifest.source}"
        f" --revision {manifest.commit or manifest.revision} --name {name}"
    )


def known_names(seen: SeenModels) -> str:
    return f"there are: {', '.join(seen.names)}" if seen.names else "there is none"

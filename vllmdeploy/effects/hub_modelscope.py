"""ModelScope through its own client library, inside the process that asks."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vllmdeploy.effects.hub_errors import read
from vllmdeploy.tools.hub import HubTrouble, Listing, RemoteFile, Trouble, Wanted, checked_hash

_List = Callable[[str, str], Sequence[Mapping[str, Any]]]
_KNOWN = {
    "NotExistError": Trouble.MISSING,
    "AuthenticationError": Trouble.GATED,
    "PermissionDeniedError": Trouble.GATED,
    "RateLimitError": Trouble.LIMITED,
    "ServerError": Trouble.UNREACHABLE,
    "NetworkError": Trouble.UNREACHABLE,
    "FileIntegrityError": Trouble.CHANGED,
    "FileDownloadError": Trouble.CHANGED,
    "HubError": Trouble.OTHER,
}


class ModelScope:
    """An extra: it is imported by name, so that nothing else ever needs it."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        try:
            self._files = importlib.import_module("modelscope.hub.file_download")
            self._list = _lister()
        except ImportError as error:
            raise HubTrouble(Trouble.LIBRARY, str(error)) from error

    def listing(self) -> Listing:
        wanted = self._wanted
        entries = self._list(wanted.repo, wanted.revision)
        files = [entry for entry in entries if entry.get("Type") != "tree"]
        newest = max(files, key=lambda entry: _number(entry.get("CommittedDate")), default=None)
        return Listing(
            # It names no commit for a branch, only the last one of every file.
            commit=checked_hash(newest.get("Revision") if newest else None),
            files=tuple(_remote(entry) for entry in files),
        )

    def fetch(self, file: RemoteFile, commit: str, folder: Path) -> None:
        """By the revision: a file's content is held to the listing's sha256 afterwards."""
        del commit
        self._files.model_file_download(
            self._wanted.repo,
            file.path,
            revision=self._wanted.revision,
            local_dir=str(folder),
        )

    def trouble(self, error: Exception) -> HubTrouble | None:
        return read(error, _KNOWN)


def _lister() -> _List:
    """From 1.38 on the hub's part is a package of its own, and what modelscope keeps of it leaves
    the hashes out."""
    if importlib.util.find_spec("modelscope_hub"):
        legacy: Any = importlib.import_module("modelscope_hub.api").HubApi().legacy
        return lambda repo, revision: legacy.list_repo_files(repo, "model", revision)
    api: Any = importlib.import_module("modelscope.hub.api").HubApi()
    return lambda repo, revision: api.get_model_files(repo, revision=revision, recursive=True)


def _remote(entry: Mapping[str, Any]) -> RemoteFile:
    return RemoteFile(
        path=str(entry.get("Path") or entry.get("Name") or ""),
        size=_number(entry.get("Size")),
        sha256=checked_hash(entry.get("Sha256")),
    )


def _number(value: object) -> int:
    return value if isinstance(value, int) else -1

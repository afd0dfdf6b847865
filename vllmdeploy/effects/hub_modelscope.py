"""ModelScope through its own client library, inside the process that asks."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vllmdeploy.effects.hub_errors import read
from vllmdeploy.tools.hub import (
    USUAL_ENDPOINT,
    HubTrouble,
    Listing,
    RemoteFile,
    Trouble,
    Wanted,
    checked_hash,
)

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
            # What modelscope itself keeps of its hub's part leaves the hashes out.
            hub: Any = importlib.import_module("modelscope_hub.api")
        except ImportError as error:
            raise HubTrouble(Trouble.LIBRARY, str(error)) from error
        self._site = {
            "endpoint": wanted.endpoint or USUAL_ENDPOINT["modelscope"],
            "token": wanted.token or None,
        }
        self._repos: Any = hub.HubApi(**self._site).legacy

    def listing(self) -> Listing:
        wanted = self._wanted
        entries: Sequence[Mapping[str, Any]] = self._repos.list_repo_files(
            wanted.repo, "model", wanted.revision
        )
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
            **self._site,
        )

    def trouble(self, error: Exception) -> HubTrouble | None:
        return read(error, _KNOWN)


def _remote(entry: Mapping[str, Any]) -> RemoteFile:
    return RemoteFile(
        path=str(entry.get("Path") or entry.get("Name") or ""),
        size=_number(entry.get("Size")),
        sha256=checked_hash(entry.get("Sha256")),
    )


def _number(value: object) -> int:
    return value if isinstance(value, int) else -1

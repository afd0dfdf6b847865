"""The Hugging Face hub through its own client library, inside the process that asks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllmdeploy.effects.hub_errors import is_network, read, status_of
from vllmdeploy.tools.hub import HubTrouble, Listing, RemoteFile, Trouble, Wanted, checked_hash

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoSibling

_KNOWN = {
    "GatedRepoError": Trouble.GATED,
    "RevisionNotFoundError": Trouble.REVISION,
    "RepositoryNotFoundError": Trouble.MISSING,
    "HFValidationError": Trouble.MISSING,
    "LocalEntryNotFoundError": Trouble.UNREACHABLE,
}


class HuggingFace:
    """Imported late: the library reads its settings from the environment when it is imported."""

    def __init__(self, wanted: Wanted) -> None:
        from huggingface_hub import HfApi

        self._wanted = wanted
        self._endpoint = wanted.endpoint or None
        # False keeps the library from looking for a token of its own.
        self._token: str | bool = wanted.token or False
        self._api: HfApi = HfApi(endpoint=self._endpoint, token=self._token)

    def listing(self) -> Listing:
        wanted = self._wanted
        info = self._api.model_info(
            wanted.repo, revision=wanted.revision, files_metadata=True, timeout=30
        )
        siblings = info.siblings or []
        commit = info.sha or wanted.revision
        listing = Listing(
            commit=commit,
            gated=bool(info.gated),
            files=tuple(_remote(sibling) for sibling in siblings),
        )
        if listing.gated and listing.files:
            self._try_first(listing)
        return listing

    def _try_first(self, listing: Listing) -> None:
        """The description of a gated model is open; only its files say who may have them."""
        from huggingface_hub import hf_hub_url

        url = hf_hub_url(
            self._wanted.repo,
            listing.files[0].path,
            revision=listing.commit,
            endpoint=self._endpoint,
        )
        self._api.get_hf_file_metadata(url=url, token=self._token, timeout=30)

    def fetch(self, file: RemoteFile, commit: str, folder: Path) -> None:
        api: Any = self._api  # its signature has types that are not known
        api.hf_hub_download(
            self._wanted.repo, file.path, revision=commit, local_dir=folder, etag_timeout=30
        )

    def trouble(self, error: Exception) -> HubTrouble | None:
        """What an exception of the library means, or None if it is a bug."""
        found = read(error, _KNOWN)
        if found and found.trouble is Trouble.MISSING and self._is_dataset():
            return HubTrouble(Trouble.DATASET, found.message)
        return found

    def _is_dataset(self) -> bool:
        try:
            self._api.dataset_info(self._wanted.repo, timeout=30)
        except Exception as error:
            # Whatever keeps us from knowing: then the first answer, that there is no such model,
            # is what can be said; a bug is none of these.
            if status_of(error) is None and not is_network(error):
                raise
            return False
        return True


def _remote(sibling: RepoSibling) -> RemoteFile:
    lfs: Any = sibling.lfs
    sha256 = checked_hash(getattr(lfs, "sha256", None))
    return RemoteFile(
        path=sibling.rfilename,
        size=sibling.size if sibling.size is not None else -1,
        sha256=sha256,
        # For a file in LFS this is the hash of the pointer to it.
        git_sha1="" if lfs else checked_hash(sibling.blob_id),
    )

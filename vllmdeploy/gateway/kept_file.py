"""Where the changes of administrators outlive the gateway: a file, and its last good copy."""

from __future__ import annotations

from pathlib import Path

from vllmdeploy.batch.durable import replace_file
from vllmdeploy.errors import SettingsError
from vllmdeploy.gateway.journal import warn
from vllmdeploy.gateway.kept import Kept, dumps, parse


class KeptFile:
    """A file that cannot be used is put aside; the copy takes its place, or nothing does."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._copy = Path(f"{path}.bak")
        self._last: str | None = None

    def read(self) -> Kept:
        found = self._of(self._path)
        if found is None and self._last_is_lost():
            found = self._of(self._copy)
        self._last = None if found is None else dumps(found)
        return found or Kept()

    def write(self, kept: Kept) -> None:
        """Raises VllmdeployError; the file then still says what it said before."""
        text = dumps(kept)
        if text == self._last:
            return
        if self._last is not None:
            replace_file(self._copy, self._last.encode())
        replace_file(self._path, text.encode())
        self._last = text

    def _of(self, path: Path) -> Kept | None:
        try:
            return parse(path.read_text("utf-8"), str(path))
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError, SettingsError) as error:
            warn("changes of administrators cannot be read", path=str(path), why=str(error))
            return None

    def _last_is_lost(self) -> bool:
        """Without a file nothing was lost: somebody took it away, and the copy is as old."""
        if not self._path.exists():
            return False
        aside = Path(f"{self._path}.unreadable")
        try:
            self._path.replace(aside)
        except OSError as error:
            warn("the unreadable file stays in its place", path=str(self._path), why=str(error))
        else:
            warn("the unreadable file was put aside", path=str(aside))
        return True

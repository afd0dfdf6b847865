"""The certificate that clients see: checked before it is used, and replaced while we run."""

from __future__ import annotations

import ssl

from vllmdeploy.errors import SettingsError


class Certificate:
    """`context` is what new connections are met with; it lasts as long as the gateway."""

    def __init__(self, cert: str, key: str) -> None:
        self._cert = cert
        self._key = key
        self.context = _empty()

    async def take(self, text: str, path: str) -> None:
        """Both files anew. Where one has changed and the other has yet to, the old pair stays."""
        self.load()

    def load(self) -> None:
        # A context into which half a pair was loaded is of no use: a pair is tried apart first.
        for context in (_empty(), self.context):
            try:
                context.load_cert_chain(self._cert, self._key, password=_no_password)
            except (OSError, ssl.SSLError, ValueError) as error:
                raise SettingsError([f"{self._cert} with {self._key}: {_words(error)}"]) from error


def _empty() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _no_password() -> str:
    """Nobody is there to be asked for one."""
    raise ValueError("the key is encrypted; a gateway that starts by itself needs one that is not")


def _words(error: Exception) -> str:
    if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
        return "the key is not that of the certificate"
    if isinstance(error, OSError) and error.strerror and not isinstance(error, ssl.SSLError):
        return error.strerror
    return f"not a certificate and its key in PEM form ({error})"

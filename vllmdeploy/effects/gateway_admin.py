"""The gateway's control plane as seen from outside: its admin routes over HTTP."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import quote

import httpx

from vllmdeploy.errors import NotHealthy, UsageError, VllmdeployError

_LIMIT_S = 15.0


class GatewayAdmin:
    """One gateway. Errors name its address and repeat its own words."""

    def __init__(self, url: str, key: str, *, transport: httpx.BaseTransport | None = None) -> None:
        self.url = url.rstrip("/")
        headers = {"authorization": f"Bearer {key}"} if key else {}
        # No proxy, no redirect: the admin key goes to this address and nowhere else. What counts is
        # what the system trusts, and SSL_CERT_FILE: private networks have their own CAs.
        self._client = httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=_LIMIT_S,
            verify=ssl.create_default_context(),
            trust_env=False,
            follow_redirects=False,
            transport=transport,
        )

    def root(self) -> dict[str, Any]:
        return self._ask("GET", "/")

    def health(self) -> dict[str, Any]:
        """503 is an answer here: it says why nothing is ready."""
        return self._ask("GET", "/health", accepted=(200, 503))

    def metrics(self) -> str:
        try:
            answer = self._client.get("/metrics")
        except httpx.HTTPError as error:
            raise self._silent("GET", "/metrics", error) from error
        if answer.status_code != 200:
            raise self._refused("GET", "/metrics", answer)
        return answer.text

    def instances(self) -> list[dict[str, Any]]:
        return cast("list[dict[str, Any]]", self._ask("GET", "/admin/instances")["instances"])

    def add(self, spec: Mapping[str, object]) -> dict[str, Any]:
        return self._ask("POST", "/admin/instances", body=spec)

    def remove(self, name: str) -> dict[str, Any]:
        return self._ask("DELETE", f"/admin/instances/{quote(name, safe='')}")

    def drain(self, name: str) -> dict[str, Any]:
        return self._ask("POST", f"/admin/instances/{quote(name, safe='')}/drain")

    def resume(self, name: str) -> dict[str, Any]:
        return self._ask("POST", f"/admin/instances/{quote(name, safe='')}/resume")

    def policy(self) -> dict[str, Any]:
        return self._ask("GET", "/admin/policy")

    def set_policy(self, ways: Mapping[str, str]) -> dict[str, Any]:
        return self._ask("PUT", "/admin/policy", body=ways)

    def close(self) -> None:
        self._client.close()

    def _ask(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, object] | None = None,
        accepted: tuple[int, ...] = (200, 201),
    ) -> dict[str, Any]:
        try:
            answer = self._client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise self._silent(method, path, error) from error
        if answer.status_code not in accepted:
            raise self._refused(method, path, answer)
        try:
            value: object = answer.json()
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise NotHealthy(f"{self.url}: {method} {path}: not a gateway's answer")
        return cast("dict[str, Any]", value)

    def _silent(self, method: str, path: str, error: httpx.HTTPError) -> NotHealthy:
        words = re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__
        hint = "is the gateway running? `vllmdeploy status`, or give --url"
        if "CERTIFICATE_VERIFY_FAILED" in words:
            hint = "set SSL_CERT_FILE to the certificate, or to that of the CA that signed it"
        return NotHealthy(f"{self.url}: {method} {path}: {words}", hint=hint)

    def _refused(self, method: str, path: str, answer: httpx.Response) -> VllmdeployError:
        said = f"{self.url}: {method} {path}: {answer.status_code}: {_words(answer)}"
        if answer.status_code in (401, 403):
            return UsageError(said, hint="give --admin-key-file, or set ADMIN_KEY_FILE")
        return UsageError(said) if answer.status_code < 500 else NotHealthy(said)


def _words(answer: httpx.Response) -> str:
    try:
        error = cast("dict[str, Any]", answer.json())["error"]
        return str(error["message"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:200]

"""TLS on real sockets: who is let in, how, and a certificate that is replaced while it serves."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
from contextlib import closing
from pathlib import Path
from typing import cast

import pytest

from tests.support.running_gateway import Api, engines, gateway
from vllmdeploy.effects.gateway_admin import GatewayAdmin
from vllmdeploy.errors import NotHealthy, SettingsError

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl")


def certificate(folder: Path, name: str, *, days: int = 2) -> tuple[Path, Path]:
    """A self-signed one for this machine; NAME is its subject."""
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    subprocess.run(
        (
            *("openssl", "req", "-x509", "-nodes", "-newkey", "ec"),
            *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", str(days)),
            *("-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(cert)),
        ),
        check=True,
        capture_output=True,
    )
    return cert, key


def locked(key: Path) -> Path:
    made = key.with_suffix(".locked")
    subprocess.run(
        (
            *("openssl", "ec", "-aes128", "-passout", "pass:x"),
            *("-in", str(key), "-out", str(made)),
        ),
        check=True,
        capture_output=True,
    )
    return made


def port_of(api: Api) -> int:
    return cast("int", api.running.sockets[0].getsockname()[1])


async def subject(api: Api, trusted: Path) -> str:
    """The name in the certificate that a client sees that trusts this one alone."""
    context = ssl.create_default_context(cafile=str(trusted))
    _, writer = await asyncio.open_connection("127.0.0.1", port_of(api), ssl=context)
    seen = cast(
        "dict[str, tuple[tuple[tuple[str, str], ...], ...]]", writer.get_extra_info("peercert")
    )
    writer.close()
    return dict(pair for group in seen["subject"] for pair in group)["commonName"]


async def status(api: Api, trusted: Path, path: str) -> str:
    context = ssl.create_default_context(cafile=str(trusted))
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(api), ssl=context)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
    line = await reader.readline()
    writer.close()
    return line.decode().split(" ", 1)[1].strip()


def options(pair: tuple[Path, Path]) -> tuple[str, ...]:
    return ("--tls-cert", str(pair[0]), "--tls-key", str(pair[1]))


async def test_it_answers_clients_that_trust_its_certificate_and_no_others(tmp_path: Path) -> None:
    mine, other = certificate(tmp_path, "mine"), certificate(tmp_path, "other")
    async with engines("m") as (engine,), gateway("--upstream", engine.url, *options(mine)) as api:
        assert await status(api, mine[0], "/") == "200 OK"
        assert await status(api, mine[0], "/nowhere") == "404 Not Found"
        with pytest.raises(ssl.SSLCertVerificationError):
            await status(api, other[0], "/")


async def test_what_is_not_tls_gets_no_answer_and_harms_nobody(tmp_path: Path) -> None:
    mine = certificate(tmp_path, "mine")
    async with gateway(*options(mine)) as api:
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(api))
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        said = await reader.read()
        writer.close()
        assert not said.startswith(b"HTTP/")
        assert await status(api, mine[0], "/") == "200 OK"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
async def test_versions_before_1_2_are_refused(tmp_path: Path) -> None:
    mine = certificate(tmp_path, "mine")

    def shake(version: ssl.TLSVersion, port: int) -> str:
        context = ssl.create_default_context(cafile=str(mine[0]))
        context.minimum_version = context.maximum_version = version
        context.set_ciphers("ALL:@SECLEVEL=0")
        with (
            socket.create_connection(("127.0.0.1", port)) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped,
        ):
            return wrapped.version() or ""

    async with gateway(*options(mine)) as api:
        assert await asyncio.to_thread(shake, ssl.TLSVersion.TLSv1_2, port_of(api)) == "TLSv1.2"
        assert await asyncio.to_thread(shake, ssl.TLSVersion.TLSv1_3, port_of(api)) == "TLSv1.3"
        with pytest.raises(ssl.SSLError):
            await asyncio.to_thread(shake, ssl.TLSVersion.TLSv1_1, port_of(api))


async def test_a_replaced_certificate_is_shown_to_new_clients_and_half_a_pair_is_not(
    tmp_path: Path,
) -> None:
    mine, new = certificate(tmp_path, "mine"), certificate(tmp_path, "new")
    async with gateway(*options(mine)) as api:
        old = tmp_path / "old.pem"
        shutil.copy(mine[0], old)
        shutil.copy(new[0], mine[0])
        # The key is still the old one's: what was in force stays so.
        for watched in api.running.files:
            await watched.look()
        assert await subject(api, old) == "mine"
        shutil.copy(new[1], mine[1])
        for watched in api.running.files:
            await watched.look()
        assert await subject(api, new[0]) == "new"


@pytest.mark.parametrize("what", ["other key", "no certificate", "locked key", "not there"])
async def test_it_does_not_start_with_a_pair_that_is_none(tmp_path: Path, what: str) -> None:
    cert, key = certificate(tmp_path, "mine")
    said = {
        "other key": "the key is not that of the certificate",
        "no certificate": "not a certificate and its key in PEM form",
        "locked key": "the key is encrypted",
        "not there": "No such file",
    }[what]
    if what == "other key":
        key = certificate(tmp_path, "other")[1]
    elif what == "no certificate":
        cert.write_text("no certificate")
    elif what == "locked key":
        key = locked(key)
    else:
        key = tmp_path / "nobody"
    with pytest.raises(SettingsError, match=said):
        async with gateway(*options((cert, key))):
            raise AssertionError("it started")


async def test_the_commands_trust_what_ssl_cert_file_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = certificate(tmp_path, "mine")
    async with engines("m") as (engine,), gateway("--upstream", engine.url, *options(mine)) as api:
        url = f"https://127.0.0.1:{port_of(api)}"

        def asked() -> str:
            with closing(GatewayAdmin(url, "")) as admin:
                return admin.metrics()

        with pytest.raises(NotHealthy) as caught:
            await asyncio.to_thread(asked)
        assert "certificate verify failed" in caught.value.message
        assert "SSL_CERT_FILE" in (caught.value.hint or "")
        monkeypatch.setenv("SSL_CERT_FILE", str(mine[0]))
        assert "vllmdeploy_gateway" in await asyncio.to_thread(asked)

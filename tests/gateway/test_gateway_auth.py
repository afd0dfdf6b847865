"""Who may call the gateway, what of a caller reaches an engine, what is refused at the start."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import sys
from pathlib import Path

import httpx
import pytest

from tests.support.running_gateway import Api, engines, gateway, served, write
from vllmdeploy.errors import SettingsError, UsageError
from vllmdeploy.gateway.__main__ import main
from vllmdeploy.gateway.keys import parse

KEY, OTHER, ADMIN = "sk-first-0001", "sk-other-0002", "sk-admin-0003"
GENERATE = {"prompt": "x"}


def keys_file(folder: Path) -> Path:
    path = folder / "keys"
    hashed = hashlib.sha256(OTHER.encode()).hexdigest()
    write(path, f"# those who may call\n\nsk-plain-0000\nann:{KEY}\nbob:sha256:{hashed}\n")
    return path


async def status(api: Api, **fields: str) -> int:
    return (await api.post("/generate", GENERATE, **fields)).status_code


# keys


@pytest.mark.parametrize(
    "fields",
    [
        {"authorization": "Bearer sk-plain-0000"},
        {"authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer {OTHER}"},
        {"x_api_key": KEY},
        {"x_api_key": OTHER},
    ],
)
async def test_each_form_of_a_key_opens_the_api(tmp_path: Path, fields: dict[str, str]) -> None:
    async with served("--api-keys-file", str(keys_file(tmp_path))) as (api, _):
        assert await status(api, **fields) == 200


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "an API key is needed: Authorization: Bearer KEY"),
        ({"authorization": f"Basic {KEY}"}, "an API key is needed: Authorization: Bearer KEY"),
        ({"authorization": "Bearer x"}, "an API key is needed, and this is none"),
        ({"authorization": "Bearer ann"}, "an API key is needed, and this is none"),
        ({"authorization": f"Bearer ann:{KEY}"}, "an API key is needed, and this is none"),
        ({"authorization": f"Bearer {KEY[:-1]}"}, "an API key is needed, and this is none"),
        ({"authorization": f"Bearer {ADMIN}"}, "an API key is needed, and this is none"),
        ({"x_api_key": "wrong-key"}, "an API key is needed, and this is none"),
    ],
)
async def test_without_a_right_key_it_is_401_as_openai_says_it(
    tmp_path: Path, fields: dict[str, str], message: str
) -> None:
    admin = tmp_path / "admin"
    write(admin, f"{ADMIN}\n")
    options = ("--api-keys-file", str(keys_file(tmp_path)), "--admin-key-file", str(admin))
    async with served(*options) as (api, (engine,)):
        answer = await api.post("/generate", GENERATE, **fields)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        expected = {"message": message, "type": "authentication_error", "code": "invalid_api_key"}
        assert answer.json() == {"error": expected}
        assert engine.asked == []


async def test_a_hash_in_the_file_is_no_key_itself(tmp_path: Path) -> None:
    hashed = hashlib.sha256(OTHER.encode()).hexdigest()
    async with served("--api-keys-file", str(keys_file(tmp_path))) as (api, _):
        assert await status(api, x_api_key=hashed) == 401
        assert await status(api, x_api_key=f"sha256:{hashed}") == 401


async def test_some_routes_are_open_and_all_others_ask_for_a_key(tmp_path: Path) -> None:
    async with served("--api-keys-file", str(keys_file(tmp_path))) as (api, _):
        paths = (await api.get("/openapi.json")).json()["paths"]
        without: list[str] = []
        for path, methods in paths.items():
            for method in methods:
                answer = await api.client.request(method, path)
                if answer.status_code != 401:
                    without.append(path)
        assert without == ["/", "/health", "/metrics", "/openapi.json"]


async def test_the_admin_routes_want_their_own_key(tmp_path: Path) -> None:
    admin = tmp_path / "admin"
    write(admin, f"{ADMIN}\n")
    options = ("--api-keys-file", str(keys_file(tmp_path)), "--admin-key-file", str(admin))
    async with served(*options) as (api, _):
        assert (await api.get("/admin/policy", x_api_key=KEY)).status_code == 401
        assert (await api.get("/admin/policy")).status_code == 401
        assert (await api.get("/admin/policy", x_api_key=ADMIN)).json() == {
            "routing": "adaptive",
            "scheduling": "adaptive",
            "default_model": "",
        }


async def test_without_a_file_of_admin_keys_nobody_is_an_administrator() -> None:
    async with served() as (api, _):
        assert (await api.get("/admin/instances")).status_code == 401
        assert (await api.get("/admin/instances", x_api_key="")).status_code == 401


async def test_a_revoked_key_ends_on_an_open_connection_and_a_broken_file_changes_nothing(
    tmp_path: Path,
) -> None:
    keys = keys_file(tmp_path)
    async with served("--api-keys-file", str(keys)) as (api, _):
        assert await status(api, x_api_key=KEY) == 200
        write(keys, f"bob:{OTHER}\n")

        async def revoked() -> bool:
            return await status(api, x_api_key=KEY) == 401

        await api.until(revoked)
        assert await status(api, x_api_key=OTHER) == 200
        write(keys, f"bob:short\nann:{KEY}\n")
        with pytest.raises(SettingsError):
            await api.running.gateway.access.take_keys(keys.read_text(), str(keys))
        assert (await status(api, x_api_key=OTHER), await status(api, x_api_key=KEY)) == (200, 401)


async def test_a_key_may_be_for_some_models_only(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    write(keys, f"ann:{KEY} models=a\n")
    async with served("--api-keys-file", str(keys), models=("a", "b")) as (api, (_, b)):
        listed = (await api.get("/v1/models", x_api_key=KEY)).json()["data"]
        assert [one["id"] for one in listed] == ["a"]
        mine = await api.post("/generate", {**GENERATE, "model": "a"}, x_api_key=KEY)
        theirs = await api.post("/generate", {**GENERATE, "model": "b"}, x_api_key=KEY)
        assert (mine.status_code, theirs.status_code) == (200, 403)
        assert b.asked == []


def test_problems_of_a_file_of_keys_are_said_at_once_without_any_key() -> None:
    text = f"ann:short\nann:{KEY}\n! :{KEY}\nbob:{OTHER} colour=red\nsha256:beef\n"
    with pytest.raises(SettingsError) as caught:
        parse(text, "keys")
    said = str(caught.value)
    for where in ("keys:1", "keys:2", "keys:3", "keys:4", "keys:5"):
        assert where in said
    assert not any(secret in said for secret in ("short", KEY, OTHER, "beef", "=red"))


# what reaches an engine


@pytest.mark.parametrize("path", ["/v1/completions", "/generate"])
async def test_nothing_that_names_the_caller_reaches_an_engine(tmp_path: Path, path: str) -> None:
    async with served("--api-keys-file", str(keys_file(tmp_path))) as (api, (engine,)):
        fields = {"x_request_id": "mine-1", "cookie": "a=b", "x_forwarded_for": "10.0.0.1"}
        answer = await api.post(path, GENERATE, x_api_key=KEY, **fields)
        assert answer.headers.get_list("x-request-id") == ["mine-1"]
        (asked,) = engine.asked
        known = {"host", "content-type", "content-length", "accept"}
        assert set(asked.fields) <= known
        assert asked.fields["host"] == engine.url.removeprefix("http://")


async def test_a_request_id_that_could_do_harm_is_replaced() -> None:
    async with served() as (api, _):
        answer = await api.get("/v1/models", x_request_id="a b;c")
        assert answer.headers["x-request-id"] != "a b;c"


async def test_the_key_that_engines_want_is_the_gateways_own(tmp_path: Path) -> None:
    upstream_key = tmp_path / "upstream"
    write(upstream_key, "engine-key-0009\n")
    async with served("--upstream-key-file", str(upstream_key)) as (api, (engine,)):
        assert await status(api, authorization=f"Bearer {KEY}") == 200
        assert engine.asked[0].fields["authorization"] == "Bearer engine-key-0009"


# addresses


async def test_an_address_outside_the_networks_is_refused_everywhere() -> None:
    async with (
        engines("m") as (engine,),
        gateway("--upstream", engine.url, "--auth", "none", "--allow", "10.0.0.0/8") as api,
    ):
        for path in ("/", "/health", "/metrics", "/v1/models", "/admin/policy"):
            answer = await api.get(path)
            assert answer.status_code == 403
            assert answer.json()["error"]["code"] == "address_not_allowed"


async def test_a_metadata_service_is_no_upstream() -> None:
    for url in (
        *("http://169.254.169.254", "http://[::ffff:169.254.169.254]:80", "http://2852039166/"),
        *("http://100.100.100.200", "http://metadata.google.internal", "http://0.0.0.0:1"),
    ):
        with pytest.raises(UsageError):
            async with gateway("--upstream", url):
                raise AssertionError(url)


async def test_an_administrator_cannot_add_a_metadata_service_or_read_a_file(
    tmp_path: Path,
) -> None:
    admin = tmp_path / "admin"
    write(admin, f"{ADMIN}\n")
    async with served("--admin-key-file", str(admin)) as (api, _):
        for given in (
            {"url": "http://169.254.169.254/latest"},
            {"url": "http://127.0.0.1:1", "key_file": "/etc/shadow"},
            {"url": "file:///etc/shadow"},
        ):
            answer = await api.post("/admin/instances", given, x_api_key=ADMIN)
            assert answer.status_code == 400
        listed = (await api.get("/admin/instances", x_api_key=ADMIN)).json()["instances"]
        assert len(listed) == 1


# what it does not start with


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--listen", "0.0.0.0:0"], "no keys, and 0.0.0.0 is not this machine alone"),
        (["--listen", "[::]:0"], "no keys, and :: is not this machine alone"),
        (["--listen", "0.0.0.0:0", "--auth", "none"], "--auth none on 0.0.0.0 would serve"),
        (["--tls-cert", "x"], "--tls-cert and --tls-key belong together"),
        (["--policy", "nonsense"], "nonsense"),
        (["--listen", "8000"], "--listen '8000' is not HOST:PORT"),
        (["--upstream", "http://a:1", "--upstream", "http://a:1"], "upstream a:1 is given twice"),
    ],
)  # fmt: skip
def test_it_does_not_start_with_what_would_be_unsafe_or_meaningless(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(options) == 2
    assert said in capsys.readouterr().err


async def test_an_empty_file_of_keys_does_not_open_the_api(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    write(keys, "# nobody yet\n")
    with pytest.raises(UsageError, match="has no keys"):
        async with gateway("--api-keys-file", str(keys)):
            raise AssertionError("it started")


async def test_the_program_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    async with engines("m") as (engine,):
        program = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "vllmdeploy.gateway", "--listen", "127.0.0.1:0"),
            *("--upstream", engine.url, "--api-keys-file", str(keys_file(tmp_path))),
            stderr=asyncio.subprocess.PIPE,
        )
        assert program.stderr is not None
        line = ""
        while "listening" not in line:
            line = (await program.stderr.readline()).decode()
            assert line
        port = line.partition("127.0.0.1:")[2].split('"')[0].rstrip("],}")
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.get(f"http://127.0.0.1:{port}/v1/models")
            assert answer.status_code == 401
        program.send_signal(signal.SIGTERM)
        _, rest = await program.communicate()
        assert program.returncode == 0
        assert KEY not in rest.decode()

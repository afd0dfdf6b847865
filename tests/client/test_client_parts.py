from __future__ import annotations

import pytest

from tests.support.fake_engine import MODEL, engines
from vllmdeploy import MultiVLLMClient
from vllmdeploy.client import errors
from vllmdeploy.client.calls import call_of, failure_of
from vllmdeploy.client.fleet import FleetSpec
from vllmdeploy.client.session import Session
from vllmdeploy.routing.failure import Failure
from vllmdeploy.routing.thresholds import Thresholds
from vllmdeploy.routing.upstream import NO_AFFINITY, Address, Upstream
from vllmdeploy.wire.faults import (
    CutShort,
    NeverSent,
    NoAnswer,
    NotHttp,
    TimedOut,
    UpstreamError,
)

SYSTEM = {"role": "system", "content": "You are careful. " * 40}


def chat(*texts: str, **fields: object) -> dict[str, object]:
    said = [{"role": "user", "content": text} for text in texts]
    return {"messages": [SYSTEM, *said], **fields}


def test_chats_that_begin_alike_have_hashes_in_common() -> None:
    one = call_of("/v1/chat/completions", chat("a" * 500)).request.affinity
    two = call_of("/v1/chat/completions", chat("a" * 500, "more" * 200)).request.affinity
    other = call_of("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 900}]})
    assert one.prefixes == two.prefixes[: len(one.prefixes)]
    assert len(one.prefixes) == 4
    assert not set(one.prefixes) & set(other.request.affinity.prefixes)


def test_a_user_is_a_session_and_a_session_goes_before() -> None:
    named = call_of("/v1/completions", {"prompt": "x", "user": "bob"}).request.affinity
    assert named.session == call_of("/v1/completions", {}, session="bob").request.affinity.session
    both = call_of("/v1/completions", {"user": "eve"}, session="bob").request.affinity
    assert both.session == named.session


@pytest.mark.parametrize(
    "fields",
    [{}, {"prompt": [1, 2]}, {"messages": None}, {"messages": ["x"]}, {"input": [["a", "b"]]}],
)
def test_what_holds_no_text_has_no_affinity(fields: dict[str, object]) -> None:
    assert call_of("/v1/completions", fields).request.affinity == NO_AFFINITY


def test_a_long_conversation_is_looked_at_only_at_its_beginning() -> None:
    call = call_of("/v1/chat/completions", chat(*["word " * 10_000] * 50))
    assert call.request.prompt_tokens < 20_000


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (NeverSent("x", refused=True), Failure.REFUSED),
        (NeverSent("x"), Failure.CONNECT_TIMEOUT),
        (NoAnswer("x"), Failure.RESET),
        (CutShort("x"), Failure.CUT),
        (NotHttp("x"), Failure.GARBAGE),
        (TimedOut("x", begun=False), Failure.FIRST_BYTE_TIMEOUT),
        (TimedOut("x", begun=True), Failure.IDLE_TIMEOUT),
    ],
)
def test_every_failure_of_the_wire_has_its_name(error: UpstreamError, failure: Failure) -> None:
    assert failure_of(error) is failure


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b'{"error": {"message": "too long", "code": 400}}', "i: 400: too long"),
        (b'{"message": "too long"}', "i: 400: too long"),
        (b'{"detail": "Not Found"}', "i: 400: Not Found"),
        (b'{"error": "no"}', "i: 400: no"),
        (b"<html>busy</html>", "i: 400: <html>busy</html>"),
        (b"\xff", "i: 400: \ufffd"),
        (b"", "i: 400: (no words)"),
    ],
)
def test_an_engines_own_words_are_repeated(raw: bytes, words: str) -> None:
    error = errors.status_error("i", 400, raw)
    assert (str(error), type(error)) == (words, errors.BadRequestError)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(418, errors.APIStatusError), (502, errors.InternalServerError)],
)
def test_other_statuses_have_a_kind_too(status: int, kind: type[errors.APIStatusError]) -> None:
    assert type(errors.status_error("i", status, b"")) is kind


async def test_of_several_addresses_the_one_that_answers_is_kept() -> None:
    async def resolve(host: str, port: int) -> tuple[str, ...]:
        lookups.append(host)
        return ("127.0.0.9", "127.0.0.1")

    lookups: list[str] = []
    with engines(1) as fleet:
        upstream = Upstream("e0", Address("gpu-01", fleet[0].port))
        session = Session(FleetSpec((upstream,), resolve=resolve))
        for _ in range(2):
            answer = await session.answer("/v1/completions", {"prompt": "x"})
            assert answer.choices[0].text == "Hello from e0"
        await session.close()
    assert lookups == ["gpu-01"]
    assert fleet[0].headers[0]["host"] == f"gpu-01:{fleet[0].port}"


async def test_a_name_without_an_address_is_an_instance_that_cannot_be_reached() -> None:
    async def nothing(host: str, port: int) -> tuple[str, ...]:
        return ()

    session = Session(FleetSpec((Upstream("e0", Address("gpu-01", 1)),), resolve=nothing))
    with pytest.raises(errors.APITimeoutError, match="the name has no address"):
        await session.answer("/v1/completions", {"model": "m", "prompt": "x"})
    await session.close()


def test_an_unhealthy_instance_comes_back_when_its_health_does() -> None:
    quick = Thresholds(
        check_interval_s=0.01, check_interval_out_s=0.01, ejection_s=0.01, faults_in_row=1
    )
    with engines(2) as fleet, MultiVLLMClient([e.url for e in fleet], thresholds=quick) as client:
        fleet[0].mode = 500
        fleet[0].healthy = False
        assert client.completions.create(model=MODEL, prompt="x").choices[0].text.endswith("e1")
        assert client.status().ready == 1
        while client.status().instances[0].reason != "/health says 500":
            pass
        fleet[0].healthy = True
        while not client.status().instances[0].reason.startswith("canary failed"):
            pass
        fleet[0].mode = 503
        canaries = fleet[0].canaries
        while fleet[0].canaries < canaries + 2:
            pass
        assert client.status().ready == 1, "a full queue says neither yes nor no"
        fleet[0].mode = "ok"
        while client.status().ready < 2:
            pass


def test_an_engine_that_refuses_the_canarys_question_has_answered() -> None:
    quick = Thresholds(check_interval_out_s=0.01)
    with engines(1) as fleet, MultiVLLMClient(fleet[0].url, thresholds=quick) as client:
        fleet[0].close_port()
        with pytest.raises(errors.APIConnectionError):
            client.completions.create(model=MODEL, prompt="x")
        fleet[0].mode = 400
        fleet[0].open()
        while client.status().ready == 0:
            pass

"""The simple form of a request, in the engine's terms, and of its answer, in the simple form's."""

from __future__ import annotations

import json

from vllmdeploy.gateway.jsonvalue import Object, as_list, as_object, as_texts, loads
from vllmdeploy.gateway.members import compose
from vllmdeploy.gateway.refusal import Refusal

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
_DEFAULT_MAX_TOKENS = b"256"
_BEGINNINGS = {"prompt": b'"', "messages": b"["}


def engine_path(parts: dict[str, bytes]) -> str:
    """A prompt is completed as it stands; messages get the model's chat template."""
    given = [name for name in _BEGINNINGS if name in parts]
    if len(given) != 1:
        raise Refusal(400, "give either `prompt` (a text) or `messages` (a list)")
    name = given[0]
    if parts[name][:1] != _BEGINNINGS[name]:
        kind = "a text" if name == "prompt" else "a list of messages"
        raise Refusal(400, f"{name} must be {kind}")
    return COMPLETIONS if name == "prompt" else CHAT


def engine_body(parts: dict[str, bytes], model: str) -> bytes:
    asked = {"max_tokens": _DEFAULT_MAX_TOKENS, **parts}
    if parts.get("model", b"null") == b"null":
        asked["model"] = json.dumps(model).encode()
    return compose(asked)


def of_answer(answer: Object) -> dict[str, object]:
    """`text`, or `texts` where several were asked for, and why each ended."""
    choices = [as_object(one) or {} for one in as_list(answer.get("choices")) or ()]
    texts = [_text(choice) for choice in choices]
    reasons = [choice.get("finish_reason") for choice in choices]
    if as_texts([reason or "-" for reason in reasons]) is None or not choices:
        raise Refusal(502, "the engine's answer has no choices", code="bad_gateway")
    found: dict[str, object] = {"text": texts[0], "finish_reason": reasons[0]}
    if len(texts) > 1:
        found.update(texts=texts, finish_reasons=reasons)
    found["usage"] = answer.get("usage")
    return found


def of_event(data: bytes) -> dict[str, object] | None:
    """One event of a stream; None where it says nothing of the text. Raises ValueError."""
    event = as_object(loads(data))
    if event is None:
        raise ValueError("an event is not an object")
    if "error" in event:
        return {"error": event["error"]}
    choices = as_list(event.get("choices"))
    choice = as_object(choices[0]) if choices else None
    if choice is None:
        return None
    text, reason, index = _text(choice), choice.get("finish_reason"), choice.get("index")
    if not text and reason is None:
        return None
    found: dict[str, object] = {"text": text}
    if index:
        found["index"] = index
    if reason is not None:
        found["finish_reason"] = reason
    return found


def _text(choice: Object) -> str:
    message = as_object(choice.get("message")) or as_object(choice.get("delta"))
    text = choice.get("text") if message is None else message.get("content")
    return text if isinstance(text, str) else ""

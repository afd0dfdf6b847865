"""Who may call: keys from a file, kept as hashes, with what each may do."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone

from vllmdeploy.errors import SettingsError
from vllmdeploy.gateway.refusal import Refusal, try_again

NAME = re.compile(r"[A-Za-z0-9._\-]{1,64}")
_KEY = re.compile(r"[!-~]{8,512}")
_HASH = re.compile(r"sha256:([0-9a-f]{64})")
_MINUTE_S = 60.0
_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Identity:
    """`models` empty: all of them; limits 0: none. `owner` is whose files and batches are: a key
    without a name is known by its hash, because its line may come to be another's."""

    name: str
    models: frozenset[str] = frozenset()
    expires: float = 0.0
    per_minute: int = 0
    tokens_per_day: int = 0
    owner: str = ""


ANYBODY = Identity("anybody", owner="anybody")


@dataclass(slots=True)
class Usage:
    """`elsewhere_...`: what other workers have let in meanwhile."""

    requests: int = 0
    tokens: int = 0
    minute: int = -1
    in_minute: int = 0
    day: int = -1
    in_day: int = 0
    elsewhere_in_minute: int = 0
    elsewhere_in_day: int = 0


@dataclass(frozen=True, slots=True)
class Keys:
    entries: tuple[tuple[bytes, Identity], ...] = ()

    def identify(self, presented: bytes, wall_time: float) -> Identity | None:
        """Looks at every key, whichever matches, so that the time taken tells nothing."""
        digest = hashlib.sha256(presented).digest()
        found: Identity | None = None
        for known, identity in self.entries:
            if hmac.compare_digest(known, digest):
                found = identity
        return _unexpired(found, wall_time)

    def of_owner(self, owner: str, wall_time: float) -> Identity | None:
        """For work that goes on after its caller has left."""
        found = next((known for _, known in self.entries if known.owner == owner), None)
        return _unexpired(found, wall_time)


def _unexpired(found: Identity | None, wall_time: float) -> Identity | None:
    expired = found is not None and found.expires and wall_time >= found.expires
    return None if expired else found


@dataclass(slots=True)
class Ledger:
    """What each key has used; names come from the file, so their number is bounded by it."""

    used: dict[str, Usage] = field(default_factory=dict[str, Usage])

    def begin(self, identity: Identity, wall_time: float) -> None:
        usage = self.used.get(identity.name)
        if usage is None:
            usage = self.used[identity.name] = Usage()
        usage.requests += 1
        if identity.per_minute:
            _roll(usage, wall_time)
            if usage.in_minute + usage.elsewhere_in_minute >= identity.per_minute:
                left = int(_MINUTE_S - wall_time % _MINUTE_S) + 1
                message = f"this key may make {identity.per_minute} requests a minute"
                raise Refusal(429, message, fields=try_again(left))
            usage.in_minute += 1
        if identity.tokens_per_day:
            _roll(usage, wall_time)
            if usage.in_day + usage.elsewhere_in_day >= identity.tokens_per_day:
                left = int(_DAY_S - wall_time % _DAY_S) + 1
                message = f"this key may use {identity.tokens_per_day} tokens a day"
                raise Refusal(429, message, fields=try_again(left))

    def spend(self, identity: Identity, tokens: int) -> None:
        usage = self.used.get(identity.name)
        if usage is not None:
            usage.tokens += tokens
            usage.in_day += tokens

    def hear(self, elsewhere: Mapping[str, Usage]) -> None:
        """What all other workers have let in, give or take a quarter of a second."""
        for name, others in elsewhere.items():
            usage = self.used.setdefault(name, Usage())
            _roll_to(usage, max(usage.minute, others.minute), max(usage.day, others.day))
            same_minute, same_day = others.minute == usage.minute, others.day == usage.day
            usage.elsewhere_in_minute = others.in_minute if same_minute else 0
            usage.elsewhere_in_day = others.in_day if same_day else 0


def _roll(usage: Usage, wall_time: float) -> None:
    _roll_to(usage, int(wall_time // _MINUTE_S), int(wall_time // _DAY_S))


def _roll_to(usage: Usage, minute: int, day: int) -> None:
    if usage.minute != minute:
        usage.minute, usage.in_minute, usage.elsewhere_in_minute = minute, 0, 0
    if usage.day != day:
        usage.day, usage.in_day, usage.elsewhere_in_day = day, 0, 0


def added(one: Usage, other: Usage) -> Usage:
    """Both together, in the later minute and the later day of the two."""
    minute, day = max(one.minute, other.minute), max(one.day, other.day)
    return Usage(
        one.requests + other.requests,
        one.tokens + other.tokens,
        minute,
        sum(usage.in_minute for usage in (one, other) if usage.minute == minute),
        day,
        sum(usage.in_day for usage in (one, other) if usage.day == day),
    )


def parse(text: str, path: str) -> Keys:
    """One a line: `KEY`, `NAME:KEY` or `NAME:sha256:HEX`, then maybe `expires=2027-01-31`,
    `models=A,B`, `per_minute=N`, `tokens_per_day=N`. Nothing of a key is ever repeated in an
    error."""
    entries: list[tuple[bytes, Identity]] = []
    problems: list[str] = []
    names: set[str] = set()
    for number, raw in enumerate(text.splitlines(), 1):
        words = raw.split()
        if not words or words[0].startswith("#"):
            continue
        where = f"{path}:{number}"
        name, digest = _name_and_digest(words[0], f"key-{number}", where, problems)
        if name in names:
            problems.append(f"{where}: the name {name} is given twice")
        names.add(name)
        identity = _identity(name, words[1:], where, problems)
        owner = f"name={name}" if ":" in words[0] else f"sha256={digest.hex()[:32]}"
        entries.append((digest, replace(identity, owner=owner)))
    if problems:
        raise SettingsError(problems)
    return Keys(tuple(entries))


def _name_and_digest(word: str, default: str, where: str, problems: list[str]) -> tuple[str, bytes]:
    name, colon, key = word.partition(":")
    if not colon:
        name, key = default, word
    elif not NAME.fullmatch(name):
        problems.append(f"{where}: a name has up to 64 letters, digits and . _ -")
    hashed = _HASH.fullmatch(key)
    if hashed:
        return name, bytes.fromhex(hashed[1])
    if not _KEY.fullmatch(key) or key.startswith("sha256:"):
        problems.append(f"{where}: a key has 8 to 512 printable characters, or sha256: and 64 hex")
    return name, hashlib.sha256(key.encode("utf-8", "replace")).digest()


def _identity(name: str, words: list[str], where: str, problems: list[str]) -> Identity:
    models: frozenset[str] = frozenset()
    expires = 0.0
    numbers = {"per_minute": 0, "tokens_per_day": 0}
    for word in words:
        option, _, value = word.partition("=")
        if option in numbers and value.isdigit() and int(value) > 0:
            numbers[option] = int(value)
        elif option == "models" and value:
            models = frozenset(value.split(","))
        elif option == "expires" and (found := _instant(value)):
            expires = found
        else:
            known = "expires=DATE models=A,B per_minute=N tokens_per_day=N"
            # Not which word: a key with a blank before it would be told to the log.
            problems.append(f"{where}: after the key there may be {known}")
    return Identity(name, models, expires, numbers["per_minute"], numbers["tokens_per_day"])


def _instant(text: str) -> float:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return 0.0
    if found.tzinfo is None:
        found = found.replace(tzinfo=timezone.utc)
    return found.timestamp()

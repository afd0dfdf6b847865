"""One row from its first attempt to the line that is written for it."""

from __future__ import annotations

import asyncio
import random
import re
import time
from dataclasses import dataclass
from typing import NamedTuple, cast

from vllmdeploy.batch.answers import Answer, Verdict, answer_text, judge
from vllmdeploy.batch.entries import Entry, Head, Response
from vllmdeploy.batch.instances import Instance, Instances
from vllmdeploy.batch.limits import FREE, Pace, Price, retry_delay
from vllmdeploy.batch.parsing import Parse, repaired
from vllmdeploy.batch.prefix import prompt_text
from vllmdeploy.batch.records import BadRow, Row
from vllmdeploy.batch.strictjson import dump
from vllmdeploy.batch.transport import CallFailed, Transport
from vllmdeploy.errors import UsageError
from vllmdeploy.routing.upstream import ANY_REQUEST, Request, affinity_of


@dataclass(frozen=True, slots=True)
class Steps:
    """What happens to an answer, and how often a row is tried. `model`: for rows that name none."""

    model: str | None = None
    parse: Parse | None = None
    retries: int = 5
    repairs: int = 1
    include_input: bool = False
    by_prefix: bool = False


class _Attempt(NamedTuple):
    answer: Answer
    seconds: float
    instance: Instance
    counts: bool


class RowCalls:
    def __init__(
        self,
        instances: Instances,
        transport: Transport,
        steps: Steps,
        *,
        chance: random.Random,
        row_pace: Pace | None = None,
        token_pace: Pace | None = None,
        price: Price = FREE,
    ) -> None:
        self._instances = instances
        self._transport = transport
        self._steps = steps
        self._row_pace = row_pace
        self._token_pace = token_pace
        self._price = price
        self._chance = chance
        self.cost = 0.0
        self._loop = asyncio.get_running_loop()

    async def finish(self, row: Row) -> Entry:
        steps, asked = self._steps, row
        request = ANY_REQUEST
        if steps.by_prefix:
            request = Request(affinity=affinity_of(prompt_text(row)))
        attempts = repairs = 0
        avoid: Instance | None = None
        while True:
            attempt = await self._attempt(asked, request, avoid)
            attempts += attempt.counts
            answer = attempt.answer
            if answer.verdict is Verdict.REJECTED:
                return self._entry(row, attempt, attempts)
            if answer.verdict is Verdict.GOOD:
                entry, wrong = self._good(row, attempt, attempts)
                if not wrong or repairs >= steps.repairs:
                    return entry
                repairs += 1
                asked = repaired(row, answer_text(answer.value) or "", wrong)
                continue
            avoid = attempt.instance
            if attempts > steps.retries:
                return self._entry(row, attempt, attempts)
            if attempt.counts:
                await asyncio.sleep(retry_delay(attempts, self._chance))

    async def _attempt(self, row: Row, request: Request, avoid: Instance | None) -> _Attempt:
        await self._paced()
        instance = await self._instances.acquire(request, avoid)
        started = self._loop.time()
        settled = False
        try:
            address = instance.upstream.address
            reply = await self._transport.post(address, row.path, row.payload)
            answer = judge(row.path, reply)
            seconds = self._loop.time() - started
            self._settle(instance, answer, started + seconds, seconds)
            settled = True
            return _Attempt(answer, seconds, instance, answer.verdict is not Verdict.BUSY)
        except CallFailed as failure:
            settled = True
            return self._failed(instance, failure, started)
        finally:
            if not settled:
                instance.abandoned(self._loop.time())
            self._instances.wake()

    def _settle(self, instance: Instance, answer: Answer, now: float, seconds: float) -> None:
        match answer.verdict:
            case Verdict.GOOD:
                prompt, made = answer.usage
                instance.answered(now, seconds, made)
                self.cost += self._price.of(prompt, made)
                if self._token_pace is not None:
                    self._token_pace.debit(now, prompt + made)
            case Verdict.REJECTED if self._is_of_every_row(answer):
                raise UsageError(
                    f"{instance.name}: {answer.message}",
                    hint="once it is served, the same command goes on; another --model wants a"
                    " folder of its own (-o)",
                )
            case Verdict.REJECTED:
                instance.rejected(now)
            case Verdict.BUSY:
                instance.refused(now, answer.message, self._chance, answer.retry_after)
            case Verdict.AGAIN:
                instance.troubled(now, answer.message, self._chance)
            case Verdict.STOP:
                raise UsageError(
                    f"{instance.name}: {answer.message}",
                    hint="give the key with --api-key-file, then run the same command: it goes on",
                )

    def _is_of_every_row(self, answer: Answer) -> bool:
        """A model that is not served, where it is ours and nothing was answered yet: a million
        error rows would say no more."""
        model = self._steps.model
        if answer.status != 404 or not model or any(one.ok for one in self._instances.all):
            return False
        named = rf"(?<![\w./-]){re.escape(model)}(?![\w/-])"
        return re.search(named, answer.message) is not None

    def _failed(self, instance: Instance, failure: CallFailed, started: float) -> _Attempt:
        now = self._loop.time()
        if failure.timed_out:
            instance.troubled(now, failure.message, self._chance)
        else:
            instance.lost(now, failure.message, self._chance)
        kind = "timeout" if failure.timed_out else "cut_off"
        answer = Answer(Verdict.AGAIN, kind=kind, message=failure.message)
        return _Attempt(answer, now - started, instance, failure.sent)

    def _good(self, row: Row, attempt: _Attempt, attempts: int) -> tuple[Entry, str]:
        """The entry, and what is wrong with the answer if it cannot be parsed."""
        if self._steps.parse is None:
            return self._entry(row, attempt, attempts), ""
        text = answer_text(attempt.answer.value)
        try:
            if text is None:
                raise ValueError("the answer has no text")
            parsed = dump(self._steps.parse(text))
        except Exception as error:  # a user's own parser may raise anything: it is the row's error
            wrong = str(error) or type(error).__name__
            unfit = attempt.answer._replace(kind="unfit", message=f"the answer is unfit: {wrong}")
            return self._entry(row, attempt._replace(answer=unfit), attempts), wrong
        return self._entry(row, attempt, attempts, (("parsed", parsed),)), ""

    def _entry(
        self,
        row: Row,
        attempt: _Attempt,
        attempts: int,
        extra: tuple[tuple[str, bytes], ...] = (),
    ) -> Entry:
        answer = attempt.answer
        head = Head(
            line=row.line,
            at=time.time(),
            seconds=attempt.seconds,
            attempts=attempts,
            prompt_tokens=answer.usage.prompt_tokens,
            completion_tokens=answer.usage.completion_tokens,
            kind=answer.kind,
            instance=attempt.instance.name,
        )
        response = None
        if answer.status:
            response = Response(answer.status, _request_id(answer.value), answer.body)
        if self._steps.include_input:
            extra = (*extra, ("input", row.raw))
        return Entry(head, row.custom_id, response, answer.message, extra)

    async def _paced(self) -> None:
        """Rows beyond the rate wait here; whoever goes on has taken its share at once."""
        while True:
            now = self._loop.time()
            waits = [p.wait(now) for p in (self._row_pace, self._token_pace) if p is not None]
            if not any(waits):
                break
            await asyncio.sleep(max(waits))
        if self._row_pace is not None:
            self._row_pace.debit(now, 1)


def bad_entry(row: BadRow) -> Entry:
    """For a line that is no request: nothing was sent."""
    head = Head(row.line, time.time(), 0.0, 0, 0, 0, row.kind, "")
    return Entry(head, row.custom_id, None, f"line {row.line}: {row.reason}")


def _request_id(value: object) -> str:
    found = cast("dict[str, object]", value).get("id") if isinstance(value, dict) else None
    return found if isinstance(found, str) else ""

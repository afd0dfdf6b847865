"""The same work on many things at once: ordered answers, an error for its own item only."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from vllmdeploy.errors import VllmdeployError

T = TypeVar("T")
R = TypeVar("R")

_LOOK_UP_S = 0.5


def each(
    items: Sequence[T], work: Callable[[T], R], *, at_once: int = 32
) -> list[R | VllmdeployError]:
    """One answer per item, in the order of the items; an expected failure takes its item's place.

    A bug (any other exception) is raised here, and no further item is begun. The threads are
    daemons: after Ctrl-C the caller gets its KeyboardInterrupt at once.
    """
    waiting: queue.SimpleQueue[tuple[int, T]] = queue.SimpleQueue()
    for numbered in enumerate(items):
        waiting.put(numbered)
    done: queue.SimpleQueue[tuple[int, R | VllmdeployError | _Bug]] = queue.SimpleQueue()
    stopped = threading.Event()

    def work_on() -> None:
        while not stopped.is_set():
            try:
                position, item = waiting.get_nowait()
            except queue.Empty:
                return
            answer = _attempt(work, item)
            if isinstance(answer, _Bug):
                stopped.set()
            done.put((position, answer))

    for _ in range(min(at_once, len(items))):
        threading.Thread(target=work_on, daemon=True, name="vllmdeploy-each").start()
    try:
        return _collected(done, len(items))
    finally:
        stopped.set()


def both(first: Callable[[], T], second: Callable[[], R]) -> tuple[T, R]:
    """Two questions at once, the second one on this thread; an error of either is raised."""
    asked: list[T | VllmdeployError | _Bug] = []
    aside = threading.Thread(
        target=lambda: asked.append(_attempt(lambda work: work(), first)), daemon=True
    )
    aside.start()
    answer = second()
    while aside.is_alive():
        aside.join(_LOOK_UP_S)
    (other,) = asked
    if isinstance(other, _Bug):
        raise other.error
    if isinstance(other, VllmdeployError):
        raise other
    return other, answer


class _Bug:
    def __init__(self, error: BaseException) -> None:
        self.error = error


def _attempt(work: Callable[[T], R], item: T) -> R | VllmdeployError | _Bug:
    try:
        return work(item)
    except VllmdeployError as error:
        return error
    except BaseException as error:
        return _Bug(error)


def _collected(
    done: queue.SimpleQueue[tuple[int, R | VllmdeployError | _Bug]], count: int
) -> list[R | VllmdeployError]:
    answers: dict[int, R | VllmdeployError] = {}
    while len(answers) < count:
        position, answer = taken(done)
        if isinstance(answer, _Bug):
            raise answer.error
        answers[position] = answer
    return [answers[position] for position in range(count)]


def taken(news: queue.SimpleQueue[T]) -> T:
    """The next of the news. It looks up now and then: a Ctrl-C in the very moment before a wait
    begins would otherwise be heard only with the news."""
    while True:
        try:
            return news.get(timeout=_LOOK_UP_S)
        except queue.Empty:
            continue

"""Asks a warden through its socket: `python3 -m vllmdeploy.node.ctl --run DIR status`."""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from vllmdeploy.core.reading import fields, json_object
from vllmdeploy.node import logs, report
from vllmdeploy.node.probe import ask as ask_http
from vllmdeploy.node.probe import tcp_problem

EXIT_DONE = 0
EXIT_USAGE = 2
EXIT_NO_WARDEN = 3
_LIMIT_S = 10.0
_ANSWER_S = 15.0
_HELD_S = 10.0
_LOOK_EVERY_S = 0.1


class NoWarden(Exception):
    """Nobody answers, and why."""


def ask(run: Path, question: str) -> object:
    """One question to the warden of this run folder."""
    document = report.read(run) or {}
    path = str(document.get("socket") or run / report.SOCKET_FILE)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
            door.settimeout(_LIMIT_S)
            door.connect(path)
            door.sendall(json.dumps({"ask": question}).encode() + b"\n")
            with door.makefile("rb") as answer:
                loaded: object = json.loads(answer.read())
                return loaded
    except OSError as error:
        raise NoWarden(f"no warden answers at {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise NoWarden(f"the warden at {path} ended in the middle of its answer") from error


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python3 -m vllmdeploy.node.ctl")
    made.add_argument("--run", required=True, type=Path, help="the warden's run folder")
    words = made.add_subparsers(dest="word", required=True)
    status = words.add_parser("status", help="what the warden knows; its last word when it is gone")
    status.add_argument(
        "--until-runs",
        metavar="NAME",
        help=f"answer when this engine runs or there is news of it, else after {_HELD_S:g} s",
    )
    words.add_parser("nodes", help="the nodes as Ray itself reports them (on a head)")
    words.add_parser("retry", help="start again what was given up")
    words.add_parser("stop", help="end everything in order, then the warden")
    check = words.add_parser("check", help="ask an engine itself: port, health, models, a token")
    check.add_argument("url")
    check.add_argument("route", help="where the token is asked for")
    check.add_argument("body", help="the question, as JSON")
    lines = words.add_parser("logs", help="the last lines of one child")
    lines.add_argument("name")
    lines.add_argument("--tail", type=_count, default=100, metavar="N")
    return made


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of lines")
    return int(text)


def checked(url: str, route: str, body: str) -> dict[str, object]:
    """What is wrong with an engine, by the question that showed it, and the models it lists."""
    return asyncio.run(_checked(url, route, body))


async def _checked(url: str, route: str, body: str) -> dict[str, object]:
    parts = urlsplit(url)
    closed = await tcp_problem(parts.hostname or "", parts.port or 80, limit_s=_LIMIT_S)
    if closed:
        return {"wrong": {f"port {parts.port}": closed}, "models": []}
    wrong: dict[str, str] = {}
    models: list[str] = []
    for path, question in (("/health", ""), ("/v1/models", ""), (route, body)):
        answer = await ask_http(f"{url}{path}", limit_s=_ANSWER_S, body=question)
        if answer.status != 200:
            wrong[path] = answer.detail or f"status {answer.status}"
        elif path == "/v1/models":
            models = _models(answer.body)
    return {"wrong": wrong, "models": models}


def _models(page: str) -> list[str]:
    listed = fields(json_object(page)).get("data")
    data = cast("list[object]", listed) if isinstance(listed, list) else []
    return [str(fields(one).get("id", "")) for one in data]


def hold(run: Path, name: str, *, at_most_s: float = _HELD_S) -> None:
    """Until this engine runs or there is news of it. Its file says so as soon as its warden does,
    and looking there costs neither of them anything."""
    began, before = time.monotonic(), _news_of(run, name)
    while _news_of(run, name) == before and before["state"] != "running":
        if time.monotonic() - began >= at_most_s:
            return
        time.sleep(_LOOK_EVERY_S)


def _news_of(run: Path, name: str) -> dict[str, object]:
    engine = fields(fields((report.read(run) or {}).get("engines")).get(name))
    return {key: engine.get(key) for key in ("state", "generation", "restarts", "failures")}


def _status(run: Path, out: Callable[[str], object], err: Callable[[str], object]) -> int:
    try:
        out(json.dumps(ask(run, "status")) + "\n")
    except NoWarden as error:
        document = report.read(run)
        if document is None:
            raise
        # What it last wrote still says why it ended; `warden` says that nobody stands behind it.
        gone = "silent" if report.alive(document) else "gone"
        out(json.dumps({**document, "warden": gone}) + "\n")
        err(f"{error}\n")
        return EXIT_NO_WARDEN
    return EXIT_DONE


def _logs(run: Path, name: str, count: int, out: Callable[[str], object]) -> int:
    """Read from disk, so that a dead warden's logs can be read too."""
    document = report.read(run)
    if document is None:
        raise NoWarden(f"no {report.STATUS_FILE} in {run}")
    folder = Path(str(document.get("logs")))
    known = sorted(path.stem for path in folder.glob("*.log"))
    if name not in known:
        raise NoWarden(f"no log of {name!r} in {folder}; there are: {', '.join(known) or 'none'}")
    for line in logs.tail(folder / f"{name}.log", count):
        out(f"{line}\n")
    return EXIT_DONE


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    out, err = sys.stdout.write, sys.stderr.write
    try:
        match options.word:
            case "status":
                if options.until_runs:
                    hold(options.run, options.until_runs)
                return _status(options.run, out, err)
            case "logs":
                return _logs(options.run, options.name, options.tail, out)
            case "check":
                out(json.dumps(checked(options.url, options.route, options.body)) + "\n")
                return EXIT_DONE
            case word:
                answer = ask(options.run, word)
    except NoWarden as error:
        err(f"{error}\n")
        return EXIT_NO_WARDEN
    out(json.dumps(answer) + "\n")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())

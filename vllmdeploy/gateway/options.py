"""The gateway's command line, as a value."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vllmdeploy.errors import UsageError
from vllmdeploy.gateway.address import parse_networks, plain_ip
from vllmdeploy.gateway.fleet_file import default_id
from vllmdeploy.gateway.spec import NO_WORKER, FleetSpec, GatewaySpec, UpstreamSpec
from vllmdeploy.routing import policies, scheduling
from vllmdeploy.routing.thresholds import Thresholds
from vllmdeploy.wire.limits import ClientLimits

_RANGE = re.compile(r"(?P<host>.+):(?P<first>[0-9]{1,5})(?:-(?P<last>[0-9]{1,5}))?")
_LISTEN = re.compile(r"(?:\[(?P<six>[^\]]+)\]|(?P<host>[^:]+)):(?P<port>[0-9]{1,5})")
_SIZE = re.compile(r"([0-9]{1,9})([kKmMgG]?)(?:[iI]?[bB])?")
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_WORKER = re.compile(r"([0-9]{1,6}):([0-9]{1,6}(?:,[0-9]{1,6})*)")
_DISCOVERED_MAX = 1024
_WORKERS_MAX = 32

PROGRAM = "python -m vllmdeploy.gateway"
EXAMPLE = """example:
  python -m vllmdeploy.gateway --upstream http://10.0.0.2:8100 --upstream http://10.0.0.3:8100,2,1.5
  python -m vllmdeploy.gateway --discover 127.0.0.1:8000-8007 --listen 0.0.0.0:9000 \\
      --api-keys-file keys --admin-key-file admin
"""


def parser(prog: str = PROGRAM) -> argparse.ArgumentParser:
    """Also used by `vllmdeploy gateway run`, so that both mean the same."""
    found = argparse.ArgumentParser(
        prog=prog,
        description="One API in front of many vLLM instances.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = found.add_argument
    add("--config", default="", metavar="FILE", help="JSON with upstreams; watched, may change")
    add(
        "--state", default="", metavar="FILE",
        help="keeps what /admin changed over restarts (default: beside --config)",
    )  # fmt: skip
    add(
        "--files", default="", metavar="FOLDER",
        help="keeps /v1/files and /v1/batches (default: there are none)",
    )  # fmt: skip
    add("--files-size", default="10G", metavar="SIZE", help="the most that --files may hold")
    add(
        "--upstream", action="append", default=[], metavar="URL[,WEIGHT[,COST]]",
        help="an instance; may be given more than once",
    )  # fmt: skip
    add(
        "--discover", action="append", default=[], metavar="HOST:FIRST-LAST",
        help="one instance on each of these ports, used from when it answers",
    )  # fmt: skip
    add("--upstream-key-file", default="", metavar="FILE", help="the key that upstreams want")
    add(
        "--upstream-networks", default="", metavar="CIDRS",
        help="where upstreams may be (default: anywhere but metadata services)",
    )  # fmt: skip
    add("--listen", default="127.0.0.1:8000", metavar="HOST:PORT", help="or fd:N, a socket given")
    add("--name", default="vllm", help="what GET / calls this gateway")
    add("--auth", choices=("keys", "none"), default="keys", help="none: only --allow guards")
    add("--allow", default="", metavar="CIDRS", help="addresses that may call, with commas")
    add("--api-keys-file", default="", metavar="FILE", help="a key a line; watched")
    add("--admin-key-file", default="", metavar="FILE", help="keys for /admin; watched")
    add("--policy", default=policies.DEFAULT, metavar="NAME", help=", ".join(policies.names()))
    add(
        "--scheduling", default=scheduling.DEFAULT, metavar="NAME",
        help=", ".join(scheduling.names()),
    )  # fmt: skip
    add("--default-model", default="", metavar="MODEL", help="for requests that name none")
    add("--workers", type=int, default=1, metavar="N", help="processes that share the port")
    add("--worker", default="", help=argparse.SUPPRESS)
    add("--limit", type=int, default=256, metavar="N", help="requests at once per instance")
    _add_limits(found)
    return found


def _add_limits(found: argparse.ArgumentParser) -> None:
    add = found.add_argument
    add("--max-body", default="32M", metavar="SIZE", help="the longest request")
    add("--max-connections", type=int, default=16_384, metavar="N")
    add("--max-per-address", type=int, default=1_024, metavar="N", help="without a valid key")
    add("--batch-size", type=int, default=32, metavar="N", help="prompts of a batch per instance")
    add("--queue-length", type=int, default=4096, metavar="N", help="requests waiting per model")
    add("--queue-timeout", type=float, default=60.0, metavar="S", help="longest wait for a place")
    add("--drain-timeout", type=float, default=120.0, metavar="S", help="for requests at the end")
    add("--first-byte-timeout", type=float, default=300.0, metavar="S")
    add("--no-canary", action="store_true", help="never send the one-token request")
    add("--access-log", default="", metavar="FILE", help="JSON lines; - is standard output")
    add("--takeover", default="", metavar="SOCKET", help="take the port over from, and give it to")
    add("--tls-cert", default="", metavar="FILE", help="PEM: serve HTTPS (1.2 or later) alone")
    add("--tls-key", default="", metavar="FILE", help="its key; both are watched for changes")


def spec(argv: Sequence[str] | None, *, prog: str = PROGRAM) -> GatewaySpec:
    arguments = sys.argv[1:] if argv is None else argv
    found = from_options(parser(prog).parse_args(arguments))
    return replace(found, arguments=tuple(arguments))


def from_options(given: argparse.Namespace) -> GatewaySpec:
    host, port, descriptor = _listen(given.listen)
    return checked(
        GatewaySpec(
            name=given.name,
            host=host,
            port=port,
            descriptor=descriptor,
            keyless=given.auth == "none",
            allow=parse_networks(_split(given.allow)),
            keys_file=given.api_keys_file,
            admin_key_file=given.admin_key_file,
            config_file=given.config,
            state_file=given.state or _beside(given.config),
            files_folder=given.files,
            files_size=_size("--files-size", given.files_size),
            takeover=given.takeover,
            access_log=given.access_log,
            tls_cert=given.tls_cert,
            tls_key=given.tls_key,
            upstream_networks=parse_networks(_split(given.upstream_networks)),
            batch_size=_positive("--batch-size", given.batch_size),
            limits=ClientLimits(
                body=_size("--max-body", given.max_body),
                connections=_positive("--max-connections", given.max_connections),
                connections_per_address=_positive("--max-per-address", given.max_per_address),
            ),
            thresholds=Thresholds(
                canary=not given.no_canary,
                first_byte_timeout_s=given.first_byte_timeout,
                drain_timeout_s=given.drain_timeout,
                queue_timeout_s=given.queue_timeout,
                queue_length=_positive("--queue-length", given.queue_length),
            ),
            fleet=FleetSpec(
                tuple(_upstreams(given)), given.policy, given.scheduling, given.default_model
            ),
            workers=_workers(given.workers),
            worker=_worker(given.worker),
        )
    )


def checked(wanted: GatewaySpec) -> GatewaySpec:
    """An API for everybody on the network must be asked for in so many words."""
    scheduling.scheduling(wanted.fleet.scheduling)
    policies.create(wanted.fleet.policy)
    if bool(wanted.tls_cert) != bool(wanted.tls_key):
        raise UsageError("--tls-cert and --tls-key belong together")
    if wanted.workers > 1 and wanted.files_folder:
        raise UsageError("--files needs a gateway of one process, without --workers")
    ids = [one.id for one in wanted.fleet.upstreams]
    twice = sorted({one for one in ids if ids.count(one) > 1})
    if twice:
        raise UsageError(f"upstream {', '.join(twice)} is given twice")
    if _is_loopback(wanted.host) or wanted.keys_file:
        return wanted
    if not wanted.keyless:
        raise UsageError(
            f"no keys, and {wanted.host} is not this machine alone",
            hint="give --api-keys-file FILE, or --auth none --allow CIDRS, or listen on 127.0.0.1",
        )
    if not wanted.allow:
        raise UsageError(
            f"--auth none on {wanted.host} would serve everybody",
            hint="say who may call: --allow 10.0.0.0/8",
        )
    return wanted


def _upstreams(given: argparse.Namespace) -> list[UpstreamSpec]:
    found: list[UpstreamSpec] = []
    for text in given.upstream:
        url, *numbers = text.split(",")
        if len(numbers) > 2:
            raise UsageError(f"--upstream {text!r} is not URL[,WEIGHT[,COST]]")
        weight, cost = (*(_above_zero(number, text) for number in numbers), 1.0, 1.0)[:2]
        found.append(_upstream(given, url, weight, cost))
    for text in given.discover:
        found.extend(_upstream(given, url, 1.0, 1.0) for url in _discovered(text))
    return found


def _upstream(given: argparse.Namespace, url: str, weight: float, cost: float) -> UpstreamSpec:
    limit = _positive("--limit", given.limit)
    key_file = given.upstream_key_file
    return UpstreamSpec(
        default_id(url), url, weight=weight, cost=cost, limit=limit, key_file=key_file
    )


def _discovered(text: str) -> list[str]:
    match = _RANGE.fullmatch(text)
    if match is None:
        raise UsageError(f"--discover {text!r} is not HOST:FIRST-LAST, as 127.0.0.1:8000-8007")
    first = int(match["first"])
    last = int(match["last"] or first)
    if not 1 <= first <= last <= 65535 or last - first >= _DISCOVERED_MAX:
        raise UsageError(f"--discover {text!r}: from 1 to 65535, at most {_DISCOVERED_MAX} ports")
    return [f"http://{match['host']}:{port}" for port in range(first, last + 1)]


def _listen(text: str) -> tuple[str, int, int]:
    if text.startswith("fd:") and text[3:].isdigit():
        return "(given socket)", 0, int(text[3:])
    match = _LISTEN.fullmatch(text)
    if match is None or int(match["port"]) > 65535:
        raise UsageError(f"--listen {text!r} is not HOST:PORT, as 0.0.0.0:8000 or [::]:8000")
    return match["six"] or match["host"], int(match["port"]), -1


def _workers(count: int) -> int:
    if not 1 <= count <= _WORKERS_MAX:
        raise UsageError(f"--workers must be from 1 to {_WORKERS_MAX}")
    return count


def _worker(text: str) -> tuple[int, tuple[int, ...]]:
    """CHANNEL:SOCKET,SOCKET, numbers of open files that a parent has left to it."""
    if not text:
        return NO_WORKER
    match = _WORKER.fullmatch(text)
    if match is None:
        raise UsageError("--worker is for a gateway's own workers; say --workers N")
    return int(match[1]), tuple(int(number) for number in match[2].split(","))


def _beside(config: str) -> str:
    return str(Path(config).with_suffix(".admin.json")) if config else ""


def _is_loopback(host: str) -> bool:
    ip = plain_ip(host)
    return host == "localhost" or (ip is not None and ip.is_loopback)


def _split(text: str) -> list[str]:
    return [part for part in re.split(r"[,\s]+", text) if part]


def _size(name: str, text: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None or not int(match[1]):
        raise UsageError(f"{name} {text!r} is not a size such as 32M")
    return int(match[1]) * _UNITS[match[2].lower()]


def _positive(name: str, number: int) -> int:
    if number < 1:
        raise UsageError(f"{name} must be at least 1")
    return number


def _above_zero(text: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise UsageError(f"--upstream {where!r}: {text!r} is not a number above zero")
    return number

"""Our gateway, and those it is measured beside, each as a process of its own before the same
upstreams."""

from __future__ import annotations

import contextlib
import resource
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway_upstream import short_answers

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
KEY = "sk-bench-0123456789"
_ROUTER = "vllm-router==0.1.17"
_ROUTER_HOME = ROOT / ".cache" / "vllm-router"
_READY_S = 60.0


class Unavailable(Exception):
    """A peer that cannot be had here; the reason is told with the figures."""


@dataclass(frozen=True)
class Peer:
    name: str
    port: int
    pid: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cpu_s(self) -> float:
        """Of all threads, in nanoseconds' resolution: a tick of the clock is 10 ms."""
        used = 0
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            used += int((task / "schedstat").read_text().split()[0])
        return used / 1e9

    def memory_mib(self) -> float:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


@contextlib.contextmanager
def program(*argv: str, log: Path) -> Generator[subprocess.Popen[str]]:
    with (
        log.open("a") as out,
        subprocess.Popen(argv, cwd=ROOT, stdout=out, stderr=out, text=True) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


@contextlib.contextmanager
def fake_processes(count: int) -> Generator[dict[str, subprocess.Popen[str]]]:
    """By their addresses; each in Python: for streams, and for faults."""
    with contextlib.ExitStack() as stack:
        argv = (sys.executable, str(HERE / "gateway_upstream.py"))
        found: dict[str, subprocess.Popen[str]] = {}
        for _ in range(count):
            process = stack.enter_context(
                subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, preexec_fn=many_files)
            )
            stack.callback(process.kill)  # it may be one that was stopped
            assert process.stdout is not None
            found[f"http://127.0.0.1:{process.stdout.readline().strip()}"] = process
        yield found


@contextlib.contextmanager
def fake_engines(count: int) -> Generator[list[str]]:
    with fake_processes(count) as found:
        yield list(found)


@contextlib.contextmanager
def nginx_engines(count: int, folder: Path) -> Generator[list[str]]:
    """The same short answer from nginx, so that the upstreams take as little as can be of the
    machine that they share with what is measured."""
    ports = free_ports(count)
    listen = "".join(f"listen 127.0.0.1:{port};" for port in ports)
    places = "".join(
        f"location = {path} {{ default_type application/json; return 200 '{body}'; }}"
        for path, body in short_answers().items()
    )
    server = f"server {{ {listen} keepalive_requests 1000000000; {places} }}"
    with nginx(server, folder / "engines", ports[0]):
        yield [f"http://127.0.0.1:{port}" for port in ports]


@contextlib.contextmanager
def ours(
    urls: Sequence[str],
    folder: Path,
    *more: str,
    start: Sequence[str] = ("-m", "vllmdeploy.gateway"),
) -> Generator[Peer]:
    """With keys, health checks, canaries, metrics and retries."""
    keys = folder / "keys"
    keys.write_text(f"bench:{KEY}\n")
    (port,) = free_ports(1)
    argv = [
        *(sys.executable, *start, "--listen", f"127.0.0.1:{port}", "--policy", "round_robin"),
        *("--api-keys-file", str(keys), "--drain-timeout", "1"),
        *(part for url in urls for part in ("--upstream", url)),
        *more,
    ]
    with program(*argv, log=folder / "gateway.log") as process:
        answers(port, "/health")
        yield Peer("vllmdeploy", port, process.pid)


@contextlib.contextmanager
def vllm_router(urls: Sequence[str], folder: Path) -> Generator[Peer]:
    binary = _ROUTER_HOME / "bin" / "vllm-router"
    if not binary.exists():
        _install_router()
    (port, metrics) = free_ports(2)
    argv = [
        *(str(binary), "--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin"),
        *("--prometheus-port", str(metrics), "--log-level", "error", "--worker-urls", *urls),
    ]
    with program(*argv, log=folder / "vllm-router.log") as process:
        answers(port, "/health")
        yield Peer("vllm-router", port, process.pid)


def _install_router() -> None:
    for argv in (
        (sys.executable, "-m", "venv", "--clear", str(_ROUTER_HOME)),
        (str(_ROUTER_HOME / "bin" / "pip"), "install", "--quiet", _ROUTER),
    ):
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip() or "no word").splitlines()[-1]
            shutil.rmtree(_ROUTER_HOME, ignore_errors=True)
            raise Unavailable(f"{_ROUTER} cannot be installed: {last}")


@contextlib.contextmanager
def nginx_proxy(urls: Sequence[str], folder: Path) -> Generator[Peer]:
    (port,) = free_ports(1)
    members = "".join(f"server {url.removeprefix('http://')};" for url in urls)
    server = f"""
        upstream engines {{ {members} keepalive 8192; keepalive_requests 1000000000; }}
        server {{
            listen 127.0.0.1:{port} backlog=4096;
            keepalive_requests 1000000000;
            location / {{
                proxy_pass http://engines;
                proxy_http_version 1.1;
                proxy_set_header Connection "";
                proxy_buffering off;
            }}
        }}"""
    with nginx(server, folder / "proxy", port) as worker:
        yield Peer("nginx", port, worker)


@contextlib.contextmanager
def nginx(server: str, folder: Path, port: int) -> Generator[int]:
    """Yields the process id of its one worker."""
    if shutil.which("nginx") is None:
        raise Unavailable("nginx is not installed (Debian: nginx-light)")
    folder.mkdir()
    config = folder / "nginx.conf"
    config.write_text(
        f"""daemon off; worker_processes 1; worker_rlimit_nofile 65536; pid {folder}/pid;
        error_log {folder}/error.log; events {{ worker_connections 32768; }}
        http {{ access_log off; client_max_body_size 0; client_body_temp_path {folder}/body;
        proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u;
        scgi_temp_path {folder}/s; {server} }}"""
    )
    with program("nginx", "-c", str(config), log=folder / "log") as process:
        answers(port, "/health")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        yield int(children[0])


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        bound = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in bound:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in bound]


def answers(port: int, path: str) -> None:
    """Returns once this path answers with 200."""
    until = time.monotonic() + _READY_S
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                answer.read()
                return
        except OSError as error:
            if time.monotonic() > until:
                raise Unavailable(f"no answer of {path} within {_READY_S:g} s: {error}") from error
        time.sleep(0.1)


def page(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        found: str = answer.read().decode()
        return found


def many_files() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

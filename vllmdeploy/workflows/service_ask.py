"""`generate`: a prompt asked through the gateway on its host, the answer as it comes."""

from __future__ import annotations

from collections.abc import Callable

from vllmdeploy.effects.ask import ask_access
from vllmdeploy.errors import CommandFailed, last_line
from vllmdeploy.plan.service_gateway_node import GatewayWanted, gateway_name, key_file
from vllmdeploy.plan.service_wanted import inside
from vllmdeploy.tools import vllm_ask
from vllmdeploy.workflows.session import Session

_LONGEST_S = 900


def generate(session: Session, body: str, on_text: Callable[[str], None]) -> None:
    settings, wanted = session.settings, session.wanted
    host = next(
        (one.name for one in session.fleet.offering if one.name in session.shells),
        session.fleet.offering[0].name,
    )
    if host in session.failures:
        raise session.failures[host]
    way = ask_access(session.shells[host], wanted.cluster, session.sudo)
    gateway = GatewayWanted(listen=settings.api_host, port=settings.api_port)
    keys = "" if settings.api_auth == "none" else key_file(wanted, way.layout)
    url = f"{gateway.address}/generate"
    argv = ("python3", "-c", vllm_ask.SCRIPT, url, keys, body)
    command = way.of(inside(wanted, gateway_name(wanted), *argv)).within(_LONGEST_S)
    said: list[str] = []

    def line(text: str) -> None:
        said.append(text)
        piece = vllm_ask.text_of(text.rstrip("\n"))
        if piece:
            on_text(piece)

    result = session.shells[host].run(command, on_line=line)
    if not result.ok:
        why = vllm_ask.refusal_of(last_line(result.output))
        raise CommandFailed(
            host,
            f"POST {url}",
            result.status,
            why,
            doing="asking the gateway",
            hint="vllmdeploy status shows what is served; start-service serves a model",
        )

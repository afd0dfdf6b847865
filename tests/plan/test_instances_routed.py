"""What a gateway is told of an instance beside where it is."""

from __future__ import annotations

from dataclasses import replace

from tests.plan.instance_builders import asked, decide, fleet
from vllmdeploy.gateway.fleet_file import parse
from vllmdeploy.plan.instances_wanted import asked_of, document
from vllmdeploy.plan.service_gateway_node import GatewayWanted, fleet_file


def test_its_rendering_threads_where_it_was_told_some() -> None:
    (one,) = decide(asked(1), fleet()).of
    wish = asked_of(one.service)
    told = replace(wish.engine, arguments=("--renderer-num-workers", "2"))
    threads = replace(one.service, asked=document(replace(wish, engine=told), one.slot))
    gateway = GatewayWanted(listen="127.0.0.1", port=8000)
    for service, expected in ((one.service, 0), (threads, 2)):
        content = fleet_file(gateway, [service]).decode()
        (upstream,) = parse(content, "fleet.json").upstreams
        assert upstream.max_workers == expected
        assert ("max_workers" in content) is bool(expected)

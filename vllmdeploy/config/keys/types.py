"""The types of settings: each reads text with our own words, whatever it is built from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, PlainValidator

from vllmdeploy.config import environment, places, readers, values
from vllmdeploy.config.values import PortRange, Size


@dataclass(frozen=True)
class Reads:
    """Values given in code take the same way as text, so no value escapes its checks."""

    parse: Callable[[str], object]

    def __call__(self, value: object) -> object:
        text = values.text_of(value)
        problem = values.fault(text)
        if problem:
            raise ValueError(problem)
        return self.parse(text)


def _reads(parse: Callable[[str], object]) -> PlainValidator:
    return PlainValidator(Reads(parse))


class Section(BaseModel):
    """The title of a section is the first line of its docstring."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=str.upper,
        populate_by_name=True,
        protected_namespaces=(),  # MODEL_PATH is a key of ours
    )


Count = Annotated[int, _reads(readers.whole(1, 1_000_000))]
BigCount = Annotated[int, _reads(readers.whole(1, 100_000_000))]
CardCount = Annotated[int, _reads(readers.whole(0, 1024))]
Share = Annotated[float, _reads(readers.fraction)]
Switch = Annotated[bool, _reads(readers.switch)]
Memory = Annotated[Size, _reads(readers.size)]
Port = Annotated[int, _reads(readers.port)]
RayPort = Annotated[int, _reads(readers.high_port)]
Ports = Annotated[PortRange, _reads(readers.port_range)]
PortList = Annotated[tuple[int, ...], _reads(readers.port_list)]
HostFolder = Annotated[str, _reads(readers.host_folder)]
ModelFolder = Annotated[str, _reads(readers.model_folder)]
LocalPath = Annotated[Path, _reads(readers.local_path)]
IpAddress = Annotated[str, _reads(readers.ip_address)]
Networks = Annotated[tuple[str, ...], _reads(readers.networks)]
Url = Annotated[str, _reads(readers.url)]
Arguments = Annotated[tuple[str, ...], _reads(readers.arguments)]
Environment = Annotated[Mapping[str, str], _reads(environment.variables)]
HostPlace = Annotated[str, _reads(places.place_text)]
HostList = Annotated[tuple[str, ...], _reads(places.host_list)]
ListenHost = Annotated[str, _reads(places.listen_host)]
Endpoint = Annotated[str, _reads(places.endpoint)]
Image = Annotated[
    str, _reads(readers.word(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,511}", "an image such as NAME:TAG"))
]
ClusterName = Annotated[
    str,
    _reads(
        readers.word(
            r"[a-z0-9][a-z0-9_.-]{0,62}",
            "a cluster name: up to 63 of a-z 0-9 _ . -, a letter or digit first",
        )
    ),
]
UserName = Annotated[
    str, _reads(readers.word(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,63}\$?", "a user name"))
]
Interface = Annotated[
    str, _reads(readers.word(r"[A-Za-z0-9_][A-Za-z0-9_.:@-]{0,14}", "a network interface or auto"))
]
Vendor = Annotated[str, _reads(readers.word(r"[a-z][a-z0-9_-]{0,30}", "an accelerator or auto"))]
Method = Annotated[
    str, _reads(readers.word(r"[a-z][a-z0-9_-]{0,40}", "a quantization method or none"))
]
ModelName = Annotated[
    str, _reads(readers.word(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,255}", "the name of a model"))
]
SudoMode = Annotated[str, _reads(readers.one_of("auto", "never", "always"))]
Runtime = Annotated[str, _reads(readers.one_of("docker", "process", "systemd"))]
Executor = Annotated[str, _reads(readers.one_of("auto", "ray", "mp"))]
RayAuth = Annotated[str, _reads(readers.one_of("auto", "token", "none"))]
ApiAuth = Annotated[str, _reads(readers.one_of("keys", "none"))]
Routing = Annotated[
    str,
    _reads(
        readers.policy(
            "adaptive",
            "round_robin",
            "random",
            "least_inflight",
            "load_balanced",
            "power_of_two",
            "consistent_hash",
            "prefix_affinity",
            "weighted",
            "cost_optimized",
        )
    ),
]
Scheduling = Annotated[
    str, _reads(readers.policy("adaptive", "fifo", "priority", "slo_aware", "cost_optimized"))
]

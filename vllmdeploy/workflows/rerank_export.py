"""`export compose --rerank`: the rerank service as a Compose file, before any host was asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vllmdeploy.config.settings import Loaded
from vllmdeploy.plan import rerank
from vllmdeploy.plan.instances_wanted import InstancesWanted
from vllmdeploy.tools.manifest_names import name_of
from vllmdeploy.tools.vllm import Vllm
from vllmdeploy.workflows.rerank import RerankAsked, asked_for

PORT = 8888
"""Of the seed's Compose file."""


def asked_offline(
    loaded: Loaded, model: str, profile: str | None, name: str, arguments: tuple[str, ...]
) -> RerankAsked:
    """As `rerank start` would have it, but for what only the image can say."""
    size = rerank.size_of(name_of(model.rstrip("/")))
    asked = asked_for(
        loaded.settings,
        model="" if size else model,
        model_size=size.name if size else "",
        profile_name=profile,
        name=name,
        arguments=arguments,
    )
    return replace(asked, instances=_told(asked, _config(loaded, asked)))


def _told(asked: RerankAsked, config: str) -> InstancesWanted:
    """With what vLLM has to be told of this checkpoint."""
    engine = asked.instances.engine
    special = rerank.engine_arguments(asked.rerank, config, Vllm())
    given = replace(engine, arguments=(*special, *engine.arguments))
    return replace(asked.instances, engine=given)


def _config(loaded: Loaded, asked: RerankAsked) -> str:
    """The checkpoint's own where it lies on this machine too."""
    here = Path(loaded.settings.model_path, asked.rerank.model, "config.json")
    try:
        return here.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return rerank.expected_config(asked.rerank.size)


def on_its_port(loaded: Loaded) -> Loaded:
    """The seed's, unless somebody has set another."""
    if loaded.source("API_PORT") != "default":
        return loaded
    return replace(loaded, settings=loaded.settings.model_copy(update={"api_port": PORT}))

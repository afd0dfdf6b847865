"""`batch run --engine ray`: engines for one run alone, on a Ray cluster."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from vllmdeploy.accelerators import cpu
from vllmdeploy.batch.ray_engines import EngineSpec, RayEngines, vllm_argv
from vllmdeploy.batch.run import run_batch
from vllmdeploy.cli import output

if TYPE_CHECKING:
    from vllmdeploy.batch.conclude import Finished
    from vllmdeploy.batch.runner import Listener
    from vllmdeploy.batch.spec import BatchSpec
    from vllmdeploy.config.settings import Settings


# Without them each engine wants nearly all of its host's memory, and binds to the same first cores.
_WITHOUT_CARDS = {"VLLM_CPU_KVCACHE_SPACE": "4", **cpu.ACCELERATOR.instance_environment}


def model_name(model: str | None) -> str | None:
    """As services name their models: the last part of a path or repo id."""
    return PurePosixPath(model).name if model else None


def engine_spec(settings: Settings, model: str, engines: int, cards: int) -> EngineSpec:
    """A name without a slash is a folder of MODEL_PATH on the nodes."""
    where = model if "/" in model else str(PurePosixPath(settings.model_path, model))
    name = PurePosixPath(model).name
    more = list(settings.extra_vllm_args)
    if settings.max_model_len is not None:
        more += ["--max-model-len", str(settings.max_model_len)]
    return EngineSpec(
        argv=vllm_argv(where, name, cards=cards, more=tuple(more)),
        environment={**({} if cards else _WITHOUT_CARDS), **settings.extra_env},
        count=engines,
        cards=cards,
        address=str(settings.ray_address or "auto"),
    )


def run_on_ray(spec: BatchSpec, wanted: EngineSpec, listener: Listener) -> Finished:
    with RayEngines(wanted, say=output.say) as engines:
        mine = replace(spec, upstreams=engines.upstreams)
        return run_batch(mine, listener=listener, say=output.say, connect=engines.connect)

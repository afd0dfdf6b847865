"""`init`: asks for the few things a fleet needs and writes its two files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from vllmdeploy.cli import output
from vllmdeploy.cli.context import terminal, world
from vllmdeploy.errors import SettingsError

_QUESTIONS = {
    "CLUSTER_NAME": ("Name of the cluster", "vllm"),
    "HEAD_HOST": ("Head, [user@]host[:port]; empty is this machine", ""),
    "SSH_USER": ("SSH user on the hosts; empty is ~/.ssh/config's or yours", ""),
    "MODEL_PATH": ("Folder of the models on every host", "/data/models"),
    "ACCELERATOR": ("Kind of cards, or auto", "auto"),
    "IMAGE": ("Image; empty is the accelerator's usual one", ""),
}
_NEXT_BY_SSH = "vllmdeploy trust (records the hosts' SSH keys), then vllmdeploy plan"
_NEXT_HERE = "vllmdeploy plan; or from host to host, vllmdeploy head and vllmdeploy worker HEAD_IP"


def init(
    context: typer.Context,
    *,
    head: Annotated[
        str | None,
        typer.Option(help="Head, as user@host:port or just host. Default: this machine."),
    ] = None,
    worker: Annotated[
        list[str] | None,
        typer.Option(help="A line of worker_nodes.txt, as 'gpu-02 gpus=0,1'. Repeat it."),
    ] = None,
    image: Annotated[str | None, typer.Option(help="Image with vLLM.")] = None,
    model_path: Annotated[
        str | None, typer.Option(help="Folder of the models on every host.")
    ] = None,
    ssh_user: Annotated[str | None, typer.Option(help="SSH user on the hosts.")] = None,
    cluster_name: Annotated[str | None, typer.Option(help="Begins all names.")] = None,
    accelerator: Annotated[str | None, typer.Option(help="Kind of cards, or auto.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
) -> None:
    """Write config.env and worker_nodes.txt: asked on a terminal, or by flags.

    --config and --nodes name other files.

    Example: vllmdeploy init --head gpu-01 --worker gpu-02 --worker 'gpu-03 gpus=0,1'
    """
    from vllmdeploy.accelerators.registry import VENDORS
    from vllmdeploy.config.starter import refuse_existing, starter_files, write_files

    wanted = world(context)
    config = wanted.config or Path("config.env")
    default_nodes = config.with_name("worker_nodes.txt")
    nodes_path = wanted.nodes or default_nodes
    if not force:
        refuse_existing((config, nodes_path))
    given = {
        "CLUSTER_NAME": cluster_name,
        "HEAD_HOST": head,
        "SSH_USER": ssh_user,
        "MODEL_PATH": model_path,
        "ACCELERATOR": accelerator,
        "IMAGE": image,
    }
    answers = {key: text for key, text in given.items() if text is not None}
    workers = worker or []
    if terminal() and not answers and not workers:
        answers, workers = _asked()
    if nodes_path != default_nodes:
        answers["WORKER_NODES_FILE"] = str(nodes_path.absolute())
    config_text, nodes_text = starter_files(answers, workers, accelerators=tuple(VENDORS))
    write_files({config: config_text, nodes_path: nodes_text})
    if wanted.json:
        output.document({"written": [str(config), str(nodes_path)]})
    output.say(f"wrote {config} and {nodes_path}")
    others = workers or answers.get("HEAD_HOST")
    output.say(f"next: {_NEXT_BY_SSH if others else _NEXT_HERE}")


def _asked() -> tuple[dict[str, str], list[str]]:
    """Each answer is checked with those before it, and asked again when it does not fit."""
    answers: dict[str, str] = {}
    for key, (question, default) in _QUESTIONS.items():

        def with_answers(text: str, key: str = key) -> str:
            return _accepted(text, {**answers, key: text}, ())

        answers[key] = _prompt(question, default, with_answers)
    workers: list[str] = []
    while line := _prompt(
        f"Host {len(workers) + 2}, a line of worker_nodes.txt; empty ends the list",
        "",
        lambda text: _accepted(text, answers, [*workers, text]),
    ):
        workers.append(line)
    return answers, workers


def _prompt(question: str, default: str, accept: Callable[[str], str]) -> str:
    answer: str = typer.prompt(
        question, default=default, show_default=bool(default), value_proc=accept, err=True
    )
    return answer


def _accepted(text: str, answers: Mapping[str, str], workers: Sequence[str]) -> str:
    from vllmdeploy.accelerators.registry import VENDORS
    from vllmdeploy.config.starter import starter_files

    try:
        starter_files(answers, workers, accelerators=tuple(VENDORS))
    except SettingsError as error:
        problems = (problem.removeprefix("command line: ") for problem in error.problems)
        raise typer.BadParameter("; ".join(problems)) from error
    return text

"""Which Ray goes onto which image, and the words for those that get none."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from vllmdeploy.plan import image_build
from vllmdeploy.plan.image_build import Build
from vllmdeploy.tools.image_probe import ImageContents
from vllmdeploy.tools.images import Image

BASE = Image(
    id="sha256:" + "1" * 64,
    arch="amd64",
    layers=("sha256:a",),
    references=("vllm/vllm-openai:v0.33.0",),
)
STOCK = ImageContents(python="3.12.3", vllm="0.33.0", torch="2.14.0")
NAME = "vllm/vllm-openai:v0.33.0"
FOR_312 = "ray-2.60.0-cp312-cp312-manylinux2014_x86_64.whl"


def built(
    contents: ImageContents = STOCK, *wheels: str, name: str = NAME, tag: str = ""
) -> Build | str:
    return image_build.with_ray(name, BASE, contents, wheels=wheels, tag=tag)


def test_a_stock_image_gets_the_ray_that_fits_it() -> None:
    assert built() == Build(
        base=NAME,
        tag="vllmdeploy/vllm-openai:v0.33.0-ray2.60.0",
        dockerfile="Dockerfile.ray",
        arguments={"RAY": "2.60.0"},
        labels={
            "vllmdeploy.image.base": BASE.id,
            "vllmdeploy.image.ray": "2.60.0",
            "vllmdeploy.image.vllm": "0.33.0",
            "vllmdeploy.image.python": "3.12.3",
            "vllmdeploy.image.torch": "2.14.0",
        },
    )


@pytest.mark.parametrize(
    ("vllm", "version"),
    [("0.33.0", "2.60.0"), ("0.11.0+cu129", "2.60.0"), ("0.10.2", "2.52.1"), ("?", "2.52.1")],
)
def test_an_old_engine_gets_an_older_ray(vllm: str, version: str) -> None:
    assert image_build.fitting_ray(vllm) == version


@pytest.mark.parametrize(
    ("contents", "why"),
    [
        (ImageContents(problem="it has no python3"), f"image {NAME}: it has no python3"),
        (
            ImageContents(python="3.12.1"),
            f"image {NAME} has no vLLM: choose one that has, or --cpu makes one",
        ),
        (
            replace(STOCK, ray="2.54.0"),
            f"image {NAME} has Ray 2.54.0 already: use it as it is",
        ),
        (
            replace(STOCK, python="3.9.18"),
            f"image {NAME} has Python 3.9.18; Ray is for 3.10 to 3.13",
        ),
    ],
)
def test_what_cannot_get_a_ray_says_why(contents: ImageContents, why: str) -> None:
    assert built(contents) == why


def test_a_bad_ray_is_no_reason_against_a_better_one() -> None:
    assert isinstance(built(replace(STOCK, ray="2.44.1")), Build)


@pytest.mark.parametrize(
    ("wheels", "version"),
    [
        ((FOR_312,), "2.60.0"),
        (("ray-2.54.1-cp312-cp312-manylinux2014_x86_64.whl", FOR_312), "2.60.0"),
        (
            (
                "ray-2.54.1-cp312-cp312-manylinux2014_x86_64.whl",
                "ray-2.44.1-cp312-cp312-manylinux2014_x86_64.whl",
                "ray-2.9.0-cp312-cp312-manylinux2014_x86_64.whl",
            ),
            "2.54.1",
        ),
    ],
)
def test_from_wheels_comes_the_wanted_ray_or_the_newest_that_may_be_used(
    wheels: tuple[str, ...], version: str
) -> None:
    made = built(STOCK, *wheels)
    assert isinstance(made, Build)
    assert made.arguments == {"RAY": version}


def test_wheels_for_another_python_or_machine_are_refused_with_the_way_to_get_them() -> None:
    wheels = (
        "ray-2.60.0-cp311-cp311-manylinux2014_x86_64.whl",
        "ray-2.60.0-cp312-cp312-manylinux2014_aarch64.whl",
        "click-8.5.1-py3-none-any.whl",
        "nonsense.whl",
    )
    assert built(STOCK, *wheels) == (
        "--wheels has no Ray for Python 3.12 on x86_64"
        f" ({wheels[0]}, {wheels[1]}): where there is a network, `pip download"
        " --only-binary=:all: --python-version 3.12 --platform manylinux2014_x86_64 -d DIR"
        " 'ray[default]==2.60.0'`"
    )
    assert "(none of Ray)" in str(built(STOCK, "click-8.5.1-py3-none-any.whl"))


def test_the_new_name_is_ours_whatever_the_base_is_called() -> None:
    by_id = built(name=BASE.id)
    assert isinstance(by_id, Build)
    assert (by_id.base, by_id.tag) == (BASE.id, "vllmdeploy/111111111111:latest-ray2.60.0")
    named = built(tag="mine:1")
    assert isinstance(named, Build)
    assert named.tag == "mine:1"


def test_the_cpu_engine_is_made_of_what_was_seen_working_together() -> None:
    made = image_build.for_cpu(NAME, BASE, ImageContents(python="3.11.9"))
    assert isinstance(made, Build)
    assert made.tag == "vllmdeploy/cpu:vllm0.32.0-ray2.60.0"
    script = (Path(__file__).parents[2] / "scripts/engine.sh").read_text("utf-8")
    pinned = dict(re.findall(r"^(VLLM|TORCH|RAY)=(\S+)$", script, re.MULTILINE))
    assert made.arguments == pinned
    newer = image_build.for_cpu(NAME, BASE, ImageContents(python="3.13.1"))
    assert isinstance(newer, Build)
    assert newer.labels["vllmdeploy.image.python"] == "3.13.1"
    old = ImageContents(python="3.10.12")
    assert image_build.for_cpu(NAME, BASE, old) == (
        f"image {NAME} has Python 3.10.12; vLLM's CPU build needs 3.11 to 3.13"
    )
    broken = ImageContents(problem="it does not answer: x")
    assert image_build.for_cpu(NAME, BASE, broken) == f"image {NAME}: it does not answer: x"


MADE = replace(BASE, id="sha256:" + "2" * 64, layers=("sha256:a", "sha256:b"))


@pytest.mark.parametrize(
    ("made", "has", "wrong"),
    [
        (MADE, replace(STOCK, ray="2.60.0"), ""),
        (
            replace(MADE, layers=("sha256:z",)),
            replace(STOCK, ray="2.60.0"),
            "it was not made from the image that was looked at: somebody moved its name",
        ),
        (MADE, ImageContents(problem="it does not answer: x"), "it does not answer: x"),
        (MADE, STOCK, "it has Ray nowhere, not 2.60.0"),
        (MADE, replace(STOCK, ray="2.60.0", torch="2.9.0"), "its torch is another one now"),
    ],
)
def test_what_was_built_is_held_against_what_was_wanted(
    made: Image, has: ImageContents, wrong: str
) -> None:
    build = built()
    assert isinstance(build, Build)
    assert image_build.wrong(build, BASE, made, STOCK, has) == wrong

"""What holds for every vendor, whatever its tool prints."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.accelerators import (
    test_amd,
    test_ascend,
    test_hygon,
    test_nvidia,
    test_other_vendors,
)
from tests.accelerators.answering import answered, hung
from vllmdeploy.accelerators import lenient_json, reading
from vllmdeploy.accelerators.handing import by_cdi, rdma_arguments
from vllmdeploy.accelerators.registry import PRESENCE, VENDORS, choose, named
from vllmdeploy.core.card import Card, CardReport, Fabric, Presence
from vllmdeploy.core.command import Result

SAMPLES = (
    *(test_nvidia.A6000, test_nvidia.RTX3090, test_nvidia.H200, test_nvidia.row()),
    *(test_hygon.MALFORMED, test_hygon.OLDER, test_hygon.TABLE, test_hygon.PIDS),
    *(test_amd.METRIC, test_amd.OLDER_METRIC, test_amd.LIST, test_amd.PROCESS, test_amd.W7900),
    *(test_ascend.B4, test_ascend.A3, test_ascend.P310),
    *(test_other_vendors.S5000, test_other_vendors.S80, test_other_vendors.C500),
    *(test_other_vendors.V150, test_other_vendors.MLU370, test_other_vendors.XPU),
)
SECTIONS = ("cards", "table", "rocm", "list", "static", "processes", "slices", "pci", "nodes")
vendors = pytest.mark.parametrize("vendor", VENDORS)
broken = st.one_of(
    st.text(max_size=300),
    st.builds(
        lambda sample, start, length: sample[start : start + length],
        st.sampled_from(SAMPLES),
        st.integers(0, 400),
        st.integers(0, 1200),
    ),
    st.builds(
        lambda sample, old, new: sample.replace(old, new),
        st.sampled_from(SAMPLES),
        st.sampled_from(['"', ",", "|", ":", "{", "}", "0", "MiB", "\n", "value"]),
        st.text(max_size=8),
    ),
)


@vendors
@given(text=broken, second=broken, status=st.sampled_from([0, 1, 127]), timed_out=st.booleans())
def test_no_parser_raises_and_every_card_is_well_formed(
    vendor: str, text: str, second: str, status: int, timed_out: bool
) -> None:
    sections = {name: (second if name in ("list", "pci") else text, status) for name in SECTIONS}
    whole = answered(**sections).stdout
    for said in (whole, whole[: len(whole) // 2], text):
        report = named(vendor).cards.parse(Result(status, said, text, timed_out=timed_out))
        assert isinstance(report, CardReport)
        assert report.vendor == vendor
        assert all(card.index >= 0 for card in report.cards)
        assert "\n" not in "".join(card.name + card.uuid for card in report.cards)


@given(text=broken)
def test_presence_never_raises(text: str) -> None:
    assert isinstance(PRESENCE.parse(Result(0, text)), Presence)
    assert choose(PRESENCE.parse(answered(pci=text, nodes=text))).vendor in VENDORS


@given(text=broken)
def test_lenient_json_never_raises_and_agrees_on_the_whole(text: str) -> None:
    value, whole = lenient_json.parse(text)
    assert not whole or isinstance(value, dict | list)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, '"' + '\\"' * 100_000, "{" + '"a"' * 50_000]
)
def test_hostile_json_ends_soon(text: str) -> None:
    assert lenient_json.parse(text)[1] is False


@vendors
def test_a_vendor_without_an_answer_says_why(vendor: str) -> None:
    report = named(vendor).cards.parse(hung())
    assert report.cards == ()
    assert report.problem


@vendors
def test_no_cards_means_no_devices(vendor: str) -> None:
    arguments = named(vendor).container((), False).arguments
    assert "--device" not in arguments
    assert "--gpus" not in arguments


@vendors
def test_neither_container_nor_ray_gets_rights_over_the_whole_host(vendor: str) -> None:
    access = named(vendor).container((Card(index=0), Card(index=1)), True)
    assert "--privileged" not in access.arguments
    assert "ROCR_VISIBLE_DEVICES" not in access.environment
    assert named(vendor).ray_flags(2)[0].startswith("--")


@vendors
def test_a_hostile_interface_stays_one_value(vendor: str) -> None:
    fabric = Fabric(ip="10.0.0.1", interface="eth0; reboot")
    values = named(vendor).network_environment(fabric).values()
    assert all(value in ("10.0.0.1", "eth0; reboot", "=eth0; reboot") for value in values)


def test_only_vendors_built_from_captured_outputs_go_unmarked() -> None:
    assert [name for name in VENDORS if not named(name).mark] == [
        *("nvidia", "hygon", "amd", "ascend", "cpu"),
    ]


def test_a_vendor_without_cdi_names_is_handed_over_in_its_own_way() -> None:
    gaudi = named("gaudi")
    cards = (Card(index=0),)
    assert by_cdi(gaudi, cards, True) == gaudi.container(cards, True)


def test_what_a_vendor_does_not_state_limits_nothing() -> None:
    assert named("amd").toolkit_limit("6.12.12") == ""
    assert named("amd").engine_flags((Card(index=0),)) == ()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1 "b": true, "c": [1 2, null]', {"a": 1, "b": True, "c": [1, 2, None]}),
        ('noise {"a" 5: "x", "b": "y"', {"b": "y"}),
        ("[1, 2", [1, 2]),
        ("no json at all", None),
    ],
)
def test_broken_json_gives_what_can_be_trusted(text: str, value: object) -> None:
    assert lenient_json.parse(text) == (value, False)


def test_an_alibaba_network_card_is_not_a_ppu() -> None:
    lines = "pci 0000:01:00.0 0x1ded 0x020000 0x1001 - - -"
    assert choose(PRESENCE.parse(answered(pci=lines, nodes=""))).vendor == "cpu"
    card = "pci 0000:02:00.0 0x1ded 0x120000 0x6001 - - -"
    assert choose(PRESENCE.parse(answered(pci=f"{lines}\n{card}", nodes=""))).vendor == "thead"


def test_a_number_is_not_a_truth_value() -> None:
    assert reading.number(True) is None
    assert named("intel").cards.parse(answered(cards="")).problem == "xpu-smi answered nothing"


def test_rdma_devices_are_given_only_where_they_are_up() -> None:
    assert rdma_arguments(Fabric(ip="10.0.0.1")) == ()
    assert rdma_arguments(Fabric(ip="10.0.0.1", rdma_devices=("mlx5_0",))) == (
        *("--device", "/dev/infiniband", "--cap-add", "IPC_LOCK"),
    )


@vendors
def test_the_page_about_accelerators_says_what_the_code_says(vendor: str) -> None:
    page = Path(__file__).parents[2] / "docs" / "accelerators.md"
    row = next(line for line in page.read_text().splitlines() if line.startswith(f"| `{vendor}` |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    image = named(vendor).default_image
    assert cells[2] == (named(vendor).mark or "captured")
    assert cells[6].startswith(f"`{named(vendor).ray_resource}`")
    assert cells[7] == (f"`{image}`" if image else "none")

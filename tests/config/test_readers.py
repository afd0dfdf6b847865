"""What each kind of value takes, refuses, and how it is written back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllmdeploy.config import environment, places, readers, values
from vllmdeploy.config.values import PortRange, Size, text_of

READERS: Mapping[str, Callable[[str], object]] = {
    "whole": readers.whole(1, 100),
    "port_range": readers.port_range,
    "port_list": readers.port_list,
    "fraction": readers.fraction,
    "size": readers.size,
    "switch": readers.switch,
    "one_of": readers.one_of("docker", "process"),
    "policy": readers.policy("adaptive", "round_robin"),
    "host_folder": readers.host_folder,
    "model_folder": readers.model_folder,
    "local_path": readers.local_path,
    "ip_address": readers.ip_address,
    "networks": readers.networks,
    "url": readers.url,
    "arguments": readers.arguments,
    "variables": environment.variables,
    "place": places.place_text,
    "host_list": places.host_list,
    "listen_host": places.listen_host,
    "endpoint": places.endpoint,
}


@pytest.mark.parametrize(
    ("reader", "text", "value"),
    [
        ("whole", "100", 100),
        ("port_range", "8100-8199", PortRange(8100, 8199)),
        ("port_range", "8100", PortRange(8100, 8100)),
        ("port_list", "8001, 8002 8004-8005", (8001, 8002, 8004, 8005)),
        ("fraction", "0.96", 0.96),
        ("fraction", ".5", 0.5),
        ("fraction", "1", 1.0),
        ("size", "16g", Size(16 << 30)),
        ("size", "10.24g", Size(10995116277)),
        ("size", "512 MiB", Size(512 << 20)),
        ("size", "1073741824", Size(1 << 30)),
        ("switch", "Yes", True),
        ("switch", "0", False),
        ("one_of", "docker", "docker"),
        ("policy", "round_robin", "round_robin"),
        ("policy", "my.policies:Sticky", "my.policies:Sticky"),
        ("host_folder", "//data//models/", "/data/models"),
        ("host_folder", "/", "/"),
        ("model_folder", "/data/a b", "/data/a b"),
        ("local_path", "~", Path.home()),
        ("local_path", "a/../b", Path("a/../b")),
        ("ip_address", "2001:DB8::1", "2001:db8::1"),
        ("networks", "10.0.0.0/8, ::1", ("10.0.0.0/8", "::1/128")),
        ("url", "https://hf-mirror.com/", "https://hf-mirror.com"),
        (
            "arguments",
            "--cap-add IPC_LOCK -v '/a b:/c'",
            ("--cap-add", "IPC_LOCK", "-v", "/a b:/c"),
        ),
        ("variables", "A=1,B='2,3' C=\"x y\" D=", {"A": "1", "B": "2,3", "C": "x y", "D": ""}),
        ("host_list", "a, b:22", ("a", "b:22")),
        ("listen_host", "::", "::"),
        ("listen_host", "localhost", "localhost"),
        ("endpoint", "10.0.0.1:6379", "10.0.0.1:6379"),
    ],
)
def test_a_value_is_read_and_written_back(reader: str, text: str, value: object) -> None:
    read = READERS[reader]
    assert read(text) == value
    assert read(text_of(value)) == value


@pytest.mark.parametrize(
    ("reader", "text", "said"),
    [
        ("whole", "0", "'0' is not a number: a whole number from 1 to 100"),
        ("whole", "1.5", "'1.5' is not a number: a whole number from 1 to 100"),
        ("whole", "٣", "'٣' is not a number: a whole number from 1 to 100"),
        ("whole", "9" * 5000, f"'{'9' * 60}...' is not a number: a whole number from 1 to 100"),
        (
            "port_range",
            "80-90",
            "'80' is not a port that needs no special rights: a whole number from 1024 to 65535",
        ),
        ("port_range", "8200-8100", "'8200-8100' runs backwards: write it as LOW-HIGH"),
        ("port_list", "8001,8001", "port 8001 is there twice"),
        ("port_list", ", ,", "no port in it: write 8001,8002 or 8001-8004"),
        ("port_list", "1024-65535", "more than 1024 ports"),
        ("fraction", "96", "'96' is not a share: a number above 0 and at most 1, as 0.9"),
        ("fraction", "0", "'0' is not a share: a number above 0 and at most 1, as 0.9"),
        ("fraction", "nan", "'nan' is not a share: a number above 0 and at most 1, as 0.9"),
        ("size", "lots", "'lots' is not a size: write 16g, 512m or a number of bytes"),
        ("size", "16", "'16' is under 1m"),
        ("switch", "maybe", "'maybe' is neither yes nor no: write 1 or 0, true or false"),
        ("one_of", "Docker", "'Docker' is not one of docker, process; did you mean docker?"),
        ("one_of", "zz", "'zz' is not one of docker, process"),
        ("policy", "os.system", "'os.system' is not one of adaptive, round_robin"),
        ("host_folder", "models", "'models' is not an absolute path"),
        ("host_folder", "/a/../etc", "'/a/../etc' holds '..'"),
        ("host_folder", "/a:/b", "'/a:/b' holds ':', which a Docker mount cannot carry"),
        ("model_folder", "//", "'/' is the whole disk: name a folder of its own"),
        ("local_path", "~nobody-here/x", "'~nobody-here/x': no such home folder"),
        ("ip_address", "10.0.0", "'10.0.0' is not an IP address"),
        (
            "networks",
            "10.0.0.1/8",
            "'10.0.0.1/8' has bits right of its prefix; did you mean 10.0.0.0/8?",
        ),
        ("networks", "all", "'all' is not a network such as 10.0.0.0/8"),
        ("url", "ftp://x", "'ftp://x' is not an address such as https://huggingface.co"),
        ("url", "http://[x", "'http://[x' is not an address such as https://huggingface.co"),
        ("url", "https://me:pw@x", "holds a user name or password: settings carry no secrets"),
        ("arguments", "--name 'a", "a quote or backslash in it has no partner"),
        ("variables", "A='1", "a quote or backslash in it has no partner"),
        ("variables", "A=1,2", "'2' is not NAME=VALUE; a value with a comma or blank needs quotes"),
        (
            "variables",
            "1A=secret",
            "'1A' is not NAME=VALUE; a value with a comma or blank needs quotes",
        ),
        ("variables", "A=1 A=2", "A is there twice"),
        ("variables", "HF_TOKEN=hf_x", "HF_TOKEN would show in `ps`: use HF_TOKEN_FILE"),
        ("place", "a b", "'a b' is not a host name or IP address"),
        ("host_list", "a,a", "'a' is there twice"),
        ("listen_host", "a/b", "'a/b' is not a host name or IP address"),
        ("endpoint", "10.0.0.1", "'10.0.0.1' is not HOST:PORT"),
        ("endpoint", "u@a:1", "'u@a:1' is not HOST:PORT"),
    ],
)
def test_what_does_not_fit_is_refused_in_plain_words(reader: str, text: str, said: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole text is compared below
        READERS[reader](text)
    assert str(error.value) == said


@settings(max_examples=2500, deadline=None)
@given(
    st.sampled_from(sorted(READERS)),
    st.one_of(
        st.text(max_size=60),
        st.text(alphabet="0189.-,:/@[]%~gmk =aA_'\"\\;$()", max_size=40),
        st.from_regex(r"[a-z]+://[^ ]{0,30}", fullmatch=True),
        st.from_regex(r"[0-9a-f:.]{1,20}/[0-9]{1,3}", fullmatch=True),
    ),
)
def test_any_text_is_read_as_it_is_written_back_or_refused(reader: str, text: str) -> None:
    if values.fault(text) is not None:
        return
    try:
        value = READERS[reader](text)
    except ValueError:
        return
    assert READERS[reader](text_of(value)) == value


def test_ranges_know_what_they_hold_and_share() -> None:
    ports = PortRange(8100, 8199)
    assert 8100 in ports
    assert 8200 not in ports
    assert list(PortRange(1, 3).ports) == [1, 2, 3]
    assert ports.overlap(PortRange(8150, 9000)) == PortRange(8150, 8199)
    assert ports.overlap(PortRange(8200, 9000)) is None


def test_sizes_are_shown_in_the_largest_exact_unit() -> None:
    assert [str(Size(1 << 40)), str(Size(3 << 29)), str(Size((1 << 30) + 1))] == [
        "1t",
        "1536m",
        "1073741825b",
    ]

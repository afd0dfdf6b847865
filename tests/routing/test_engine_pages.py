from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmdeploy.errors import UsageError
from vllmdeploy.routing.address import parse_address
from vllmdeploy.routing.engine_metrics import observed_of
from vllmdeploy.routing.load import Observed
from vllmdeploy.routing.upstream import Address

PAGE = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="/models/a b{c}"} 3.0
vllm:num_requests_running{engine="1",model_name="/models/a b{c}"} 2.0
vllm:num_requests_waiting{engine="0",model_name="m"} 7.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:generation_tokens_total{engine="0",model_name="m"} 1.5e+06
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 100.0
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 40.0
vllm:num_requests_waiting{engine="1",model_name="m"} NaN
vllm:num_requests_waiting{engine="2",model_name="m"} words
process_cpu_seconds_total 12.0
"""


def test_the_engines_page_is_read_and_its_cores_added_up() -> None:
    assert observed_of(PAGE, 9.0) == Observed(9.0, 5, 7, 0.25, 1.5e6, 100.0, 40.0)


def test_older_names_are_known() -> None:
    page = "vllm:num_requests_running 1\nvllm:gpu_cache_usage_perc 0.5\n"
    assert observed_of(page, 1.0) == Observed(1.0, 1, 0, 0.5)


def test_a_page_of_something_else_is_nothing() -> None:
    assert observed_of("process_cpu_seconds_total 12.0\n", 1.0) is None


@given(st.text())
def test_no_page_breaks_the_reader(page: str) -> None:
    observed_of("vllm:num_requests_running " + page, 1.0)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://localhost:8001/v1", Address("localhost", 8001)),
        ("http://localhost:8001/v1/", Address("localhost", 8001)),
        ("gpu-01:8000", Address("gpu-01", 8000)),
        ("gpu-01", Address("gpu-01", 80)),
        ("https://api.example.org/llm/v1", Address("api.example.org", 443, True, "/llm")),
        ("http://[::1]:8000", Address("::1", 8000)),
    ],
)
def test_an_address_is_read_as_people_write_it(url: str, address: Address) -> None:
    assert parse_address(url) == address


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "upstream '': no host in it"),
        ("http://", "upstream 'http://': no host in it"),
        ("http://a b:80", "upstream 'http://a b:80': no host in it"),
        ("http://a\r\nb:80", "upstream 'http://a\\r\\nb:80': no host in it"),
        ("http://hôte:80", "upstream 'http://hôte:80': no host in it"),
        ("ftp://a", "upstream 'ftp://a': neither http nor https"),
        ("http://a:99999", "upstream 'http://a:99999': Port out of range 0-65535"),
        ("http://bob:secret@a", "upstream: only scheme, host, port and path can be given"),
        ("http://a/?q=1", "upstream: only scheme, host, port and path can be given"),
    ],
)
def test_what_is_no_address_is_refused_without_repeating_secrets(url: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_address(url)
    assert str(caught.value) == f"{words}\n  -> as in http://gpu-01:8000/v1, or gpu-01:8000"

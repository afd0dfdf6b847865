"""The numbers of a batch and the page that shows them, in a real browser where there is one."""

from __future__ import annotations

import json
import random
import re
import shutil
import struct
import subprocess
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from vllmdeploy.batch.charts import Bar, bars, counted, round_up, seconds, short
from vllmdeploy.batch.entries import Head
from vllmdeploy.batch.report import render
from vllmdeploy.batch.stats import Histogram, Stats, Timeline
from vllmdeploy.errors import UsageError

CHROMIUM = shutil.which("chromium")
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--hide-scrollbars",
)
HOSTILE = '</style><script>document.title="broken"</script><img src=x onerror=alert(1)>'


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}


def head(line: int, kind: str = "ok", *, at: float = 1000.0, took: float = 0.5) -> Head:
    return Head(line, at, took, 1, 10, 20, kind, "http://a:1")


def full_stats() -> Stats:
    chance, stats, at = random.Random(1), Stats(), 1_795_235_993.0
    for line in range(1, 3001):
        at += chance.expovariate(30)
        kind = "ok" if line % 40 else chance.choice(["http_400", "nonsense"])
        took, tokens = chance.lognormvariate(0.3, 0.7), int(chance.lognormvariate(5, 0.8))
        stats.add(Head(line, at, took, 1, 50, tokens, kind, f"http://gpu-{line % 3}:8000"))
        if stats.wants_example(kind):
            stats.add_example(kind, f"HTTP 400: {HOSTILE} {'long' * 60}")
    return stats


def test_the_summary_adds_up() -> None:
    stats = Stats()
    for line in range(1, 101):
        stats.add(head(line, "http_400" if line > 95 else "ok", at=1000 + line / 10))
    assert stats.summary() == {
        "rows": 100,
        "ok": 95,
        "failed": 5,
        "errors": {"http_400": 5},
        "retried": 0,
        "prompt_tokens": 1000,
        "completion_tokens": 2000,
        "busy_seconds": 11.0,
        "rows_per_second": 9.091,
        "completion_tokens_per_second": 181.818,
        "latency_seconds": {"p50": 0.4732, "p90": 0.4732, "p99": 0.4732},
        "instances": {"http://a:1": 100},
    }


def test_a_batch_of_nothing_has_a_summary_and_a_page() -> None:
    assert Stats().summary()["rows_per_second"] == 0.0
    assert "nothing yet" in render(Stats(), title="t", note="n")


def test_quantiles_are_right_to_six_percent() -> None:
    chance, histogram = random.Random(2), Histogram()
    values = sorted(chance.lognormvariate(0, 2) for _ in range(5000))
    for value in values:
        histogram.add(value)
    for share in (0.1, 0.5, 0.9, 0.99):
        exact = values[int(share * len(values)) - 1]
        assert histogram.quantile(share) == pytest.approx(exact, rel=0.07)
    assert sum(found.rows for found in histogram.bins()) == 5000
    assert Histogram().bins() == ()


def test_a_long_run_keeps_few_spans_and_loses_no_row() -> None:
    timeline = Timeline()
    for second in range(0, 50_000, 3):
        timeline.add(float(second), 2)
    spans = timeline.spans()
    assert len(spans) <= 1025
    assert sum(span.rows for span in spans) == len(range(0, 50_000, 3))
    assert timeline.busy_s == pytest.approx(50_000, rel=0.01)


def test_rows_that_come_rarely_make_a_slow_batch_and_a_pause_makes_none() -> None:
    timeline = Timeline()
    for minute in range(10):
        timeline.add(60.0 * minute, 1)
    assert timeline.busy_s == 541
    timeline.add(100_000.0, 1)
    assert timeline.busy_s == 542


def test_examples_are_few_and_differ() -> None:
    stats = Stats()
    for line in range(1, 200):
        stats.add(head(line, "http_400"))
        if stats.wants_example("http_400"):
            stats.add_example("http_400", f"message {line % 7}")
    assert stats.examples == {"http_400": ["message 1", "message 2", "message 3"]}
    assert not stats.wants_example("ok")


def test_the_slowest_rows_are_kept_in_order() -> None:
    stats = Stats()
    for line in random.Random(1).sample(range(1, 500), 499):
        stats.add(head(line, took=line / 100))
    assert [slow.line for slow in stats.slowest] == list(range(499, 489, -1))


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (999, "999"), (1234, "1.23k"), (5e6, "5M"), (2e9, "2G")]
)
def test_short_numbers(value: float, text: str) -> None:
    assert short(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0123, "12.3 ms"), (1.5, "1.5 s"), (119, "119 s"), (600, "10 min")]
)
def test_durations(value: float, text: str) -> None:
    assert seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (2925, "2,925"), (999_999, "999,999"), (1_234_567, "1.23M")]
)
def test_counts_are_exact_where_they_can_be_read(value: int, text: str) -> None:
    assert counted(value) == text


@pytest.mark.parametrize(
    ("highest", "top"),
    [(0, 1), (0.03, 0.03), (1, 1), (7.1, 8), (40.5, 50), (731, 800), (8970, 10_000), (1e6, 1e6)],
)
def test_an_axis_ends_at_a_round_number(highest: float, top: float) -> None:
    assert round_up(highest) == pytest.approx(top)


@pytest.mark.parametrize("exponent", range(-9, 15))
def test_no_bar_is_higher_than_its_axis(exponent: int) -> None:
    for digits in range(100, 1000, 7):
        highest = digits * 10.0**exponent
        assert round_up(highest) >= highest * (1 - 1e-8)


def test_a_chart_is_svg_with_its_words_escaped() -> None:
    chart = bars([Bar(1, "<b>"), Bar(0, "&")], ["a<", "b"], title='"')
    assert "<b>" not in chart
    assert chart.count("<rect") == 2
    assert "<title>&lt;b&gt;</title>" in chart


def test_the_page_needs_nothing_else_and_runs_nothing(tmp_path: Path) -> None:
    font = tmp_path / "font.ttf"
    font.write_bytes(b"font")
    page = render(full_stats(), title=HOSTILE, note=HOSTILE, font=font)
    tags = Tags()
    tags.feed(page)
    assert tags.names <= {
        *("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "div", "section"),
        *("b", "br", "code", "span", "svg", "rect", "line", "text", "table", "tr", "th", "td"),
    }
    assert not tags.attributes & {"src", "href", "srcset", "onload", "onerror"}
    assert "@import" not in page
    assert "src:url(data:font/sfnt;base64,Zm9udA==)" in page


def test_a_font_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"FONT_PATH .*none\.ttf: No such file"):
        render(Stats(), title="t", note="n", font=tmp_path / "none.ttf")


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
class TestInABrowser:
    def browse(self, tmp_path: Path, page: Path, *flags: str) -> str:
        done = subprocess.run(
            (str(CHROMIUM), *QUIET, f"--user-data-dir={tmp_path / 'profile'}", *flags, f"file://{page}"),
            capture_output=True, text=True, check=True, timeout=120,
        )  # fmt: skip
        return done.stdout

    def test_it_is_drawn(self, tmp_path: Path) -> None:
        page, picture = tmp_path / "report.html", tmp_path / "report.png"
        page.write_text(render(full_stats(), title="Batch", note="n"), encoding="utf-8")
        self.browse(tmp_path, page, "--window-size=1000,1400", f"--screenshot={picture}")
        data = picture.read_bytes()
        assert struct.unpack(">II", data[16:24]) == (1000, 1400)
        assert len(data) > 30_000, "an empty page is a few kilobytes"

    def test_it_fits_a_phone_and_hostile_text_stays_text(self, tmp_path: Path) -> None:
        """A frame of 360 points says how wide and what the page inside it became."""
        report = render(full_stats(), title=HOSTILE, note="n")
        outer = tmp_path / "outer.html"
        outer.write_text(
            f'<iframe width=360 height=800 srcdoc="{escape(report)}" onload="'
            "const inner = this.contentDocument; document.body.innerText = JSON.stringify("
            "{wide: inner.documentElement.scrollWidth, title: inner.title,"
            "charts: inner.querySelectorAll('svg').length,"
            "images: inner.querySelectorAll('img,script').length})"
            '"></iframe>',
            encoding="utf-8",
        )
        dom = self.browse(tmp_path, outer, "--dump-dom")
        found = re.search(r"<body>(\{.*\})</body>", dom, re.DOTALL)
        assert found is not None
        seen = json.loads(found.group(1).replace("&lt;", "<").replace("&gt;", ">"))
        assert seen == {"wide": 360, "title": HOSTILE, "charts": 4, "images": 0}

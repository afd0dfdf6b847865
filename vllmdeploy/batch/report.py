"""report.html: one file that needs nothing else, for a phone as for a wide screen."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from html import escape
from pathlib import Path

from vllmdeploy.batch.charts import Bar, bars, counted, seconds, short
from vllmdeploy.batch.stats import Bin, Span, Stats
from vllmdeploy.errors import UsageError

_COLUMNS = 96
_LARGEST_FONT = 32 << 20
_STYLE = """
:root{color-scheme:light dark;--ground:#fff;--text:#1d2129;--soft:#5b6472;--line:#dde1e7;
--panel:#f5f7f9;--bar:#2f6fb5;--bad:#b3372b}
@media(prefers-color-scheme:dark){:root{--ground:#14171b;--text:#e4e7eb;--soft:#9aa4b1;
--line:#30363e;--panel:#1c2026;--bar:#6ea8e5;--bad:#ef8478}}
*{box-sizing:border-box}
body{margin:0 auto;padding:16px;max-width:1080px;background:var(--ground);color:var(--text);
font:15px/1.5 FONTS}
h1{font-size:21px;margin:4px 0;overflow-wrap:anywhere}h2{font-size:16px;margin:0 0 8px}
p{margin:4px 0;color:var(--soft);overflow-wrap:anywhere}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(max(130px,22%),1fr));gap:10px;
margin:16px 0}
.figure,section{background:var(--panel);border:1px solid var(--line);border-radius:8px;
padding:12px}
.figure b{display:block;font-size:22px;line-height:1.2}.figure span{color:var(--soft)}
.bad b{color:var(--bad)}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,430px),1fr));gap:12px}
section{margin-bottom:12px;min-width:0}.charts section{margin:0}.charts{margin-bottom:12px}
svg{display:block;width:100%;height:auto}svg text{fill:var(--soft);font-size:11.5px}
.bar{fill:var(--bar)}.grid{stroke:var(--line)}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:5px 10px 5px 0;border-bottom:1px solid var(--line);
vertical-align:top}
th{color:var(--soft);font-weight:500}td.n,th.n{text-align:right}
code{font:13px/1.45 ui-monospace,monospace;overflow-wrap:anywhere}
"""


def render(stats: Stats, *, title: str, note: str, font: Path | None = None) -> str:
    face, family = _font(font)
    parts = (
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{escape(title)}</title>",
        f"<style>{face}{_STYLE.replace('FONTS', family)}</style></head><body>",
        f"<h1>{escape(title)}</h1><p>{escape(note)}</p>",
        "<p>Times are UTC; pauses between two runs are left out.</p>",
        _figures(stats),
        f'<div class="charts">{_charts(stats)}</div>',
        _errors(stats),
        _slowest(stats),
        _instances(stats),
        "</body></html>",
    )
    return "\n".join(part for part in parts if part) + "\n"


def _font(path: Path | None) -> tuple[str, str]:
    """The font travels in the page: whoever opens it need not have it."""
    plain = "system-ui,sans-serif"
    if path is None:
        return "", plain
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"FONT_PATH {path}: {error.strerror}") from error
    if len(data) > _LARGEST_FONT:
        raise UsageError(f"FONT_PATH {path}: {len(data) >> 20} MiB is too large for a page")
    source = f"url(data:font/sfnt;base64,{base64.b64encode(data).decode()})"
    return f"@font-face{{font-family:report;src:{source}}}", f"report,{plain}"


def _figures(stats: Stats) -> str:
    summary = stats.summary()
    latency = stats.latency
    figures = (
        ("", counted(stats.ok), "rows answered"),
        ("bad" if stats.failed else "", counted(stats.failed), "error rows"),
        ("", short(float(str(summary["rows_per_second"]))), "rows/s"),
        ("", short(float(str(summary["completion_tokens_per_second"]))), "tokens/s"),
        ("", seconds(latency.quantile(0.5)), "median latency"),
        ("", seconds(latency.quantile(0.99)), "99th percentile"),
        ("", counted(stats.prompt_tokens), "prompt tokens"),
        ("", counted(stats.completion_tokens), "completion tokens"),
    )
    cells = "".join(
        f'<div class="figure {kind}"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
        for kind, value, name in figures
    )
    return f'<div class="figures">{cells}</div>'


def _charts(stats: Stats) -> str:
    spans = columns(stats.timeline.spans(), stats.timeline.width)
    latency, tokens = stats.latency.bins(), stats.tokens.bins()
    charts = (
        ("Rows per second over time", _over_time(spans, rows=True)),
        ("Completion tokens per second over time", _over_time(spans, rows=False)),
        ("Rows by latency", _histogram(latency, seconds)),
        ("Rows by completion tokens", _histogram(tokens, _whole)),
    )
    return "".join(f"<section><h2>{escape(title)}</h2>{chart}</section>" for title, chart in charts)


def columns(spans: Sequence[Span], width: float) -> tuple[tuple[float, Span], ...]:
    """At most 96 stretches of time, in order."""
    merged = max(1, -(-len(spans) // _COLUMNS))
    groups = (spans[start : start + merged] for start in range(0, len(spans), merged))
    return tuple(
        (
            len(group) * width,
            Span(group[0].start, sum(s.rows for s in group), sum(s.tokens for s in group)),
        )
        for group in groups
    )


def _over_time(spans: Sequence[tuple[float, Span]], *, rows: bool) -> str:
    if not spans:
        return "<p>nothing yet</p>"
    values: list[Bar] = []
    for length, span in spans:
        rate = (span.rows if rows else span.tokens) / length
        values.append(Bar(rate, f"{_clock(span.start)} UTC: {short(rate)} a second"))
    middle = spans[len(spans) // 2][1]
    stops = (spans[0][1], middle, spans[-1][1]) if len(spans) > 2 else (spans[0][1],)
    title = "rows per second" if rows else "tokens per second"
    return bars(values, [_clock(span.start) for span in stops], title=title)


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, timezone.utc).strftime("%H:%M:%S")


def _histogram(bins: Sequence[Bin], words: Callable[[float], str]) -> str:
    if not bins:
        return "<p>nothing yet</p>"
    values = [Bar(float(b.rows), f"{words(b.low)} to {words(b.high)}: {b.rows} rows") for b in bins]
    edges = (bins[0].low, bins[len(bins) // 2].low, bins[-1].high)
    return bars(values, [words(edge) for edge in edges], title="rows")


def _whole(value: float) -> str:
    return short(round(value))


def _errors(stats: Stats) -> str:
    if not stats.kinds:
        return ""
    rows: list[Sequence[str]] = []
    for kind, count in stats.kinds.most_common():
        examples = "<br>".join(f"<code>{escape(e)}</code>" for e in stats.examples.get(kind, ()))
        rows.append((escape(kind), str(count), examples))
    return _table("Errors by kind", ("kind", "rows", "examples"), rows)


def _slowest(stats: Stats) -> str:
    rows = [
        (f"line {s.line}", seconds(s.seconds), str(s.completion_tokens), escape(s.instance))
        for s in stats.slowest
    ]
    return _table("Slowest rows", ("row", "latency", "tokens", "instance"), rows)


def _instances(stats: Stats) -> str:
    rows = [(escape(name), str(count)) for name, count in stats.instances.most_common()]
    return _table("Instances", ("instance", "rows"), rows)


def _table(title: str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML already."""
    if not rows:
        return ""
    head = _cells("th", names)
    body = "".join(f"<tr>{_cells('td', row)}</tr>" for row in rows)
    return (
        f'<section><h2>{escape(title)}</h2><div class="scroll"><table>'
        f"<tr>{head}</tr>{body}</table></div></section>"
    )


def _cells(tag: str, texts: Iterable[str]) -> str:
    return "".join(f"<{tag}>{text}</{tag}>" for text in texts)

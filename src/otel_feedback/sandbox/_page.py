"""The page at "/": traces as trees, feedback beside the span it is on, and in front what is wrong.

It is written by `string.Template` and `html.escape`, without scripts and without anything from elsewhere.
Whatever came from a client passes `_text` on its way in.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from html import escape
from importlib import resources
from string import Template
from typing import TYPE_CHECKING

from ._flags import MEANINGS
from ._model import VENDORS, FeedbackState, FlagState, SpanState, State
from ._state import is_orphan

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

NAMES: Mapping[str, str] = {"orq": "orq", "braintrust": "Braintrust", "weave": "W&B Weave"}

REFRESH_SECONDS = ("off", "2", "5", "15")
"""What the page offers; off unless asked for."""

TIMES = "\u00d7"
"""The sign of multiplication."""

MAX_TRACES = 100
"""The newest ones; a longer page is no longer read."""

MAX_ROWS = 200
"""The same for a list, and for the spans of one trace."""

MAX_DETAILS = 6
"""Examples of one flag; the JSON has all of them."""

MAX_DEPTH = 12
"""Deeper spans are drawn at this depth: indentation has used up the column by then."""

MAX_TEXT_CHARACTERS = 400
"""As much of a comment or value as a line can take; the JSON has all of it."""


@dataclass(slots=True)
class Node:
    """A span of a trace as drawn: the same span of several vendors is one."""

    span: SpanState
    vendors: list[str] = field(default_factory=list)
    children: list[Node] = field(default_factory=list)


def render(state: State, *, refresh: str) -> str:
    """Write the page; `refresh` is one of `REFRESH_SECONDS`, anything else is off."""
    seconds = refresh if refresh in REFRESH_SECONDS[1:] else "off"
    traces = sorted(_traces(state["spans"]).items(), key=lambda pair: -pair[1][0].span["start_time_unix_nano"])
    placed = {(trace_id, node.span["span_id"]) for trace_id, nodes in traces for node, _ in _walk(nodes)}
    return _template("page.html").substitute(
        title=f"{state['orphans']} orphans · otel-feedback sandbox",
        style=_file("page.css"),
        refresh_meta="" if seconds == "off" else f'<meta http-equiv="refresh" content="{seconds}">',
        refresh_links=_refresh_links(seconds),
        counts=_counts(state),
        attention=_attention(state),
        faults=_faults(state),
        traces="\n".join(_trace(trace_id, nodes, state["feedback"]) for trace_id, nodes in traces[:MAX_TRACES])
        or '<section class="card soft">No span has arrived yet.</section>',
        elsewhere=_elsewhere([entry for entry in state["feedback"] if not _has_place(entry, placed)]),
        effective=_effective(state),
    )


@cache
def _file(name: str) -> str:
    return resources.files("otel_feedback.sandbox").joinpath(name).read_text(encoding="utf-8")


@cache
def _template(name: str) -> Template:
    return Template(_file(name))


def _text(value: object) -> str:
    """Write any value so that HTML shows it and nothing else happens."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) > MAX_TEXT_CHARACTERS:
        text = text[:MAX_TEXT_CHARACTERS] + "…"
    return escape(text.encode("utf-8", "replace").decode())  # a lone surrogate is JSON but no UTF-8


# --- head ----------------------------------------------------------------------------------------


def _refresh_links(seconds: str) -> str:
    return " ".join(_refresh_link(each, seconds) for each in REFRESH_SECONDS)


def _refresh_link(each: str, seconds: str) -> str:
    current = ' aria-current="true"' if each == seconds else ""
    where, text = ("/", "off") if each == "off" else (f"/?refresh={each}", f"{each} s")
    return f'<a href="{where}"{current}>{text}</a>'


def _counts(state: State) -> str:
    joined = sum(entry["joined"] for entry in state["feedback"])
    counts = (
        ("spans", len(state["spans"]), ""),
        ("feedback", len(state["feedback"]), ""),
        ("joined", joined, ""),
        ("orphans", state["orphans"], "bad"),
        ("flags", len(state["flags"]), "bad"),
        ("requests", state["requests"], ""),
    )
    return "".join(f'<li class="{kind if count else ""}"><b>{count}</b> {name}</li>' for name, count, kind in counts)


# --- what is wrong -------------------------------------------------------------------------------


def _attention(state: State) -> str:
    orphans = [entry for entry in state["feedback"] if is_orphan(entry)]
    if not orphans and not state["flags"]:
        return '<section class="card fine">Nothing is orphaned and nothing is flagged.</section>'
    parts = [
        _list(f"{len(orphans)} orphaned: on no span", [_orphan(entry) for entry in orphans]),
        _list(
            f"{len(state['flags'])} flagged",
            [_flag_line(*key, details) for key, details in _grouped(state["flags"]).items()],
            "columns",
        ),
    ]
    return f'<section class="card attention">{"".join(parts)}</section>'


def _list(title: str, lines: Sequence[str], kind: str = "") -> str:
    if not lines:
        return ""
    more = f'<p class="soft">and {len(lines) - MAX_ROWS} more</p>' if len(lines) > MAX_ROWS else ""
    items = "".join(f"<li>{line}</li>" for line in lines[:MAX_ROWS])
    return f'<h2>{title}</h2><ul class="list {kind}">{items}</ul>{more}'


def _orphan(entry: FeedbackState) -> str:
    return f"{_vendor(entry['vendor'])}<div>{_feedback(entry)}<div>{_text(entry['reason'])}</div></div>"


def _grouped(flags: Iterable[FlagState]) -> dict[tuple[str, str], list[str]]:
    """Answer the details of each vendor's flags, so that a flag takes one line however often it came."""
    found: dict[tuple[str, str], list[str]] = {}
    for flag in flags:
        found.setdefault((flag["vendor"], flag["flag"]), []).append(flag["detail"])
    return found


def _flag_line(vendor: str, flag: str, details: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(details))
    shown = " ".join(f"<code>{_text(each)}</code>" for each in distinct[:MAX_DETAILS])
    more = f' <span class="soft">and {len(distinct) - MAX_DETAILS} more</span>' if distinct[MAX_DETAILS:] else ""
    times = f' <span class="times">{TIMES}{len(details)}</span>' if len(details) > 1 else ""
    return f"{_vendor(vendor)}<div>{_flag(flag)}{times} {escape(MEANINGS[flag])}<div>{shown}{more}</div></div>"


def _faults(state: State) -> str:
    lines = [
        f"<code>{_text(fault['kind'])}</code><div>{_text(fault['vendor'] or 'any vendor')} "
        f"<code>{_text(fault['path'])}</code>, {_left(fault['times'], fault['fired'])}</div>"
        for fault in state["faults"]
    ]
    return f'<section class="card">{_list("Planned faults", lines)}</section>' if lines else ""


def _left(times: int | None, fired: int) -> str:
    return f"until cleared, {fired} so far" if times is None else f"{times - fired} left"


# --- traces --------------------------------------------------------------------------------------


def _traces(spans: Iterable[SpanState]) -> dict[str, list[Node]]:
    """Answer each trace's roots; a span whose parent has not arrived is one."""
    nodes: dict[str, dict[str, Node]] = {}
    for span in spans:
        node = nodes.setdefault(span["trace_id"], {}).setdefault(span["span_id"], Node(span))
        if span["vendor"] not in node.vendors:
            node.vendors.append(span["vendor"])
    return {trace_id: _roots(found) for trace_id, found in nodes.items()}


def _roots(nodes: Mapping[str, Node]) -> list[Node]:
    roots: list[Node] = []
    for node in sorted(nodes.values(), key=lambda each: each.span["start_time_unix_nano"]):
        parent = nodes.get(node.span["parent_span_id"] or "")
        (roots if parent is None or parent is node else parent.children).append(node)
    return roots or list(nodes.values())[:1]  # a circle of parents has no root


def _walk(nodes: Sequence[Node]) -> Iterator[tuple[Node, int]]:
    """Answer a forest's nodes with their depth, parents first; without recursion, for spans nest deeply."""
    waiting = [(node, 0) for node in reversed(nodes)]
    seen: set[str] = set()
    while waiting:
        node, depth = waiting.pop()
        if node.span["span_id"] not in seen:
            seen.add(node.span["span_id"])
            yield node, depth
            waiting.extend((child, depth + 1) for child in reversed(node.children))


def _trace(trace_id: str, roots: Sequence[Node], feedback: Sequence[FeedbackState]) -> str:
    mine = [entry for entry in feedback if entry["joined"] and entry["target"]["trace_id"] == trace_id]
    nodes = list(_walk(roots))
    whole = [entry for entry in mine if entry["target"]["span_id"] is None]
    rows = [_row(_span(node, depth), _of_span(mine, node)) for node, depth in nodes[:MAX_ROWS]]
    if len(nodes) > MAX_ROWS:
        rows.append(f'<div class="row"><div class="soft">and {len(nodes) - MAX_ROWS} more spans</div></div>')
    titles = "".join(f'<div class="vendor {vendor}">{NAMES[vendor]}</div>' for vendor in VENDORS)
    head = f'<div class="row head titles"><div>Trace <code>{_text(trace_id)}</code></div>{titles}</div>'
    about_it = _row('<div class="soft">the trace as a whole</div>', whole) if whole else ""
    return f'<section class="card trace">{head}{about_it}{"".join(rows)}</section>'


def _of_span(entries: Sequence[FeedbackState], node: Node) -> list[FeedbackState]:
    return [entry for entry in entries if entry["target"]["span_id"] == node.span["span_id"]]


def _row(first: str, entries: Sequence[FeedbackState]) -> str:
    cells = "".join(f"<div>{_cell(vendor, entries)}</div>" for vendor in VENDORS)
    return f'<div class="row">{first}{cells}</div>'


def _cell(vendor: str, entries: Sequence[FeedbackState]) -> str:
    mine = "".join(_feedback(entry) for entry in entries if entry["vendor"] == vendor)
    return f'<span class="vendor {vendor} only-narrow">{NAMES[vendor]}</span>{mine}' if mine else ""


def _span(node: Node, depth: int) -> str:
    span = node.span
    chips = "".join(_vendor(vendor) for vendor in node.vendors)
    millis = (span["end_time_unix_nano"] - span["start_time_unix_nano"]) / 1_000_000
    twig = '<span class="twig">└</span>' if depth else ""
    model = span["attributes"].get("gen_ai.request.model", "")
    return (
        f'<div class="span" style="--depth:{min(depth, MAX_DEPTH)}">{twig}<b>{_text(span["name"])}</b>'
        f'<div class="meta"><span>{_text(span["operation"] or span["kind"])} {_text(model)}</span>'
        f"<span>{millis:,.1f} ms</span><code>{_text(span['span_id'])}</code>"
        f'<span class="chips">{chips}</span></div></div>'
    )


# --- feedback ------------------------------------------------------------------------------------


def _feedback(entry: FeedbackState) -> str:
    times = f' <span class="times">{TIMES}{entry["times"]}</span>' if entry["times"] > 1 else ""
    who = f' <span class="who">by {_text(entry["user"])}</span>' if entry["user"] else ""
    flags = "".join(_flag(flag) for flag in entry["flags"])
    gone = " gone" if entry["removed"] else ""
    return (
        f'<div class="feedback{gone}" title="{_text(entry["id"] or "")}">{_text(entry["name"])} '
        f'<span class="value">{_text(entry["value"])}</span>{times}{who} {flags}</div>'
    )


def _flag(flag: str) -> str:
    return f'<span class="flag" title="{escape(MEANINGS[flag])}">{escape(flag)}</span>'


def _vendor(vendor: str) -> str:
    return f'<span class="vendor {vendor}">{escape(NAMES[vendor])}</span>'


def _has_place(entry: FeedbackState, placed: set[tuple[str, str]]) -> bool:
    """Say whether a feedback is drawn in a trace or among the orphans already."""
    trace_id, span_id = entry["target"]["trace_id"], entry["target"]["span_id"]
    if not entry["joined"]:
        return is_orphan(entry)
    return trace_id is not None and (span_id is None or (trace_id, span_id) in placed)


def _elsewhere(entries: Sequence[FeedbackState]) -> str:
    lines = [f"{_vendor(entry['vendor'])}<div>{_feedback(entry)}</div>" for entry in entries]
    return f'<section class="card">{_list("On a conversation, or taken back", lines)}</section>' if lines else ""


def _effective(state: State) -> str:
    """Write what a person would see at each vendor, as JSON behind a fold."""
    text = json.dumps(state["effective"], indent=2, ensure_ascii=False).encode("utf-8", "replace").decode()
    summary = "<summary>What each vendor shows at the end</summary>"
    return f'<details class="card">{summary}<pre>{escape(text)}</pre></details>'

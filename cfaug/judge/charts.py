"""Inline SVG and PNG pieces of the report: bars over seeds, group matrices, the graph. Plain strings, no external file.

Colours of text and lines come from the page's CSS variables, so the drawings follow its light or dark style; the colour
of a matrix cell is fixed, because it is the datum. Not promised: a pretty layout of a graph with dozens of nodes.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

from cfaug.judge.tables import MethodSummary

# low, middle, high accuracy: told apart by lightness as well as by hue
SCALE = ((122, 31, 43), (233, 180, 84), (38, 132, 118))


def png_uri(image: npt.NDArray[np.uint8]) -> str:
    """A data URI of a uint8 image (H, W, 1 or 3)."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _canvas(width: float, height: float, label: str, grow: float = 1.0) -> str:
    """The opening tag: never wider than ``grow`` times its natural size, so that text keeps its size."""
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{grow * width:.0f}" role="img" '
        f'aria-label="{escape(label)}">'
    )


def scale_colour(value: float) -> tuple[str, str]:
    """(fill, text colour) of an accuracy in [0, 1]."""
    low, high, t = (SCALE[0], SCALE[1], value * 2) if value < 0.5 else (SCALE[1], SCALE[2], value * 2 - 1)
    red, green, blue = (round(a + (b - a) * t) for a, b in zip(low, high))
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 140
    return f"#{red:02x}{green:02x}{blue:02x}", "#ffffff" if dark else "#1b1b1b"


def method_bars(summaries: Sequence[MethodSummary]) -> str:
    """Horizontal bars: mean worst-group accuracy, a dot a seed, a tick at the average accuracy."""
    label, width, row, top = 190, 560, 34, 26
    height = top + row * len(summaries) + 8
    parts = [_canvas(label + width + 70, height, "worst-group accuracy by method", grow=1.25)]
    for tick in range(0, 101, 20):
        x = label + width * tick / 100
        parts.append(f'<line x1="{x}" x2="{x}" y1="{top - 6}" y2="{height - 6}" class="grid"/>')
        parts.append(f'<text x="{x}" y="{top - 11}" class="axis" text-anchor="middle">{tick} %</text>')
    for number, item in enumerate(summaries):
        y = top + row * number + 6
        kind = "ours" if item.method.startswith("cfaug") else "oracle" if item.method == "oracle" else "other"
        length = max(1.5, width * item.worst[0])
        parts.append(
            f'<text x="{label - 12}" y="{y + 15}" class="name {kind}" text-anchor="end">{escape(item.method)}</text>'
        )
        parts.append(f'<rect x="{label}" y="{y}" width="{length:.1f}" height="20" rx="2" class="bar {kind}"/>')
        x = label + width * item.average[0]
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 2}" y2="{y + 22}" class="average">'
            f"<title>average {100 * item.average[0]:.1f} %</title></line>"
        )
        for value in item.worst_by_seed:
            parts.append(f'<circle cx="{label + width * value:.1f}" cy="{y + 10}" r="4" class="seed"/>')
        at = label + width * max(item.worst[0], *item.worst_by_seed) + 10
        parts.append(f'<text x="{at:.1f}" y="{y + 15}" class="value halo">{100 * item.worst[0]:.1f} %</text>')
    return "".join([*parts, "</svg>"])


def group_matrix(
    cells: Mapping[tuple[str, str], Mapping[str, Any]],
    targets: Sequence[str],
    levels: Sequence[str],
    worst: tuple[str, str],
) -> str:
    """Rows are target classes, columns levels of one spurious attribute; ``worst`` is outlined, empty groups blank."""
    side, left = 34, 8 * max(len(value) for value in targets) + 14
    head = 7 * max(len(value) for value in levels) + 8
    height, slant = head + side * len(targets) + 6, head * 0.55
    parts = [_canvas(left + side * len(levels) + slant + 8, height, "group accuracies")]
    for j, level in enumerate(levels):
        x = left + side * j + side / 2
        parts.append(f'<text class="axis" transform="translate({x:.0f} {head - 6}) rotate(-58)">{escape(level)}</text>')
    for i, target in enumerate(targets):
        y = head + side * i
        parts.append(
            f'<text x="{left - 8}" y="{y + side / 2 + 4}" class="axis" text-anchor="end">{escape(target)}</text>'
        )
        for j, level in enumerate(levels):
            cell, x = cells.get((target, level)), left + side * j
            if cell is None or not cell["n"]:
                parts.append(f'<rect x="{x + 1}" y="{y + 1}" width="{side - 2}" height="{side - 2}" class="empty"/>')
                continue
            fill, text = scale_colour(cell["accuracy"])
            outline = ' class="worst"' if (target, level) == worst else ""
            parts.append(
                f'<rect x="{x + 1}" y="{y + 1}" width="{side - 2}" height="{side - 2}" fill="{fill}"{outline}>'
                f"<title>{escape(target)}, {escape(level)}: {100 * cell['accuracy']:.1f} % of n {cell['n']:.0f}</title>"
                "</rect>"
                f'<text x="{x + side / 2}" y="{y + side / 2 + 4}" class="cell" style="fill:{text}">'
                f"{100 * cell['accuracy']:.0f}</text>"
            )
    return "".join([*parts, "</svg>"])


def _columns(nodes: Sequence[str], edges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Longest path from a root, so that every arrow points to the right."""
    depth = dict.fromkeys(nodes, 0)
    for _ in nodes:
        for a, b in edges:
            depth[b] = max(depth[b], depth[a] + 1)
    if "image" in depth:
        depth["image"] = max(depth.values())
    return depth


def _clear(
    start: tuple[float, float],
    end: tuple[float, float],
    boxes: Sequence[tuple[float, float]],
    box: float,
    tall: float,
    beside: bool = False,
) -> tuple[float, npt.NDArray[np.float64]]:
    """How far a curve has to bend up (negative) or down to pass none of ``boxes``, and its heights (41,).

    As little as possible; ``beside`` another arrow between the two, which bends up: down, and visibly. An arrow behind a box reads as one that ends there and one that starts: another graph.
    """
    t = np.linspace(0, 1, 41)
    (x1, y1), (x2, y2) = start, end
    x = (1 - t) ** 3 * x1 + 3 * (1 - t) * t * (x1 + x2) / 2 + t**3 * x2
    straight = (1 - t) ** 2 * (1 + 2 * t) * y1 + t**2 * (3 - 2 * t) * y2
    way, least = (1, 30) if beside else (-1, 0)
    for lift in (side * k for k in range(least, 601, 15) for side in (way, -way)):
        y = straight + 3 * (1 - t) * t * lift
        hits = [(x > left - 6) & (x < left + box + 6) & (np.abs(y - at) < tall / 2 + 6) for left, at in boxes]
        if not np.any(hits):
            return float(lift), y
    return 0.0, straight


def graph_drawing(
    nodes: Sequence[str],
    edges: Sequence[tuple[str, str]],
    bidirected: Sequence[tuple[str, str]] = (),
    target: str = "",
    spurious: Sequence[str] = (),
    unconfirmed: Collection[tuple[str, str]] = (),
    confidences: Mapping[tuple[str, str], float] | None = None,
    marks: Mapping[tuple[str, str], str] | None = None,
) -> str:
    """The causal graph, left to right; a dashed double arrow is a hidden common cause.

    ``unconfirmed`` edges and pairs are dotted, with a question mark. ``confidences`` in [0, 1] make their edge wider and
    stand beside it. ``marks`` are the ends of edges that are no plain arrows: "--" none, "o->" and "o-o" with circles.
    """
    confidences, marks = confidences or {}, marks or {}
    depth = _columns(nodes, edges)
    box, tall = max(90, 9 * max(len(node) for node in nodes) + 28), 38
    by_column: dict[int, list[str]] = {}
    for node in nodes:
        by_column.setdefault(depth[node], []).append(node)
    rows = max(len(column) for column in by_column.values())
    height = max(110, 84 * rows + 20)
    place: dict[str, tuple[float, float]] = {}
    for column, members in by_column.items():
        for i, node in enumerate(members):
            place[node] = (80 + column * (box + 110), height * (i + 1) / (len(members) + 1))
    width = 80 + max(depth.values()) * (box + 110) + box + 20
    arrows, top, bottom = [], 0.0, float(height)

    def look(pair: tuple[str, str]) -> str:
        """Width by confidence and dots for doubt, laid over the class of the edge."""
        style = f"stroke-width:{1 + 2.4 * confidences[pair]:.2f};" if pair in confidences else ""
        style += "stroke-dasharray:1 6;stroke-linecap:round;" if pair in unconfirmed else ""
        return f' style="{style}"' if style else ""

    def beside(pair: tuple[str, str], x: float, y: float) -> str:
        words = [f"{100 * confidences[pair]:.0f} %"] if pair in confidences else []
        words += ["?"] if pair in unconfirmed else []
        if not words:
            return ""
        return f'<text x="{x:.0f}" y="{y - 5:.0f}" class="axis halo" text-anchor="middle">{" ".join(words)}</text>'

    labels: list[str] = []
    for hidden, (a, b) in [(False, e) for e in edges] + [(True, e) for e in bidirected]:
        pair, style = (a, b), look((a, b))
        if hidden and depth[a] > depth[b]:
            a, b = b, a
        (x1, y1), (x2, y2) = place[a], place[b]
        if depth[a] == depth[b]:  # round the left: only a hidden cause joins two of one column
            left = x1 - 34 - 12 * abs(by_column[depth[a]].index(a) - len(by_column[depth[b]]))
            controls, label = f"{left} {y1} {left} {y2}", ((x1 + 6 * left + x2) / 8, (y1 + y2) / 2)
        else:
            x1 += box
            bend, others = (x2 - x1) / 2, [at for node, at in place.items() if node not in (a, b)]
            lift, heights = _clear((x1, y1), (x2, y2), others, box, tall, hidden and (a, b) in edges)
            top, bottom = min(top, float(heights.min()) - 18), max(bottom, float(heights.max()) + 6)
            controls = f"{x1 + bend} {y1 + lift} {x2 - bend} {y2 + lift}"
            label = ((x1 + x2) / 2, (y1 + y2) / 2 + 0.75 * lift)
        kind = "<->" if hidden else marks.get(pair, "->")
        start, end = ({"<": "tip", "o": "ring"}.get(kind[0]), {">": "tip", "o": "ring"}.get(kind[-1]))
        ends = f' marker-start="url(#{start})"' * bool(start) + f' marker-end="url(#{end})"' * bool(end)
        arrows.append(f'<path d="M{x1} {y1} C{controls} {x2} {y2}" class="edge{" hidden" * hidden}"{style}{ends}/>')
        labels.append(beside(pair, *label))
    parts = [
        _canvas(width, bottom - top, "causal graph"),
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerUnits="userSpaceOnUse" markerWidth="13" markerHeight="13" '
        'orient="auto-start-reverse"><path d="M0 0 L10 5 L0 10 z" class="tip"/></marker>'
        '<marker id="ring" viewBox="0 0 10 10" refX="5" refY="5" markerUnits="userSpaceOnUse" markerWidth="13" markerHeight="13">'
        '<circle cx="5" cy="5" r="3.5" style="fill:var(--panel);stroke:context-stroke"/></marker></defs>',
        f'<g transform="translate(0 {-top:.0f})">',
        *arrows,
    ]
    for node, (x, y) in place.items():
        kind = (
            "target" if node == target else "spurious" if node in spurious else "image" if node == "image" else "plain"
        )
        parts.append(f'<rect x="{x}" y="{y - tall / 2}" width="{box}" height="{tall}" rx="6" class="node {kind}"/>')
        parts.append(f'<text x="{x + box / 2}" y="{y + 5}" text-anchor="middle" class="name">{escape(node)}</text>')
    return "".join([*parts, *labels, "</g></svg>"])


def discovery_drawing(found: Mapping[str, Any]) -> str:
    """The attributes of a ``discovery.json`` and the edges proposed between them; the image is left out.

    Raises:
        UsageError: ``found`` is something else.
    """
    from cfaug.causal.discover.discovery import Discovery

    discovery = Discovery.from_json(found)
    graph = discovery.graph()
    marks: dict[tuple[str, str], str] = {}
    shares: dict[tuple[str, str], float] = {}
    doubtful = set()
    for edge in discovery.edges:
        pair = (edge.a, edge.b) if (edge.a, edge.b) in graph.edges else (edge.b, edge.a)
        if edge.kind == "<->":
            pair = (min(pair), max(pair))
        elif pair == (edge.a, edge.b):
            marks[pair] = edge.kind
        else:  # drawn from the other end
            marks[pair] = {"-o": "o-"}.get(edge.kind, edge.kind)
        if edge.presence is not None:
            shares[pair] = edge.presence
        if not edge.required:
            doubtful.add(pair)
    return graph_drawing(
        graph.nodes, graph.edges, graph.bidirected, unconfirmed=doubtful, confidences=shares, marks=marks
    )

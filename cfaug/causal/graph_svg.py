"""A drawing of a graph for notebooks: causes left of effects, hidden common causes dashed, unconfirmed arrows with a question mark."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from html import escape

Point = tuple[float, float]
HIGH, COLUMN, ROW, EDGE = 30, 70, 62, 24  # px: a node's height, between columns, between rows, around the drawing
LETTER = 8  # px of a letter, about


def graph_svg(
    depth: Mapping[str, int],
    edges: Sequence[tuple[str, str]],
    bidirected: Sequence[tuple[str, str]],
    unconfirmed: Collection[tuple[str, str, str]] = (),
) -> str:
    """An ``<svg>`` of nodes with their ``depth`` (columns, from 0), arrows and ``<->``; names are escaped.

    ``unconfirmed``: (a, "->" or "<->", b).
    """
    wide = 24 + LETTER * max(map(len, depth))
    columns: dict[int, list[str]] = {}
    for name in depth:
        columns.setdefault(depth[name], []).append(name)
    most = max(map(len, columns.values()))
    centre: dict[str, Point] = {}
    for column, names in columns.items():
        for i, name in enumerate(names):
            y = EDGE + HIGH / 2 + ROW * (i + (most - len(names)) / 2)
            centre[name] = (2 * EDGE + wide / 2 + column * (wide + COLUMN), y)
    width, height = 3 * EDGE + wide + max(columns) * (wide + COLUMN), 3 * EDGE + HIGH + ROW * (most - 1)
    lines = []
    for a, b in edges:
        far = abs(depth[a] - depth[b]) > 1  # bowed outwards, so that it passes the nodes between
        outwards = ROW * (1 if centre[a][1] + centre[b][1] > height else -1) * far
        lines.append(_curve(centre[a], centre[b], wide, outwards, "", (a, "->", b) in unconfirmed))
    for a, b in bidirected:
        lines.append(_curve(centre[a], centre[b], wide, ROW * 0.6, "both", (a, "<->", b) in unconfirmed))
    boxes = [
        f'<rect x="{x - wide / 2:g}" y="{y - HIGH / 2:g}" width="{wide}" height="{HIGH}" rx="6" fill="#fff" stroke="#333"/>'
        f'<text x="{x:g}" y="{y + 5:g}" text-anchor="middle" fill="#111">{escape(name)}</text>'
        for name, (x, y) in centre.items()
    ]
    said = [f"{a} -> {b}" for a, b in edges] + [f"{a} <-> {b}, a hidden common cause" for a, b in bidirected]
    return (
        f'<svg role="img" width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}" '
        f'style="background:#fff;font:14px sans-serif"><title>{escape("; ".join(said))}</title>'
        '<defs><marker id="cfaug-arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto-start-reverse">'
        f'<path d="M0 0L8 4L0 8z" fill="#333"/></marker></defs>{"".join(lines)}{"".join(boxes)}</svg>'
    )


def _curve(start: Point, end: Point, wide: float, bow: float, dashed: str, doubtful: bool) -> str:
    """From border to border; ``bow``: how far, in px, its middle lies beside the straight line."""
    (x, y), (u, v) = start, end
    length = max(((u - x) ** 2 + (v - y) ** 2) ** 0.5, 1.0)
    middle = ((x + u) / 2 - bow * abs(v - y) / length, (y + v) / 2 + bow * abs(u - x) / length)
    (x, y), (u, v) = _border(start, middle, wide), _border(end, middle, wide)
    style = 'stroke-dasharray="5 4" marker-start="url(#cfaug-arrow)"' if dashed else ""
    mark = f'<text x="{middle[0]:g}" y="{middle[1] - 4:g}" fill="#b00" font-weight="bold">?</text>' if doubtful else ""
    path = f"M{x:g} {y:g}Q{middle[0]:g} {middle[1]:g} {u:g} {v:g}"
    return f'<path d="{path}" fill="none" stroke="#333" {style} marker-end="url(#cfaug-arrow)"/>{mark}'


def _border(centre: Point, towards: Point, wide: float) -> Point:
    """Where the line from a node's centre leaves its box."""
    dx, dy = towards[0] - centre[0], towards[1] - centre[1]
    share = min(wide / 2 / abs(dx) if dx else 1e9, HIGH / 2 / abs(dy) if dy else 1e9, 1.0)
    return centre[0] + share * dx, centre[1] + share * dy

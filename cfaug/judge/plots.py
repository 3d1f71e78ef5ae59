"""Charts of the report: drawn by matplotlib as SVG, which takes its colours from the page, so that dark and printed pages fit.

Values are drawn as they are; the words of a chart's title and description come from its own data, for readers who do not see it. Not
promised: a picture that says more than the table beside it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cfaug.judge.charts import Chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, LINE, OURS, OTHER, ORACLE = "#010203", "#040506", "#070809", "#0a0b0c", "#0d0e0f"
_OF_PAGE = {
    INK: "currentColor",
    LINE: "var(--line)",
    OURS: "var(--ours)",
    OTHER: "var(--other)",
    ORACLE: "var(--oracle)",
}
"""Colour that matplotlib is given -> what stands in its place in the page."""
MOST_SERIES = 3
_INCH = 96  # CSS pixels


def dots(chart: Chart, title: str, unit: str = "%") -> Any:
    """Values in [0, 1], a line each, one mark per value and the range behind them; ``unit``: "%" or "" for plain fractions."""
    count = len(chart.series)
    with _page():
        figure, axes = _axes(760, 60 + (18 + 12 * min(count, 3)) * len(chart.lines))
        for k, (name, colour) in enumerate(zip(chart.series, (OTHER, OURS, ORACLE))):
            offset = (k - (count - 1) / 2) * 0.3
            fill = "none" if k == 0 and count > 1 else colour
            for i, line in enumerate(chart.lines):
                if values := line.values[k]:
                    axes.plot([min(values), max(values)], [i + offset] * 2, color=colour, lw=2, zorder=2)
                    axes.plot(values, [i + offset] * len(values), "o", color=colour, ms=6, zorder=3, mfc=fill)
            axes.plot([], [], "o", color=colour, ms=6, label=name, mfc=fill)
        notes = [f"{line.name}\n{line.note}" if line.note else line.name for line in chart.lines]
        axes.set_yticks(range(len(chart.lines)), notes)
        axes.set_ylim(len(chart.lines) - 0.4, -0.6)
        axes.set_xlim(-0.02, 1.02)
        ticks = [0, 0.25, 0.5, 0.75, 1]
        axes.set_xticks(ticks, [f"{100 * tick:.0f} %" if unit == "%" else f"{tick:g}" for tick in ticks])
        if count > 1:
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=count, frameon=False)
        means = [
            (line, [f"{name} {line.mean(k):.2f}" for k, name in enumerate(chart.series) if line.values[k]])
            for line in chart.lines
        ]
        return _svg(figure, title, "; ".join(f"{line.name}: {', '.join(values)}" for line, values in means))


def scatter(points: Sequence[Mapping[str, Any]], title: str, across: str) -> Any:
    """``points``: ``model``, ``change`` (fraction, across) and ``worst`` (fraction, upwards), coloured by whose classifier it is."""
    with _page():
        figure, axes = _axes(560, 330)
        kinds = (("cfaug", OURS), ("oracle", ORACLE), ("", OTHER))
        of = [next(kind for kind in kinds if str(point["model"]).startswith(kind[0])) for point in points]
        for kind in (kind for kind in kinds if kind in of):
            own = [point for point, one in zip(points, of) if one == kind]
            axes.plot(
                [100 * point["change"] for point in own], [100 * point["worst"] for point in own], "o", color=kind[1], ms=7,
                label=kind[0] or "others",
            )  # fmt: skip
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)
        axes.set_xlabel(across)
        axes.set_ylabel("worst group, %")
        axes.set_ylim(-3, 103)
        said = "; ".join(
            f"{p['model']}: {100 * p['change']:.1f} points, worst group {100 * p['worst']:.1f} %" for p in points
        )
        return _svg(figure, title, said)


def _page() -> Any:
    import matplotlib

    return matplotlib.rc_context(
        {
            "svg.fonttype": "none", "svg.hashsalt": "cfaug", "font.family": "sans-serif", "font.size": 9.5, "text.color": INK,
            "axes.edgecolor": LINE, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "grid.color": LINE,
            "axes.spines.top": False, "axes.spines.right": False, "text.parse_math": False,
        }
    )  # fmt: skip


def _axes(width: int, height: int) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure((width / _INCH, height / _INCH), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    axes.patch.set_alpha(0)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    return figure, axes


def _svg(figure: Figure, title: str, said: str) -> Any:
    """The figure as a part of a page: no header, no names that another chart has too, colours of the page, a title and a description."""
    from markupsafe import Markup, escape

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    text = re.sub(r"<style.*?</style>|<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' id="[^"]*_\d+"', "", text)
    text = re.sub(r"font-family: [^;]*;", "font-family: inherit;", text)
    for colour, of_page in _OF_PAGE.items():
        text = text.replace(colour, of_page)
    head, body = text.split(">", 1)
    head = re.sub(r' xmlns(:xlink)?="[^"]*"', "", head)
    head = re.sub(r'(width|height)="([\d.]+)pt"', lambda m: f'{m[1]}="{float(m[2]) * _INCH / 72:.0f}"', head)
    body = body.replace("</svg>", "</g></svg>")
    said = f"<title>{escape(title)}</title><desc>{escape(said)}</desc>"
    return Markup(f'{head} role="img" aria-label="{escape(title)}">{said}<g aria-hidden="true">{body}')

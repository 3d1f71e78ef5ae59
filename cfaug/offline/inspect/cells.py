"""A plan as a table for notebooks: how many rows set which values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

NULL = "null intervention"


def value_text(value: object) -> str:
    """A value of an attribute, short."""
    return "?" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def cells_table(title: str, levels: Mapping[str, Sequence[object]], codes: Any, most: int = 60) -> str:
    """A plan as an HTML table: one row for each combination of values that is set (``codes`` (A, N); -1: not), with its rows."""
    cells, counts = np.unique(codes, axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    head = "".join(f"<th>{escape(name)}</th>" for name in levels)
    rows = []
    for i in order[:most].tolist():
        told = [
            "<td></td>"
            if code < 0
            else f"<td>{escape('hidden' if values[code] is None else value_text(values[code]))}</td>"
            for values, code in zip(levels.values(), cells[:, i].tolist())
        ]
        null = bool((cells[:, i] < 0).all())
        named = f'<td colspan="{max(1, len(levels))}">{NULL}</td>' if null else "".join(told)
        rows.append(f"<tr>{named}<td>{counts[i]}</td><td>{100 * counts[i] / codes.shape[1]:.1f} %</td></tr>")
    more = f"<p>and {len(order) - most} more cells</p>" if len(order) > most else ""
    return f"<table><caption>{escape(title)}</caption><thead><tr>{head or '<th></th>'}<th>rows</th><th>share</th></tr></thead><tbody>{''.join(rows)}</tbody></table>{more}"

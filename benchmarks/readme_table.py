"""The README's table of results, from the committed rows.

    python benchmarks/readme_table.py        prints it; a test compares it with the README

Which command remakes a row stands in the row, or in benchmarks/README.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rows import mean_of_groups

from cfaug.judge.accuracy import read_results
from cfaug.judge.tables import summarise

RESULTS = Path(__file__).resolve().parent / "results"
METHODS = {
    "erm": "erm (plain training)", "group_resampling": "group_resampling", "group_dro": "group_dro", "dfr": "dfr",
    "null_control": "null_control (balance alone)", "counterfactuals_only": "counterfactuals_only", "cfaug": "**cfaug**",
    "cfaug+dfr": "**cfaug+dfr**", "oracle": "oracle",
}  # fmt: skip
Figures = dict[str, tuple[float, float]]


def rows(name: str, **wanted: Any) -> list[Mapping[str, Any]]:
    """The rows of a results file that have these values."""
    lines = (json.loads(line) for line in (RESULTS / name).read_text(encoding="utf-8").splitlines())
    return [row for row in lines if all(row.get(key) == value for key, value in wanted.items())]


def summed(found: Sequence[Mapping[str, Any]]) -> Figures:
    """Method -> (worst group, mean of groups) of rows that have means already."""
    return {row["method"]: (row["worst_group"][0], row["mean_of_groups"]) for row in found if "method" in row}


def of_seeds(name: str) -> Figures:
    """Method -> (worst group, average) of a run's own rows, means over seeds."""
    return {item.method: (item.worst[0], item.average[0]) for item in summarise(read_results(RESULTS / name))}


def columns() -> dict[str, Figures]:
    """Heading -> figures."""
    own = read_results(RESULTS / "garments.jsonl")
    garments = {item.method: (item.worst[0], mean_of_groups(own, item.method)) for item in summarise(own)}
    return {
        "garments on scenes": {**summed(rows("gate.jsonl", what="compare", masks="given", gate="on")), **garments},
        "x-rays with a marker": {
            **summed(rows("photos.jsonl", data="xray_marker")),
            **summed(rows("layers.jsonl", what="xray_marker")),
        },
        "demo's digits, 8 px": of_seeds("demo.jsonl"),
        "Double-colored MNIST": of_seeds("double_colored_mnist.jsonl"),
    }


def table() -> list[str]:
    """The lines of the table, in Markdown."""
    found = columns()
    lines = [f"| method | {' | '.join(found)} |", f"|{'---|' * (len(found) + 1)}"]
    for method, name in METHODS.items():
        cells = [
            f"{100 * own[method][0]:.1f} / {100 * own[method][1]:.1f}" if method in own else ""
            for own in found.values()
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |".replace("  |", " |"))
    closed = [100 * (own["cfaug"][0] - own["erm"][0]) / (own["oracle"][0] - own["erm"][0]) for own in found.values()]
    return [*lines, f"| *gap closed by cfaug* | {' | '.join(f'{value:.0f}' for value in closed)} |"]


if __name__ == "__main__":
    print("\n".join(table()))

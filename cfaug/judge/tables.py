"""One line per method from the results rows: means and ranges over seeds, the gap closed, and the table for the terminal.

    gap closed = (WGA_method - WGA_erm) / (WGA_oracle - WGA_erm)

of mean worst-group accuracies over seeds. Not promised: that a mean over three seeds is known to a point; the range
beside it is the least and greatest seed, not an interval.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cfaug.errors import listed

CONTROLS = ("null_control", "counterfactuals_only")


@dataclass(frozen=True)
class MethodSummary:
    """One method over its seeds; each triple is (mean, least, greatest), fractions."""

    method: str
    seeds: tuple[int, ...]
    average: tuple[float, float, float]
    adjusted: tuple[float, float, float]
    worst: tuple[float, float, float]
    worst_by_seed: tuple[float, ...]
    worst_group: str
    worst_n: int
    worst_ci95: tuple[float, float]
    gap_closed: float | None
    train_seconds: float


def gap_closed(method: float, erm: float, oracle: float) -> float | None:
    """The share of the worst-group gap between ERM and the oracle that is closed; None where there is no gap."""
    return None if oracle - erm <= 0 else (method - erm) / (oracle - erm)


def _place(method: str) -> int:
    """The order of the table: plain training first, then the baselines, the controls, ours, and the oracle last."""
    if method in ("erm", "oracle"):
        return 0 if method == "erm" else 4
    return 2 if method in CONTROLS else 3 if method.startswith("cfaug") else 1


def _triple(values: list[float]) -> tuple[float, float, float]:
    return float(np.mean(values)), float(np.min(values)), float(np.max(values))


def summarise(rows: Iterable[Mapping[str, Any]], split: str = "test") -> list[MethodSummary]:
    """One MethodSummary per method, ERM first and the oracle last; the worst group named is that of the worst seed."""
    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["split"] == split:
            by_method.setdefault(str(row["method"]), []).append(row)
    means = {name: float(np.mean([row["worst_group_accuracy"] for row in found])) for name, found in by_method.items()}
    summaries = []
    for name in sorted(by_method, key=_place):
        found = sorted(by_method[name], key=lambda row: int(row["seed"]))
        worst = min(found, key=lambda row: float(row["worst_group_accuracy"]))
        known = "erm" in means and "oracle" in means and name not in ("erm", "oracle")
        low, high = worst["worst_group_ci95"]
        summaries.append(
            MethodSummary(
                method=name,
                seeds=tuple(int(row["seed"]) for row in found),
                average=_triple([row["average_accuracy"] for row in found]),
                adjusted=_triple([row["adjusted_average_accuracy"] for row in found]),
                worst=_triple([row["worst_group_accuracy"] for row in found]),
                worst_by_seed=tuple(float(row["worst_group_accuracy"]) for row in found),
                worst_group=str(worst["worst_group"]),
                worst_n=int(worst["groups"][worst["worst_group"]]["n"]),
                worst_ci95=(float(low), float(high)),
                gap_closed=gap_closed(means[name], means["erm"], means["oracle"]) if known else None,
                train_seconds=float(np.mean([row["train_seconds"] for row in found])),
            )
        )
    return summaries


def beside(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], split: str = "test"
) -> dict[str, list[MethodSummary | None]]:
    """Method -> its summary in each run, in the order of ``runs``; None where the run has no row of it."""
    found = [{item.method: item for item in summarise(rows, split)} for rows in runs.values()]
    names = sorted(dict.fromkeys(name for run in found for name in run), key=_place)
    return {name: [run.get(name) for run in found] for name in names}


def attribute_gaps(
    rows: Iterable[Mapping[str, Any]], spurious: Sequence[str], split: str = "test"
) -> dict[str, dict[str, float]]:
    """method -> {spurious attribute: mean over seeds of the worst accuracy among that attribute's groups}.

    Closing one shortcut can open a different one (Li et al. 2023, A Whac-A-Mole Dilemma), so each is shown on its own.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row["split"] != split:
            continue
        least: dict[str, float] = {}
        for name, group in row["groups"].items():
            attribute = next((a for a in spurious if f",{a}=" in name), None)
            if group["n"] and attribute is not None:
                least[attribute] = min(least.get(attribute, 1.0), group["accuracy"])
        for attribute, value in least.items():
            found.setdefault(str(row["method"]), {}).setdefault(attribute, []).append(value)
    ordered = sorted(found, key=_place)
    return {method: {a: float(np.mean(values)) for a, values in found[method].items()} for method in ordered}


def empty_groups(rows: Iterable[Mapping[str, Any]], split: str = "test") -> list[str]:
    """The groups that have no image in the split, from all rows of that split."""
    return list(
        dict.fromkeys(n for row in rows if row["split"] == split for n, g in row["groups"].items() if not g["n"])
    )


def format_table(rows: Iterable[Mapping[str, Any]], split: str = "test") -> str:
    """The table for the terminal, percentages; ERM first, the oracle last."""
    rows = list(rows)
    summaries = summarise(rows, split)
    if not summaries:
        return "no results yet"
    width = max(len("method"), *(len(item.method) for item in summaries))
    head = f"{'method':<{width}}  {'worst group':>11}  {'(seeds)':>13}  {'average':>7}  {'adjusted':>8}"
    lines = [f"{head}  {'gap closed':>10}  worst group of the worst seed (n, 95 %)"]
    for item in summaries:
        spread = f"{100 * item.worst[1]:.1f} - {100 * item.worst[2]:.1f}"
        gap = "" if item.gap_closed is None else f"{100 * item.gap_closed:.0f} %"
        low, high = item.worst_ci95
        lines.append(
            f"{item.method:<{width}}  {100 * item.worst[0]:>9.1f} %  {spread:>13}  {100 * item.average[0]:>5.1f} %"
            f"  {100 * item.adjusted[0]:>6.1f} %  {gap:>10}  {item.worst_group} (n {item.worst_n},"
            f" {100 * low:.0f} to {100 * high:.0f})"
        )
    if empty := empty_groups(rows, split):
        lines.append(
            f"{len(empty)} of {len(rows[0]['groups'])} groups have no {split} image and take no part: {listed(empty)}"
        )
    return "\n".join(lines)

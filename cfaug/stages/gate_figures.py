"""What the gate of a run did: images that are in the shards, of those that the plan asked for, in every cell of target and attribute."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd

from cfaug.errors import listed
from cfaug.judge.charts import Chart, Line
from cfaug.judge.sentences import percent
from cfaug.offline import PlanRow, ShardReader
from cfaug.stages.checked_inputs import Inputs

MOST_READ = 1_000_000
"""Rows of a plan, at most, whose acceptance is counted."""
MOST_SHOWN = 24
"""Groups in the chart, the least kept ones."""
LEAST_P = 0.01
"""Below this probability of chance, the accepted images are said to depend on target and attribute."""


def acceptance(inputs: Inputs, plan: Iterable[PlanRow], shards: ShardReader) -> dict[str, Any]:
    """Rows asked and kept, in all and per cell; for each attribute whether the gate made target and attribute dependent."""
    kept = {entry.key for entry in shards.index}
    rows = [row for row in islice(plan, MOST_READ) if not row.do.is_null]
    target = inputs.train.table[inputs.target]
    table = pd.DataFrame([dict(row.do.assignments) for row in rows])
    table[inputs.target] = target.loc[[row.source_key for row in rows]].to_numpy()
    here = np.array([row.key in kept for row in rows])
    again = sum(
        bool(shards.record(i).get("quality", {}).get("attempt"))
        for i in np.flatnonzero(~shards.nulls)[:MOST_READ].tolist()
    )
    found: dict[str, Any] = {
        "asked": len(rows), "kept": int(here.sum()), "drawn_again": again, "cells": {}, "dependence": {},
    }  # fmt: skip
    for name in table.columns.drop(inputs.target):
        if name not in inputs.schema.spurious:
            continue
        whole = inputs.schema.canonical(table.reindex(columns=list(inputs.schema.names)))
        levels = pd.Series(inputs.grouper.levels(whole, name, missing=True).to_numpy(), name=name)
        asked = pd.crosstab(table[inputs.target], levels)
        accepted = pd.crosstab(table[inputs.target][here], levels[here]).reindex_like(asked).fillna(0).astype(int)
        for value, level in asked.stack().index:
            cell = f"{inputs.target}={value}, {name}={level}"
            found["cells"][cell] = [int(accepted.loc[value, level]), int(asked.loc[value, level])]
        found["dependence"][name] = _chance(asked.to_numpy(), accepted.to_numpy())
    return found


def _chance(asked: Any, accepted: Any) -> float | None:
    """Probability of such a dependence among the accepted by chance; None where it was asked for, or there are too few."""
    from scipy.stats import chi2_contingency

    if min(accepted.shape) < 2 or (accepted.sum(0) == 0).any() or (accepted.sum(1) == 0).any():
        return None
    if chi2_contingency(asked).pvalue < 0.5:
        return None
    return float(chi2_contingency(accepted).pvalue)


def gate_section(
    figures: Mapping[str, Any], gate: Mapping[str, Any] | None, reasons: Mapping[str, int]
) -> dict[str, Any] | None:
    """``notes``, and ``charts`` (heading, what a line is, chart) by group and by reason; None where no gate judged anything.

    ``reasons``: criterion -> rows that it rejected for good, by the generation's log.
    """
    if not (notes := acceptance_notes(figures, gate)):
        return None
    counted = figures["gate"]["acceptance"]
    cells = [Line(cell, f"of {asked}", [[kept / asked]]) for cell, (kept, asked) in counted["cells"].items() if asked]
    cells.sort(key=lambda line: line.mean(0))
    charts = []
    if cells and cells[0].mean(0) < 1:  # that all were kept is said
        kept = Chart(["kept"], cells[:MOST_SHOWN], max(0, len(cells) - MOST_SHOWN))
        charts.append(("Kept, by target and the value that was asked for", "group", kept))
    if reasons:
        lines = [Line(name, f"{count} rows", [[min(1.0, count / counted["asked"])]]) for name, count in reasons.items()]
        rejected = Chart(["rejected, of all that was asked for"], lines)
        charts.append(("Rejected for good, by reason; a row may have several", "criterion", rejected))
    return {"notes": notes, "charts": charts}


def acceptance_notes(figures: Mapping[str, Any], gate: Mapping[str, Any] | None) -> list[str]:
    """The figures in words, with a warning where the gate itself makes target and attribute dependent; ``gate``: its description."""
    found = figures.get("gate")
    if not found or not found["acceptance"]["asked"]:
        return []
    counted = found["acceptance"]
    drawn = counted.get("drawn_again")
    again = f", {drawn} of them after it had rejected their first drawing" if drawn else ""
    notes = [
        f"The gate kept {counted['kept']} of {counted['asked']} counterfactuals ({percent(counted['kept'] / counted['asked'])})"
        f"{again}."
    ]
    rates = {cell: kept / asked for cell, (kept, asked) in counted["cells"].items() if asked}
    if rates:
        low, high = min(rates, key=lambda cell: rates[cell]), max(rates, key=lambda cell: rates[cell])
        if rates[low] < rates[high]:
            notes[0] += f" The least in {low} ({percent(rates[low])}), the most in {high} ({percent(rates[high])})."
    dependent = [name for name, p in counted["dependence"].items() if p is not None and p < LEAST_P]
    if dependent:
        notes.append(
            f"WARNING: the gate itself makes {listed(dependent)} depend on the target among the accepted images. Methods that show every group "
            "equally often (cfaug among them) undo that; counterfactuals_only does not."
        )
    cells = {
        cell: right for by_cell in (gate or {}).get("accuracy", {}).values() for cell, (right, _) in by_cell.items()
    }
    if cells:
        low = min(cells, key=lambda cell: cells[cell])
        notes.append(
            f"The gate's readers, cross-fitted, read {percent(float(np.mean(list(cells.values()))))} of real images right on average over cells, and "
            f"{percent(cells[low])} in their worst ({low})."
        )
    if silent := (gate or {}).get("silent"):
        notes.append(f"The gate does not judge everything: {'; '.join(silent)}.")
    if found.get("soundness"):
        told = [f"{fault} {percent(row['found'])}" for fault, row in found["soundness"]["faults"].items() if row["n"]]
        notes.append(
            f"Faults planted on purpose in {found['soundness']['n']} images ({found['soundness']['basis']}) that the gate found: {', '.join(told)}; "
            f"of the images themselves it rejects {percent(found['soundness']['false_rejections'])}."
        )
    return notes

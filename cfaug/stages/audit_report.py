"""The audit in the report: what each classifier uses, its effect beside its worst group, and the pairs that move it most."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cfaug.judge.effects import ALL, read_effects
from cfaug.judge.report import Example
from cfaug.judge.tables import attribute_gaps
from cfaug.offline import ShardReader
from cfaug.stages.audit import PAIRS
from cfaug.stages.checked_inputs import Inputs

_SHOWN = 6  # pairs of a model


def audit_section(
    run: Path, inputs: Inputs, rows: Sequence[Mapping[str, Any]], shards: ShardReader | None
) -> dict[str, Any] | None:
    """``lines`` (one per method or file, and attribute), ``points`` by attribute, and ``grids``; None where nothing was audited.

    A method's seeds are one line: mean, least and greatest change. A point is a classifier of the run: its change and the worst
    accuracy among the attribute's groups, fractions.
    """
    whole = [row for row in read_effects(run) if row["group"] == ALL]
    if not whole:
        return None
    tested = {f"{row['method']}-{row['seed']}": row for row in rows}
    lines: list[dict[str, Any]] = []
    points: dict[str, list[dict[str, Any]]] = {}
    for name in dict.fromkeys(row["attribute"] for row in whole):
        by_method: dict[str, list[Mapping[str, Any]]] = {}
        for row in (row for row in whole if row["attribute"] == name):
            result = tested.get(row["model"])
            by_method.setdefault(row["model"] if result is None else result["method"], []).append(row)
            if result is not None:
                worst = next(iter(attribute_gaps([result], [name]).values()))[name]
                points.setdefault(name, []).append({"model": row["model"], "change": row["change"][0], "worst": worst})
        lines += sorted(
            (_line(name, model, some) for model, some in by_method.items()), key=lambda line: -line["change"]
        )
    ordered = sorted(whole, key=lambda row: -row["change"][0])
    # of the one that uses a shortcut most, and the one that does least
    chosen = dict.fromkeys([ordered[0]["model"], ordered[-1]["model"]])
    grids = {} if shards is None else {model: _pairs(run, model, inputs, shards) for model in chosen}
    return {
        "lines": lines,
        "points": {k: v for k, v in points.items() if len(v) > 2},
        "grids": {f"{k}: the pairs that move it most": v for k, v in grids.items() if v},
    }


def _line(attribute: str, model: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    one = rows[0]
    changes = [row["change"][0] for row in rows]
    low, high = (one["change"][1], one["change"][2]) if len(rows) == 1 else (min(changes), max(changes))
    return {
        "attribute": attribute, "model": model, "seeds": len(rows), "change": float(np.mean(changes)), "low": low, "high": high,
        "claimed": sum(bool(row["claimed"]) for row in rows), "floor": one["floor"],
        **{key: float(np.mean([row[key] for row in rows])) for key in ("flip_rate", "flip_floor", "unfair")},
    }  # fmt: skip


def _pairs(run: Path, model: str, inputs: Inputs, shards: ShardReader) -> list[Example]:
    path = run / PAIRS / f"{model}.json"
    if not path.exists():
        return []
    source = {inputs.train.key(i): i for i in range(len(inputs.train))}
    sample = {entry.key: i for i, entry in enumerate(shards.index)}
    found: list[Example] = []
    for pair in json.loads(path.read_text(encoding="utf-8")):
        if len(found) < _SHOWN and pair["source"] in source and pair["sample"] in sample:
            (before, p), (after, q) = pair["before"], pair["after"]
            done = ", ".join(f"{name}={value}" for name, value in pair["do"].items())
            note = f"{pair['label']}: said {before} ({100 * p:.0f} % for {pair['label']}), then {after} ({100 * q:.0f} % for {pair['label']})"
            found.append(
                Example(
                    inputs.train.image(source[pair["source"]]),
                    pair["source"],
                    [shards.image(sample[pair["sample"]])],
                    [f"do({done})"],
                    None,
                    note,
                )
            )
    return found

"""The pairs of the report's gallery: what the evaluation judged, and the pairs that move the classifier with the worst shortcut most."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cfaug.data.images import Pixels
from cfaug.judge.effects import ALL, read_effects
from cfaug.judge.gallery import Pair, difference
from cfaug.offline import ShardReader
from cfaug.stages.audit import PAIRS
from cfaug.stages.checked_inputs import Inputs
from cfaug.stages.evaluation import Evaluation

MOST = 200
"""Pairs of the gallery, at most; all of them together stay below 5 MB."""
_EXACT = 1e-9  # a null intervention with less error is the factual image itself, and not shown


def gallery_pairs(run: Path, inputs: Inputs, shards: ShardReader, evaluation: Evaluation) -> list[Pair]:
    """One pair per judged row and per kept pair of the audit; a sample that both have is one pair."""
    place = {inputs.train.key(i): i for i in range(len(inputs.train))}
    flips = _flips(run)
    pairs = []
    for i, row in enumerate(evaluation.figures["rows"]):
        exact = row["reconstruction_l1"] < _EXACT
        measures = {"null": row["reconstruction_l1"], "misread": len(row["misread"])}
        measures |= {key: row[key] for key in ("margin", "attempt") if key in row}
        notes = [f"misread: {', '.join(row['misread'])}"] if row["misread"] else []
        notes += ["the null intervention gives the factual image back"] if exact else []
        notes += [f"least margin by: {row['criterion']}"] if "criterion" in row else []
        flip = flips.pop(row.get("sample"), None)
        if flip is not None:
            measures["flip"] = flip["loss"]
            notes.append(flip["said"])
        null = {} if exact else {"null": evaluation.reconstruction[i]}
        pictures = {"factual": evaluation.factual[i], "counterfactual": evaluation.counterfactual[i], **null}
        pairs.append(_pair(inputs, place[row["source"]], row["do"], pictures, measures, "; ".join(notes)))
    sample = {entry.key: i for i, entry in enumerate(shards.index)}
    for key, flip in flips.items():
        if key in sample and flip["source"] in place:
            at = place[flip["source"]]
            pictures = {"factual": inputs.train.image(at), "counterfactual": shards.image(sample[key])}
            pairs.append(_pair(inputs, at, flip["do"], pictures, {"flip": flip["loss"]}, flip["said"]))
    return pairs[:MOST]


def _pair(
    inputs: Inputs, at: int, done: str, pictures: Mapping[str, Pixels], measures: Mapping[str, float], note: str
) -> Pair:
    factual, made = pictures["factual"], pictures["counterfactual"]
    shown = {**pictures, "difference": difference(factual, made)}
    mask = inputs.sources.mask(at)
    if mask is not None:
        shown["mask"] = np.asarray(mask)[..., None]
    row = inputs.train.table.iloc[at]
    names = [inputs.target, *inputs.schema.spurious]
    group = ", ".join(f"{name}={row[name]}" for name in names)
    change = float(np.abs(factual.astype(np.int16) - made.astype(np.int16)).mean() / 255)
    order = ("factual", "counterfactual", "difference", "mask", "null")
    return Pair(
        str(inputs.train.key(at)), group, done, {name: shown[name] for name in order if name in shown},
        {**measures, "change": change}, note,
    )  # fmt: skip


def _flips(run: Path) -> dict[str, dict[str, Any]]:
    """The worst pairs of the audited classifier with the largest change, by the key of the sample."""
    whole = [row for row in read_effects(run) if row["group"] == ALL]
    if not whole:
        return {}
    model = max(whole, key=lambda row: row["change"][0])["model"]
    path = run / PAIRS / f"{model}.json"
    if not path.exists():
        return {}
    found = {}
    for pair in json.loads(path.read_text(encoding="utf-8")):
        (before, p), (after, q) = pair["before"], pair["after"]
        done = ", ".join(f"{name}={value}" for name, value in pair["do"].items())
        said = f"{model} said {before} ({100 * p:.0f} % for {pair['label']}), then {after} ({100 * q:.0f} %)"
        found[pair["sample"]] = {"source": pair["source"], "do": f"do({done})", "loss": p - q, "said": said}
    return found

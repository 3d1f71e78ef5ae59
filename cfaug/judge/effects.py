"""What a classifier uses: how its answers change when one attribute of an image does, and nothing else.

    change(a)   = mean |p(y | x_{a=a'}) - p(y | x)|  over a' != a   -   the same over a' = a           y: the label
    signed(a)   = mean  p(y | x_{a=a'}) - p(y | x)                  -   the same over a' = a           also as logits, and as flips
    unfair      = share of images whose prediction changes under some a' != a                          individual fairness

What is subtracted is the *floor*: how far answers move when an image is made anew and the attribute keeps its value, which is what the
seams, codecs and reconstructions of the images do. Where every intervention changes the value, null interventions are the floor. Several
attributes may be intervened on at once: drawn independently, the others vary alike on both sides of the difference.

Intervals are of the studentised bootstrap (bootstrap-t; Efron & Tibshirani, 1993, chapter 12) over *sources*, because images of one source
resemble one another. An effect is claimed where the interval of its change lies above 0. Individual fairness: Kusner et al., 2017, Counterfactual Fairness.
Not promised: that images which a model made differ in the attribute alone. The gate and ``cfaug evaluate`` speak of that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfaug.errors import DataError, UsageError, listed

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
ALL = "all"
EFFECTS = "effects.jsonl"
DRAWS = 1000
LEAST = 20
"""Pairs, and pairs of the floor, that a group needs to be told of."""
_SMALLEST = 1e-6  # probabilities are kept so far from 0 and 1 in logits


@dataclass(frozen=True, eq=False)
class Answers:
    """What a classifier says of S sources, and of M images made from them.

    Attributes:
        target: name of the attribute that is classified.
        classes: names of the K classes.
        labels: (S,) the class of each source, as a code.
        factual: (S, K) probabilities.
        made: (M, K) probabilities.
        source: (M,) which source each image was made from.
        do: (M,) attribute -> the value that it was set to; {} for a null intervention.
        table: S rows, the sources' attributes.
    """

    target: str
    classes: Sequence[str]
    labels: npt.NDArray[np.int64]
    factual: Floats
    made: Floats
    source: npt.NDArray[np.int64]
    do: Sequence[Mapping[str, Any]]
    table: pd.DataFrame

    def __post_init__(self) -> None:
        """Raise UsageError for shapes that do not fit, and DataError for numbers that are no probabilities."""
        s, m, k = len(self.table), len(self.do), len(self.classes)
        if self.factual.shape != (s, k) or self.made.shape != (m, k) or len(self.source) != m or len(self.labels) != s:
            raise UsageError(
                f"expected probabilities ({s}, {k}) of sources and ({m}, {k}) of images made from them, got {self.factual.shape} and {self.made.shape}"
            )
        for one in (self.factual, self.made):
            if not np.isfinite(one).all() or (one < -1e-4).any() or (np.abs(one.sum(1) - 1) > 1e-3).any():
                raise DataError("expected probabilities that sum to 1, got others; apply a softmax to logits")


def effects(answers: Answers, attributes: Sequence[str], seed: int = 0, draws: int = DRAWS) -> list[dict[str, Any]]:
    """One row per attribute and group: ``all``, and each "target=y,attribute=a" with LEAST pairs or more on either side.

    A row has ``attribute, group, pairs, sources, floor`` ("own value" or "null"), ``flip_rate`` and ``flip_floor`` (shares), ``unfair``,
    and, each (estimate, low, high) of 95 %, less the floor: ``change`` and ``signed`` in probability, ``logit``, ``flips``; ``claimed``.
    Attributes of "all" come with the largest change first.

    Raises:
        DataError: an attribute whose interventions have no floor, or that none changes.
    """
    measures = _measures(answers)
    rows: list[list[dict[str, Any]]] = []
    for name in attributes:
        changed, floor, kind = _sides(answers, name)
        own = answers.table[name].astype(object).to_numpy()
        groups = [(ALL, np.ones(len(own), dtype=bool))]
        for label in np.unique(answers.labels).tolist():
            for value in pd.unique(pd.Series(own).dropna()):
                groups.append(
                    (
                        f"{answers.target}={answers.classes[label]},{name}={value}",
                        (answers.labels == label) & (own == value),
                    )
                )
        found = []
        for group, members in groups:
            inside = members[answers.source]
            if group == ALL or min((changed & inside).sum(), (floor & inside).sum()) >= LEAST:
                found.append({"attribute": name, "group": group, **_row(answers, measures, changed & inside, floor & inside, kind, seed, draws)})  # fmt: skip
        rows.append(found)
    rows.sort(key=lambda some: -some[0]["change"][0])
    return [row for some in rows for row in some]


def difference(
    first: Answers, second: Answers, attribute: str, seed: int = 0, draws: int = DRAWS
) -> tuple[float, float, float]:
    """How much larger the second classifier's change is than the first's, with its interval; both were asked about the same images."""
    if len(first.do) != len(second.do) or not np.array_equal(first.source, second.source):
        raise UsageError(
            "expected the answers of two classifiers to the same images, got different ones; ask both about one run"
        )
    changed, floor, _ = _sides(first, attribute)
    one, other = (_measures(answers)["change"] for answers in (first, second))
    return _interval(first, other - one, changed, floor, seed, draws)


def flips_to(answers: Answers, attribute: str) -> dict[str, dict[str, tuple[int, int]]]:
    """Class -> value -> (predictions that flip, images) where ``attribute`` was set to the value, its own included."""
    flips = _measures(answers)["flips"]
    found: dict[str, dict[str, list[int]]] = {}
    for i, act in enumerate(answers.do):
        if (value := act.get(attribute)) is not None:
            cell = found.setdefault(answers.classes[answers.labels[answers.source[i]]], {}).setdefault(
                str(value), [0, 0]
            )
            cell[0] += int(flips[i])
            cell[1] += 1
    return {label: {value: (flipped, n) for value, (flipped, n) in cells.items()} for label, cells in found.items()}


def _measures(answers: Answers) -> dict[str, Floats]:
    labels = answers.labels[answers.source]
    rows = np.arange(len(labels))
    before, after = answers.factual[answers.source][rows, labels], answers.made[rows, labels]
    said, now = answers.factual.argmax(1)[answers.source], answers.made.argmax(1)
    return {
        "change": np.abs(after - before), "signed": after - before, "logit": _logit(after) - _logit(before),
        "flips": (said != now).astype(np.float64),
    }  # fmt: skip


def _logit(p: Floats) -> Floats:
    kept = np.clip(p, _SMALLEST, 1 - _SMALLEST)
    return np.asarray(np.log(kept) - np.log1p(-kept))


def _sides(answers: Answers, name: str) -> tuple[Bools, Bools, str]:
    """(M,) images whose value of the attribute was changed; (M,) those of the floor; and what the floor is."""
    own = answers.table[name].astype(object).to_numpy()[answers.source]
    wanted = np.array([act.get(name) for act in answers.do], dtype=object)
    acted = np.array([act.get(name) is not None for act in answers.do]) & pd.notna(own)
    same = np.array([bool(w == o) for w, o in zip(wanted, own)], dtype=bool)
    null = np.array([not act for act in answers.do])
    changed, kept = acted & ~same, acted & same
    if not changed.any():
        raise DataError(f"{name}: expected images in which it was changed, got none; plan interventions on it")
    if kept.sum() >= min(LEAST, changed.sum()):
        return changed, kept, "own value"
    if not null.any():
        raise DataError(
            f"{name}: expected null interventions, or interventions to the value that an image has, as the floor of its effect, got none; set "
            "plan.null_fraction above 0, or plan.strategy: balance"
        )
    return changed, null, "null"


def _row(
    answers: Answers, measures: Mapping[str, Floats], changed: Bools, floor: Bools, kind: str, seed: int, draws: int
) -> dict[str, Any]:
    sources = np.unique(answers.source[changed])
    flipped = pd.Series(measures["flips"][changed]).groupby(answers.source[changed]).max()
    row: dict[str, Any] = {
        "pairs": int(changed.sum()), "sources": len(sources), "floor": kind, "floor_pairs": int(floor.sum()),
        "flip_rate": _mean(measures["flips"][changed]), "flip_floor": _mean(measures["flips"][floor]), "unfair": _mean(flipped.to_numpy()),
    }  # fmt: skip
    for name, values in measures.items():
        row[name] = [round(value, 6) for value in _interval(answers, values, changed, floor, seed, draws)]
    return {**row, "claimed": bool(row["change"][1] > 0)}


def _interval(
    answers: Answers, values: Floats, changed: Bools, floor: Bools, seed: int, draws: int
) -> tuple[float, float, float]:
    """mean over ``changed`` - mean over ``floor``, and its 95 % interval over sources, which are drawn with all of their images."""
    n = len(answers.table)
    sums = np.stack([np.bincount(answers.source[side], weights=values[side], minlength=n) for side in (changed, floor)])
    counts = np.stack([np.bincount(answers.source[side], minlength=n) for side in (changed, floor)]).astype(np.float64)
    taking = np.flatnonzero(counts.sum(0))
    sums, counts = sums[:, taking], counts[:, taking]

    def contrast(weights: Floats) -> tuple[Floats, Floats]:
        """(D,) differences and their standard errors, by the influence of each source, of weights (D, S) of sources."""
        with np.errstate(invalid="ignore", divide="ignore"):
            sizes = weights @ counts.T
            means = (weights @ sums.T) / sizes
            influence = sum(
                sign * (sums[k] - means[:, k, None] * counts[k]) / sizes[:, k, None] for k, sign in ((0, 1), (1, -1))
            )
        return means[:, 0] - means[:, 1], np.sqrt((weights * np.square(influence)).sum(1))

    (found,), (error,) = contrast(np.ones((1, len(taking))))
    drawn = np.random.default_rng([seed, 17]).multinomial(
        len(taking), np.full(len(taking), 1 / len(taking)), size=draws
    )
    differences, errors = contrast(drawn.astype(np.float64))
    usable = errors > 1e-12  # a draw in which all answers are alike, or a side is empty, has no t
    if not usable.any():
        return float(found), float(found), float(found)
    low, high = np.quantile((differences[usable] - found) / errors[usable], [0.025, 0.975])
    return float(found), float(found - high * error), float(found - low * error)


def _mean(values: npt.ArrayLike) -> float:
    found = np.asarray(values, dtype=np.float64)
    return round(float(found.mean()), 6) if len(found) else 0.0


def worst_pairs(answers: Answers, attribute: str, most: int = 12) -> list[int]:
    """The images, most of all changed first, whose prediction flips, or whose label's probability moves most, when ``attribute`` changes."""
    changed, _, _ = _sides(answers, attribute)
    measures = _measures(answers)
    order = np.lexsort((-measures["change"], -measures["flips"]))
    return [int(i) for i in order if changed[i]][:most]


def read_effects(run: Path, name: str = EFFECTS) -> list[dict[str, Any]]:
    """The rows of a run's ``effects.jsonl`` (or of the file ``name`` beside it); none where nothing was audited."""
    path = run / name
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def told(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The effects of "all" in words, the strongest shortcut first."""
    lines = []
    for row in rows:
        if row["group"] != ALL:
            continue
        change, low, high = (100 * value for value in row["change"])
        verdict = "uses it" if row["claimed"] else "no effect beyond the floor"
        lines.append(
            f"{row['attribute']}: {verdict}. The label's probability moves {change:.1f} points more than without a change ({low:.1f} to {high:.1f}); "
            f"{100 * row['flip_rate']:.1f} % of predictions flip (floor {100 * row['flip_floor']:.1f} %), of {row['sources']} images "
            f"{100 * row['unfair']:.1f} % under some value."
        )
    if used := [row["attribute"] for row in rows if row["group"] == ALL and row["claimed"]]:
        lines.append(f"Shortcuts, the strongest first: {listed(used)}.")
    return lines

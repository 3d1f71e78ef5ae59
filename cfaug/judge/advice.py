"""Do you need counterfactuals? Which method a table of results speaks for, and why.

    gap = ceiling - worst group of plain training,     ceiling = the oracle's worst group, else plain training's average

In this order: a group without a training image is out of reach for every re-weighting; no gap beyond chance needs no method; where
even the ceiling is low, labels or images are the matter and not the groups; a cheap method that closes the gap is enough; otherwise
counterfactuals. Two accuracies differ by chance where they are closer than the 95 % half-width of the worst group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cfaug.errors import DataError, listed
from cfaug.judge.tables import CONTROLS, MethodSummary, summarise

LOW = 0.75  # a ceiling below this says more about labels and images than about groups


@dataclass(frozen=True)
class Advice:
    """``method``: the name of the one to take; ``reasons``: sentences, the conclusion first."""

    method: str
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.reasons)


def effective_size(counts: Sequence[int]) -> float:
    """Kish's effective number of images, (sum w)^2 / sum w^2, when every group that has images is weighted to count the same."""
    sizes = np.array([n for n in counts if n], dtype=np.float64)
    return float(len(sizes) ** 2 / (1 / sizes).sum()) if len(sizes) else 0.0


def by_chance(item: MethodSummary) -> float:
    """How far two accuracies of the worst group may be apart by chance: the 95 % half-width of this one's."""
    return (item.worst_ci95[1] - item.worst_ci95[0]) / 2


def advise(rows: Sequence[Mapping[str, Any]], counts: Mapping[str, int]) -> Advice:
    """The method that the rows of one table, with plain training among them, speak for.

    ``counts``: training images of every group that could occur, empty ones included. DataError without rows of ``erm``.
    """
    found = {item.method: item for item in summarise(rows)}
    if "erm" not in found:
        raise DataError("advice: expected rows of erm in the results, got none; train it too")
    erm, oracle = found["erm"], found.get("oracle")
    chance = by_chance(erm)
    ceiling = erm.average[0] if oracle is None else oracle.worst[0]
    measured = "the oracle's worst group" if oracle else "its average, as no oracle was trained"
    gap = ceiling - erm.worst[0]
    empty = [name for name, n in counts.items() if not n]
    ours = _best([item for name, item in found.items() if name.startswith("cfaug")])
    cheap = _best(
        [item for name, item in found.items() if name not in ("erm", "oracle", *CONTROLS) and not _generates(name)]
    )
    smallest = min((n for n in counts.values() if n), default=0)
    sizes = (
        f"{len(counts)} groups, {len(empty)} of them without a training image, the smallest of the others with {smallest}; weighted evenly, "
        f"they count as {effective_size(list(counts.values())):.0f} images"
    )
    facts = [
        f"plain training: {_percent(erm.worst[0])} in the worst group, {_percent(erm.average[0])} on average; the gap to {measured} is "
        f"{100 * gap:.1f} points; accuracies closer than {100 * chance:.1f} points may differ by chance",
        sizes,
    ]
    if cheap is not None:
        facts.append(
            f"the best method without generated images, {cheap.method}: {_percent(cheap.worst[0])} in the worst group"
        )
    if ours is not None:
        facts.append(f"the best of ours, {ours.method}: {_percent(ours.worst[0])} in the worst group")
    best = _best([item for item in (erm, cheap, ours) if item is not None])
    assert best is not None
    if empty and gap > chance:
        if ours is None or ours.worst[0] >= (cheap or erm).worst[0] - chance:
            why = f"no training image is in {listed(empty)}: no weighting can make up for that, counterfactuals can"
            return _advice(ours.method if ours else "cfaug", why, facts)
        return _advice(
            best.method,
            f"no training image is in {listed(empty)}, and the counterfactuals did not make up for that",
            facts,
        )
    if gap <= chance:
        why = "there is no gap between the groups beyond chance: no method against shortcuts is needed"
        if ceiling < LOW:
            why += f"; but {_percent(ceiling)} is low for every group, so look at labels and images"
        return _advice("erm", why, facts)
    if (
        cheap is not None
        and ceiling - cheap.worst[0] <= chance
        and (ours is None or ours.worst[0] <= cheap.worst[0] + chance)
    ):
        return _advice(cheap.method, f"{cheap.method} closes the gap within chance, without generated images", facts)
    if ours is None:
        return _advice("cfaug", "what re-weighting leaves of the gap is more than chance: try counterfactuals", facts)
    return _advice(best.method, f"{best.method} has the best worst group of all that was trained", facts)


def _advice(method: str, why: str, facts: Sequence[str]) -> Advice:
    return Advice(method, (f"take {method}: {why}", *facts))


def _best(items: Sequence[MethodSummary]) -> MethodSummary | None:
    return max(items, key=lambda item: item.worst[0]) if items else None


def _generates(method: str) -> bool:
    return method.startswith("cfaug") or method == "ffr"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"

"""Group, worst-group, average and adjusted average accuracy, with n and intervals; one row of results per run.

    accuracy(g)      = right(g) / n(g), and None when n(g) = 0
    worst group      = the non-empty group of least accuracy, over all spurious attributes (target x ONE of them)
    adjusted average = mean over spurious attributes a of  sum_g w_a(g) accuracy(g),  w_a = training shares of a's
                       groups (so Sagawa et al. 2020 report Waterbirds); groups empty in the test split are left out

Accuracies are fractions in [0, 1]. The interval of the worst group is Wilson's (1927) 95 % for one group fixed in
advance. Not promised: that it covers the *minimum* over groups. The least of many noisy groups is biased downwards, the
more so the smaller the groups, for every method alike; compare worst groups only on the same test split.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfaug.data.files import replace_file
from cfaug.data.groups import Grouper
from cfaug.errors import DataError, UsageError

GroupTable = dict[str, dict[str, Any]]
"""group name -> {"n": int, "accuracy": float or None}"""

FIELDS = (
    "recipe", "method", "seed", "split", "n", "average_accuracy", "adjusted_average_accuracy", "worst_group_accuracy",
    "worst_group", "worst_group_ci95", "groups", "train_seconds", "selection",
)  # fmt: skip


@dataclass(frozen=True)
class WorstGroup:
    """The worst group: accuracy (fraction), name, n, and Wilson's 95 % interval for that group."""

    accuracy: float
    name: str
    n: int
    ci95: tuple[float, float]


def _right(targets: Sequence[Any] | npt.ArrayLike, predictions: Sequence[Any] | npt.ArrayLike) -> npt.NDArray[np.bool_]:
    truth, said = np.asarray(targets), np.asarray(predictions)
    if truth.shape != said.shape or truth.ndim != 1:
        raise UsageError(
            f"expected one prediction per target, got {said.shape} for {truth.shape}; pass two equal vectors"
        )
    if not len(truth):
        raise DataError("accuracy: expected at least one sample, got none; check the split")
    right: npt.NDArray[np.bool_] = truth == said
    return right


def _frame(groups: pd.DataFrame | pd.Series | Sequence[str] | npt.NDArray[Any]) -> pd.DataFrame:
    return groups if isinstance(groups, pd.DataFrame) else pd.DataFrame({"group": np.asarray(groups, dtype=object)})


def group_accuracy(
    targets: Sequence[Any] | npt.ArrayLike,
    predictions: Sequence[Any] | npt.ArrayLike,
    groups: pd.DataFrame | pd.Series | Sequence[str] | npt.NDArray[Any],
    names: Iterable[str] = (),
) -> GroupTable:
    """{group: {"n", "accuracy"}} in the order of ``names``, then of first sight.

    ``groups``: the frame of ``Grouper.labels`` (one column per spurious attribute) or one label per sample; ``names`` adds
    the groups that may be empty: n 0, accuracy None.
    """
    right = _right(targets, predictions)
    frame = _frame(groups)
    if len(frame) != len(right):
        raise UsageError(f"expected {len(right)} group labels, got {len(frame)}; pass one per sample")
    table: GroupTable = {str(name): {"n": 0, "accuracy": None} for name in names}
    for column in frame:
        codes, values = pd.factorize(frame[column].astype(str))
        counts = np.bincount(codes, minlength=len(values))
        hits = np.bincount(codes, weights=right, minlength=len(values))
        for value, n, hit in zip(values, counts, hits):
            if table.get(str(value), {"n": 0})["n"]:
                raise UsageError(
                    f"expected every group in one column, got {value!r} in two columns; name groups by their attribute"
                )
            table[str(value)] = {"n": int(n), "accuracy": float(hit / n)}
    return table


def wilson_interval(hits: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a fraction; ``n`` at least 1."""
    from scipy.stats import binomtest

    interval = binomtest(hits, n).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def worst_group_accuracy(
    targets: Mapping[str, Mapping[str, Any]] | Sequence[Any] | npt.ArrayLike,
    predictions: Sequence[Any] | npt.ArrayLike | None = None,
    groups: pd.DataFrame | pd.Series | Sequence[str] | npt.NDArray[Any] | None = None,
) -> WorstGroup:
    """The worst group, from the mapping that ``group_accuracy`` returns or from its three arguments.

    Among equals the largest group is named (its accuracy is the best known), then the first by name.
    """
    if isinstance(targets, Mapping):
        table: Mapping[str, Mapping[str, Any]] = targets
    elif predictions is None or groups is None:
        raise UsageError(
            "worst_group_accuracy expected targets, predictions and groups (or what group_accuracy returns)"
        )
    else:
        table = group_accuracy(targets, predictions, groups)
    filled = [(row["accuracy"], -row["n"], name) for name, row in table.items() if row["n"]]
    if not filled:
        raise DataError("worst group: expected a group with at least one sample, got none; check the split")
    accuracy, minus_n, name = min(filled)
    return WorstGroup(float(accuracy), name, -minus_n, wilson_interval(round(accuracy * -minus_n), -minus_n))


def average_accuracy(targets: Sequence[Any] | npt.ArrayLike, predictions: Sequence[Any] | npt.ArrayLike) -> float:
    """The share of right predictions over the split as it is."""
    return float(_right(targets, predictions).mean())


def adjusted_average_accuracy(groups: Mapping[str, Mapping[str, Any]], train_labels: pd.DataFrame) -> float:
    """Groups weighted as in training, averaged over the spurious attributes.

    ``groups``: what ``group_accuracy`` returns on the test split; ``train_labels``: ``Grouper.labels`` of the TRAINING
    table. Groups without a test sample, and training rows of no group, are left out and the other weights renormalised.
    """
    averages = []
    for column in train_labels:
        shares = train_labels[column].dropna().astype(str).value_counts()
        known = [(shares[name], groups[name]["accuracy"]) for name in shares.index if groups.get(name, {}).get("n")]
        if not known:
            raise DataError(
                f"adjusted average: expected a group of {column!r} both in training and in this split, got none; add test images"
            )
        averages.append(sum(share * accuracy for share, accuracy in known) / sum(share for share, _ in known))
    return float(np.mean(averages))


def result_row(
    *,
    recipe: str,
    method: str,
    seed: int,
    targets: Sequence[Any] | npt.ArrayLike,
    predictions: Sequence[Any] | npt.ArrayLike,
    table: pd.DataFrame,
    grouper: Grouper,
    train_table: pd.DataFrame,
    train_seconds: float,
    selection: str,
    split: str = "test",
) -> dict[str, Any]:
    """One row of ``results.jsonl`` exactly as the results contract has it (FIELDS); ``table`` belongs to ``split``."""
    groups = group_accuracy(targets, predictions, grouper.labels(table), names=grouper.all_names)
    worst = worst_group_accuracy(groups)
    values = (
        recipe, method, int(seed), split, len(np.asarray(targets)), average_accuracy(targets, predictions),
        adjusted_average_accuracy(groups, grouper.labels(train_table, missing=True)), worst.accuracy, worst.name, list(worst.ci95),
        groups, float(train_seconds), selection,
    )  # fmt: skip
    return dict(zip(FIELDS, values))


def write_results(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines, one per row; the file is replaced as a whole, so a reader never sees half of it."""
    path = Path(path)
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
    try:
        replace_file(path, "".join(lines).encode())
    except OSError as error:
        raise DataError(
            f"{path}: cannot write the results ({error.strerror}); free some space or choose a different --out"
        ) from error


def read_results(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a results file; DataError names the file and line that is not a row of the contract."""
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot read the results ({error.strerror}); run the train stage first") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            missing = [name for name in FIELDS if name not in row]
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}, line {number}: expected a JSON object, got {line[:40]!r}; train again") from error
        if missing:
            raise DataError(
                f"{path}, line {number}: expected the field {missing[0]!r}, got a row without it; train again"
            )
        rows.append(row)
    return rows

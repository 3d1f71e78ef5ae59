"""The content of shards in figures: counts, values, groups, interventions, and the confounding before and after.

    before = dependence of target and attribute among the sources' factual values, every source once
    after  = the same among the counterfactuals' values (null interventions apart)

Every record is read and its sha256 is checked; of the images only the first of each shard is. The records are held as a table,
about 1 GB for a million. A continuous attribute is cut at quartiles: those of the sources for groups, those of each side for
its confounding. The figures are the records': whether a counterfactual looks as its record says is measured by the judge, and
whether every byte is whole by ``cfaug verify``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cfaug.data.groups import QUARTILES, quarter, quartiles
from cfaug.offline.inspect.inspection_text import text
from cfaug.offline.progress import Stats, read_stats
from cfaug.offline.read_committed import Committed
from cfaug.offline.storage import LocalStorage, Storage

MAX_VALUES = 1000  # different texts of one attribute that are counted; a name for every image is not a category
OTHER = "(other)"
_BAR_FROM = 50  # shards; for fewer no bar is shown

Cross = dict[str, dict[str, int]]


@dataclass(frozen=True)
class Inspection:
    """The content of the committed shards of a place. Every mapping has a fixed order, so equal shards print alike.

    Attributes:
        place: the directory or URL of the shards.
        shards, samples, nulls, sources: counts; `nulls` of the samples are null interventions.
        bytes: of the tars; `image_bytes`: mean of an image's; `formats`: image field -> samples.
        sizes: "height x width x channels" -> count, of the first image of each shard.
        target: the name of the target, where the records show it.
        attributes: name -> {"kind", "factual", "counterfactual"}: counts of texts, or n, min, mean, max and quartiles of
            numbers; in both "missing".
        groups: attribute -> {"factual", "counterfactual"} -> target value -> level -> count.
        interventions: names of do(), joined by "+" -> samples.
        confounding: attribute -> {"before", "after"} -> n, nmi, nmi_chance, cramers_v, p_value; None without rows.
        change: {"counterfactual", "null"} -> quantiles 0.05, 0.5, 0.95 of `change_l1`, and the mean.
        replicas: samples of each replica number; those above nine together as "10+".
        stats: the summary of the run's logs, where they are beside the shards.
    """

    place: str
    shards: int
    samples: int
    nulls: int
    sources: int
    bytes: int
    image_bytes: float
    formats: dict[str, int]
    sizes: dict[str, int]
    target: str | None
    attributes: dict[str, dict[str, Any]]
    groups: dict[str, dict[str, Cross]]
    interventions: dict[str, int]
    confounding: dict[str, dict[str, dict[str, float] | None]]
    change: dict[str, dict[str, float]]
    replicas: dict[str, int]
    stats: Stats | None = None

    def to_json(self) -> dict[str, Any]:
        """The inspection as plain data; `rejected` is from the logs, and None without a log."""
        fields = {name: value for name, value in vars(self).items() if name != "stats"}
        rejected = None if self.stats is None else self.stats.rejected
        return {**fields, "rejected": rejected, "stats": None if self.stats is None else self.stats.to_json()}

    def __str__(self) -> str:
        return text(self.to_json(), None if self.stats is None else str(self.stats))


def inspect_shards(place: str | Path, progress: bool = False) -> Inspection:
    """Inspect a run, its shards, or shards at a URL; `progress` shows a bar where there are many.

    :class:`ShardError` where nothing is committed, and for the first record that is not what the manifest vouches for.
    """
    from tqdm import tqdm

    shards = Committed(place)
    samples, values, acted = [], [], set[str]()
    sources: dict[str, tuple[Any, Mapping[str, Any]]] = {}
    sizes: Counter[str] = Counter()
    shown = progress and len(shards.manifest) >= _BAR_FROM
    for shard in tqdm(shards.manifest, desc="inspect", unit=" shards", disable=not shown):
        for number, sample in enumerate(shards.samples(shard)):
            record = sample.record()
            done = _done(record["do"])
            acted.update(record["do"])
            change = record["quality"].get("change_l1")
            samples.append(
                (
                    sample.row.null,
                    done,
                    min(record["replica"], 10),
                    change,
                    sample.row.image_field,
                    sample.row.image.size,
                )
            )
            values.append((record["target"], record["attributes"]))
            sources.setdefault(record["source_key"], (record["target"], record["factual"]))
            if not number:
                sizes["x".join(map(str, sample.image().shape))] += 1
    looked = pd.DataFrame(samples, columns=["null", "do", "replica", "change", "field", "bytes"])
    # one table for both sides, so that a column has one type
    table = pd.DataFrame([attributes for _, attributes in (*sources.values(), *values)])
    goal = pd.Series([value for value, _ in (*sources.values(), *values)])
    factual = np.arange(len(table)) < len(sources)
    made = ~factual & ~np.r_[np.ones(len(sources), dtype=bool), looked["null"].to_numpy(dtype=bool)]
    sides = {"factual": factual, "counterfactual": made}
    target = _target(table[~factual], goal[~factual], acted)
    others = [str(name) for name in table if name != target]
    return Inspection(
        place=shards.storage.url,
        shards=len(shards.manifest),
        samples=len(looked),
        nulls=int(looked["null"].sum()),
        sources=len(sources),
        bytes=sum(shard.bytes for shard in shards.manifest),
        image_bytes=round(float(looked["bytes"].mean()), 1),
        formats=_counts(looked["field"]),
        sizes=dict(sorted(sizes.items())),
        target=target,
        attributes={str(name): _attribute(table[name], sides) for name in table},
        groups={
            name: {side: _nested(_cells(goal, table[name], rows, factual)) for side, rows in sides.items()}
            for name in others
        },
        interventions=_counts(looked["do"]),
        confounding={
            name: {
                when: _dependence(_cells(goal, table[name], sides[side], sides[side]))
                for when, side in (("before", "factual"), ("after", "counterfactual"))
            }
            for name in others
        },
        change={
            kind: found
            for kind, null in (("counterfactual", False), ("null", True))
            if (found := _quantiles(looked["change"][looked["null"] == null]))
        },
        replicas={"10+" if n == "10" else n: count for n, count in _counts(looked["replica"]).items()},
        stats=_stats(shards.storage),
    )


def _stats(storage: Storage) -> Stats | None:
    """The summary of the logs in the run directory of these shards, where there are any."""
    if not isinstance(storage, LocalStorage):
        return None
    return read_stats(storage.path) or read_stats(storage.path.parent)


def _done(do: Mapping[str, Any]) -> str:
    """Which attributes were changed, and which were hidden (invariant samples)."""
    changed = "+".join(sorted(name for name, value in do.items() if value is not None))
    hidden = "+".join(sorted(name for name, value in do.items() if value is None))
    return ", ".join(part for part in (changed, hidden and f"hidden {hidden}") if part) or "(none)"


def _target(table: pd.DataFrame, goal: pd.Series[Any], intervened: set[str]) -> str | None:
    """The name of the target. A record holds only its value; the target is the attribute that always has this value."""
    same = (str(name) for name in table if name not in intervened and (table[name] == goal).all())
    return next(same, None)


def _numeric(column: pd.Series[Any]) -> bool:
    return pd.api.types.is_numeric_dtype(column)


def _levels(column: pd.Series[Any], cut_by: pd.Series[Any]) -> pd.Series[Any]:
    """Texts: categories, or the quarter of `cut_by` that a number is in; missing where the value is."""
    if _numeric(column):
        cuts = quartiles(cut_by.to_numpy(dtype=np.float64))
        quarters = quarter(column.to_numpy(dtype=np.float64), cuts)
        return pd.Series(np.array([*QUARTILES, None], dtype=object)[quarters], index=column.index)
    often = column.value_counts().index[:MAX_VALUES]
    return column.where(column.isin(often) | column.isna(), OTHER)


def _cells(goal: pd.Series[Any], column: pd.Series[Any], rows: Any, cut: Any) -> pd.DataFrame:
    """Counts of target values by levels among `rows`; numbers are cut at the quartiles of the rows `cut`."""
    targets, levels = (_levels(series, series[cut])[rows] for series in (goal, column))
    return pd.crosstab(targets.rename("target"), levels.rename("level"))


def _nested(cells: pd.DataFrame) -> Cross:
    return {str(t): {str(level): int(n) for level, n in row.items() if n} for t, row in cells.iterrows()}


def _dependence(cells: pd.DataFrame) -> dict[str, float] | None:
    if cells.empty:
        return None
    from cfaug.causal.audit.confounding import dependence  # needs SciPy

    found = asdict(dependence(cells.to_numpy(dtype=np.float64)))
    return {name: round(found[name], 6) for name in ("n", "nmi", "nmi_chance", "cramers_v", "p_value")}


def _attribute(column: pd.Series[Any], sides: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": "continuous" if _numeric(column) else "categorical"}
    for side, rows in sides.items():
        known = column[rows].dropna()
        if not _numeric(column):
            found[side] = _counts(_levels(known, known))
        elif len(known):
            cuts = list(quartiles(known.to_numpy(dtype=np.float64)))
            low, mean, high = (float(f) for f in (known.min(), known.mean(), known.max()))
            found[side] = {"n": len(known), "min": low, "mean": mean, "max": high, "quartiles": cuts}
        else:
            found[side] = {"n": 0}
    return {**found, "missing": {side: int(column[rows].isna().sum()) for side, rows in sides.items()}}


def _quantiles(change: pd.Series[Any]) -> dict[str, float]:
    known = change.dropna().astype(float)
    if known.empty:
        return {}
    low, median, high = (round(float(q), 6) for q in known.quantile([0.05, 0.5, 0.95]))
    return {"n": len(known), "mean": round(float(known.mean()), 6), "q05": low, "median": median, "q95": high}


def _counts(column: pd.Series[Any]) -> dict[str, int]:
    return {str(value): int(n) for value, n in column.value_counts().sort_index().items()}

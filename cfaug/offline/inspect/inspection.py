"""What a place of shards holds, in figures: counts, values, groups, interventions, and the confounding before and after.

    before = dependence of target and attribute among the sources' factual values, every source once
    after  = the same among the counterfactuals' values (null interventions apart)

Streams over the records, whose sha256 is checked; of the images only the first of each shard is read. Memory does not grow
with samples, but for some hundred bytes (a set's entry) a source. A continuous attribute is cut at quartiles: of the sources for groups, of each side for
its confounding; both of what the first `SETTLE` rows show, which is all of them in most runs. The figures are the table's:
that a counterfactual looks as its record says is for the judge, and that every byte is whole is for ``cfaug verify``.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cfaug.offline.committed import Committed
from cfaug.offline.format import IndexRow, Record, Value
from cfaug.offline.inspect.inspection_text import text
from cfaug.offline.inspect.stats import Stats, read_stats
from cfaug.offline.storage import LocalStorage, Storage

SETTLE = 20_000
MAX_VALUES = 1000  # texts of one attribute that are told apart: a name for every image is no category
OTHER = "(other)"
_BINS = 10_000  # of change_l1 in [0, 1]: its quantiles are right to a ten-thousandth
_QUARTILES = ("q1", "q2", "q3", "q4")
_BAR_FROM = 50  # shards: fewer take no time

Cross = dict[str, dict[str, int]]


@dataclass(frozen=True)
class Inspection:
    """What the committed shards of a place hold. Every mapping is in a fixed order, so equal shards print alike.

    Attributes:
        place: where.
        shards, samples, nulls, sources: counts; `nulls` of the samples are null interventions.
        bytes: of the tars; `image_bytes`: mean of an image's; `formats`: image field -> samples.
        sizes: "height x width x channels" -> count, of the first image of each shard.
        target: the name of the target, where the records tell.
        attributes: name -> {"kind", "factual", "counterfactual"}: counts of texts, or n, min, mean, max and quartiles of
            numbers; in both "missing".
        groups: attribute -> {"factual", "counterfactual"} -> target value -> level -> count.
        interventions: names of do(), joined by "+" -> samples.
        confounding: attribute -> {"before", "after"} -> n, nmi, nmi_chance, cramers_v, p_value; None without rows.
        change: {"counterfactual", "null"} -> quantiles 0.05, 0.5, 0.95 of `change_l1`, and the mean.
        replicas: samples of each replica number; those above nine together as "10+".
        stats: what the run's logs say, where they are beside the shards.
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
        """Plain data; `rejected` is what the logs say, None without one."""
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
    tally = _Tally()
    shown = progress and len(shards.manifest) >= _BAR_FROM
    for shard in tqdm(shards.manifest, desc="inspect", unit=" shards", disable=not shown):
        tally.bytes += shard.bytes
        for number, sample in enumerate(shards.samples(shard)):
            tally.add(sample.row, sample.record())
            if not number:
                tally.sizes["x".join(map(str, sample.image().shape))] += 1
    return tally.result(shards.storage.url, len(shards.manifest), _stats(shards.storage))


def _stats(storage: Storage) -> Stats | None:
    """From the logs of a run directory, when its shards are the ones looked at."""
    if not isinstance(storage, LocalStorage):
        return None
    return read_stats(storage.path) or read_stats(storage.path.parent)


@dataclass
class _Numbers:
    n: int = 0
    total: float = 0.0
    low: float = float("inf")
    high: float = float("-inf")

    def add(self, value: float) -> None:
        self.n += 1
        self.total += value
        self.low, self.high = min(self.low, value), max(self.high, value)


@dataclass
class _Side:
    """The factual or the counterfactual rows: cross tables of target and attribute.

    `groups` cuts numbers at the sources' quartiles, `own` at this side's; a text has one cell in both, and is in `groups`.
    """

    own: dict[str, Counter[tuple[str, str]]] = field(default_factory=lambda: defaultdict(Counter))
    groups: dict[str, Counter[tuple[str, str]]] = field(default_factory=lambda: defaultdict(Counter))
    edges: dict[str, list[float]] = field(default_factory=dict)
    numbers: dict[str, _Numbers] = field(default_factory=lambda: defaultdict(_Numbers))
    texts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    missing: Counter[str] = field(default_factory=Counter)

    def settle(self, rows: Iterable[dict[str, Value]]) -> None:
        columns: dict[str, list[float]] = {}
        for values in rows:
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    columns.setdefault(name, []).append(value)
        self.edges = {name: quartiles(values) for name, values in columns.items()}

    def add(self, target: Value, values: dict[str, Value], cuts: dict[str, list[float]]) -> None:
        group = None if target is None else _level(target, cuts.get(""))
        for name, value in values.items():
            if value is None:
                self.missing[name] += 1
                continue
            if isinstance(value, str):
                _count(self.texts[name], value)
            else:
                self.numbers[name].add(value)
                if group is not None:
                    self.own[name][group, _level(value, self.edges.get(name))] += 1
            if group is not None:
                counts = self.groups[name]
                cell = (group, _level(value, cuts.get(name)))
                counts[cell if cell in counts or len(counts) < MAX_VALUES else (group, OTHER)] += 1

    def table(self, name: str) -> Counter[tuple[str, str]] | None:
        """Target and attribute, a number at this side's own quartiles."""
        return self.own.get(name) or self.groups.get(name)


def quartiles(values: Sequence[float]) -> list[float]:
    """The three numbers that cut `values` into quarters: a continuous attribute's levels lie between them."""
    return [float(edge) for edge in np.quantile(values, [0.25, 0.5, 0.75])]


class _Tally:
    def __init__(self) -> None:
        self.samples = self.nulls = self.bytes = self._image_bytes = 0
        self.sizes: Counter[str] = Counter()
        self._formats: Counter[str] = Counter()
        self._do: Counter[str] = Counter()
        self._replicas: Counter[int] = Counter()
        self._sources: set[int] = set()
        self._sides = {"factual": _Side(), "counterfactual": _Side()}
        self._change = {name: np.zeros(_BINS + 1, dtype=np.int64) for name in ("counterfactual", "null")}
        self._sums = dict.fromkeys(self._change, 0.0)
        self._targets: dict[str, None] | None = None
        self._pending: list[tuple[str, Value, dict[str, Value]]] | None = []

    def add(self, sample: IndexRow, record: Record) -> None:
        self.samples += 1
        self.nulls += sample.null
        self._image_bytes += sample.image.size
        self._formats[sample.image_field] += 1
        combination = "+".join(sorted(record["do"])) or "(none)"
        _count(self._do, combination)
        self._replicas[min(record["replica"], 10)] += 1
        kind = "null" if sample.null else "counterfactual"
        change = record["quality"].get("change_l1")
        if isinstance(change, (int, float)):
            self._change[kind][round(min(max(change, 0.0), 1.0) * _BINS)] += 1
            self._sums[kind] += change
        attributes, target = record["attributes"], record["target"]
        # the record has the target's value, not its name: it is the attribute that always has that value
        names = (n for n, v in attributes.items() if v == target and n not in record["do"])
        if self._targets is None:
            self._targets = dict.fromkeys(names)
        elif len(self._targets) != 1 or attributes.get(next(iter(self._targets))) != target:
            here = set(names)
            self._targets = {name: None for name in self._targets if name in here}
        source = int.from_bytes(hashlib.blake2b(sample.source_key.encode(), digest_size=8).digest())
        if source not in self._sources:
            self._sources.add(source)
            self._row("factual", target, record["factual"])
        if not sample.null:
            self._row("counterfactual", target, attributes)

    def _row(self, side: str, target: Value, values: dict[str, Value]) -> None:
        if self._pending is None:
            self._sides[side].add(target, values, self._sides["factual"].edges)
            return
        self._pending.append((side, target, values))
        if len(self._pending) >= SETTLE:
            self._settle()

    def _settle(self) -> None:
        pending, self._pending = self._pending or [], None
        for name, side in self._sides.items():
            side.settle({**values, "": target} for kind, target, values in pending if kind == name)
        for kind, target, values in pending:
            self._row(kind, target, values)

    def result(self, place: str, shards: int, stats: Stats | None) -> Inspection:
        if self._pending is not None:
            self._settle()
        target = next(iter(self._targets or {}), None)
        sides = self._sides
        seen = {name: None for side in sides.values() for name in (*side.texts, *side.numbers, *side.missing)}
        others = [name for name in seen if name != target]
        return Inspection(
            place=place,
            shards=shards,
            samples=self.samples,
            nulls=self.nulls,
            sources=len(self._sources),
            bytes=self.bytes,
            image_bytes=round(self._image_bytes / self.samples, 1) if self.samples else 0.0,
            formats=dict(sorted(self._formats.items())),
            sizes=dict(sorted(self.sizes.items())),
            target=target,
            attributes={name: self._attribute(name) for name in seen},
            groups={
                name: {kind: _nested(side.groups.get(name, {})) for kind, side in sides.items()} for name in others
            },
            interventions=dict(sorted(self._do.items())),
            confounding={
                name: {
                    "before": _dependence(sides["factual"].table(name)),
                    "after": _dependence(sides["counterfactual"].table(name)),
                }
                for name in others
            },
            change={kind: found for kind in self._change if (found := self._quantiles(kind))},
            replicas={"10+" if n == 10 else str(n): count for n, count in sorted(self._replicas.items())},
            stats=stats,
        )

    def _attribute(self, name: str) -> dict[str, Any]:
        numeric = any(name in side.numbers for side in self._sides.values())
        found: dict[str, Any] = {"kind": "continuous" if numeric else "categorical"}
        for kind, side in self._sides.items():
            if numeric:
                numbers = side.numbers.get(name, _Numbers())
                found[kind] = {"n": numbers.n}
                if numbers.n:
                    shown = {"min": numbers.low, "mean": numbers.total / numbers.n, "max": numbers.high}
                    found[kind].update(shown, quartiles=side.edges.get(name))
            else:
                found[kind] = dict(sorted(side.texts.get(name, {}).items()))
        return {**found, "missing": {kind: side.missing[name] for kind, side in self._sides.items()}}

    def _quantiles(self, kind: str) -> dict[str, float]:
        counts = self._change[kind]
        total = int(counts.sum())
        if not total:
            return {}
        reached = np.searchsorted(counts.cumsum(), [max(1, q * total) for q in (0.05, 0.5, 0.95)])
        found = dict(zip(("q05", "median", "q95"), (float(i) / _BINS for i in reached), strict=True))
        return {"n": total, "mean": round(self._sums[kind] / total, 6), **found}


def _count(counts: Counter[str], text: str) -> None:
    counts[text if text in counts or len(counts) < MAX_VALUES else OTHER] += 1


def _level(value: str | float, edges: list[float] | None) -> str:
    if isinstance(value, str):
        return value
    return OTHER if edges is None else _QUARTILES[bisect_left(edges, value)]


def _nested(counts: Counter[tuple[str, str]] | dict[tuple[str, str], int]) -> Cross:
    found: Cross = {}
    for (target, level), n in sorted(counts.items()):
        found.setdefault(target, {})[level] = n
    return found


def _dependence(counts: Counter[tuple[str, str]] | None) -> dict[str, float] | None:
    if not counts:
        return None
    from cfaug.causal.audit.confounding import dependence  # needs SciPy

    rows, columns = (sorted({cell[i] for cell in counts}) for i in (0, 1))
    table = np.array([[float(counts.get((a, b), 0)) for b in columns] for a in rows])
    found = asdict(dependence(table))
    return {name: round(found[name], 6) for name in ("n", "nmi", "nmi_chance", "cramers_v", "p_value")}

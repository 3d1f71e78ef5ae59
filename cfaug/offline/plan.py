"""The plan: one row per counterfactual image, and the only source of randomness in generation.

    row = (key, source_key, do, seed, shard, replica)        image = model(source, do, seed)

:func:`balance_groups` draws a' independently of the label: within each target class every value of an intervened
attribute is used equally often (counts differ by at most one), so the mixed set has A independent of Y *in the table*.
It does not promise that the decoder obeys, nor that A is no ancestor of Y: the stages check that before planning.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfaug.causal.draws import natural
from cfaug.causal.intervention import Intervention, do
from cfaug.data import Schema
from cfaug.data.attributes import refuse_no_schema
from cfaug.data.files import replace_file
from cfaug.errors import DataError, ShardError, UsageError
from cfaug.offline.format import KEY, MAX_SEED, SPLITS, canonical_json
from cfaug.offline.staging import MAX_KEY, explained

PLAN_FORMAT = 1
ROWS_PER_PART = 100_000
HEADER = "plan.json"
# HF datasets infers the schema from five samples and silently drops the names of do() that only come later.
LEADING_REAL = 5


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One image to make: `do` applied to source `source_key` with the row's own `seed`, stored as `key` in `shard`.

    `replica` numbers the rows of one source; `seed` is in [0, 2**53).
    """

    key: str
    source_key: str
    do: Intervention
    seed: int
    shard: int
    replica: int


class Plan:
    """A sequence of :class:`PlanRow`, immutable, with its `split`, `samples_per_shard` (at most) and `settings`.

    `settings` says how the rows were drawn and is for people: `digest` covers the rows and the split only.
    :class:`UsageError` for keys outside ``[A-Za-z0-9_-]{1,95}``, repeated keys, seeds out of range, shards too large.
    """

    def __init__(
        self,
        rows: Iterable[PlanRow],
        split: str = "train",
        samples_per_shard: int = 1000,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if split not in SPLITS:
            raise UsageError(f"expected a split among {', '.join(SPLITS)}, got {split!r}")
        if type(samples_per_shard) is not int or samples_per_shard < 1:
            raise UsageError(f"expected samples_per_shard of at least 1, got {samples_per_shard!r}")
        self.rows = tuple(rows)
        self.split = split
        self.samples_per_shard = samples_per_shard
        self.settings: dict[str, Any] = dict(settings or {})
        self._by_shard: dict[int, list[PlanRow]] = {}
        keys: set[str] = set()
        for row in self.rows:
            if not KEY.fullmatch(row.key) or len(row.key) > MAX_KEY or row.key in keys:
                raise UsageError(f"expected unique keys of 1 to {MAX_KEY} characters A-Z a-z 0-9 _ -, got {row.key!r}")
            if not (0 <= row.seed < MAX_SEED and row.shard >= 0 and row.replica >= 0):
                raise UsageError(
                    f"plan row {row.key!r}: expected seed in [0, 2**53), shard and replica >= 0, got {row}"
                )
            if row.do.changes:
                raise UsageError(f"plan row {row.key!r}: expected values in do, got {row.do}: resolve it (SCM.resolve)")
            keys.add(row.key)
            self._by_shard.setdefault(row.shard, []).append(row)
        for shard, members in self._by_shard.items():
            if len(members) > samples_per_shard:
                raise UsageError(f"shard {shard}: expected at most {samples_per_shard} rows, got {len(members)}")

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[PlanRow]:
        return iter(self.rows)

    def __getitem__(self, i: int) -> PlanRow:
        return self.rows[i]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and (self.rows, self.split) == (other.rows, other.split)

    def __hash__(self) -> int:
        return hash((self.rows, self.split))

    def __repr__(self) -> str:
        return f"Plan({len(self)} rows, {len(self.shards())} shards, split={self.split!r}, digest={self.digest[:12]})"

    def shards(self) -> list[int]:
        """The shard numbers, ascending."""
        return sorted(self._by_shard)

    def rows_of(self, shard: int) -> tuple[PlanRow, ...]:
        """The rows of one shard, in plan order; :class:`UsageError` for a shard that is not in the plan."""
        if shard not in self._by_shard:
            raise UsageError(f"expected a shard of the plan (0 to {max(self._by_shard, default=-1)}), got {shard!r}")
        return tuple(self._by_shard[shard])

    def shard_name(self, shard: int) -> str:
        """File name of a shard: ``cf-train-000000.tar``."""
        return f"cf-{self.split}-{shard:06d}.tar"

    @cached_property
    def digest(self) -> str:
        """sha256 hex of the split and the rows."""
        return _digest(self.split, self._lines())

    def save(self, directory: str | Path) -> None:
        """Write ``plan-00000.jsonl`` ... and, last, the header ``plan.json``: a plan without header is no plan."""
        directory = Path(directory)
        lines = self._lines()
        parts = [lines[i : i + ROWS_PER_PART] for i in range(0, len(lines), ROWS_PER_PART)]
        header = {
            "format": PLAN_FORMAT, "rows": len(self), "parts": len(parts), "split": self.split,
            "samples_per_shard": self.samples_per_shard, "settings": self.settings, "digest": self.digest,
        }  # fmt: skip
        with explained(directory, "the plan"):
            directory.mkdir(parents=True, exist_ok=True)
            (directory / HEADER).unlink(missing_ok=True)
            for old in directory.glob("plan-*.jsonl"):
                old.unlink()
            for number, part in enumerate(parts):
                replace_file(directory / f"plan-{number:05d}.jsonl", b"".join(part))
            replace_file(directory / HEADER, json.dumps(header, indent=2, allow_nan=False).encode() + b"\n")

    @classmethod
    def load(cls, directory: str | Path) -> Plan:
        """The plan saved in `directory`; :class:`ShardError` when it is missing, damaged or of another format."""
        directory = Path(directory)
        path = directory / HEADER
        try:
            header = json.loads(path.read_bytes())
            if header["format"] != PLAN_FORMAT:
                raise ShardError(f"{path}: plan format {header['format']!r}, we read {PLAN_FORMAT}: upgrade cfaug")
            lines: list[bytes] = []
            for number in range(header["parts"]):
                path = directory / f"plan-{number:05d}.jsonl"
                lines += path.read_bytes().splitlines(keepends=True)
            if _digest(header["split"], lines) != header["digest"]:
                raise ShardError(f"{directory}: the plan does not have the digest its header states: plan again")
            known: dict[str, Intervention] = {}
            rows = [_row(json.loads(line), known) for line in lines]
            return cls(rows, header["split"], header["samples_per_shard"], header["settings"])
        except OSError as error:
            raise ShardError(
                f"expected a plan in {directory}, cannot read {path}: {error.strerror}: plan first"
            ) from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ShardError(f"{path}: the plan is damaged ({type(error).__name__}: {error}): plan again") from None

    def _lines(self) -> list[bytes]:
        texts: dict[Intervention, str] = {}
        lines = []
        for row in self.rows:
            text = texts.get(row.do)
            if text is None:
                text = texts[row.do] = canonical_json(dict(row.do.assignments)).decode("ascii")
            lines.append(
                f'{{"key":"{row.key}","source_key":{json.dumps(row.source_key)},"do":{text},'
                f'"seed":{row.seed},"shard":{row.shard},"replica":{row.replica}}}\n'.encode("ascii")
            )
        return lines


def balance_groups(
    table: pd.DataFrame,
    schema: Schema,
    per_image: int = 1,
    null_fraction: float = 0.0,
    seed: int = 0,
    samples_per_shard: int = 1000,
    split: str = "train",
    attributes: Sequence[str] | None = None,
) -> Plan:
    """`per_image` interventions on every source, each on all `attributes` (default: the spurious ones) at once.

    Within each target class the values of each attribute are a random permutation of its categories repeated, so their
    counts differ by at most one; attributes are drawn independently of one another. A continuous attribute takes
    stratified quantiles of its marginal distribution in `table`. do() equal to the factual values is allowed and kept.
    Sources may lack values, the target excepted: they are intervened on like the others.
    `null_fraction` in [0, 1) of all rows are null interventions, added evenly over the sources.

    Rows are shuffled; shards have equal sizes (at most `samples_per_shard`) and equal shares of null interventions, so
    any subset of shards is a fair sample; five rows lead each shard that show every name of do() and every attribute that
    a source of the shard has. `seed`, a whole number in [0, 2**64), fixes everything.
    """
    refuse_no_schema(schema)
    seed = natural(seed)
    if schema.target is None:
        raise UsageError("expected a schema with a target, got none: name the attribute that is the label")
    names = tuple(
        schema.spurious if attributes is None else [attributes] if isinstance(attributes, str) else attributes
    )
    if not names:
        raise UsageError("expected at least one attribute to intervene on, got none: name the spurious attributes")
    if schema.target in names:
        raise UsageError(f"expected attributes other than the target, got {schema.target!r}: the label must be kept")
    if type(per_image) is not int or per_image < 1:
        raise UsageError(f"expected per_image of at least 1, got {per_image!r}")
    if not isinstance(null_fraction, float | int | np.number) or not 0 <= null_fraction < 1:
        raise UsageError(f"expected null_fraction in [0, 1), got {null_fraction!r}")
    if type(samples_per_shard) is not int or samples_per_shard < 1:
        raise UsageError(f"expected samples_per_shard of at least 1, got {samples_per_shard!r}")
    if len(table) == 0:
        raise DataError(f"expected sources in the {split} split, got an empty table: check the split column")
    schema = schema.fit(table, schema.names)
    table = schema.canonical(table)
    n = len(table)
    real = n * per_image
    nulls = round(null_fraction / (1 - null_fraction) * real)

    target = schema[schema.target or ""]
    classes = np.zeros(n, np.int64) if target.kind == "continuous" else pd.factorize(table[target.name])[0]
    slot_classes = np.tile(classes, per_image)  # slot i is source i % n, replica i // n
    columns = []
    for stream, name in enumerate(names):
        rng = np.random.default_rng([seed, 1, stream])
        columns.append(_independent_values(schema, table, name, slot_classes, rng))
    known: dict[tuple[Any, ...], Intervention] = {}
    dos = []
    for values in zip(*columns):
        if values not in known:
            known[values] = do(dict(zip(names, values)))
        dos.append(known[values])

    rng = np.random.default_rng([seed, 2])
    each, rest = divmod(nulls, n)
    null_sources = np.concatenate([np.tile(np.arange(n), each), rng.permutation(n)[:rest]])
    sources = np.concatenate([np.tile(np.arange(n), per_image), null_sources])
    replicas = np.arange(real + nulls) // n
    dos += [do()] * nulls
    seeds = np.random.default_rng([seed, 3]).integers(0, MAX_SEED, size=real + nulls)

    present = table.notna().to_numpy()[sources]
    order, shard_of = _deal(real, nulls, samples_per_shard, np.random.default_rng([seed, 4]), present)
    source_keys = [str(key) for key in table.index]
    rows = [
        PlanRow(f"{split}-{i:09d}", source_keys[sources[j]], dos[j], int(seeds[j]), int(shard), int(replicas[j]))
        for i, (j, shard) in enumerate(zip(order, shard_of))
    ]
    settings = {
        "strategy": "balance", "per_image": per_image, "null_fraction": null_fraction,
        "seed": seed, "attributes": list(names),
    }  # fmt: skip
    return Plan(rows, split, samples_per_shard, settings)


def _independent_values(
    schema: Schema, table: pd.DataFrame, name: str, classes: npt.NDArray[np.int64], rng: np.random.Generator
) -> list[str | float]:
    """One value a slot, as evenly spread within each class as counting allows."""
    attribute = schema[name]
    values: list[str | float] = [""] * len(classes)
    seen = table[name].dropna()
    if seen.empty:
        raise DataError(
            f"column {name!r}: expected sources with a value to draw from, got none in {len(table)} rows; fill in some"
        )
    # a value that no image here shows (a schema may know it from test rows) is nothing a decoder could have learned
    shown = set(seen)
    allowed = tuple(value for value in attribute.values or () if value in shown)
    for label in np.unique(classes):
        slots = np.flatnonzero(classes == label)
        m = len(slots)
        drawn: list[str | float]
        if attribute.kind == "continuous":
            levels = (np.arange(m) + rng.random(m)) / m
            drawn = [float(v) for v in np.quantile(seen, levels, method="inverted_cdf")]
        else:
            repeats, rest = divmod(m, len(allowed))
            drawn = [*(allowed * repeats), *(allowed[k] for k in rng.permutation(len(allowed))[:rest])]
        for slot, k in zip(slots, rng.permutation(m)):
            values[slot] = drawn[k]
    return values


def _deal(
    real: int,
    nulls: int,
    samples_per_shard: int,
    rng: np.random.Generator,
    present: npt.NDArray[np.bool_] | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """A shuffled order of the rows (real ones are 0..real-1) and each position's shard.

    Shards differ by at most one row in size, have real rows in proportion, and open with up to five of them; before
    those come the few that show every attribute. `present` (rows, A) says which attributes the source of a row has.
    """
    total = real + nulls
    shards = -(-total // samples_per_shard)
    edges = [total * k // shards for k in range(shards + 1)]
    real_edges = [real * edge // total for edge in edges]  # of edge, not of k: no shard gets less than 0 nulls
    real_rows, null_rows = rng.permutation(real), rng.permutation(nulls) + real
    order, shard_of = [], np.repeat(np.arange(shards), np.diff(edges))
    for k in range(shards):
        mine = real_rows[real_edges[k] : real_edges[k + 1]]
        others = null_rows[edges[k] - real_edges[k] : edges[k + 1] - real_edges[k + 1]]
        front = np.empty(0, np.int64) if present is None else _showing(np.concatenate([mine, others]), present)
        mine, others = (rows[~np.isin(rows, front)] for rows in (mine, others))
        lead = LEADING_REAL - len(front)
        order += [front, mine[:lead], rng.permutation(np.concatenate([mine[lead:], others]))]
    return np.concatenate(order).astype(np.int64), shard_of.astype(np.int64)


def _showing(rows: npt.NDArray[np.int64], present: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """The few of `rows` that together show every attribute which any of them has; none where they all have the same.

    HF datasets takes what its first five samples lack for a column of nulls, and breaks at the first value.
    """
    has = present[rows]
    left = has.any(axis=0)
    front: list[int] = []
    while (has != has[:1]).any() and left.any() and len(front) < LEADING_REAL - 1:  # one place is kept for a real row
        front.append(int((has & left).sum(axis=1).argmax()))  # the first of the best: real rows before others
        left = left & ~has[front[-1]]
    return rows[np.array(front, dtype=np.int64)]


def _row(fields: Mapping[str, Any], known: dict[str, Intervention]) -> PlanRow:
    text = repr(fields["do"])
    intervention = known.get(text)
    if intervention is None:
        intervention = known[text] = do(fields["do"])
    return PlanRow(
        str(fields["key"]), str(fields["source_key"]), intervention,
        int(fields["seed"]), int(fields["shard"]), int(fields["replica"]),
    )  # fmt: skip


def _digest(split: str, lines: Iterable[bytes]) -> str:
    sha256 = hashlib.sha256(f"cfaug plan {PLAN_FORMAT} {split}\n".encode())
    for line in lines:
        sha256.update(line)
    return sha256.hexdigest()

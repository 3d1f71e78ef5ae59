"""What a plan will do to the confounding, read off the attribute tables before any image is generated.

    factual rows --plan, SCM--> counterfactual rows;   training mixture = r factual + p counterfactual + q null rows

Dependence of target and spurious attribute in all three, the groups that fill, the rows that stay as they are, and where the decoder
would have to extrapolate. The counterfactual attributes are the SCM's answer. Nothing here promises that the decoder obeys:
a balanced table does not prove balanced pixels. Rows of one source count as independent, so p-values of plans with many rows
a source are too small rather than too large; a balanced plan is less dependent than chance all the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfaug.causal.audit.confounding import Dependence, coded, correlation, dependence, target_of
from cfaug.causal.audit.diagnosis import ALPHA, wrapped
from cfaug.causal.audit.plan_effect_text import lines_of, warnings_of
from cfaug.causal.intervention import Intervention
from cfaug.data.groups import QUARTILES, Grouper
from cfaug.data.schema import IMAGE, Schema, refuse_no_schema
from cfaug.errors import DataError, UsageError, shown

if TYPE_CHECKING:
    from cfaug.causal.scm import SCM

MOST_ROWS = 20_000  # of 100 groups each has 200 of them; a share is known to a third of a percentage point
PARTS = ("real", "counterfactual", "null")


def forecast(
    table: pd.DataFrame,
    schema: Schema,
    scm: SCM,
    acts: Sequence[tuple[str, Intervention]],
    shares: Mapping[str, float] | None = None,
    most: int = MOST_ROWS,
    of: int | None = None,
) -> dict[str, Any]:
    """The attribute table that ``acts`` = (source key, Intervention) a planned row will lead to, as plain data.

    ``shares`` are those of the training mixture, {"real": r, "counterfactual": p, "null": q}, scaled to sum to 1; None: every
    row counts once. Of more than ``most`` planned counterfactuals a sample with a fixed seed is computed, and counts are scaled up;
    so they are where ``acts`` are themselves a fair sample of a plan of ``of`` rows.

    ``{"rows", "interventions", "null", "sampled" (or None), "unchanged", "label_changed", "unknown", "shares",
    "spurious": {name: {"factual", "counterfactual", "mixture": Dependence fields (counterfactual None without any; the first two with
    "eta", "eta_p_value", None unless continuous), "broken": bool | None,
    "groups", "filled": [{"name", "n"}], "still_empty": [names],
    "smallest": {"factual", "counterfactual": {"name", "n"}, "mixture": {"name", "share"}}}},
    "outside": {continuous attribute: rows beyond its range in the table}, "recomputed": {attribute: rows in which it changes unasked},
    "new_combinations": {"attributes", "rows", "share", "examples": [{"name", "n"}]}, "warnings": [...], "text": [...]}``.

    Raises UsageError for an empty plan, wrong shares, an SCM that is not fitted, what is no schema, SCM or list of pairs; DataError for a source that ``table`` lacks.
    """
    _refuse_wrong(schema, scm, acts)
    target = target_of(schema)
    factual = schema.canonical(table)
    null = np.array([act.is_null for _, act in acts], dtype=bool)
    sources = _sources(factual.index, acts)
    mine, counterfactual = _counterfactuals(factual, scm, acts, sources, np.flatnonzero(~null), most)
    rows = max(len(acts), of or 0)
    planned = round(rows / len(acts) * int((~null).sum()))
    scale = planned / max(1, len(mine))
    before = factual.iloc[sources[mine]]
    sizes = {"real": len(factual), "counterfactual": planned, "null": round(rows / len(acts) * int(null.sum()))}
    parts = {"real": factual, "counterfactual": counterfactual, "null": factual.iloc[sources[null]]}
    weights, notes = _shares(shares, sizes)
    grouper = Grouper.fit(table, schema)
    same = _same(before, counterfactual)
    result: dict[str, Any] = {
        "rows": rows,
        "interventions": planned,
        "null": sizes["null"],
        "sampled": len(mine) if len(mine) < planned else None,
        "unchanged": round(scale * int(same.all(axis=1).sum())),
        "label_changed": round(scale * int((~same[target]).sum())),
        "unknown": round(scale * int((counterfactual.isna() & before.notna().to_numpy()).any(axis=1).sum())),
        "shares": weights,
        "spurious": {name: _dependences(grouper, name, parts, sizes, weights) for name in schema.spurious},
        "outside": _outside(factual, counterfactual, schema, scale),
        "recomputed": _recomputed([acts[i][1] for i in mine], same, scale),
        "new_combinations": _new_combinations(factual, counterfactual, schema, scm, scale),
    }
    result["warnings"] = [*notes, *warnings_of(result, target)]
    lines = [*lines_of(result, target), *(f"warning: {w}" for w in result["warnings"])]
    return result | {"text": wrapped(lines)}


def _refuse_wrong(schema: object, scm: object, acts: object) -> None:
    from cfaug.causal.scm import SCM

    refuse_no_schema(schema)
    if not isinstance(scm, SCM):
        raise UsageError(f"expected a fitted SCM, got {shown(scm)}; SCM(graph, schema).fit(table) makes one")
    rows: Any = acts if isinstance(acts, Sequence) else [acts]
    wrong = next(
        (r for r in rows if not (isinstance(r, tuple) and isinstance(r[-1], Intervention) and len(r) == 2)), ()
    )
    if wrong != ():
        raise UsageError(
            f"expected planned rows as (source key, do(...)), got {shown(wrong)}; give a list of such pairs"
        )


# --- the rows
def _sources(index: pd.Index, acts: Sequence[tuple[str, Intervention]]) -> npt.NDArray[np.int64]:
    if not acts:
        raise UsageError("expected planned interventions, got none; plan at least one row")
    found = np.asarray(index.get_indexer(pd.Index([str(key) for key, _ in acts], dtype=object)), dtype=np.int64)
    if (found < 0).any():
        key = acts[int(np.argmax(found < 0))][0]
        raise DataError(
            f"expected sources of the table, got {str(key)!r}, which is none of its {len(index)} keys; plan again"
        )
    return found


def _counterfactuals(
    factual: pd.DataFrame,
    scm: SCM,
    acts: Sequence[tuple[str, Intervention]],
    sources: npt.NDArray[np.int64],
    real: npt.NDArray[np.int64],
    most: int,
) -> tuple[npt.NDArray[np.int64], pd.DataFrame]:
    """The planned rows that are computed (null ones need not be), and their attributes under do()."""
    if len(real) > most:
        real = np.sort(np.random.default_rng(0).choice(real, most, replace=False))
    rows = factual.iloc[sources[real]]
    if not len(real):
        return real, rows
    # draws follow the key: two rows of one source are two draws, as they are in generation
    keyed = rows.set_axis(pd.Index([f"{key}#{i}" for key, i in zip(rows.index, real)], dtype=object))
    return real, scm.counterfactual(keyed, [acts[i][1] for i in real])[list(factual.columns)]


def _same(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    x, y = before.to_numpy(dtype=object), after.to_numpy(dtype=object)
    return pd.DataFrame((x == y) | (pd.isna(x) & pd.isna(y)), columns=before.columns)


def _shares(shares: Mapping[str, float] | None, sizes: Mapping[str, int]) -> tuple[dict[str, float], list[str]]:
    """The share of each part, which sum to 1, and a note on a part that has a share but no rows."""
    if shares is None:
        return {part: n / sum(sizes.values()) for part, n in sizes.items()}, []
    if not isinstance(shares, Mapping) or not all(isinstance(v, int | float | np.number) for v in shares.values()):
        raise UsageError(f"expected shares as a mapping of {', '.join(PARTS)} to numbers, got {shown(shares)}")
    # 1 - 0.9 - 0.1 is not 0 but a little below
    shares = {part: 0.0 if -1e-9 < share < 0 else share for part, share in shares.items()}
    wrong = [f"{k}={v!r}" for k, v in shares.items() if k not in PARTS or not np.isfinite(v) or v < 0]
    if wrong or not sum(shares.values()) > 0:
        raise UsageError(f"expected shares from 0 up of {', '.join(PARTS)}, got {', '.join(wrong) or dict(shares)}")
    given = {part: float(shares.get(part, 0.0)) for part in PARTS}
    notes = [
        f"the training mixture wants {given[part]:.0%} {part} rows, the plan has none: forecast without them"
        for part in PARTS
        if given[part] > 0 and not sizes[part]
    ]
    kept = {part: share if sizes[part] else 0.0 for part, share in given.items()}
    whole = sum(kept.values())
    if not whole:
        raise UsageError(f"expected a share of rows that there are, got {dict(shares)}; plan counterfactuals")
    return {part: share / whole for part, share in kept.items()}, notes


# --- the figures
def _dependences(
    grouper: Grouper,
    name: str,
    parts: Mapping[str, pd.DataFrame],
    sizes: Mapping[str, int],
    shares: Mapping[str, float],
) -> dict[str, Any]:
    targets, levels = grouper.schema[grouper.target].categories, grouper.level_names(name)
    tables = {part: _counts(grouper, name, rows, (len(targets), len(levels))) for part, rows in parts.items()}
    own = {part: dependence(_filled(counts)) for part, counts in tables.items()}
    # a shift that moves every row into one quartile leaves no dependence of quartiles, and all that of the values
    eta = {part: _eta(grouper, name, parts[part]) for part in ("real", "counterfactual")}
    # a row of a part weighs its share over the part's rows; a sample stands for all of them
    per_row = {part: shares[part] / max(1, sizes[part]) for part in PARTS}
    up = {part: sizes[part] / max(1, len(parts[part])) for part in PARTS}
    mixed = sum((per_row[part] * up[part] * tables[part] for part in PARTS), np.zeros((len(targets), len(levels))))
    squares = sum(per_row[part] ** 2 * up[part] * float(tables[part].sum()) for part in PARTS)
    mixture = dependence(_filled(mixed), n=float(mixed.sum()) ** 2 / squares if squares else 0.0)
    names = grouper.names(name)
    before = tables["real"].ravel()
    after = np.rint(up["counterfactual"] * tables["counterfactual"]).ravel()
    planned = sizes["counterfactual"] > 0
    return {
        "factual": asdict(own["real"]) | eta["real"],
        "counterfactual": asdict(own["counterfactual"]) | eta["counterfactual"] if planned else None,
        "mixture": asdict(mixture),
        "broken": not _dependent(own["counterfactual"], eta["counterfactual"]["eta_p_value"]) if planned else None,
        "groups": len(names),
        "filled": [{"name": g, "n": int(n)} for g, b, n in zip(names, before, after) if not b and n],
        "still_empty": [g for g, b, n in zip(names, before, after) if not b and not n],
        "smallest": {
            "factual": {"name": names[int(before.argmin())], "n": int(before.min())},
            "counterfactual": {"name": names[int(after.argmin())], "n": int(after.min())},
            "mixture": {"name": names[int(mixed.argmin())], "share": float(mixed.min())},
        },
    }


def _counts(grouper: Grouper, name: str, rows: pd.DataFrame, shape: tuple[int, int]) -> npt.NDArray[np.float64]:
    """(targets, levels): rows a group, empty groups included; a row without either is in none."""
    y = pd.Index(grouper.schema[grouper.target].categories).get_indexer(pd.Index(rows[grouper.target]))
    a = pd.Index(grouper.level_names(name)).get_indexer(
        pd.Index(grouper.levels(rows, name, missing=True), dtype=object)
    )
    both = (y >= 0) & (a >= 0)
    found = np.bincount(y[both] * shape[1] + a[both], minlength=shape[0] * shape[1])
    return found.reshape(shape).astype(np.float64)


def _filled(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    some = counts[counts.sum(1) > 0]
    return np.compress(some.sum(0) > 0, some, axis=1)


def _eta(grouper: Grouper, name: str, rows: pd.DataFrame) -> dict[str, float | None]:
    """Correlation ratio of a continuous attribute over the target, as it is; None for another."""
    if grouper.schema[name].kind != "continuous":
        return {"eta": None, "eta_p_value": None}
    y = pd.Index(grouper.schema[grouper.target].categories).get_indexer(pd.Index(rows[grouper.target]))
    found = correlation(rows[name].to_numpy(dtype=np.float64), y.astype(np.int64))
    return {"eta": found.eta, "eta_p_value": found.p_value}


def _dependent(found: Dependence, eta_p_value: float | None) -> bool:
    if eta_p_value is not None and 2 * eta_p_value < ALPHA:
        return True
    tests = 1 if eta_p_value is None else 2
    return tests * found.p_value < ALPHA and found.nmi > found.nmi_chance


def _outside(factual: pd.DataFrame, after: pd.DataFrame, schema: Schema, scale: float) -> dict[str, int]:
    found = {}
    for name in schema.names:
        if schema[name].kind == "continuous" and factual[name].notna().any():
            low, high = float(factual[name].min()), float(factual[name].max())
            found[name] = round(scale * int(((after[name] < low) | (after[name] > high)).sum()))
    return {name: n for name, n in found.items() if n}


def _recomputed(dos: Sequence[Intervention], same: pd.DataFrame, scale: float) -> dict[str, int]:
    found = {}
    for name in same.columns:
        asked = np.array([name in one.names for one in dos], dtype=bool)
        found[str(name)] = round(scale * int((~same[name].to_numpy() & ~asked).sum()))
    return {name: n for name, n in found.items() if n}


def _new_combinations(
    factual: pd.DataFrame, after: pd.DataFrame, schema: Schema, scm: SCM, scale: float
) -> dict[str, Any]:
    """Rows whose attributes, those that the image shows, never occur together in the table; continuous ones by quartiles."""
    shown = scm.graph.parents(IMAGE) if IMAGE in scm.graph else scm.graph.attributes
    names = [n for n in schema.names if n in shown]
    result: dict[str, Any] = {"attributes": names, "rows": 0, "share": 0.0, "examples": []}
    if not names or not len(after):
        return result
    own = Schema([schema[n] for n in names]).fit(factual, names)
    # by the quartiles of the table in both: the counterfactuals must not move the cuts
    seen, made = (
        np.stack(list(coded(rows, own, factual)[1].values()), axis=1)[rows[names].notna().all(axis=1)]
        for rows in (factual, after)
    )
    known = set(map(tuple, seen.tolist()))
    new = Counter(row for row in map(tuple, made.tolist()) if row not in known)
    result["rows"] = round(scale * new.total())
    result["share"] = new.total() / max(1, len(made))
    result["examples"] = [
        {"name": ",".join(f"{n}={_level(own, n, code)}" for n, code in zip(names, row)), "n": round(scale * k)}
        for row, k in new.most_common(3)
    ]
    return result


def _level(own: Schema, name: str, code: int) -> str:
    return QUARTILES[code] if own[name].kind == "continuous" else own[name].categories[code]

"""What a plan will do to the confounding, computed from the attribute tables before any image is generated.

    factual rows --plan, SCM--> counterfactual rows;   training mixture = r factual + p counterfactual + q null rows

It reports the dependence of target and spurious attribute in all three, the groups that get rows, the interventions that change
nothing, and where the decoder would have to extrapolate. The counterfactual attributes are the SCM's answer, and a balanced table
does not prove balanced pixels. Rows of one source count as independent, so p-values of plans with many rows per source are too small.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfaug.causal.audit.confounding import coded, correlation, dependence, target_of
from cfaug.causal.audit.diagnosis import ALPHA, p_text, table_lines, wrapped
from cfaug.causal.intervention import Intervention
from cfaug.causal.scm import SCM
from cfaug.data.groups import QUARTILES, Grouper
from cfaug.data.schema import IMAGE, Schema, refuse_no_schema
from cfaug.errors import DataError, UsageError, shown

MOST_ROWS = 20_000  # 200 for each of 100 groups; a share is then known to a third of a percentage point
PARTS = ("real", "counterfactual", "null")
Array = npt.NDArray[np.float64]


def forecast(
    table: pd.DataFrame,
    schema: Schema,
    scm: SCM,
    acts: Sequence[tuple[str, Intervention]],
    shares: Mapping[str, float] | None = None,
    most: int = MOST_ROWS,
    of: int | None = None,
) -> dict[str, Any]:
    """The effect of planned rows ``acts``, each (source key, Intervention), on the attribute table, as plain data.

    ``shares`` are those of the training mixture, {"real": r, "counterfactual": p, "null": q}, scaled to sum to 1; None: every
    row counts once. Of more than ``most`` planned counterfactuals a sample with a fixed seed is computed, and counts are scaled
    up; likewise where ``acts`` are themselves a fair sample of a plan of ``of`` rows.

    ``{"rows", "interventions", "null", "sampled" (or None), "unchanged", "label_changed", "unknown", "shares", "spurious": {name:
    {"factual", "counterfactual", "mixture": Dependence fields (counterfactual None without any; the first two with "eta" and
    "eta_p_value", None unless continuous), "broken": bool | None, "groups", "filled": [{"name", "n"}], "still_empty": [names],
    "smallest": {"factual", "counterfactual": {"name", "n"}, "mixture": {"name", "share"}}}}, "outside": {continuous attribute: rows
    beyond its range in the table}, "recomputed": {attribute: rows in which it changes unasked}, "new_combinations": {"attributes",
    "rows", "share", "examples": [{"name", "n"}]}, "warnings": [...], "text": [...]}``.

    Raises UsageError for an empty plan, wrong shares, an SCM that is not fitted, and what is not a schema, an SCM or a list of
    pairs; DataError for a source that ``table`` lacks.
    """
    refuse_no_schema(schema)
    if not isinstance(scm, SCM):
        raise UsageError(f"expected a fitted SCM, got {shown(scm)}; SCM(graph, schema).fit(table) makes one")
    target, grouper = target_of(schema), Grouper.fit(table, schema)
    factual = schema.canonical(table)
    sources = _sources(factual.index, acts)
    null = np.array([act.is_null for _, act in acts], dtype=np.bool_)
    planned = np.flatnonzero(~null)
    if len(planned) > most:
        planned = np.sort(np.random.default_rng(0).choice(planned, most, replace=False))
    before = factual.iloc[sources[planned]]
    after = before
    if len(planned):
        # a draw depends on the key: two rows of one source must be two draws, as they are in generation
        keyed = before.set_axis(pd.Index([f"{key}#{i}" for key, i in zip(before.index, planned)], dtype=object))
        after = scm.counterfactual(keyed, [acts[i][1] for i in planned.tolist()])[list(factual.columns)]
    rows = max(len(acts), of or 0)
    interventions = round(rows / len(acts) * int((~null).sum()))
    scale = interventions / max(1, len(planned))
    sizes = {"real": len(factual), "counterfactual": interventions, "null": round(rows / len(acts) * int(null.sum()))}
    parts = {"real": factual, "counterfactual": after, "null": factual.iloc[sources[null]]}
    weights, notes = _shares(shares, sizes)

    x, y = before.to_numpy(dtype=object), after.to_numpy(dtype=object)
    same = pd.DataFrame((x == y) | (pd.isna(x) & pd.isna(y)), columns=before.columns)
    outside, recomputed = {}, {}
    for name in schema.names:
        asked = np.array([name in acts[i][1].names for i in planned.tolist()], dtype=np.bool_)
        recomputed[name] = (~same[name].to_numpy() & ~asked).sum()
        if schema[name].kind == "continuous" and factual[name].notna().any():
            outside[name] = ((after[name] < factual[name].min()) | (after[name] > factual[name].max())).sum()

    def counted(found: Mapping[str, Any]) -> dict[str, int]:
        return {name: round(scale * int(n)) for name, n in found.items() if n}

    result: dict[str, Any] = {
        "rows": rows,
        "interventions": interventions,
        "null": sizes["null"],
        "sampled": len(planned) if len(planned) < interventions else None,
        "unchanged": round(scale * int(same.all(axis=1).sum())),
        "label_changed": round(scale * int((~same[target]).sum())),
        "unknown": round(scale * int((after.isna() & before.notna().to_numpy()).any(axis=1).sum())),
        "shares": weights,
        "spurious": {name: _dependences(grouper, name, parts, sizes, weights) for name in schema.spurious},
        "outside": counted(outside),
        "recomputed": counted(recomputed),
        "new_combinations": _new_combinations(factual, after, schema, scm, scale),
    }
    result["warnings"] = [*notes, *_warnings(result, target)]
    return result | {"text": wrapped([*_lines(result, target), *(f"warning: {w}" for w in result["warnings"])])}


def _sources(index: pd.Index, acts: Sequence[tuple[str, Intervention]]) -> npt.NDArray[np.int64]:
    pairs = isinstance(acts, Sequence) and all(
        isinstance(a, tuple) and len(a) == 2 and isinstance(a[1], Intervention) for a in acts
    )
    if not pairs:
        raise UsageError(
            f"expected planned rows as (source key, do(...)), got {shown(acts)}; give a list of such pairs"
        )
    if not acts:
        raise UsageError("expected planned interventions, got none; plan at least one row")
    found = np.asarray(index.get_indexer(pd.Index([str(key) for key, _ in acts], dtype=object)), dtype=np.int64)
    if (found < 0).any():
        key = acts[int(np.argmax(found < 0))][0]
        raise DataError(f"expected one of the table's {len(index)} keys as a source, got {str(key)!r}; plan again")
    return found


def _shares(shares: Mapping[str, float] | None, sizes: Mapping[str, int]) -> tuple[dict[str, float], list[str]]:
    """The share of each part, which sum to 1, and a note on a part that has a share but no rows."""
    if shares is None:
        return {part: n / sum(sizes.values()) for part, n in sizes.items()}, []
    wrong = not isinstance(shares, Mapping) or not all(
        k in PARTS
        and isinstance(v, int | float | np.number)
        and np.isfinite(v)
        and v > -1e-9  # 1 - 0.9 - 0.1 is below 0
        for k, v in shares.items()
    )
    if wrong or not sum(shares.values()) > 0:
        raise UsageError(f"expected shares from 0 up of {', '.join(PARTS)}, got {shown(shares)}; correct them")
    given = {part: max(0.0, float(shares.get(part, 0.0))) for part in PARTS}
    notes = [
        f"the training mixture wants {given[part]:.0%} {part} rows, the plan has none: forecast without them"
        for part in PARTS
        if given[part] > 0 and not sizes[part]
    ]
    kept = {part: share if sizes[part] else 0.0 for part, share in given.items()}
    if not sum(kept.values()):
        raise UsageError(f"expected a share of rows that the plan has, got {shown(shares)}; plan counterfactuals")
    return {part: share / sum(kept.values()) for part, share in kept.items()}, notes


# --- the figures
def _dependences(
    grouper: Grouper,
    name: str,
    parts: Mapping[str, pd.DataFrame],
    sizes: Mapping[str, int],
    shares: Mapping[str, float],
) -> dict[str, Any]:
    tables = {part: _counts(grouper, name, rows) for part, rows in parts.items()}
    real, made = (_with_eta(grouper, name, tables[part], parts[part]) for part in ("real", "counterfactual"))
    # every row of a part weighs the share of the part divided by its rows; a sampled row stands for several
    per_row = {part: shares[part] / max(1, sizes[part]) for part in PARTS}
    up = {part: sizes[part] / max(1, len(parts[part])) for part in PARTS}
    mixed = np.sum([per_row[part] * up[part] * tables[part] for part in PARTS], axis=0)
    squares = sum(per_row[part] ** 2 * up[part] * float(tables[part].sum()) for part in PARTS)
    mixture = dependence(_filled(mixed), n=float(mixed.sum()) ** 2 / squares if squares else 0.0)
    names = grouper.names(name)
    before, after = tables["real"].ravel(), np.rint(up["counterfactual"] * tables["counterfactual"]).ravel()
    planned = sizes["counterfactual"] > 0
    return {
        "factual": real,
        "counterfactual": made if planned else None,
        "mixture": asdict(mixture),
        "broken": not _dependent(made) if planned else None,
        "groups": len(names),
        "filled": [{"name": g, "n": int(n)} for g, b, n in zip(names, before, after) if not b and n],
        "still_empty": [g for g, b, n in zip(names, before, after) if not b and not n],
        "smallest": {
            "factual": {"name": names[int(before.argmin())], "n": int(before.min())},
            "counterfactual": {"name": names[int(after.argmin())], "n": int(after.min())},
            "mixture": {"name": names[int(mixed.argmin())], "share": float(mixed.min())},
        },
    }


def _target_codes(grouper: Grouper, rows: pd.DataFrame) -> npt.NDArray[np.int64]:
    categories = pd.Index(grouper.schema[grouper.target].categories)
    return categories.get_indexer(pd.Index(rows[grouper.target])).astype(np.int64)


def _counts(grouper: Grouper, name: str, rows: pd.DataFrame) -> Array:
    """(targets, levels): rows per group, empty groups included; a row without target or attribute is in no group."""
    levels = pd.Series(grouper.levels(rows, name, missing=True), rows.index, dtype=object)
    found = pd.crosstab(rows[grouper.target].to_numpy(), levels.to_numpy())
    targets = grouper.schema[grouper.target].categories
    return found.reindex(index=targets, columns=grouper.level_names(name), fill_value=0).to_numpy(dtype=np.float64)


def _filled(counts: Array) -> Array:
    some = counts[counts.sum(1) > 0]
    return np.compress(some.sum(0) > 0, some, axis=1)


def _with_eta(grouper: Grouper, name: str, counts: Array, rows: pd.DataFrame) -> dict[str, Any]:
    """The fields of ``Dependence``, and the correlation ratio of the values of a continuous attribute.

    A shift that moves every row into one quartile leaves no dependence of the quartiles, but all the dependence of the values.
    """
    found: dict[str, Any] = asdict(dependence(_filled(counts)))
    if grouper.schema[name].kind != "continuous":
        return found | {"eta": None, "eta_p_value": None}
    ratio = correlation(rows[name].to_numpy(dtype=np.float64), _target_codes(grouper, rows))
    return found | {"eta": ratio.eta, "eta_p_value": ratio.p_value}


def _dependent(made: Mapping[str, Any]) -> bool:
    eta_p = made["eta_p_value"]
    if eta_p is not None and 2 * eta_p < ALPHA:  # two tests of one attribute: half the level for each
        return True
    return bool((1 if eta_p is None else 2) * made["p_value"] < ALPHA and made["nmi"] > made["nmi_chance"])


def _new_combinations(
    factual: pd.DataFrame, after: pd.DataFrame, schema: Schema, scm: SCM, scale: float
) -> dict[str, Any]:
    """The rows whose combination of the attributes that the image shows never occurs in the table; continuous ones by quartiles."""
    seen = scm.graph.parents(IMAGE) if IMAGE in scm.graph else scm.graph.attributes
    names = [n for n in schema.names if n in seen]
    result: dict[str, Any] = {"attributes": names, "rows": 0, "share": 0.0, "examples": []}
    if not names or not len(after):
        return result
    own = Schema([schema[n] for n in names]).fit(factual, names)
    # both use the quartiles of the table, so that the counterfactuals do not move the cuts
    old, made = (
        np.stack(list(coded(rows, own, factual)[1].values()), axis=1)[rows[names].notna().all(axis=1)]
        for rows in (factual, after)
    )
    known = set(map(tuple, old.tolist()))
    new = Counter(row for row in map(tuple, made.tolist()) if row not in known)

    def level(name: str, code: int) -> str:
        return QUARTILES[code] if own[name].kind == "continuous" else own[name].categories[code]

    return result | {
        "rows": round(scale * new.total()),
        "share": new.total() / max(1, len(made)),
        "examples": [
            {"name": ",".join(f"{n}={level(n, code)}" for n, code in zip(names, row)), "n": round(scale * k)}
            for row, k in new.most_common(3)
        ],
    }


# --- words
def _warnings(result: Mapping[str, Any], target: str) -> list[str]:
    """What a user should know before images are made from this plan; empty when there is nothing to say."""
    lines, rows = [], max(1, result["interventions"])
    for name, row in result["spurious"].items():
        if row["broken"] is False:
            made = row["counterfactual"]
            eta = "" if made["eta"] is None else f", eta {made['eta']:.3f} (p {p_text(made['eta_p_value'])})"
            lines.append(
                f"{name}: the plan does not break its dependence on {target}: NMI {made['nmi']:.3f} among the counterfactuals "
                f"(chance {made['nmi_chance']:.3f}, p {p_text(made['p_value'])}){eta}, NMI {row['factual']['nmi']:.3f} in the table; "
                f"draw the values independently of {target}"
            )
    of = f"of {rows} counterfactual rows"
    if result["label_changed"]:
        lines.append(f"{result['label_changed']} {of} change {target} itself: their label would be wrong")
    for name, n in result["outside"].items():
        lines.append(f"{name}: {n} {of} are outside its range in the table: the decoder must extrapolate there")
    new = result["new_combinations"]
    if new["rows"]:
        common = ", ".join(f"{e['name']} ({e['n']})" for e in new["examples"])
        lines.append(
            f"{100 * new['share']:.{0 if new['share'] >= 0.01 else 2}f} % of the counterfactual rows ({new['rows']}) are combinations of "
            f"{', '.join(new['attributes'])} that no training row has: the decoder must extrapolate there; most often {common}"
        )
    if result["unknown"]:
        lines.append(f"{result['unknown']} {of} lose a value that cannot be computed: a parent or the noise is missing")
    return lines


def _lines(result: Mapping[str, Any], target: str) -> list[str]:
    """The figures: what the plan is, the dependence before and after, the groups that fill."""
    planned = result["interventions"]
    of = f"; computed for {result['sampled']} of them, drawn at random, counts scaled up" if result["sampled"] else ""
    shares = ", ".join(f"{share:.0%} {part}" for part, share in result["shares"].items())
    lines = [
        f"plan: {result['rows']} rows, {planned} interventions and {result['null']} null ones{of}",
        f"{result['unchanged']} of the {planned} interventions set the value that the image has",
        *(f"{name} follows in {n} counterfactual rows" for name, n in result["recomputed"].items()),
        f"dependence on {target}; the training mixture is {shares}",
    ]
    table: dict[str, dict[str, str]] = {}
    for name, row in result["spurious"].items():
        was, made, mixed = row["factual"], row["counterfactual"], row["mixture"]
        table[name] = {
            "NMI now": f"{was['nmi']:.3f}",
            "planned": "-" if made is None else f"{made['nmi']:.3f}",
            "chance": "-" if made is None else f"{made['nmi_chance']:.3f}",
            "p": "-" if made is None else p_text(made["p_value"]),
            "mixture": f"{mixed['nmi']:.3f}",
            "V now": f"{was['cramers_v']:.3f}",
            "V planned": "-" if made is None else f"{made['cramers_v']:.3f}",
            "V mixture": f"{mixed['cramers_v']:.3f}",
            "smallest group now": str(row["smallest"]["factual"]["n"]),
            "smallest planned": str(row["smallest"]["counterfactual"]["n"]),
        }
    lines += table_lines(table)
    for name, row in result["spurious"].items():
        filled, empty = [f"{g['name']} ({g['n']})" for g in row["filled"]], row["still_empty"]
        for these, what in ((filled, "are empty now and get rows"), (empty, "stay empty")):
            if these:
                more = ", ..." if len(these) > 3 else ""
                lines.append(f"{name}: {len(these)} of {row['groups']} groups {what}: {', '.join(these[:3])}{more}")
    return lines

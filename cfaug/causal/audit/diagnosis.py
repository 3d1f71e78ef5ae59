"""The diagnosis before anything is fitted: how bad is the shortcut, and on which attributes may one intervene?

It is one screen for people (``text``) and plain data for the report: the dependence of the target on every attribute, alone and
given the other attributes (``confounding``), the sizes of the groups, and what the graph says about every intervention
(``back_doors``). The graph is not tested, with one exception: the text says where a spurious attribute depends on the target
although the graph has no open path between them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from cfaug.causal.audit.back_doors import safe_interventions
from cfaug.causal.audit.confounding import (
    coded,
    conditional,
    contingency,
    correlation,
    dependence,
    effective_sample_size,
    missing_counts,
    target_of,
)
from cfaug.causal.graph import CausalGraph, refuse_no_graph
from cfaug.data.groups import Grouper
from cfaug.data.schema import Schema, refuse_no_schema
from cfaug.data.table import refuse_no_table

ALPHA = 0.01  # a smaller p means "dependent"; at 0.05 one of twenty harmless attributes would be called a shortcut
WIDTH = 160
RAREST = 3


def diagnose(table: pd.DataFrame, schema: Schema, graph: CausalGraph | None = None) -> dict[str, Any]:
    """What stands between this table and a fair classifier, as plain data.

    ``{"n", "missing": {name: rows without it}, "target", "spurious": {...}, "attributes": {...}, "interventions": {...},
    "text": [lines of at most 160 characters]}``.

    ``spurious[name]``: ``n`` (the rows that have it, which its figures and groups are of), ``nmi``, ``cramers_v``, ``groups``,
    ``smallest_group`` {"name", "n"} (of those with any rows), ``rarest_groups`` (up to three), ``empty_groups``,
    ``effective_sample_size`` (Kish's, of rows weighted so that every group with any rows counts the same), ``safe`` and ``path``:
    False and the directed path to the target when the graph has one, so that an intervention could not keep the label.

    ``attributes[name]``, spurious ones first: ``role`` ("spurious" or "other"), ``kind``, the fields of ``Dependence`` on the
    target, ``eta``, ``eta_chance``, ``eta_p_value`` (None unless continuous), ``dependent`` (p < 0.01; of eta or of the quartiles,
    halved, for a continuous one), ``conditional``: the fields of ``Conditional`` given all other attributes, and ``given``, their
    names. ``interventions`` as ``safe_interventions`` gives it; {} without a graph.

    Raises UsageError without target or spurious attribute and for what is not a table, schema or graph; DataError for a
    spurious attribute without any value.
    """
    refuse_no_table(table)
    refuse_no_schema(schema)
    target = target_of(schema)
    if graph is not None:
        refuse_no_graph(graph)
        graph.check(schema)
    missing = missing_counts(table, schema)
    grouper = Grouper.fit(table, schema)
    groups = _groups(table, grouper)
    attributes = _attributes(table, schema, target, missing)
    interventions = safe_interventions(graph, schema, target) if graph is not None else {}
    found: dict[str, Any] = {}
    for name in schema.spurious:
        path = interventions[name]["path"] if interventions else None
        measures = {key: attributes[name][key] for key in ("n", "nmi", "cramers_v")}
        found[name] = {**measures, **groups[name], "safe": path is None, "path": path}
    lines = [f"{len(table)} rows, target {target} ({len(grouper.schema[target].categories)} values)"]
    lines += [f"{m}: {n} of {len(table)} rows have no value ({100 * n / len(table):.0f} %)" for m, n in missing.items()]
    result = {
        "n": len(table),
        "missing": missing,
        "target": target,
        "spurious": found,
        "attributes": attributes,
        "interventions": interventions,
    }
    lines += [*_measure_lines(result), *_group_lines(result), *_intervention_lines(result)]
    return result | {"text": wrapped(lines)}


def _groups(table: pd.DataFrame, grouper: Grouper) -> dict[str, dict[str, Any]]:
    labels = grouper.labels(table, missing=True)
    found = {}
    for name in grouper.spurious:
        sizes = labels[name].value_counts().reindex(list(grouper.names(name)), fill_value=0)
        filled = sizes[sizes > 0].sort_values(kind="stable")
        rarest = [{"name": str(g), "n": int(n)} for g, n in filled.head(RAREST).items()]
        # in the balanced set every group weighs the same, so each of its n rows weighs 1 / n
        weights = np.repeat(1.0 / filled.to_numpy(dtype=np.float64), filled.to_numpy())
        found[name] = {
            "groups": len(sizes),
            "smallest_group": rarest[0],
            "rarest_groups": rarest,
            "empty_groups": [str(g) for g in sizes.index[sizes == 0]],
            "effective_sample_size": effective_sample_size(weights),
        }
    return found


def _attributes(
    table: pd.DataFrame, schema: Schema, target: str, missing: Mapping[str, int]
) -> dict[str, dict[str, Any]]:
    others = [name for name in schema.names if name != target and name not in schema.spurious]
    order = [*schema.spurious, *others]
    valued = [name for name in order if missing.get(name, 0) < len(table)]
    columns, codes = coded(table, Schema([schema[n] for n in (target, *valued)], target))
    y = codes[target]
    found: dict[str, dict[str, Any]] = {}
    for name in order:
        continuous = schema[name].kind == "continuous"
        x = codes.get(name, np.full(len(table), -1, dtype=np.int64))
        row = asdict(dependence(contingency(y, x)))
        row["n"] = int((x >= 0).sum())
        eta = correlation(columns[name].to_numpy(), y) if continuous and name in codes else None
        row |= {
            "eta": eta and eta.eta,
            "eta_chance": eta and eta.chance,
            "eta_p_value": eta and eta.p_value,
        }
        row["dependent"] = smallest_p(row) < ALPHA
        given = [other for other in valued if other != name]
        share = conditional(y, x, [codes[other] for other in given])
        row["conditional"] = asdict(share) | {"given": given}
        role = "spurious" if name in schema.spurious else "other"
        found[name] = {"role": role, "kind": schema[name].kind, **row}
    return found


# --- words
def wrapped(lines: list[str]) -> list[str]:
    """The lines, none longer than 160 characters; a continued line is indented."""
    parts = (textwrap.wrap(line, WIDTH, subsequent_indent="    ", break_on_hyphens=False) for line in lines)
    return [part for line, found in zip(lines, parts) for part in ([line] if len(line) <= WIDTH else found)]


def table_lines(rows: Mapping[str, Mapping[str, str]]) -> list[str]:
    """A table as lines: ``rows`` maps an attribute to its cells by column; long names are cut."""
    width = min(40, max(len(name) for name in ("attribute", *rows)))
    cells = [{"attribute".ljust(width): name[:width].ljust(width), **row} for name, row in rows.items()]
    return pd.DataFrame(cells).to_string(index=False).splitlines()


def smallest_p(row: Mapping[str, Any]) -> float:
    """The p-value of an attribute; a continuous one has two tests, of which the smaller p counts, doubled."""
    p, eta_p = float(row["p_value"]), row["eta_p_value"]
    return p if eta_p is None else min(1.0, 2 * min(p, float(eta_p)))


def p_text(p: float) -> str:
    """A p-value for people: "0.03", "< 0.001"."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def _measure_lines(result: Mapping[str, Any]) -> list[str]:
    table: dict[str, dict[str, str]] = {}
    unsaid: dict[str, list[str]] = {}
    for name, row in result["attributes"].items():
        share, eta = row["conditional"], row["eta"]
        table[name] = {
            "role": f"{row['role']:8}",  # padded to the length of "spurious", so that it stands on the left
            "rows": str(row["n"]),
            "nats": f"{row['mutual_information']:.3f}",
            "NMI": f"{row['nmi']:.3f}",
            "chance": f"{row['nmi_chance']:.3f}",
            "V": f"{row['cramers_v']:.3f}",
            "V~": f"{row['cramers_v_corrected']:.3f}",
            "eta": "-" if eta is None else f"{eta:.3f}",
            "p": p_text(smallest_p(row)),
            "given others": "-"
            if share["value"] is None
            else f"{share['value'] + 0.0:+.3f} (p {p_text(share['p_value'])})",
        }
        if share["value"] is None and share["given"]:
            unsaid.setdefault(share["why"], []).append(name)
    head = f"dependence on {result['target']} (NMI beside what chance shows; V~ without bias; p of independence; nats given the others)"
    notes = [f"given the others, not said for {', '.join(names)}: {why}" for why, names in unsaid.items()]
    return [head, *table_lines(table), *notes]


def _group_lines(result: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, row in result["spurious"].items():
        n, empty = row["n"], row["empty_groups"]
        rarest = ", ".join(f"{g['name']} (n = {g['n']})" for g in row["rarest_groups"])
        named = f": {', '.join(empty[:RAREST])}{', ...' if len(empty) > RAREST else ''}" if empty else ""
        worth = f"balancing {n} rows leaves what {row['effective_sample_size']:.0f} independent rows would tell"
        lines.append(f"{name}: {row['groups']} groups, {len(empty)} empty{named}; rarest {rarest}; {worth}")
        if n < result["n"]:
            lines.append(f"{name}: these figures are of the {n} rows that have {name}, the others are in no group")
    return lines


def _intervention_lines(result: Mapping[str, Any]) -> list[str]:
    lines, target = [], result["target"]
    others = []  # an attribute that nobody intends to intervene on gets a line only where it is dangerous
    for name, row in result["interventions"].items():
        if name == target:
            continue
        if not row["safe"]:
            lines.append(f"{name}: not safe to intervene on, {row['why']}")
        elif name not in result["spurious"]:
            others.append(name)
        else:
            follows = f"; recomputed with it: {', '.join(row['recomputed'])}" if row["recomputed"] else ""
            lines.append(f"{name}: safe to intervene on, {row['why']}{follows}")
            if row["open_paths"]:
                lines.append(f"{name}: confounded through {'; '.join(row['open_paths'])}; do({name}) cuts it")
                if not result["attributes"][name]["dependent"]:
                    lines.append(
                        f"{name}: no dependence on {target} beyond chance in this table, so there may be no shortcut to remove"
                    )
            elif result["attributes"][name]["dependent"]:
                lines.append(
                    f"{name}: depends on {target}, yet the graph has no open path between them: an arrow, a <-> or how the rows were selected is missing"
                )
    if others:
        lines.append(f"also safe, though not listed as spurious: {', '.join(others)}")
    return lines

"""What a forecast says to people: its figures as lines of text, and warnings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cfaug.causal.audit.diagnosis import aligned, p_text


def warnings_of(result: Mapping[str, Any], target: str) -> list[str]:
    """What a user should know before images are made from this plan; empty when there is nothing."""
    lines = []
    rows = max(1, result["interventions"])
    for name, row in result["spurious"].items():
        if row["broken"] is False:
            made, was = row["counterfactual"], row["factual"]
            eta = "" if made["eta"] is None else f", eta {made['eta']:.3f} (p {p_text(made['eta_p_value'])})"
            lines.append(
                f"{name}: the plan does not break its dependence on {target}: NMI {made['nmi']:.3f} among the counterfactuals "
                f"(chance {made['nmi_chance']:.3f}, p {p_text(made['p_value'])}){eta}, NMI {was['nmi']:.3f} in the table; draw the values independently of {target}"
            )
    if result["label_changed"]:
        lines.append(
            f"{result['label_changed']} of {rows} counterfactual rows change {target} itself: their label would be wrong"
        )
    for name, n in result["outside"].items():
        lines.append(
            f"{name}: {n} of {rows} counterfactual rows are outside its range in the table: the decoder must extrapolate there"
        )
    new = result["new_combinations"]
    if new["rows"]:
        common = ", ".join(f"{e['name']} ({e['n']})" for e in new["examples"])
        lines.append(
            f"{100 * new['share']:.{0 if new['share'] >= 0.01 else 2}f} % of the counterfactual rows ({new['rows']}) are combinations of "
            f"{', '.join(new['attributes'])} that no training row has: the decoder must extrapolate there; most often {common}"
        )
    if result["unknown"]:
        lines.append(
            f"{result['unknown']} of {rows} counterfactual rows lose a value that nobody can compute: a parent or the noise is missing"
        )
    return lines


def lines_of(result: Mapping[str, Any], target: str) -> list[str]:
    """The figures: what the plan is, the dependence before and after, the groups that fill."""
    planned = result["interventions"]
    of = f"; computed for {result['sampled']} of them, drawn at random, counts scaled up" if result["sampled"] else ""
    shares = ", ".join(f"{share:.0%} {part}" for part, share in result["shares"].items())
    lines = [
        f"plan: {result['rows']} rows, {planned} interventions and {result['null']} null ones{of}",
        f"{result['unchanged']} of the {planned} interventions change nothing (the value is what it was)",
    ]
    for name, n in result["recomputed"].items():
        lines.append(f"{name} follows in {n} counterfactual rows")
    lines.append(f"dependence on {target}; the training mixture is {shares}")
    head = [
        "attribute",
        "NMI now",
        "planned",
        "chance",
        "p",
        "mixture",
        "V now",
        "planned",
        "mixture",
        "smallest group now",
        "planned",
    ]
    table = [head]
    for name, row in result["spurious"].items():
        was, made, mixed = (row[part] for part in ("factual", "counterfactual", "mixture"))
        smallest = [str(row["smallest"][part]["n"]) for part in ("factual", "counterfactual")]
        three = (
            ["-"] * 3 if made is None else [f"{made['nmi']:.3f}", f"{made['nmi_chance']:.3f}", p_text(made["p_value"])]
        )
        v = "-" if made is None else f"{made['cramers_v']:.3f}"
        table.append(
            [
                name,
                f"{was['nmi']:.3f}",
                *three,
                f"{mixed['nmi']:.3f}",
                f"{was['cramers_v']:.3f}",
                v,
                f"{mixed['cramers_v']:.3f}",
                *smallest,
            ]
        )
    lines += aligned(table, 1)
    for name, row in result["spurious"].items():
        filled, empty = row["filled"], row["still_empty"]
        if filled:
            few = ", ".join(f"{g['name']} ({g['n']})" for g in filled[:3])
            lines.append(
                f"{name}: {len(filled)} of {row['groups']} groups are empty now and get rows: {few}{', ...' if len(filled) > 3 else ''}"
            )
        if empty:
            few = ", ".join(empty[:3])
            lines.append(
                f"{name}: {len(empty)} of {row['groups']} groups stay empty: {few}{', ...' if len(empty) > 3 else ''}"
            )
    return lines

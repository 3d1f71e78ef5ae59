"""The assumption card of a fitted SCM: what has to be true for its counterfactuals to be right.

It lists what was assumed and what the data can decide (``cfaug.causal.audit.identification``). It tests nothing: the graph is
tested on the table by ``cfaug.causal.audit.falsification``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from cfaug.causal.audit.confounding import missing_counts
from cfaug.causal.audit.identification import STATUSES, identification
from cfaug.causal.scm import SCM
from cfaug.data.schema import IMAGE

STATUS_WORDS: Mapping[str, str] = {
    "unchanged": "stays as it is",
    "identified": "identified",
    "assumed": "as good as the given function",
    "convention": "depends on a convention",
    "not_identified": "not identified",
}
IMAGE_LINES = (
    "Counterfactual images are not identifiable from images and labels, nor with the graph (Pan and Bareinboim 2024): the "
    "image mechanism is a model's answer, not a fact.",
    "A decoder trained on confounded images is itself confounded: its noise may carry the old attribute where no eye sees it.",
)
_HIDDEN = (
    "Samples draw the noises of both together. A counterfactual keeps the noise abducted from its own row, in which the hidden "
    "cause has already spoken. do() on one of them cuts the tie."
)
_MISSING = (
    "A mechanism is fitted on the rows that have its attribute and all its parents, which is unbiased if what is missing does not "
    "depend on the attribute given its parents. Where a noise is not known, what would be computed from it stays missing."
)
_CONDITIONS = (
    "the new value is drawn independently of the target (from the marginal, or uniformly), never from p(attribute | target)",
    "what follows from the attribute is recomputed, and everything else is held fixed",
    "the image's noise does not carry the old value",
)


def assumption_card(scm: SCM, table: pd.DataFrame | None = None) -> dict[str, Any]:
    """The card of a fitted ``scm`` as plain data; ``table`` (the one it was fitted to) adds the counts of missing values.

    ``{"graph": text, "edges", "unconfirmed": [texts], "hidden": {"pairs", "means"}, "outside": [attributes that the graph does not
    name], "mechanisms": {name: {"parents", "kind", "convention", "monotone", "parameters", "rows"}}, "conventions":
    [{"convention", "kinds"}], "missing": {"counts", "policy"}, "label": {"target", "spurious": {name: {"safe", "path"}}, "conditions"}
    or None, "identification": rows, "summary": groups of them, "image": [lines], "text": Markdown}``. UsageError before ``fit``.
    """
    graph, schema, fitted = scm.graph, scm.schema, scm.fitted
    mechanisms: dict[str, dict[str, Any]] = {}
    kinds: dict[str, list[str]] = {}
    for name, one in fitted.mechanisms.items():
        mechanisms[name] = {
            "parents": list(one.parents),
            "kind": one.kind,
            "convention": one.convention,
            "monotone": bool(one.monotone),
            "parameters": int(one.parameters),
            "rows": fitted.rows[name],
        }
        if one.kind not in kinds.setdefault(one.convention, []):
            kinds[one.convention].append(one.kind)
    label = None
    if schema.target is not None:
        known = schema.target in graph
        paths = {n: graph.directed_path(n, schema.target) if known and n in graph else None for n in schema.spurious}
        label = {
            "target": schema.target,
            "spurious": {n: {"safe": path is None, "path": path} for n, path in paths.items()},
            "conditions": list(_CONDITIONS),
        }
    rows = identification(graph, {name: fitted.mechanisms[name] for name in graph.attributes})
    card: dict[str, Any] = {
        "graph": str(graph),
        "edges": [list(edge) for edge in graph.edges],
        "unconfirmed": list(graph.unconfirmed),
        "hidden": {"pairs": [list(pair) for pair in graph.bidirected], "means": _HIDDEN},
        "outside": [n for n in schema.names if n not in graph],
        "mechanisms": mechanisms,
        "conventions": [{"convention": convention, "kinds": names} for convention, names in kinds.items()],
        "missing": {"counts": {} if table is None else missing_counts(table, schema), "policy": _MISSING},
        "label": label,
        "identification": rows,
        "summary": summary(rows),
        "image": list(IMAGE_LINES) if IMAGE in graph else [],
    }
    return card | {"text": _markdown(card)}


def summary(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows about attributes that change, grouped by status and reason, the strongest status first.

    ``[{"status", "under", "pairs": [[do, outcome], ...], "effects": [pairs whose effect on the whole population is identified]}]``.
    """
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        if row["status"] == "unchanged" or row["outcome"] == IMAGE:
            continue
        key = row["status"], row["under"]
        group = groups.setdefault(key, {"status": key[0], "under": key[1], "pairs": [], "effects": []})
        pair = [row["do"], row["outcome"]]
        group["pairs"].append(pair)
        if row["effect"]["identified"]:
            group["effects"].append(pair)
    return sorted(groups.values(), key=lambda g: STATUSES.index(g["status"]))


def pair_words(pair: Sequence[str]) -> str:
    """("a", "b") as "b under do(a)"."""
    return f"{pair[1]} under do({pair[0]})"


def effect_words(group: Mapping[str, Any]) -> str:
    """Whether the effect on the population is identified for a group of :func:`summary`: "yes", "no", or for which pairs."""
    if len(group["effects"]) in (0, len(group["pairs"])):
        return "yes" if group["effects"] else "no"
    return "only " + ", ".join(pair_words(p) for p in group["effects"])


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    # a bar, as in p(a | b), would end the cell of a Markdown table
    cells = [[str(c).replace("|", "\\|") for c in line] for line in (head, ["---"] * len(head), *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _markdown(card: Mapping[str, Any]) -> str:
    text = (
        f"**Graph.** `{card['graph']}`. It is taken for true: every arrow that is there, and every arrow that is not."
    )
    if card["unconfirmed"]:
        text += f" Proposed by discovery and not confirmed: {', '.join(f'`{e}`' for e in card['unconfirmed'])}."
    if card["outside"]:
        text += f" Not in the graph, hence left as they are under every do(): {', '.join(card['outside'])}."
    parts = ["# What these counterfactuals assume", text]
    if card["hidden"]["pairs"]:
        pairs = ", ".join(f"`{a} <-> {b}`" for a, b in card["hidden"]["pairs"])
        parts.append(f"**Hidden common causes** ({pairs}). {card['hidden']['means']}")
    parts.append("**Mechanisms** of the attributes, and the noise that each takes:")
    rows: list[tuple[object, ...]] = [
        (name, ", ".join(m["parents"]) or "none", m["kind"], m["parameters"], m["rows"])
        for name, m in card["mechanisms"].items()
    ]
    parts.append(_table(["attribute", "parents", "mechanism", "fitted numbers", "rows"], rows))
    parts.append("\n".join(f"- {', '.join(one['kinds'])}: {one['convention']}" for one in card["conventions"]))
    if card["missing"]["counts"]:
        counts = ", ".join(f"{name} in {n} rows" for name, n in card["missing"]["counts"].items())
        parts.append(f"**Missing values** ({counts}). {card['missing']['policy']}")
    if label := card["label"]:
        conditions = "; ".join(label["conditions"])
        parts.append(f"**Keeping the label** {label['target']} is right only if {conditions}. By the graph:")
        parts.append("\n".join(_label_line(name, one, label["target"]) for name, one in label["spurious"].items()))
    head = "**Which counterfactuals the data decide**, if the graph is true and every combination of parents occurs."
    if card["summary"]:
        rows = [
            (", ".join(map(pair_words, g["pairs"])), STATUS_WORDS[g["status"]], g["under"], effect_words(g))
            for g in card["summary"]
        ]
        columns = ["counterfactual", "in one row", "assuming, or because", "effect on the population identified"]
        parts += [head, _table(columns, rows), "Whatever is not listed stays as it is."]
    else:
        parts.append(head + " No attribute follows from a different one: do() changes what is set, and the image.")
    if card["image"]:
        parts.append("**The image.** " + " ".join(card["image"]))
    return "\n\n".join(parts) + "\n"


def _label_line(name: str, one: Mapping[str, Any], target: str) -> str:
    if one["safe"]:
        return f"- do({name}): yes, no directed path leads from {name} to {target}"
    return f"- do({name}): NO, {' -> '.join(one['path'])}: the intervention changes the label"

"""The assumption card of a fitted SCM: what has to be true for its counterfactuals to be, short enough for an appendix.

It lists what was assumed and what the data could decide (``cfaug.causal.audit.identification``); it does not test anything:
``cfaug.causal.audit.falsification`` confronts the graph with the table, and the run's report shows both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from cfaug.causal.audit.identification import STATUSES, identification_rows
from cfaug.data.schema import IMAGE

if TYPE_CHECKING:
    from cfaug.causal.scm import SCM

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
    "depend on the attribute given its parents. Where a noise is not known, what would be computed from it stays missing, unless "
    "imputation was asked for."
)
_CONDITIONS = (
    "the new value is drawn independently of the target (from the marginal, or uniformly), never from p(attribute | target)",
    "what follows from the attribute is recomputed, and everything else is held fixed",
    "the image's noise does not carry the old value",
)


def assumption_card(scm: SCM, table: pd.DataFrame | None = None) -> dict[str, Any]:
    """The card of a fitted ``scm`` as plain data; ``table`` (the one it was fitted to) adds the counts of missing values.

    ``{"graph": text, "edges", "unconfirmed": [texts], "hidden": {"pairs": [[a, b]], "means": text} , "outside": [attributes that the
    graph does not name], "mechanisms": {name: {"parents", "kind", "convention", "monotone", "parameters", "rows"}}, "conventions": [{"convention", "kinds"}], "missing":
    {"counts": {name: rows without}, "policy"}, "label": {"target", "spurious": {name: {"safe", "path"}}, "conditions"} or None,
    "identification": rows, "summary": rows grouped by what they have in common, "image": [lines] , "text": Markdown}``.
    ``counts`` is {} without a table. Raises UsageError before ``fit``.
    """
    graph, schema = scm.graph, scm.schema
    present = None if table is None else schema.canonical(table).notna()
    mechanisms = {}
    for name in scm.order:
        mechanism = scm.mechanism(name)
        mechanisms[name] = {
            "parents": list(mechanism.parents),
            "kind": mechanism.kind,
            "convention": mechanism.convention,
            "monotone": bool(mechanism.monotone),
            "parameters": int(mechanism.parameters),
            "rows": scm.fitted.rows[name],
        }
    counts = {} if present is None else {str(n): int(k) for n, k in (~present).sum().items() if k}
    found = identification_rows(scm)
    card: dict[str, Any] = {
        "graph": str(graph),
        "edges": [list(edge) for edge in graph.edges],
        "unconfirmed": list(graph.unconfirmed),
        "hidden": {"pairs": [list(pair) for pair in graph.bidirected], "means": _HIDDEN},
        "outside": [n for n in schema.names if n not in graph],
        "mechanisms": mechanisms,
        "conventions": _conventions(mechanisms),
        "missing": {"counts": counts, "policy": _MISSING},
        "label": _label(scm),
        "identification": found,
        "summary": summary(found),
        "image": list(IMAGE_LINES) if IMAGE in graph else [],
    }
    return card | {"text": _markdown(card)}


def _conventions(mechanisms: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every convention once, with the kinds of mechanism that have it."""
    kinds: dict[str, list[str]] = {}
    for one in mechanisms.values():
        same = kinds.setdefault(one["convention"], [])
        same += [one["kind"]] * (one["kind"] not in same)
    return [{"convention": convention, "kinds": names} for convention, names in kinds.items()]


def _label(scm: SCM) -> dict[str, Any] | None:
    graph, target = scm.graph, scm.schema.target
    if target is None:
        return None
    spurious = {}
    for name in scm.schema.spurious:
        path = graph.directed_path(name, target) if name in graph and target in graph else None
        spurious[name] = {"safe": path is None, "path": path}
    return {"target": target, "spurious": spurious, "conditions": list(_CONDITIONS)}


def summary(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows about attributes that do change, those of one status and one reason together: strongest status first.

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
    """What a group of :func:`summary` says of the effect on the population: "yes", "no", or for which pairs."""
    if len(group["effects"]) in (0, len(group["pairs"])):
        return "yes" if group["effects"] else "no"
    return "only " + ", ".join(pair_words(p) for p in group["effects"])


def _markdown(card: Mapping[str, Any]) -> str:
    parts = ["# What these counterfactuals assume", _graph_part(card), _mechanism_part(card)]
    if card["missing"]["counts"]:
        counts = ", ".join(f"{name} in {n} rows" for name, n in card["missing"]["counts"].items())
        parts.append(f"**Missing values** ({counts}). {card['missing']['policy']}")
    if card["label"]:
        parts.append(_label_part(card["label"]))
    parts.append(_identification_part(card))
    if card["image"]:
        parts.append("**The image.** " + " ".join(card["image"]))
    return "\n\n".join(parts) + "\n"


def _graph_part(card: Mapping[str, Any]) -> str:
    text = (
        f"**Graph.** `{card['graph']}`. It is taken for true: every arrow that is there, and every arrow that is not."
    )
    if card["unconfirmed"]:
        text += f" Proposed by discovery and confirmed by nobody: {', '.join(f'`{e}`' for e in card['unconfirmed'])}."
    if card["outside"]:
        text += f" Not in the graph, hence left as they are under every do(): {', '.join(card['outside'])}."
    if card["hidden"]["pairs"]:
        pairs = ", ".join(f"`{a} <-> {b}`" for a, b in card["hidden"]["pairs"])
        text += f"\n\n**Hidden common causes** ({pairs}). {card['hidden']['means']}"
    return text


def _cell(text: object) -> str:
    return str(text).replace("|", "\\|")  # a bar, as in p(a | b), would end the cell


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(c) for c in line) + " |" for line in lines)


def _mechanism_part(card: Mapping[str, Any]) -> str:
    found = card["mechanisms"]
    table = _table(
        ["attribute", "parents", "mechanism", "fitted numbers", "rows"],
        [(n, ", ".join(m["parents"]) or "none", m["kind"], m["parameters"], m["rows"]) for n, m in found.items()],
    )
    lines = [f"- {', '.join(one['kinds'])}: {one['convention']}" for one in card["conventions"]]
    return "**Mechanisms** of the attributes, and the noise that each takes:\n\n" + table + "\n\n" + "\n".join(lines)


def _label_part(label: Mapping[str, Any]) -> str:
    lines = []
    for name, one in label["spurious"].items():
        if one["safe"]:
            lines.append(f"- do({name}): yes, no directed path leads from {name} to {label['target']}")
        else:
            lines.append(f"- do({name}): NO, {' -> '.join(one['path'])}: the intervention changes the label")
    conditions = "; ".join(label["conditions"])
    return f"**Keeping the label** {label['target']} is right only if {conditions}. By the graph:\n\n" + "\n".join(
        lines
    )


def _identification_part(card: Mapping[str, Any]) -> str:
    head = "**Which counterfactuals the data decide**, if the graph is true and every combination of parents occurs."
    if not card["summary"]:
        return head + " No attribute follows from another: do() changes what is set, and the image."
    rows = [
        (", ".join(pair_words(p) for p in g["pairs"]), STATUS_WORDS[g["status"]], g["under"], effect_words(g))
        for g in card["summary"]
    ]
    table = _table(
        ["counterfactual", "in one row", "assuming, or because", "effect on the population identified"], rows
    )
    return f"{head}\n\n{table}\n\nWhatever is not listed stays as it is."

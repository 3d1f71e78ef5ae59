"""The figures of an evaluation in words: properties of the counterfactuals, leak probes and losses, as the report's tables have them."""

from __future__ import annotations

from itertools import product
from typing import Any

from cfaug.judge.report import Axiom, LossTable
from cfaug.judge.sentences import percent


def axioms(figures: dict[str, Any]) -> list[Axiom]:
    def said(value: float | None, form: str) -> str:
        return "no case" if value is None else format(value, form)

    found = [
        Axiom(
            "composition, 1 cycle",
            f"{figures['composition_l1']:.4f}",
            "L1 in [0, 1] after a null intervention; 0 is perfect",
        )
    ]
    for key, value in figures.items():
        if key.startswith("composition_l1_") and (cycles := key.split("_")[2]) != "1":
            found.append(
                Axiom(
                    f"composition, {cycles} cycles",
                    f"{value:.4f}",
                    "the same after so many null interventions in a row",
                )
            )
    n = figures.get("reversibility_n", figures["images"])
    of = "" if n == figures["images"] else f"; {n} of {figures['images']} images have a known value to go back to"
    if not figures.get("imported"):
        undone = said(figures["reversibility_l1"], ".4f")
        found.append(Axiom("reversibility", undone, f"L1 after do and undo; 0 is perfect{of}"))
    for name, row in figures["attributes"].items():
        only = ", interventions that change the value only" if row["intervened"] else ""
        meaning = (
            f"share of {row['n']} generated images that a reader (trained on {figures['reader_basis']} of other sources) reads as "
            f"intended{only}; it reads {row['reader_on_real']:.3f} of the real test images right"
        )
        found.append(Axiom(_property(name, row), said(row["agreement"], ".3f"), meaning))
    for name, row in figures["measures"].items():
        unchanged = "" if row["mae"] is None else f"; unchanged images would score {row['mae_unchanged']:.3g}"
        meaning = (
            f"mean absolute error, in units of {name}, of a formula that reads it from pixels, over {row['n']} generated images"
            f"{unchanged}; {row['mae_real']:.3g} on the real test images"
        )
        found.append(Axiom(_property(name, row), said(row["mae"], ".3g"), meaning))
    found += _sets(figures.get("sets"))
    unread = "there is no reader of a continuous or ordinal attribute, unless its source can measure it"
    return found + [Axiom(f"effectiveness: {name}", "not measured", unread) for name in figures["not_measured"]]


_SETS = {"factual": "real images", "null": "null interventions", "counterfactual": "counterfactuals"}


def _sets(found: dict[str, Any] | None) -> list[Axiom]:
    """Realism, memorisation and diversity of each set of images, and minimality."""
    if not found:
        return []
    rows = []
    for name, words in _SETS.items():
        low, high = found[name]["mmd2_interval"]
        rows.append(
            Axiom(
                f"realism: {words}",
                f"{found[name]['mmd2']:.4f}",
                f"squared maximum mean discrepancy from validation images on features of {found['features']} ({low:.4f} to {high:.4f} over "
                f"random subsets of {found['n']} images); 0: no difference",
            )
        )
    for name, words in _SETS.items():
        rows.append(
            Axiom(
                f"memorisation: {words}",
                percent(found[name]["memorised"]),
                "nearer to a training image that is not their source than 1 % of the validation images are",
            )
        )
        if found[name]["diversity"] is not None:
            meaning = "mean distance within a class, of that between real images"
            rows.append(Axiom(f"diversity: {words}", percent(found[name]["diversity"]), meaning))
    if found["minimality"] is not None:
        meaning = "distance to the source, of that to another real image with the class and values that were wanted; 0 is no change, 1 no source kept"
        rows.append(Axiom("minimality", f"{found['minimality']:.2f}", meaning))
    return rows


def _property(name: str, row: dict[str, Any]) -> str:
    return f"{'effectiveness' if row['intervened'] else 'preservation'}: {name}"


_KINDS = {
    "unconfounded": ("unconfounded images", "the ceiling"),
    "reconstruction": ("their reconstructions", "null interventions: through the decoder, nothing changed"),
    "counterfactual": ("their counterfactuals", "every spurious attribute drawn independently of the target"),
    "counterfactual_of_confounded": (
        "counterfactuals of confounded images",
        "the same sources and interventions: what a run trains on",
    ),
}
_LOSSES = {
    "codec": "what passing through the decoder costs",
    "mechanism": "what a wrong image of the new attributes costs, without confounded sources",
    "leak": "what the trace of the source's own attributes costs, because in confounded sources they tell the target",
}


def losses(found: dict[str, Any]) -> LossTable:
    def spread(row: dict[str, Any]) -> tuple[float, float, float]:
        return row["mean"], min(row["by_seed"]), max(row["by_seed"])

    measures = sorted(found["accuracy"]["unconfounded"])  # "average" comes first
    rows = [(*words, [found["accuracy"][kind][name]["mean"] for name in measures]) for kind, words in _KINDS.items()]
    losses = [
        (f"{loss} loss", meaning, [spread(found["losses"][loss][name]) for name in measures])
        for loss, meaning in _LOSSES.items()
    ]
    return LossTable(measures, rows, losses, found["images"], found["seeds"])


_SEEN = {
    "original_attribute": "counterfactuals",
    "outline": "the masks' outlines alone, of the objects",
    "rim": "the rims of the objects alone, in counterfactuals",
}


def leaks(figures: dict[str, Any]) -> list[Axiom]:
    leaks, found = figures["leaks"], []
    for (what, words), name in product(_SEEN.items(), leaks["original_attribute"]):
        row = leaks.get(what, {}).get(name)
        if row is not None:
            against = f"chance {percent(row['chance'])}"
            if "given_target" in row:
                against += (
                    f"; because these sources are confounded, the target alone tells {percent(row['given_target'])}, and only what "
                    "is above that is a leak"
                )
            meaning = (
                f"the value before do(...), from {words} of {leaks['sources']} sources ({_interval(row)}); {against}"
            )
            label = f"original {name}" + ("" if what == "original_attribute" else f", by the {what}")
            found.append(Axiom(label, percent(row["accuracy"]), meaning))
    for kind, row in leaks["provenance"].items():
        if row is not None:
            meaning = (
                "which of the two an image is, with the same distribution of target and attributes in both "
                f"({_interval(row)}); chance {percent(0.5)}"
            )
            found.append(Axiom(kind.replace("_", " "), percent(row["balanced_accuracy"]), meaning))
    probe = figures["shortcut_probe"]
    if probe["counterfactual"] is not None and probe["factual"] is not None:
        clean = probe.get("unconfounded")
        against = "" if clean is None else f", {percent(clean)} of unconfounded images"
        meaning = (
            "balanced accuracy of a logistic regression on colour statistics of the counterfactuals; "
            f"{percent(probe['factual'])} of the factual images{against}; chance {percent(probe['chance'])}"
        )
        found.append(Axiom("target told by colour alone", percent(probe["counterfactual"]), meaning))
    return found


def _interval(row: dict[str, Any]) -> str:
    low, high = row["ci95"]
    return f"n {row['n']}, 95 % interval {100 * low:.1f} to {100 * high:.1f}"

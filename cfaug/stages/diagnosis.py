"""The diagnosis of a run: the shortcut, the graph against the data, and what the plan will do, before any image exists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cfaug.causal import SCM, falsify, forecast
from cfaug.causal import diagnose as diagnose_table
from cfaug.causal.audit.assumptions import STATUS_WORDS, assumption_card, effect_words, pair_words
from cfaug.decode import CounterfactualModel
from cfaug.stages.checked_inputs import uses_counterfactuals
from cfaug.stages.decoder_advice import advise_decoder
from cfaug.stages.recipe_checks import draw_plan, fit_scm
from cfaug.stages.run import Run
from cfaug.stages.run_directory import whole_plan

MOST_PLANNED = 100_000  # rows of a plan whose effect is computed: its counts are then known to a third of a percent


def diagnose(run: Run, scm: SCM | None = None) -> dict[str, Any]:
    """Measure the confounding, test the graph, foretell what the plan will do; writes ``diagnosis.json``.

    The result is that of :func:`cfaug.causal.diagnose` with ``falsification`` and, where a method uses counterfactuals,
    ``forecast``; ``text`` is all of it.
    """
    table, schema, graph = run.inputs.train.table, run.inputs.schema, run.inputs.graph
    found = diagnose_table(table, schema, graph)
    found["falsification"] = falsify(table, schema, graph)
    parts = [found["text"], found["falsification"]["text"]]
    if uses_counterfactuals(run.recipe):
        rows = whole_plan(run.out) or draw_plan(run.recipe, run.inputs)  # the directory stays as it is
        train = run.recipe.train
        shares = {"real": 1 - train.p - train.null_p, "counterfactual": train.p, "null": train.null_p}
        acts = [(row.source_key, row.do) for row in rows.sample(MOST_PLANNED)]
        scm = scm or _scm(run)
        found["forecast"] = forecast(table, schema, scm, acts, shares, of=len(rows))
        found["identified"] = assumption_card(scm)["summary"]
        parts.append(found["forecast"]["text"])
        parts.append(_identified(found["identified"]))
        found["decoder"] = advise_decoder(run.recipe, run.inputs)
        parts.append(
            ["which mechanism suits an attribute (decoder.kind):", *(f"  {line}" for line in found["decoder"])]
        )
    if graph.unconfirmed:
        parts.append([f"nobody has confirmed {'; '.join(graph.unconfirmed)}: nothing is generated until then"])
    text = [*parts[0]]
    for part in parts[1:]:
        text += ["", *part]
    found["text"] = text
    run.directory.write_json("diagnosis.json", found)
    return found


def _identified(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which counterfactuals the data decide, by the graph alone."""
    if not groups:
        return [
            "no attribute follows from an intervention on another one: only the image has to be a model's answer, and it is not identified"
        ]
    head = "what follows from an intervention, if the graph is true (the image itself is never identified):"
    return [
        head,
        *(
            f"  {', '.join(map(pair_words, group['pairs']))}: in one row {STATUS_WORDS[group['status']]} ({group['under']}); on the population: "
            f"{effect_words(group)}"
            for group in groups
        ),
    ]


def diagnosed(run: Run, scm: SCM | None = None) -> dict[str, Any]:
    """The diagnosis that is on disk, when it says all that this version and the listed methods ask for; else a new one."""
    found = run.directory.read_json("diagnosis.json")
    asked = {"falsification"} | ({"forecast"} if uses_counterfactuals(run.recipe) else set())
    return found if isinstance(found, dict) and asked <= found.keys() else diagnose(run, scm)


def _scm(run: Run) -> SCM:
    """The fitted model's SCM when there is a model, else one that is fitted now; both are the same."""
    folder = run.out / "model"
    if (folder / "model.json").exists():
        return CounterfactualModel.load(folder, run.recipe.decoder.device).scm
    return fit_scm(run.recipe, run.inputs)

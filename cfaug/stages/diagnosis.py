"""The diagnosis of a run: the shortcut, the graph against the data, and what the plan will do, before any image exists."""

from __future__ import annotations

import logging
from typing import Any

from cfaug.causal import SCM, diagnose, falsify
from cfaug.causal.audit import plan_effect as forecast
from cfaug.config import Recipe
from cfaug.offline import Plan
from cfaug.stages.inputs import Inputs

log = logging.getLogger(__name__)
MOST_PLANNED = 100_000  # rows of a plan that a forecast looks at: its counts are then known to a third of a percent


def diagnosis(recipe: Recipe, inputs: Inputs, scm: SCM, plan: Plan | None) -> dict[str, Any]:
    """``diagnose`` of the training table, with ``falsification`` and, where there is a plan, ``forecast``; ``text`` is all of it."""
    table, schema = inputs.train.table, inputs.schema
    found = diagnose(table, schema, inputs.graph)
    found["falsification"] = falsify(table, schema, inputs.graph)
    parts = [found["text"], found["falsification"]["text"]]
    if plan is not None:
        train = recipe.train
        shares = {"real": 1 - train.p - train.null_p, "counterfactual": train.p, "null": train.null_p}
        acts = [(row.source_key, row.do) for row in plan.sample(MOST_PLANNED)]
        found["forecast"] = forecast(table, schema, scm, acts, shares, of=len(plan))
        parts.append(found["forecast"]["text"])
    if inputs.graph.unconfirmed:
        parts.append([f"nobody has confirmed {'; '.join(inputs.graph.unconfirmed)}: nothing is generated until then"])
    found["text"] = [line for k, part in enumerate(parts) for line in ([""] * (k > 0) + part)]
    return found

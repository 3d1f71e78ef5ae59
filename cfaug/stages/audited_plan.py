"""The plan strategy ``where_it_fails``: more images where an audited classifier flips.

    share(a = v | y)  proportional to  (flips + 1) / (images + 2)      of images of class y in which a was set to v

The attributes of a plan are drawn independently within a class, so the shares of several multiply. No cell is left out.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from cfaug.config import Recipe
from cfaug.data.files import expand
from cfaug.errors import UsageError, listed, near
from cfaug.judge.effects import ALL, EFFECTS, read_effects
from cfaug.stages.checked_inputs import Inputs


def shares_where_it_fails(recipe: Recipe, inputs: Inputs) -> list[dict[str, Any]]:
    """Cells of ``plan.joint`` from the audit of the run ``plan.audit``.

    Raises:
        UsageError: no audit there, several models and none named, or attributes that it does not speak of.
    """
    config, schema = recipe.plan, inputs.schema
    if config.joint:
        raise UsageError(
            "plan.joint: the strategy where_it_fails has shares of its own; remove joint, or set strategy: balance"
        )
    rows = (
        []
        if config.audit is None
        else [row for row in read_effects(expand(config.audit)) if row["group"] == ALL and "flips_to" in row]
    )
    if not rows:
        raise UsageError(
            f"plan.audit: the strategy where_it_fails expected a run that was audited, got {config.audit}, which has no {EFFECTS}; run `cfaug audit DIR` and name DIR"
        )
    models = list(dict.fromkeys(row["model"] for row in rows))
    if (config.audited is None and len(models) > 1) or (config.audited is not None and config.audited not in models):
        raise UsageError(
            f"plan.audited: expected one of the audited models ({listed(models)}), got {config.audited}; {near(str(config.audited), models)}"
        )
    own = {row["attribute"]: row["flips_to"] for row in rows if row["model"] == (config.audited or models[0])}
    names = config.attributes or list(schema.spurious)
    if absent := [name for name in names if name not in own or schema[name].kind == "continuous"]:
        raise UsageError(
            f"plan.audit: expected the effect of {absent[0]!r}, an attribute of categories, got none; audit shards in which it changes"
        )
    cells = []
    table = schema.canonical(inputs.train.table)
    for label in (value for value in schema[inputs.target].categories if (table[inputs.target] == value).any()):
        rates = []
        for name in names:
            shown = [value for value in schema[name].categories if (table[name] == value).any()]
            counts = [own[name].get(label, {}).get(value, (0, 0)) for value in shown]
            rates.append([(value, (flips + 1) / (n + 2)) for value, (flips, n) in zip(shown, counts)])
        product = [
            (dict(zip(names, (v for v, _ in some))), float(np.prod([r for _, r in some])))
            for some in itertools.product(*rates)
        ]
        total = sum(rate for _, rate in product)
        cells += [{inputs.target: label, **values, "share": rate / total} for values, rate in product]
    return cells

"""cfaug: counterfactual data augmentation against spurious correlation.

Importing this package is light: every public name is loaded on first use, and nothing here
imports torch or diffusers. The training side (``CounterfactualDataset``) never needs diffusers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from cfaug.causal import SCM, CausalGraph, do
    from cfaug.data import Attribute, Grouper, Schema
    from cfaug.judge import group_accuracy, worst_group_accuracy
    from cfaug.learn import CounterfactualDataset, RandomCounterfactual
    from cfaug.offline import Plan, PlanRow

_HOMES = {
    "Attribute": "cfaug.data",
    "Schema": "cfaug.data",
    "Grouper": "cfaug.data",
    "CausalGraph": "cfaug.causal",
    "SCM": "cfaug.causal",
    "do": "cfaug.causal",
    "Plan": "cfaug.offline",
    "PlanRow": "cfaug.offline",
    "CounterfactualDataset": "cfaug.learn",
    "RandomCounterfactual": "cfaug.learn",
    "group_accuracy": "cfaug.judge",
    "worst_group_accuracy": "cfaug.judge",
}

__all__ = [
    "SCM",
    "Attribute",
    "CausalGraph",
    "CounterfactualDataset",
    "Grouper",
    "Plan",
    "PlanRow",
    "RandomCounterfactual",
    "Schema",
    "do",
    "group_accuracy",
    "worst_group_accuracy",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'cfaug' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])

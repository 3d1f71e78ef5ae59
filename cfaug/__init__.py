"""cfaug: counterfactual data augmentation against spurious correlation.

Importing this package is light: every public name is loaded on first use, and nothing here imports torch, numpy or pandas.
The training side (``CounterfactualDataset``) never needs diffusers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cfaug.lazy import lazy

__version__ = "0.2.0"

if TYPE_CHECKING:
    from cfaug.causal import SCM as SCM
    from cfaug.causal import CausalGraph as CausalGraph
    from cfaug.causal import do as do
    from cfaug.data import Attribute as Attribute
    from cfaug.data import Grouper as Grouper
    from cfaug.data import Schema as Schema
    from cfaug.judge import group_accuracy as group_accuracy
    from cfaug.judge import worst_group_accuracy as worst_group_accuracy
    from cfaug.learn import CounterfactualDataset as CounterfactualDataset
    from cfaug.learn import RandomCounterfactual as RandomCounterfactual
    from cfaug.offline import Plan as Plan
    from cfaug.offline import PlanRow as PlanRow

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "causal": "SCM CausalGraph do",
        "data": "Attribute Grouper Schema",
        "judge": "group_accuracy worst_group_accuracy",
        "learn": "CounterfactualDataset RandomCounterfactual",
        "offline": "Plan PlanRow",
    },
)

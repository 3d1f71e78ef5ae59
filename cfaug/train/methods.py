"""The methods of a results table: each is a choice of data, sampler and objective; nothing else differs between them.

====================  ==============  =======  =========  ==========================================================
name                  data            sampler  objective  what it answers
====================  ==============  =======  =========  ==========================================================
erm                   real            shuffle  erm        what the shortcut costs
class_resampling      real            class    erm        is it only class imbalance?
group_resampling      real            group    erm        would re-weighting the rare groups be enough?
group_dro             real            group    group_dro  Sagawa et al. 2020 (group-balanced batches, eta_q 0.01)
null_control          real + null     shuffle  erm        is it only "synthetic images help"?
counterfactuals_only  counterfactual  shuffle  erm        does the real image help or hurt?
cfaug                 mixed           shuffle  erm        ours
cfaug+group_dro       mixed           group    group_dro  ours with a robust objective
oracle                oracle          shuffle  erm        the ceiling: attributes drawn independently of the target
====================  ==============  =======  =========  ==========================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cfaug.errors import UsageError, near

Data = Literal["real", "null", "counterfactual", "mixed", "oracle"]
Sampler = Literal["shuffle", "class", "group"]
Objective = Literal["erm", "group_dro"]


@dataclass(frozen=True)
class Method:
    """``data``: what the net sees; ``sampler``: how an epoch's indices are drawn; ``objective``: the loss."""

    name: str
    data: Data
    sampler: Sampler = "shuffle"
    objective: Objective = "erm"

    @property
    def needs_shards(self) -> bool:
        """Whether the method needs generated images."""
        return self.data in ("null", "counterfactual", "mixed")


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("erm", "real"),
        Method("class_resampling", "real", sampler="class"),
        Method("group_resampling", "real", sampler="group"),
        Method("group_dro", "real", sampler="group", objective="group_dro"),
        Method("null_control", "null"),
        Method("counterfactuals_only", "counterfactual"),
        Method("cfaug", "mixed"),
        Method("cfaug+group_dro", "mixed", sampler="group", objective="group_dro"),
        Method("oracle", "oracle"),
    )
}


def method_named(name: str) -> Method:
    """The method of that name; UsageError with the near names otherwise."""
    if name not in METHODS:
        raise UsageError(f"method: expected one of {', '.join(METHODS)}, got {name!r}; {near(name, METHODS)}")
    return METHODS[name]

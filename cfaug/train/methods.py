"""The methods of a results table: each is a choice of data, sampler, objective and stages; nothing else differs between them.

====================  ==============  ========  ===========  ================================================================
name                  data            sampler   objective    what it answers
====================  ==============  ========  ===========  ================================================================
erm                   real            shuffle   erm          what the shortcut costs
class_resampling      real            class     erm          is it only class imbalance?
group_resampling      real            group     erm          would re-weighting the rare groups be enough?
subg                  real            subset    erm          would leaving images out do? (Idrissi et al. 2022)
group_dro             real            group     group_dro    Sagawa et al. 2020 (group-balanced batches, eta_q 0.01)
jtt                   real            errors    erm          Liu et al. 2021: a first net's errors count more
lisa                  real            shuffle   lisa         Yao et al. 2022: mixing within a label, or within an attribute
dfr                   real            shuffle   erm          Kirichenko et al. 2023: then the last layer on validation images
ffr                   counterfactual  shuffle   erm          Qraitem et al. 2024: counterfactuals first, then real images
null_control          real + null     origin    erm          is it only "synthetic images help"?
counterfactuals_only  counterfactual  shuffle   erm          does the real image help or hurt?
cfaug                 mixed           origin    erm          ours: within each origin every group counts the same
cfaug+group_dro       mixed           group     group_dro    ours with a robust objective
cfaug+dfr             mixed           origin    erm          ours, then the last layer on validation images and counterfactuals
cfaug+consistency     pairs           shuffle   consistency  ours, with the logits of each pair drawn together
oracle                oracle          shuffle   erm          the ceiling: attributes drawn independently of the target
====================  ==============  ========  ===========  ================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cfaug.errors import UsageError, near, shown

Data = Literal["real", "null", "counterfactual", "mixed", "pairs", "oracle"]
Sampler = Literal["shuffle", "class", "group", "subset", "errors", "origin"]
Objective = Literal["erm", "group_dro", "lisa", "consistency"]


@dataclass(frozen=True)
class Method:
    """``data``: what the net sees; ``sampler``: how an epoch's indices are drawn; ``objective``: the loss.

    ``fake_first``: the counterfactuals alone in a stage before ``data``. ``last_layer``: the last layer is fitted again in the end, on
    validation images (and counterfactuals, where ``data`` has them). ``settings``: its own, with their published values; None: see
    :func:`method_settings`.
    """

    name: str
    data: Data
    sampler: Sampler = "shuffle"
    objective: Objective = "erm"
    fake_first: bool = False
    last_layer: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def needs_shards(self) -> bool:
        """Whether the method needs generated images."""
        return self.fake_first or self.data in ("null", "counterfactual", "mixed", "pairs")


_DRO = {"step_size": 0.01, "adjustment": 0.0}
# The paper's penalty is l1, with its PAPER_C. On features of photographs l2 was better and a hundred times as quick.
_DFR = {"penalty": "l2", "c": [10.0, 1.0, 0.1, 0.01, 0.001, 0.0001], "subsamples": 20}

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("erm", "real"),
        Method("class_resampling", "real", sampler="class"),
        Method("group_resampling", "real", sampler="group"),
        Method("subg", "real", sampler="subset"),
        Method("group_dro", "real", sampler="group", objective="group_dro", settings=_DRO),
        Method("jtt", "real", sampler="errors", settings={"identification_epochs": None, "upweight": 20.0}),
        Method("lisa", "real", objective="lisa", settings={"alpha": 2.0, "p_sel": 0.5}),
        Method("dfr", "real", last_layer=True, settings=_DFR),
        Method("ffr", "real", fake_first=True, settings={"synthetic_epochs": None}),
        Method("null_control", "null", sampler="origin"),
        Method("counterfactuals_only", "counterfactual"),
        Method("cfaug", "mixed", sampler="origin"),
        Method("cfaug+group_dro", "mixed", sampler="group", objective="group_dro", settings=_DRO),
        Method("cfaug+dfr", "mixed", sampler="origin", last_layer=True, settings=_DFR),
        Method("cfaug+consistency", "pairs", objective="consistency", settings={"weight": 1.0}),
        Method("oracle", "oracle"),
    )
}
SHARED = ("epochs", "learning_rate", "weight_decay", "penalties")
"""What ``train.method_settings`` may say of every method: ``train.epochs`` and so on for it alone; the penalties C of a frozen head."""


def method_named(name: str) -> Method:
    """The method of that name; UsageError with the near names otherwise."""
    if name not in METHODS:
        raise UsageError(f"method: expected one of {', '.join(METHODS)}, got {name!r}; {near(name, METHODS)}")
    return METHODS[name]


def check_method_settings(given: Mapping[str, Mapping[str, Any]]) -> None:
    """UsageError for a method, or a setting of one, that does not exist, and for a value that is no number where one is expected."""
    for name, settings in given.items():
        known = (*method_named(name).settings, *SHARED)
        for setting, value in settings.items():
            where = f"train.method_settings.{name}.{setting}"
            if setting not in known:
                raise UsageError(f"unknown setting {where}; {near(setting, known)}")
            if setting == "penalty":
                if value not in ("l1", "l2"):
                    raise UsageError(f"{where}: expected l1 or l2, got {shown(value)}; correct it")
                continue
            several = setting in ("c", "penalties")
            numbers = value if several and isinstance(value, list) else [value]
            if not numbers or not all(
                isinstance(n, int | float) and not isinstance(n, bool) and n >= 0 for n in numbers
            ):
                raise UsageError(
                    f"{where}: expected {'numbers' if several else 'a number'} from 0 up, got {shown(value)}; correct it"
                )


def method_settings(method: Method, given: Mapping[str, Mapping[str, Any]], epochs: int) -> dict[str, Any]:
    """The settings of a method with what is ``given`` for it.

    Where nothing is said the first net of JTT gets a fifth of the epochs (60 of 300 in the paper's Waterbirds), and the counterfactuals
    of ``ffr`` half of them.
    """
    found = {**method.settings, **given.get(method.name, {})}
    for name, share in (("identification_epochs", 5), ("synthetic_epochs", 2)):
        if name in found:
            found[name] = int(found[name]) if found[name] is not None else max(1, epochs // share)
    return found

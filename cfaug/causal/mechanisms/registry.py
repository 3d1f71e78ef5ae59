"""The mechanisms by name, and which of them suit an attribute.

    name             attribute              noise               convention, in short
    categorical      categorical, ordinal   K Gumbels           Gumbel-max: counterfactually stable
    ordinal          ordinal                one uniform         monotone quantile coupling
    spline_flow      continuous             one normal          the value increases in its noise
    additive_noise   continuous             one normal          smooth f(parents) + noise
    linear           continuous             one normal          least squares + noise

The file of each kind says what it assumes. A ``FunctionMechanism`` (``functions``) is the user's own; it is passed as an
object and has no name here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cfaug.causal.mechanisms.additive import AdditiveNoiseMechanism, LinearMechanism
from cfaug.causal.mechanisms.categorical import CategoricalMechanism
from cfaug.causal.mechanisms.flows import ContinuousMechanism
from cfaug.causal.mechanisms.ordinal import OrdinalMechanism
from cfaug.causal.mechanisms.protocol import Mechanism
from cfaug.data.attribute import Attribute
from cfaug.data.schema import Schema
from cfaug.errors import UsageError, near

MECHANISMS: Mapping[str, type[Any]] = {
    m.kind: m
    for m in (
        CategoricalMechanism,
        OrdinalMechanism,
        ContinuousMechanism,
        AdditiveNoiseMechanism,
        LinearMechanism,
    )
}
_SUITED = {
    "categorical": ("categorical",),
    "ordinal": ("ordinal", "categorical"),
    "continuous": ("spline_flow", "additive_noise", "linear"),
}


def default_kind(attribute: Attribute) -> str:
    """The name of the mechanism that an attribute gets when none is asked for."""
    return _SUITED[attribute.kind][0]


def refuse_unsuited(kind: str, attribute: Attribute) -> None:
    """UsageError for an unknown name of a mechanism, or one that does not suit the attribute's kind."""
    name, suited = attribute.name, _SUITED[attribute.kind]
    if kind not in MECHANISMS:
        raise UsageError(
            f"attribute {name!r}: expected the name of a mechanism, got {kind!r}; {near(kind, MECHANISMS)}"
        )
    if kind not in suited:
        raise UsageError(
            f"attribute {name!r} is {attribute.kind}: expected the mechanism {' or '.join(suited)}, got {kind!r}; correct scm.mechanisms, or its kind"
        )


def mechanism_named(kind: str, schema: Schema, name: str, parents: Sequence[str] = ()) -> Mechanism:
    """A new, unfitted mechanism of a fitted schema; UsageError as ``refuse_unsuited``."""
    refuse_unsuited(kind, schema[name])
    made: Mechanism = MECHANISMS[kind](schema, name, parents)
    return made

"""What the ways into a training loop ask of their arguments, the same of all, each in one line."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, get_args

from cfaug.errors import DataError, UsageError, one_line

if TYPE_CHECKING:  # what is asked of numbers does not load the shards
    from cfaug.offline.read import ShardReader

PolicyName = Literal["replace", "append", "pairs", "groups"]
POLICIES: tuple[str, ...] = get_args(PolicyName)


def probability(name: str, value: Any) -> float:
    """`value` as a float; UsageError unless it is a number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0.0 <= float(value) <= 1.0:
        raise UsageError(f"{name}: expected a probability from 0 to 1, came {one_line(repr(value), 80)}")
    return float(value)


def shares(p: Any, null_p: Any) -> tuple[float, float]:
    """Both as floats; UsageError unless they are probabilities, together at most 1."""
    p, null_p = probability("p", p), probability("null_p", null_p)
    if p + null_p > 1.0 + 1e-9:
        raise UsageError(f"p + null_p: expected at most 1 (the rest is the real fraction), came {p} + {null_p}")
    return p, null_p


def policy_shares(p: Any, null_p: Any, policy: str = "replace") -> tuple[float, float]:
    """p (or the policy's default) and null_p; UsageError as of :func:`shares`, or where p has no meaning.

    Of ``append`` each is a share of its own, so together they may be above 1.
    """
    if policy not in POLICIES:
        raise UsageError(f"policy: expected one of {', '.join(POLICIES)}, came {policy!r}")
    null_p = probability("null_p", null_p)
    if policy == "groups":
        if p is not None:
            raise UsageError(f"p: expected none with policy 'groups', where it follows from the attributes, came {p}")
        return 0.0, null_p
    chosen = p if p is not None else 1.0 - null_p if policy == "pairs" else 0.5
    return (probability("p", chosen), null_p) if policy == "append" else shares(chosen, null_p)


def whole(name: str, value: Any, least: int = 0) -> int:
    """`value` as an int (of 2.0 too, numpy's and torch's numbers too); UsageError unless it is whole and at least `least`."""
    try:
        number = int(value) if isinstance(value, float) and value.is_integer() else operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least:
        raise UsageError(f"{name}: expected a whole number of at least {least}, came {one_line(repr(value), 80)}")
    return number


def has_kinds(reader: ShardReader, counterfactual: bool, null: bool) -> None:
    """DataError where the shards have no sample of a kind that is asked for."""
    asked = (("counterfactual", counterfactual, not reader.nulls.all()), ("null", null, reader.nulls.any()))
    for kind, wanted, there in asked:
        if wanted and not there:
            raise lacking(reader, kind)


def lacking(reader: ShardReader, kind: str) -> DataError:
    """The error of shards without a sample of a kind ("counterfactual", "null") that is asked for."""
    return DataError(f"{reader.directory}: expected {kind} samples, it has none; plan them or set that p to 0")


def same_state(state: Any, mine: Mapping[str, Any], free: frozenset[str], owner: str) -> None:
    """UsageError unless a checkpoint has the names of ``mine``, and but for the ``free`` ones the same values."""
    if not isinstance(state, Mapping) or set(state) != set(mine):
        came = ", ".join(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
        raise UsageError(
            f"state: expected {', '.join(mine)}, came {came or 'nothing':.200}; pass what state_dict() of a {owner} gave"
        )
    for name, own in mine.items():
        if name not in free and state[name] != own:
            cure = "the shards are others" if name in ("fingerprint", "shards") else "the draws would be others"
            raise UsageError(
                f"state: expected {name}={own!s:.40} as in this {owner}, it was saved with {state[name]!s:.40}: {cure}; build "
                "it as it was, or start anew"
            )

"""Results in sentences: before and after, beside the best baseline and the oracle, and what to do next.

Computed from the summaries of a table, whatever they say; nothing is called better that is within chance (:func:`cfaug.judge.advice.by_chance`).
"""

from __future__ import annotations

from collections.abc import Sequence

from cfaug.judge.advice import Advice, by_chance
from cfaug.judge.tables import CONTROLS, MethodSummary


def percent(value: float, digits: int = 1) -> str:
    """A fraction as text: 0.5 -> "50.0 %", with a space that does not break."""
    return f"{100 * value:.{digits}f}\u00a0%"  # no line break before the sign


def points(value: float) -> str:
    """A difference of fractions in percentage points, signed: 0.07 -> "+7.0"."""
    return f"{100 * value:+.1f}"


def of_ours(summaries: Sequence[MethodSummary], advice: Advice | None) -> MethodSummary | None:
    """The method that stands for ours: the one that the advice takes, otherwise cfaug, otherwise the first of ours."""
    own = {item.method: item for item in summaries if is_ours(item)}
    return next((own[name] for name in (advice.method if advice else "", "cfaug", *own) if name in own), None)


def headline(summaries: Sequence[MethodSummary], advice: Advice | None) -> str:
    """One sentence: the worst group before and after, in which group and how sure, and what to do next; "" without plain training."""
    erm, ours = next((item for item in summaries if item.method == "erm"), None), of_ours(summaries, advice)
    if erm is None:
        return ""
    if ours is None:
        text = f"Plain training (erm) classifies {percent(erm.worst[0])} of its worst group correctly ({_where(erm)})"
    else:
        change = ours.worst[0] - erm.worst[0]
        verb = "stays where it was, from" if abs(change) < 0.0005 else "rises from" if change > 0 else "FALLS from"
        text = (
            f"The accuracy of the worst group {verb} {percent(erm.worst[0])} with plain training ({_where(erm)}) to "
            f"{percent(ours.worst[0])} with {ours.method} ({_where(ours)})"
        )
    if advice is None:
        return text + "."
    other = (item for item in summaries if item.method == advice.method and item not in (erm, ours))
    best = next((f" ({percent(item.worst[0])})" for item in other), "")  # the figures of those two are said above
    taken = advice.reasons[0].replace(f"{advice.method}: {advice.method} ", f"{advice.method}{best}, which ")
    return f"{text}; what to do next: {taken}."


def _where(item: MethodSummary) -> str:
    seeds = "" if len(item.seeds) == 1 else f", in the worst of {len(item.seeds)} seeds"
    low, high = (100 * end for end in item.worst_ci95)
    return f"{item.worst_group.replace(',', ', ')}: 95\u00a0% interval {low:.0f} to {high:.0f}\u00a0%{seeds}"


def verdict(summaries: Sequence[MethodSummary]) -> str:
    """One or two sentences with the numbers: cfaug against ERM, the best baseline and the oracle, whatever they say."""
    by_name = {item.method: item for item in summaries}
    if "cfaug" not in by_name or "erm" not in by_name:
        return "This run has no comparison of cfaug with plain training (erm): train both methods to get one."
    ours, erm = by_name["cfaug"], by_name["erm"]
    points = 100 * (ours.worst[0] - erm.worst[0])
    change = (
        f"{abs(points):.1f} points {'more' if points >= 0 else 'LESS'} than plain training ({percent(erm.worst[0])})"
    )
    spread = f"mean of {len(ours.seeds)} seeds, {percent(ours.worst[1])} to {percent(ours.worst[2])}"
    seeds = spread if len(ours.seeds) > 1 else "one seed, which cannot tell a gain from chance"
    text = (
        f"With counterfactuals mixed in, the worst group is classified correctly in {percent(ours.worst[0])} of its "
        f"images, {change}; {seeds}."
    )
    if ready := baselines(summaries):
        best = max(ready, key=lambda item: item.worst[0])
        if abs(ours.worst[0] - best.worst[0]) <= by_chance(erm):
            beats = "does not differ beyond chance from"
        else:
            beats = "beats" if ours.worst[0] > best.worst[0] else "does NOT beat"
        text += f" It {beats} the best baseline, {best.method} ({percent(best.worst[0])})."
    control = by_name.get("null_control")
    if control is not None:
        beats = "more than" if ours.worst[0] > control.worst[0] else "NOT more than"
        text += f" That is {beats} generated images alone explain (null control {percent(control.worst[0])})."
    if "oracle" in by_name:
        gap = "" if ours.gap_closed is None else f": {100 * ours.gap_closed:.0f} % of the gap is closed"
        text += f" Training without any confounding (oracle) reaches {percent(by_name['oracle'].worst[0])}{gap}."
    return text


def baselines(summaries: Sequence[MethodSummary]) -> list[MethodSummary]:
    """The methods without generated images, plain training apart."""
    return [item for item in summaries if item.method not in ("erm", "oracle", *CONTROLS) and not is_ours(item)]


def is_ours(item: MethodSummary) -> bool:
    """Whether a method mixes counterfactuals in."""
    return item.method.startswith("cfaug")

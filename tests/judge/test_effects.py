"""What a classifier uses: effects of nets whose dependence is known, floors, groups, intervals over sources."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cfaug.errors import DataError, UsageError
from cfaug.judge.effects import ALL, Answers, difference, effects, told, worst_pairs

PLACES, TONES = ("land", "sea"), ("low", "high")


def answers(
    weight: float,
    sources: int = 200,
    seed: int = 0,
    noise: float = 0.3,
    tone: float = 0.0,
    does: tuple[dict[str, str], ...] = ({"place": "land"}, {"place": "sea"}),
) -> Answers:
    """A net whose logit is 2 (bird) + weight (place) + tone (tone) + noise of each new image; birds of sea are the second class."""
    rng = np.random.default_rng([seed, sources])
    labels = rng.integers(0, 2, sources)
    place = np.where(rng.random(sources) < 0.8, labels, 1 - labels)
    pitch = rng.integers(0, 2, sources)
    table = pd.DataFrame(
        {"place": np.array(PLACES)[place], "tone": np.array(TONES)[pitch]}, index=[f"s{i}" for i in range(sources)]
    )

    def said(where: Any, how: Any, who: Any, noises: Any) -> Any:
        logit = 2 * (2 * labels[who] - 1) + weight * (2 * where - 1) + tone * (2 * how - 1) + noises
        p = 1 / (1 + np.exp(-logit))
        return np.stack([1 - p, p], axis=1)

    everyone = np.arange(sources)
    source = np.repeat(everyone, len(does))
    acts = list(does) * sources
    where = np.array([PLACES.index(act.get("place", table["place"].iloc[i])) for act, i in zip(acts, source)])
    how = np.array([TONES.index(act.get("tone", table["tone"].iloc[i])) for act, i in zip(acts, source)])
    noises = np.where([bool(act) for act in acts], noise, 0.0) * rng.normal(size=len(source))
    return Answers(
        "bird",
        PLACES,
        labels,
        said(place, pitch, everyone, 0.0),
        said(where, how, source, noises),
        source,
        acts,
        table.astype(object),
    )


def whole(found: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(row for row in found if row["attribute"] == name and row["group"] == ALL)


def test_a_net_that_sees_the_attribute_is_found_and_one_that_does_not_is_not() -> None:
    assert whole(effects(answers(1.5), ["place"]), "place")["claimed"]
    blind = whole(effects(answers(0.0, noise=1.5), ["place"]), "place")
    assert not blind["claimed"]
    assert blind["change"][1] < 0 < blind["change"][2]
    assert blind["flip_rate"] > 0  # seams alone flip some predictions, which the floor knows
    assert blind["flip_floor"] > 0


@settings(max_examples=5)
@given(st.integers(0, 10_000))
def test_false_claims_are_rare(seed: int) -> None:
    """At most a few of twenty blind nets: 2.5 % of them each."""
    claims = sum(
        whole(effects(answers(0.0, 100, seed + i), ["place"], draws=200), "place")["claimed"] for i in range(20)
    )
    assert claims <= 4


def test_the_estimate_is_the_true_contrast() -> None:
    """By group, of a net whose answers are known: signed changes of the logit are exactly twice the weight, away from the own place."""
    found = {row["group"]: row for row in effects(answers(1.0, 400), ["place"])}
    for label, place, sign in (("land", "land", -1), ("land", "sea", 1), ("sea", "sea", -1), ("sea", "land", 1)):
        low, high = found[f"bird={label},place={place}"]["logit"][1:]
        assert low <= 2 * sign <= high


def test_effects_come_strongest_first_and_attributes_do_not_mix() -> None:
    does = tuple({"place": p, "tone": t} for p in PLACES for t in TONES)
    found = effects(answers(0.5, tone=2.0, does=does), ["place", "tone"])
    assert [row["attribute"] for row in found if row["group"] == ALL] == ["tone", "place"]
    assert whole(found, "tone")["change"][1] > whole(found, "place")["change"][2]
    only = effects(answers(0.0, tone=2.0, does=does), ["place", "tone"])
    assert not whole(only, "place")["claimed"]
    assert whole(only, "tone")["claimed"]
    assert "Shortcuts, the strongest first: tone, place." in told(found)[-1]
    assert told(only)[-1] == "Shortcuts, the strongest first: tone."


def test_null_interventions_are_the_floor_where_every_one_changes_the_value() -> None:
    other = answers(1.0, does=({"place": "land"}, {"place": "sea"}, {}))
    flips = np.array(
        [not act or act["place"] != own for act, own in zip(other.do, other.table["place"].to_numpy()[other.source])]
    )
    kept = Answers(
        "bird", PLACES, other.labels, other.factual, other.made[flips], other.source[flips], [a for a, f in zip(other.do, flips) if f], other.table
    )  # fmt: skip
    assert whole(effects(kept, ["place"]), "place")["floor"] == "null"
    alone = np.array([bool(act) for act in kept.do])
    lacking = Answers(
        "bird", PLACES, kept.labels, kept.factual, kept.made[alone], kept.source[alone], [a for a in kept.do if a], kept.table
    )  # fmt: skip
    with pytest.raises(DataError, match="as the floor of its effect, got none; set plan"):
        effects(lacking, ["place"])


def test_two_models_are_compared_on_the_same_images() -> None:
    change, low, high = difference(answers(2.0), answers(0.5), "place")
    assert low < change < high < 0
    same = difference(answers(2.0), answers(2.0), "place")
    assert same == (0.0, 0.0, 0.0)
    with pytest.raises(UsageError, match="to the same images"):
        difference(answers(2.0), answers(2.0, 100), "place")


def test_the_worst_pairs_flip() -> None:
    found = answers(2.0)
    pairs = worst_pairs(found, "place", 5)
    assert len(pairs) == 5
    for i in pairs:
        assert found.made[i].argmax() != found.factual[found.source[i]].argmax()


def test_numbers_that_are_no_probabilities_are_refused() -> None:
    good = answers(1.0, 5)
    with pytest.raises(DataError, match="apply a softmax"):
        Answers("bird", PLACES, good.labels, good.factual * 3, good.made, good.source, good.do, good.table)
    with pytest.raises(UsageError, match=r"expected probabilities \(5, 2\)"):
        Answers("bird", PLACES, good.labels, good.factual[:4], good.made, good.source, good.do, good.table)


def test_an_attribute_that_nothing_changes() -> None:
    with pytest.raises(DataError, match="tone: expected images in which it was changed, got none"):
        effects(answers(1.0), ["tone"])


def test_intervals_of_few_skewed_answers_cover_the_truth() -> None:
    """25 sources, as a small group has: the percentile bootstrap covers 87 of 100 there, the studentised one 91 (see benchmarks/audit.md)."""
    covered = 0
    for draw in range(150):
        rng = np.random.default_rng([draw, 3])
        sources = 25
        own = rng.normal(0, 0.7, sources)
        logit = np.exp(own[:, None] + rng.normal(0, 0.5, (sources, 4)))  # to the other place
        floor = np.exp(own + rng.normal(0, 0.5, sources)) * 0.3
        p = 1 / (1 + np.exp(-np.concatenate([floor[:, None], logit], 1).ravel()))
        table = pd.DataFrame({"place": ["land"] * sources}, dtype=object)
        made = Answers(
            "bird", PLACES, np.ones(sources, np.int64), np.full((sources, 2), 0.5), np.stack([1 - p, p], 1), np.repeat(np.arange(sources), 5),
            [{"place": value} for _ in range(sources) for value in ("land", *["sea"] * 4)], table,
        )  # fmt: skip
        _, low, high = effects(made, ["place"], draw, 300)[0]["logit"]
        covered += low <= 0.7 * np.exp(0.5 * (0.49 + 0.25)) <= high
    assert covered >= 0.89 * 150

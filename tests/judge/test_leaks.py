"""The probes find a leak that was planted, and nothing where there is none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from cfaug.errors import UsageError
from cfaug.judge.probes import LEAST_SOURCES, above, original_attribute, provenance, split_by_source, told_by_colour

N = 600
SOURCES = [f"image-{i}" for i in range(N)]


def linear(images: Tensor, codes: Tensor, classes: int) -> Callable[[Tensor], Tensor]:
    """A fit that needs no net: logistic regression on pixels."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=200).fit(images.flatten(1).numpy() / 255, codes.numpy())
    return lambda others: torch.from_numpy(model.predict(others.flatten(1).numpy() / 255))


def noise(seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (N, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def colours(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array(["red", "lime", "blue", "grey"], dtype=object), N)


def planted(images: Tensor, values: np.ndarray) -> Tensor:
    """One corner pixel tells the value."""
    marked = images.clone()
    marked[:, 0, 0, 0] = torch.from_numpy(np.unique(values, return_inverse=True)[1] * 60).to(torch.uint8)
    marked[:, 1, 0, 0] = torch.from_numpy((values == "lime") * 255).to(torch.uint8)
    marked[:, 2, 0, 0] = torch.from_numpy((values == "blue") * 255).to(torch.uint8)
    return marked


def test_no_source_is_on_both_sides() -> None:
    sources = [f"s{i % 40}" for i in range(200)]
    train, held = split_by_source(sources, seed=3)
    assert sorted([*train, *held]) == list(range(200))
    assert not {sources[i] for i in train} & {sources[i] for i in held}
    assert len({sources[i] for i in held}) == round(40 / 3)
    again = split_by_source(sources, seed=3)
    assert (again[0] == train).all()
    assert set(split_by_source(sources, seed=4)[1]) != set(held)


def test_a_planted_original_is_found_and_nothing_else_is() -> None:
    values = colours()
    clean = original_attribute(linear, noise(), list(values), SOURCES)
    leaky = original_attribute(linear, planted(noise(), values), list(values), SOURCES)
    assert clean is not None
    assert leaky is not None
    assert leaky["n"] == clean["n"] == 200
    assert leaky["accuracy"] > 0.95
    assert leaky["above_chance"] == pytest.approx(leaky["accuracy"] - leaky["chance"])
    assert 0.25 <= leaky["chance"] < 0.35  # four equal values
    assert abs(clean["above_chance"]) < 0.1
    low, high = clean["ci95"]
    assert low < clean["accuracy"] < high
    assert low < clean["chance"]
    assert "given_target" not in clean


def test_what_the_target_tells_is_no_leak() -> None:
    """Confounded sources: the image shows the target, the target tells the colour, and no pixel remembers it."""
    values = colours()
    order = np.unique(values, return_inverse=True)[1]
    follows = np.random.default_rng(2).random(N) < 0.85
    targets = np.where(follows, order, np.random.default_rng(3).integers(0, 4, N))
    images = noise()
    for channel in range(3):
        images[:, channel, 2:4, 2:4] = torch.from_numpy((targets == channel) * 255).to(torch.uint8)[:, None, None]
    found = original_attribute(linear, images, list(values), SOURCES, targets=[str(t) for t in targets])
    assert found is not None
    assert found["above_chance"] > 0.3  # which alone would look like a leak
    assert found["given_target"] > 0.8
    assert abs(found["above_target"]) < 0.1


def test_a_mark_of_generation_is_found_and_copies_have_none() -> None:
    real = noise()
    made = real.clone()
    made[:, :, -1, -1] = 255
    marked = provenance(linear, made, real, SOURCES)
    copies = provenance(linear, real.clone(), real, SOURCES)
    assert marked is not None
    assert copies is not None
    assert marked["n"] == copies["n"] == 400
    assert marked["balanced_accuracy"] > 0.95
    # identical pairs on the same side: exactly one of each pair can be right
    assert copies["balanced_accuracy"] == 0.5


def test_too_few_sources_say_nothing() -> None:
    few = SOURCES[: LEAST_SOURCES - 1]
    images, values = noise()[: len(few)], list(colours()[: len(few)])

    def never(images: Tensor, codes: Tensor, classes: int) -> Callable[[Tensor], Tensor]:
        raise AssertionError("nothing is trained")

    assert original_attribute(never, images, values, few) is None
    assert provenance(never, images, images, few) is None
    assert original_attribute(never, noise(), ["red"] * N, SOURCES) is None
    assert told_by_colour(list(noise()[:20].permute(0, 2, 3, 1).numpy()), ["a", "b"] * 10, SOURCES[:20], 0) is None


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(UsageError, match="one label and one source per image"):
        original_attribute(linear, noise(), ["red"], SOURCES)


def test_colour_statistics_tell_a_target_that_goes_with_colour() -> None:
    digits = np.random.default_rng(5).integers(0, 3, N)
    images = noise().permute(0, 2, 3, 1).numpy()
    tinted = np.clip(images // 2 + (digits * 40)[:, None, None, None], 0, 255).astype(np.uint8)
    names = pd.Series(digits).astype(str).tolist()
    clean, told = (told_by_colour(list(i), names, SOURCES, 0) for i in (images, tinted))
    assert clean is not None
    assert told is not None
    assert told > 0.95
    assert abs(clean - 1 / 3) < 0.1
    assert above(told, clean) == pytest.approx(told - clean)
    assert above(told, None) is None


def test_chance_is_the_share_of_the_commonest_original() -> None:
    """Three of four are red: a probe that always says red has found nothing."""
    values = np.where(np.arange(N) % 4 < 3, "red", np.where(np.arange(N) % 8 < 4, "blue", "grey"))

    def majority(images: Tensor, codes: Tensor, classes: int) -> Callable[[Tensor], Tensor]:
        assert classes == 3
        commonest = codes.bincount().argmax()
        return lambda others: commonest.expand(len(others))

    found = original_attribute(majority, noise(), values.tolist(), SOURCES)
    assert found is not None
    assert found["chance"] == found["accuracy"] == pytest.approx(0.75, abs=0.06)
    assert found["above_chance"] == 0

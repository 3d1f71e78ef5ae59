"""A known defect of the model is charged to the right row, and a model without one costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from helpers.painted import COLOURS, PaintedModel, inputs, recipe

from cfaug.causal import do
from cfaug.errors import CfaugError, DataError
from cfaug.stages.checked_inputs import Inputs
from cfaug.stages.generated_sets import Pool, balanced_acts, exchanged_acts, make_pool
from cfaug.stages.leak_probes import leak_figures
from cfaug.stages.loss_breakdown import LOSSES, three_losses

pytestmark = pytest.mark.usefixtures("narrow_classifier")


@pytest.fixture(scope="module")
def opened() -> Inputs:
    return inputs()


def pools(opened: Inputs, model: PaintedModel, n: int = 240) -> tuple[Pool, Pool]:
    assert opened.oracle is not None
    acts = balanced_acts(opened.train, n, seed=0)
    return tuple(make_pool(model, d, acts, 0, 64, False) for d in (opened.oracle, opened.train))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def measured(opened: Inputs) -> Callable[[str], dict[str, Any]]:
    """defect -> the losses that are measured of it."""

    @cache
    def of(defect: str) -> dict[str, Any]:
        seeds = {"none": 2, "leak": 3}.get(defect, 1)  # one seed's leak is anywhere between 0.08 and 0.44
        return three_losses(recipe(loss_seeds=seeds), opened, *pools(opened, PaintedModel({defect})), False)

    return of


@pytest.mark.parametrize("defect", ["none", *LOSSES])
def test_a_defect_is_charged_to_its_own_row(measured: Callable[[str], dict[str, Any]], defect: str) -> None:
    found = measured(defect)
    assert found["images"] == 240
    for loss in LOSSES:
        for measure in ("average", "worst by colour"):
            value = found["losses"][loss][measure]["mean"]
            if loss == defect:
                assert value > 0.15, (loss, measure, value)
            elif measure == "average":
                assert abs(value) < 0.1, (loss, measure, value)


def test_the_losses_are_the_differences_seed_by_seed(measured: Callable[[str], dict[str, Any]]) -> None:
    found = measured("none")
    assert found["seeds"] == 2
    assert list(found["accuracy"]) == [
        "unconfounded", "reconstruction", "counterfactual", "counterfactual_of_confounded",
    ]  # fmt: skip
    total = [0.0, 0.0]
    for name, (first, second) in LOSSES.items():
        for measure, loss in found["losses"][name].items():
            a, b = (found["accuracy"][kind][measure]["by_seed"] for kind in (first, second))
            assert loss["by_seed"] == [x - y for x, y in zip(a, b)]
            assert loss["mean"] == pytest.approx(np.mean(loss["by_seed"]))
            assert found["accuracy"][first][measure]["mean"] <= found["accuracy"][first]["average"]["mean"]
        total = [t + x for t, x in zip(total, found["losses"][name]["average"]["by_seed"])]
    clean, last = (found["accuracy"][kind]["average"]["by_seed"] for kind in ("unconfounded", "counterfactual_of_confounded"))  # fmt: skip
    assert total == pytest.approx([a - b for a, b in zip(clean, last)])


def test_fewer_images_get_as_many_steps(opened: Inputs, measured: Callable[[str], dict[str, Any]]) -> None:
    assert measured("none")["epochs"] == 10
    few = three_losses(recipe(loss_seeds=1), opened, *pools(opened, PaintedModel(), 60), False)
    assert (few["images"], few["epochs"]) == (60, 40)


def test_the_four_kinds_share_sources_and_interventions(opened: Inputs) -> None:
    clean, confounded = pools(opened, PaintedModel(), 90)
    assert clean.sources == confounded.sources
    assert len(set(clean.sources)) == 90
    assert clean.table["shape"].tolist() == confounded.table["shape"].tolist()
    assert clean.table["colour"].tolist() != confounded.table["colour"].tolist()
    # the model recolours exactly, so one source under one intervention is one image, whatever its colour was
    assert torch.equal(clean.counterfactual, confounded.counterfactual)
    assert torch.equal(clean.reconstruction, clean.factual)
    for image, act in zip(clean.counterfactual, balanced_acts(opened.train, 90, seed=0).values(), strict=True):
        shown = {tuple(pixel) for pixel in image.flatten(1).T.tolist()} - {(20, 20, 20)}
        assert shown == {COLOURS[str(act.assignments["colour"])]}  # across the batches of 64
    assert clean.counterfactual.dtype == torch.uint8
    assert not torch.equal(clean.counterfactual, clean.factual)


def test_interventions_are_even_and_independent_of_the_target(opened: Inputs) -> None:
    acts = balanced_acts(opened.train, 200, seed=1)
    assert acts != balanced_acts(opened.train, 200, seed=2)
    table = opened.train.table.loc[list(acts)]
    drawn = [act.assignments["colour"] for act in acts.values()]
    counts = table.assign(drawn=drawn).groupby(["shape", "drawn"]).size().unstack()
    assert (counts.max(axis=1) - counts.min(axis=1)).max() <= 1
    exchanged = exchanged_acts(table, opened.schema, seed=0)
    given = [act.assignments["colour"] for act in exchanged.values()]
    assert sorted(zip(table["shape"], given)) == sorted(zip(table["shape"], table["colour"]))


def test_pixels_that_are_no_numbers_and_lost_sources_are_refused(opened: Inputs) -> None:
    class Broken(PaintedModel):
        def act(self, interventions: Any) -> Any:
            painting = super().act(interventions)

            class Nan:
                def predict(self, noise: Any) -> Any:
                    images, table = painting.predict(noise)
                    images[3, 0, 0, 0] = float("nan")
                    return images, table

            return Nan()

    with pytest.raises(CfaugError, match="non-finite pixels"):
        make_pool(Broken(), opened.train, balanced_acts(opened.train, 10, 0), 0, 64, False)
    with pytest.raises(DataError, match="keep its keys"):
        make_pool(PaintedModel(), opened.train, {"elsewhere": do()}, 0, 64, False)


def test_the_probes_find_what_was_planted() -> None:
    """On unconfounded sources: a leak is an original attribute, a mark is provenance, and neither is the other."""
    opened = inputs(400)

    def probed(*defects: str) -> dict[str, Any]:
        model = PaintedModel({*defects})
        return leak_figures(recipe(), opened, model, pools(opened, model, 400)[0], False)

    leaky, marked = probed("leak"), probed("mark")
    for found in (leaky, marked):
        assert found["sources"] == "unconfounded"
        assert found["provenance"]["reconstruction_or_real"]["balanced_accuracy"] == 0.5
    assert abs(marked["original_attribute"]["colour"]["above_chance"]) < 0.12
    assert leaky["original_attribute"]["colour"]["accuracy"] > 0.95
    assert marked["provenance"]["counterfactual_or_reconstruction"]["balanced_accuracy"] > 0.95


def test_leaks_of_confounded_sources_stand_beside_the_targets() -> None:
    opened = inputs(400, rho=0.8, oracle=False)
    acts = balanced_acts(opened.train, 400, seed=0)
    for defects, leaks in ((set(), False), ({"leak"}, True)):
        model = PaintedModel(defects)
        pool = make_pool(model, opened.train, acts, 0, 64, False)
        found = leak_figures(recipe(), opened, model, pool, False)
        row = found["original_attribute"]["colour"]
        assert found["sources"] == "confounded"
        assert row["given_target"] > 0.75
        assert (row["above_target"] > 0.05) == leaks
        if not leaks:  # the exchange keeps the attributes alike; balanced ones would be told apart by their colour
            told = found["provenance"]["counterfactual_or_reconstruction"]["balanced_accuracy"]
            assert abs(told - 0.5) < 0.1


def test_without_a_pool_every_figure_is_none(opened: Inputs) -> None:
    found = leak_figures(recipe(), opened, PaintedModel(), None, False)
    assert found["original_attribute"] == {"colour": None}
    assert set(found["provenance"].values()) == {None}


def test_every_kind_of_image_is_learned_with_the_same_seeds(opened: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    class Guess:
        def __init__(self, *_: Any, seed: int, **__: Any) -> None:
            seeds.append(seed)

        def predict(self, images: torch.Tensor) -> torch.Tensor:
            return torch.full((len(images),), seeds[-1], dtype=torch.int64)

    monkeypatch.setattr("cfaug.stages.loss_breakdown.train_classifier", Guess)
    found = three_losses(recipe(loss_seeds=3), opened, *pools(opened, PaintedModel(), 60), False)
    assert seeds == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    for kind in found["accuracy"].values():
        assert len(set(kind["average"]["by_seed"])) == 3
        assert sum(kind["average"]["by_seed"]) == pytest.approx(1)  # each seed said another one of the three classes


class Greedy(PaintedModel):
    """As much memory as no machine has, for more than 20 rows at once."""

    def abduct(self, images: torch.Tensor, attributes: Any, seed: Any) -> Any:
        if len(images) > 20:
            torch.empty(10**17)
        return super().abduct(images, attributes, seed)


def test_too_little_memory_names_a_batch_size(opened: Inputs) -> None:
    acts = balanced_acts(opened.train, 60, 0)
    for batch, half in ((64, 30), (50, 25)):  # of the rows that were really there
        with pytest.raises(
            CfaugError, match=rf"generate.batch_size {batch}; set generate.batch_size={half},"
        ) as caught:
            make_pool(Greedy(), opened.train, acts, 0, batch, False)
        assert "\n" not in str(caught.value)
    assert len(make_pool(Greedy(), opened.train, acts, 0, 20, False).sources) == 60

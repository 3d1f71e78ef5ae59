"""The validation score: high for a decoder that does what is asked, lower for every way to break it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import painted

from cfaug.causal import SCM
from cfaug.data import Schema
from cfaug.data.micro_batch import Sources
from cfaug.decode import Capabilities, FitReport
from cfaug.stages.checked_inputs import Inputs
from cfaug.stages.validation_score import ValidationScore

pytestmark = pytest.mark.usefixtures("narrow_classifier")


class Painter:
    """A decoder that repaints exactly, or has one defect: ``ignores`` the attributes, ``smears`` the shape, makes ``noise``."""

    device, dtype, canvas, digest = "cpu", "float32", None, "painted"
    report: FitReport | None = None
    capabilities = Capabilities("exact")

    def __init__(self, schema: Schema, defect: str = "") -> None:
        self.schema, self.defect = schema, defect
        self.parents = ("shape", "colour")

    def abduct(self, sources: Sources) -> tuple[torch.Tensor, pd.DataFrame]:
        return sources.images, sources.table

    def predict(
        self,
        noise: tuple[torch.Tensor, pd.DataFrame],
        attributes: pd.DataFrame,
        affected: Sequence[Collection[str]] | None = None,
        strength: float | None = None,
    ) -> torch.Tensor:
        image, factual = noise
        colours = (factual if self.defect == "ignores" else attributes)["colour"]
        masks = ((image.permute(0, 2, 3, 1).numpy() + 1) * 127.5).max(3) > 128
        if self.defect == "smears":
            masks = np.stack([np.roll(mask, 2 * i, axis=1) for i, mask in enumerate(masks)])
        made = np.stack([painted.paint(mask, str(colour)) for mask, colour in zip(masks, colours, strict=True)])
        if self.defect == "noise":
            made = np.random.default_rng(0).integers(0, 256, made.shape, dtype=np.uint8)
        return torch.from_numpy(made).permute(0, 3, 1, 2).float() / 127.5 - 1

    def save(self, directory: str | Path) -> None:
        raise AssertionError("a score does not save")


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    return painted.inputs(n=400, rho=0.9)


@pytest.fixture(scope="module")
def scm(inputs: Inputs) -> SCM:
    return SCM(inputs.graph, inputs.schema).fit(inputs.train.table, seed=0)


@pytest.fixture(scope="module")
def validation(inputs: Inputs, scm: SCM) -> ValidationScore:
    return ValidationScore(painted.recipe(), inputs, scm)


def test_every_defect_scores_lower(validation: ValidationScore, scm: SCM) -> None:
    good = validation.shares(Painter(scm.schema))
    assert set(good) == {"shape", "colour"}
    assert min(good.values()) > 0.9
    assert validation(Painter(scm.schema)) == pytest.approx(good["shape"] * good["colour"])
    ignores, smears = (validation.shares(Painter(scm.schema, defect)) for defect in ("ignores", "smears"))
    assert ignores["colour"] < 0.6
    assert ignores["shape"] > 0.9
    assert smears["shape"] < 0.6
    assert smears["colour"] > 0.9
    scores = [validation(Painter(scm.schema, defect)) for defect in ("", "ignores", "smears", "noise")]
    assert scores[0] > 0.85
    assert max(scores[1:]) < 0.6
    assert scores[3] < 0.35


def test_the_score_repeats_and_leaves_the_callers_streams_alone(validation: ValidationScore, scm: SCM) -> None:
    first = validation.shares(Painter(scm.schema, "smears"))
    again = ValidationScore(validation.recipe, validation.inputs, scm)
    torch.manual_seed(5)
    wanted, threads = torch.rand(2), torch.get_num_threads()
    torch.manual_seed(5)
    head = torch.rand(1)
    assert again.shares(Painter(scm.schema, "smears")) == first
    assert torch.get_num_threads() == threads
    assert head == wanted[0]


def test_the_sources_judged_are_validation_images(inputs: Inputs, scm: SCM, monkeypatch: pytest.MonkeyPatch) -> None:
    from cfaug.stages import validation_score as module

    seen: list[set[str]] = []
    real = module.attribute_readers

    def watched(recipe: object, inputs: object, judged: set[str], progress: bool) -> object:
        seen.append(set(judged))
        return real(recipe, inputs, judged, progress)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "attribute_readers", watched)
    recipe = painted.recipe()
    fresh = ValidationScore(replace(recipe, train=replace(recipe.train, epochs=1)), inputs, scm)
    fresh(Painter(scm.schema))
    fresh(Painter(scm.schema))
    assert len(seen) == 1
    assert seen[0] == set(inputs.val.table.index)  # 60, and IMAGES is 200
    assert not seen[0] & set(inputs.train.table.index)
    assert all(set(act.assignments) == {"colour"} for act in fresh._acts.values())


def test_a_decoder_that_memorised_its_images_scores_low(validation: ValidationScore, scm: SCM) -> None:
    seen = {image.tobytes() for image in validation.inputs.train.images}  # type: ignore[attr-defined]

    class Memory(Painter):
        def predict(self, noise: Any, attributes: pd.DataFrame, *others: Any) -> torch.Tensor:
            made = super().predict(noise, attributes, *others)
            sources = ((noise[0].permute(0, 2, 3, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
            made[torch.tensor([source.tobytes() not in seen for source in sources])] = -1
            return made

    assert validation(Memory(scm.schema)) < 0.5

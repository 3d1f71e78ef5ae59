"""Every classifier of a run is trained, selected and tested on its own images, and no reader on those it judges."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.painted import inputs, recipe

from cfaug.data import load_images
from cfaug.judge import adjusted_average_accuracy
from cfaug.stages.attribute_classifiers import attribute_readers
from cfaug.stages.run import Run
from cfaug.stages.run_directory import RunDirectory
from cfaug.stages.training import train


@dataclass
class Recorded:
    """What every classifier was trained and selected on, and what it was asked about; its answers are arbitrary."""

    made: list[tuple[str, Any, Any]] = field(default_factory=list)
    asked: list[torch.Tensor] = field(default_factory=list)
    seconds: float = 1.0
    selection: str = "last epoch"
    model: Any = field(default_factory=lambda: torch.nn.Linear(1, 1))

    def __call__(self, method: str, training: Any, validation: Any, *_: Any, **__: Any) -> Recorded:
        self.made.append((method, training, validation))
        return self

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        self.asked.append(images)
        return images.flatten(1).sum(1) % 3


def test_each_method_has_its_own_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, base = inputs(60, rho=0.8), recipe()
    mine = replace(base, train=replace(base.train, methods=["erm", "oracle"], seeds=[0]))
    recorded = Recorded()
    monkeypatch.setattr("cfaug.stages.training.train_classifier", recorded)
    rows = train(Run(mine, opened, RunDirectory(tmp_path, mine), progress=False))
    assert opened.oracle is not None
    assert [method for method, *_ in recorded.made] == ["erm", "oracle"]
    for (_, training, validation), source in zip(recorded.made, (opened.train, opened.oracle), strict=True):
        assert torch.equal(training.images, load_images(source))
        assert torch.equal(validation.images, load_images(opened.val))
    assert all(torch.equal(images, load_images(opened.test)) for images in recorded.asked)
    for row in rows:  # weighted as the confounded training images are
        as_trained = adjusted_average_accuracy(row["groups"], opened.grouper.labels(opened.train.table))
        assert row["n"] == len(opened.test)
        assert row["adjusted_average_accuracy"] == as_trained != row["average_accuracy"]


@pytest.mark.parametrize("oracle", [True, False])
def test_a_reader_sees_no_source_that_it_judges(monkeypatch: pytest.MonkeyPatch, oracle: bool) -> None:
    opened, recorded = inputs(60, oracle=oracle), Recorded()
    monkeypatch.setattr("cfaug.stages.attribute_classifiers.train_classifier", recorded)
    judged = [opened.train.key(i) for i in range(0, 60, 2)]
    readers, basis = attribute_readers(recipe(), opened, judged, False)
    assert set(readers) == {"shape", "colour"}
    assert (basis == "unconfounded images") == oracle
    for method, training, _ in recorded.made:
        assert method == ("erm" if oracle else "group_resampling")
        assert torch.equal(training.images, load_images(opened.oracle or opened.train)[1::2])

"""The distilled decoder: near its teacher in one evaluation, resumed exactly, saved and read, refused for another teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_decoder import GRAPH, floats, small, source

from cfaug.causal import SCM, CausalGraph, do
from cfaug.config import DecoderConfig
from cfaug.data import ArrayDataset, Attribute, Schema
from cfaug.decode import CounterfactualModel, DiffusionDecoder, DistilledDecoder, load_decoder, pairs, student
from cfaug.decode.condition import differing
from cfaug.decode.distilled import student_config
from cfaug.decode.network import VelocityNet
from cfaug.errors import CfaugError, ShardError, UsageError

PARENTS = ["shape", "colour", "glow"]
QUICK = {"channels": [8, 16], "max_steps": 4, "batch_size": 16, "distil_pairs": 1, "bf16": False}


def distil(data: ArrayDataset, teacher: DiffusionDecoder, seed: int = 0, **settings: Any) -> DistilledDecoder:
    options = {name: settings.pop(name) for name in ("checkpoint", "score") if name in settings}
    decoder = DistilledDecoder(teacher.schema, teacher.parents, **{**QUICK, **settings})
    return decoder.fit(data, teacher, seed, progress=False, **options)


@pytest.fixture(scope="module")
def teacher(data: ArrayDataset) -> DiffusionDecoder:
    return small(data, max_steps=180, batch_size=32, structure="layout", sampler="reversible_euler", bf16=False)


@pytest.fixture(scope="module")
def quick(data: ArrayDataset, teacher: DiffusionDecoder) -> DistilledDecoder:
    return distil(data, teacher)


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every network evaluation from here on."""
    rows: list[int] = []
    forward = VelocityNet.forward

    def counted(self: VelocityNet, x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        rows.append(len(x))
        return forward(self, x, *rest)

    monkeypatch.setattr(VelocityNet, "forward", counted)
    return rows


def recoloured(table: pd.DataFrame) -> pd.DataFrame:
    turn = {"red": "blue", "blue": "green", "green": "red"}
    return table.assign(colour=[turn[name] for name in table["colour"]])


def l1(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().mean()) / 2


# -- what it learns ------------------------------------------------------------------------------------------------------


def test_the_student_is_near_its_teacher(data: ArrayDataset, teacher: DiffusionDecoder) -> None:
    decoder = distil(data, teacher, max_steps=240, batch_size=32, distil_pairs=4, learning_rate=5e-3)
    x, table = floats(data, 48), data.table
    acted = recoloured(table)
    wanted = teacher.predict(teacher.abduct(x, table), acted)
    found = decoder.predict(decoder.abduct(x, table), acted)
    assert l1(found, wanted) < l1(x, wanted) / 2.5
    assert l1(x, wanted) > 0.03  # the teacher has learnt to do something
    undone = decoder.predict(decoder.abduct(found, acted), table)
    assert l1(undone, x) < l1(x, wanted) / 2.5


def test_a_counterfactual_is_one_evaluation(
    data: ArrayDataset, quick: DistilledDecoder, evaluations: list[int]
) -> None:
    noise = quick.abduct(floats(data), data.table[:8])
    assert evaluations == []
    quick.predict(noise, recoloured(data.table[:8]))
    assert evaluations == [8]


def test_what_does_not_change_is_the_image_itself_and_costs_nothing(
    data: ArrayDataset, quick: DistilledDecoder, evaluations: list[int]
) -> None:
    x, table = floats(data), data.table[:8]
    noise = quick.abduct(x, table)
    assert torch.equal(quick.predict(noise, table), x)
    assert evaluations == []
    acted = recoloured(table)
    acted.iloc[3:] = table.iloc[3:]
    found = quick.predict(noise, acted)
    assert evaluations == [3]
    assert torch.equal(found[3:], x[3:])
    assert not torch.isclose(found[:3], x[:3]).all()
    assert torch.equal(noise.image, x)  # the noise is used again: prediction must not write into it


def test_the_factual_attributes_are_seen(data: ArrayDataset, quick: DistilledDecoder) -> None:
    x, table, acted = floats(data), data.table[:8], data.table[:8].assign(colour="green", glow=1.0)
    found = [quick.predict(quick.abduct(x, t), acted) for t in (table, table.assign(glow=59.0))]
    assert not torch.equal(*found)


def test_a_missing_attribute_is_taken(data: ArrayDataset, quick: DistilledDecoder) -> None:
    table = data.table[:8].copy()
    table.loc[table.index[:4], "colour"] = None
    noise = quick.abduct(floats(data), table)
    assert torch.equal(quick.predict(noise, table), floats(data))
    assert torch.isfinite(quick.predict(noise, table.assign(glow=3.0))).all()


def test_the_strength_is_the_teachers(data: ArrayDataset, teacher: DiffusionDecoder) -> None:
    strong = DiffusionDecoder(teacher.schema, teacher.parents, teacher.config, guidance=2.0)
    for name in ("frame", "space", "_trained"):
        setattr(strong, name, getattr(teacher, name))
    decoder = distil(data, strong)
    noise = decoder.abduct(floats(data), data.table[:8])
    decoder.predict(noise, recoloured(data.table[:8]), strength=2.0)
    with pytest.raises(UsageError, match="distilled at strength 2, but 1 came"):
        decoder.predict(noise, data.table[:8], strength=1.0)


def test_the_semantic_encoder_is_the_teachers(data: ArrayDataset, tmp_path: Path) -> None:
    teacher = small(data, semantic=2)
    decoder = distil(data, teacher)
    x, table = floats(data), data.table[:8]
    noise, theirs = decoder.abduct(x, table), teacher.abduct(x, table)
    assert torch.equal(noise.guide, theirs.guide)
    acted = recoloured(table)
    decoder.save(tmp_path)
    again = load_decoder(tmp_path)
    assert torch.equal(again.predict(again.abduct(x, table), acted), decoder.predict(noise, acted))  # type: ignore[arg-type]


def test_smaller_sources_get_their_size_back(data: ArrayDataset, quick: DistilledDecoder) -> None:
    with pytest.raises(UsageError, match="8x8"):
        quick.abduct(floats(data)[..., :6, :6], data.table[:8])
    assert quick.canvas is None
    assert quick.frame is not None
    quick.frame, kept = type(quick.frame)(3, (8, 8), mixed=True), quick.frame
    try:
        assert quick.canvas == (8, 8)
        noise = quick.abduct(floats(data)[..., :6, :5], data.table[:8])
        assert quick.predict(noise, recoloured(data.table[:8])).shape == (8, 3, 6, 5)
    finally:
        quick.frame = kept


# -- what it is shown ----------------------------------------------------------------------------------------------------


def test_everything_but_the_target_is_drawn_evenly() -> None:
    data = source(2000)
    acted = pairs.drawn(data.table, data.schema, PARENTS, 0)
    assert acted["shape"].equals(data.table["shape"])
    moved = acted["colour"] != data.table["colour"]
    assert moved.mean() == pytest.approx(0.75 * 2 / 3, abs=0.05)
    rare = acted.loc[data.table["colour"] != "green", "colour"].value_counts(normalize=True)["green"]
    assert rare == pytest.approx(0.25, abs=0.04)  # though a fifteenth of the data: colours are drawn, not rows
    assert acted["glow"].isin(data.table["glow"]).all()
    assert not acted.equals(pairs.drawn(data.table, data.schema, PARENTS, 1))


def test_missing_values_are_never_drawn() -> None:
    data = source(200)
    table = data.table.copy()
    table.loc[table.index[:100], ["colour", "glow"]] = None
    acted = pairs.drawn(table, data.schema, PARENTS, 0)
    assert (acted.isna() <= table.isna()).all().all()
    assert 10 < acted["colour"][:100].isna().sum() < 40  # what keeps its value keeps that it has none
    names = differing(table, acted, PARENTS)
    assert all(("colour" in found) == bool(acted["colour"].notna().iloc[i]) for i, found in enumerate(names[:100]))


def test_an_only_parent_is_drawn_though_it_is_the_target() -> None:
    data = source(60)
    assert not pairs.drawn(data.table, data.schema, ["shape"], 0)["shape"].equals(data.table["shape"])


def test_a_teacher_of_nan_is_refused(data: ArrayDataset, teacher: DiffusionDecoder) -> None:
    broken = small(data)
    with torch.no_grad():
        next(broken.net.parameters()).fill_(torch.nan)
    with pytest.raises(CfaugError, match="no numbers, so there is nothing to distil"):
        distil(data, broken)


# -- resuming ------------------------------------------------------------------------------------------------------------


def test_a_killed_distillation_ends_in_the_same_bits_and_asks_the_teacher_once(
    data: ArrayDataset, teacher: DiffusionDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"max_steps": 6, "checkpoint_seconds": 0, "distil_pairs": 2}
    whole = distil(data, teacher, **settings)
    asked: list[int] = []
    monkeypatch.setattr(pairs, "_PART", 1)
    ask = pairs._asked

    def counted(*args: Any) -> torch.Tensor:
        asked.append(1)
        if len(asked) == 2 and not killed:
            raise KeyboardInterrupt
        return ask(*args)

    killed: list[int] = []
    monkeypatch.setattr(pairs, "_asked", counted)
    with pytest.raises(KeyboardInterrupt):
        distil(data, teacher, checkpoint=tmp_path, **settings)
    killed.append(1)
    steps: list[int] = []

    def stop(*_: Any) -> torch.Tensor:
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return uniform(*_)

    uniform = student.uniform
    with monkeypatch.context() as patch:
        patch.setattr(student, "uniform", stop)
        with pytest.raises(KeyboardInterrupt):
            distil(data, teacher, checkpoint=tmp_path, **settings)
    assert len(asked) == 3  # the first part was there, the second was asked again
    resumed = distil(data, teacher, checkpoint=tmp_path, **settings)
    assert len(asked) == 3
    assert resumed.report is not None
    assert resumed.report.resumed == 1
    assert resumed.digest == whole.digest
    (part,) = tmp_path.glob("pairs-00000*")
    part.write_bytes(part.read_bytes()[:100])
    DistilledDecoder.forget(tmp_path)
    assert not tmp_path.exists()


def test_answers_of_another_teacher_or_damaged_ones_are_not_taken(
    data: ArrayDataset, teacher: DiffusionDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = (floats(data) * 127.5 + 127.5).round().to(torch.uint8)
    table = data.table[:8]
    first = pairs.taught(teacher, images, table, recoloured(table), False, tmp_path)
    other = pairs.taught(small(data), images, table, recoloured(table), False, tmp_path)
    assert not torch.equal(first, other)
    (part,) = tmp_path.iterdir()
    part.write_bytes(part.read_bytes()[:200])
    assert torch.equal(pairs.taught(teacher, images, table, recoloured(table), False, tmp_path), first)
    assert torch.equal(pairs.taught(teacher, images, table, recoloured(table), False, None), first)


def test_a_score_can_stop_it(data: ArrayDataset, teacher: DiffusionDecoder) -> None:
    seen: list[str] = []

    def score(decoder: DistilledDecoder) -> float:
        seen.append(decoder.digest)
        return -len(seen)

    decoder = distil(data, teacher, max_steps=50, validate_every=1, patience=2, score=score)
    assert decoder.report is not None
    assert decoder.report.stopped == "early"
    assert len(set(seen)) == 3
    assert decoder.digest == seen[0]


# -- disk ----------------------------------------------------------------------------------------------------------------


def test_saved_and_read_it_is_the_same(
    data: ArrayDataset, teacher: DiffusionDecoder, quick: DistilledDecoder, tmp_path: Path
) -> None:
    scm = SCM(CausalGraph(GRAPH), data.schema).fit(data.table, seed=0)
    model = CounterfactualModel(scm, quick)
    assert (model.canvas, model.dtype, model.device) == (None, "float32", "cpu")
    model.save(tmp_path)
    again = CounterfactualModel.load(tmp_path)
    assert isinstance(again.decoder, DistilledDecoder)
    assert again.digest == model.digest
    assert again.decoder.teacher == teacher.digest
    assert again.decoder.config == quick.config
    assert again.decoder.report == quick.report
    x, table = floats(data), data.table[:8]
    images = [m.act(do(colour="green")).predict(m.abduct(x, table))[0] for m in (model, again)]
    assert torch.equal(*images)


def test_a_decoder_of_either_kind_is_read(data: ArrayDataset, decoder: DiffusionDecoder, tmp_path: Path) -> None:
    decoder.save(tmp_path)
    assert isinstance(load_decoder(tmp_path), DiffusionDecoder)
    with pytest.raises(UsageError, match="expected a distilled decoder, but a diffusion one"):
        DistilledDecoder.load(tmp_path)


@pytest.mark.parametrize("damage", ["weights", "missing", "description", "kind", "truncated"])
def test_a_corrupt_checkpoint_is_one_line(quick: DistilledDecoder, tmp_path: Path, damage: str) -> None:
    quick.save(tmp_path)
    weights, description = tmp_path / "decoder.safetensors", tmp_path / "decoder.json"
    content = json.loads(description.read_text())
    if damage == "weights":
        tensors = load_file(weights)
        name = sorted(tensors)[0]
        save_file({**tensors, name: tensors[name] + 1}, weights)
    elif damage == "missing":
        weights.unlink()
    elif damage == "description":
        description.write_text(json.dumps({**content, "teacher": "another"}))
    elif damage == "kind":
        description.write_text(json.dumps({**content, "kind": "oracle"}))
    else:
        weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(ShardError, match="corrupt checkpoint in") as found:
        load_decoder(tmp_path)
    assert "\n" not in str(found.value)


# -- refused -------------------------------------------------------------------------------------------------------------


def test_another_schema_or_graph_is_refused(data: ArrayDataset, teacher: DiffusionDecoder) -> None:
    more = Schema([Attribute("shape"), Attribute("colour"), Attribute("glow", "continuous")], "shape", ["colour"])
    wider = data.table.copy()
    wider.iloc[0, 2] = 1000.0
    for decoder in (
        DistilledDecoder(teacher.schema, ["shape", "colour"], **QUICK),
        DistilledDecoder(more.fit(wider), PARENTS, **QUICK),
    ):
        with pytest.raises(UsageError, match="of another schema or graph"):
            decoder.fit(data, teacher, progress=False)


def test_other_images_and_an_untrained_teacher_are_refused(data: ArrayDataset, teacher: DiffusionDecoder) -> None:
    for other in (source(size=(8, 12)), source(channels=1)):
        with pytest.raises(UsageError, match="distil on the images it was fitted on"):
            distil(other, teacher)
    with pytest.raises(UsageError, match="not trained yet"):
        distil(data, DiffusionDecoder(teacher.schema, teacher.parents))
    with pytest.raises(UsageError, match="not distilled yet"):
        DistilledDecoder(teacher.schema, PARENTS).abduct(floats(data), data.table[:8])
    with pytest.raises(UsageError, match="no setting 'pairs'"):
        DistilledDecoder(teacher.schema, PARENTS, pairs=3)


def test_the_students_budget_is_a_share_of_the_teachers() -> None:
    config = DecoderConfig(distil_share=0.25)
    assert student_config(config, 20_000).seconds == 25 * 60 / 4
    assert student_config(DecoderConfig(max_steps=101), 20_000).max_steps == 50
    assert student_config(DecoderConfig(max_steps=101), 20_000).seconds is None
    assert student_config(DecoderConfig(seconds=60.0), 1).seconds == 30
    assert np.isclose(student_config(DecoderConfig(seconds=60.0, max_steps=1), 1).seconds or 0, 30)

"""The model: SCM and decoder as one, the three verbs, and what a mixed or damaged directory gets."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.small_decoder import floats, small

from cfaug.causal import do
from cfaug.data import ArrayDataset
from cfaug.data.micro_batch import Sources
from cfaug.decode import CounterfactualModel, DiffusionDecoder
from cfaug.errors import ShardError


class Spy(DiffusionDecoder):
    """A decoder that records what it is asked."""

    seen: list[Any]

    def abduct(self, sources: Sources) -> Any:
        self.seen = [sources]
        return super().abduct(sources)

    def predict(self, noise: Any, attributes: Any, affected: Any = None, strength: Any = None) -> torch.Tensor:
        self.seen.append(affected)
        return super().predict(noise, attributes, affected, strength)


def test_abduct_act_predict(model: CounterfactualModel, data: ArrayDataset) -> None:
    x, table = floats(data), data.table.iloc[:8]
    noise = model.abduct(x, table)
    image, attributes = model.act(do(shape="bar")).predict(noise)
    assert image.shape == x.shape
    assert attributes.equals(table.assign(shape="bar").astype({"shape": object}))
    assert torch.equal(image, model.decoder.predict(noise.image, table.assign(shape="bar")))


def test_the_null_intervention_reconstructs(model: CounterfactualModel, data: ArrayDataset) -> None:
    x, table = floats(data), data.table.iloc[:8]
    noise = model.abduct(x, table)
    image, attributes = model.predict(noise)
    assert model.capabilities.null == "exact"
    torch.testing.assert_close(image, x, atol=1e-4, rtol=0)
    assert attributes.equals(model.schema.canonical(table))
    assert torch.equal(image, model.act(do()).predict(noise)[0])


def test_one_intervention_per_row(model: CounterfactualModel, data: ArrayDataset) -> None:
    x, table = floats(data, 3), data.table.iloc[:3]
    acts = [do(colour="green"), do(), do(colour="red", glow=10.0)]
    noise = model.abduct(x, table, seed=[3, 1, 2])
    images, attributes = model.act(acts).predict(noise)
    assert attributes["colour"].tolist() == ["green", table["colour"].iloc[1], "red"]
    assert attributes["glow"].iloc[2] == 10
    for i, act in enumerate(acts):
        torch.testing.assert_close(images[i], model.act(act).predict(noise)[0][i])


def test_the_mechanism_gets_a_whole_micro_batch(data: ArrayDataset, model: CounterfactualModel, tmp_path: Path) -> None:
    model.decoder.save(tmp_path)
    spy = Spy.load(tmp_path)
    model = CounterfactualModel(model.scm, spy)
    x, table, masks = floats(data), data.table.iloc[:8], torch.ones(8, 1, 8, 8)
    model.abduct(x, table.assign(shape=table["shape"].astype("category")), seed=3)
    assert spy.seen[0].table.equals(table)  # canonical
    assert (spy.seen[0].keys, spy.seen[0].seeds, spy.seen[0].masks) == (list(table.index), [3] * 8, None)
    model.abduct(x, table, range(8), keys=list("abcdefgh"), masks=masks)
    assert (spy.seen[0].keys, spy.seen[0].seeds) == (list("abcdefgh"), list(range(8)))
    assert torch.equal(spy.seen[0].masks, masks)
    assert torch.equal(spy.seen[0].images, x)


def test_descendants_are_recomputed_and_affected(
    data: ArrayDataset, model: CounterfactualModel, tmp_path: Path
) -> None:
    """shape -> image <- glow <- colour: do(colour) moves glow, and both count as affected."""
    model.decoder.save(tmp_path)
    spy = Spy.load(tmp_path)
    asked = CounterfactualModel(model.scm, spy)
    x, table = floats(data, 4), data.table.iloc[:4].assign(colour="red")
    _, attributes = asked.act([do(colour="blue"), do(), do(glow=3.0), do(shape="bar")]).predict(asked.abduct(x, table))
    assert spy.seen[1] == [
        {"colour", "glow"}, set(), {"glow"}, {"shape"} if table["shape"].iloc[3] != "bar" else set(),
    ]  # fmt: skip
    assert attributes["glow"].iloc[0] != table["glow"].iloc[0]
    assert attributes["glow"].iloc[[1, 3]].tolist() == table["glow"].iloc[[1, 3]].tolist()


def test_a_strength_is_given_with_the_call(model: CounterfactualModel, data: ArrayDataset) -> None:
    noise = model.abduct(floats(data), data.table.iloc[:8])
    acted = model.act(do(colour="green"))
    own, _ = acted.predict(noise)
    assert torch.equal(acted.predict(noise, strength=1.0)[0], own)
    assert not torch.equal(acted.predict(noise, strength=3.0)[0], own)
    assert torch.equal(model.act(do()).predict(noise, strength=3.0)[0], model.predict(noise)[0])  # nothing is affected
    same = model.act([do(colour=name) for name in noise.attributes.factual["colour"]])
    assert torch.equal(same.predict(noise, strength=3.0)[0], model.predict(noise)[0])  # do(own value) is none


def test_save_and_load(model: CounterfactualModel, data: ArrayDataset, tmp_path: Path) -> None:
    model.save(tmp_path)
    again = CounterfactualModel.load(tmp_path)
    assert again.digest == model.digest
    x, table = floats(data), data.table.iloc[:8]
    expected = model.act(do(colour="blue")).predict(model.abduct(x, table, seed=5))
    for one in (again, pickle.loads(pickle.dumps(again))):
        image, attributes = one.act(do(colour="blue")).predict(one.abduct(x, table, seed=5))
        assert torch.equal(image, expected[0])
        assert attributes.equals(expected[1])


def test_files_of_two_models_do_not_mix(model: CounterfactualModel, data: ArrayDataset, tmp_path: Path) -> None:
    other = CounterfactualModel(model.scm, small(data, seed=3, max_steps=1))
    model.save(tmp_path)
    other.decoder.save(tmp_path)
    with pytest.raises(ShardError, match="mixes files of two models"):
        CounterfactualModel.load(tmp_path)


@pytest.mark.parametrize("file", ["model.json", "scm.json", "scm.safetensors", "decoder.json", "decoder.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "flipped"])
def test_a_damaged_file_is_refused_in_one_line(
    model: CounterfactualModel, tmp_path: Path, file: str, damage: str
) -> None:
    model.save(tmp_path)
    path = tmp_path / file
    content = bytearray(path.read_bytes())
    content[-50] ^= damage == "flipped"
    path.write_bytes({"empty": b"", "truncated": content[: len(content) // 2]}.get(damage, content))
    if damage == "missing":
        path.unlink()
    with pytest.raises(ShardError) as caught:
        CounterfactualModel.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["scm.json", "decoder.safetensors", "decoder.json", "model.json"])
def test_a_full_disk_leaves_no_half_file_and_no_model(
    model: CounterfactualModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    model.save(tmp_path)
    real = os.fsync

    def full(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name.startswith(f"{file}."):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        model.save(tmp_path)
    assert not list(tmp_path.glob("*.partial"))
    assert not (tmp_path / "model.json").exists()

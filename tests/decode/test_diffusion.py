"""The diffusion decoder: round trips, sizes, determinism, conditions, guidance, disk."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from small_decoder import floats, small, source

from cfaug.data import ArrayDataset
from cfaug.decode import DiffusionDecoder, ImageNoise
from cfaug.decode.fit import _loss
from cfaug.decode.training import budget_seconds
from cfaug.errors import CfaugError, ShardError, UsageError

Make = Callable[..., DiffusionDecoder]


def round_trip(decoder: DiffusionDecoder, data: ArrayDataset) -> torch.Tensor:
    x, table = floats(data), data.table.iloc[:8]
    return decoder.predict(decoder.abduct(x, table), table) - x


def test_a_null_intervention_gives_the_image_back(data: ArrayDataset) -> None:
    decoder = small(data, max_steps=40)
    assert float(round_trip(decoder, data).abs().mean()) / 2 < 0.02


@pytest.mark.parametrize(
    ("size", "channels", "patch"), [((7, 9), 3, 2), ((11, 6), 1, 1), ((13, 13), 3, 4), ((8, 8), 1, None)]
)
def test_any_size_and_mode_comes_back_as_it_was(size: tuple[int, int], channels: int, patch: int | None) -> None:
    data = source(16, size, channels)
    decoder = small(data, max_steps=1, patch=patch)
    noise = decoder.abduct(floats(data), data.table.iloc[:8])
    assert noise.size == size
    assert all(length % decoder.net.multiple == 0 for length in noise.latent.shape[2:])
    image = decoder.predict(noise, data.table.iloc[:8])
    assert image.shape == (8, channels, *size)
    assert image.dtype == torch.float32
    assert -1 <= float(image.min()) <= float(image.max()) <= 1


def test_rows_of_a_batch_do_not_see_one_another(decoder: DiffusionDecoder, data: ArrayDataset) -> None:
    x, table = floats(data), data.table.iloc[:8]
    order = [5, 2, 7, 0, 1, 6, 3, 4]
    first = decoder.abduct(x, table).latent[order]
    torch.testing.assert_close(decoder.abduct(x[order], table.iloc[order]).latent, first)


def test_the_same_seed_and_steps_train_the_same_network(data: ArrayDataset) -> None:
    before = torch.get_rng_state()
    first, second, other = small(data), small(data), small(data, seed=1)
    assert first.digest == second.digest != other.digest
    assert torch.equal(torch.get_rng_state(), before)  # nobody else's stream was moved
    assert first.report is not None
    assert (first.report.steps, first.report.images) == (5, 48)


def test_what_the_digest_covers(decoder: DiffusionDecoder, data: ArrayDataset) -> None:
    changed = pickle.loads(pickle.dumps(decoder))
    assert changed.digest == decoder.digest
    with torch.no_grad():
        next(changed.net.parameters()).add_(1e-3)
    assert changed.digest != decoder.digest
    assert small(data, guidance=2.0).digest != decoder.digest  # it changes what is generated


def test_a_spawned_worker_gets_the_same_decoder(decoder: DiffusionDecoder, data: ArrayDataset) -> None:
    again = pickle.loads(pickle.dumps(decoder))
    x, table = floats(data), data.table.iloc[:8]
    assert torch.equal(again.abduct(x, table).latent, decoder.abduct(x, table).latent)


# -- conditions --------------------------------------------------------------------------------------------------------


def test_a_condition_is_the_encoding_and_a_presence_flag_a_parent(
    decoder: DiffusionDecoder, data: ArrayDataset
) -> None:
    assert decoder.parents == ("shape", "colour", "glow")
    table = data.table.iloc[:2].copy()
    table.iloc[1, table.columns.get_loc("colour")] = None
    condition = decoder._condition(table)
    assert condition.shape == (2, 2 + 3 + 1 + 3)
    np.testing.assert_array_equal(condition[:, :6], data.schema.encode(table, decoder.parents))
    assert condition[0, 6:].tolist() == [1, 1, 1]
    assert condition[1, 6:].tolist() == [1, 0, 1]
    assert condition[1, 2:5].tolist() == [0, 0, 0]


def test_the_blocks_share_the_condition_out(decoder: DiffusionDecoder) -> None:
    assert [block.tolist() for block in decoder._blocks()] == [[0, 1, 6], [2, 3, 4, 7], [5, 8]]


def test_training_hides_whole_blocks_independently_and_flags_them(
    decoder: DiffusionDecoder, data: ArrayDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []

    def spy(x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor, structure: torch.Tensor) -> torch.Tensor:
        seen.append(condition.clone())
        return x

    whole = decoder._condition(data.table)[torch.arange(4000) % 48]
    images = torch.from_numpy(data.images).permute(0, 3, 1, 2)[torch.arange(4000) % 48]
    config = small(data, max_steps=1, drop_attribute=0.3).config
    generator = torch.Generator().manual_seed(0)
    _loss(spy, images, whole.clone(), config, decoder._blocks(), (0, 0, 0, 0), torch.device("cpu"), generator)  # type: ignore[arg-type]
    hidden = []
    for flag, block in enumerate(decoder._blocks()):
        gone = seen[0][:, 6 + flag] == 0
        assert not seen[0][gone][:, block].any()
        assert torch.equal(seen[0][~gone][:, block], whole[~gone][:, block])
        hidden.append(gone.double())
    together = torch.stack(hidden)
    assert (together.mean(1) - 0.3).abs().max() < 0.03
    assert torch.corrcoef(together).fill_diagonal_(0).abs().max() < 0.06


def test_a_continuous_attribute_is_a_parent_like_any_other(by_hand: Make, data: ArrayDataset) -> None:
    decoder, x, table = by_hand(), floats(data), data.table.iloc[:8]
    brighter = table.assign(glow=table["glow"] + 10)
    change = decoder.predict(decoder.abduct(x * 0.5, table), brighter) - x * 0.5
    std = data.schema["glow"].std or 0
    expected = -10 / std * float(decoder.net.weights[5])  # type: ignore[index,arg-type]
    torch.testing.assert_close(change, torch.full_like(change, expected), atol=1e-5, rtol=0)


def test_cells_count_the_images_with_the_same_attributes(data: ArrayDataset) -> None:
    decoder = DiffusionDecoder(data.schema, ["shape", "colour"])
    counts = data.table.groupby(["shape", "colour"])["glow"].transform("size")
    assert decoder._cells(data.table).tolist() == counts.tolist()
    quarters = DiffusionDecoder(data.schema, ["glow"])._cells(data.table)
    assert quarters.tolist() == [12.0] * 48
    still = data.table.assign(glow=3.0)
    assert DiffusionDecoder(data.schema, ["glow"])._cells(still).tolist() == [48.0] * 48


# -- prediction by hand ------------------------------------------------------------------------------------------------


def test_a_counterfactual_by_hand(by_hand: Make, data: ArrayDataset) -> None:
    decoder, x, table = by_hand(), floats(data) * 0.5, data.table.iloc[:8]
    other = table.assign(colour="green", shape="bar")
    flow = decoder.net.shift  # type: ignore[operator]
    noise = decoder.abduct(x, table)
    torch.testing.assert_close(noise.latent, x + flow(decoder._condition(table)))
    expected = x + flow(decoder._condition(table)) - flow(decoder._condition(other))
    torch.testing.assert_close(decoder.predict(noise, other), expected)


def test_guidance_amplifies_the_affected_attributes_and_no_other(by_hand: Make, data: ArrayDataset) -> None:
    decoder, x, table = by_hand(guidance=3.0), floats(data) * 0.2, data.table.iloc[:8]
    other = table.assign(colour="green")
    noise = decoder.abduct(x, table)
    full = decoder._condition(other)
    rest = full.clone()
    rest[:4, 2:5] = rest[:4, 7] = 0
    flow = decoder.net.shift  # type: ignore[operator]
    expected = noise.latent - (flow(rest) + 3 * (flow(full) - flow(rest)))
    affected = [{"colour"}] * 4 + [set()] * 4
    made = decoder.predict(noise, other, affected)
    torch.testing.assert_close(made, expected)
    plain = by_hand().predict(noise, other, affected)
    torch.testing.assert_close(made[4:], plain[4:])  # nothing was asked of these rows
    assert float((made[:4] - plain[:4]).abs().max()) > 0.05


def test_guidance_of_one_is_no_guidance(decoder: DiffusionDecoder, data: ArrayDataset) -> None:
    x, table = floats(data), data.table.iloc[:8]
    noise = decoder.abduct(x, table)
    affected = [{"colour", "glow"}] * 8
    assert torch.equal(decoder.predict(noise, table, affected), decoder.predict(noise, table))


def test_abduction_is_never_guided(data: ArrayDataset, by_hand: Make) -> None:
    x, table = floats(data), data.table.iloc[:8]
    assert torch.equal(by_hand(guidance=5.0).abduct(x, table).latent, by_hand().abduct(x, table).latent)


# -- training ----------------------------------------------------------------------------------------------------------


def test_the_default_budget_is_the_designs() -> None:
    assert budget_seconds(2_000) == pytest.approx(180)
    assert budget_seconds(20_000) == pytest.approx(1500)
    assert budget_seconds(10**7) == 1500
    assert all(60 <= budget_seconds(n) <= 180 for n in (0, 1, 100, 1_999))
    assert 180 < budget_seconds(6_000) < budget_seconds(12_000) < 1500


def test_a_diverged_training_names_the_step(data: ArrayDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    from cfaug.decode import fit

    real, calls = fit._loss, iter(range(100))
    monkeypatch.setattr(fit, "_loss", lambda *a: real(*a) * (float("nan") if next(calls) == 2 else 1))
    with pytest.raises(CfaugError, match=r"the loss became nan at step 3; lower decoder.learning_rate \(now 0.002\)"):
        small(data)


def test_time_ends_training_without_a_number_of_steps(data: ArrayDataset) -> None:
    report = small(data, max_steps=None, seconds=0.3).report
    assert report is not None
    assert report.steps >= 1
    assert report.seconds < 5


# -- wrong use ---------------------------------------------------------------------------------------------------------


def test_wrong_channels_rows_or_dimensions(decoder: DiffusionDecoder, data: ArrayDataset) -> None:
    x, table = floats(data), data.table.iloc[:8]
    for images, rows in ((x[:, :1], table), (x, table.iloc[:7]), (x[0], table)):
        with pytest.raises(UsageError, match="this decoder was trained on 3-channel images"):
            decoder.abduct(images, rows)


def test_a_decoder_that_is_not_trained_says_so(data: ArrayDataset, tmp_path: Path) -> None:
    decoder = DiffusionDecoder(data.schema, ["colour"])
    with pytest.raises(UsageError, match="not trained yet"):
        decoder.abduct(floats(data), data.table.iloc[:8])
    with pytest.raises(UsageError, match="not trained yet"):
        decoder.save(tmp_path)


@pytest.mark.parametrize(
    ("parents", "settings", "expected"),
    [
        ([], {}, "at least one attribute"),
        (["hue"], {}, "hue"),
        (["colour"], {"chanels": [8]}, "no setting 'chanels'"),
    ],
)
def test_a_decoder_that_cannot_be_built(
    data: ArrayDataset, parents: list[str], settings: dict[str, object], expected: str
) -> None:
    with pytest.raises(UsageError, match=expected):
        DiffusionDecoder(data.schema, parents, **settings)


# -- disk --------------------------------------------------------------------------------------------------------------


def test_save_and_load(decoder: DiffusionDecoder, data: ArrayDataset, tmp_path: Path) -> None:
    decoder.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decoder.json", "decoder.safetensors"]
    again = DiffusionDecoder.load(tmp_path)
    assert (again.digest, again.report) == (decoder.digest, decoder.report)
    x, table = floats(data), data.table.iloc[:8]
    noise, same = decoder.abduct(x, table), again.abduct(x, table)
    assert isinstance(same, ImageNoise)
    assert torch.equal(noise.latent, same.latent)
    assert torch.equal(decoder.predict(noise, table), again.predict(same, table))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(content)


def without(name: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != name}))

    return damage


def steeper(path: Path) -> None:
    content = json.loads(path.read_text())
    content["config"]["steps"] = 7
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("decoder.safetensors", truncate),
        ("decoder.safetensors", flip),
        ("decoder.safetensors", Path.unlink),
        ("decoder.json", truncate),
        ("decoder.json", Path.unlink),
        ("decoder.json", steeper),
        ("decoder.json", without("digest")),
        ("decoder.json", without("config")),
        ("decoder.json", lambda path: path.write_text("[]")),
    ],
)
def test_a_damaged_checkpoint_is_refused_in_one_line(
    decoder: DiffusionDecoder, tmp_path: Path, file: str, damage: Callable[[Path], None]
) -> None:
    decoder.save(tmp_path)
    damage(tmp_path / file)
    with pytest.raises(ShardError, match="corrupt checkpoint") as caught:
        DiffusionDecoder.load(tmp_path)
    assert "\n" not in str(caught.value)
    assert "cfaug fit" in str(caught.value)

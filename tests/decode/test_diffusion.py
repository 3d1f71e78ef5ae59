"""The diffusion decoder: round trips, sizes, determinism, conditions, guidance, disk."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.small_decoder import floats, small, source

from cfaug.data import ArrayDataset
from cfaug.decode import DiffusionDecoder, ImageNoise
from cfaug.decode.diffusion.condition import Condition
from cfaug.decode.diffusion.flow_loss import FlowLoss
from cfaug.decode.diffusion.training import budget_seconds
from cfaug.decode.diffusion.training_images import ImageViews
from cfaug.errors import CfaugError, ShardError, UsageError

Make = Callable[..., DiffusionDecoder]


def round_trip(decoder: DiffusionDecoder, data: ArrayDataset) -> torch.Tensor:
    x, table = floats(data), data.table.iloc[:8]
    return decoder.predict(decoder.abduct(x, table), table) - x


@pytest.mark.parametrize(
    "settings", [{}, {"sampler": "reversible_euler"}, {"steps": 1}, {"semantic": 2}, {"bf16": False}]
)
def test_a_null_intervention_gives_the_image_back(data: ArrayDataset, settings: dict[str, Any]) -> None:
    assert float(round_trip(small(data, **settings), data).abs().max()) < 1e-4


def test_the_midpoint_rule_is_not_exact(data: ArrayDataset) -> None:
    assert 1e-3 < float(round_trip(small(data, max_steps=40, sampler="midpoint"), data).abs().mean()) / 2 < 0.05


@pytest.mark.parametrize(
    ("size", "channels", "patch"), [((7, 9), 3, 2), ((11, 6), 1, 1), ((13, 13), 3, 4), ((8, 8), 1, None)]
)
def test_any_size_and_mode_comes_back_as_it_was(size: tuple[int, int], channels: int, patch: int | None) -> None:
    data = source(16, size, channels)
    decoder = small(data, max_steps=1, patch=patch)
    noise = decoder.abduct(floats(data), data.table.iloc[:8])
    assert noise.size == size
    assert all(length % decoder.net.multiple == 0 for length in noise.states[-1].shape[3:])
    image = decoder.predict(noise, data.table.iloc[:8])
    assert image.shape == (8, channels, *size)
    assert image.dtype == torch.float32
    assert -1 <= float(image.min()) <= float(image.max()) <= 1


def test_rows_of_a_batch_do_not_see_one_another(decoder: DiffusionDecoder, data: ArrayDataset) -> None:
    x, table = floats(data), data.table.iloc[:8]
    order = [5, 2, 7, 0, 1, 6, 3, 4]
    first = decoder.abduct(x, table).states[-1][:, order]
    torch.testing.assert_close(decoder.abduct(x[order], table.iloc[order]).states[-1], first)


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
    assert torch.equal(again.abduct(x, table).states[-1], decoder.abduct(x, table).states[-1])


# -- conditions --------------------------------------------------------------------------------------------------------


def test_a_condition_is_the_encoding_and_a_presence_flag_a_parent(
    decoder: DiffusionDecoder, data: ArrayDataset
) -> None:
    assert decoder.parents == ("shape", "colour", "glow")
    table = data.table.iloc[:2].copy()
    table.iloc[1, table.columns.get_loc("colour")] = None
    condition = decoder.condition.encode(table)
    assert condition.shape == (2, 2 + 3 + 1 + 3)
    np.testing.assert_array_equal(condition[:, :6], data.schema.encode(table, decoder.parents))
    assert condition[0, 6:].tolist() == [1, 1, 1]
    assert condition[1, 6:].tolist() == [1, 0, 1]
    assert condition[1, 2:5].tolist() == [0, 0, 0]


def test_the_blocks_share_the_condition_out(decoder: DiffusionDecoder) -> None:
    assert [block.tolist() for block in decoder.condition.blocks()] == [[0, 1, 6], [2, 3, 4, 7], [5, 8]]


def test_training_hides_whole_blocks_independently_and_flags_them(
    decoder: DiffusionDecoder, data: ArrayDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []

    def spy(
        noisy: tuple[torch.Tensor, torch.Tensor], clean: torch.Tensor, shown: torch.Tensor, *rest: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(shown.clone())
        return clean, torch.zeros(())

    rows = torch.arange(4000) % 48
    condition = decoder.condition.encode(data.table)
    whole = condition[rows]
    images = torch.from_numpy(data.images).permute(0, 3, 1, 2)
    config = small(data, max_steps=1, drop_attribute=0.3).config
    views = ImageViews(images, decoder.net.multiple, "none")
    loss = FlowLoss(decoder.learner, views, condition, config, decoder.condition.blocks())
    loss(spy, rows, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    hidden = []
    for flag, block in enumerate(decoder.condition.blocks()):
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
    decoder = Condition(data.schema, ["shape", "colour"])
    counts = data.table.groupby(["shape", "colour"])["glow"].transform("size")
    assert decoder.cells(data.table).tolist() == counts.tolist()
    quarters = Condition(data.schema, ["glow"]).cells(data.table)
    assert quarters.tolist() == [12.0] * 48
    still = data.table.assign(glow=3.0)
    assert Condition(data.schema, ["glow"]).cells(still).tolist() == [48.0] * 48


# -- prediction by hand ------------------------------------------------------------------------------------------------


def test_a_counterfactual_by_hand(by_hand: Make, data: ArrayDataset) -> None:
    decoder, x, table = by_hand(), floats(data) * 0.5, data.table.iloc[:8]
    other = table.assign(colour="green", shape="bar")
    flow = decoder.net.shift  # type: ignore[operator]
    noise = decoder.abduct(x, table)
    torch.testing.assert_close(noise.states[-1][1], x + flow(decoder.condition.encode(table)))
    expected = x + flow(decoder.condition.encode(table)) - flow(decoder.condition.encode(other))
    torch.testing.assert_close(decoder.predict(noise, other), expected)


def test_guidance_amplifies_the_affected_attributes_and_no_other(by_hand: Make, data: ArrayDataset) -> None:
    decoder, x, table = by_hand(guidance=3.0), floats(data) * 0.2, data.table.iloc[:8]
    other = table.assign(colour="green")
    noise = decoder.abduct(x, table)
    full = decoder.condition.encode(other)
    rest = full.clone()
    rest[:4, 2:5] = rest[:4, 7] = 0
    flow = decoder.net.shift  # type: ignore[operator]
    expected = noise.states[-1][1] - (flow(rest) + 3 * (flow(full) - flow(rest)))
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
    assert torch.equal(by_hand(guidance=5.0).abduct(x, table).states[-1], by_hand().abduct(x, table).states[-1])


def test_the_strength_of_a_call_stands_in_for_the_configured_one(by_hand: Make, data: ArrayDataset) -> None:
    x, table = floats(data) * 0.2, data.table.iloc[:8]
    other, affected = table.assign(colour="green"), [{"colour"}] * 8
    noise = by_hand().abduct(x, table)
    strong = by_hand(guidance=2.5).predict(noise, other, affected)
    assert torch.equal(by_hand().predict(noise, other, affected, strength=2.5), strong)
    decoder = by_hand()
    unsaid = decoder.condition.without(decoder.condition.encode(other), affected)
    expected = noise.states[-1][1] - decoder.net.shift(unsaid)  # type: ignore[operator]
    torch.testing.assert_close(decoder.predict(noise, other, affected, strength=0), expected)


def test_each_row_starts_at_the_deepest_of_its_affected_attributes(by_hand: Make) -> None:
    decoder = by_hand(steps=4, depth={"colour": 0.5, "glow": 0.2})
    assert decoder._levels == [1, 2, 4]
    affected = [{"colour"}, {"glow"}, {"glow", "colour"}, {"shape", "glow"}, set(), {"elsewhere"}]
    assert decoder._start(affected, 6).tolist() == [1, 0, 1, 2, 2, 2]
    assert decoder._start(None, 2).tolist() == [2, 2]
    with pytest.raises(UsageError, match="'hue', which is no parent"):
        by_hand(steps=2, depth={"hue": 0.5})


@pytest.mark.parametrize("sampler", ["reversible", "reversible_euler"])
def test_a_null_intervention_is_exact_at_every_depth(data: ArrayDataset, sampler: str) -> None:
    decoder = small(data, sampler=sampler, steps=4, depth={"colour": 0.5}, bf16=False)
    x, table = floats(data), data.table.iloc[:8]
    noise = decoder.abduct(x, table)
    assert len(noise.states) == 2
    for affected in ([{"colour"}] * 8, [{"colour"}, set()] * 4, None):
        torch.testing.assert_close(decoder.predict(noise, table, affected), x, atol=1e-4, rtol=0)


def test_a_shallow_inversion_changes_less(data: ArrayDataset) -> None:
    x, table = floats(data), data.table.iloc[:8]
    other = table.assign(colour=["green" if name != "green" else "red" for name in table["colour"]])
    changes = []
    for depth in (0.25, 0.5, 1.0):
        decoder = small(data, max_steps=20, sampler="midpoint", steps=4, depth={"colour": depth})
        made = decoder.predict(decoder.abduct(x, table), other, [{"colour"}] * 8)
        changes.append(float((made - x).abs().mean()))
    assert changes == sorted(changes)


# -- training ----------------------------------------------------------------------------------------------------------


def test_the_default_budget_is_the_designs() -> None:
    assert budget_seconds(2_000) == pytest.approx(180)
    assert budget_seconds(20_000) == pytest.approx(1500)
    assert budget_seconds(10**7) == 1500
    assert all(60 <= budget_seconds(n) <= 180 for n in (0, 1, 100, 1_999))
    assert 180 < budget_seconds(6_000) < budget_seconds(12_000) < 1500


def test_a_diverged_training_names_the_step(data: ArrayDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    from cfaug.decode.diffusion import flow_loss as fit

    real, calls = fit.FlowLoss.__call__, iter(range(100))
    monkeypatch.setattr(fit.FlowLoss, "__call__", lambda *a: real(*a) * (float("nan") if next(calls) == 2 else 1))
    with pytest.raises(CfaugError, match=r"the loss became nan at step 3, with decoder.learning_rate 0.002"):
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


def test_pixels_that_are_no_numbers_and_no_images(decoder: DiffusionDecoder, data: ArrayDataset) -> None:
    x, table = floats(data), data.table.iloc[:8]
    with pytest.raises(UsageError, match="some pixels are NaN"):
        decoder.abduct(torch.where(x > 0, float("nan"), x), table)
    with pytest.raises(UsageError, match="none came"):
        decoder.abduct(x[:0], table.iloc[:0])
    with pytest.raises(UsageError, match=r"torch.bool up to 1"):
        decoder.abduct(x > 0, table)
    noise = decoder.abduct(x.double(), table)  # any float will do
    with pytest.raises(UsageError, match="each of 8 images, but 7"):
        decoder.predict(noise, table.iloc[:7])
    with pytest.raises(UsageError, match="strength from 0 up"):
        decoder.predict(noise, table, [{"colour"}] * 8, strength=float("nan"))
    with pytest.raises(UsageError, match="needs `affected`"):
        decoder.predict(noise, table, strength=2.0)


def test_images_of_another_size(decoder: DiffusionDecoder, data: ArrayDataset) -> None:
    with pytest.raises(UsageError, match=r"of 8x8 px .* \(8, 3, 9, 8\)"):
        decoder.abduct(torch.zeros(8, 3, 9, 8), data.table.iloc[:8])


def test_sources_of_several_sizes_share_a_canvas(data: ArrayDataset) -> None:
    class Mixed(ArrayDataset):
        def image(self, index: int) -> np.ndarray:  # type: ignore[type-arg]
            return super().image(index)[: 6 + index % 3]

    mixed = Mixed(data.images, data.table, data.schema, "train")
    decoder = small(mixed, bf16=False)
    assert decoder.canvas == (8, 8)
    assert small(data).canvas is None
    x, table = floats(data)[:, :, :7], data.table.iloc[:8]
    made = decoder.predict(decoder.abduct(x, table), table)
    torch.testing.assert_close(made, x, atol=1e-4, rtol=0)
    with pytest.raises(UsageError, match="at most 8x8 px"):
        decoder.abduct(torch.zeros(8, 3, 9, 8), table)


def test_values_may_be_missing_in_training_and_in_abduction(data: ArrayDataset) -> None:
    table = data.table.copy()
    table.loc[table.index[::3], "colour"] = None
    table.loc[table.index[::5], "glow"] = np.nan
    decoder = small(ArrayDataset(data.images, table, data.schema, "train"), bf16=False)
    x, rows = floats(data), table.iloc[:8]
    noise = decoder.abduct(x, rows)
    torch.testing.assert_close(decoder.predict(noise, rows), x, atol=1e-4, rtol=0)
    assert torch.isfinite(decoder.predict(noise, rows.assign(colour="green"))).all()
    assert decoder.condition.cells(table).shape == (48,)


def test_a_decoder_in_latents(data: ArrayDataset, tmp_path: Path) -> None:
    large = source(24, (16, 16))
    decoder = small(large, space="latents", structure="layout", semantic=2, bf16=False)
    assert decoder.space.factor > 1
    x, table = floats(large), large.table.iloc[:8]
    made = decoder.predict(decoder.abduct(x, table), table)
    codec = decoder.space.roundtrip(x).clamp(-1, 1)  # composition is exact up to the autoencoder
    torch.testing.assert_close(made, codec, atol=1e-3, rtol=0)
    decoder.save(tmp_path)
    again = DiffusionDecoder.load(tmp_path)
    assert again.digest == decoder.digest
    torch.testing.assert_close(again.predict(again.abduct(x, table), table), made, atol=1e-4, rtol=0)
    third = DiffusionDecoder.load(tmp_path)  # what is generated comes from loaded decoders: these agree in every bit
    assert torch.equal(third.predict(third.abduct(x, table), table), again.predict(again.abduct(x, table), table))


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
        (["colour"], {"sampler": "euler"}, "decoder.sampler must be one of"),
        (["colour"], {"steps": 0}, "decoder.steps must be a number from 1|decoder.steps must be between 1"),
        (["colour"], {"depth": {"colour": 5.0}}, "decoder.depth colour must be between"),
        (["colour"], {"depth": {"colour": 0.5}, "steps": 1}, "no time-step to stop at"),
        (["colour"], {"guidance": float("nan")}, "decoder.guidance must be"),
        (["colour"], {"guidance": 3.0, "drop_attribute": 0.0}, "never learns an image without"),
        (["colour"], {"channels": [12]}, "multiples of 8"),
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
    assert torch.equal(noise.states[-1], same.states[-1])
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

"""The diffusion decoder: round trips, sizes, determinism, conditions, guidance, disk."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.small_decoder import floats, small, source, sources

from cfaug.config import DecoderConfig
from cfaug.data import ArrayDataset
from cfaug.decode import DiffusionDecoder, ImageNoise
from cfaug.decode.diffusion import flow_loss as module
from cfaug.decode.diffusion.condition import Condition
from cfaug.decode.diffusion.flow_loss import flow_loss
from cfaug.errors import UsageError

Make = Callable[..., DiffusionDecoder]
ROWS = slice(0, 8)


def abducted(decoder: DiffusionDecoder, data: ArrayDataset, scale: float = 1.0) -> ImageNoise:
    return decoder.abduct(sources(floats(data) * scale, data.table.iloc[ROWS]))


def round_trip(decoder: DiffusionDecoder, data: ArrayDataset) -> torch.Tensor:
    return decoder.predict(abducted(decoder, data), data.table.iloc[ROWS]) - floats(data)


@pytest.mark.parametrize("settings", [{}, {"sampler": "reversible_euler", "bf16": False}, {"steps": 1}])
def test_a_null_intervention_gives_the_image_back(data: ArrayDataset, settings: dict[str, Any]) -> None:
    decoder = small(data, **settings)
    assert decoder.capabilities.null == "exact"
    assert float(round_trip(decoder, data).abs().max()) < 1e-4


def test_the_midpoint_rule_is_not_exact(data: ArrayDataset) -> None:
    decoder = small(data, max_steps=15, sampler="midpoint")
    assert decoder.capabilities.null == "round_trip"
    assert 1e-3 < float(round_trip(decoder, data).abs().mean()) / 2 < 0.05


@pytest.mark.parametrize(("size", "channels", "patch"), [((7, 9), 3, 2), ((11, 6), 1, 1), ((13, 13), 3, 4)])
def test_any_size_and_mode_comes_back_as_it_was(size: tuple[int, int], channels: int, patch: int | None) -> None:
    data = source(16, size, channels)
    decoder = small(data, max_steps=1, patch=patch)
    noise = abducted(decoder, data)
    assert noise.size == size
    assert all(length % decoder.net.multiple == 0 for length in noise.states[-1].shape[3:])
    image = decoder.predict(noise, data.table.iloc[ROWS])
    assert image.shape == (8, channels, *size)
    assert image.dtype == torch.float32
    assert -1 <= float(image.min()) <= float(image.max()) <= 1


def test_rows_of_a_batch_do_not_see_one_another(decoder: DiffusionDecoder, data: ArrayDataset) -> None:
    x, table = floats(data), data.table.iloc[ROWS]
    order = [5, 2, 7, 0, 1, 6, 3, 4]
    first = abducted(decoder, data).states[-1][:, order]
    torch.testing.assert_close(decoder.abduct(sources(x[order], table.iloc[order])).states[-1], first)


def test_the_digest_follows_seed_weights_and_settings(decoder: DiffusionDecoder, data: ArrayDataset) -> None:
    before = torch.get_rng_state()
    assert small(data).digest == decoder.digest
    assert torch.equal(torch.get_rng_state(), before)  # no other stream was moved
    assert small(data, seed=1).digest != decoder.digest
    assert small(data, guidance=2.0).digest != decoder.digest  # it changes what is generated
    changed = pickle.loads(pickle.dumps(decoder))
    assert changed.digest == decoder.digest
    with torch.no_grad():
        next(changed.net.parameters()).add_(1e-3)
    assert changed.digest != decoder.digest
    assert decoder.report is not None
    assert (decoder.report.steps, decoder.report.images) == (5, 48)


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double")
def test_a_program_in_double_precision_can_use_it(data: ArrayDataset, tmp_path: Path) -> None:
    decoder = small(data, max_steps=2, bf16=False)
    decoder.save(tmp_path)
    assert float(round_trip(DiffusionDecoder.load(tmp_path), data).abs().max()) < 1e-4
    assert all(tensor.dtype == torch.float32 for tensor in decoder.net.state_dict().values())


# -- conditions --------------------------------------------------------------------------------------------------------


def test_a_condition_is_the_encoding_and_presence_flags(decoder: DiffusionDecoder, data: ArrayDataset) -> None:
    assert decoder.parents == ("shape", "colour", "glow")
    table = data.table.iloc[:2].copy()
    table.iloc[1, table.columns.get_loc("colour")] = None
    condition = decoder.condition.encode(table)
    assert condition.shape == (2, 2 + 3 + 1 + 3)
    np.testing.assert_array_equal(condition[:, :6], data.schema.encode(table, decoder.parents))
    assert condition[:, 6:].tolist() == [[1, 1, 1], [1, 0, 1]]
    assert condition[1, 2:5].tolist() == [0, 0, 0]
    assert [block.tolist() for block in decoder.condition.blocks()] == [[0, 1, 6], [2, 3, 4, 7], [5, 8]]


def test_training_hides_whole_blocks_independently(decoder: DiffusionDecoder, data: ArrayDataset) -> None:
    seen: list[torch.Tensor] = []

    def spy(x: torch.Tensor, t: torch.Tensor, shown: torch.Tensor, structure: torch.Tensor) -> torch.Tensor:
        seen.append(shown)
        return x

    blocks = decoder.condition.blocks()
    whole = decoder.condition.encode(data.table)[torch.arange(4000) % 48]
    x, generator = torch.zeros(4000, 3, 2, 2), torch.Generator().manual_seed(0)
    config = DecoderConfig(drop_attribute=0.3)
    flow_loss(spy, torch.ones(()), x, x[:, :0], whole, blocks, config, generator)  # type: ignore[arg-type]
    hidden = []
    for flag, block in enumerate(blocks):
        gone = seen[0][:, 6 + flag] == 0
        assert not seen[0][gone][:, block].any()
        assert torch.equal(seen[0][~gone][:, block], whole[~gone][:, block])
        hidden.append(gone.double())
    together = torch.stack(hidden)
    assert (together.mean(1) - 0.3).abs().max() < 0.03
    assert torch.corrcoef(together).fill_diagonal_(0).abs().max() < 0.06


def test_cells_count_the_images_with_the_same_attributes(data: ArrayDataset) -> None:
    counts = data.table.groupby(["shape", "colour"])["glow"].transform("size")
    assert Condition(data.schema, ["shape", "colour"]).cells(data.table).tolist() == counts.tolist()
    assert Condition(data.schema, ["glow"]).cells(data.table).tolist() == [12.0] * 48
    assert Condition(data.schema, ["glow"]).cells(data.table.assign(glow=3.0)).tolist() == [48.0] * 48


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_rows_are_drawn_by_a_power_of_their_cells_count(
    data: ArrayDataset, power: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[torch.Tensor] = []

    def spy(velocity: torch.nn.Module, scale: torch.Tensor, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        drawn.append(x)
        return sum(p.sum() for p in velocity.parameters()) * 0  # type: ignore[return-value]

    monkeypatch.setattr(module, "flow_loss", spy)
    numbered = ArrayDataset(np.arange(48, dtype=np.uint8).repeat(192).reshape(48, 8, 8, 3), data.table, data.schema)
    decoder = small(numbered, cell_power=power, max_steps=4, batch_size=5000)
    rows = ((torch.cat(drawn)[:, 0, 0, 0] + 1) * 127.5).round().long()
    counts = decoder.condition.cells(data.table)
    assert len(counts.unique()) > 2
    expected, shares = counts.pow(-power), torch.bincount(rows, minlength=48) / 20_000
    for count in counts.unique():
        cell = counts == count
        assert float(shares[cell].sum()) == pytest.approx(float(expected[cell].sum() / expected.sum()), abs=0.02)


def test_values_may_be_missing_in_training_and_abduction(data: ArrayDataset) -> None:
    table = data.table.copy()
    table.loc[table.index[::3], "colour"] = None
    table.loc[table.index[::5], "glow"] = np.nan
    lacking = ArrayDataset(data.images, table, data.schema, "train")
    decoder = small(lacking, bf16=False)
    assert float(round_trip(decoder, lacking).abs().max()) < 1e-4
    made = decoder.predict(abducted(decoder, lacking), table.iloc[ROWS].assign(colour="green"))
    assert torch.isfinite(made).all()


# -- prediction by hand ------------------------------------------------------------------------------------------------


def test_a_counterfactual_by_hand(by_hand: Make, data: ArrayDataset) -> None:
    decoder, x, table = by_hand(), floats(data) * 0.5, data.table.iloc[ROWS]
    other = table.assign(colour="green", shape="bar", glow=table["glow"] + 10)
    flow = decoder.net.shift  # type: ignore[operator]
    noise = abducted(decoder, data, 0.5)
    torch.testing.assert_close(noise.states[-1][1], x + flow(decoder.condition.encode(table)))
    expected = x + flow(decoder.condition.encode(table)) - flow(decoder.condition.encode(other))
    torch.testing.assert_close(decoder.predict(noise, other), expected)


def test_guidance_amplifies_the_affected_attributes_only(by_hand: Make, data: ArrayDataset) -> None:
    decoder, other = by_hand(guidance=3.0), data.table.iloc[ROWS].assign(colour="green")
    noise = abducted(decoder, data, 0.2)
    assert torch.equal(abducted(by_hand(), data, 0.2).states[-1], noise.states[-1])  # abduction is never guided
    full = decoder.condition.encode(other)
    rest = full.clone()
    rest[:4, 2:5] = rest[:4, 7] = 0
    flow = decoder.net.shift  # type: ignore[operator]
    affected = [{"colour"}] * 4 + [set()] * 4
    made = decoder.predict(noise, other, affected)
    torch.testing.assert_close(made, noise.states[-1][1] - (flow(rest) + 3 * (flow(full) - flow(rest))))
    plain = by_hand().predict(noise, other, affected)
    torch.testing.assert_close(made[4:], plain[4:])  # nothing was asked of these rows
    assert float((made[:4] - plain[:4]).abs().max()) > 0.05
    assert torch.equal(by_hand().predict(noise, other, affected, strength=3.0), made)
    assert torch.equal(by_hand().predict(noise, other, affected), by_hand().predict(noise, other))
    unsaid = by_hand().predict(noise, other, affected, strength=0)
    torch.testing.assert_close(unsaid, noise.states[-1][1] - flow(rest))


def test_a_row_starts_at_its_deepest_affected_attribute(by_hand: Make, data: ArrayDataset) -> None:
    decoder = by_hand(steps=4, depth={"colour": 0.5, "glow": 0.2})
    noise = abducted(decoder, data, 0.2)
    assert len(noise.states) == 3  # levels 1, 2 and 4
    table, flow = data.table.iloc[ROWS], decoder.net.shift  # type: ignore[operator]
    other = table.assign(colour="green", shape="bar", glow=table["glow"] + 10)
    change = flow(decoder.condition.encode(table)) - flow(decoder.condition.encode(other))
    affected = [{"colour"}, {"glow"}, {"glow", "colour"}, {"shape", "glow"}, set(), {"elsewhere"}, {"glow"}, {"colour"}]
    made = decoder.predict(noise, other, affected)
    # each Euler step after the first moves by half of the step before: what is undone is the share of the flow's time
    unmoved = decoder.predict(noise, other, [{"shape"}] * 8)
    share = ((made - floats(data) * 0.2) / change).mean(dim=(1, 2, 3))
    whole = ((unmoved - floats(data) * 0.2) / change).mean(dim=(1, 2, 3))
    torch.testing.assert_close(whole, torch.ones(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(share, torch.tensor([0.5, 0.25, 0.5, 1, 1, 1, 0.25, 0.5]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("sampler", ["reversible", "reversible_euler"])
def test_a_null_intervention_is_exact_at_every_depth(data: ArrayDataset, sampler: str) -> None:
    decoder = small(data, sampler=sampler, steps=4, depth={"colour": 0.5}, bf16=False, max_steps=2)
    noise = abducted(decoder, data)
    for affected in ([{"colour"}] * 8, [{"colour"}, set()] * 4, None):
        made = decoder.predict(noise, data.table.iloc[ROWS], affected)
        torch.testing.assert_close(made, floats(data), atol=1e-4, rtol=0)


# -- images ------------------------------------------------------------------------------------------------------------


def test_time_ends_training_without_a_number_of_steps(data: ArrayDataset) -> None:
    report = small(data, max_steps=None, seconds=0.3).report
    assert report is not None
    assert report.steps >= 1
    assert report.seconds < 5


def test_sources_of_several_sizes_share_a_canvas(data: ArrayDataset) -> None:
    class Mixed(ArrayDataset):
        def image(self, index: int) -> np.ndarray:  # type: ignore[type-arg]
            return super().image(index)[: 6 + index % 3]

    decoder = small(Mixed(data.images, data.table, data.schema, "train"), bf16=False, max_steps=2)
    assert decoder.canvas == (8, 8)
    assert small(data, max_steps=1).canvas is None
    x, table = floats(data)[:, :, :7], data.table.iloc[ROWS]
    torch.testing.assert_close(decoder.predict(decoder.abduct(sources(x, table)), table), x, atol=1e-4, rtol=0)
    with pytest.raises(UsageError, match="at most 8x8 px"):
        decoder.abduct(sources(torch.zeros(8, 3, 9, 8), table))


# -- disk --------------------------------------------------------------------------------------------------------------


def test_save_and_load(decoder: DiffusionDecoder, data: ArrayDataset, tmp_path: Path) -> None:
    decoder.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decoder.json", "decoder.safetensors"]
    again = DiffusionDecoder.load(tmp_path)
    assert (again.digest, again.report) == (decoder.digest, decoder.report)
    noise = abducted(decoder, data)
    for one in (again, pickle.loads(pickle.dumps(decoder))):  # a spawned worker gets it pickled
        same = abducted(one, data)
        assert torch.equal(noise.states[-1], same.states[-1])
        table = data.table.iloc[ROWS]
        assert torch.equal(decoder.predict(noise, table), one.predict(same, table))

"""The contact sheet: which images are on it, as which pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import looked_at, tiny
from PIL import Image

from cfaug.data import ArrayDataset
from cfaug.errors import ShardError, StorageError, UsageError
from cfaug.offline import ShardReader, balance_groups, generate
from cfaug.offline.inspect import contact_sheet
from cfaug.offline.inspect.contact_sheet import contact_sheet as draw
from cfaug.offline.read_committed import Committed


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image)


def shows(sheet: np.ndarray, colour: str) -> int:
    """How many pixels of the sheet have exactly this colour."""
    return int((sheet == looked_at.COLOURS[colour]).all(axis=2).sum())


def many(n: int, rare: int, size: tuple[int, int] = (8, 8)) -> list[list]:
    """`n` sources of two shards, one counterfactual each: do(colour=green), but one is plum."""
    factual = {"digit": "1", "colour": "red"}
    made = [
        looked_at.sample(i, f"s{i:04d}", factual, {"colour": "plum" if i == rare else "green"}, size) for i in range(n)
    ]
    return [made[: n // 2], made[n // 2 :]]


@pytest.mark.parametrize(("rare", "seed"), [(77, 0), *(pytest.param(n, 1, marks=pytest.mark.slow) for n in (0, 199))])
def test_every_intervened_value_is_seen(tmp_path, rare: int, seed: int) -> None:
    looked_at.write(tmp_path, many(200, rare))
    sheet = pixels(draw(tmp_path, tmp_path / "sheet.png", rows=3, columns=2, seed=seed))
    assert shows(sheet, "plum") == 128 * 128
    assert shows(sheet, "green") == 2 * 128 * 128
    assert shows(sheet, "red") == 0  # there are no reconstructions


def test_every_group_is_seen(tmp_path) -> None:
    """Digit 2 has a blue counterfactual in one of 120 sources; green and blue occur everywhere else."""
    shard = []
    for i in range(120):
        digit, colour = str(i % 3), "blue" if i % 3 != 2 or i == 50 else "green"
        shard.append(looked_at.sample(i, f"s{i}", {"digit": digit, "colour": "red"}, {"colour": colour}))
    looked_at.write(tmp_path, [shard])
    chosen = contact_sheet.choose(Committed(tmp_path), 4, 1)
    groups = {(s.record["target"], s.record["do"]["colour"]) for source in chosen for s in source.made}
    assert groups == {("0", "blue"), ("1", "blue"), ("2", "green"), ("2", "blue")}


def test_a_row_has_one_source_and_its_reconstruction(tmp_path) -> None:
    factual = {"digit": "1", "colour": "red"}
    a = [looked_at.sample(i, "a", factual, {"colour": c} if c else {}) for i, c in enumerate(("green", "", "blue"))]
    b = [looked_at.sample(10 + i, "b", factual, {"colour": c}) for i, c in enumerate(("green", "blue"))]
    looked_at.write(tmp_path, [a[:2] + b[:1], a[2:] + b[1:]])
    sheet = pixels(draw(tmp_path, tmp_path / "sheet.png"))
    where = {c: np.argwhere((sheet == looked_at.COLOURS[c]).all(axis=2)) for c in ("red", "green", "blue")}
    assert len(where["red"]) == 128 * 128
    for colour in ("green", "blue"):
        assert len(where[colour]) == 2 * 128 * 128  # one of each source
    first = {c: set(w[w[:, 0] < where["red"][:, 0].max() + 1, 1]) for c, w in where.items()}
    assert max(first["red"]) < min(first["blue"])  # the reconstruction comes first
    assert max(first["blue"]) < min(first["green"])


@pytest.mark.parametrize(
    ("size", "shown"),
    [((8, 8), (128, 128)), ((100, 60), (100, 60)), ((224, 224), (224, 224)), ((512, 256), (256, 128))],
)
def test_images_are_shown_as_large_as_can_be_looked_at(tmp_path, size, shown) -> None:
    looked_at.write(tmp_path, many(4, -1, size))
    sheet = pixels(draw(tmp_path, tmp_path / "sheet.png", rows=1))
    assert shows(sheet, "green") == shown[0] * shown[1]


@pytest.mark.parametrize("image", [pytest.param("png", marks=pytest.mark.slow), "webp"])
def test_pixels_are_those_of_the_shards(tmp_path, image: str) -> None:
    data = tiny.dataset(2, size=16)
    plan = balance_groups(data.table, data.schema, null_fraction=0.4)
    generate(tiny.model(), data, plan, tmp_path, workers=0, progress=False, image=image)
    sheet = pixels(draw(tmp_path, tmp_path / "sheet.png"))
    reader = ShardReader(tmp_path)
    seen = np.lib.stride_tricks.sliding_window_view(sheet[::1], (128, 128), axis=(0, 1))
    for i in range(len(reader)):
        large = reader.image(i).repeat(8, axis=0).repeat(8, axis=1)
        corners = np.argwhere((sheet[:-127, :-127] == large[0, 0]).all(axis=2))
        assert any(np.array_equal(np.moveaxis(seen[y, x], 0, 2), large) for y, x in corners), reader.keys[i]


def test_the_same_seed_draws_the_same_sheet(tmp_path) -> None:
    looked_at.write(tmp_path / "shards", many(200, 3))
    sheets = [draw(tmp_path, tmp_path / f"{i}.png", rows=3, seed=seed).read_bytes() for i, seed in enumerate((0, 0, 1))]
    assert sheets[0] == sheets[1] != sheets[2]


def test_of_very_many_shards_a_few_are_looked_at(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(contact_sheet, "SHARDS", 3)
    factual = {"digit": "1", "colour": "red"}
    looked_at.write(tmp_path, ([looked_at.sample(i, f"s{i}", factual, {"colour": "blue"})] for i in range(9)))
    assert shows(pixels(draw(tmp_path, tmp_path / "sheet.png", rows=9)), "blue") == 3 * 128 * 128


def test_odd_names_grey_images_and_sizes(tmp_path) -> None:
    data = tiny.dataset(6, channels=1)
    data.table.index = [f"Ein sehr langer Name {'é' * i} \n {'w' * 200}.png" for i in range(6)]
    data = ArrayDataset(data.images, data.table, data.schema)
    plan = balance_groups(data.table, data.schema, per_image=9)
    generate(tiny.model(), data, plan, tmp_path, workers=0, progress=False)
    assert pixels(draw(tmp_path, tmp_path / "deep" / "sheet.PNG", rows=2, columns=3)).shape[1] < 800


def test_errors_are_one_line(tmp_path) -> None:
    for rows, columns in ((0, 1), (1, 0)):
        with pytest.raises(UsageError, match="at least one row and one column"):
            draw(tmp_path, tmp_path / "sheet.png", rows, columns)
    with pytest.raises(UsageError, match=r"ends in \.png .* got 'sheet\.jpg'"):
        draw(tmp_path, tmp_path / "sheet.jpg")
    with pytest.raises(ShardError, match="generate first"):
        draw(tmp_path, tmp_path / "sheet.png")
    looked_at.write(tmp_path, many(4, 0))
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        draw(tmp_path, tmp_path / "file" / "sheet.png")


def test_the_unseen_counterfactuals_come_before_others(tmp_path) -> None:
    factual = {"digit": "1", "colour": "red"}
    colours = ("green", "green", "green", "blue")
    made = [
        [looked_at.sample(10 * s + i, f"s{s}", factual, {"colour": c}) for i, c in enumerate(colours)] for s in range(4)
    ]
    looked_at.write(tmp_path, made)
    sheet = pixels(draw(tmp_path, tmp_path / "sheet.png", rows=2, columns=1))
    assert shows(sheet, "green") == shows(sheet, "blue") == 128 * 128

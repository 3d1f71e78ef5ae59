from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cfaug.data import can_unconfound, measures_of, open_source
from cfaug.data.sources import morpho
from cfaug.errors import UsageError

READ = measures_of("morpho_mnist")


def strokes(
    width: float, angles: tuple[float, ...] = (0.0, 0.3, 0.785, 1.2, 1.571), level: float = 255.0
) -> morpho.Pixels:
    """A straight stroke 18 px long of known width (px) at each angle, each pixel lit by the share that it covers."""
    fine = 10
    centre = (np.arange(28 * fine) + 0.5) / fine - 14.0
    y, x = np.meshgrid(centre, centre, indexing="ij")
    out = []
    for angle in angles:
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        inside = (np.abs(across) <= width / 2) & (np.abs(along) <= 9)
        out.append(inside.reshape(28, fine, 28, fine).mean(axis=(1, 3)))
    return np.round(np.stack(out) * level).astype(np.uint8)[..., None]


@pytest.mark.parametrize("width", [2.0, 2.5, 3.0, 4.0, 5.0])
def test_a_stroke_of_known_width_measures_that_width(width: float) -> None:
    assert READ["thickness"](strokes(width)) == pytest.approx(width, abs=0.18)


def test_thickness_and_intensity_do_not_depend_on_each_other() -> None:
    for width in (2.0, 4.0):
        bright, dark = (READ["thickness"](strokes(width, level=level)) for level in (250.0, 60.0))
        assert bright == pytest.approx(dark, abs=0.03)
        assert READ["intensity"](strokes(width, (0.0, 1.571), level=90.0)) == pytest.approx(90, abs=1)


def test_intensity_is_the_median_above_the_middle_of_the_range() -> None:
    image = np.zeros((1, 4, 4, 1), np.uint8)
    image.flat[:5] = [100, 60, 70, 49, 10]  # the middle is 50: the median of 100, 70, 60
    assert READ["intensity"](image).tolist() == [70.0]
    image.flat[3] = 50  # at the middle counts: the median of four
    assert READ["intensity"](image).tolist() == [65.0]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [0, 7, 255])
def test_flat_images_have_no_stroke_and_divide_by_nothing(value: int) -> None:
    flat = np.full((3, 28, 28, 1), value, np.uint8)
    assert READ["thickness"](flat).tolist() == [0.0] * 3
    assert READ["intensity"](flat).tolist() == [value] * 3
    assert READ["thickness"](flat[:0]).shape == READ["intensity"](flat[:0]).shape == (0,)


@pytest.mark.filterwarnings("error")
def test_nearly_dark_images_and_colours_are_measured() -> None:
    dark = strokes(3.0, (0.3,), level=2.0)
    assert np.isfinite(READ["thickness"](dark)).all()
    grey = strokes(3.0)
    for read in READ.values():
        assert read(np.repeat(grey, 3, axis=3)) == pytest.approx(read(grey), abs=1e-6)
        with pytest.raises(UsageError, match="uint8 images"):
            read(grey[..., 0])


@pytest.mark.parametrize("target", [1.5, 2.0, 3.0, 4.5])
@pytest.mark.parametrize("width", [2.0, 4.0])
def test_thinning_and_thickening_reach_what_is_asked(width: float, target: float) -> None:
    source = strokes(width, (0.15, 0.3, 0.785, 1.2, 1.35))  # along the grid, thin widths cannot be drawn
    intensity = np.linspace(70, 250, len(source))
    made = morpho.render(source[..., 0], np.full(len(source), target), intensity)
    assert READ["thickness"](made) == pytest.approx(target, abs=0.2 if target < 2 else 0.1)
    assert READ["intensity"](made) == pytest.approx(intensity, abs=4)
    # the stroke stays where it was: thin within thick
    old, new = source[..., 0] > 127, made[..., 0] > 0.5 * intensity[:, None, None]
    thin, thick = (new, old) if target < width else (old, new)
    assert (thin & ~thick).sum() <= 0.02 * thick.sum()


def test_a_thin_neck_survives_thinning() -> None:
    from scipy import ndimage

    image = np.zeros((1, 28, 28), np.uint8)
    image[0, 4:10, 10:17] = image[0, 18:24, 10:17] = 255
    image[0, 10:18, 13] = 255  # one px wide between two blobs: eroded first
    made = morpho.render(image, np.array([1.5]), np.array([100.0]))
    assert ndimage.label(made[0, ..., 0] > 30, structure=np.ones((3, 3)))[1] == 1


def test_blank_sources_stay_blank() -> None:
    blank = np.zeros((2, 28, 28), np.uint8)
    assert not morpho.render(blank, np.array([1.0, 4.0]), np.array([64.0, 255.0])).any()


def test_the_scm_is_the_published_one() -> None:
    t, i = morpho.draw(200_000, np.random.default_rng(0))
    assert t.mean() == pytest.approx(2.5, abs=0.01)
    assert t.std() == pytest.approx(10**0.5 / 5, abs=0.01)
    assert t.min() > 0.5
    logit = np.log((i - 64) / (255 - i))
    assert np.polyfit(t, logit, 1) == pytest.approx([2, -5], abs=0.03)
    assert (logit - 2 * (t - 2.5)).std() == pytest.approx(0.5, abs=0.01)
    assert morpho.intensity_of(np.array([2.5]), np.array([0.0])).tolist() == [159.5]


def test_only_what_can_be_measured_has_a_measure() -> None:
    assert set(READ) == {"thickness", "intensity"}
    assert measures_of("digits") == measures_of("double_colored_mnist") == measures_of("folder") == {}
    with pytest.raises(UsageError, match="morpho_mnist"):
        measures_of("morpho_mnst")


def test_bad_options_are_one_line(tmp_path: Path) -> None:
    assert not can_unconfound("morpho_mnist")
    for options, message in (
        ({"confounded": False}, "cannot be made unconfounded"),
        ({"rho": 0.5}, "no option 'rho'"),
        ({"train_images": 59_999, "val_images": 2}, "60000"),
        ({"split": "dev"}, "got 'dev'"),
    ):
        with pytest.raises(UsageError, match=message):
            open_source("morpho_mnist", tmp_path, **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="needs a root"):
        open_source("morpho_mnist")


def test_mnist_digits_measure_what_the_table_says(mnist_root: Path) -> None:
    options = {"train_images": 100, "val_images": 20}
    train, val, again, other = (
        open_source("morpho_mnist", mnist_root, split, seed=seed, **options)  # type: ignore[arg-type]
        for split, seed in (("train", 0), ("val", 0), ("train", 0), ("train", 1))
    )
    images = np.stack([train.image(i) for i in range(len(train))])
    assert images.shape == (100, 28, 28, 1)
    for name, mean, most in (("thickness", 0.04, 0.2), ("intensity", 0.5, 3.0)):
        error = np.abs(READ[name](images) - train.table[name])
        assert error.mean() < mean
        assert np.quantile(error, 0.99) < most
    assert train.schema["thickness"].unit == "px"
    assert train.schema["intensity"].unit == "grey levels"
    assert not set(train.table.index) & set(val.table.index)
    assert train.table.equals(again.table)
    assert np.array_equal(train.image(7), again.image(7))
    assert train.table[["digit"]].equals(other.table[["digit"]])
    assert not train.table["thickness"].equals(other.table["thickness"])
    # the same digits in the same splits as the coloured ones
    coloured = open_source("double_colored_mnist", mnist_root, "train", **options)  # type: ignore[arg-type]
    assert coloured.table["digit"].equals(train.table["digit"])

"""An image is read as a viewer shows it: upright, on white, one frame of 8 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from cfaug.data import pixel_digest
from cfaug.data.images import FITS, Fit, decode, read_image, resize
from cfaug.errors import UsageError

SCENE = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(tmp_path: Path, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    Image.fromarray(SCENE).save(tmp_path / "a.img", kind, exif=exif, **options)
    shown = read_image(tmp_path / "a.img")
    assert shown.shape == ((6, 4, 3) if orientation > 4 else (4, 6, 3))
    with Image.open(tmp_path / "a.img") as lying:
        assert np.array_equal(shown, np.asarray(ImageOps.exif_transpose(lying)))
        lies = np.asarray(lying)
    if orientation == 6:  # the camera's top is at the right: the stored image turned clockwise
        assert np.array_equal(shown, np.rot90(lies, -1))
    assert (pixel_digest(shown) == pixel_digest(lies)) == (orientation == 1)


def test_damaged_exif_is_not_a_damaged_image(tmp_path: Path) -> None:
    Image.fromarray(SCENE).save(tmp_path / "a.png", exif=b"Exif\x00\x00nonsense")
    assert np.array_equal(read_image(tmp_path / "a.png"), SCENE)


def test_what_lies_under_transparency_is_not_seen(tmp_path: Path) -> None:
    opaque = np.full((4, 6, 1), 255, np.uint8)
    alpha = opaque.copy()
    alpha[:2] = 0
    alpha[2, 0] = 51
    other = SCENE.copy()
    other[:2] = 9
    for name, pixels in (("a", SCENE), ("b", other)):
        Image.fromarray(np.concatenate([pixels, alpha], 2)).save(tmp_path / f"{name}.png")
    first, second = decode(tmp_path / "a.png"), decode(tmp_path / "b.png")
    assert first.transparent
    assert np.array_equal(first.pixels, second.pixels)
    assert (first.pixels[:2] == 255).all()
    assert np.array_equal(first.pixels[3], SCENE[3])
    assert np.abs(first.pixels[2, 0] - (255 * 0.8 + SCENE[2, 0] * 0.2)).max() <= 1
    Image.fromarray(np.concatenate([SCENE, opaque], 2)).save(tmp_path / "c.png")
    assert not decode(tmp_path / "c.png").transparent
    assert np.array_equal(decode(tmp_path / "c.png").pixels, SCENE)


@pytest.mark.parametrize(("mode", "channels"), [("LA", 3), ("P", 3), ("RGB", 3), ("L", 1)])
def test_every_kind_of_transparency_is_shown_on_white(tmp_path: Path, mode: str, channels: int) -> None:
    image = Image.new(mode, (6, 4), (7, 0) if mode == "LA" else 0)
    more = {} if mode == "LA" else {"transparency": (0, 0, 0) if mode == "RGB" else 0}
    image.save(tmp_path / "a.png", **more)
    pixels, transparent, _ = decode(tmp_path / "a.png")
    assert transparent
    assert pixels.shape == (4, 6, channels)
    assert (pixels == 255).all()


def test_a_camera_s_preview_is_not_an_animation(tmp_path: Path) -> None:
    own = Image.fromarray(SCENE)
    own.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[own.resize((3, 2))], quality=100)
    assert read_image(tmp_path / "a.jpg").shape == (4, 6, 3)


def test_the_pixel_digest_sees_shape_and_pixels() -> None:
    grey = np.arange(24, dtype=np.uint8).reshape(4, 6, 1)
    rgb = np.repeat(grey, 3, axis=2)
    assert pixel_digest(grey) == pixel_digest(rgb) == pixel_digest(grey[..., 0])
    assert pixel_digest(rgb) != pixel_digest(rgb.reshape(6, 4, 3))
    other = rgb.copy()
    other[3, 5, 2] ^= 1
    assert pixel_digest(rgb) != pixel_digest(other)
    assert pixel_digest(np.asfortranarray(rgb)) == pixel_digest(rgb)
    with pytest.raises(UsageError, match="uint8"):
        pixel_digest(rgb / 255.0)


def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path) -> None:
    levels = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / "a.png")
    found = decode(tmp_path / "a.png")
    assert found.deep
    assert found.pixels[0, :, 0].tolist() == [0, 1, 128, 255]


def test_cmyk_and_palette_become_rgb(tmp_path: Path) -> None:
    Image.fromarray(SCENE).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    Image.fromarray(SCENE).quantize(8).save(tmp_path / "b.png")
    assert read_image(tmp_path / "a.jpg").shape == read_image(tmp_path / "b.png").shape == (4, 6, 3)


# --- the working size


@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(4, 30), st.integers(4, 30)),
    st.sampled_from(FITS),
)
def test_every_fit_gives_the_size_asked_for(shape: tuple[int, int], size: tuple[int, int], fit: Fit) -> None:
    image = np.full((*shape, 3), 200, dtype=np.uint8)
    made = resize(image, size, fit)
    assert made.shape == (*size, 3)
    assert set(np.unique(made)) <= ({0, 200} if fit == "pad" else {200})


def test_an_image_of_the_size_keeps_its_pixels() -> None:
    for fit in FITS:
        assert resize(SCENE, SCENE.shape[:2], fit) is SCENE


def test_crop_keeps_the_centre_and_pad_keeps_all() -> None:
    wide = np.zeros((10, 30, 1), dtype=np.uint8)
    wide[:, :10], wide[:, 20:] = 255, 255  # bright to the left and to the right of a dark centre
    assert resize(wide, (10, 10), "crop").max() == 0
    padded = resize(wide, (10, 10), "pad")
    assert padded.max() == 255
    assert padded[:3].max() == padded[-3:].max() == 0
    assert resize(wide, (10, 10), "stretch").max() == 255


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 1), dtype=np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(resize(stripes, (16, 16)).astype(int) - 127).max() < 20

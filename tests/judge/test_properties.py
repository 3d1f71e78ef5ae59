"""Properties of images that follow the label: planted ones are found, labels of chance raise no alarm, clusters are stable where they are there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter

from cfaug.judge.properties import clusters_within, file_properties, pixel_properties, suspicions

N = 120


def photographs(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    smooth = np.stack([gaussian_filter(rng.normal(size=(48, 48, 3)), (2, 2, 0)) for _ in range(N)])
    return np.clip(128 + 500 * smooth, 0, 255).astype(np.uint8)


def brighter(image: np.ndarray) -> np.ndarray:
    return np.clip(image.astype(int) + 25, 0, 255).astype(np.uint8)


def patched(image: np.ndarray) -> np.ndarray:
    made = image.copy()
    made[2:8, 2:8] = (255, 0, 255)
    return made


def framed(image: np.ndarray) -> np.ndarray:
    made = image.copy()
    made[:2], made[-2:], made[:, :2], made[:, -2:] = 0, 0, 0, 0
    return made


def blurred(image: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), 1.0))


def written(image: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.putText(image.copy(), "AP", (22, 44), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1))


def redder(image: np.ndarray) -> np.ndarray:
    made = image.astype(int)
    made[..., 0] += 20
    return np.clip(made, 0, 255).astype(np.uint8)


def table(images: np.ndarray) -> dict[str, Any]:
    frame = pd.DataFrame([pixel_properties(image) for image in images])
    return {name: frame[name].to_numpy() for name in frame}


@pytest.mark.parametrize(
    ("plant", "named"),
    [
        (brighter, "brightness"),
        (patched, "top left"),
        (framed, "border"),
        (blurred, "sharpness"),
        (written, "bottom"),
        (redder, "redness"),
    ],
)
def test_a_planted_property_is_suspected(plant: Any, named: str) -> None:
    images, labels = photographs(0), np.arange(N) % 2
    shown = np.random.default_rng(1).random(N) < np.where(labels == 1, 0.95, 0.05)
    found = suspicions(table(np.stack([plant(x) if s else x for x, s in zip(images, shown)])), labels)
    assert any(named in one.name for one in found[:6])
    assert found[0].told > 0.7


@settings(max_examples=15)
@given(st.integers(0, 10_000))
def test_labels_of_chance_raise_few_alarms(seed: int) -> None:
    """At a corrected 0.1 % hardly any of fifteen."""
    assert not suspicions(_CLEAN, np.random.default_rng(seed).integers(0, 3, N), alpha=0.001)


_CLEAN = table(photographs(2))


def test_a_suspicion_is_cut_into_levels() -> None:
    values, labels = np.r_[np.linspace(0, 1, 30), np.linspace(2, 3, 30)], np.repeat([0, 1], 30)
    (found,) = suspicions({"length": values, "constant": np.ones(60), "unknown": np.full(60, np.nan)}, labels)
    assert found.told == 1
    assert found.levels(np.array([0.5, 2.5])) == ["1", "2"]


def test_what_a_file_is_like(tmp_path: Path) -> None:
    Image.fromarray(photographs(3)[0]).save(tmp_path / "a.jpg", quality=90)
    Image.fromarray(photographs(3)[0]).save(tmp_path / "b.jpg", quality=30)
    fine, coarse = (file_properties(tmp_path / name) for name in ("a.jpg", "b.jpg"))
    assert fine["JPEG coarseness"] < coarse["JPEG coarseness"]
    assert fine["file bytes per pixel"] > coarse["file bytes per pixel"]
    assert fine["file aspect"] == 1
    assert file_properties(tmp_path / "none.jpg") == {}


def test_grey_images_have_no_colours() -> None:
    found = pixel_properties(photographs(4)[0][..., :1])
    assert "redness" not in found
    assert np.isfinite(list(found.values())).all()


def test_clusters_that_are_there_are_stable_and_assigned() -> None:
    rng = np.random.default_rng(0)
    labels, group = np.repeat([0, 1], 60), np.tile([0, 1, 1], 40)
    features = rng.normal(0, 0.05, (120, 8))
    features[:, 0] += 1
    features[np.arange(120), 1 + group + 2 * labels] += 1
    found = clusters_within(features, labels, most=4)
    assert found.counts == [2, 2]
    assert min(found.stability) > 0.95
    codes = found.of(features, labels)
    for label in (0, 1):
        assert len(set(zip(group[labels == label], codes[labels == label]))) == 2


def test_many_properties_are_corrected_for_their_number() -> None:
    """Of three hundred properties of chance some fifteen are significant one by one, and next to none together."""
    rng = np.random.default_rng(0)
    found = suspicions({f"p{i}": rng.normal(size=N) for i in range(300)}, rng.integers(0, 2, N), least=-1.0)
    assert len(found) <= 1

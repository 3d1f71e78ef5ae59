from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cfaug.data import ArrayDataset, Grouper
from cfaug.data.sources import digits, mnist
from cfaug.errors import DataError


def rate(dataset: ArrayDataset, attribute: str, shift: int = 0) -> float:
    """Share of rows whose colour is their class's own."""
    s = dataset.schema
    own = (s.index("digit", dataset.table["digit"]) - shift) % 10
    return float((s.index(attribute, dataset.table[attribute]) == own).mean())


def test_digits_are_split_by_handwritten_digit() -> None:
    sets = {s: digits.digits(s) for s in ("train", "val", "test")}
    assert [len(d) for d in sets.values()] == [1200, 1990, 3980]
    written = [{d.key(i).split("-r")[0] for i in range(len(d))} for d in sets.values()]
    assert [len(w) for w in written] == [1200, 199, 398]
    assert len(set.union(*written)) == 1797
    for d in sets.values():
        share = d.table["digit"].value_counts() / len(d)
        assert share.between(0.09, 0.11).all()
        assert d.images.shape[1:] == (8, 8, 3)
    assert not set(digits.FOREGROUNDS) & set(digits.BACKGROUNDS)
    assert not set(digits.FOREGROUNDS.values()) & set(digits.BACKGROUNDS.values())


def test_in_a_digit_test_group_no_handwritten_digit_repeats() -> None:
    test = digits.digits("test")
    labels = Grouper.fit(test.table, test.schema).labels(test.table)
    written = np.array([k.split("-r")[0] for k in test.table.index])
    for attribute in ("foreground", "background"):
        for _, rows in labels.groupby(attribute, sort=False).indices.items():
            assert len(set(written[rows])) == len(rows) >= 39


def test_the_digits_are_rendered_as_the_formula_says() -> None:
    from sklearn.datasets import load_digits

    train = digits.digits("train")
    i = 17
    row = train.table.iloc[i]
    m = load_digits().images[int(train.key(i)[7:11])][..., None] / 16
    fore = np.array(digits.FOREGROUNDS[row["foreground"]])
    back = np.array(digits.BACKGROUNDS[row["background"]])
    assert np.abs(train.image(i) - ((1 - m) * back + m * fore)).max() <= 0.5


def test_rho_is_the_correlation_of_each_attribute_and_zero_for_the_oracle() -> None:
    train = digits.digits("train", rho={"foreground": 0.5, "background": 1.0})
    assert rate(train, "foreground") == pytest.approx(0.55, abs=0.05)
    assert rate(train, "background") == 1.0
    oracle = digits.digits("train", confounded=False)
    for attribute in ("foreground", "background"):
        assert rate(digits.digits("train"), attribute) == pytest.approx(0.91, abs=0.03)
        assert rate(oracle, attribute) == pytest.approx(0.1, abs=0.03)
    assert oracle.table.index.equals(train.table.index)
    assert oracle.table["digit"].equals(train.table["digit"])


def test_seeds_draw_colours_but_never_the_split() -> None:
    a, b, c = digits.digits("train"), digits.digits("train"), digits.digits("train", seed=1)
    assert np.array_equal(a.images, b.images)
    assert a.table.equals(b.table)
    assert a.table.index.equals(c.table.index)
    assert not a.table["foreground"].equals(c.table["foreground"])


def test_double_colored_mnist(mnist_root: Path) -> None:
    options = {"root": mnist_root, "train_images": 5000, "val_images": 500}
    train = mnist.double_colored_mnist("train", rho={"background": 0.9}, **options)
    val = mnist.double_colored_mnist("val", **options)
    test = mnist.double_colored_mnist("test", **options)
    assert [len(d) for d in (train, val, test)] == [5000, 500, 10_000]
    assert not set(train.table.index) & set(val.table.index)
    assert train.images.shape[1:] == (32, 32, 3)
    assert rate(train, "background") == pytest.approx(0.91, abs=0.02)
    assert rate(train, "foreground", mnist.OBJECT_SHIFT) == pytest.approx(0.955, abs=0.02)
    for d in (val, test, mnist.double_colored_mnist("train", confounded=False, **options)):
        assert rate(d, "background") == pytest.approx(0.1, abs=0.05)
        assert rate(d, "foreground", mnist.OBJECT_SHIFT) == pytest.approx(0.1, abs=0.05)
    for i in range(50):  # two flat colours, near their names
        row = test.table.iloc[i]
        colours = np.unique(test.image(i).reshape(-1, 3), axis=0).astype(int)
        names = [mnist.COLOURS[row[a]] for a in ("foreground", "background")]
        assert len(colours) <= 2
        for c in colours:
            assert min(np.abs(c - n).max() for n in np.array(names)) <= 13  # 5 sigma of the jitter


def test_mnist_is_resized_and_binarised_as_torch_would(mnist_root: Path) -> None:
    import torch

    grey, _ = mnist._read(mnist_root, train=False)
    ours = mnist.binary(grey[:20])
    theirs = torch.nn.functional.interpolate(torch.from_numpy(grey[:20, None]) / 255.0, size=32)[:, 0] > 0.1
    assert np.array_equal(ours, theirs.numpy())


def test_mnist_that_cannot_be_had_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    def offline(self: object) -> None:
        Path(tmp_path, "MNIST", "raw").mkdir(parents=True)
        raise RuntimeError("Error downloading\ntrain-images-idx3-ubyte.gz")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", offline)
    with pytest.raises(DataError, match="pass a different root") as e:
        mnist.double_colored_mnist("test", root=tmp_path)
    assert "\n" not in str(e.value)
    assert not list(tmp_path.iterdir())  # nothing half-written

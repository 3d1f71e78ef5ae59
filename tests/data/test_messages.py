"""What the data room refuses, each in one line: the call, and a fragment of what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.bird_folder import ROWS, open_folder, write
from PIL import Image

from cfaug.data import ArrayDataset, Attribute, Schema, open_source
from cfaug.data.files import expand
from cfaug.data.sources import mnist
from cfaug.errors import CfaugError, DataError, UsageError

SPECIES = Schema([Attribute("species", values=("a", "b"))], target="species")
TABLE = pd.DataFrame({"species": ["a", "b"]})
IMAGES = np.zeros((2, 4, 4, 3), np.uint8)


def lines(*extra: str, header: str = "file_name,split,species,place,age,ignored") -> Callable[[Path], object]:
    """A folder whose metadata.csv ends in these lines."""

    def make(root: Path) -> object:
        write(root)
        old = (root / "metadata.csv").read_text().split("\n", 1)[1]
        (root / "metadata.csv").write_text("\n".join([header, old + "\n".join(extra)]))
        return open_folder(root)

    return make


def csv(content: bytes) -> Callable[[Path], object]:
    def make(root: Path) -> object:
        write(root)
        (root / "metadata.csv").write_bytes(content)
        return open_folder(root)

    return make


def rows(changed: list[Any], **options: Any) -> Callable[[Path], object]:
    return lambda root: open_folder(write(root, changed), **options)


def image(save: Callable[[Path], object]) -> Callable[[Path], object]:
    """A folder whose b.png is saved like this, checked."""

    def make(root: Path) -> object:
        write(root)
        (root / "b.png").unlink()
        save(root / "b.png")
        return open_folder(root).check_images()

    return make


def truncated(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])


def animated(path: Path) -> None:
    frames = [Image.new("RGB", (6, 4), (i, 0, 0)) for i in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


FOLDERS: dict[str, tuple[Callable[[Path], object], type[CfaugError], str]] = {
    "no directory": (lambda root: open_folder(root), UsageError, "does not exist"),
    "no metadata": (lambda root: open_folder(root.parent), UsageError, "metadata.csv: expected this file"),
    "no such column": (rows(ROWS, spurious=["plase"]), UsageError, "a column 'plase'; did you mean place"),
    "no such node": (rows(ROWS, attributes=["colour"]), UsageError, "a column 'colour'"),
    "no such split": (rows(ROWS, split="dev"), UsageError, "train, val, test, got 'dev'"),
    "no such kind": (rows(ROWS, kinds={"age": "number"}), UsageError, "'number'"),
    "no attribute": (lambda root: open_folder(write(root), target=None, spurious=(), kinds={}), UsageError, "got none"),
    "split of a row": (rows([*ROWS, ("x.png", "dev", "land", "sea", 1)]), DataError, "line 6 ('x.png'): expected a split among train, val, test, got 'dev'"),
    "no train": (rows(ROWS[2:]), DataError, "training split is empty"),
    "no val": (rows(ROWS[:2], split="val"), DataError, "split 'val', got none"),
    "text for a number": (rows([*ROWS, ("x.png", "train", "land", "sea", "old")]), DataError, "a finite number, got 'old'"),
    "decimal comma": (lines('x.png,train,land,sea,"1,5",x'), DataError, "a finite number, got '1,5'"),
    "leads out": (lines("../x.png,train,land,sea,1,x"), DataError, "line 6: expected a path inside"),
    "leads out inside": (lines("sub/../../x.png,train,land,sea,1,x"), DataError, "leads out of it"),
    "absolute": (lines("/etc/x.png,train,land,sea,1,x"), DataError, "leads out of it"),
    "windows": (lines("C:\\x.png,train,land,sea,1,x"), DataError, "leads out of it"),
    "up by backslash": (lines("..\\x.png,train,land,sea,1,x"), DataError, "leads out of it"),
    "no name": (lines(",train,land,sea,1,x"), DataError, "got an empty cell"),
    "no such file": (lines("B.png,train,land,sea,1,x"), DataError, "no such file; did you mean"),
    "no such directory": (lines("birds/b.png,train,land,sea,1,x"), DataError, "there is no directory"),
    "an unquoted comma": (lines("x.png,train,land,wet, sea,1,x"), DataError, "line 6: expected 6 cells as in the header, got 7"),
    "a cell too few": (lines("x.png,train,land"), DataError, "expected 6 cells as in the header, got 3"),
    "a column twice": (lines(header="file_name,split,species,species,age,x"), DataError, "got 'species' twice"),
    "UTF-16": (csv("file_name,split".encode("utf-16")), DataError, "got UTF-16; save it as CSV UTF-8"),
    "latin 1": (csv("file_name,split\né.png,train".encode("latin1")), DataError, "expected a CSV file in UTF-8"),
    "empty": (csv(b""), DataError, "got an empty file"),
    "another header": (csv(b"file,split\na.png,train\n"), DataError, "a column 'file_name'"),
    "an open quote": (csv(b'file_name,split\n"a.png,train\n'), DataError, "cannot be read as a CSV file"),
    "truncated": (image(truncated), DataError, "b.png: cannot decode this"),
    "not an image": (image(lambda path: path.write_text("hello")), DataError, "replace the file"),
    "other size": (image(lambda path: Image.new("RGB", (7, 4)).save(path)), DataError, "4x6x3 as in a.png, got 4x7x3"),
    "other mode": (image(lambda path: Image.new("L", (6, 4)).save(path)), DataError, "4x6x3 as in a.png, got 4x6x1"),
    "ghostscript": (image(lambda path: Image.new("RGB", (6, 4)).save(path, format="EPS")), DataError, "b.png"),
    "animation": (image(animated), DataError, "got an animation of 3 frames; save one"),
    "gone": (image(lambda path: path.symlink_to(path.with_name("nowhere"))), DataError, "no such file"),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDERS)
def test_a_bad_folder_is_one_line(case: str, tmp_path: Path) -> None:
    make, kind, fragment = FOLDERS[case]
    with pytest.raises(kind) as error:
        make(tmp_path / "d")
    assert fragment in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path / "d")

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    train = open_folder(root)
    monkeypatch.setattr(Image, "open", denied)  # root may read everything
    with pytest.raises(DataError, match=r"a\.png: expected a file that may be read, got permission denied"):
        train.image(0)


CALLS: dict[str, tuple[Callable[[], object], str]] = {
    "source": (lambda: open_source("digit"), "did you mean digits"),
    "option": (lambda: open_source("digits", rhoo=0.5), "did you mean rho"),
    "rho": (lambda: open_source("digits", rho=1.5), "from 0 to 1"),
    "rho of nothing": (lambda: open_source("digits", rho={"fore": 0.5}), "'fore'"),
    "spurious": (lambda: open_source("digits", spurious=["colour"]), "'colour'"),
    "kind": (lambda: open_source("digits", kinds={"digit": "continuous"}), "is categorical"),
    "values": (lambda: open_source("digits", values={"digit": ("1", "0")}), "remove values.digit"),
    "split": (lambda: open_source("digits", split="dev"), "got 'dev'"),
    "oracle": (lambda: open_source("folder", ".", target="species", confounded=False), "cannot be made unconfounded"),
    "no root": (lambda: open_source("folder", target="species"), "needs a root"),
    "folder option": (lambda: open_source("folder", ".", target="species", rho=0.9), "no option 'rho'"),
    "no MNIST root": (lambda: mnist.double_colored_mnist("test"), "needs a root"),
    "too many": (lambda: mnist.double_colored_mnist("train", root=".", train_images=59_000), "60000"),
    "no such user": (lambda: expand("~nobody-of-this-name/x"), "without a home directory"),
    "rows": (lambda: ArrayDataset(IMAGES[:1], TABLE, SPECIES), "one table row per image"),
    "floats": (lambda: ArrayDataset(IMAGES / 255.0, TABLE, SPECIES), "uint8"),
    "keys": (lambda: ArrayDataset(IMAGES, TABLE.iloc[[0, 0]], SPECIES), "'0' twice"),
    "no target": (lambda: ArrayDataset(IMAGES, TABLE, Schema(SPECIES.attributes))[0], "expected a target"),
    "empty name": (lambda: Attribute(""), "name"),
    "image": (lambda: Attribute("image"), "a different name"),
    "unknown kind": (lambda: Attribute("x", "number"), "'number'"),
    "a text of values": (lambda: Attribute("x", values="abc"), "a list"),  # type: ignore[arg-type]
    "values twice": (lambda: Attribute("x", values=("a", "a")), "distinct"),
    "values of numbers": (lambda: Attribute("x", "continuous", values=("a",)), "remove values="),
    "std": (lambda: Attribute("x", "continuous", std=0.0), "std above 0"),
    "attribute twice": (lambda: Schema([Attribute("x"), Attribute("x")]), "twice"),
    "no Attribute": (lambda: Schema(["x"]), "Attribute(...)"),  # type: ignore[list-item]
    "unknown target": (lambda: Schema([Attribute("x")], target="y"), "'y'"),
    "continuous target": (lambda: Schema([Attribute("x", "continuous")], target="x"), "continuous"),
    "both": (lambda: Schema([Attribute("x")], target="x", spurious=["x"]), "both the target and spurious"),
    "spurious twice": (lambda: Schema([Attribute("x")], spurious=["x", "x"]), "twice"),
    "no table": (lambda: SPECIES.check([1, 2]), "pandas DataFrame"),  # type: ignore[arg-type]
    "no rows": (lambda: SPECIES.fit(TABLE.iloc[:0]), "at least one row"),
    "no schema": (lambda: Schema.from_json({"attributes": [{"nome": "x"}]}), "a schema written by cfaug"),
}  # fmt: skip


@pytest.mark.parametrize("case", CALLS)
def test_wrong_use_is_one_line(case: str) -> None:
    call, fragment = CALLS[case]
    with pytest.raises(CfaugError) as error:
        call()
    assert fragment in str(error.value)
    assert "\n" not in str(error.value)

"""A few images in exactly the format of each published benchmark, traps included."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SPLITS = ("train", "val", "test")
COUNTS = {"train": (4, 1, 1, 2), "val": (2, 2, 1, 1), "test": (2, 2, 2, 2)}
"""Images of the groups (0, 0), (0, 1), (1, 0), (1, 1) in each split of the generators below."""


def picture(path: Path, number: int, size: tuple[int, int] = (30, 24)) -> None:
    """A JPEG of noise that no other number gives; sizes differ, as those of photographs do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(number).integers(0, 256, (size[1] + number % 3, size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, quality=90)


def groups() -> list[tuple[str, int, int]]:
    """(split, class, attribute) of every image, in COUNTS."""
    pairs = list(itertools.product((0, 1), (0, 1)))
    return [(s, *pair) for s in SPLITS for pair, n in zip(pairs, COUNTS[s]) for _ in range(n)]


def table(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([header, *rows])


def waterbirds(root: Path) -> Path:
    """metadata.csv with 0/1 columns; splits 0, 1, 2; file names in directories of species."""
    rows = []
    for i, (split, y, place) in enumerate(groups()):
        name = f"{i:03d}.Some_Bird/Bird_{i}.jpg"
        picture(root / name, i)
        rows.append([i, name, y, SPLITS.index(split), place, f"/o/ocean/{i}.jpg"])
    table(root / "metadata.csv", ["img_id", "img_filename", "y", "split", "place", "place_filename"], rows)
    return root


def celeba(root: Path) -> Path:
    """A count, a header, values of -1 and 1 behind two blanks; the split file in a different order."""
    names = ["5_o_Clock_Shadow", "Blond_Hair", "Male"]
    lines, splits = [], []
    for i, (split, y, male) in enumerate(groups(), 1):
        name = f"{i:06d}.jpg"
        picture(root / "img_align_celeba" / name, i)
        lines.append(f"{name}  -1 {' 1' if y else '-1'} {' 1' if male else '-1'}")
        splits.append(f"{name} {SPLITS.index(split)}")
    (root / "list_attr_celeba.txt").write_text("\n".join([str(len(lines)), " ".join(names) + " ", *lines]) + "\n")
    (root / "list_eval_partition.txt").write_text("\n".join(reversed(splits)) + "\n")
    return root


def urbancars(root: Path) -> Path:
    """Directories named by car, background and co-occurring object; validation and test in the balanced half."""
    words = ("urban", "country")
    for i, (split, car, ground) in enumerate(groups()):
        ratio = "0.95" if split == "train" else "0.5"
        directory = f"obj-{words[car]}_bg-{words[ground]}_co_occur_obj-{words[i % 2]}"
        picture(root / f"bg-{ratio}_co_occur_obj-{ratio}" / split / directory / f"{i:06d}.jpg", i)
    return root


def metashift(root: Path) -> Path:
    """SubpopBench's table, whose file names are absolute paths of whoever made it."""
    rows = []
    for i, (split, y, place) in enumerate(groups()):
        name = f"MetaShift-Cat-Dog-indoor-outdoor/train/x/x({i})/{i}.jpg"
        picture(root / name, i)
        rows.append([f"/home/somebody/data/metashift/{name}", y, place, SPLITS.index(split)])
    table(root / "metadata_metashift.csv", ["filename", "y", "a", "split"], rows)
    return root


def metashift_directories(root: Path) -> Path:
    for i, (split, y, place) in enumerate(groups()):
        animal, where = ("dog", "cat")[y], ("outdoor", "indoor")[place]
        picture(root / split / animal / f"{animal}({where})" / f"{i}.jpg", i)
    return root


def wilds(root: Path) -> Path:
    """An unnamed index column first, numbered splits, and one that WILDS calls differently."""
    rows: list[list[Any]] = []
    for i, (split, y, a) in enumerate(groups()):
        picture(root / f"images/{i}.jpg", i)
        rows.append([i, f"images/{i}.jpg", SPLITS.index(split), y, a])
    picture(root / "images/more.jpg", 99)
    rows.append([99, "images/more.jpg", "id_val", 0, 0])
    table(root / "metadata.csv", ["", "filename", "split", "y", "a"], rows)
    return root


def spuco(root: Path) -> Path:
    """spuco_birds/SPLIT/CLASS/SPURIOUS, a directory below the root."""
    for i, (split, y, place) in enumerate(groups()):
        directory = root / "spuco_birds" / split / ("landbirds", "waterbirds")[y] / ("land", "water")[place]
        picture(directory / f"{i}.jpg", i)
    return root


def huggingface(root: Path) -> Path:
    """``save_to_disk`` of a DatasetDict whose validation split has that name, with a ClassLabel and a text column."""
    import datasets

    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["land", "water"]),
            "place": datasets.Value("string"),
        }
    )
    parts: dict[str, dict[str, list[Any]]] = {s: {"image": [], "label": [], "place": []} for s in SPLITS}
    for i, (split, y, place) in enumerate(groups()):
        path = root / "files" / f"{i}.jpg"
        picture(path, i)
        parts[split]["image"].append({"bytes": path.read_bytes(), "path": None})
        parts[split]["label"].append(y)
        parts[split]["place"].append(("land", "water")[place])
    names = {"train": "train", "val": "validation", "test": "test"}
    whole = datasets.DatasetDict({names[s]: datasets.Dataset.from_dict(c, features) for s, c in parts.items()})
    whole.save_to_disk(str(root / "saved"))
    return root / "saved"


def imagefolder(root: Path) -> Path:
    """What ``load_dataset("imagefolder")`` reads: a metadata.csv in each split's directory."""
    for split in SPLITS:
        rows = []
        for i, (own, y, place) in enumerate(groups()):
            if own == split:
                picture(root / split / f"{i}.jpg", i)
                rows.append([f"{i}.jpg", ("land", "water")[y], ("land", "water")[place]])
        table(root / split / "metadata.csv", ["file_name", "label", "place"], rows)
    return root


def webdataset(root: Path) -> Path:
    """Two shards per split, written by the library: jpg and json."""
    import webdataset

    root.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        own = [(i, y, place) for i, (s, y, place) in enumerate(groups()) if s == split]
        for shard in (0, 1):
            with webdataset.TarWriter(str(root / f"{split}-{shard:06d}.tar")) as sink:
                for i, y, place in own[shard::2]:
                    path = root.parent / "files" / f"{i}.jpg"
                    picture(path, i)
                    record = {"label": ("land", "water")[y], "place": ("land", "water")[place], "boxes": [1, 2]}
                    sink.write({"__key__": f"sample{i}", "jpg": path.read_bytes(), "json": record})
    return root

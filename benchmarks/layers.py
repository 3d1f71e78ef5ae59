"""Counterfactuals without a trained generator: tables, truth and speed.

    python benchmarks/layers.py garments OUT --data DIR --weights FILE [--mask given|grabcut|onnx] [--rho 1] [--invariant 0.2]
    python benchmarks/layers.py xray OUT --data DIR --weights FILE                                  a marker by functions
    python benchmarks/layers.py mnist OUT --data DIR [--source double_colored_mnist|wildlife_mnist] fully confounded digits
    python benchmarks/layers.py textured OUT --data DIR                                             a folder: colour and textured ground
    python benchmarks/layers.py truth OUT --data DIR                                                against the known counterfactuals
    python benchmarks/layers.py speed OUT                                                           composites beside bare OpenCV

DIR holds photos/ (garments, xray_marker and their oracles, in cfaug's own format), mnist/ and wildlife_textures/; FILE is torchvision's
mobilenet_v2. Rows go to results/layers.jsonl.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from PIL import Image
from rows import cpu, mean_of_groups, record

from cfaug.data import FolderDataset
from cfaug.decode.layered.bank import Bank
from cfaug.decode.layered.compositing import SURE, filled, hole_of, on_background
from cfaug.judge.accuracy import read_results
from cfaug.judge.tables import summarise

HERE = Path(__file__).parent
RESULTS, RECIPES = HERE / "results" / "layers.jsonl", HERE.parent / "recipes"
METHODS = "[erm, group_resampling, group_dro, dfr, counterfactuals_only, cfaug, cfaug+group_dro, cfaug+dfr, oracle]"


def run(given: argparse.Namespace, recipe: str, out: Path, options: list[str], what: dict[str, Any]) -> None:
    """`cfaug run`, and one row for each method."""
    command = [
        sys.executable,
        "-m",
        "cfaug",
        "run",
        str(RECIPES / f"{recipe}.yaml"),
        "--out",
        str(out),
        "--no-progress",
        *options,
    ]
    before = time.perf_counter()
    subprocess.run(command, check=True)
    seconds = round(time.perf_counter() - before, 1)
    rows = read_results(out / "results.jsonl")
    figures = json.loads((out / "evaluation" / "figures.json").read_text())
    asked = [option for option in options if str(given.data) not in option and str(given.weights) not in option]
    asked = [option.replace(str(given.out), "OUT") for option in asked]
    for item in summarise(rows):
        record(
            RESULTS,
            {
                **what, "method": item.method, "seeds": len(item.seeds), "worst_group": [round(v, 4) for v in item.worst],
                "mean_of_groups": round(mean_of_groups(rows, item.method), 4), "average": [round(v, 4) for v in item.average], "seconds": seconds,
            },
            cpu=cpu(), command=f"cfaug run recipes/{recipe}.yaml {' '.join(asked)}",
        )  # fmt: skip
    record(
        RESULTS,
        {**what, "leaks": figures["leaks"], "masks": {k: v for k, v in (figures.get("masks") or {}).items() if k != "worst"}},
        cpu=cpu(), command=f"cfaug run recipes/{recipe}.yaml {' '.join(asked)}",
    )  # fmt: skip


def photographs(given: argparse.Namespace) -> list[str]:
    return [f"--train.weights={given.weights}", f"--train.methods={METHODS}", "--train.threads=1"]


def garments(given: argparse.Namespace) -> None:
    root, out = given.data / "photos" / "garments", given.out / f"garments-{given.mask}-{given.rho:g}"
    if given.rho == 1:
        root = diagonal(root, given.out / "garments-diagonal")
    options = [f"--data.root={root}", f"--data.oracle={given.data / 'photos' / 'garments_oracle'}", *photographs(given)]
    if given.mask == "onnx":
        net = given.data.parent / "weights" / "isnet_small_512.onnx"
        options += [
            "--decoder.mask.from=onnx",
            f"--decoder.mask.path={net}",
            "--decoder.mask.mean=128",
            "--decoder.mask.scale=256",
        ]
    elif given.mask != "given":
        options.append(f"--decoder.mask.from={given.mask}")
    if (
        given.rho == 1
    ):  # no group of one class is missing on validation, but nothing may be selected by groups there either
        options += ["--train.selection=average"]
    what = {"what": "garments", "mask": given.mask, "rho": given.rho}
    if given.invariant:
        out, what = out.with_name(f"{out.name}-invariant"), {**what, "invariant_fraction": given.invariant}
        options.append(f"--plan.invariant_fraction={given.invariant}")
    run(given, "photos_layered", out, options, what)


def diagonal(root: Path, made: Path) -> Path:
    """The folder without the training images whose scene is not the usual one of their class."""
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    for name in ("images", "masks"):
        (made / name).symlink_to((root / name).resolve())
    table = pd.read_csv(root / "metadata.csv")
    train = table[table["split"] == "train"]
    usual = train.groupby("garment")["scene"].agg(lambda column: column.mode()[0])
    keep = (table["split"] != "train") | (table["scene"] == table["garment"].map(usual))
    table[keep].to_csv(made / "metadata.csv", index=False)
    return made


def xray(given: argparse.Namespace) -> None:
    photos = given.data / "photos"
    options = [
        f"--data.root={photos / 'xray_marker'}",
        f"--data.oracle={photos / 'xray_marker_oracle'}",
        *photographs(given),
    ]
    run(given, "photos_functional", given.out / "xray", options, {"what": "xray_marker"})


def mnist(given: argparse.Namespace) -> None:
    root = given.data if given.source == "wildlife_mnist" else given.data / "mnist"
    options = [f"--data.root={root}", f"--data.source={given.source}", f"--name={given.source}", "--train.threads=1"]
    if given.source == "wildlife_mnist":
        options += ["--decoder.mask.from=given", "--decoder.composite.fill=texture"]
    run(given, "confounded_mnist", given.out / given.source, options, {"what": given.source, "rho": 1.0})


def textured(given: argparse.Namespace) -> None:
    """Digits in one of ten colours on one of ten textures, 28 px, both following the digit in 95 % of the training images."""
    root = textured_folder(given.out / "textured_data", given.data, 0.95)
    oracle = textured_folder(given.out / "textured_oracle", given.data, 0.0)
    options = [
        f"--data.root={root}", f"--data.oracle={oracle}", "--data.source=folder", "--data.masks=mask", "--data.rho=null",
        "--data.train_images=null", "--data.val_images=null", "--name=textured", "--attributes.spurious=[colour, ground]",
        "--graph=digit -> colour; digit -> ground; digit -> image; colour -> image; ground -> image",
        "--decoder.layers={background: [ground], foreground: [colour]}", "--decoder.mask.from=given", "--decoder.composite.fill=texture",
        "--decoder.composite.redraw=transfer", "--train.methods=[erm, group_resampling, group_dro, counterfactuals_only, cfaug, oracle]",
        "--train.threads=1", "--train.selection=worst_group", "--plan.per_image=4",
    ]  # fmt: skip
    run(given, "confounded_mnist", given.out / "textured", options, {"what": "textured", "rho": 0.95})


def textured_folder(root: Path, data: Path, rho: float, train: int = 4000, val: int = 1000, test: int = 2000) -> Path:
    """The folder of this construction; ``rho`` 0 gives the same digits unconfounded."""
    if (root / "metadata.csv").exists():
        return root
    from cfaug.data.sources.mnist import COLOURS, choose_digits
    from cfaug.data.sources.wildlife import read_textures

    textures, rng = (
        read_textures(data / "wildlife_textures" / "background"),
        np.random.default_rng([0, round(100 * rho)]),
    )
    colours = list(COLOURS.items())
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    rows = []
    for split, count in (("train", train), ("val", val), ("test", test)):
        grey, labels, _ = choose_digits("textured", split, data / "mnist", train, val)
        own = rho if split == "train" else 0.0
        for i in range(count):
            codes = [int(labels[i]) if rng.random() < own else int(rng.integers(10)) for _ in range(2)]
            name, tint = colours[codes[0]]
            texture = textures[codes[1]]
            y, x = (int(rng.integers(side - 27)) for side in texture.shape[:2])
            ground = texture[y : y + 28, x : x + 28].astype(np.float64)
            shade = np.clip(np.array(tint) + rng.normal(0, 12, 3), 0, 255) * (0.7 + 0.3 * grey[i][..., None] / 255)
            alpha = np.clip(grey[i][..., None] / 160, 0, 1)
            image = np.round(alpha * shade + (1 - alpha) * ground).astype(np.uint8)
            file = f"{split}{i:05d}.png"
            Image.fromarray(image).save(root / "images" / file)
            Image.fromarray(np.round(alpha[..., 0] * 255).astype(np.uint8)).save(root / "masks" / file)
            rows.append((f"images/{file}", split, int(labels[i]), name, f"texture{codes[1]}", f"masks/{file}"))
    pd.DataFrame(rows, columns=["file_name", "split", "digit", "colour", "ground", "mask"]).to_csv(
        root / "metadata.csv", index=False
    )
    return root


def truth(given: argparse.Namespace) -> None:
    """The object of a garment on a scene of another image of the test split, where the true composite is known: every object stands on each."""
    data = FolderDataset(given.data / "photos" / "garments", "test", "garment", ["scene"], masks="mask")
    table = (
        pd.read_csv(given.data / "photos" / "garments" / "metadata.csv")
        .set_index("file_name")
        .loc[list(data.table.index)]
    )
    inside, rim, outside = [], [], []
    for _, same in table.reset_index().groupby("object"):
        places = same.index.to_numpy()
        for a, b in zip(places, np.roll(places, 1)):
            source, wanted, mask = data.image(int(a)), data.image(int(b)), data.mask(int(a))
            assert mask is not None
            if not np.array_equal(mask, data.mask(int(b))):  # the object was moved between the two
                continue
            made = on_background(source, mask, wanted)
            error = np.abs(made.astype(int) - wanted).mean(2)
            sure = mask >= SURE
            inside.append(np.abs(made.astype(int) - source)[sure].mean())
            rim.append(error[(mask > 0) & ~sure].mean())
            outside.append(error[mask == 0].mean())
    record(
        RESULTS,
        {
            "what": "truth", "pairs": len(inside), "inside_l1": float(np.mean(inside)) / 255, "rim_l1": round(float(np.mean(rim)) / 255, 5),
            "outside_l1": float(np.mean(outside)) / 255,
        },
        cpu=cpu(), command="python benchmarks/layers.py truth OUT --data DIR",
    )  # fmt: skip


def speed(given: argparse.Namespace, images: int = 200, turns: int = 7) -> None:
    """Composites a second of 128 px on one core, masks and fillings made, beside OpenCV's own blending of the same."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    pictures = [
        cv2.GaussianBlur(rng.integers(0, 255, (128, 128, 3)).astype(np.uint8), (0, 0), 3) for _ in range(images)
    ]
    masks = []
    for _ in range(images):
        mask = np.zeros((128, 128), np.uint8)
        cv2.ellipse(
            mask,
            (int(rng.integers(40, 90)), int(rng.integers(40, 90))),
            (30, 22),
            int(rng.integers(180)),
            0,
            360,
            255,
            -1,
        )
        masks.append(cv2.GaussianBlur(mask, (0, 0), 1.0))
    holes = [hole_of(mask, 2) for mask in masks]
    bank = Bank(
        np.stack([filled(p, h) for p, h in zip(pictures, holes)]), np.stack(holes), np.zeros(images, np.float32),
        np.zeros((images, 2, 3), np.float32), np.array([str(i) for i in range(images)], dtype=object),
        {"ground": np.array(["a", "b"] * (images // 2), dtype=object)},
    )  # fmt: skip

    def ours() -> None:
        for i in range(images):
            donor = bank.donor({"ground": "a"}, str(i), masks[i], 0.0, "cover", 16, i)
            on_background(pictures[i], masks[i], bank.images[donor])

    def inpainted() -> None:  # what a user writes with OpenCV alone: remove the donor's object, blend
        for i in range(images):
            j = 2 * (i // 2)
            ground = cv2.inpaint(pictures[j], holes[j].astype(np.uint8), 3, cv2.INPAINT_TELEA)
            alpha = masks[i][..., None].astype(np.float32) / 255
            (alpha * pictures[i] + (1 - alpha) * ground).astype(np.uint8)

    ours(), inpainted()
    times = []
    for _ in range(turns):
        pair = []
        for call in (ours, inpainted):
            began = time.perf_counter()
            call()
            pair.append(time.perf_counter() - began)
        times.append(pair)
    mine, _bare = np.median(times, axis=0)
    record(
        RESULTS,
        {
            "what": "speed", "pixels": 128, "composites_per_second": round(images / float(mine), 1),
            "ratio_to_opencv": round(float(np.median([a / b for a, b in times])), 4),
        },
        cpu=cpu(), command="python benchmarks/layers.py speed OUT",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parts = {"garments": garments, "xray": xray, "mnist": mnist, "textured": textured, "truth": truth, "speed": speed}
    parser.add_argument("part", choices=parts)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--mask", default="given", choices=["given", "grabcut", "onnx"])
    parser.add_argument("--invariant", type=float, default=0.0, help="share of invariant samples (garments)")
    parser.add_argument("--rho", type=float, default=0.95, choices=[0.95, 1.0])
    parser.add_argument(
        "--source", default="double_colored_mnist", choices=["colored_mnist", "double_colored_mnist", "wildlife_mnist"]
    )
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    parts[given.part](given)


if __name__ == "__main__":
    main()

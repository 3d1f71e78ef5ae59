"""What each way of storing an image costs to read, and in bytes: a part of loading.md.

    python benchmarks/loading.py stored           # a minute on one core

scikit-learn's two photographs, resampled to N x N pixels, and our synthetic one (smooth shades under sensor noise), each encoded in
the ways that shards know and decoded as a reader does (`picture_of`), by turns; a JPEG of quality 90 beside them, as
ImageFolder decodes it. The figures are medians over the turns.
"""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rows import cpu, forget, record
from samples import counterfactual
from sklearn.datasets import load_sample_image
from writing import photograph

from cfaug.offline import encode_sample
from cfaug.offline.decoders import picture_of
from cfaug.offline.format import IMAGES

PIXELS = (32, 64, 128, 224, 512)
COMMAND = "python benchmarks/loading.py stored"


def measure(out: Path, quick: bool) -> None:
    """Write the rows of `stored` to `out`, in place of those that are there."""
    about = {"command": COMMAND + (" --quick" if quick else ""), "cpu": cpu()}
    forget(out, about["command"])
    rng = np.random.default_rng(0)
    for size in PIXELS[:2] if quick else PIXELS:
        for name in ("china.jpg", "flower.jpg", "synthetic"):
            if name == "synthetic":
                pixels = photograph(size, rng)
            else:
                whole = Image.fromarray(load_sample_image(name))
                pixels = np.asarray(whole.resize((size, size), Image.Resampling.LANCZOS))
            record(out, stored(name, pixels, 5 if quick else 60), **about)


def stored(name: str, pixels: Any, turns: int) -> dict[str, Any]:
    """Bytes and microseconds of one image in every way."""
    sample = counterfactual(0, name, pixels, pixels)
    payloads = {image: encode_sample(sample, image)[field] for image, field in IMAGES.items()}
    jpeg = io.BytesIO()
    Image.fromarray(pixels).save(jpeg, "JPEG", quality=90)
    times: dict[str, list[float]] = {image: [] for image in (*IMAGES, "jpeg")}
    for _ in range(turns):
        for image in times:
            began = time.perf_counter()
            if image == "jpeg":
                Image.open(io.BytesIO(jpeg.getvalue())).convert("RGB")
            else:
                picture_of(payloads[image], lambda: name, IMAGES[image]).load()
            times[image].append(time.perf_counter() - began)
    us = {image: 1e6 * float(np.median(found)) for image, found in times.items()}
    return {
        "what": "stored", "image": name, "pixels": len(pixels), "turns": turns,
        "bytes": {**{image: len(data) for image, data in payloads.items()}, "jpeg": jpeg.tell()},
        "us": {image: round(found, 1) for image, found in us.items()},
        "png_over_stored": round(us["png"] / us["png-stored"], 2), "stored_over_jpeg": round(us["png-stored"] / us["jpeg"], 2),
        "stored_bytes_over_png": round(len(payloads["png-stored"]) / len(payloads["png"]), 2),
    }  # fmt: skip

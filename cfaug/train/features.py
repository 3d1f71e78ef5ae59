"""Features of a frozen net: computed once per image, and kept on disk by what they depend on.

    key of a set of features = (digest of the image, digest of the net, size of the image)

A directory holds parts: ``NAME.npy``, float32 (n, D), and ``NAME.json`` with the n digests and the sha256 of the array. A part is
whole or is not there; one that is damaged, or of a different net, is made again, and the log says so. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm.auto import tqdm

from cfaug.autocast import autocast
from cfaug.data.datasets import AttributeDataset
from cfaug.data.files import replace_file
from cfaug.data.images import as_rgb, pixel_digest
from cfaug.data.loading import ImageStream
from cfaug.errors import CfaugError
from cfaug.offline.read import ShardReader
from cfaug.train.models import Classifier, SmallCNN, as_input, digest_of

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]
BATCH = 32  # at 224 px the first layers of 64 images would take half a gigabyte more
PART = 4096  # images after which what is computed is written: so much can a kill cost


class FeatureStore:
    """The features of one net for images of one size.

    Args:
        directory: where parts are kept; other nets and sizes may have theirs beside them. None: they are kept in memory only.
        model: a net with ``embed``; it is put into eval mode.
        size: (height, width) of the images.
        workers: processes that decode.
        device, bf16: where and how the net computes.
        threads: of torch on a CPU.
    """

    def __init__(
        self,
        directory: Path | None,
        model: Classifier | SmallCNN,
        size: tuple[int, int],
        workers: int = 0,
        device: str = "cpu",
        bf16: bool = False,
        threads: int = 1,
        progress: bool = True,
    ) -> None:
        self.model, self.workers, self.device, self.bf16 = model.to(device).eval(), workers, device, bf16
        self.threads, self.progress, self.width = threads, progress, model.last.in_features
        self.digest = digest_of(model)
        key = hashlib.sha256(f"{self.digest} {size[0]}x{size[1]} {'bf16' if bf16 else 'float32'}".encode()).hexdigest()
        self.directory = None if directory is None else directory / key[:24]
        self.computed = 0
        self._known: dict[str, tuple[Floats, int]] = {}
        self._read()

    def of_dataset(self, dataset: AttributeDataset) -> Tensor:
        """(N, D) float32 of every image of a data set."""
        digests = [self._digest_of(dataset, i) for i in range(len(dataset))]
        return self._features(
            digests, lambda rows: ImageStream(dataset, rows, self.workers).batches(BATCH), dataset.split
        )

    def of_samples(self, reader: ShardReader, rows: Sequence[int]) -> Tensor:
        """(len(rows), D) float32 of samples of shards; an image is known by the sha256 of its bytes."""
        digests = [f"sample {reader.index[i].image.sha256}" for i in rows]
        samples = _Samples(reader, rows)
        return self._features(
            digests, lambda wanted: ImageStream(samples, wanted, self.workers).batches(BATCH), "generated"
        )  # type: ignore[arg-type]

    def _digest_of(self, dataset: AttributeDataset, i: int) -> str:
        known = getattr(dataset, "digests", ())
        if not known:
            return pixel_digest(dataset.image(i))
        return f"{known[i]} {getattr(dataset, 'fit', '')}" if getattr(dataset, "size", None) else known[i]

    def _features(self, digests: Sequence[str], batches: Any, what: str) -> Tensor:
        first = {digest: i for i, digest in reversed(list(enumerate(digests))) if digest not in self._known}
        missing = sorted(first.values())
        self.computed += len(missing)
        bar = tqdm(
            total=len(missing), desc=f"features {what}", unit="img", disable=not self.progress, delay=2, leave=False
        )
        with bar:
            for start in range(0, len(missing), PART):
                rows = missing[start : start + PART]
                self._write([digests[i] for i in rows], self._compute(batches(rows), bar))
        found = np.empty((len(digests), self.width), dtype=np.float32)
        for place, digest in enumerate(digests):
            part, row = self._known[digest]
            found[place] = part[row]
        return torch.from_numpy(found)

    def _compute(self, batches: Iterable[Tensor], bar: Any) -> Floats:
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads or before)
        parts: list[Floats] = []
        try:
            with torch.inference_mode(), autocast(self.device, self.bf16):
                for images in batches:
                    if not parts and not self._known:
                        self._say(images)
                    parts.append(self.model.embed(as_input(images.to(self.device))).float().cpu().numpy())
                    bar.update(len(images))
        finally:
            torch.set_num_threads(before)
        return np.concatenate(parts)

    def _say(self, images: Tensor) -> None:
        """A sanity line: what the net is given."""
        shown = as_input(images)
        if isinstance(self.model, Classifier):
            shown = (shown - self.model.shift.cpu()) / self.model.scale.cpu()  # type: ignore[operator]
        mean, std = shown.mean(dim=(0, 2, 3)).tolist(), shown.std(dim=(0, 2, 3)).tolist()
        log.info(
            "the net is given images of %dx%d whose channels have mean %s and deviation %s, and makes %d features of each",
            images.shape[3], images.shape[2], ", ".join(f"{v:.2f}" for v in mean), ", ".join(f"{v:.2f}" for v in std), self.width,
        )  # fmt: skip

    def _write(self, digests: Sequence[str], features: Floats) -> None:
        if not np.isfinite(features).all():
            raise CfaugError(
                "expected finite features, got some that are not; check train.weights and train.normalization"
            )
        self._known.update({digest: (features, row) for row, digest in enumerate(digests)})
        if self.directory is None:
            return
        stream = io.BytesIO()
        np.save(stream, features, allow_pickle=False)
        content = stream.getvalue()
        name = hashlib.sha256("\n".join(digests).encode()).hexdigest()[:24]
        entry = {"net": self.digest, "sha256": hashlib.sha256(content).hexdigest(), "images": list(digests)}
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            replace_file(self.directory / f"{name}.npy", content)
            replace_file(self.directory / f"{name}.json", json.dumps(entry).encode())
        except OSError as error:
            log.warning(
                "%s: features cannot be kept there (%s); they are computed again next time",
                self.directory,
                error.strerror,
            )

    def _read(self) -> None:
        entries = (
            sorted(self.directory.glob("*.json")) if self.directory is not None and self.directory.is_dir() else []
        )
        for path in entries:
            try:
                entry = json.loads(path.read_bytes())
                digests = [str(digest) for digest in entry["images"]]
                array = path.with_suffix(".npy")
                if entry["net"] != self.digest or hashlib.sha256(array.read_bytes()).hexdigest() != entry["sha256"]:
                    raise ValueError("it is of a different net, or damaged")
                features = np.load(array, mmap_mode="r", allow_pickle=False)
                if features.shape != (len(digests), self.width) or features.dtype != np.float32:
                    raise ValueError(f"it has shape {features.shape}")
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                log.warning(
                    "%s is not used and made again: %s", path.with_suffix(".npy"), " ".join(str(error).split())[:120]
                )
                for stale in (path, path.with_suffix(".npy")):
                    with suppress(OSError):
                        stale.unlink()
                continue
            self._known.update({digest: (features, row) for row, digest in enumerate(digests)})


class _Samples:
    """Samples of shards as a data set that an ImageStream can read."""

    def __init__(self, reader: ShardReader, rows: Sequence[int]) -> None:
        self.reader, self.rows = reader, rows

    def image(self, i: int) -> npt.NDArray[np.uint8]:
        pixels = self.reader.image(self.rows[i])
        return as_rgb(pixels)

"""Words for clusters: which of a few texts goes better with a cluster's images than with the rest of their class.

    name(c) = argmax_w  mean_{x in c} log p(w | x)  -  mean_{x of the class, not in c} log p(w | x)        p: a local model of the kind of CLIP

A word for a person to doubt, never more: nothing is selected by it. The words are places, light, media and what else shortcuts are made of.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cfaug.data import AttributeDataset
from cfaug.decode.text_image import TextImageModel
from cfaug.stages.gate_text import TextReader

WORDS = (
    "water", "the sea", "a beach", "sand", "a forest", "grass", "a field", "flowers", "mountains", "rocks", "snow", "the sky", "clouds",
    "a city", "a street", "a building", "a room", "a kitchen", "an office", "a hospital", "a laboratory", "a plain white background",
    "a plain black background", "a person", "a face", "a hand", "a crowd", "a child", "a woman", "a man", "glasses", "a hat", "clothes",
    "an animal", "a dog", "a bird", "food", "a car", "a boat", "furniture", "a machine", "a screen", "a ruler", "a tube or cable",
    "text", "a logo", "a watermark", "a frame", "a stripe", "daylight", "night", "fog", "rain", "a shadow", "a bright light",
    "a drawing", "a painting", "a black and white photo", "a close-up", "something far away", "a blurred photo", "an old photo",
)  # fmt: skip
"""What is tried unless other words are given."""


def name_clusters(
    directory: str,
    dataset: AttributeDataset,
    labels: npt.NDArray[np.int64],
    clusters: npt.NDArray[np.int64],
    words: Sequence[str] = WORDS,
    most: int = 200,
) -> dict[tuple[int, int], tuple[str, float]]:
    """(class, cluster) -> the word, and by how much its mean log-probability is larger than in the rest of the class.

    Args:
        directory: of the text-image model, as ``gate.clip``.
        dataset: N images.
        labels: (N,) classes.
        clusters: (N,) the cluster of each image within its class.
        words: to choose from, at least two.
        most: images of a cluster that are read.
    """
    rng = np.random.default_rng(29)
    cells = [(int(y), int(c)) for y, c in np.unique(np.stack([labels, clusters], 1), axis=0)]
    reader = TextReader(TextImageModel(directory), tuple(f"a photo of {word}" for word in words))
    said = {}
    for y, c in cells:
        rows = rng.permutation(np.flatnonzero((labels == y) & (clusters == c)))[:most]
        said[y, c] = reader.of_rows(dataset, rows.tolist())
    found = {}
    for y, c in cells:
        rest = [scores for (label, other), scores in said.items() if label == y and other != c]
        if rest:
            more = said[y, c].mean(0) - np.concatenate(rest).mean(0)
            found[y, c] = (words[int(more.argmax())], float(more.max()))
    return found

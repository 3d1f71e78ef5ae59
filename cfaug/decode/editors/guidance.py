"""Several draws of each edit, of which the one is kept whose image moved from its source as its words did.

    x' = argmax_k  cos(e(x'_k) - e(x), e(words') - e(words))      e: a local model of the kind of CLIP; x'_k: the edit under the k-th seed

The directional score of CF-CLIP (Yu et al., 2022) chooses among what the pipeline draws by itself. Its gradient is not followed: a net
whose gradient an image was made by likes that image for what nobody sees, and could judge nothing any more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from cfaug.decode.diffusion.training import seed_of
from cfaug.decode.editors.backends import Edit, Floats, Traits
from cfaug.decode.text_image import TextImageModel
from cfaug.editor_config import GuideConfig
from cfaug.errors import UsageError


def model_of(guide: GuideConfig) -> TextImageModel | None:
    """The model that chooses; None where each edit is drawn once."""
    return None if guide.clip is None else TextImageModel(guide.clip, "decoder.editor.guide.clip")


def digest(guide: GuideConfig) -> str | None:
    """sha256 (hex) of the weights of the model that chooses; None where none does."""
    model = model_of(guide)
    return None if model is None else model.digest


def check(guide: GuideConfig, traits: Traits, name: str) -> None:
    """UsageError for a model that cannot be opened, or a pipeline class that draws the same image every time."""
    model = model_of(guide)
    if model is not None and not traits.draws:
        raise UsageError(
            f"decoder.editor.guide: expected a pipeline that draws another image under another seed, got {name}; set another backend, or remove the "
            "line"
        )
    if model is not None:
        model.check()


def best_of(run: Callable[[Sequence[Edit]], Floats], edits: Sequence[Edit], guide: GuideConfig) -> Floats:
    """(N, H, W, 3) in [0, 1]: of each edit the draw that moved most as its words did; the first one, where there is one draw."""
    best = run(edits)
    model = model_of(guide)
    if model is None:
        return best
    sources = [np.array(edit.image) for edit in edits]  # transformers wants arrays that can be written

    def score(made: Floats) -> npt.NDArray[np.float64]:
        pixels = list(np.round(made.clip(0, 1) * 255).astype(np.uint8))
        return model.directions(pixels, sources, [edit.prompt for edit in edits], [edit.factual for edit in edits])

    scores = score(best)
    for draw in range(1, guide.draws):
        made = run([dataclasses.replace(edit, seed=seed_of(edit.seed, 100 + draw)) for edit in edits])
        found = score(made)
        better = found > scores
        best = np.where(better[:, None, None, None], made, best)
        scores = np.maximum(found, scores)
    return best

"""CounterfactualModel: the SCM of the attributes with the image as its last node.

    noise = model.abduct(image, attributes)            # abduction
    acted = model.act(do(background="water"))          # action
    image_cf, attributes_cf = acted.predict(noise)     # prediction

Descendants of the intervened attributes are recomputed through the SCM before the image is rendered; everything else keeps
its factual value. What the graph, the noise convention and the decoder assume is not checked here, and cannot be from data
alone: see ``assumptions``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from cfaug.causal import SCM, Intervention, do
from cfaug.causal.scm import Noise
from cfaug.data import Schema
from cfaug.data.files import replace_file
from cfaug.decode.diffusion import DiffusionDecoder, ImageNoise
from cfaug.errors import ShardError, UsageError


@dataclass(frozen=True)
class ModelNoise:
    """Exogenous noise of a batch: of every attribute, and of the image."""

    attributes: Noise
    image: ImageNoise


class CounterfactualModel:
    """An SCM and an image decoder that agree about the image's parents.

    Args:
        scm: fitted on the attribute table.
        decoder: a trained image mechanism.

    Raises:
        UsageError: the decoder's parents are not the image's parents in the graph, or the schemas differ.
    """

    def __init__(self, scm: SCM, decoder: DiffusionDecoder) -> None:
        expected = set(scm.graph.parents("image"))
        if expected != set(decoder.parents):
            raise UsageError(
                f"the graph says that the image's parents are {', '.join(sorted(expected)) or 'none'}, but the decoder was "
                f"built for {', '.join(sorted(decoder.parents))}; build it with parents=graph.parents('image')"
            )
        if decoder.schema.digest != scm.schema.digest:
            raise UsageError("the decoder and the SCM were fitted on different schemas; fit both on the same table")
        self.scm = scm
        self.decoder = decoder

    @property
    def schema(self) -> Schema:
        """The fitted schema."""
        return self.scm.schema

    @property
    def digest(self) -> str:
        """sha256 (hex) of SCM and decoder together."""
        return hashlib.sha256((self.scm.digest + self.decoder.digest).encode()).hexdigest()

    def abduct(self, image: torch.Tensor, attributes: pd.DataFrame, seed: int | Sequence[int] = 0) -> ModelNoise:
        """Infer all exogenous noise.

        Args:
            image: shape (B, C, H, W), float, in [-1, 1].
            attributes: B rows of factual values.
            seed: of the posterior over categorical noise; one for all or one a row.
        """
        table = self.schema.canonical(attributes)
        return ModelNoise(self.scm.abduct(table, seed), self.decoder.abduct(image, table))

    def act(self, intervention: Intervention | Sequence[Intervention]) -> ActedModel:
        """The model under an intervention: one for the whole batch, or one a row."""
        return ActedModel(self, intervention)

    def predict(self, noise: ModelNoise) -> tuple[torch.Tensor, pd.DataFrame]:
        """The null intervention: a reconstruction of the factual images, shape (B, C, H, W), in [-1, 1]."""
        return self.act(do()).predict(noise)

    def save(self, directory: str | Path) -> None:
        """Write the model: ``model.json`` with digests, ``scm.json``, ``decoder.json``, ``*.safetensors``."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "model.json").unlink(missing_ok=True)
        self.scm.save(directory)
        self.decoder.save(directory)
        # last: a directory without model.json holds no model, however the rest of it came there
        replace_file(directory / "model.json", json.dumps({"format": 1, "digest": self.digest}).encode())

    @classmethod
    def load(cls, directory: str | Path, device: str = "cpu") -> CounterfactualModel:
        """Read what :meth:`save` wrote.

        Raises:
            ShardError: a file is missing, truncated, altered, or from another model.
        """
        directory = Path(directory)
        try:
            expected = json.loads((directory / "model.json").read_text(encoding="utf-8"))["digest"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ShardError(
                f"corrupt checkpoint: expected a saved model in {directory}, but model.json cannot be read ({error}); "
                "run `cfaug fit` again with --overwrite"
            ) from None
        try:
            model = cls(SCM.load(directory), DiffusionDecoder.load(directory, device))
        except UsageError as error:
            raise ShardError(
                f"corrupt checkpoint: {directory} mixes files of two models ({error}); run `cfaug fit` again with --overwrite"
            ) from None
        if model.digest != expected:
            raise ShardError(
                f"corrupt checkpoint: {directory} mixes files of two models (expected digest {expected[:12]}, "
                f"{model.digest[:12]} came); run `cfaug fit` again with --overwrite"
            )
        return model


class ActedModel:
    """A :class:`CounterfactualModel` after do(...); made by :meth:`CounterfactualModel.act`."""

    def __init__(self, model: CounterfactualModel, intervention: Intervention | Sequence[Intervention]) -> None:
        self.model = model
        self.intervention = intervention
        self._acted = model.scm.act(intervention)

    def predict(self, noise: ModelNoise) -> tuple[torch.Tensor, pd.DataFrame]:
        """Counterfactual images, shape (B, C, H, W), in [-1, 1], and the counterfactual attribute table."""
        table = self._acted.predict(noise.attributes)
        each = [self.intervention] * len(table) if isinstance(self.intervention, Intervention) else self.intervention
        graph = self.model.scm.graph
        affected = {
            act: {name for start in act.assignments for name in (start, *graph.descendants(start))} for act in set(each)
        }
        return self.model.decoder.predict(noise.image, table, [affected[act] for act in each]), table

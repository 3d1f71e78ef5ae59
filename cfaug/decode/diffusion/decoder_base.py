"""What every image mechanism of this room has: attributes, a frame of images, a space to work in, and a saved form."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, ClassVar, Self

import pandas as pd
import torch
from torch import nn

from cfaug.config import DecoderConfig
from cfaug.data import Schema
from cfaug.decode import storage
from cfaug.decode.diffusion.condition import Condition
from cfaug.decode.diffusion.image_space import PixelSpace, Space, restore
from cfaug.decode.diffusion.training import FitReport
from cfaug.decode.diffusion.training_images import Frame
from cfaug.errors import UsageError

_SPACE = "space."  # in front of the names of the autoencoder's weights


class TrainedMechanism(ABC):
    """What a trained image mechanism has.

    Args:
        schema: the attributes.
        parents: the image's parents in the causal graph, at least one.
        config: the settings.
        settings: single fields of ``config`` to change.
    """

    kind: ClassVar[str]
    """Name in ``decoder.json`` and in a recipe."""
    _elsewhere: ClassVar[tuple[str, ...]]
    """Settings that say where and how it was made, or belong to another one: no part of what it is."""
    _untrained: ClassVar[str]

    def __init__(
        self, schema: Schema, parents: Collection[str], config: DecoderConfig, settings: dict[str, Any]
    ) -> None:
        self.config = changed(config, settings)
        self.condition = Condition(schema, parents)
        self.frame: Frame | None = None
        self.space: Space = PixelSpace(3)
        self.report: FitReport | None = None
        self._trained: nn.Module | None = None

    @property
    def schema(self) -> Schema:
        """The attributes, with statistics once fitted."""
        return self.condition.schema

    @property
    def parents(self) -> tuple[str, ...]:
        """The image's parents, in the schema's order."""
        return self.condition.parents

    @property
    def canvas(self) -> tuple[int, int] | None:
        """(H, W) that smaller sources are padded to; None where all sources have one size."""
        return self.frame.size if self.frame and self.frame.mixed else None

    @property
    def trained_frame(self) -> Frame:
        """The images it takes; UsageError before it is trained or loaded."""
        if self.frame is None:
            raise UsageError(self._untrained)
        return self.frame

    def _network(self) -> nn.Module:
        """What is trained and saved; UsageError before that."""
        if self._trained is None:
            raise UsageError(self._untrained)
        return self._trained

    def _judged(self, score: Callable[[Self], float] | None) -> Callable[[Any], float] | None:
        """``score`` of this decoder as a function of a network that takes the trained one's place meanwhile."""
        if score is None:
            return None

        def judged(network: nn.Module) -> float:
            kept, self._trained = self._trained, network
            try:
                return score(self)
            finally:
                self._trained = kept

        return judged

    # -- images ------------------------------------------------------------------------------------------------------

    def _seen(self, image: torch.Tensor, attributes: pd.DataFrame, multiple: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Checked images (B, C, H, W) in the working space, padded for a network of ``multiple``, and their structure map."""
        frame, factor = self.trained_frame, self.space.factor
        frame.check(image, attributes)
        image = image.to(self.config.device).float()
        padded, structure = frame.prepare(image, multiple * factor, self.config.structure, factor)
        return self.space.encode(padded), structure

    def _shown(self, latent: torch.Tensor, size: tuple[int, int], device: torch.device | str) -> torch.Tensor:
        """The image of ``latent``, in [-1, 1], at its source's size and on its source's device."""
        return self.space.decode(latent)[..., : size[0], : size[1]].clamp(-1, 1).to(device)

    # -- disk --------------------------------------------------------------------------------------------------------

    @property
    def digest(self) -> str:
        """sha256 (hex) over the description and every weight."""
        return storage.digest(self._description(), self._weights())

    def save(self, directory: str | Path) -> None:
        """Write ``decoder.safetensors`` and ``decoder.json`` (description and digest)."""
        storage.save(directory, self._description(), self._weights(), self.report)

    def _weights(self) -> dict[str, torch.Tensor]:
        own = self._network().state_dict()
        return {**own, **{_SPACE + name: tensor for name, tensor in self.space.weights().items()}}

    def _description(self) -> dict[str, Any]:
        config = {k: v for k, v in dataclasses.asdict(self.config).items() if k not in self._elsewhere}
        return {
            "format": storage.FORMAT,
            "kind": self.kind,
            "config": config,
            "schema": self.schema.to_json(),
            "parents": list(self.parents),
            "frame": dataclasses.asdict(self.trained_frame),
            "space": self.space.description(),
        }

    @classmethod
    def load(cls, directory: str | Path, device: str = "cpu") -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            ShardError: a missing, truncated or altered checkpoint.
            UsageError: one of another version of cfaug, or of another kind of decoder.
        """
        content, weights, report = storage.load(directory)
        if content["kind"] != cls.kind:
            raise UsageError(
                f"{directory}: expected a {cls.kind} decoder, but a {content['kind']} one came; use load_decoder"
            )
        try:
            config = DecoderConfig(**{**content["config"], "device": device})
            decoder = cls(Schema.from_json(content["schema"]), content["parents"], config)  # type: ignore[call-arg]
            decoder.frame = Frame.restore(content["frame"])
            codec = {k.removeprefix(_SPACE): tensor for k, tensor in weights.items() if k.startswith(_SPACE)}
            decoder.space = restore(content["space"], codec, device)
            decoder._restore(content, {k: tensor for k, tensor in weights.items() if not k.startswith(_SPACE)})
            decoder.report = report
        except Exception as error:  # torch has its own
            raise storage.corrupt(directory, error) from None
        return decoder

    @abstractmethod
    def _restore(self, content: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
        """Build the network and give it its weights."""


def changed(config: DecoderConfig, settings: dict[str, Any]) -> DecoderConfig:
    """``config`` with single fields changed; UsageError for a name that it does not have, or a value out of range."""
    known = [f.name for f in dataclasses.fields(DecoderConfig)]
    for name in settings:
        if name not in known:
            raise UsageError(f"the decoder has no setting {name!r}; known: {', '.join(known)}")
    return dataclasses.replace(config, **settings)

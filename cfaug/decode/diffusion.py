"""The default image mechanism: a conditional flow-matching decoder, inverted for abduction.

    abduct:   n = solve dx/dt = v(x, t, pa, g) from t = 0 to 1, starting at the image, on the *factual* parents pa
    predict:  x' = solve the same equation from t = 1 to 0, starting at n, on the *counterfactual* parents pa'

with the guide g = (structure map, semantic latent) of the factual image part of the exogenous noise (see ``structure`` and
``semantic``). Abduction is never guided. With a reversible sampler (the default) a null intervention returns the factual
image up to rounding (see ``sampling``); in latents, up to what the autoencoder makes of it.

Not promised: identification. Two decoders that fit the data equally well can give different counterfactuals (Pan &
Bareinboim, 2024, arXiv 2403.09683); and a decoder trained under confounding is itself confounded, so ``cfaug evaluate``
measures what the counterfactuals changed and what they left.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from cfaug.checks import check_decoder
from cfaug.config import DecoderConfig
from cfaug.data import AttributeDataset, Schema
from cfaug.decode import sampling, storage
from cfaug.decode.condition import Condition
from cfaug.decode.fit import FitReport, Learner, build_learner, train_velocity
from cfaug.decode.network import VelocityNet
from cfaug.decode.space import PixelSpace, Space, open_space, restore
from cfaug.decode.space import forget as forget_space
from cfaug.decode.training import autocast, forget
from cfaug.decode.views import Frame, load_framed, patch_for, views_of
from cfaug.errors import UsageError

_ELSEWHERE = ("device", "compile", "checkpoint_seconds", "autoencoder", "distil_pairs", "distil_share")
"""Settings that say where and how this decoder was made, or belong to another one: no part of what it is."""

_UNTRAINED = "this decoder is not trained yet; call fit(dataset) or load a saved model first"


@dataclass(frozen=True)
class ImageNoise:
    """Exogenous noise of the image: what abduction returns and prediction takes.

    Attributes:
        states: for each level of the solver that a depth may ask for, shape (2, B, c, h, w); the last is the full noise.
        guide: structure map and semantic latent, shape (B, G, h, w), about [-1, 1].
        size: (H, W) of the source, restored by prediction.
        device: where the source was, and where prediction returns its image to.
    """

    states: tuple[torch.Tensor, ...]
    guide: torch.Tensor
    size: tuple[int, int]
    device: torch.device | str = "cpu"


class DiffusionDecoder:
    """A conditional flow-matching image mechanism on a diffusers U-Net.

    Args:
        schema: the attributes; statistics are fitted by :meth:`fit` where they are missing.
        parents: the image's parents in the causal graph, at least one.
        config: the settings; every field is explained in :class:`cfaug.config.DecoderConfig`.
        settings: single fields of ``config`` to change.

    Raises:
        UsageError: no parents, a parent that is not in the schema, or an unknown setting.
    """

    def __init__(
        self, schema: Schema, parents: Collection[str], config: DecoderConfig | None = None, **settings: Any
    ) -> None:
        self.config = changed(config or DecoderConfig(), settings)
        self.condition = Condition(schema, parents)
        for name in self.config.depth:
            if name not in self.parents:
                raise UsageError(
                    f"decoder.depth names {name!r}, which is no parent of the image; they are {', '.join(self.parents)}"
                )
        self.frame: Frame | None = None
        self.space: Space = PixelSpace(3)
        self.report: FitReport | None = None
        self._learner: Learner | None = None

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

    # -- learning ------------------------------------------------------------------------------------------------

    def fit(
        self,
        dataset: AttributeDataset,
        seed: int = 0,
        progress: bool = True,
        *,
        checkpoint: str | Path | None = None,
        score: Callable[[DiffusionDecoder], float] | None = None,
    ) -> DiffusionDecoder:
        """Train on the factual images.

        Args:
            dataset: the training images and their attributes; values of other attributes than the target may be missing.
            seed: of all randomness.
            progress: show it.
            checkpoint: directory that makes training resumable: the same call after a kill goes on from there, exactly.
                :meth:`forget` it once the decoder is saved.
            score: of the decoder as it would be now, higher is better; asked every ``validate_every`` steps, and training
                stops when it no longer improves. Judge counterfactuals: a falling loss says nothing about them.

        Raises:
            DataError: a value outside the schema, images of mixed modes, or sides outside 4 to 256 px.
            CfaugError: the loss became NaN, or the memory does not suffice.
        """
        images, frame = load_framed(dataset, progress)
        missing = [name for name in self.schema.names if name != self.schema.target]
        self.condition = Condition(self.schema.fit(dataset.table, missing), self.parents)
        self.frame = frame
        folder = Path(checkpoint) if checkpoint else None
        self.space = open_space(images, self.config, seed, progress, folder / "space" if folder else None)
        self._learner = self._build(seed)
        net = self.net
        views = views_of(images, self.space, net.multiple, self.config)

        def judged(learner: Learner) -> float:
            assert score is not None
            kept, self._learner = self._learner, learner
            try:
                return score(self)
            finally:
                self._learner = kept

        self.report = train_velocity(
            self._learner,
            views,
            self.condition.encode(dataset.table),
            self.condition.cells(dataset.table),
            self.config,
            self.condition.blocks(),
            seed=seed,
            progress=progress,
            checkpoint=folder / "decoder" if folder else None,
            score=judged if score is not None else None,
        )
        return self

    @staticmethod
    def forget(checkpoint: str | Path) -> None:
        """Delete what :meth:`fit` kept in ``checkpoint``."""
        forget_space(Path(checkpoint) / "space")
        forget(Path(checkpoint) / "decoder")

    def _build(self, seed: int) -> Learner:
        patch = patch_for(self.config, self.trained_frame, self.space)
        self.config = dataclasses.replace(self.config, patch=patch)
        return build_learner(self.config, self.condition, self.space.channels, seed)

    @property
    def trained_frame(self) -> Frame:
        """The images it takes; UsageError before :meth:`fit` or :meth:`load`."""
        if self.frame is None:
            raise UsageError(_UNTRAINED)
        return self.frame

    @property
    def learner(self) -> Learner:
        """The trained networks; UsageError before :meth:`fit` or :meth:`load`."""
        if self._learner is None:
            raise UsageError(_UNTRAINED)
        return self._learner

    @property
    def net(self) -> VelocityNet:
        """The velocity network; UsageError before :meth:`fit` or :meth:`load`."""
        return self.learner.net

    # -- the three verbs -----------------------------------------------------------------------------------------

    def abduct(self, image: torch.Tensor, attributes: pd.DataFrame) -> ImageNoise:
        """Infer the exogenous noise of factual images.

        Args:
            image: x, shape (B, C, H, W), float, in [-1, 1].
            attributes: B rows of *factual* values; a missing one is abducted without.

        Raises:
            UsageError: another size, mode, range or number of rows than expected.
        """
        net, device, frame = self.net, self.config.device, self.trained_frame
        frame.check(image, attributes)
        padded, structure = frame.prepare(
            image.to(device).float(), net.multiple * self.space.factor, self.config.structure, self.space.factor
        )
        condition = self.condition.encode(attributes).to(device)
        with torch.inference_mode():
            x = self.space.encode(padded)
            guide = structure
            if self.learner.encoder is not None:
                guide = torch.cat([structure, self.learner.encoder(x)], dim=1)
            states = sampling.invert(
                lambda x, t: self._velocity(x, t, condition, guide),
                x,
                self.config.sampler,
                self.config.steps,
                self._levels,
            )
        return ImageNoise(tuple(states), guide, (image.shape[2], image.shape[3]), image.device)

    def predict(
        self,
        noise: ImageNoise,
        attributes: pd.DataFrame,
        affected: Sequence[Collection[str]] | None = None,
        strength: float | None = None,
    ) -> torch.Tensor:
        """Render the noise under given attributes.

        Args:
            noise: from :meth:`abduct`.
            attributes: B rows of *counterfactual* values.
            affected: for each row, the intervened attributes and their descendants. Only these are guided when
                ``strength`` is not 1 (decoupled guidance, Xia et al., 2025, arXiv 2506.14399), and their depths decide how
                far into the noise the row goes.
            strength: of the intervention: 1 is the network's own answer, 0 leaves the affected attributes unsaid, more than
                1 exaggerates them. None: ``config.guidance``.

        Returns:
            x', shape (B, C, H, W), in [-1, 1].
        """
        if strength is not None and not (strength >= 0 and math.isfinite(strength)):
            raise UsageError(f"expected a strength from 0 up, but {strength} came; 1 is the network's own answer")
        if strength not in (None, 1) and affected is None:
            raise UsageError("a strength needs `affected`: for each row the attributes that were intervened on")
        if len(attributes) != len(noise.guide):
            raise UsageError(
                f"expected an attribute row for each of {len(noise.guide)} images, but {len(attributes)} came"
            )
        strength = self.config.guidance if strength is None else strength
        condition = self.condition.encode(attributes).to(self.config.device)
        guided = strength != 1 and affected is not None and any(map(len, affected))
        rest = self.condition.without(condition, affected) if guided and affected is not None else condition

        def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
            full = self._velocity(x, t, condition, noise.guide)
            if not guided:
                return full
            part = self._velocity(x, t, rest, noise.guide)
            return part + strength * (full - part)

        with torch.inference_mode():
            start = self._start(affected, len(condition))
            image = self.space.decode(
                sampling.render(velocity, noise.states, self.config.sampler, self.config.steps, self._levels, start)
            )
        height, width = noise.size
        return image[..., :height, :width].clamp(-1, 1).to(noise.device)

    def _velocity(self, x: torch.Tensor, t: float, condition: torch.Tensor, guide: torch.Tensor) -> torch.Tensor:
        if t < 1e-9:
            return -x  # E[n - x | x_0 = x], known without the network
        with autocast(self.config):
            return self.net(x, x.new_full((len(x),), t), condition, guide).float()  # type: ignore[no-any-return]

    def _level(self, depth: float) -> int:
        return max(1, round(depth * self.config.steps))

    @property
    def _levels(self) -> list[int]:
        """Ascending step numbers that some depth asks for; the last is the full number of steps."""
        return sorted({self.config.steps, *map(self._level, self.config.depth.values())})

    def _start(self, affected: Sequence[Collection[str]] | None, rows: int) -> torch.Tensor:
        """(rows,): for each image the level of the deepest of its affected attributes; all the way where none is."""
        last = len(self._levels) - 1
        if affected is None or last == 0:
            return torch.full((rows,), last)
        depth = self.config.depth
        own = [[self._level(depth.get(name, 1.0)) for name in names if name in self.parents] for names in affected]
        return torch.tensor([self._levels.index(max(levels)) if levels else last for levels in own])

    # -- disk ----------------------------------------------------------------------------------------------------

    @property
    def digest(self) -> str:
        """sha256 (hex) over the description and every weight."""
        return storage.digest(self._description(), self._weights())

    def _weights(self) -> dict[str, torch.Tensor]:
        own = {k: v for k, v in self.learner.state_dict().items() if not k.startswith("adversary.")}
        return {**own, **{f"space.{name}": tensor for name, tensor in self.space.weights().items()}}

    def _description(self) -> dict[str, Any]:
        frame, config = self.trained_frame, dataclasses.asdict(self.config)
        for free in _ELSEWHERE:
            config.pop(free)
        return {
            "format": storage.FORMAT,
            "kind": "diffusion",
            "config": config,
            "schema": self.schema.to_json(),
            "parents": list(self.parents),
            "frame": dataclasses.asdict(frame),
            "space": self.space.description(),
        }

    def save(self, directory: str | Path) -> None:
        """Write ``decoder.safetensors`` and ``decoder.json`` (description and digest)."""
        storage.save(directory, self._description(), self._weights(), self.report)

    @classmethod
    def load(cls, directory: str | Path, device: str = "cpu") -> DiffusionDecoder:
        """Read what :meth:`save` wrote.

        Raises:
            ShardError: a missing, truncated or altered checkpoint.
            UsageError: one of another version of cfaug.
        """
        content, weights, report = storage.load(directory)
        if content["kind"] != "diffusion":
            raise UsageError(
                f"{directory}: expected a diffusion decoder, but a {content['kind']} one came; use load_decoder"
            )
        try:
            config = DecoderConfig(**{**content["config"], "device": device})
            decoder = cls(Schema.from_json(content["schema"]), content["parents"], config)
            decoder.frame = Frame.restore(content["frame"])
            apart = {name: tensor for name, tensor in weights.items() if name.startswith("space.")}
            codec = {name.removeprefix("space."): tensor for name, tensor in apart.items()}
            decoder.space = restore(content["space"], codec, device)
            decoder._learner = decoder._build(seed=0)
            decoder._learner.adversary = None  # it has done its work
            decoder._learner.load_state_dict({k: v for k, v in weights.items() if k not in apart})
            decoder.report = report
        except Exception as error:  # torch has its own
            raise storage.corrupt(directory, error) from None
        return decoder


def changed(config: DecoderConfig, settings: dict[str, Any]) -> DecoderConfig:
    """``config`` with single fields changed; UsageError for a name that it does not have, or a value out of range."""
    known = [f.name for f in dataclasses.fields(DecoderConfig)]
    for name in settings:
        if name not in known:
            raise UsageError(f"the decoder has no setting {name!r}; known: {', '.join(known)}")
    config = dataclasses.replace(config, **settings)
    check_decoder(config)
    return config

"""The default image mechanism: a conditional flow-matching decoder, inverted for abduction.

    abduct:   n = solve dx/dt = v(x, t, pa, g) from t = 0 to 1, starting at the image, on the *factual* parents pa
    predict:  x' = solve the same equation from t = 1 to 0, starting at n, on the *counterfactual* parents pa'

with the guide g = structure map of the factual image part of the exogenous noise (see ``structure``). Abduction is never guided. With a reversible sampler (the default) a null intervention returns the factual
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
from typing import Any, cast

import pandas as pd
import torch

from cfaug.config import DecoderConfig
from cfaug.data import AttributeDataset, Schema
from cfaug.decode.diffusion import sampling
from cfaug.decode.diffusion.condition import Condition, check_depth
from cfaug.decode.diffusion.decoder_base import TrainedMechanism
from cfaug.decode.diffusion.flow_loss import Learner, build_learner, train_velocity
from cfaug.decode.diffusion.image_space import forget as forget_space
from cfaug.decode.diffusion.image_space import open_space
from cfaug.decode.diffusion.network import VelocityNet
from cfaug.decode.diffusion.training import autocast, forget
from cfaug.decode.diffusion.training_images import load_framed, patch_for, views_of
from cfaug.errors import UsageError


@dataclass(frozen=True)
class ImageNoise:
    """Exogenous noise of the image: what abduction returns and prediction takes.

    Attributes:
        states: for each level of the solver that a depth may ask for, shape (2, B, c, h, w); the last is the full noise.
        guide: structure map, shape (B, G, h, w), about [-1, 1].
        size: (H, W) of the source, restored by prediction.
        device: where the source was, and where prediction returns its image to.
    """

    states: tuple[torch.Tensor, ...]
    guide: torch.Tensor
    size: tuple[int, int]
    device: torch.device | str = "cpu"


class DiffusionDecoder(TrainedMechanism):
    """A conditional flow-matching image mechanism on a diffusers U-Net.

    Args:
        schema: the attributes; statistics are fitted by :meth:`fit` where they are missing.
        parents: the image's parents in the causal graph, at least one.
        config: the settings; every field is explained in :class:`cfaug.config.DecoderConfig`.
        settings: single fields of ``config`` to change.

    Raises:
        UsageError: no parents, a parent that is not in the schema, or an unknown setting.
    """

    kind = "diffusion"
    _elsewhere = ("device", "compile", "checkpoint_seconds", "autoencoder")
    _untrained = "this decoder is not trained yet; call fit(dataset) or load a saved model first"

    def __init__(
        self, schema: Schema, parents: Collection[str], config: DecoderConfig | None = None, **settings: Any
    ) -> None:
        super().__init__(schema, parents, config or DecoderConfig(), settings)
        check_depth(self.config.depth, self.parents)

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
        self._trained = learner = self._build(seed)
        views = views_of(images, self.space, learner.net.multiple, self.config)
        self.report = train_velocity(
            learner,
            views,
            self.condition.encode(dataset.table),
            self.condition.cells(dataset.table),
            self.config,
            self.condition.blocks(),
            seed=seed,
            progress=progress,
            checkpoint=folder / "decoder" if folder else None,
            score=self._judged(score),
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
    def learner(self) -> Learner:
        """The trained networks; UsageError before :meth:`fit` or :meth:`load`."""
        return cast(Learner, self._network())

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
        learner = self.learner
        with torch.inference_mode():
            x, structure = self._seen(image, attributes, learner.net.multiple)
            condition = self.condition.encode(attributes).to(self.config.device)
            guide = structure
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
            latent = sampling.render(
                velocity, noise.states, self.config.sampler, self.config.steps, self._levels, start
            )
            return self._shown(latent, noise.size, noise.device)

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

    def _restore(self, content: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
        learner = self._build(seed=0)
        learner.load_state_dict(weights)
        self._trained = learner

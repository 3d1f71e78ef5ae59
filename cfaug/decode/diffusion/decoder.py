"""The default image mechanism: a conditional flow-matching decoder, inverted for abduction.

    abduct:   n = solve dx/dt = v(x, t, pa, g) from t = 0 to 1, starting at the image, on the *factual* parents pa
    predict:  x' = solve the same equation from t = 1 to 0, starting at n, on the *counterfactual* parents pa'

with the guide g, the structure map of the factual image, a part of the exogenous noise (see ``structure``). Abduction is
never guided. With a reversible sampler (the default) a null intervention returns the factual image up to rounding (see
``sampling``); in latents, up to what the autoencoder makes of it.

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

from cfaug.autocast import autocast, has_bfloat16
from cfaug.config import DecoderConfig
from cfaug.data import AttributeDataset, Schema
from cfaug.data.files import expand
from cfaug.data.loading import SIDES
from cfaug.data.micro_batch import Sources
from cfaug.decode import save_decoder
from cfaug.decode.diffusion import sampling
from cfaug.decode.diffusion.condition import Condition, check_depth
from cfaug.decode.diffusion.flow_loss import train_velocity
from cfaug.decode.diffusion.image_space import PixelSpace, Space, open_space, restore_space
from cfaug.decode.diffusion.network import VelocityNet
from cfaug.decode.diffusion.network_input import Frame, load_framed, network_input, training_views
from cfaug.decode.diffusion.structure import CHANNELS
from cfaug.decode.diffusion.training import seed_of
from cfaug.decode.mechanism import Capabilities, FitReport
from cfaug.errors import UsageError

_ELSEWHERE = ("device", "compile", "checkpoint_seconds", "autoencoder")  # settings that say where and how it was made
_SPACE = "space."  # in front of the names of the autoencoder's weights


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


class DiffusionDecoder:
    """A conditional flow-matching image mechanism on a diffusers U-Net.

    Args:
        schema: the attributes; statistics are fitted by :meth:`fit` where they are missing.
        parents: the image's parents in the causal graph, at least one.
        config: the settings; every field is explained in :class:`cfaug.config.DecoderConfig`.
        settings: single fields of ``config`` to change.

    Attributes:
        config: the settings.
        report: what training did; None before it.

    Raises:
        UsageError: no parents, a parent that is not in the schema, or an unknown setting.
    """

    def __init__(
        self, schema: Schema, parents: Collection[str], config: DecoderConfig | None = None, **settings: Any
    ) -> None:
        self.config = dataclasses.replace(config or DecoderConfig(), **settings)
        self.condition = Condition(schema, parents)
        check_depth(self.config.depth, self.parents)
        self.space: Space = PixelSpace(3)
        self.report: FitReport | None = None
        self._frame: Frame | None = None
        self._net: VelocityNet | None = None

    @property
    def schema(self) -> Schema:
        """The attributes, with statistics once fitted."""
        return self.condition.schema

    @property
    def parents(self) -> tuple[str, ...]:
        """The image's parents, in the schema's order."""
        return self.condition.parents

    @property
    def capabilities(self) -> Capabilities:
        """No masks, mixed batches; a null intervention is exact in pixels with a reversible sampler."""
        exact = isinstance(self.space, PixelSpace) and self.config.sampler != "midpoint"
        return Capabilities("exact" if exact else "round_trip", min_side=SIDES[0], max_side=SIDES[1])

    @property
    def canvas(self) -> tuple[int, int] | None:
        """(H, W) that smaller sources are padded to; None where all sources have one size."""
        return self._frame.size if self._frame and self._frame.mixed else None

    @property
    def device(self) -> str:
        """Where the network runs."""
        return self.config.device

    @property
    def dtype(self) -> str:
        """The network's arithmetic."""
        return "bfloat16 autocast" if self.config.bf16 and has_bfloat16(self.config.device) else "float32"

    @property
    def net(self) -> VelocityNet:
        """The velocity network; UsageError before :meth:`fit` or :meth:`load`."""
        return self._trained()[0]

    def _trained(self) -> tuple[VelocityNet, Frame]:
        if self._net is None or self._frame is None:
            raise UsageError("this decoder is not trained yet; call fit(dataset) or load a saved model first")
        return self._net, self._frame

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
            dataset: the training images and their attributes; only the target must have a value in every row.
            seed: of all randomness.
            progress: show it.
            checkpoint: directory that makes training resumable: the same call after a kill goes on from there, exactly.
                Delete it once the decoder is saved.
            score: of the decoder as it would be now, higher is better; asked every ``validate_every`` steps, and training
                stops when it no longer improves. Judge counterfactuals: a falling loss says nothing about them.

        Raises:
            DataError: a value outside the schema, images of mixed modes, or sides outside 4 to 256 px.
            UsageError: ``space: latents`` without an autoencoder that suits the images.
            CfaugError: the loss became NaN, or the memory does not suffice.
        """
        images, frame = load_framed(dataset, progress)
        missing = [name for name in self.schema.names if name != self.schema.target]
        self.condition = Condition(self.schema.fit(dataset.table, missing), self.parents)
        self._frame, self.space = frame, open_space(images, self.config)
        self._net = net = self._build(frame, seed)
        table = self.schema.canonical(dataset.table)
        self.report = train_velocity(
            net,
            training_views(images, frame, self.space, net.multiple, self.config.structure, self.config.device),
            self.condition.encode(table),
            self.condition.cells(table),
            self.config,
            self.condition.blocks(),
            seed=seed,
            progress=progress,
            checkpoint=expand(checkpoint) if checkpoint else None,
            score=(lambda: score(self)) if score else None,
        )
        return self

    def _build(self, frame: Frame, seed: int) -> VelocityNet:
        """A new network on ``config.device``, the same for the same seed; ``config.patch`` is set to what it uses."""
        config, side = self.config, max(frame.size) // self.space.factor
        patch = config.patch or (1 if side <= 8 else 2 if side <= 16 else 4)
        self.config = dataclasses.replace(config, patch=patch)
        structure = CHANNELS[config.structure]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed))
            net = VelocityNet(self.space.channels, self.condition.width, structure, patch, config.channels)
        net = net.to(config.device).float()  # whatever torch.set_default_dtype says
        if torch.device(config.device).type == "cuda":  # on a CPU the same layout costs a fifth of the speed
            net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return net.eval()

    # -- abduction and prediction --------------------------------------------------------------------------------

    def abduct(self, sources: Sources) -> ImageNoise:
        """Infer the exogenous noise of factual images; a missing attribute is unknown to the network.

        Raises:
            UsageError: a different size, mode, range or number of rows than expected.
        """
        net, frame = self._trained()
        images, structure = sources.images, self.config.structure
        frame.check(images, len(sources.table))
        with torch.inference_mode():
            x = images.to(self.config.device).float()
            x, guide = network_input(x, frame, self.space, net.multiple, structure)
            condition = self.condition.encode(sources.table).to(self.config.device)
            states = sampling.invert(
                lambda x, t: self._velocity(x, t, condition, guide),
                x,
                self.config.sampler,
                self.config.steps,
                self._levels,
            )
        return ImageNoise(tuple(states), guide, (images.shape[2], images.shape[3]), images.device)

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
            attributes: B canonical rows of *counterfactual* values.
            affected: for each row, the intervened attributes and their descendants. Only these are guided when
                ``strength`` is not 1 (decoupled guidance, Xia et al., 2025, arXiv 2506.14399), and their depths decide how
                far into the noise the row goes.
            strength: of the intervention: 1 is the network's own answer, 0 hides the affected attributes, more than 1
                exaggerates them. None: ``config.guidance``.

        Returns:
            x', shape (B, C, H, W), in [-1, 1].
        """
        if strength is not None and not (strength >= 0 and math.isfinite(strength)):
            raise UsageError(f"expected a strength from 0 up, got {strength}; 1 is the network's own answer")
        if strength not in (None, 1) and affected is None:
            raise UsageError("expected `affected` beside a strength, got none; name each row's intervened attributes")
        if len(attributes) != len(noise.guide):
            raise UsageError(
                f"expected an attribute row for each of {len(noise.guide)} images, got {len(attributes)}; pass one per image"
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
            image = self.space.decode(latent)[..., : noise.size[0], : noise.size[1]]
            return image.clamp(-1, 1).to(noise.device)

    def _velocity(self, x: torch.Tensor, t: float, condition: torch.Tensor, guide: torch.Tensor) -> torch.Tensor:
        if t < 1e-9:
            return -x  # E[n - x | x_0 = x], known without the network
        with autocast(self.config.device, self.config.bf16):
            return self.net(x, x.new_full((len(x),), t), condition, guide).float()  # type: ignore[no-any-return]

    def _level(self, depth: float) -> int:
        return max(1, round(depth * self.config.steps))

    @property
    def _levels(self) -> list[int]:
        """Ascending step numbers that some depth asks for; the last is the full number of steps."""
        return sorted({self.config.steps, *map(self._level, self.config.depth.values())})

    def _start(self, affected: Sequence[Collection[str]] | None, rows: int) -> torch.Tensor:
        """(rows,): for each image the level of the deepest of its affected attributes; all the way where it has none."""
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
        return save_decoder.digest(self._description(), self._weights())

    def save(self, directory: str | Path) -> None:
        """Write ``decoder.safetensors`` and ``decoder.json`` (description and digest)."""
        save_decoder.save(directory, self._description(), self._weights(), self.report)

    def _weights(self) -> dict[str, torch.Tensor]:
        return {**self.net.state_dict(), **{_SPACE + name: tensor for name, tensor in self.space.weights().items()}}

    def _description(self) -> dict[str, Any]:
        _, frame = self._trained()
        return {
            "format": save_decoder.FORMAT,
            "kind": "diffusion",
            "config": {k: v for k, v in dataclasses.asdict(self.config).items() if k not in _ELSEWHERE},
            "schema": self.schema.to_json(),
            "parents": list(self.parents),
            "frame": dataclasses.asdict(frame),
            "space": self.space.description(),
        }

    @classmethod
    def load(cls, directory: str | Path, device: str = "cpu") -> DiffusionDecoder:
        """Read what :meth:`save` wrote.

        Raises:
            ShardError: a missing, truncated or altered file.
            UsageError: a decoder that a different version of cfaug has saved.
        """
        content, weights, report = save_decoder.load(directory)
        own = {name: tensor for name, tensor in weights.items() if not name.startswith(_SPACE)}
        other = {name.removeprefix(_SPACE): tensor for name, tensor in weights.items() if name.startswith(_SPACE)}
        try:
            config = DecoderConfig(**content["config"], device=device)
            decoder = cls(Schema.from_json(content["schema"]), content["parents"], config)
            decoder._frame = frame = Frame.restore(content["frame"])
            decoder.space = restore_space(content["space"], other, device)
            decoder._net = decoder._build(frame, seed=0)
            decoder._net.load_state_dict(own)
            decoder.report = report
        except Exception as error:  # torch and diffusers raise their own
            raise save_decoder.corrupt(directory, error) from None
        return decoder

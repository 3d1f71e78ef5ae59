"""The default image mechanism: a conditional flow-matching decoder, inverted for abduction.

    abduct:   n = solve dx/dt = v(x, t, pa, s) from t = 0 to 1, starting at the image, on the *factual* parents pa
    predict:  x' = solve the same equation from t = 1 to 0, starting at n, on the *counterfactual* parents pa'

with s the structure map of the factual image (see ``structure``), part of the exogenous noise. Abduction is never guided.

Not promised: identification. Two decoders that fit the data equally well can give different counterfactuals (Pan &
Bareinboim, 2024, arXiv 2403.09683); and a decoder trained under confounding is itself confounded, so ``cfaug evaluate``
measures what the counterfactuals changed and what they left.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from cfaug.config import DecoderConfig
from cfaug.data import AttributeDataset, Schema, load_images
from cfaug.data.files import replace_file
from cfaug.decode.fit import FitReport, train_velocity
from cfaug.decode.network import VelocityNet
from cfaug.decode.sampling import integrate
from cfaug.decode.structure import structure_map
from cfaug.errors import ShardError, UsageError


@dataclass(frozen=True)
class ImageNoise:
    """Exogenous noise of the image: what abduction returns and prediction takes.

    Attributes:
        latent: n, shape (B, C, H', W'), H' and W' padded to what the network divides.
        structure: s, shape (B, S, H', W'), in [-1, 1].
        size: (H, W) of the source, restored by prediction.
        device: where the source was, and where prediction returns its image to.
    """

    latent: torch.Tensor
    structure: torch.Tensor
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
        known = [f.name for f in dataclasses.fields(DecoderConfig)]
        for name in settings:
            if name not in known:
                raise UsageError(f"the decoder has no setting {name!r}; known: {', '.join(known)}")
        self.config = dataclasses.replace(config or DecoderConfig(), **settings)
        self.schema = schema
        for name in parents:
            schema[name]
        self.parents = tuple(name for name in schema.names if name in set(parents))
        if not self.parents:
            raise UsageError(
                "the decoder needs at least one attribute that is a parent of the image; add `attribute -> image` to the graph"
            )
        self.image_channels = 0
        self.report: FitReport | None = None
        self._net: VelocityNet | None = None

    # -- learning ------------------------------------------------------------------------------------------------

    def fit(self, dataset: AttributeDataset, seed: int = 0, progress: bool = True) -> DiffusionDecoder:
        """Train on the factual images.

        Raises:
            DataError: images of different sizes, or a value outside the schema.
            CfaugError: the loss became NaN.
        """
        images = load_images(dataset, progress=progress)
        self.schema = self.schema.fit(dataset.table)
        self.image_channels = images.shape[1]
        self._net = self._build(max(images.shape[2:]), seed)
        self.report = train_velocity(
            self._net,
            images,
            self._condition(dataset.table),
            self._cells(dataset.table),
            self.config,
            self._blocks(),
            seed=seed,
            progress=progress,
        )
        return self

    def _build(self, size: int, seed: int) -> VelocityNet:
        patch = self.config.patch or (1 if size <= 8 else 2 if size <= 16 else 4)
        self.config = dataclasses.replace(self.config, patch=patch)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = VelocityNet(
                self.image_channels,
                self.schema.width(self.parents) + len(self.parents),
                self.config.structure,
                patch,
                self.config.channels,
            )
        return net.to(self.config.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload,no-any-return]

    @property
    def net(self) -> VelocityNet:
        """The trained network; UsageError before :meth:`fit` or :meth:`load`."""
        if self._net is None:
            raise UsageError("this decoder is not trained yet; call fit(dataset) or load a saved model first")
        return self._net

    # -- attributes ----------------------------------------------------------------------------------------------

    def _condition(self, table: pd.DataFrame) -> torch.Tensor:
        """(B, D + P): the encoded parents, then one presence flag a parent (a hidden block is zero and flagged so)."""
        present = torch.tensor(table[list(self.parents)].notna().to_numpy(), dtype=torch.float32)
        return torch.cat([torch.from_numpy(self.schema.encode(table, self.parents)), present], dim=1)

    def _blocks(self) -> list[torch.Tensor]:
        """For each parent, the columns of the condition that belong to it."""
        width = self.schema.width(self.parents)
        blocks = self.schema.blocks(self.parents)
        return [
            torch.tensor([*range(blocks[name].start, blocks[name].stop), width + i])
            for i, name in enumerate(self.parents)
        ]

    def _cells(self, table: pd.DataFrame) -> torch.Tensor:
        """(B,): the number of training images with the same attributes (continuous ones by quartile)."""
        columns = {}
        for name in self.parents:
            column = table[name].to_numpy()
            continuous = self.schema[name].kind == "continuous"
            columns[name] = np.searchsorted(np.quantile(column, [0.25, 0.5, 0.75]), column) if continuous else column
        cells = pd.DataFrame(columns).groupby(list(columns), dropna=False).ngroup().to_numpy()
        return torch.from_numpy(np.bincount(cells)[cells].astype(np.float64))

    # -- the three verbs -----------------------------------------------------------------------------------------

    def abduct(self, image: torch.Tensor, attributes: pd.DataFrame) -> ImageNoise:
        """Infer the exogenous noise of factual images.

        Args:
            image: x, shape (B, C, H, W), float, in [-1, 1].
            attributes: B rows of *factual* values.

        Raises:
            UsageError: another number of channels or rows than expected.
        """
        if not image.is_floating_point() or float(image.abs().max()) > 1.001:
            raise UsageError(
                f"expected float images in [-1, 1], but {image.dtype} up to {float(image.abs().max()):.0f} came; "
                "for uint8 write image / 127.5 - 1"
            )
        net, device = self.net, self.config.device
        if image.ndim != 4 or image.shape[1] != self.image_channels or len(image) != len(attributes):
            raise UsageError(
                f"expected images (B, {self.image_channels}, H, W) and B attribute rows, but {tuple(image.shape)} and "
                f"{len(attributes)} rows came; this decoder was trained on {self.image_channels}-channel images"
            )
        height, width = image.shape[2:]
        padding = (0, -width % net.multiple, 0, -height % net.multiple)
        padded = F.pad(image.to(device), padding, mode="replicate")
        structure = structure_map(padded, self.config.structure)
        condition = self._condition(attributes).to(device)
        with torch.inference_mode():
            latent = integrate(
                lambda x, t: self._velocity(x, t, condition, structure), padded, 0.0, 1.0, self.config.steps
            )
        return ImageNoise(latent, structure, (height, width), image.device)

    def predict(
        self, noise: ImageNoise, attributes: pd.DataFrame, affected: Sequence[Collection[str]] | None = None
    ) -> torch.Tensor:
        """Render the noise under given attributes.

        Args:
            noise: from :meth:`abduct`.
            attributes: B rows of *counterfactual* values.
            affected: for each row, the intervened attributes and their descendants; only these are guided when
                ``guidance`` is not 1 (decoupled guidance, Xia et al., 2025, arXiv 2506.14399).

        Returns:
            x', shape (B, C, H, W), in [-1, 1].
        """
        condition = self._condition(attributes).to(self.config.device)
        rest = condition.clone()
        guided = self.config.guidance != 1 and affected is not None
        if guided:
            for row, names in enumerate(affected or ()):
                for name, block in zip(self.parents, self._blocks(), strict=True):
                    if name in names:
                        rest[row, block] = 0

        def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            full = self._velocity(x, t, condition, noise.structure)
            if not guided:
                return full
            part = self._velocity(x, t, rest, noise.structure)
            return part + self.config.guidance * (full - part)

        with torch.inference_mode():
            image = integrate(velocity, noise.latent, 1.0, 0.0, self.config.steps)
        height, width = noise.size
        return image[..., :height, :width].clamp(-1, 1).to(noise.device)

    def _velocity(
        self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor, structure: torch.Tensor
    ) -> torch.Tensor:
        with torch.autocast(torch.device(self.config.device).type, torch.bfloat16):
            return self.net(x, t, condition, structure).float()  # type: ignore[no-any-return]

    # -- disk ----------------------------------------------------------------------------------------------------

    @property
    def digest(self) -> str:
        """sha256 (hex) over the description and every weight."""
        content = hashlib.sha256(json.dumps(self._description(), sort_keys=True).encode())
        for name, tensor in sorted(self.net.state_dict().items()):
            content.update(name.encode())
            content.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return content.hexdigest()

    def _description(self) -> dict[str, Any]:
        config = dataclasses.asdict(self.config)
        config.pop("device")
        return {
            "format": 1,
            "kind": "diffusion",
            "config": config,
            "schema": self.schema.to_json(),
            "parents": list(self.parents),
            "image_channels": self.image_channels,
        }

    def save(self, directory: str | Path) -> None:
        """Write ``decoder.safetensors`` and ``decoder.json`` (description and digest)."""
        from safetensors.torch import save

        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.net.state_dict().items()}
        replace_file(directory / "decoder.safetensors", save(weights))
        report = dataclasses.asdict(self.report) if self.report else None
        content = {**self._description(), "digest": self.digest, "training": report}
        replace_file(directory / "decoder.json", json.dumps(content, indent=1, sort_keys=True).encode())

    @classmethod
    def load(cls, directory: str | Path, device: str = "cpu") -> DiffusionDecoder:
        """Read what :meth:`save` wrote.

        Raises:
            ShardError: a missing, truncated or altered checkpoint.
        """
        from safetensors.torch import load_file

        directory = Path(directory)
        advice = "train it again with `cfaug fit RECIPE.yaml --out DIR --overwrite`"
        try:
            content = json.loads((directory / "decoder.json").read_text(encoding="utf-8"))
            config = DecoderConfig(**{**content["config"], "device": device})
            decoder = cls(Schema.from_json(content["schema"]), content["parents"], config)
            decoder.image_channels = int(content["image_channels"])
            decoder._net = decoder._build(0, seed=0)
            decoder._net.load_state_dict(load_file(directory / "decoder.safetensors", device=device))
            decoder.report = FitReport(**content["training"]) if content["training"] else None
            found, expected = decoder.digest, str(content["digest"])
        except Exception as error:  # JSON, safetensors and torch each have their own
            reason = " ".join(str(error).split())[:160]
            raise ShardError(
                f"corrupt checkpoint in {directory}: expected decoder.json and decoder.safetensors as saved, but {reason}; {advice}"
            ) from None
        if found != expected:
            raise ShardError(
                f"corrupt checkpoint in {directory}: expected digest {expected[:12]}, but {found[:12]} came; {advice}"
            )
        return decoder

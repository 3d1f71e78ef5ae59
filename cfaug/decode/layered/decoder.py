"""An image mechanism of layers, which needs no training: x = m f + (1 - m) b, and an intervention redraws its own layer only.

    abduct:   n = (x, m, seed): the image itself, the mask of its object, and the seed of the draws to come
    predict:  the background of a training image with the wanted value replaces b; the colours or the surface of one replace f

What is not redrawn stays bit by bit, so nothing leaks through the noise, and a null intervention returns the image. Nothing here
looks at the target: by construction p(layer given its attributes) is the same for every class, at any confounding. What remains
to be measured are the seam, the rim, the outline of the mask and the fillings (``cfaug evaluate``). Independent mechanisms of
shape, object and background are those of Counterfactual Generative Networks (Sauer & Geiger, 2021, arXiv 2101.06046), which learn them.

A composite whose wanted value is the one that the image has is redrawn too, from another image: so "has a seam" does not say
"is counterfactual". Only do() leaves an image as it is. A hidden background, do(x=None), is one colour: an *invariant* sample, whose
label must be read from the object (Chang, Adam & Goldenberg, 2021, arXiv 2106.01127).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cfaug.config import DecoderConfig
from cfaug.data import AttributeDataset, Schema
from cfaug.data.files import expand
from cfaug.data.images import Pixels
from cfaug.data.micro_batch import Sources
from cfaug.data.source_types import TRAINED
from cfaug.decode import save_decoder
from cfaug.decode.diffusion.decoder import DiffusionDecoder
from cfaug.decode.layered import compositing
from cfaug.decode.layered.bank import Bank, make_bank
from cfaug.decode.layered.layers import LAYERS, check_layers
from cfaug.decode.layered.object_decoder import ObjectDecoder
from cfaug.decode.layered.recolour import transferred
from cfaug.decode.mechanism import Capabilities, differing
from cfaug.decode.pixel_mechanism import PixelMechanism, as_images
from cfaug.errors import UsageError

_BLANK = 0x424C4E4B  # sets these draws apart from others with the row's seed


def _blank(image: Pixels, seed: int) -> Pixels:
    """A background that shows nothing: one colour, drawn by the seed, because one for all would be a value itself."""
    colour = np.random.default_rng([seed, _BLANK]).integers(0, 256, image.shape[2], dtype=np.uint8)
    return np.broadcast_to(colour, image.shape).copy()


@dataclass(frozen=True)
class LayerNoise:
    """What abduction returns: uint8 images (B, H, W, C), masks (B, H, W), and each row's key, seed and factual values."""

    images: Pixels
    masks: Pixels
    keys: Sequence[str]
    seeds: Sequence[int]
    table: pd.DataFrame
    device: torch.device | str = "cpu"


class LayeredDecoder(PixelMechanism):
    """Layers of training images, composed.

    Args:
        schema: the attributes.
        parents: the image's parents in the causal graph.
        config: the settings; ``config.layers`` says which attribute lives in which layer.
        settings: single fields of ``config`` to change.

    Raises:
        UsageError: an attribute that is in two layers or not a parent, an unknown layer or setting.
    """

    kind = "layered"

    def __init__(
        self, schema: Schema, parents: Collection[str], config: DecoderConfig | None = None, **settings: Any
    ) -> None:
        config = config or DecoderConfig(kind="layered")
        self.config = dataclasses.replace(config, **settings)
        super().__init__(schema, parents)
        self.layers = check_layers(self.config.layers, self.parents, schema)
        self.masks = ""
        """Digest of the source of the masks that the bank was made with."""
        self._banks: dict[str, Bank] = {}
        own = [name for name, layer in self.layers.items() if layer == "foreground"]
        self._objects = (
            ObjectDecoder(schema, own, self.config) if own and self.config.composite.redraw == "diffusion" else None
        )

    @property
    def capabilities(self) -> Capabilities:
        """It needs masks, redraws an intervention to the factual value too, returns the image under none, and hides backgrounds."""
        hides = frozenset(name for name, layer in self.layers.items() if layer == "background")
        return Capabilities(
            "exact",
            needs_masks=True,
            redraws_own_value=True,
            stochastic=True,
            hides=hides,
            source_type="compositeCapture" if self._objects is None else TRAINED,
        )

    # -- the bank ------------------------------------------------------------------------------------------------

    def fit(self, dataset: AttributeDataset, seed: int = 0, progress: bool = True) -> LayeredDecoder:
        """Collect the banks: at most ``composite.bank`` training images for each combination of a layer's values.

        Args:
            dataset: the training images, with masks.
            seed: which images are kept where there are more.
            progress: show a bar.

        Raises:
            DataError: no masks, images of different sizes, or no image with a value whose mask leaves its layer to be seen.
        """
        self._fit_schema(dataset)
        self.masks = str(getattr(dataset, "mask_digest", "given"))
        table = self.schema.canonical(dataset.table)
        for layer in LAYERS:
            own = [name for name, place in self.layers.items() if place == layer]
            if own:
                self._banks[layer] = make_bank(layer, own, dataset, table, self.config.composite, seed, progress)
        if self._objects is not None:
            self._objects.fit(dataset, seed, progress)
            self.report = self._objects.report
        return self

    # -- abduction and prediction --------------------------------------------------------------------------------

    def abduct(self, sources: Sources) -> LayerNoise:
        """Keep the images with their masks. UsageError without masks, or for images of another size than the bank's."""
        masks = sources.mask_pixels
        if masks is None:
            raise UsageError(
                "expected masks (B, 1, H, W) for this decoder, got none; pass masks=..., or name them in data.masks"
            )
        bank = next(iter(self._fitted().values()))
        if tuple(sources.images.shape[2:]) != bank.images.shape[1:3] or sources.images.shape[1] != bank.images.shape[3]:
            raise UsageError(
                f"expected images of {bank.images.shape[3]} channels and {bank.images.shape[2]}x{bank.images.shape[1]} px, as the decoder was "
                f"fitted on, got {sources.images.shape[1]} channels and {sources.images.shape[3]}x{sources.images.shape[2]}"
            )
        return LayerNoise(sources.pixels, masks, sources.keys, sources.seeds, sources.table, sources.images.device)

    def predict(
        self,
        noise: LayerNoise,
        attributes: pd.DataFrame,
        affected: Sequence[Collection[str]] | None = None,
        strength: float | None = None,
    ) -> torch.Tensor:
        """The images with the layers of the affected attributes redrawn; of ``affected`` None, those that differ.

        Raises:
            UsageError: a strength other than 1, or an affected attribute that lives in no layer.
            CfaugError: no training image has the wanted values.
        """
        if strength not in (None, 1):
            raise UsageError(
                f"expected no strength for layers, which are exchanged as a whole, got {strength}; leave it out"
            )
        if affected is None:
            affected = differing(noise.table, attributes, self.parents)
        redrawn = self._redrawn_objects(noise, attributes, affected)
        made = [self._redrawn(noise, i, attributes, names, redrawn.get(i)) for i, names in enumerate(affected)]
        return as_images(made, noise.device)

    def _redrawn_objects(
        self, noise: LayerNoise, attributes: pd.DataFrame, affected: Sequence[Collection[str]]
    ) -> dict[int, Pixels]:
        """Row -> its object as the diffusion decoder redraws it; empty where objects are redrawn from the bank."""
        if self._objects is None:
            return {}
        own = [{name for name in names if self.layers.get(name) == "foreground"} for names in affected]
        rows = [i for i, names in enumerate(own) if names]
        if not rows:
            return {}
        made = self._objects.redrawn(
            noise.images[rows], noise.masks[rows], noise.table.iloc[rows], attributes.iloc[rows], [own[i] for i in rows]
        )
        return dict(zip(rows, made, strict=True))

    def _redrawn(
        self, noise: LayerNoise, i: int, attributes: pd.DataFrame, names: Collection[str], object_: Pixels | None
    ) -> Pixels:
        composite = self.config.composite
        image: Pixels = noise.images[i]
        mask: Pixels = noise.masks[i]
        if unknown := sorted(set(names) - set(self.layers)):
            raise UsageError(
                f"expected an intervention on {', '.join(self.layers)}, got one that changes {unknown[0]}, which lives in no layer; name "
                "its layer in decoder.layers"
            )
        places = {self.layers[name] for name in names}
        if not places:
            return image
        row = {name: attributes[name].iloc[i] for name in self.layers}
        mask = compositing.softened(mask, composite.feather)
        original = image
        if "foreground" in places and (mask >= compositing.SURE).any():
            image = self._recoloured(image, mask, noise, i, row) if object_ is None else object_
        if "background" not in places:
            return compositing.on_background(image, mask, original) if image is not original else image
        if all(pd.isna(row[name]) for name in names if self.layers[name] == "background"):
            return compositing.on_background(image, mask, _blank(image, noise.seeds[i]))
        bank = self._banks["background"]
        seen = mask < compositing.SURE
        light = float(original[seen].mean()) if seen.any() else 0.0
        donor = bank.donor(
            self._wanted("background", row),
            noise.keys[i],
            mask,
            light,
            composite.partner,
            composite.partners,
            noise.seeds[i],
        )
        return compositing.on_background(image, mask, bank.images[donor])

    def _recoloured(self, image: Pixels, mask: Pixels, noise: LayerNoise, i: int, row: Mapping[str, Any]) -> Pixels:
        bank, composite = self._banks["foreground"], self.config.composite
        sure = mask >= compositing.SURE
        light = float(image[sure].mean())
        wanted = self._wanted("foreground", row)
        # the donor's object has to cover ours: its hole is what it is not
        partner = composite.partner if composite.redraw == "surface" else "random"
        donor = bank.donor(wanted, noise.keys[i], 255 - mask, light, partner, composite.partners, noise.seeds[i] + 1)
        if composite.redraw == "surface":
            redrawn: Pixels = bank.images[donor]
            return redrawn
        return transferred(image, mask, bank.colours[donor])

    def _wanted(self, layer: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """The values that a donor must have; one that the row does not know is left to chance."""
        return {name: row[name] for name, place in self.layers.items() if place == layer and not pd.isna(row[name])}

    def _fitted(self) -> dict[str, Bank]:
        if not self._banks:
            raise UsageError("this decoder has no bank yet; call fit(dataset) or load a saved model first")
        return self._banks

    # -- disk ----------------------------------------------------------------------------------------------------

    @property
    def digest(self) -> str:
        """sha256 (hex) over the description and the banks."""
        return save_decoder.digest(self._description(), self._weights())

    def save(self, directory: str | Path) -> None:
        """Write ``decoder.safetensors`` (the banks) and ``decoder.json``; a diffusion decoder of the objects into ``objects``."""
        if self._objects is not None:
            self._objects.decoder.save(expand(directory) / "objects")
        save_decoder.save(directory, self._description(), self._weights(), self.report)

    def _description(self) -> dict[str, Any]:
        return {
            "format": save_decoder.FORMAT,
            "kind": self.kind,
            "layers": dict(self.layers),
            "composite": dataclasses.asdict(self.config.composite),
            "mask": {**self.config.mask, "path": None},
            "masks": self.masks,
            "schema": self.schema.to_json(),
            "parents": list(self.parents),
            "objects": None if self._objects is None else self._objects.decoder.digest,
            "banks": {
                layer: {"keys": bank.keys.tolist(), "values": {name: v.tolist() for name, v in bank.values.items()}}
                for layer, bank in self._fitted().items()
            },
        }

    def _weights(self) -> dict[str, torch.Tensor]:
        found = {}
        for layer, bank in self._fitted().items():
            for name in ("images", "light", "colours"):
                found[f"{layer}.{name}"] = torch.from_numpy(getattr(bank, name))
            found[f"{layer}.holes"] = torch.from_numpy(np.packbits(bank.holes, axis=None))
        return found

    @classmethod
    def load(cls, directory: str | Path, device: str = "cpu") -> LayeredDecoder:
        """Read what :meth:`save` wrote. ShardError for damaged files, UsageError for those of a different version."""
        content, weights, report = save_decoder.load(directory)
        layers: dict[str, list[str]] = {}
        for name, layer in content["layers"].items():
            layers.setdefault(layer, []).append(name)
        schema = Schema.from_json(content["schema"])
        config = DecoderConfig(kind="layered", layers=layers, composite=content["composite"], mask=content["mask"])
        decoder = cls(schema, content["parents"], config)
        decoder.masks, decoder.report = content["masks"], report
        if decoder._objects is not None:
            decoder._objects.decoder = DiffusionDecoder.load(expand(directory) / "objects", device)
            if decoder._objects.decoder.digest != content["objects"]:
                raise save_decoder.corrupt(directory, "a decoder of objects of another model")
        for layer, said in content["banks"].items():
            images = weights[f"{layer}.images"].numpy()
            holes = np.unpackbits(weights[f"{layer}.holes"].numpy(), count=int(np.prod(images.shape[:3])))
            decoder._banks[layer] = Bank(
                images,
                holes.reshape(images.shape[:3]).astype(bool),
                weights[f"{layer}.light"].numpy(),
                weights[f"{layer}.colours"].numpy(),
                np.array(said["keys"], dtype=object),
                {name: np.array(values, dtype=object) for name, values in said["values"].items()},
            )
        return decoder

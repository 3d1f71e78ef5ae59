"""A pretrained pipeline as image mechanism: an intervention is words, and the pipeline edits the source by them.

    abduct:   n = (x, m, seed)
    predict:  x' = paste(x, region, edit(x, words(a'), region, seed))     region: that of the layers of what was intervened on, or all
              null intervention:  paste(x, region, decode(encode(x)))

Pixels outside the region are the source's, bit by bit; where layers of both kinds are intervened on, the background is drawn first and
then the object in it, each by its own words, because a whole image drawn anew would keep no outline. A null intervention goes through the autoencoder and back, so that its traces do
not say "is counterfactual"; an intervention to the value that an image has is edited as any other. Each row has a generator of its own
seed. Rows that a micro-batch is padded with are not edited again. Nothing says that an editor changes what was asked for and nothing
else: its answers go past the gate.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from cfaug.data import AttributeDataset, Schema
from cfaug.data.files import expand, replace_file
from cfaug.data.images import Pixels
from cfaug.data.micro_batch import Sources
from cfaug.decode import save_decoder
from cfaug.decode.editors import adapters, guidance, open_pipeline
from cfaug.decode.editors.backends import CLASSES, Traits
from cfaug.decode.editors.passes import EditNoise, Passes
from cfaug.decode.editors.words import Words
from cfaug.decode.layered.layers import check_layers
from cfaug.decode.mechanism import Capabilities, differing
from cfaug.decode.pixel_mechanism import PixelMechanism, as_images
from cfaug.decoder_config import DecoderConfig
from cfaug.editor_config import EditorConfig, GuideConfig
from cfaug.errors import ShardError, UsageError, lacks_memory

PLACE = "editor.json"
"""Where the pipeline lies on this machine, and the sums of its files: beside the model, and not part of it."""


class PretrainedDecoder(PixelMechanism):
    """A pipeline of diffusers that edits images.

    Args:
        schema: the attributes.
        parents: the image's parents in the causal graph.
        config: ``config.editor`` names the pipeline and the words; ``config.layers``, where there are masks, which attribute lives in
            which layer, so that nothing else is touched.
        settings: single fields of ``config.editor`` to change.

    Raises:
        UsageError: no pipeline, or one that is refused (:mod:`cfaug.decode.editors.open_pipeline`); attributes that cannot be said.
    """

    kind = "pretrained"

    def __init__(
        self, schema: Schema, parents: Collection[str], config: DecoderConfig | None = None, **settings: Any
    ) -> None:
        config = config or DecoderConfig(kind="pretrained")
        self.config = dataclasses.replace(config, editor=dataclasses.replace(config.editor, **settings))
        super().__init__(schema, parents)
        self.layers = check_layers(self.config.layers, self.parents, schema) if self.config.layers else {}
        self.place = open_pipeline.find(self.editor)
        self.pipeline_class = open_pipeline.class_of(self.place, self.editor)
        self.multiple = open_pipeline.multiple_of(self.place, self.traits)
        if self.traits.mask and not self.layers:
            raise UsageError(
                "decoder.layers: expected the layers of attributes for a pipeline that in-paints, got none; write layers: {background: [...]} and "
                "name the masks in data.masks"
            )
        if self.editor.lora.steps or self.editor.abduction.steps:
            adapters.check_class(self.pipeline_class)
        scheduler = self.editor.scheduler or open_pipeline.scheduler_of(self.place)
        guidance.check(self.editor.guide, self.traits, self.pipeline_class, scheduler)
        self._files: open_pipeline.Files = {}
        self._guide_files: open_pipeline.Files = {}
        self._lora: dict[str, torch.Tensor] = {}

    @property
    def editor(self) -> EditorConfig:
        """The settings of the pipeline."""
        return self.config.editor

    @property
    def traits(self) -> Traits:
        """What the pipeline's class can do."""
        return CLASSES[self.pipeline_class]

    @property
    def words(self) -> Words:
        """do() as words."""
        lora = self.editor.lora
        return Words(self.schema, self.parents, self.editor.template, self.editor.words, lora.tokens and lora.steps > 0)

    @property
    def capabilities(self) -> Capabilities:
        """As the table of pipeline classes has it; null interventions are round trips of the autoencoder."""
        free = self.editor.size is not None
        return Capabilities(
            "round_trip", needs_masks=bool(self.layers), keeps_outside_mask=bool(self.layers), redraws_own_value=True,
            stochastic=self.traits.draws, min_side=1 if free else self.traits.least, multiple=1 if free else self.multiple,
        )  # fmt: skip

    @property
    def device(self) -> str:
        """Where the pipeline computes."""
        return self.config.device

    @property
    def dtype(self) -> str:
        """Of the pipeline's weights."""
        return self.editor.dtype

    def fit(
        self, dataset: AttributeDataset, seed: int = 0, progress: bool = True, checkpoint: Path | None = None
    ) -> PretrainedDecoder:
        """Take the sums of the pipeline's files and, where ``editor.lora.steps`` says so, train adapters on the images.

        Args:
            dataset: the training images.
            seed: of the training.
            progress: show a bar.
            checkpoint: a directory in which a killed training finds itself.

        Raises:
            UsageError: a pipeline whose class cannot be trained here.
        """
        self._fit_schema(dataset)
        self._files = open_pipeline.hashed(self.place, self._files)
        if self.editor.guide.clip is not None:
            self._guide_files = open_pipeline.hashed(expand(self.editor.guide.clip), self._guide_files, "*")
        if self.editor.lora.steps:
            size = open_pipeline.size_of(dataset.image(0).shape[:2], self.editor, self.multiple, self.traits.least)
            self._lora, self.report = adapters.train(
                self.pipe, self.words, self.editor, size, dataset, seed, progress, checkpoint
            )
        return self

    def check(self, size: tuple[int, ...], changed: Collection[str]) -> None:
        """UsageError where images of (height, width) cannot be edited, or interventions on ``changed`` cannot be said."""
        open_pipeline.size_of(size, self.editor, self.multiple, self.traits.least)
        said = [name for name in changed if name in self.parents]
        self.words.check(said)
        folders = [self.place / "tokenizer", *([expand(self.editor.guide.clip)] if self.editor.guide.clip else [])]
        longest = self.words.longest(said)
        for folder in folders:
            open_pipeline.check_length(folder, longest)

    # -- abduction and prediction ----------------------------------------------------------------------------------

    def abduct(self, sources: Sources) -> EditNoise:
        """Keep the images with their masks and seeds. UsageError without masks where layers are named."""
        masks = sources.mask_pixels
        if self.layers and masks is None:
            raise UsageError(
                "expected masks (B, 1, H, W) for this decoder, got none; pass masks=..., or name them in data.masks"
            )
        return EditNoise(sources.pixels, masks, sources.keys, sources.seeds, sources.table, sources.images.device)

    def predict(
        self,
        noise: EditNoise,
        attributes: pd.DataFrame,
        affected: Sequence[Collection[str]] | None = None,
        strength: float | None = None,
    ) -> torch.Tensor:
        """The images, edited by the words of the affected attributes; of ``affected`` None, of those that differ.

        Raises:
            UsageError: a strength other than 1, or a value without words.
            MemoryError: the pipeline does not fit, with what helps.
        """
        if strength not in (None, 1):
            raise UsageError(
                f"expected no strength for a pipeline, got {strength}; set decoder.editor.guidance or decoder.editor.strength"
            )
        changed = differing(noise.table, attributes, self.parents) if affected is None else affected
        words = self.words
        prompts = words.prompts(attributes, changed)
        size = open_pipeline.size_of(noise.images.shape[1:3], self.editor, self.multiple, self.traits.least)
        jobs: dict[tuple[Any, ...], int] = {}  # what is the same is made once
        which = []
        for i, own in enumerate(changed):
            job = (noise.keys[i], noise.seeds[i], prompts[i], frozenset(own)) if own else (noise.keys[i],)
            which.append(jobs.setdefault(job, i))
        made: dict[int, Pixels] = {}
        nulls, edited = ([i for i in jobs.values() if bool(changed[i]) is edits] for edits in (False, True))
        try:
            with torch.inference_mode(mode=not self.editor.abduction.steps):
                passes = Passes(self.pipe, self.traits, self.editor, self.layers, words)
                made.update(passes.round_trips(noise, nulls, size))
                made.update(passes.edits(noise, edited, attributes, changed, size))
        except (MemoryError, RuntimeError) as error:
            if not lacks_memory(error):
                raise
            raise MemoryError(
                "not enough memory for the pipeline: set decoder.editor.batch: 1, dtype: bfloat16, slicing: true, then offload: model, then "
                "offload: sequential; or a smaller decoder.editor.size"
            ) from None
        return as_images([made[job] for job in which], noise.device)

    # -- the pipeline --------------------------------------------------------------------------------------------------

    @cached_property
    def pipe(self) -> Any:
        """The pipeline, loaded once in each process."""
        with torch.inference_mode(False):  # so that an adapter can be trained on it
            pipe = open_pipeline.load(self.place, self.pipeline_class, self.editor, self.device)
            if self._lora:
                adapters.put_in(pipe, self._lora)
        return pipe

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "pipe"}

    # -- disk ----------------------------------------------------------------------------------------------------------

    @property
    def digest(self) -> str:
        """sha256 (hex) of settings, schema, adapters and every file of the pipeline."""
        return save_decoder.digest(self._description(), self._lora)

    def _description(self) -> dict[str, Any]:
        if not self._files:
            raise UsageError("expected a fitted decoder, got one that was not; call fit(dataset) first")
        editor = {**dataclasses.asdict(self.editor), "pipeline": None}
        guide = {**editor.pop("guide"), "clip": open_pipeline.sums(self._guide_files)}
        return {
            "format": save_decoder.FORMAT,
            "kind": self.kind,
            "class": self.pipeline_class,
            "editor": editor,
            **({"guide": guide} if self._guide_files else {}),
            "layers": self.config.layers,
            "schema": self.schema.to_json(),
            "parents": list(self.parents),
            "files": open_pipeline.sums(self._files),
        }

    def save(self, directory: str | Path) -> None:
        """Write ``decoder.json`` (settings and sums), ``decoder.safetensors`` (adapters), and ``editor.json`` (where the pipeline is)."""
        directory = expand(directory)
        save_decoder.save(directory, self._description(), self._lora, self.report)
        here: dict[str, Any] = {"pipeline": str(self.place.absolute()), "files": self._files}
        if self.editor.guide.clip is not None:
            here |= {"clip": str(expand(self.editor.guide.clip).absolute()), "clip_files": self._guide_files}
        replace_file(directory / PLACE, json.dumps(here, indent=1, sort_keys=True).encode())

    @classmethod
    def load(cls, directory: str | Path, device: str = "cpu") -> PretrainedDecoder:
        """Read what :meth:`save` wrote.

        Raises:
            ShardError: damaged files, or a pipeline other than the one that the model was made with.
            UsageError: the pipeline is no longer where it was.
        """
        content, weights, report = save_decoder.load(directory)
        try:
            here: Mapping[str, Any] = json.loads((expand(directory) / PLACE).read_text(encoding="utf-8"))
            place = str(here["pipeline"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise save_decoder.corrupt(directory, error) from None
        if not Path(place).is_dir():
            raise UsageError(
                f"{expand(directory) / PLACE}: expected the pipeline's directory, got {place}, which is not there; correct the path in it"
            )
        guide = {**content["guide"], "clip": here.get("clip")} if "guide" in content else {}
        editor = EditorConfig(**{**content["editor"], "pipeline": place, "guide": GuideConfig(**guide)})
        config = DecoderConfig(kind="pretrained", layers=content["layers"], editor=editor, device=device)
        decoder = cls(Schema.from_json(content["schema"]), content["parents"], config)
        decoder._files = open_pipeline.hashed(decoder.place, here.get("files", {}))
        decoder._lora, decoder.report = weights, report
        if editor.guide.clip is not None:
            decoder._guide_files = open_pipeline.hashed(expand(editor.guide.clip), here.get("clip_files", {}), "*")
        if open_pipeline.sums(decoder._guide_files) != content.get("guide", {}).get("clip", {}):
            raise ShardError(
                f"{editor.guide.clip}: expected the CLIP model that chose when the model was made, got another; put the old file back, or run "
                "`cfaug fit` again with --overwrite"
            )
        found = open_pipeline.sums(decoder._files)
        if found != content["files"]:
            name = next(
                name for name in sorted({*found, *content["files"]}) if found.get(name) != content["files"].get(name)
            )
            raise ShardError(
                f"{place}: expected the pipeline that the model was made with, got another {name}; put the old file back, or run `cfaug fit` "
                "again with --overwrite"
            )
        return decoder

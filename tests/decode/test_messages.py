"""What the room says to the likeliest mistakes: one line, what was expected, what came, what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from helpers.small_decoder import floats, source, sources

from cfaug.causal import do
from cfaug.data import ArrayDataset
from cfaug.decode import Capabilities, CounterfactualModel, DiffusionDecoder, load_decoder
from cfaug.decode import save_decoder as storage
from cfaug.decode.diffusion.checkpoint import TrainingState, read, write
from cfaug.decode.diffusion.image_space import PixelSpace
from cfaug.errors import CfaugError, ShardError, UsageError


class Given(NamedTuple):
    data: ArrayDataset
    decoder: DiffusionDecoder
    model: CounterfactualModel
    folder: Path

    @property
    def x(self) -> torch.Tensor:
        return floats(self.data)

    @property
    def table(self) -> Any:
        return self.data.table.iloc[:8]

    def build(self, *parents: str, **settings: Any) -> DiffusionDecoder:
        return DiffusionDecoder(self.data.schema, parents or ("colour",), **settings)

    def predict(self, **options: Any) -> torch.Tensor:
        rows = options.pop("rows", 8)
        return self.decoder.predict(self.decoder.abduct(sources(self.x, self.table)), self.table.iloc[:rows], **options)

    def saved(self, **changes: Any) -> Path:
        self.decoder.save(self.folder)
        path = self.folder / "decoder.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        return self.folder

    def older(self) -> Path:
        storage.save(self.folder, {"kind": "diffusion", "format": storage.FORMAT - 1}, {}, None)
        return self.folder

    def masked(self) -> Any:
        class Masked(DiffusionDecoder):
            capabilities = Capabilities("exact", needs_masks=True)  # type: ignore[assignment]

        self.decoder.save(self.folder)
        return CounterfactualModel(self.model.scm, Masked.load(self.folder)).abduct(self.x, self.table)

    def resumed(self, **settings: Any) -> None:
        net = torch.nn.Linear(2, 2)
        state = TrainingState(net, None, torch.optim.AdamW(net.parameters()))
        state.average = type("Average", (), {"shadow_params": [p.detach().clone() for p in net.parameters()]})()
        write(self.folder, state, {"decoder.max_steps": 12})
        read(self.folder, state, settings)


@pytest.fixture
def given(data: ArrayDataset, decoder: DiffusionDecoder, model: CounterfactualModel, tmp_path: Path) -> Given:
    return Given(data, decoder, model, tmp_path)


TABLE: dict[str, tuple[Callable[[Given], Any], type[CfaugError], str]] = {
    "no parents": (lambda g: DiffusionDecoder(g.data.schema, []), UsageError, "at least one attribute that is a parent"),
    "unknown parent": (lambda g: g.build("hue"), UsageError, "hue"),
    "unknown setting": (lambda g: g.build(chanels=[8]), UsageError, "did you mean channels?"),
    "unknown sampler": (lambda g: g.build(sampler="euler"), UsageError, "decoder.sampler"),
    "steps": (lambda g: g.build(steps=0), UsageError, "decoder.steps"),
    "depth of nothing": (lambda g: g.build(steps=2, depth={"hue": 0.5}), UsageError, "got 'hue'"),
    "guidance": (lambda g: g.build(guidance=3.0, drop_attribute=0.0), UsageError, "never learns an image"),
    "four channels": (lambda g: PixelSpace(4), UsageError, "images of 1 or 3 channels, got 4"),
    "latents of nothing": (
        lambda g: g.build(space="latents").fit(g.data, progress=False), UsageError, "decoder.autoencoder for decoder.space",
    ),
    "not trained": (lambda g: g.build().abduct(sources(g.x, g.table)), UsageError, "not trained yet; call fit"),
    "save untrained": (lambda g: g.build().save(g.folder), UsageError, "not trained yet"),
    "no images": (lambda g: g.decoder.abduct(sources(g.x[:0], g.table[:0])), UsageError, "got none"),
    "grey images": (lambda g: g.model.abduct(g.x[:, :1], g.table), UsageError, "(B, 3, H, W) of 8x8 px"),
    "another size": (lambda g: g.model.abduct(g.x[..., :7], g.table), UsageError, "got (8, 3, 8, 7) and 8 rows"),
    "too few rows": (lambda g: g.model.abduct(g.x, g.table[:7]), UsageError, "and 7 rows; resize"),
    "uint8 images": (lambda g: g.model.abduct(g.x.byte(), g.table), UsageError, "write image / 127.5 - 1"),
    "NaN": (lambda g: g.model.abduct(g.x * torch.nan, g.table), UsageError, "pixels that are NaN"),
    "no masks": (lambda g: g.masked(), UsageError, "expected masks (B, 1, H, W) for this decoder, got none; pass masks="),
    "rows of a prediction": (lambda g: g.predict(rows=7), UsageError, "each of 8 images, got 7"),
    "strength": (lambda g: g.predict(affected=[{"colour"}] * 8, strength=float("nan")), UsageError, "from 0 up, got nan"),
    "strength alone": (lambda g: g.predict(strength=2.0), UsageError, "expected `affected`"),
    "unknown value": (lambda g: g.model.act(do(colour="mauve")), UsageError, "mauve"),
    "unknown attribute": (lambda g: g.model.act(do(color="red")), UsageError, "color"),
    "other parents": (
        lambda g: CounterfactualModel(g.model.scm, g.build()),
        UsageError, "in the graph, colour, glow, shape, got one for colour; build it with",
    ),
    "other schema": (
        lambda g: CounterfactualModel(g.model.scm, DiffusionDecoder(source(30).schema, g.decoder.parents)),
        UsageError, "got different schemas; fit both on the same table",
    ),
    "no model": (lambda g: CounterfactualModel.load(g.folder), ShardError, "a model.json that cannot be read"),
    "no decoder": (lambda g: load_decoder(g.folder), ShardError, "corrupt checkpoint"),
    "unknown kind": (lambda g: load_decoder(g.saved(kind="gan")), ShardError, "a decoder of kind 'gan'"),
    "edited": (lambda g: load_decoder(g.saved(parents=["colour"])), ShardError, "instead of"),
    "older format": (lambda g: load_decoder(g.older()), UsageError, "expected a decoder of format 3, got format 2; train"),
    "other training": (
        lambda g: g.resumed(**{"decoder.max_steps": 13}), UsageError, "expected decoder.max_steps = 12, as in the training checkpoint",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", list(TABLE))
def test_a_mistake_is_answered_in_one_line(case: str, given: Given) -> None:
    call, kind, fragment = TABLE[case]
    with pytest.raises(kind) as caught:
        call(given)
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)

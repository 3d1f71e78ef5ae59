"""What the directional score is worth as guidance: draws that it chooses from, beside steps along its gradient.

    python benchmarks/editor_guidance.py OUT --data DIR      after `editors.py train` and `editors.py toy`; a quarter of an hour on a core

A CLIP model is trained on unconfounded images of the toy (the real one has not seen the user's data either), the pipeline edits test
images by do(ground, colour), and other nets, trained on unconfounded images too, read what came out. Rows go to results/editors.jsonl.

    draws      `decoder.editor.guide.draws`: the best of K by the score
    gradient   `decoder.editor.guide.scale`: every step of the sampler along the score's gradient
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from editors import RESULTS, TEMPLATE, folders, opened, readers_of
from rows import cpu, record

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests")]

from train_editor import word_tokenizer  # noqa: E402

from cfaug.causal import do  # noqa: E402
from cfaug.data import FolderDataset, load_images  # noqa: E402
from cfaug.data.images import as_rgb, to_float, to_uint8  # noqa: E402
from cfaug.editor_config import GuideConfig  # noqa: E402

STEPS, BATCH, SIDE = 1500, 64, 28


def train_clip(place: Path, root: Path) -> None:
    """A text-image model of the toy's words, contrastive (Radford et al., 2021), saved as transformers does."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    torch.manual_seed(0)
    data = FolderDataset(root, "train", "digit", ["colour", "ground"], masks="mask")
    prompts = [TEMPLATE.format(colour=c, ground=g) for c, g in zip(data.table["colour"], data.table["ground"])]
    tokenizer = word_tokenizer(prompts)
    ends = {"pad_token_id": 1, "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, **ends}
    vision = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4}
    model = CLIPModel(
        CLIPConfig(
            text_config={**text, "vocab_size": len(tokenizer), "max_position_embeddings": 12},
            vision_config={**vision, "image_size": SIDE, "patch_size": 4}, projection_dim=64,
        )
    )  # fmt: skip
    processor = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    pixels = processor(images=[as_rgb(data.image(i)) for i in range(len(data))], return_tensors="pt")["pixel_values"]
    tokens = tokenizer(prompts, padding="max_length", return_tensors="pt")["input_ids"]
    said = torch.from_numpy(np.unique(prompts, return_inverse=True)[1])
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    annealed = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, total_steps=STEPS)
    for _ in range(STEPS):
        rows = torch.randint(0, len(data), (BATCH,))
        logits = model(
            input_ids=tokens[rows], pixel_values=pixels[rows] + 0.1 * torch.randn(BATCH, 1, 1, 1)
        ).logits_per_image
        same = (said[rows][:, None] == said[rows][None]).float()
        same /= same.sum(1, keepdim=True)
        loss = -sum((same * side.log_softmax(1)).sum(1).mean() for side in (logits, logits.T)) / 2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        annealed.step()
    for part in (model.eval(), tokenizer, processor):
        part.save_pretrained(place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--images", type=int, default=100)
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out = given.out.absolute()
    place, n = given.out / "clip", given.images
    if not place.exists():
        train_clip(place, folders(given)[1])
    inputs, _, _ = opened(given)
    readers, schema, test = readers_of(inputs), inputs.schema, inputs.test
    real, table = load_images(test, range(n), progress=False), test.table.iloc[:n]
    masks = torch.from_numpy(np.stack([test.mask(i) for i in range(n)]))[:, None].float() / 255
    rng = np.random.default_rng(0)
    wanted = {name: [str(v) for v in rng.choice(schema[name].categories, n)] for name in ("ground", "colour")}
    truth = {**wanted, "digit": [str(v) for v in table["digit"]]}
    ways: list[tuple[int, float]] = [(1, 0.0), (2, 0.0), (4, 0.0), (1, 0.03), (1, 0.1), (1, 0.3)]
    for draws, scale in ways:
        guide = GuideConfig(clip=str(place) if draws > 1 or scale else None, draws=draws, scale=scale)
        _, _, model = opened(given, guide=guide)
        began, made = time.perf_counter(), []
        for i in range(0, n, 25):
            own = slice(i, min(i + 25, n))
            noise = model.abduct(to_float(real[own]), table.iloc[own], list(range(n))[own], masks=masks[own])
            acts = [do(ground=g, colour=c) for g, c in zip(wanted["ground"][own], wanted["colour"][own])]
            made.append(to_uint8(model.act(acts).predict(noise)[0]))
        done = torch.cat(made)
        right = {
            name: round(float((net.predict(done).numpy() == np.asarray(schema.index(name, truth[name]))).mean()), 3)
            for name, net in readers.items()
        }
        what = {"what": "guidance", "draws": draws, "gradient": scale, "images": n, **right}
        record(
            RESULTS, {**what, "seconds_an_image": round((time.perf_counter() - began) / n, 2)}, cpu=cpu(),
            command="python benchmarks/editor_guidance.py OUT --data DIR",
        )  # fmt: skip


if __name__ == "__main__":
    main()

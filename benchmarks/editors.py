"""Pretrained pipelines as image mechanisms, on a toy whose pipeline can be trained here: digits in colours on textures, 28 px.

    python benchmarks/editors.py train OUT --data DIR        an in-painting pipeline of Stable Diffusion's class, half an hour on a core
    python benchmarks/editors.py toy OUT --data DIR          `cfaug run` with it: the table, and the gap to the oracle that is closed
    python benchmarks/editors.py overhead OUT --data DIR     `cfaug generate` beside a bare loop of the same calls, and the gain of batches
    python benchmarks/editors.py abduction OUT --data DIR    the doubly abductive scheme beside plain inversion: fidelity and editability

DIR holds mnist/ and wildlife_textures/. The data are those of `layers.py textured`, so its rows stand beside these. Rows go to
results/editors.jsonl.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from layers import textured_folder
from PIL import Image
from rows import cpu, mean_of_groups, record
from torch.nn import functional as F
from torchvision.transforms.functional import to_tensor

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[1] / "tests")]

from helpers import tiny_pipelines as tiny  # noqa: E402

from cfaug.config import load_recipe  # noqa: E402
from cfaug.data import FolderDataset, load_images  # noqa: E402
from cfaug.data.images import to_float, to_uint8  # noqa: E402
from cfaug.data.micro_batch import Sources  # noqa: E402
from cfaug.decode import CounterfactualModel  # noqa: E402
from cfaug.decode.editors import backends  # noqa: E402
from cfaug.decode.editors.open_pipeline import resized  # noqa: E402
from cfaug.editor_config import AbductionConfig  # noqa: E402
from cfaug.judge.accuracy import read_results  # noqa: E402
from cfaug.judge.tables import summarise  # noqa: E402
from cfaug.offline import Plan  # noqa: E402
from cfaug.offline.commit import open_destination  # noqa: E402
from cfaug.offline.make_shard import ShardWork  # noqa: E402
from cfaug.stages.checked_inputs import open_inputs  # noqa: E402
from cfaug.train import TensorImages, TrainSettings, train_classifier  # noqa: E402

RESULTS, RECIPES = HERE.parent / "results" / "editors.jsonl", HERE.parents[1] / "recipes"
TEMPLATE = "a {colour} digit on {ground}"
STEPS, BATCH, SIDE = {"autoencoder": 1000, "unet": 2500, "rare pairs": 1000}, 32, 32


def folders(given: argparse.Namespace) -> tuple[Path, Path]:
    return textured_folder(given.out / "textured_data", given.data, 0.95), textured_folder(
        given.out / "textured_oracle", given.data, 0.0
    )


def train(given: argparse.Namespace, name: str = "StableDiffusionInpaintPipeline") -> None:
    """Autoencoder, then U-Net and text encoder together, from scratch on the confounded training images, at the size that edits are made in."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel

    root, _ = folders(given)
    data = FolderDataset(root, "train", "digit", ["colour", "ground"], masks="mask")
    images = torch.stack([to_tensor(resized(data.image(i), (SIDE, SIDE))) for i in range(len(data))]) * 2 - 1
    masks = [Image.fromarray(data.mask(i)).resize((SIDE, SIDE), Image.Resampling.NEAREST) for i in range(len(data))]
    inside = torch.stack([to_tensor(mask) for mask in masks]) > 0.5
    prompts = [TEMPLATE.format(colour=c, ground=g) for c, g in zip(data.table["colour"], data.table["ground"])]
    torch.manual_seed(0)
    tokenizer = tiny._clip_tokenizer()
    tokenizer.model_max_length = 12
    tokenizer.add_tokens(
        sorted({word for prompt in prompts for word in prompt.split()})
    )  # a word is a token, not spelled
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=12, pad_token_id=1, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        **{**tiny.AUTOENCODER, "block_out_channels": (16, 32), "sample_size": SIDE}, latent_channels=4
    )
    unet = diffusers.UNet2DConditionModel(
        sample_size=SIDE // 2, in_channels=9, out_channels=4, layers_per_block=1, block_out_channels=(48, 96), norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64, attention_head_dim=4,
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=1000, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False
    )
    began = time.monotonic()

    usual = data.table.groupby(["colour", "ground"]).ngroup()
    common = torch.from_numpy((usual.map(usual.value_counts()) > len(data) / 50).to_numpy())

    def phase(name: str, nets: Sequence[Any], loss: Any, rate: float, rare: bool = False) -> None:
        """Train, unless it was trained before; ``rare``: half of each batch are images whose ground does not go with their colour."""
        kept = given.out / f"{name.replace(' ', '_')}.pt"
        if kept.exists():
            for net, state in zip(nets, torch.load(kept, weights_only=True)):
                net.load_state_dict(state)
        else:
            chance = torch.where(common, 1 / common.sum(), 1 / (~common).sum()) if rare else torch.ones(len(data))
            steps(nets, STEPS[name], loss, rate, chance)
            torch.save([net.state_dict() for net in nets], kept)
        for net in nets:
            net.eval().requires_grad_(False)

    def steps(nets: Sequence[Any], count: int, loss: Any, rate: float, chance: torch.Tensor) -> None:
        for net in nets:
            net.train().requires_grad_(True)
        weights = [weight for net in nets for weight in net.parameters()]
        average = diffusers.training_utils.EMAModel(weights, decay=0.995)
        optimiser = torch.optim.AdamW(weights, lr=rate)
        annealed = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=count)
        for step in range(count):
            value = loss(torch.multinomial(chance, BATCH, replacement=True))
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            optimiser.step()
            annealed.step()
            average.step(weights)
            if step % 100 == 0:
                print(step, round(float(value.detach()), 4), round(time.monotonic() - began), flush=True)
        average.copy_to(weights)

    def rebuilt(rows: torch.Tensor) -> torch.Tensor:
        posterior = vae.encode(images[rows]).latent_dist
        found: torch.Tensor = (
            vae.decode(posterior.sample()).sample - images[rows]
        ).abs().mean() + 1e-4 * posterior.kl().mean() / 784
        return found

    phase("autoencoder", [vae], rebuilt, 3e-3)
    regions = [inside, ~inside, torch.ones_like(inside)]

    def encoded(some: torch.Tensor) -> torch.Tensor:
        return torch.cat([vae.encode(part).latent_dist.mode() for part in some.split(500)])

    with torch.no_grad():
        latents = encoded(images)
        scale = float(1 / latents.std())
        vae.register_to_config(scaling_factor=scale)
        latents = latents * scale
        left = torch.stack([encoded(images * ~region) * scale for region in regions])
        small = torch.stack([F.interpolate(region.float(), size=latents.shape[2:]) for region in regions])
    tokens = torch.cat(
        [tokenizer([p], padding="max_length", return_tensors="pt")["input_ids"] for p in [*sorted(set(prompts)), ""]]
    )
    which = torch.tensor([sorted(set(prompts)).index(prompt) for prompt in prompts])

    def noise(rows: torch.Tensor) -> torch.Tensor:
        kind = torch.multinomial(torch.tensor([0.35, 0.55, 0.1]), len(rows), replacement=True)
        times, drawn = torch.randint(0, 1000, (len(rows),)), torch.randn(len(rows), *latents.shape[1:])
        noisy = scheduler.add_noise(latents[rows], drawn, times)
        wanted, place = torch.unique(
            torch.where(torch.rand(len(rows)) < 0.1, len(tokens) - 1, which[rows]), return_inverse=True
        )
        context = text(tokens[wanted])[0][place]
        found: torch.Tensor = F.mse_loss(
            unet(
                torch.cat([noisy, small[kind, rows], left[kind, rows]], 1), times, encoder_hidden_states=context
            ).sample,
            drawn,
        )
        return found

    phase("unet", [unet, text], noise, 1e-3)
    phase("rare pairs", [unet, text], noise, 5e-4, rare=True)
    parts = {"vae": vae, "text_encoder": text, "tokenizer": tokenizer, "unet": unet, "scheduler": scheduler}
    made = getattr(diffusers, name)(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    made.save_pretrained(given.out / "pipeline", safe_serialization=True)
    record(
        RESULTS,
        {"what": "trained", "seconds": round(time.monotonic() - began)},
        cpu=cpu(),
        command="python benchmarks/editors.py train OUT",
    )


def options(given: argparse.Namespace) -> list[str]:
    """Of the recipe for fully confounded digits, what makes it these data and this pipeline."""
    root, oracle = folders(given)
    return [
        f"--data.root={root}", f"--data.oracle={oracle}", "--data.source=folder", "--data.masks=mask", "--data.rho=null",
        "--data.train_images=null", "--data.val_images=null", "--name=textured_inpaint", "--attributes.spurious=[colour, ground]",
        "--graph=digit -> colour; digit -> ground; digit -> image; colour -> image; ground -> image",
        "--decoder.layers={background: [ground], foreground: [colour]}", "--decoder.mask.from=given", "--decoder.kind=pretrained",
        f"--decoder.editor.pipeline={given.out / 'pipeline'}", f"--decoder.editor.template={TEMPLATE}", "--decoder.editor.steps=6",
        "--decoder.editor.strength=1.0", "--decoder.editor.size=32", "--decoder.editor.guidance=2.0", "--decoder.editor.batch=25", "--generate.batch_size=25",
        "--generate.samples_per_shard=250", "--generate.workers=0", "--plan.per_image=1", "--gate.enabled=false", "--train.threads=1", "--train.selection=worst_group",
        "--train.methods=[erm, group_resampling, counterfactuals_only, cfaug, oracle]", "--train.seeds=[0, 1, 2]",
    ]  # fmt: skip


def toy(given: argparse.Namespace) -> None:
    out = given.out / "run"
    command = [
        sys.executable,
        "-m",
        "cfaug",
        "run",
        str(RECIPES / "confounded_mnist.yaml"),
        "--out",
        str(out),
        "--no-progress",
    ]
    before = time.perf_counter()
    subprocess.run([*command, *options(given)], check=True)
    rows = read_results(out / "results.jsonl")
    for one in summarise(rows):
        record(
            RESULTS,
            {
                "what": "toy", "method": one.method, "seeds": len(one.seeds), "worst_group": [round(v, 4) for v in one.worst],
                "mean_of_groups": round(mean_of_groups(rows, one.method), 4), "average": [round(v, 4) for v in one.average],
                "gap_closed": one.gap_closed, "seconds": round(time.perf_counter() - before, 1),
            },
            cpu=cpu(), command="python benchmarks/editors.py toy OUT --data DIR",
        )  # fmt: skip


def opened(given: argparse.Namespace, **editor: Any) -> tuple[Any, Any, Any]:
    """The run's training images, its plan, and its model with other settings of the editor."""
    run = given.out / "run"
    recipe = load_recipe(run / "config.yaml")
    inputs = open_inputs(recipe, False, True)
    model = CounterfactualModel.load(run / "model")
    own: Any = model.decoder
    own.config = dataclasses.replace(own.config, editor=dataclasses.replace(own.editor, **editor))
    return inputs, Plan.load(run / "plan"), model


def overhead(given: argparse.Namespace, images: int = 6, turns: int = 3) -> None:
    """Shards' work beside a bare loop of the same calls, in turns; and edits one by one beside eight in a call."""
    inputs, plan, model = opened(given, steps=given.steps, batch=1)
    rows = [row for row in plan.sample(10 * images) if not row.do.is_null][:images]
    decoder = model.decoder

    def ours(batch: int) -> float:
        decoder.config = dataclasses.replace(decoder.config, editor=dataclasses.replace(decoder.editor, batch=batch))
        work = ShardWork(model, inputs.sources, plan, open_destination(given.out / "run"), images, {})
        before = time.perf_counter()
        work.batch(rows)
        return time.perf_counter() - before

    edits: list[Any] = []
    run = backends.run
    backends.run = lambda pipe, traits, some, config: (edits.extend(some), run(pipe, traits, some, config))[1]
    ours(1)
    backends.run = run

    def bare() -> float:
        before = time.perf_counter()
        for edit in edits:
            decoder.pipe(
                prompt=[edit.prompt], image=[edit.image], mask_image=[edit.region], strength=1.0, guidance_scale=2.0,
                num_inference_steps=given.steps, generator=[torch.Generator().manual_seed(edit.seed)], height=32, width=32, output_type="np",
            )  # fmt: skip
        return time.perf_counter() - before

    pairs = [(ours(1), bare()) for _ in range(turns)]
    ratios = [a / b for a, b in pairs]
    many = [(ours(8), ours(1)) for _ in range(turns)]
    record(
        RESULTS,
        {
            "what": "overhead", "images": images, "edits": len(edits), "steps": given.steps, "seconds_an_edit": round(float(np.median([b for _, b in pairs])) / len(edits), 3),
            "ratio_to_a_bare_loop": [round(r, 4) for r in sorted(ratios)], "ratio_of_batches_of_8": [round(a / b, 3) for a, b in sorted(many)],
        },
        cpu=cpu(), command=f"python benchmarks/editors.py overhead OUT --data DIR --steps {given.steps}",
    )  # fmt: skip


def abduction(given: argparse.Namespace, images: int = 24) -> None:
    """do(ground) on whole images, without masks: what stays of digit and colour (fidelity), and whether the ground is the new one (editability)."""
    readers = {}
    inputs, _, _ = opened(given)
    clean, schema = inputs.oracle, inputs.schema
    pixels = load_images(clean, range(len(clean)), progress=False)
    settings = TrainSettings(epochs=6, batch_size=128, lr=1e-2, selection="last")
    for name in ("digit", "colour", "ground"):
        codes = torch.from_numpy(np.asarray(schema.index(name, clean.table[name])))
        readers[name] = train_classifier(
            "erm", TensorImages(pixels, codes), None, settings, 0, schema[name].categories, progress=False
        )
    test = inputs.test
    real, table = load_images(test, range(images), progress=False), test.table.iloc[:images]
    grounds = list(schema["ground"].categories)
    wanted = [grounds[(grounds.index(own) + 3) % len(grounds)] for own in table["ground"]]
    own = {"steps": given.steps, "rank": 4, "learning_rate": 2e-3}
    ways = {
        "strength 0.5": (0.5, {}), "strength 0.8": (0.8, {}),
        "first abduction, strength 0.8": (0.8, own), "both abductions, strength 0.8": (0.8, {**own, "text_steps": given.steps}),
        "both abductions, strength 0.5": (0.5, {**own, "text_steps": given.steps}),
    }  # fmt: skip
    for way, (strength, settings_of_it) in ways.items():
        _, _, model = opened(given, batch=1, strength=strength, abduction=AbductionConfig(**settings_of_it))
        model.decoder.layers = {}
        before, made = time.perf_counter(), []
        for i in range(images):
            noise = model.decoder.abduct(
                Sources(to_float(real[i : i + 1]), table.iloc[[i]], [str(table.index[i])], [i])
            )
            made.append(model.decoder.predict(noise, table.iloc[[i]].assign(ground=wanted[i]), [{"ground"}]))
        done = to_uint8(torch.cat(made))
        read = {name: net.predict(done).numpy() for name, net in readers.items()}
        truth = {name: np.asarray(schema.index(name, wanted if name == "ground" else table[name])) for name in readers}
        inside = torch.from_numpy(np.stack([test.mask(i) for i in range(images)]) > 127)[:, None]
        kept = ((done.float() - real.float()).abs() * inside).sum() / (3 * inside.sum()) / 255
        record(
            RESULTS,
            {
                "what": "abduction", "way": way, "images": images, "steps": given.steps if settings_of_it else 0,
                **{name: round(float((read[name] == truth[name]).mean()), 4) for name in readers},
                "object_l1": round(float(kept), 4), "seconds_an_image": round((time.perf_counter() - before) / images, 2),
            },
            cpu=cpu(), command=f"python benchmarks/editors.py abduction OUT --data DIR --steps {given.steps}",
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parts = {"train": train, "toy": toy, "overhead": overhead, "abduction": abduction}
    parser.add_argument("part", choices=parts)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--steps", type=int, default=50, help="overhead: of the sampler; abduction: of each adapter")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out = given.out.absolute()
    parts[given.part](given)


if __name__ == "__main__":
    main()

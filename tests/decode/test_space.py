"""Spaces: pixels are the identity, latents invert up to the autoencoder, and an unsuitable one is refused in one line."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.small_decoder import floats, small, source, sources
from safetensors.torch import load_file, save_file

from cfaug.config import DecoderConfig
from cfaug.data.images import to_float
from cfaug.decode import DiffusionDecoder
from cfaug.decode.diffusion.image_space import WORST_L1, LatentSpace, PixelSpace, open_space, restore_space
from cfaug.errors import UsageError

WEIGHTS = "diffusion_pytorch_model.safetensors"


def pictures(n: int = 12, size: tuple[int, int] = (16, 16), channels: int = 3) -> torch.Tensor:
    """Smooth random dark blobs, uint8 (n, C, H, W): far from the middle grey of an autoencoder that learned nothing."""
    coarse = torch.rand((n, channels, 4, 4), generator=torch.Generator().manual_seed(n))
    return (torch.nn.functional.interpolate(coarse, size=size, mode="bilinear") * 127).round().to(torch.uint8)


def kl(channels: int = 3) -> Any:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(
        in_channels=channels, out_channels=channels, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4,
        mid_block_add_attention=False,
    )  # fmt: skip


def tiny(**settings: Any) -> Any:
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    options = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1), "latent_channels": 4, **settings}
    return AutoencoderTiny(encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), **options)


def trained(autoencoder: Any, images: torch.Tensor) -> Any:
    """The autoencoder after a few plain steps of reconstruction."""
    optimiser = torch.optim.Adam(autoencoder.parameters(), 5e-3)
    x = to_float(images)
    for _ in range(50 if hasattr(autoencoder, "quant_conv") else 120):  # the tiny one is four times as fast
        encoded = autoencoder.encode(x)
        z = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        loss = (autoencoder.decode(z).sample - x).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return autoencoder.eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return pictures(8)


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory, images: torch.Tensor) -> dict[str, Path]:
    """Autoencoders of :func:`pictures` and of the painted source."""
    root = tmp_path_factory.mktemp("autoencoders")
    painted = torch.from_numpy(source(24, (16, 16)).images[:6]).permute(0, 3, 1, 2)
    for make in (kl, tiny):
        autoencoder = trained(make(), torch.cat([images, painted]))
        autoencoder.save_pretrained(root / type(autoencoder).__name__)
    return {path.name: path for path in root.iterdir()}


def opened(directory: Path, images: torch.Tensor) -> LatentSpace:
    space = open_space(images, DecoderConfig(space="latents", autoencoder=str(directory)))
    assert isinstance(space, LatentSpace)
    return space


def test_pixels_are_the_identity() -> None:
    space = open_space(pictures(2), DecoderConfig())
    assert isinstance(space, PixelSpace)
    assert (space.channels, space.factor) == (3, 1)
    x = to_float(pictures(2))
    assert torch.equal(space.decode(space.encode(x)), x)
    again = restore_space(json.loads(json.dumps(space.description())), space.weights())
    assert again.description() == space.description()


@pytest.mark.parametrize("name", ["AutoencoderKL", "AutoencoderTiny"])
def test_a_directory_gives_standardised_latents(directories: dict[str, Path], images: torch.Tensor, name: str) -> None:
    space = opened(directories[name], images)
    assert (space.channels, space.factor, space.image_channels) == (4, 2, 3)
    x = to_float(images)
    z = space.encode(x)
    assert z.shape == (len(x), 4, 8, 8)
    values = z.transpose(0, 1).flatten(1).numpy()  # numpy as the independent reference
    np.testing.assert_allclose(values.mean(1), 0, atol=1e-3)
    np.testing.assert_allclose(values.std(1), 1, atol=1e-3)
    made = space.decode(z)
    assert made.shape == x.shape
    assert float((made.clamp(-1, 1) - x).abs().mean() / 2) < WORST_L1
    assert torch.equal(space.encode(x), z)  # the mean of the posterior: no draw
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(space.encode(x), z)  # autocast outside changes nothing
        assert torch.equal(space.decode(z), made)


def test_the_tiny_autoencoder_takes_minus_one_to_one() -> None:
    """The trap: TAESD's own weights mean [0, 1], and diffusers converts inside AutoencoderTiny. If it stops, this fails."""
    autoencoder = tiny().eval()
    x = to_float(pictures(2))
    with torch.no_grad():
        z = autoencoder.encode(x).latents
        assert torch.equal(z, autoencoder.encoder.layers((x + 1) / 2))
        inside = autoencoder.decoder.layers(torch.tanh(z / 3) * 3)
        assert torch.equal(autoencoder.decode(z).sample, inside * 2 - 1)


def test_a_silent_channel_is_not_blown_up(directories: dict[str, Path], images: torch.Tensor, tmp_path: Path) -> None:
    autoencoder = opened(directories["AutoencoderKL"], images)._autoencoder
    with torch.no_grad():
        autoencoder.quant_conv.weight[0] = 0
        autoencoder.quant_conv.bias[0] = 1
        autoencoder.post_quant_conv.weight[:, 0] = 0
    autoencoder.save_pretrained(tmp_path)
    space = opened(tmp_path, images)
    assert float(space.encode(to_float(images))[:, 0].abs().max()) < 1e-3


def test_grey_images_go_through_three_channels_and_back(directories: dict[str, Path]) -> None:
    from diffusers import AutoencoderTiny

    autoencoder = AutoencoderTiny.from_pretrained(directories["AutoencoderTiny"])
    grey, colour = LatentSpace(autoencoder, 1), LatentSpace(autoencoder, 3)
    x = to_float(pictures(6, channels=1))
    z = grey.encode(x)
    assert torch.equal(z, colour.encode(x.repeat(1, 3, 1, 1)))
    torch.testing.assert_close(grey.decode(z), colour.decode(z).mean(1, keepdim=True))


def test_a_saved_space_computes_the_same(directories: dict[str, Path], images: torch.Tensor, tmp_path: Path) -> None:
    space = opened(directories["AutoencoderKL"], images)
    text = json.dumps(space.description())
    assert str(directories["AutoencoderKL"]) not in text  # runs are relocatable
    save_file(space.weights(), tmp_path / "autoencoder.safetensors")
    weights = load_file(tmp_path / "autoencoder.safetensors")
    x = to_float(images)
    for again in (restore_space(json.loads(text), weights), pickle.loads(pickle.dumps(space))):
        assert torch.equal(again.decode(again.encode(x)), space.decode(space.encode(x)))
        assert json.dumps(again.description()) == text
    with pytest.raises(ValueError, match="UNet2DModel"):  # nothing but an autoencoder is ever built
        restore_space({**space.description(), "class": "UNet2DModel"}, weights)


def test_a_decoder_in_latents(directories: dict[str, Path], tmp_path: Path) -> None:
    large = source(24, (15, 16))
    place = str(directories["AutoencoderKL"])
    decoder = small(large, space="latents", autoencoder=place, structure="layout", bf16=False, max_steps=2)
    assert decoder.capabilities.null == "round_trip"
    x, table = floats(large), large.table.iloc[:8]
    made = decoder.predict(decoder.abduct(sources(x, table)), table)
    padded = torch.nn.functional.pad(x, (0, 0, 0, 1), mode="replicate")
    there = decoder.space.decode(decoder.space.encode(padded))[..., :15, :].clamp(-1, 1)
    torch.testing.assert_close(made, there, atol=1e-3, rtol=0)  # exact up to the autoencoder
    decoder.save(tmp_path / "saved")
    first, second = (DiffusionDecoder.load(tmp_path / "saved") for _ in range(2))
    assert first.digest == decoder.digest
    again = [one.predict(one.abduct(sources(x, table)), table) for one in (first, second)]
    torch.testing.assert_close(again[0], made, atol=1e-4, rtol=0)
    assert torch.equal(again[0], again[1])  # what is generated comes from loaded decoders: these agree in every bit


# -- directories that will not do --------------------------------------------------------------------------------------


def refused(path: Path | None, images: torch.Tensor) -> str:
    with pytest.raises(UsageError) as error:
        open_space(images, DecoderConfig(space="latents", autoencoder=str(path) if path else None))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_unsuitable_directories_are_refused(tmp_path: Path, directories: dict[str, Path], images: torch.Tensor) -> None:
    good = directories["AutoencoderKL"]
    config, whole = json.loads((good / "config.json").read_text()), load_file(good / WEIGHTS)

    def copy(name: str, content: object = config, tensors: dict[str, torch.Tensor] | None = whole) -> Path:
        target = tmp_path / name
        target.mkdir(parents=True)
        (target / "config.json").write_text(json.dumps(content))
        if tensors is not None:
            save_file(tensors, target / WEIGHTS, {"format": "pt"})
        return target

    assert "in decoder.autoencoder for decoder.space latents, got none" in refused(None, images)
    assert "no config.json" in refused(tmp_path / "missing", images)
    assert f"no {WEIGHTS}" in refused(copy("unweighted", tensors=None), images)
    copy("pipeline/vae")
    assert "its vae folder may be meant" in refused(tmp_path / "pipeline", images)
    assert "'UNet2DModel'" in refused(copy("other", {**config, "_class_name": "UNet2DModel"}), images)
    assert "JSON object" in refused(copy("list", [1]), images)
    truncated = copy("truncated")
    (truncated / WEIGHTS).write_bytes(b"\x08\0\0")
    assert "expected AutoencoderKL in" in refused(truncated, images)
    lacking = copy("lacking", tensors={k: v for k, v in whole.items() if k != "quant_conv.bias"})
    assert "quant_conv.bias" in refused(lacking, images)  # diffusers alone would fill it with random numbers
    assert "takes 3 channels" not in refused(copy("resized", {**config, "latent_channels": 8}), images)
    kl(1).save_pretrained(tmp_path / "grey")
    assert "takes 1 channels" in refused(tmp_path / "grey", images)
    tiny(upsampling_scaling_factor=4).save_pretrained(tmp_path / "uneven")
    assert "gives back 64x64 px" in refused(tmp_path / "uneven", images)
    kl().save_pretrained(tmp_path / "random")
    assert "mean absolute error of at most 0.1" in refused(tmp_path / "random", images)
    broken = kl()
    torch.nn.init.constant_(broken.decoder.conv_in.bias, float("nan"))
    broken.save_pretrained(tmp_path / "nan")
    assert "got nan" in refused(tmp_path / "nan", images)

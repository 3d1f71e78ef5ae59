"""Spaces: pixels are the identity, latents invert up to the codec, and a codec that cannot do that is refused in one line."""

from __future__ import annotations

import dataclasses
import json
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cfaug.config import DecoderConfig
from cfaug.decode import codec
from cfaug.decode.diffusion.image_space import WORST_L1, LatentSpace, PixelSpace, Space, forget, open_space, restore
from cfaug.errors import CfaugError, ShardError, UsageError


def pictures(n: int = 12, size: tuple[int, int] = (16, 16), channels: int = 3) -> torch.Tensor:
    """Smooth random blobs, uint8 (n, C, H, W)."""
    coarse = torch.rand((n, channels, 4, 4), generator=torch.Generator().manual_seed(n))
    return (torch.nn.functional.interpolate(coarse, size=size, mode="bilinear") * 255).round().to(torch.uint8)


def floats(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 127.5 - 1


def kl(channels: int = 3, **settings: Any) -> Any:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(
        in_channels=channels, out_channels=channels, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4,
        mid_block_add_attention=False, **settings,
    )  # fmt: skip


def tiny(channels: int = 3, **settings: Any) -> Any:
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    options = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1), "latent_channels": 4, **settings}
    return AutoencoderTiny(
        in_channels=channels, out_channels=channels, encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8), **options,
    )  # fmt: skip


def trained(autoencoder: Any, images: torch.Tensor, zero_one: bool = False) -> Any:
    """The autoencoder after a few plain steps of reconstruction; in [0, 1] as some people's code does it."""
    optimiser = torch.optim.Adam(autoencoder.parameters(), 5e-3)
    x = floats(images)
    x = (x + 1) / 2 if zero_one else x
    for _ in range(120 if hasattr(autoencoder, "quant_conv") else 240):  # the tiny one is four times as fast
        encoded = autoencoder.encode(x)
        z = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        loss = (autoencoder.decode(z).sample - x).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return autoencoder.eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return pictures()


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory, images: torch.Tensor) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("autoencoders")
    scales = {"AutoencoderKL": {"scaling_factor": 1.0}, "AutoencoderTiny": {}}
    made = {"AutoencoderKL": kl(**scales["AutoencoderKL"]), "AutoencoderTiny": tiny()}
    for name, autoencoder in made.items():
        trained(autoencoder, images).save_pretrained(root / name)
    return {name: root / name for name in made}


def test_pixels_are_the_identity() -> None:
    space = open_space(pictures(2), DecoderConfig())
    assert isinstance(space, PixelSpace)
    assert isinstance(space, Space)
    assert (space.channels, space.factor, space.image_channels) == (3, 1, 3)
    x = floats(pictures(2))
    assert torch.equal(space.decode(space.encode(x)), x)
    assert torch.equal(space.roundtrip(x), x)
    again = restore(json.loads(json.dumps(space.description())), space.weights())
    assert again.description() == space.description()
    with pytest.raises(UsageError, match="1 or 3 channels, but 4 came"):
        PixelSpace(4)


@pytest.mark.parametrize("name", ["AutoencoderKL", "AutoencoderTiny"])
def test_a_directory_gives_standardised_latents_that_decode_to_the_image(
    directories: dict[str, Path], images: torch.Tensor, name: str
) -> None:
    space = open_space(images, DecoderConfig(space="latents", autoencoder=str(directories[name])))
    assert isinstance(space, LatentSpace)
    assert isinstance(space, Space)
    assert (space.channels, space.factor, space.image_channels) == (4, 2, 3)
    x = floats(images)
    z = space.encode(x)
    assert z.shape == (len(x), 4, 8, 8)
    mean, std = z.mean(dim=(0, 2, 3)), z.std(dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(std, torch.ones(4), atol=1e-3, rtol=0)
    made = space.decode(z)
    assert made.shape == x.shape
    assert float((made.clamp(-1, 1) - x).abs().mean() / 2) == pytest.approx(space.l1, abs=1e-6)
    assert space.l1 < WORST_L1
    assert torch.equal(space.encode(x), z)  # the mean of the posterior: no draw


@pytest.mark.parametrize("make", [kl, tiny])
def test_both_classes_take_and_give_minus_one_to_one(make: Any) -> None:
    """The trap: TAESD's own weights mean [0, 1], and diffusers converts inside AutoencoderTiny. If it stops, this fails."""
    autoencoder = make().eval()
    x = floats(pictures(2))
    with torch.no_grad():
        if make is tiny:
            z = autoencoder.encode(x).latents
            assert torch.equal(z, autoencoder.encoder.layers((x + 1) / 2))
            inside = autoencoder.decoder.layers(torch.tanh(z / 3) * 3)
            assert torch.equal(autoencoder.decode(z).sample, inside * 2 - 1)
        else:
            z = autoencoder.encode(x).latent_dist.mode()
            assert torch.equal(z, autoencoder.quant_conv(autoencoder.encoder(x)).chunk(2, dim=1)[0])
            assert torch.equal(autoencoder.decode(z).sample, autoencoder.decoder(autoencoder.post_quant_conv(z)))


@pytest.mark.parametrize("make", [kl, tiny])
def test_an_autoencoder_of_images_in_zero_one_is_named_as_such(tmp_path: Path, images: torch.Tensor, make: Any) -> None:
    autoencoder = make()
    if make is tiny:  # as before diffusers converted: weights that expect what they are given
        plain = autoencoder.encoder.forward, autoencoder.decoder.forward
        autoencoder.encoder.forward = autoencoder.encoder.layers.forward
        autoencoder.decoder.forward = lambda z: autoencoder.decoder.layers(torch.tanh(z / 3) * 3)
    trained(autoencoder, images, zero_one=True)
    if make is tiny:
        autoencoder.encoder.forward, autoencoder.decoder.forward = plain
    autoencoder.save_pretrained(tmp_path)
    space = LatentSpace.from_directory(tmp_path, 3)
    if make is tiny:  # diffusers' conversion is right for these weights
        assert space.measure(images).l1 < WORST_L1
        return
    with pytest.raises(UsageError) as refused:
        space.measure(images)
    assert "wrong scaling" in str(refused.value)
    assert "[0, 1]" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_autoencoder_that_cannot_reconstruct_is_refused(tmp_path: Path, images: torch.Tensor) -> None:
    kl().save_pretrained(tmp_path)  # random weights
    with pytest.raises(
        UsageError, match=r"does not suit these images or has the wrong scaling: mean absolute error 0\.\d+"
    ):
        open_space(images, DecoderConfig(space="latents", autoencoder=str(tmp_path)))


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (8, 3, 32, 32)])
def test_nan_weights_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    broken = kl()
    torch.nn.init.constant_(broken.decoder.conv_in.bias, float("nan"))
    broken.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="mean absolute error nan"):
        open_space(torch.zeros(shape, dtype=torch.uint8), DecoderConfig(space="latents", autoencoder=str(tmp_path)))


@pytest.mark.parametrize(("factor", "told"), [(30.0, True), (1 / 30, True), (None, False)])
def test_a_stated_scale_far_from_the_measured_one_is_told_and_not_used(
    directories: dict[str, Path], images: torch.Tensor, tmp_path: Path, caplog: Any, factor: float | None, told: bool
) -> None:
    reference = LatentSpace.from_directory(directories["AutoencoderKL"], 3).measure(images)
    measured = 1 / float(reference._std.square().mean().sqrt())
    config = json.loads((directories["AutoencoderKL"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "scaling_factor": measured * (factor or 1.5)}))
    weights = "diffusion_pytorch_model.safetensors"
    (tmp_path / weights).write_bytes((directories["AutoencoderKL"] / weights).read_bytes())
    with caplog.at_level(logging.WARNING, "cfaug.decode.diffusion.latents"):
        caplog.clear()
        space = LatentSpace.from_directory(tmp_path, 3).measure(images)
    assert any("scaling_factor" in record.getMessage() for record in caplog.records) == told
    x = floats(images)
    assert torch.equal(space.encode(x), reference.encode(x))


def test_a_channel_that_says_nothing_is_not_blown_up(directories: dict[str, Path], images: torch.Tensor) -> None:
    autoencoder = LatentSpace.from_directory(directories["AutoencoderKL"], 3)._autoencoder
    with torch.no_grad():
        autoencoder.quant_conv.weight[0] = 0
        autoencoder.quant_conv.bias[0] = 1
    space = LatentSpace(autoencoder, 3)
    space.measure(images, trained_here=True)
    assert float(space.encode(floats(images))[:, 0].abs().max()) < 1e-3


def test_grey_images_go_through_three_channels_and_back(directories: dict[str, Path]) -> None:
    grey = pictures(6, channels=1)
    space = LatentSpace.from_directory(directories["AutoencoderTiny"], 1)
    x = floats(grey)
    assert torch.equal(
        space.encode(x), LatentSpace.from_directory(directories["AutoencoderTiny"], 3).encode(x.repeat(1, 3, 1, 1))
    )
    made = space.decode(space.encode(x))
    assert made.shape == x.shape
    colour = LatentSpace.from_directory(directories["AutoencoderTiny"], 3).decode(space.encode(x))
    torch.testing.assert_close(made, colour.mean(1, keepdim=True))


def test_roundtrip_pads_and_crops(directories: dict[str, Path], images: torch.Tensor) -> None:
    space = LatentSpace.from_directory(directories["AutoencoderKL"], 3).measure(images)
    odd = floats(images)[..., :13, :15]
    made = space.roundtrip(odd)
    assert made.shape == odd.shape
    assert float(made.abs().max()) <= 1
    padded = torch.nn.functional.pad(odd, (0, 1, 0, 1), mode="replicate")
    assert torch.equal(made, space.decode(space.encode(padded))[..., :13, :15].clamp(-1, 1))
    with pytest.raises(UsageError, match="multiples of 2"):
        space.encode(odd)
    with pytest.raises(UsageError, match=r"\(B, 3, H, W\)"):
        space.encode(odd[:, :1])


def test_autocast_outside_changes_nothing(directories: dict[str, Path], images: torch.Tensor) -> None:
    space = LatentSpace.from_directory(directories["AutoencoderKL"], 3)
    x = floats(images)
    plain = space.encode(x)
    with torch.autocast("cpu", torch.bfloat16):
        inside = space.encode(x)
        made = space.decode(inside)
    assert inside.dtype == made.dtype == torch.float32
    assert torch.equal(inside, plain)
    assert torch.equal(made, space.decode(plain))


@pytest.mark.parametrize("name", ["AutoencoderKL", "AutoencoderTiny"])
def test_saved_and_restored_it_computes_the_same(
    directories: dict[str, Path], images: torch.Tensor, tmp_path: Path, name: str
) -> None:
    space = LatentSpace.from_directory(directories[name], 3).measure(images)
    text = json.dumps(space.description())
    assert str(directories[name]) not in text  # runs are relocatable
    save_file(space.weights(), tmp_path / "autoencoder.safetensors")
    again = restore(json.loads(text), load_file(tmp_path / "autoencoder.safetensors"))
    x = floats(images)
    assert torch.equal(again.encode(x), space.encode(x))
    assert torch.equal(again.decode(again.encode(x)), space.decode(space.encode(x)))
    assert json.dumps(again.description()) == text
    third = pickle.loads(pickle.dumps(again))  # generation hands the model to worker processes
    assert torch.equal(third.encode(x), space.encode(x))


def test_a_damaged_saved_space_is_one_line(directories: dict[str, Path], images: torch.Tensor) -> None:
    space = LatentSpace.from_directory(directories["AutoencoderKL"], 3).measure(images)
    good, weights = space.description(), space.weights()
    fewer = {name: tensor for name, tensor in weights.items() if name != "quant_conv.bias"}
    bad = [
        ({**good, "class": "UNet2DModel"}, weights, "UNet2DModel"),
        ({**good, "mean": [0.0]}, weights, "latent means"),
        ({k: v for k, v in good.items() if k != "std"}, weights, "std"),
        (good, fewer, "quant_conv.bias"),
    ]
    for description, tensors, word in bad:
        with pytest.raises(ShardError, match=word) as refused:
            restore(description, tensors)
        assert "\n" not in str(refused.value)


def _refused(path: Path, channels: int = 3) -> str:
    with pytest.raises(UsageError) as error:
        LatentSpace.from_directory(path, channels)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_directories_that_will_not_do(tmp_path: Path, directories: dict[str, Path]) -> None:
    weights = "diffusion_pytorch_model.safetensors"

    def copy(name: str, config: object = None, content: bytes | None = None) -> Path:
        target = tmp_path / name
        target.mkdir()
        source = directories["AutoencoderKL"]
        text = (source / "config.json").read_text() if config is None else json.dumps(config)
        (target / "config.json").write_text(text)
        (target / weights).write_bytes((source / weights).read_bytes() if content is None else content)
        return target

    config = json.loads((directories["AutoencoderKL"] / "config.json").read_text())
    assert "no config.json" in _refused(tmp_path / "missing")
    assert f"no {weights}" in _refused(_without(copy("unweighted"), weights))
    pipeline = tmp_path / "pipeline"
    pipeline.mkdir()
    directories["AutoencoderKL"].rename(pipeline / "vae")
    try:
        assert "its vae folder may be meant" in _refused(pipeline)
    finally:
        (pipeline / "vae").rename(directories["AutoencoderKL"])
    assert "'UNet2DModel'" in _refused(copy("other", {**config, "_class_name": "UNet2DModel"}))
    assert "None" in _refused(copy("nameless", {k: v for k, v in config.items() if k != "_class_name"}))
    assert "JSON object" in _refused(copy("list", [1]))
    assert "cannot be loaded" in _refused(copy("truncated", content=b"\x08\0\0"))
    assert "cannot be loaded" in _refused(copy("resized", {**config, "latent_channels": 8}))
    whole = load_file(directories["AutoencoderKL"] / weights)
    lacking = copy("lacking")
    save_file({k: v for k, v in whole.items() if k != "quant_conv.bias"}, lacking / weights, {"format": "pt"})
    assert "quant_conv.bias" in _refused(lacking)  # diffusers alone would fill it with random numbers
    pickled = _without(copy("pickled"), weights)
    torch.save(whole, pickled / "diffusion_pytorch_model.bin")
    assert f"no {weights}" in _refused(pickled)
    for channels in (1, 4):
        other = tmp_path / f"channels-{channels}"
        kl(channels).save_pretrained(other)
        assert f"takes {channels} channels" in _refused(other)
    uneven = tmp_path / "uneven"
    tiny(upsampling_scaling_factor=4).save_pretrained(uneven)
    assert "32x32" in _refused(uneven) or "(128, 128)" in _refused(uneven)


def _without(directory: Path, name: str) -> Path:
    (directory / name).unlink()
    return directory


# -- trained here ------------------------------------------------------------------------------------------------


def test_the_factor_follows_the_size() -> None:
    assert [codec.factor_for(side) for side in (28, 32, 64, 128, 129, 256)] == [2, 2, 4, 4, 8, 8]


def test_an_autoencoder_trained_here_learns_to_reconstruct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "_LEVELS", {2: ((8, 16), 4)})
    images = pictures(16, (11, 14))
    config = DecoderConfig(space="latents", max_steps=600, learning_rate=5e-3)
    space = open_space(images, config, progress=False)
    assert isinstance(space, LatentSpace)
    assert space.report is not None
    assert space.report.steps == 200  # a third of the decoder's
    assert (space.factor, space.channels) == (2, 4)
    x = floats(images)
    flat = float((x - x.mean(dim=(0, 2, 3), keepdim=True)).abs().mean()) / 2
    made = float((space.roundtrip(x) - x).abs().mean()) / 2
    assert made < 0.5 * flat, (made, flat)
    assert abs(made - space.l1) < 0.01
    short = DecoderConfig(space="latents", max_steps=9)
    first, again, other = (open_space(images, short, seed, progress=False).weights() for seed in (1, 1, 2))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not torch.equal(first["encoder.conv_in.weight"], other["encoder.conv_in.weight"])


def test_a_finished_training_is_kept_for_the_decoders_own_resuming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """With a budget in seconds a second training would end elsewhere, and the decoder's checkpoint would mean nothing."""
    images, config = pictures(4), DecoderConfig(space="latents", max_steps=6)
    first = open_space(images, config, 3, False, tmp_path / "space")
    trained_once = codec.train_autoencoder

    def never(*_: Any) -> Any:
        raise KeyError("trained again")

    monkeypatch.setattr(codec, "train_autoencoder", never)
    again = open_space(images, dataclasses.replace(config, steps=9), 3, False, tmp_path / "space")
    assert again.description() == first.description()
    assert all(torch.equal(tensor, again.weights()[name]) for name, tensor in first.weights().items())
    assert again.report == first.report  # type: ignore[attr-defined]
    for other in (
        (images.flip(0), config, 3),
        (images, config, 4),
        (images, dataclasses.replace(config, max_steps=9), 3),
    ):
        with pytest.raises(KeyError):
            open_space(*other, False, tmp_path / "space")
    monkeypatch.setattr(codec, "train_autoencoder", trained_once)
    (tmp_path / "space" / "autoencoder.safetensors").write_bytes(b"damaged")
    assert open_space(images, config, 3, False, tmp_path / "space").description() == first.description()
    assert any("training the autoencoder again" in record.getMessage() for record in caplog.records)
    forget(tmp_path / "space")
    assert not (tmp_path / "space").exists()


def test_trained_too_little_it_warns(caplog: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "_LEVELS", {2: ((8, 16), 4)})
    space = LatentSpace.fit(pictures(8, channels=1), DecoderConfig(max_steps=3), progress=False)
    assert space.image_channels == 1
    assert any("train longer" in record.getMessage() for record in caplog.records)


def test_large_images_train_on_crops_that_move() -> None:
    images = torch.arange(100 * 90, dtype=torch.int32).view(1, 1, 100, 90).repeat(2, 1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    corners = set()
    for _ in range(50):
        crop = codec._crops(images, 4, generator)
        assert crop.shape == (2, 1, 64, 64)
        corners.add(int(crop[0, 0, 0, 0]))
        assert torch.equal(crop[0, 0, 0], crop[0, 0, 0, 0] + torch.arange(64))
    assert len(corners) > 40
    assert max(corners) // 90 <= 36
    assert max(c % 90 for c in corners) <= 26
    small = codec._crops(pictures(2, (27, 30)), 4, generator)
    assert small.shape == (2, 3, 28, 32)


def test_the_autoencoders_budget_is_a_share_of_the_decoders() -> None:
    assert codec.budget(DecoderConfig(seconds=30.0), 100).seconds == pytest.approx(10)
    assert codec.budget(DecoderConfig(), 20_000).seconds == pytest.approx(500)
    steps = codec.budget(DecoderConfig(max_steps=300, validate_every=5), 100)
    assert (steps.max_steps, steps.seconds, steps.validate_every) == (100, None, None)


def test_nan_in_training_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "_LEVELS", {2: ((8, 16), 4)})
    monkeypatch.setattr(codec, "_BETA", float("nan"))
    with pytest.raises(CfaugError, match="autoencoder training diverged"):
        LatentSpace.fit(pictures(4), DecoderConfig(max_steps=6), progress=False)


def test_statistics_are_those_of_numpy(directories: dict[str, Path], images: torch.Tensor) -> None:
    space = LatentSpace.from_directory(directories["AutoencoderTiny"], 3)
    raw = space.encode(floats(images)).numpy().astype(np.float64)  # not measured yet: not standardised
    space.measure(images)
    np.testing.assert_allclose(space._mean.flatten().numpy(), raw.mean(axis=(0, 2, 3)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(space._std.flatten().numpy(), raw.std(axis=(0, 2, 3)), rtol=1e-5)

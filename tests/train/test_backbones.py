"""Classifiers of torchvision with local weights: what is loaded, what is refused, and what the net is given."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from cfaug.errors import UsageError
from cfaug.train.models import NORMALIZATIONS, as_input, build_model, digest_of, model_names

SHAPE = (3, (32, 32), 2)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A ResNet-18 as safetensors, as a state dict, as a checkpoint of DataParallel; and what is none."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(3)
    state = torchvision.models.resnet18().state_dict()
    save_file(state, folder / "net.safetensors")
    torch.save(state, folder / "net.pth")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, folder / "parallel.pth")
    torch.save(torch.nn.Linear(2, 2), folder / "module.pth")
    (folder / "code.pkl").write_bytes(pickle.dumps(print))
    (folder / "torn.pth").write_bytes((folder / "net.pth").read_bytes()[:1000])
    torch.save(torchvision.models.mobilenet_v2().state_dict(), folder / "other.pth")
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["net.safetensors", "net.pth", "parallel.pth"])
def test_local_weights_are_in_the_net(weights: dict[str, Path], name: str) -> None:
    net = build_model("resnet18", *SHAPE, seed=1, weights=str(weights[name]))
    own = torch.load(weights["net.pth"], weights_only=True)
    assert torch.equal(net.net.conv1.weight, own["conv1.weight"])  # type: ignore[union-attr, operator]
    assert net.last.weight.shape == (2, 512)


def test_features_are_torchvisions_own(weights: dict[str, Path]) -> None:
    """(x - mean) / std, then the net without its last layer."""
    net = build_model("resnet18", *SHAPE, weights=str(weights["net.pth"])).eval()
    reference = torchvision.models.resnet18().eval()
    reference.load_state_dict(torch.load(weights["net.pth"], weights_only=True))
    reference.fc = torch.nn.Identity()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    preset = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (preset.mean, preset.std))
    with torch.inference_mode():
        expected = reference((images / 255 - mean) / std)
        assert torch.allclose(net.embed(as_input(images)), expected, atol=1e-4)


def test_normalizations_are_what_their_names_say() -> None:
    pixels = torch.tensor([[0, 127, 255]], dtype=torch.uint8).reshape(1, 1, 1, 3).expand(1, 3, 1, 3)
    known = {
        "lite": (pixels.double() - 127) / 128,
        "unit": pixels.double() / 255,
        "symmetric": pixels.double() / 127.5 - 1,
    }
    for name, expected in known.items():
        mean, std = (torch.tensor(v, dtype=torch.float64).reshape(1, 3, 1, 1) for v in NORMALIZATIONS[name])
        assert torch.allclose((pixels / 255 - mean) / std, expected, atol=1e-6)


def test_grey_images_are_shown_in_three_channels(weights: dict[str, Path]) -> None:
    net = build_model("resnet18", 1, (32, 32), 2, weights=str(weights["net.pth"])).eval()
    grey = torch.rand(2, 1, 32, 32)
    with torch.inference_mode():
        assert torch.equal(net(grey), net(grey.expand(-1, 3, -1, -1)))


def test_a_digest_is_of_the_features_not_of_the_head(weights: dict[str, Path]) -> None:
    nets = [build_model("resnet18", *SHAPE, seed=s, weights=str(weights["net.pth"])) for s in (1, 2)]
    assert digest_of(nets[0]) == digest_of(nets[1])
    other = build_model("resnet18", *SHAPE, weights=str(weights["net.pth"]), normalization="lite")
    assert digest_of(other) != digest_of(nets[0])
    assert digest_of(build_model("resnet18", *SHAPE, seed=1)) != digest_of(nets[0])


MESSAGES = {
    "another architecture": ("resnet18", "other.pth", None, "weights of resnet18, but other.pth lacks"),
    "a pickle": ("resnet18", "code.pkl", None, "a pickle that may run code"),
    "a whole module": ("resnet18", "module.pth", None, "a pickle that may run code"),
    "a torn file": ("resnet18", "torn.pth", None, "cannot be read"),
    "no file": ("resnet18", "nowhere.pth", None, "does not exist"),
    "no such model": ("resnet81", None, None, "did you mean resnet"),
    "no such normalisation": ("resnet18", "net.pth", "imagenett", "train.normalization: expected one of"),
    "half a normalisation": ("resnet18", "net.pth", {"mean": [0.5, 0.5, 0.5]}, "mean and std"),
    "weights of the small net": ("small_cnn", "net.pth", None, "small_cnn is trained from scratch"),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_what_does_not_fit_is_one_line(name: str, weights: dict[str, Path]) -> None:
    model, file, normalization, fragment = MESSAGES[name]
    path = None if file is None else str(weights.get(file, file))
    with pytest.raises(UsageError) as error:
        build_model(model, *SHAPE, weights=path, normalization=normalization)  # type: ignore[arg-type]
    assert fragment in str(error.value)
    assert "\n" not in str(error.value)


def test_a_net_of_timm_has_its_own_weights_and_normalisation(tmp_path: Path) -> None:
    name, size = "resnet10t.c3_in1k", (32, 32)
    net = timm.create_model(name, pretrained=False)
    torch.save(net.state_dict(), tmp_path / "timm.pth")
    made = build_model(f"timm:{name}", 3, size, 4, weights=str(tmp_path / "timm.pth")).eval()
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = (torch.tensor(net.default_cfg[key]).reshape(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        expected = net.eval().forward_head(net.forward_features(((images + 1) / 2 - mean) / std), pre_logits=True)
        torch.testing.assert_close(made.embed(images), expected)
        assert made(images).shape == (2, 4)


def test_without_timm_the_pip_line_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r'pip install "cfaug\[timm\]"'):
        build_model("timm:resnet18", 3, (32, 32), 2)


def test_an_unknown_net_of_timm_names_a_near_one() -> None:
    with pytest.raises(UsageError, match="resnet18"):
        build_model("timm:resnet_18", 3, (32, 32), 2)


def test_too_small_an_image_names_the_least_size() -> None:
    with pytest.raises(UsageError, match="at least 63x63, got 32x32"):
        build_model("alexnet", *SHAPE)


@pytest.mark.slow
def test_every_classifier_of_torchvision_is_built() -> None:
    for name in model_names():
        if name.startswith(("squeezenet", "regnet_y_128gf", "vit_h", "vit_l")):
            continue
        size = (299, 299) if name == "inception_v3" else (224, 224)
        net = build_model(name, 3, size, 3).eval()
        with torch.inference_mode():
            assert net(torch.zeros(1, 3, *size)).shape == (1, 3), name


def test_a_net_without_a_linear_end_is_refused() -> None:
    with pytest.raises(UsageError, match="last layer is linear"):
        build_model("squeezenet1_1", 3, (64, 64), 2)


def test_random_state_is_not_moved(weights: dict[str, Path]) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    build_model("resnet18", *SHAPE, seed=4)
    assert torch.equal(before, torch.random.get_rng_state())
    assert np.isfinite(before.numpy()).all()

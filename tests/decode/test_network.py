"""The preconditioning against Gaussian data, where the best velocity has a closed form."""

from __future__ import annotations

import pytest
import torch

from cfaug.config import DecoderConfig
from cfaug.decode.diffusion.flow_loss import flow_loss
from cfaug.decode.diffusion.network import VelocityNet, variance


@pytest.fixture
def net() -> VelocityNet:
    torch.manual_seed(0)
    return VelocityNet(3, 4, 0, 2, [8, 16]).eval()


def silent(net: VelocityNet) -> VelocityNet:
    """The same network with F = 0."""
    last = net.head.weights[1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.zero_()
    return net


@pytest.mark.parametrize("scale", [0.1, 0.6, 2.0])
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_a_silent_network_is_the_best_linear_velocity(net: VelocityNet, scale: float, t: float) -> None:
    """For x ~ N(0, s^2) and n ~ N(0, 1): E[n - x | x_t] = (t - (1 - t) s^2) / w_t x_t."""
    net.scale.fill_(scale)
    x, n = scale * torch.randn(4000, 3, 4, 4), torch.randn(4000, 3, 4, 4)
    noisy = (1 - t) * x + t * n
    with torch.inference_mode():
        said = silent(net)(noisy, torch.full((4000,), t), torch.ones(4000, 4), x[:, :0])
    slope = float((noisy * (n - x)).mean() / noisy.square().mean())  # least squares
    torch.testing.assert_close(said, slope * noisy, atol=0.02 * (1 + scale), rtol=0.03)


@pytest.mark.parametrize("scale", [0.1, 0.6, 2.0])
def test_what_the_network_sees_has_unit_variance(net: VelocityNet, scale: float) -> None:
    net.scale.fill_(scale)
    seen: list[torch.Tensor] = []
    net.stem.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    for t in (0.0, 0.5, 1.0):
        x, n = scale * torch.randn(500, 3, 4, 4), torch.randn(500, 3, 4, 4)
        with torch.inference_mode():
            net((1 - t) * x + t * n, torch.full((500,), t), torch.ones(500, 4), x[:, :0])
        assert 0.95 < float(seen[-1].std()) < 1.05


@pytest.mark.parametrize("scale", [0.1, 0.6, 2.0])
def test_every_time_has_the_same_say_in_the_loss(net: VelocityNet, scale: float) -> None:
    """With F = 0 the weighted loss is the variance of F's target, 1 at every t, so its mean is 1 whatever the data's scale."""
    net.scale.fill_(scale)
    data = scale * torch.randn(6000, 3, 4, 4)
    config, generator = DecoderConfig(bf16=False), torch.Generator().manual_seed(0)
    value = flow_loss(silent(net), net.scale, data, data[:, :0], torch.ones(6000, 4), [], config, generator)
    assert 0.97 < float(value.detach()) < 1.03


def test_the_head_answers_to_attributes_and_time(net: VelocityNet) -> None:
    with torch.inference_mode():
        features = torch.randn(1, 24, 4, 4)
        embedded = net.embed(torch.ones(1, 4))
        first = net.head(features, embedded, torch.tensor([0.2]))
        assert not torch.equal(net.head(features, embedded, torch.tensor([0.9])), first)
        assert not torch.equal(net.head(features, net.embed(torch.zeros(1, 4)), torch.tensor([0.2])), first)
    assert variance(torch.tensor(1.0), torch.tensor(0.3)) == 1

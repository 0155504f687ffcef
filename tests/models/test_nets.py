"""The reference nets: sizes, shapes, and the initial weights of the released recipe."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_robust.models import CifarResNet, SmallCNN, preact_resnet18, resnet20, resnet56
from lightning_robust.models.resnet import PadShortcut


def _parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("net", "millions"),
    [(resnet20(), 0.27), (resnet56(), 0.85), (preact_resnet18(), 11.17)],
    ids=["resnet20", "resnet56", "preact_resnet18"],
)
def test_parameters_are_as_many_as_published(net: nn.Module, millions: float) -> None:
    assert _parameters(net) / 1e6 == pytest.approx(millions, abs=0.006)


@pytest.mark.parametrize("num_classes", [2, 10, 100])
@pytest.mark.parametrize("build", [resnet20, lambda n: SmallCNN(3, n, 4)], ids=["resnet20", "small_cnn"])
def test_logits_have_one_column_per_class(build: object, num_classes: int) -> None:
    logits = build(num_classes)(torch.rand(2, 3, 32, 32))  # type: ignore[operator]
    assert logits.shape == (2, num_classes)


def test_preact_resnet_runs_on_other_sizes_and_channels() -> None:
    from lightning_robust.models import PreActResNet18

    net = PreActResNet18(7, width=4, in_channels=1)
    assert net(torch.rand(2, 1, 28, 28)).shape == (2, 7)
    assert net(torch.rand(2, 1, 64, 48)).shape == (2, 7)


@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
def test_pad_shortcut_is_the_strided_slice_with_zero_channels(size: tuple[int, int]) -> None:
    x = torch.randn(2, 4, *size)
    expected = torch.zeros(2, 8, math.ceil(size[0] / 2), math.ceil(size[1] / 2))
    expected[:, 2:6] = x[:, :, ::2, ::2]
    assert torch.equal(PadShortcut(4, 8, 2)(x), expected)


def _reference_resnet(net: CifarResNet, x: Tensor) -> Tensor:
    """The forward pass of the paper's figure, from the weights alone."""
    weights = dict(net.named_parameters())

    def convolution(name: str, norm: str, x: Tensor, stride: int = 1) -> Tensor:
        x = F.conv2d(x, weights[f"{name}.weight"], stride=stride, padding=1)
        return F.batch_norm(x, None, None, weights[f"{norm}.weight"], weights[f"{norm}.bias"], training=True)

    x = F.relu(convolution("conv1", "bn1", x))
    for stage in (1, 2, 3):
        for block in range(3):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = F.relu(convolution(f"{name}.conv1", f"{name}.bn1", x, stride))
            y = convolution(f"{name}.conv2", f"{name}.bn2", y)
            if stride == 2:
                x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, x.shape[1] // 2, x.shape[1] // 2))
            x = F.relu(x + y)
    return F.linear(x.mean((2, 3)), weights["linear.weight"], weights["linear.bias"])


def test_resnet_computes_what_the_paper_draws() -> None:
    net, x = resnet20().double().train(), torch.rand(4, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(net(x), _reference_resnet(net, x))


def test_preact_resnet_starts_from_the_released_distribution() -> None:
    torch.manual_seed(0)
    net = preact_resnet18()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            expected = math.sqrt(2.0 / (math.prod(module.kernel_size) * module.out_channels))
            assert module.weight.std().item() == pytest.approx(expected, rel=0.1)
    assert net.linear.weight.std().item() == pytest.approx(math.sqrt(2.0 / 512), rel=0.1)
    assert not net.linear.bias.any()


def test_preact_resnet_has_no_norm_after_the_last_block() -> None:
    """The last batch norm belongs to the second convolution of the last block: logits follow its sum directly."""
    net, x = preact_resnet18().eval(), torch.rand(1, 3, 16, 16)
    seen: list[Tensor] = []
    net.layer4.register_forward_hook(lambda _m, _i, output: seen.append(output))
    logits = net(x)
    torch.testing.assert_close(logits, net.linear(seen[0].mean((2, 3))))
    assert seen[0].min() < 0, "a ReLU would have cut the negative values"


@pytest.mark.parametrize("net", [resnet20(), preact_resnet18(), SmallCNN()], ids=lambda net: type(net).__name__)
def test_every_downsampling_is_a_layer(net: nn.Module) -> None:
    """Sizes are the same before and after stride 1 is set in every layer, except by the layers' own strides."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.AvgPool2d | nn.MaxPool2d):
            module.stride = 1 if not isinstance(module, nn.Conv2d) else (1, 1)
    for pool in [m for m in net.modules() if isinstance(m, nn.MaxPool2d)]:
        pool.kernel_size = 1
    sizes: list[tuple[int, ...]] = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _m, _i, output: sizes.append(tuple(output.shape[-2:])))
    channels = next(m for m in net.modules() if isinstance(m, nn.Conv2d)).in_channels
    net(torch.rand(1, channels, 16, 16).repeat(2, 1, 1, 1))
    assert set(sizes) == {(16, 16)}

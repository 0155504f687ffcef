"""find_unreached: what downsamples outside of layers, and that the run leaves no trace."""

from __future__ import annotations

import pytest
import torch
from support.swap_nets import HiddenSteps, small_resnet
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_robust.errors import InputError
from lightning_robust.nn import find_unreached, swap_downsampling


class Branches(nn.Module):
    """Calls functions of every kind, and reductions that are none."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3, 3, 3, 3))
        self.steps = nn.ModuleDict({"inner": HiddenSteps()})

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        y = F.conv2d(x * scale, self.weight, stride=2, padding=1)
        y = F.avg_pool2d(y, 2)
        y = F.adaptive_max_pool2d(y, 8)
        y = self.steps["inner"](y) * F.adaptive_avg_pool2d(x, 1)
        return (y[::2], x[:, ::2], x[..., ::4], F.interpolate(y, scale_factor=2), F.avg_pool2d(y, y.shape[-1]))[0]


def test_every_kind_is_named_with_its_module() -> None:
    found = find_unreached(nn.Sequential(nn.Identity(), Branches()), torch.rand(2, 3, 64, 64))
    assert [(entry.name, entry.kind, entry.operation) for entry in found] == [
        ("1", "Branches", "conv2d with stride (2, 2) at 64 x 64"),
        ("1", "Branches", "avg_pool2d at 32 x 32"),
        ("1", "Branches", "adaptive_max_pool2d at 16 x 16"),
        ("1.steps.inner", "HiddenSteps", "slice with step 2 along height"),
        ("1.steps.inner", "HiddenSteps", "slice with step 2 along width"),
        ("1.steps.inner", "HiddenSteps", "interpolate at 4 x 4"),
        # 2 x 2 to 1 x 1 is a pool of the whole map
        ("1", "Branches", "slice with step 4 along width"),
    ]


@pytest.mark.parametrize("swapped", [False, True])
def test_layers_that_can_be_swapped_are_not_unreached(swapped: bool) -> None:
    net = small_resnet()
    if swapped:
        swap_downsampling(net)
    assert find_unreached(net, torch.rand(2, 3, 64, 64)) == ()


def test_the_run_leaves_no_trace() -> None:
    net = nn.Sequential(small_resnet()[0], nn.BatchNorm2d(8), nn.Dropout(0.5))
    net.train()
    net[1].eval()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    random = torch.get_rng_state()
    find_unreached(net, torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert [part.training for part in net] == [True, False, True]
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())


def test_inputs_as_tuple_and_dict() -> None:
    image = torch.rand(1, 3, 64, 64)
    assert find_unreached(Branches(), (image,)) == find_unreached(Branches(), {"x": image, "scale": 0.5})


def test_a_model_that_does_not_run_is_named_and_left_as_it_was() -> None:
    net = small_resnet()
    with pytest.raises(InputError, match=r"Sequential does not run on example_input \(RuntimeError"):
        swap_downsampling(net, example_input=torch.rand(2, 5, 32, 32))
    assert type(net[0][0]) is nn.Conv2d
    assert net.training
    assert not any(part._forward_hooks for part in net.modules())


def test_a_compiled_model_is_probed_eagerly() -> None:
    found = find_unreached(torch.compile(nn.Sequential(HiddenSteps()), backend="eager"), torch.rand(1, 3, 16, 16))
    assert {entry.kind for entry in found} == {"HiddenSteps"}
    assert str(found[0]) == "slice with step 2 along height in _orig_mod.0 (HiddenSteps)"

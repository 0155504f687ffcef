"""Maps of nets: which features and head are found, and what is left behind."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_robust.errors import InputError
from lightning_robust.models import SmallCNN, preact_resnet18, resnet20
from lightning_robust.nn import RobustActivationMap

IMAGE = torch.rand(3, 3, 32, 24, generator=torch.Generator().manual_seed(0))


class Trunk(nn.Module):
    """Two convolutions, the last activation a function, then a head."""

    def __init__(self, head: nn.Module, *, pool="mean", after=None):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1)
        self.norm, self.drop = nn.BatchNorm2d(8), nn.Dropout(0.5)
        self.head, self.pool, self.after = head, pool, after

    def features(self, x):
        return F.relu(self.norm(self.second(F.relu(self.first(x)))))

    def forward(self, x):
        x = self.features(x)
        if self.pool == "mean":
            x = self.drop(x.mean((2, 3)))
        elif self.pool == "max":
            x = x.amax((2, 3))
        elif self.pool == "keep":
            x = F.adaptive_avg_pool2d(x, 1)
        elif self.pool == "flat":
            x = F.adaptive_avg_pool2d(x, 2).flatten(1)
        x = self.head(x)
        return x.flatten(1) if self.after is None else self.after(x)


def build(head, seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Trunk(head(), **options)
        # as if trained: features that vary over the image
        with torch.no_grad():
            second = net.second(F.relu(net.first(IMAGE)))
        net.norm.running_mean.copy_(second.mean((0, 2, 3)))
        net.norm.running_var.copy_(second.var((0, 2, 3)))
    return net


def _by_hand(net, weight, image=IMAGE, classes=5):
    """Equation 5 with the net's own features, from its logits in evaluation mode."""
    twin = copy.deepcopy(net).eval()
    with torch.no_grad():
        features, logits = twin.features(image), twin(image)
    maps = []
    for f, row in zip(features, logits, strict=True):
        ranked = row.argsort(descending=True)[:classes]
        mixed = sum((weight[c].view(-1, 1, 1) * f).sum(0) / 2**i for i, c in enumerate(ranked, start=1))
        maps.append((mixed / mixed.max()).clamp(0, 1) if mixed.max() > 0 else torch.zeros_like(mixed))
    return F.interpolate(torch.stack(maps)[:, None], image.shape[2:], mode="bilinear")[:, 0]


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_linear_head(pool):
    net = build(lambda: nn.Linear(8, 10), pool=pool)
    weight = net.head.weight.detach()
    torch.testing.assert_close(RobustActivationMap(net)(IMAGE), _by_hand(net, weight), rtol=1e-4, atol=1e-5)
    few = RobustActivationMap(net, classes=2)(IMAGE)
    assert few.max() > 0.5
    torch.testing.assert_close(few, _by_hand(net, weight, classes=2), rtol=1e-4, atol=1e-5)
    assert (few - _by_hand(net, weight)).abs().max() > 0.01


@pytest.mark.parametrize("pool", ["keep", "none"])
def test_convolution_head_before_or_after_the_pool(pool):
    after = {"keep": None, "none": lambda x: F.relu(x).mean((2, 3))}[pool]
    net = build(lambda: nn.Conv2d(8, 10, 1), pool=pool, after=after)
    by_hand = _by_hand(net, net.head.weight.detach().flatten(1))
    torch.testing.assert_close(RobustActivationMap(net)(IMAGE), by_hand, rtol=1e-4, atol=1e-5)


def test_a_background_class_is_left_out():
    net = build(lambda: nn.Conv2d(8, 11, 1), pool="keep", after=lambda x: x.flatten(1)[:, 1:])
    by_hand = _by_hand(net, net.head.weight.detach().flatten(1)[1:])
    torch.testing.assert_close(RobustActivationMap(net)(IMAGE), by_hand, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weighting", ["paper", "released"])
@pytest.mark.parametrize("net", [resnet20, preact_resnet18, lambda: SmallCNN(3)], ids=["resnet", "preact", "small"])
def test_nets_of_the_package_need_no_names_and_gradients_agree(net, weighting):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = net()
    by_head = RobustActivationMap(net, weighting=weighting)(IMAGE)
    by_gradient = RobustActivationMap(net, weighting=weighting, weights="gradcam")(IMAGE)
    assert by_head.shape == (3, 32, 24)
    assert 0 <= by_head.min() < by_head.max() <= 1
    torch.testing.assert_close(by_gradient, by_head, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("weights", ["cam", "gradcam"])
def test_a_call_may_ask_for_the_top_class_alone(weights):
    net = build(lambda: nn.Linear(8, 10))
    make_map = RobustActivationMap(net, weights=weights)
    single = make_map(IMAGE, classes=1)
    assert torch.equal(single, RobustActivationMap(net, classes=1, weights=weights)(IMAGE))
    assert not torch.equal(single, make_map(IMAGE))
    with pytest.raises(InputError, match="classes=0"):
        make_map(IMAGE, classes=0)


def _counted(net):
    """The numbers of images that a net is run on, as it goes."""
    seen = []
    net.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    return seen


@pytest.mark.parametrize("weights", ["cam", "gradcam"])
def test_copies_of_an_image_go_through_the_net_once(weights):
    net = build(lambda: nn.Linear(8, 10))
    make_map, order = RobustActivationMap(net, weights=weights), torch.tensor([2, 0, 0, 1, 2, 0, 1, 1])
    single = make_map(IMAGE)
    seen = _counted(net)
    assert torch.equal(make_map(IMAGE[order]), single[order])
    assert torch.equal(make_map(IMAGE.flip(0)), single.flip(0))
    assert seen == [3, 3]


@pytest.mark.parametrize("row", [0, 3, 31])
def test_images_that_differ_in_one_pixel_keep_their_own_maps(row):
    other = IMAGE.clone()
    other[:, :, row, 5] = 1 - other[:, :, row, 5].round()
    both = torch.cat([IMAGE, other, other])
    net = build(lambda: nn.Linear(8, 10))
    make_map = RobustActivationMap(net)
    expected = torch.cat([make_map(IMAGE), make_map(other), make_map(other)])
    seen = _counted(net)
    torch.testing.assert_close(make_map(both), expected, rtol=1e-5, atol=1e-6)
    assert seen == [6]


def test_images_that_share_a_key_keep_their_own_maps(monkeypatch):
    monkeypatch.setattr("lightning_robust.seeds.of_content", lambda image: torch.zeros(len(image), dtype=torch.int64))
    net = build(lambda: nn.Linear(8, 10))
    order = torch.tensor([1, 0, 1, 2])
    assert torch.equal(RobustActivationMap(net)(IMAGE[order]), RobustActivationMap(net)(IMAGE)[order])


def test_other_heads_by_gradient():
    net = build(lambda: nn.Sequential(nn.Linear(32, 12), nn.ReLU(), nn.Linear(12, 10)), pool="flat")
    with pytest.raises(InputError, match=r"not fed by the average.*weights='gradcam'"):
        RobustActivationMap(net)(IMAGE)
    found = RobustActivationMap(net, weights="gradcam", classes=1)(IMAGE)
    features = net.eval().features(IMAGE).detach().requires_grad_()
    net.features, old = (lambda x: features), net.features
    net(IMAGE).max(1).values.sum().backward()
    net.features = old
    assert found.shape == (3, 32, 24)
    # the map that is nearest to the head is the pooled one, of 2 x 2
    pooled = F.adaptive_avg_pool2d(features, 2).detach()
    slope = F.adaptive_avg_pool2d(features.grad, 1)
    mixed = (slope * pooled).sum(1)
    expected = (mixed / mixed.amax((1, 2), keepdim=True)).clamp(0, 1) * (mixed.amax((1, 2), keepdim=True) > 0)
    expected = F.interpolate(expected[:, None], (32, 24), mode="bilinear")[:, 0]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    named = RobustActivationMap(net, weights="gradcam", classes=1, layer="norm")(IMAGE)
    assert not torch.allclose(named, found)


class ChannelsLast(nn.Module):
    """Norms over the last dimension, as in ConvNeXt: around each block, or behind the pool, or for good."""

    def __init__(self, *, returns):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 9, 3, 2, 1)
        self.mix, self.norm, self.head = nn.Linear(9, 9), nn.LayerNorm(9), nn.Linear(9, 10)
        self.returns = returns

    def forward(self, x):
        x = self.trunk = self.second(F.gelu(self.first(x)))
        last = self.mix(x.permute(0, 2, 3, 1))
        if not self.returns:
            return self.head(self.norm(last).mean((1, 2)))
        x = self.trunk = x + last.permute(0, 3, 1, 2)
        x = F.adaptive_avg_pool2d(x, 1).permute(0, 2, 3, 1)
        return self.head(self.norm(x).permute(0, 3, 1, 2).flatten(1))


def channels_last(**options):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return ChannelsLast(**options)


def test_a_norm_over_channels_behind_the_pool_is_no_map():
    net = channels_last(returns=True)
    found = RobustActivationMap(net, weights="gradcam", classes=1)(IMAGE)
    logits, trunk = net(IMAGE), net.trunk
    (slope,) = torch.autograd.grad(logits.max(1).values.sum(), trunk)
    mixed = (slope.mean((2, 3), keepdim=True) * trunk).sum(1).detach()
    top = mixed.amax((1, 2), keepdim=True)
    expected = torch.where(top > 0, (mixed / top).clamp(0, 1), 0.0)
    expected = F.interpolate(expected[:, None], (32, 24), mode="bilinear")[:, 0]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_channels_at_the_end_are_refused_unless_a_layer_is_named():
    net = channels_last(returns=False)
    with pytest.raises(InputError, match=r"moves the channels to the end.*Name a layer.*layer='...'"):
        RobustActivationMap(net, weights="gradcam")(IMAGE)
    assert RobustActivationMap(net, weights="gradcam", layer="second")(IMAGE).max() > 0


class Joined(nn.Module):
    """Channels of several convolutions side by side, and a gate of one channel, before the pool."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.gate = nn.Conv2d(3, 5, 3, 4, 1), nn.Conv2d(3, 4, 3, 4, 1), nn.Conv2d(9, 1, 3, 1, 1)
        self.head = nn.Linear(9, 10)

    def forward(self, x):
        x = F.relu(torch.cat([self.left(x), self.right(x)], 1))
        return self.head((x * torch.sigmoid(self.gate(x))).mean((2, 3)))


def test_joined_and_gated_maps_are_maps():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Joined()
    by_head, by_gradient = (RobustActivationMap(net, weights=weights)(IMAGE) for weights in ("cam", "gradcam"))
    assert by_head.max() > 0
    torch.testing.assert_close(by_gradient, by_head, rtol=1e-3, atol=1e-4)


def test_names_choose_layer_and_head():
    net = build(lambda: nn.Linear(8, 10))
    found = RobustActivationMap(net)(IMAGE)
    torch.testing.assert_close(RobustActivationMap(net, head="head")(IMAGE), found)
    before = RobustActivationMap(net, layer="norm")(IMAGE)
    assert not torch.allclose(before, found)
    with pytest.raises(InputError, match=r"layer='layer4' names no module of Trunk.*'head'"):
        RobustActivationMap(net, layer="layer4")(IMAGE)
    with pytest.raises(InputError, match=r"head='norm' is a BatchNorm2d"):
        RobustActivationMap(net, head="norm")(IMAGE)
    with pytest.raises(InputError, match=r"layer names a Linear that returns \(3, 10\)"):
        RobustActivationMap(net, layer="head")(IMAGE)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches, self.mix, self.head = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 8), nn.Linear(8, 10)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        attention = (x.unflatten(2, (2, 4)).transpose(1, 2) @ x.unflatten(2, (2, 4)).permute(0, 2, 3, 1)).softmax(-1)
        x = self.mix(x) + attention.mean(1) @ x
        return self.head(x[:, 0])


@pytest.mark.parametrize("weights", ["cam", "gradcam"])
@pytest.mark.parametrize(
    "net",
    [Tokens(), nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 24, 16), nn.ReLU(), nn.Linear(16, 10))],
    ids=["tokens", "flat"],
)
def test_nets_without_a_map_are_refused(net, weights):
    with pytest.raises(InputError, match="map of features"):
        RobustActivationMap(net, weights=weights)(IMAGE)


def test_what_is_no_classifier_is_refused():
    with pytest.raises(InputError, match=r"Conv2d returned \(3, 4, 32, 24\)"):
        RobustActivationMap(nn.Conv2d(3, 4, 1))(IMAGE)
    with pytest.raises(InputError, match=r"lie in \[-1, -1\].*normalize inside"):
        RobustActivationMap(SmallCNN(3))(torch.full((1, 3, 32, 32), -1.0))
    with pytest.raises(InputError, match=r"model is function"):
        RobustActivationMap(lambda x: x)


@pytest.mark.parametrize("weights", ["cam", "gradcam"])
def test_no_trace_is_left_on_the_net(weights):
    net = build(lambda: nn.Linear(8, 10))
    net.norm.eval()
    net.first.weight.requires_grad_(False)
    state = copy.deepcopy(net.state_dict())
    random = torch.random.get_rng_state()
    runs = []
    net.register_forward_hook(lambda *_: runs.append(1))
    hooks = sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in net.modules())
    RobustActivationMap(net, weights=weights)(IMAGE)
    assert len(runs) == 1
    assert sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in net.modules()) == hooks
    assert [part.training for part in net.modules()] == [not isinstance(part, nn.BatchNorm2d) for part in net.modules()]
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not net.first.weight.requires_grad
    assert torch.equal(torch.random.get_rng_state(), random)


def test_hooks_and_modes_go_when_the_net_fails():
    net = build(lambda: nn.Linear(9, 10))
    with pytest.raises(RuntimeError, match="shapes"):
        RobustActivationMap(net)(IMAGE)
    assert net.training
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())


@pytest.mark.parametrize("weights", ["cam", "gradcam"])
def test_works_and_agrees_wherever_it_is_called(weights):
    net = build(lambda: nn.Linear(8, 10))
    make_map = RobustActivationMap(net, weights=weights)
    plain = make_map(IMAGE)
    assert not plain.requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(make_map(IMAGE.clone()), plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(make_map(IMAGE), plain)
    torch.testing.assert_close(torch.cat([make_map(one[None]) for one in IMAGE]), plain)
    torch.testing.assert_close(make_map(IMAGE.clone().requires_grad_()), plain)
    torch.testing.assert_close(make_map(IMAGE.double()), RobustActivationMap(net, weights=weights)(IMAGE))
    half = RobustActivationMap(copy.deepcopy(net).to(torch.bfloat16), weights=weights)(IMAGE)
    torch.testing.assert_close(half, plain, rtol=0, atol=0.2)


def test_a_net_is_bound_where_none_was_given():
    first, second = build(lambda: nn.Linear(8, 10)), build(lambda: nn.Linear(8, 10), seed=1)
    waiting, given = RobustActivationMap(), RobustActivationMap(first)
    assert not waiting.is_bound
    assert given.is_bound
    with pytest.raises(InputError, match=r"has no net.*bind"):
        waiting(IMAGE)
    waiting.bind(second)
    given.bind(second)
    assert waiting.is_bound
    assert torch.equal(given(IMAGE), RobustActivationMap(first)(IMAGE))
    assert torch.equal(waiting(IMAGE), RobustActivationMap(second)(IMAGE))
    assert not list(given.parameters())
    assert not given.state_dict()
    assert not list(waiting.children())
    for twin in (copy.deepcopy(given), pickle.loads(pickle.dumps(RobustActivationMap(resnet20())))):
        assert twin(IMAGE).shape == (3, 32, 24)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "lime"}, "weights='lime'"),
        ({"weights": "gradcam", "head": "fc"}, "head='fc' has no meaning"),
        ({"classes": 0}, "classes=0"),
        ({"weighting": "code"}, "weighting='code'"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        RobustActivationMap(**options)

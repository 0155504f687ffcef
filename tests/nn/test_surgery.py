"""swap_downsampling, its undo and its record."""

from __future__ import annotations

import copy
import functools
import pickle
import warnings
from typing import Any

import pytest
import torch
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from support.swap_nets import Conv2dSame, FixedSizeConv2d, HiddenSteps, StandardizedConv2d, small_resnet
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from lightning_robust.errors import InputError, NoEffectWarning, UnsupportedError
from lightning_robust.functional import frequency_lowpass2d, frequency_pool2d
from lightning_robust.nn import ASAPPool2d, SwapReport, apply_record, revert_downsampling, swap_downsampling

ORDERS = ("pool_first", "lowpass", "conv_first")


def plain_pool(x: Tensor, size: tuple[int, int]) -> Tensor:
    """A pool of the user's own."""
    return F.adaptive_avg_pool2d(x, size)


class PlainPool(nn.Module):
    """A pool of the user's own, as a class; it holds a layer that must not be swapped itself."""

    def __init__(self, stride: tuple[int, int]) -> None:
        super().__init__()
        self.stride = stride
        self.inner = nn.AvgPool2d(2)
        self.register_buffer("scale", torch.ones(()), persistent=False)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return F.adaptive_avg_pool2d(x, size) * self.scale


class LearnedPool(nn.Module):
    def __init__(self, stride: tuple[int, int]) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))


def _image(*size: int, channels: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, channels, *size, dtype=dtype, generator=torch.Generator().manual_seed(0))


@given(
    kernel=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    stride=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    groups=st.sampled_from([1, 2, 4]),
    mode=st.sampled_from(["zeros", "circular", "reflect"]),
    size=st.tuples(st.integers(4, 35), st.integers(4, 35)),
    order=st.sampled_from(ORDERS),
    pool=st.sampled_from(["asap", "flc", "blur"]),
)
@settings(max_examples=250, deadline=None)
def test_convolutions_keep_their_output_size(
    kernel: Any, stride: Any, padding: Any, dilation: Any, groups: int, mode: Any, size: Any, order: Any, pool: str
) -> None:
    conv = nn.Conv2d(4, 4, kernel, stride, padding, dilation, groups, padding_mode=mode)
    x = _image(*size, channels=4)
    try:
        expected = conv(x)
    except RuntimeError:
        assume(False)  # the map is too small for the layer itself
    pooled = [o + d * (k - 1) - 2 * p for o, d, k, p in zip(expected.shape[2:], dilation, kernel, padding, strict=True)]
    # what wraps around the pooled map must fit into it
    assume(mode == "zeros" or all(m > p for m, p in zip(pooled, padding, strict=True)))
    keys = list(conv.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)
        report = swap_downsampling(conv, pool, order=order)
    y = conv(x)
    assert y.shape == expected.shape
    assert list(conv.state_dict()) == keys
    event(f"{len(report.changed)} changed")
    assert len(report.changed) + len(report.skipped) == (max(stride) > 1)
    revert_downsampling(conv)
    assert type(conv) is nn.Conv2d
    assert torch.equal(conv(x), expected)


@given(
    kernel=st.integers(1, 4),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    ceil_mode=st.booleans(),
    size=st.tuples(st.integers(4, 33), st.integers(4, 33)),
    kind=st.sampled_from(["max", "max_then_pool", "average"]),
)
@settings(max_examples=150, deadline=None)
def test_pools_keep_their_output_size(
    kernel: int, stride: Any, padding: int, dilation: int, ceil_mode: bool, size: Any, kind: str
) -> None:
    assume(padding <= kernel // 2 and max(stride) > 1)
    layer: nn.Module = nn.AvgPool2d(kernel, stride, padding, ceil_mode)
    if kind != "average":
        layer = nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil_mode)
    x = _image(*size)
    try:
        expected = layer(x)
    except RuntimeError:
        assume(False)
    if not expected.numel():
        assume(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)
        report = swap_downsampling(layer, max_pool="max_then_pool" if kind == "max_then_pool" else "replace")
    event(f"{len(report.changed)} changed")
    y = layer(x)
    assert y.shape == expected.shape
    assert y.isfinite().all()
    revert_downsampling(layer)
    assert torch.equal(layer(x), expected)


def test_each_order_is_the_formula_it_names() -> None:
    conv = nn.Conv2d(3, 6, 3, stride=2, padding=1).double()
    x = _image(14, 11, dtype=torch.float64)
    weight, bias = conv.weight, conv.bias
    expected = {
        "pool_first": F.conv2d(frequency_pool2d(x, (7, 6)), weight, bias, padding=1),
        "lowpass": F.conv2d(frequency_lowpass2d(x, 2), weight, bias, stride=2, padding=1),
        "conv_first": frequency_pool2d(F.conv2d(x, weight, bias, padding=1), (7, 6)),
    }
    for order, y in expected.items():
        swap_downsampling(conv, order=order)
        torch.testing.assert_close(conv(x), y, rtol=0, atol=1e-12)
        revert_downsampling(conv)


def test_low_pass_equals_convolving_first_on_a_periodic_map() -> None:
    conv = nn.Conv2d(3, 6, 3, stride=2, padding=1, padding_mode="circular").double()
    x = _image(16, 16, dtype=torch.float64)
    outputs = []
    for order in ("lowpass", "conv_first"):
        swap_downsampling(conv, order=order)
        outputs.append(conv(x))
        revert_downsampling(conv)
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", ORDERS)
def test_shortcuts_pool_first_in_every_order(order: str) -> None:
    shortcut = nn.Conv2d(3, 6, 1, stride=2)
    (layer,) = swap_downsampling(shortcut, order=order).changed
    assert layer.spec.order == "pool_first"
    assert swap_downsampling(shortcut, order=order).changed == (layer,)


def test_max_then_pool_keeps_the_maximum() -> None:
    x = _image(8, 8)
    for layer in (nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2)):
        swap_downsampling(layer, max_pool="max_then_pool")
        right = 2 - 1 if layer.kernel_size == 2 else 0
        dense = F.max_pool2d(F.pad(x, (0, right, 0, right), value=-1e9), layer.kernel_size, 1, layer.padding)
        torch.testing.assert_close(layer(x), frequency_pool2d(dense, 4))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("pool", ["asap", "flc", "blur"])
def test_a_whole_network(order: str, pool: str) -> None:
    net = small_resnet().eval()
    x = _image(64, 48)
    expected, keys, parameters = net(x), list(net.state_dict()), list(net.parameters())
    report = swap_downsampling(net, pool, order=order)
    assert [layer.name for layer in report.changed] == ["0.0", "0.2", "1.conv1", "1.shortcut", "2.0"]
    assert [(layer.name, layer.kind) for layer in report.skipped] == [("2.1", "AdaptiveAvgPool2d")]
    y = net(x)
    assert y.shape == expected.shape
    assert not torch.allclose(y, expected)
    assert list(net.state_dict()) == keys
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin(x), y)
        revert_downsampling(twin)
        assert torch.equal(twin(x), expected)
    assert "pool=" + pool in repr(net)
    assert swap_downsampling(net, pool, order=order) == report
    assert revert_downsampling(net) == tuple(layer.name for layer in report.changed)
    assert torch.equal(net(x), expected)
    assert revert_downsampling(net) == ()
    assert "pool=" not in repr(net)


def test_hooks_and_optimizer_survive() -> None:
    net = small_resnet()
    seen: list[torch.Size] = []
    net[1].conv1.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    swap_downsampling(net)
    before = net[1].conv1.weight.detach().clone()
    net(_image(32, 32)).sum().backward()
    optimizer.step()
    assert seen == [torch.Size([2, 16, 4, 4])]
    assert not torch.equal(net[1].conv1.weight, before)


def test_a_shared_layer_is_swapped_once_and_found_by_each_name() -> None:
    pool = nn.MaxPool2d(2)
    net = nn.ModuleDict({"first": pool, "second": pool, "third": nn.MaxPool2d(2)})
    report = swap_downsampling(net, include="second")
    assert [layer.name for layer in report.changed] == ["first"]
    assert [layer.reason for layer in report.skipped] == ["not included"]


def test_include_and_exclude() -> None:
    net = small_resnet()
    report = swap_downsampling(net, include=["1.*", "0.*"], exclude="*.shortcut")
    assert [layer.name for layer in report.changed] == ["0.0", "0.2", "1.conv1"]
    assert {layer.name: layer.reason for layer in report.skipped}["1.shortcut"] == "excluded"


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(3, 8, 4, stride=4), "patches"),
        (nn.Conv2d(3, 8, 1, stride=2, padding=1), "lowpass"),
        (nn.MaxPool2d(3, 1, 1), "stride 1"),
        (nn.MaxPool2d(2, return_indices=True), "return_indices"),
        (nn.AvgPool2d(2, divisor_override=3), "divisor_override"),
        (nn.AvgPool2d(7), "head"),
        (nn.MaxPool2d(2, (2, 1), padding=1), "enlarges"),
        (nn.AdaptiveMaxPool2d(2), "adaptive"),
        (nn.LPPool2d(2, 2), "no rule"),
        (nn.LazyConv2d(8, 3, stride=2), "lazy"),
        (FixedSizeConv2d(3, 8, 3, stride=2), "unknown rule"),
        (type("OwnMaxPool", (nn.MaxPool2d,), {})(2), "subclass of MaxPool2d"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
def test_what_is_skipped_and_why(layer: nn.Module, reason: str) -> None:
    with pytest.warns(NoEffectWarning, match=reason):
        report = swap_downsampling(nn.Sequential(layer))
    assert reason in report.skipped[0].reason


@pytest.mark.parametrize("kind", [Conv2dSame, StandardizedConv2d])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("pool", ["asap", PlainPool])
def test_convolutions_with_a_forward_of_their_own(kind: type, order: str, pool: Any) -> None:
    if order == "lowpass" and pool is PlainPool:
        pytest.skip("a custom pool has no low-pass form")
    net = nn.Sequential(kind(3, 8, 3, stride=2, dilation=(2, 1)))
    sizes = [(33, 14), (16, 15)]
    expected = [net(_image(*size)) for size in sizes]
    swap_downsampling(net, pool, order=order)
    assert type(net[0]) is kind
    assert "pool=" in repr(net)
    twin = pickle.loads(pickle.dumps(copy.deepcopy(net)))
    for size, y in zip(sizes, expected, strict=True):
        found = net(_image(*size))
        assert found.shape == y.shape
        assert not torch.allclose(found, y)
        assert torch.equal(twin(_image(*size)), found)
    for model in (net, twin):
        revert_downsampling(model)
        assert torch.equal(model(_image(*sizes[0])), expected[0])
        assert repr(model) == repr(nn.Sequential(kind(3, 8, 3, stride=2, dilation=(2, 1))))


def test_parametrized_before_and_after_the_swap() -> None:
    x = _image(14, 14)
    net = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 8, 3, stride=2, padding=1)))
    expected = net(x)
    swap_downsampling(net)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1))
    plain[0].load_state_dict({"weight": net[0].weight.detach(), "bias": net[0].bias.detach()})
    swap_downsampling(plain)
    torch.testing.assert_close(net(x), plain(x))
    revert_downsampling(net)
    assert torch.equal(net(x), expected)

    parametrizations.weight_norm(plain[0])
    with pytest.raises(UnsupportedError, match="parametriz"):
        revert_downsampling(plain)
    torch.nn.utils.parametrize.remove_parametrizations(plain[0], "weight")
    revert_downsampling(plain)
    assert type(plain[0]) is nn.Conv2d


@pytest.mark.parametrize("pool", [plain_pool, PlainPool, ASAPPool2d])
def test_custom_pools(pool: Any) -> None:
    net = small_resnet()
    x = _image(32, 32)
    report = swap_downsampling(net, pool, order="conv_first")
    assert net.eval()(x).shape == (2, 5)
    assert list(net.state_dict()) == list(small_resnet().state_dict())
    assert swap_downsampling(net, pool, order="conv_first").changed == report.changed
    record = report.to_record()
    twin = small_resnet().eval()
    apply_record(twin, record)
    assert torch.equal(twin(x), net(x))
    revert_downsampling(net)
    assert [name for name, _ in net.named_modules()] == [name for name, _ in small_resnet().named_modules()]


def test_pools_that_cannot_serve_are_refused() -> None:
    for pool, message in [
        ("max", "asap, flc, blur"),
        (3, "asap, flc, blur"),
        (ASAPPool2d(), "give the class"),
        (LearnedPool, "gain"),
        (dict, "no torch.nn.Module"),
    ]:
        net = small_resnet()
        with pytest.raises(InputError, match=message):
            swap_downsampling(net, pool)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="low-pass form"):
        swap_downsampling(small_resnet(), plain_pool, order="lowpass")
    with pytest.raises(InputError, match="order="):
        swap_downsampling(small_resnet(), order="first")
    with pytest.raises(InputError, match="max_pool="):
        swap_downsampling(small_resnet(), max_pool="drop")
    net = small_resnet()
    swap_downsampling(net, lambda x, size: x)
    with pytest.raises(InputError, match="asked for"):
        net(_image(32, 32))


def test_another_swap_on_top_is_refused() -> None:
    net = small_resnet()
    swap_downsampling(net)
    for choices in ({"pool": "flc"}, {"order": "lowpass"}, {"max_pool": "max_then_pool"}):
        with pytest.raises(InputError, match="already swapped"):
            swap_downsampling(net, **choices)


@pytest.mark.parametrize("choice", [{"include": "2.*"}, {"exclude": ["0.*", "1.*"]}])
def test_layers_that_are_not_selected_keep_another_swap(choice: dict[str, Any]) -> None:
    net = small_resnet().eval()
    swap_downsampling(net, "flc", order="lowpass", include=["0.*", "1.*"])
    report = swap_downsampling(net, "asap", **choice)
    assert [layer.name for layer in report.changed] == ["2.0"]
    assert {layer.name for layer in report.skipped} == {"0.0", "0.2", "1.conv1", "1.shortcut", "2.1"}
    assert {net.get_submodule(name).downsampling.pool for name in ("0.0", "1.conv1")} == {"flc"}
    assert swap_downsampling(net, "asap", **choice) == report
    once = small_resnet().eval()
    swap_downsampling(once, "flc", order="lowpass", include=["0.*", "1.*"])
    swap_downsampling(once[2], "asap")
    assert torch.equal(net(_image(32, 32)), once(_image(32, 32)))
    with pytest.raises(InputError, match=r"1\.conv1 is already swapped"):
        swap_downsampling(net, "asap", exclude="0.*")


def test_the_record_is_plain_and_reapplies() -> None:
    net = small_resnet().eval()
    record = swap_downsampling(net, "flc", order="lowpass", exclude="0.0").to_record()
    assert _is_plain(record)
    twin = small_resnet().eval()
    report = apply_record(twin, record)
    assert report.to_record() == record
    assert torch.equal(twin(_image(32, 32)), net(_image(32, 32)))
    assert apply_record(twin, record) == report


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and _is_plain(part) for key, part in value.items())
    return all(map(_is_plain, value)) if type(value) is list else type(value) in (str, int)


def test_records_that_do_not_fit_are_refused() -> None:
    record = swap_downsampling(small_resnet()).to_record()
    layer = record["layers"][0]
    for changed, message in [
        ({"version": 9}, "version 9"),
        ({"layers": None}, "no record"),
        ({"layers": [{"name": "0.0"}]}, "no record"),
        ({"layers": [layer | {"name": "9.9"}]}, "does not have"),
        ({"layers": [layer | {"name": "0.1"}]}, "cannot be done"),
        ({"layers": [layer | {"stride": [3, 3]}]}, "stride"),
        ({"layers": [layer | {"pool": "not_there:Pool"}]}, "import the module"),
    ]:
        net = small_resnet()
        with pytest.raises(InputError, match=message):
            apply_record(net, record | changed)
        assert revert_downsampling(net) == ()
    other = small_resnet()
    swap_downsampling(other, "flc")
    with pytest.raises(InputError, match=r"pool=flc.*pool=asap"):
        apply_record(other, record)
    with pytest.raises(InputError, match="does not name it"):
        apply_record(other, {"version": 1, "layers": []})
    with pytest.raises(InputError, match="imported by name"):
        swap_downsampling(small_resnet(), functools.partial(frequency_pool2d, window="band")).to_record()


@pytest.mark.parametrize(
    "path",
    [
        "os:system",
        "subprocess:Popen",
        "builtins:exec",
        "os:popen.__call__",
        "torch.nn.functional:np",
        "torch.nn:Conv2d",  # defined in torch.nn.modules.conv
        "functools:partial",
        "no colon",
        ["os:system"],
    ],
)
def test_a_record_cannot_name_what_is_no_pool(path: Any) -> None:
    record = swap_downsampling(small_resnet()).to_record()
    record["layers"] = [layer | {"pool": path} for layer in record["layers"]]
    net = small_resnet()
    with pytest.raises(InputError, match="import the module"):
        apply_record(net, record)
    assert revert_downsampling(net) == ()


def test_the_report_reads_as_a_table() -> None:
    net = nn.Sequential(small_resnet()[0], HiddenSteps())
    text = str(swap_downsampling(net, example_input=_image(64, 64)))
    assert text.splitlines()[0] == "Downsampling: 2 changed, 0 skipped, 4 unreached"
    assert "unreached  1    HiddenSteps  slice with step 2 along height" in text
    assert str(SwapReport()) == "Downsampling: 0 changed, 0 skipped, 0 unreached"


@pytest.mark.parametrize("order", ORDERS)
def test_double_backward_through_a_swapped_network(order: str) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2, padding=1), nn.Softplus(), nn.MaxPool2d(2)).double()
    swap_downsampling(net, order=order)
    x = _image(7, 9, channels=1, dtype=torch.float64)[:1].requires_grad_()
    assert torch.autograd.gradcheck(net, x)
    assert torch.autograd.gradgradcheck(net, x)


@pytest.mark.skipif(
    torch.torch_version.TorchVersion(torch.__version__) < (2, 15),
    reason="before torch 2.15 a compiled graph takes one result of assume_constant_result only",
)
def test_compile_and_export_of_a_swapped_network() -> None:
    torch.compiler.reset()
    net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), Conv2dSame(4, 4, 3, stride=2), nn.MaxPool2d(3, 2, 1))
    swap_downsampling(net)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    for size in (16, 22):
        torch.testing.assert_close(compiled(_image(size, size)), net(_image(size, size)))
    program = torch.export.export(net, (_image(16, 16),))
    torch.testing.assert_close(program.module()(_image(16, 16)), net(_image(16, 16)))
    torch.compiler.reset()


def test_channels_last_survives() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.MaxPool2d(2)).to(memory_format=torch.channels_last)
    swap_downsampling(net)
    y = net(_image(32, 32).contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)

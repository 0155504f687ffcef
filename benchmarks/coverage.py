"""What ``swap_downsampling`` reaches in the architectures of timm, with random weights.

Needs timm, which the project does not depend on: make a side environment.

    uv venv /tmp/timm --python 3.11
    uv pip install -p /tmp/timm/bin/python timm -e .
"""

from __future__ import annotations

import argparse
import copy
import gc
import platform
import sys
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_robust.functional import jacobian_frequency_bias
from lightning_robust.nn import SwapReport, revert_downsampling, swap_downsampling

ARCHITECTURES = """
resnet18 resnet26d resnet50 resnetv2_50 seresnet50 resnest26d res2net50_26w_4s resnetblur50 resnetaa50 skresnet18
densenet121 vgg11_bn inception_v3 inception_v4 legacy_xception mobilenetv2_100 mobilenetv3_small_100
mobilenetv4_conv_small mnasnet_100 mixnet_s tf_mixnet_s tf_efficientnet_b0 efficientnet_lite0 efficientnetv2_rw_t
ghostnet_100 ghostnetv2_100 hardcorenas_a lcnet_050 tinynet_e rexnet_100 regnetx_002 regnety_002 dla34 dpn68 darknet53
cspdarknet53 hrnet_w18_small ese_vovnet19b_dw selecsls42b repvgg_a0 hgnetv2_b0 nf_resnet26 nfnet_l0 botnet26t_256
lambda_resnet26t convnext_atto convmixer_768_32 poolformer_s12 efficientformer_l1 edgenext_xx_small mobilevit_xxs
mobileone_s0 fastvit_t8 starnet_s1 repvit_m0_9 inception_next_atto tiny_vit_5m_224 levit_128s coat_lite_tiny pvt_v2_b0
vit_tiny_patch16_224 swin_tiny_patch4_window7_224 maxvit_pico_rw_256 focalnet_tiny_srf visformer_tiny rdnet_tiny
"""
EXAMPLE = """example:
  nice -n 10 python benchmarks/coverage.py --size 96 --out docs/results/coverage.md
  python benchmarks/coverage.py --only resnet18 vgg11_bn
"""


@dataclass
class Row:
    name: str
    size: int = 0
    report: SwapReport = field(default_factory=SwapReport)
    checks: dict[str, bool] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)
    error: str = ""
    note: str = ""
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        return not self.error and not self.missed and all(self.checks.values())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="write the table to this Markdown file after every network")
    parser.add_argument("--only", nargs="+", help="names of the architectures (default: the whole list)")
    parser.add_argument(
        "--size", type=int, default=96, help="image size; its own where an architecture needs it (default: 96)"
    )
    parser.add_argument("--order", default="pool_first", choices=["pool_first", "lowpass", "conv_first"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    import timm

    known = set(timm.list_models())
    names = options.only or [name for name in ARCHITECTURES.split() if name in known]
    rows: list[Row] = []
    for name in names:
        rows.append(examine(name, options))
        row = rows[-1]
        print(
            f"{len(rows)}/{len(names)} {name}: {'ok' if row.good else row.error or row.missed or row.checks}",
            flush=True,
        )
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(page(rows, options, timm.__version__))
    print(f"{sum(row.good for row in rows)} of {len(rows)} without a fault of the swap")


def examine(name: str, options: argparse.Namespace) -> Row:
    start = time.perf_counter()
    row = Row(name)
    try:
        torch.manual_seed(options.seed)
        model, image = build(name, options.size)
        row.size = image.shape[-1]
        check(model, image, row, options.order)
    except Exception as error:  # a network that fails is a row of the table
        row.error = f"{type(error).__name__}: {error}".splitlines()[0][:160]
    row.seconds = time.perf_counter() - start
    gc.collect()
    return row


def build(name: str, size: int) -> tuple[nn.Module, Tensor]:
    """Return a network and two images, at the size asked for or, where it does not run there, at its own."""
    import timm

    model = timm.create_model(name, pretrained=False, num_classes=10)
    for edge in (size, model.default_cfg["input_size"][-1]):
        image = torch.rand(2, 3, edge, edge)
        try:
            with torch.no_grad():
                model.eval()(image)
            return model, image
        except (RuntimeError, AssertionError, ValueError):
            continue
    raise RuntimeError("the network runs at no size tried")


def check(model: nn.Module, image: Tensor, row: Row, order: str) -> None:
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    reducing = reducing_layers(model, image)
    with torch.no_grad():
        before = model(image)
    unvaried = training_output(model, image)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row.report = swap_downsampling(model, order=order, example_input=image)  # type: ignore[arg-type]
    with torch.no_grad():
        after = model(image)
    varied = training_output(model, image)
    named = {entry.name for part in (row.report.changed, row.report.skipped, row.report.unreached) for entry in part}
    row.missed = [name for name in reducing if name not in named]
    row.checks["keys"] = shapes == {key: tuple(value.shape) for key, value in model.state_dict().items()}
    row.checks["shape"] = before.shape == after.shape
    row.checks["effect"] = bool(row.report.changed) != torch.equal(unvaried, varied)
    row.checks["backward"] = backward(model, image, regularized=False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            row.checks["double backward"] = backward(model, image, regularized=True)
    except RuntimeError:
        revert_downsampling(model)
        row.note = unswapped_failure(model, image)


def unswapped_failure(model: nn.Module, image: Tensor) -> str:
    """Say why a network has no second derivative even before the swap."""
    try:
        with sdpa_kernel(SDPBackend.MATH):
            backward(model, image, regularized=True)
    except RuntimeError as error:
        return f"no double backward, unswapped neither: {error}".splitlines()[0][:120]
    raise RuntimeError("double backward fails after the swap alone")


def reducing_layers(model: nn.Module, image: Tensor) -> list[str]:
    """Name the layers without children that make the map smaller, by their inputs and outputs alone."""
    found: list[str] = []
    handles = []
    for name, module in model.named_modules():
        if next(module.children(), None) is None:

            def note(_: nn.Module, args: tuple[Any, ...], output: Any, name: str = name) -> None:
                x = args[0] if args else None
                if isinstance(x, Tensor) and isinstance(output, Tensor) and x.ndim == output.ndim == 4:
                    nchw = output.shape[1] != x.shape[1] or x.shape[1] > x.shape[-1] or x.shape[-1] == x.shape[-2]
                    smaller = 2 * output.shape[-1] <= x.shape[-1] + 1 and 2 * output.shape[-2] <= x.shape[-2] + 1
                    if nchw and smaller and tuple(output.shape[-2:]) != (1, 1):
                        found.append(name)

            handles.append(module.register_forward_hook(note))
    with torch.no_grad():
        model(image)
    for handle in handles:
        handle.remove()
    return list(dict.fromkeys(found))


def training_output(model: nn.Module, image: Tensor) -> Tensor:
    """Return the output with the statistics of the batch: with random weights, maps fade out in evaluation mode."""
    torch.manual_seed(0)
    twin = copy.deepcopy(model).train()
    with torch.no_grad():
        output = twin(image)
    return output[0] if isinstance(output, tuple | list) else output


def backward(model: nn.Module, image: Tensor, *, regularized: bool) -> bool:
    """Tell whether a training step gives finite gradients, with the penalty on the input gradient or without."""
    model.train()
    model.zero_grad()
    leaf = image.clone().requires_grad_()
    output = model(leaf)
    output = output[0] if isinstance(output, tuple | list) else output
    loss = F.cross_entropy(output, torch.tensor([0, 1]))
    if regularized:
        (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
        loss = loss + 0.001 * jacobian_frequency_bias(gradient)
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return bool(gradients) and all(bool(g.isfinite().all()) for g in gradients)


def page(rows: list[Row], options: argparse.Namespace, timm_version: str) -> str:
    noted = sum(row.good and bool(row.note) for row in rows)
    passed = sum(row.good for row in rows) - noted
    lines = [
        "# What the swap reaches in timm's architectures",
        "",
        f"Random weights, two images, `order={options.order}`, seed {options.seed}. Made by "
        f"`python benchmarks/coverage.py --size {options.size} --order {options.order} --seed {options.seed}` with "
        f"torch {torch.__version__}, timm {timm_version}, Python {platform.python_version()}, one thread.",
        "",
        f"**{passed} of {len(rows)} architectures pass every check**: equal state-dict keys and shapes, equal output "
        "shape, an output that changed if and only if a layer did, finite gradients of a training step and of one with "
        "a JaFR penalty, and no layer that halves the map and is named nowhere in the report (found by a second method:"
        f" the sizes of every layer's input and output). {noted} more pass all but the JaFR step, for which torch has "
        "no second derivative in the plain network either. Attention takes its math kernel in that step.",
        "",
        "Reshapes that fold pixels into channels lose nothing and are not listed. `unreached` counts operations in the "
        "forward of modules: functional pools, strided slices, convolutions called as functions.",
        "",
        "| architecture | size | changed | skipped | unreached | checks |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        reasons = Counter(f"{layer.kind}: {layer.reason.split(':')[0]}" for layer in row.report.skipped)
        skipped = "; ".join(f"{count} {reason}" for reason, count in reasons.items()) or "0"
        operations = Counter(f"{found.operation.split(' at ')[0]} in {found.kind}" for found in row.report.unreached)
        unreached = "; ".join(f"{count} {operation}" for operation, count in operations.items()) or "0"
        kinds = Counter(layer.kind for layer in row.report.changed)
        changed = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "0"
        failed = [name for name, passed in row.checks.items() if not passed]
        failed += [f"silent miss: {name}" for name in row.missed]
        verdict = row.error or "; ".join(failed) or row.note or "pass"
        lines.append(
            f"| {row.name} | {row.size} | {changed} | {skipped} | {unreached} | {verdict} |".replace("\n", " ")
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())

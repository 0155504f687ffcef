"""What the CPU tests cannot see: the same promises on a CUDA device."""

from __future__ import annotations

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_robust import seeds
from lightning_robust.attacks import fgsm, pgd
from lightning_robust.callbacks import AdversarialTraining, JacobianFrequencyRegularization, PreemptiveSharpening
from lightning_robust.datamodules import ShardDataModule
from lightning_robust.functional import frequency_pool2d, laplacian_sharpen
from lightning_robust.models import ImageClassifier, SmallCNN
from lightning_robust.nn import ASAPPool2d
from lightning_robust.shards import Sample, pack

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here"),
]
EPS = 8 / 255


@pytest.fixture(autouse=True)
def exact_products():
    before = torch.get_float32_matmul_precision()
    convolutions = torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before)
    torch.backends.cudnn.allow_tf32 = convolutions


@pytest.fixture
def deterministic(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def images(count=6, size=33):
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["uint8", "float", "grid"])
@pytest.mark.parametrize("alpha", [0.15, 0.3, 0.5, 1.0, "per sample"])
@pytest.mark.parametrize("neighbors", [4, 8])
def test_rounded_sharpening_has_the_bits_of_the_cpu(kind, alpha, neighbors):
    image = images()
    if kind == "grid":
        image = image / 255
    elif kind == "float":
        image = torch.rand(image.shape, generator=torch.Generator().manual_seed(1))
    if alpha == "per sample":
        alpha = torch.linspace(0, 1, len(image), dtype=torch.float64)
    wanted = laplacian_sharpen(image, alpha, neighbors=neighbors)
    found = laplacian_sharpen(image.cuda(), alpha, neighbors=neighbors)
    assert found.is_cuda
    assert found.dtype == wanted.dtype
    assert torch.equal(found.cpu(), wanted)


def test_continuous_sharpening_and_its_gradient_are_near_the_cpu():
    results = []
    for device in ("cpu", "cuda"):
        image = (images() / 255).to(device).requires_grad_()
        sharp = laplacian_sharpen(image, 0.15, levels=None)
        (gradient,) = torch.autograd.grad(sharp.square().sum(), image)
        results.append((sharp.detach().cpu(), gradient.cpu()))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", ["asap", "rect", "band"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.float16, 5e-3), (torch.bfloat16, 4e-2)],
)
def test_pooling_equals_float64_on_the_cpu(window, memory_format, dtype, tolerance):
    x = torch.randn(2, 5, 14, 9, generator=torch.Generator().manual_seed(2)).to(dtype)
    wanted = frequency_pool2d(x.double(), (7, 5), window=window)
    found = frequency_pool2d(x.cuda().contiguous(memory_format=memory_format), (7, 5), window=window)
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(found.double().cpu(), wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("variant", ["centered", "released"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 5e-3), (torch.bfloat16, 4e-2)])
def test_pooling_layer_and_its_gradient_equal_float64_on_the_cpu(variant, dtype, tolerance):
    layer = ASAPPool2d(2, variant=variant)
    x = torch.randn(2, 3, 32, 16, generator=torch.Generator().manual_seed(3)).to(dtype)
    exact, half = x.double().requires_grad_(), x.cuda().requires_grad_()
    wanted, found = layer(exact), layer(half)
    torch.testing.assert_close(found.double().cpu(), wanted, rtol=tolerance, atol=tolerance)
    upstream = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(4)).to(dtype)
    (slope,) = torch.autograd.grad(wanted, exact, upstream.double())
    (found_slope,) = torch.autograd.grad(found, half, upstream.cuda())
    torch.testing.assert_close(found_slope.double().cpu(), slope, rtol=tolerance, atol=tolerance)


def test_pooling_under_autocast_is_finite_and_near():
    x = torch.randn(2, 3, 14, 14, generator=torch.Generator().manual_seed(5))
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cuda", dtype):
            found = ASAPPool2d(2)(x.cuda())
        torch.testing.assert_close(found.float().cpu(), ASAPPool2d(2)(x), rtol=4e-2, atol=4e-2)


def test_random_numbers_have_the_bits_of_the_cpu():
    streams = torch.tensor([0, 1, -1, 2**62, -(2**63), 2**63 - 1])
    assert torch.equal(seeds.derive(streams.cuda(), "noise", 3).cpu(), seeds.derive(streams, "noise", 3))
    assert torch.equal(seeds.uniform(streams.cuda(), (3, 17), "a").cpu(), seeds.uniform(streams, (3, 17), "a"))
    assert torch.equal(seeds.integers(streams.cuda(), (50,), 10, "b").cpu(), seeds.integers(streams, (50,), 10, "b"))
    normal = seeds.normal(streams.cuda(), (100,), "c")
    torch.testing.assert_close(normal.cpu(), seeds.normal(streams, (100,), "c"), rtol=1e-4, atol=1e-5)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10)).cuda()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_attacks_stay_in_budget_and_do_not_depend_on_the_split(attack, norm, deterministic):
    eps = EPS if norm == "linf" else 0.5
    generator = torch.Generator().manual_seed(6)
    # float64: another batch size may take another kernel, whose rounding could turn the sign of a float32 slope near 0
    image = torch.rand(12, 3, 8, 8, generator=generator, dtype=torch.float64).cuda()
    target = torch.arange(12).cuda() % 10
    streams = seeds.derive(torch.arange(12)).cuda()
    model = net().double()

    def run(part):
        return attack(model, image[part], target[part], eps=eps, norm=norm, random_start=True, seeds=streams[part])

    whole = run(slice(None))
    split = torch.cat([run(slice(0, 5)), run(slice(5, 6)), run(slice(6, 12))])
    torch.testing.assert_close(split, whole, rtol=0, atol=1e-9)
    change = (whole - image).flatten(1)
    size = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    assert size.max().item() <= eps + 1e-6
    assert size.min().item() > 0.1 * eps
    assert 0 <= whole.min().item() <= whole.max().item() <= 1
    loss = nn.CrossEntropyLoss(reduction="none")
    assert (loss(model(whole), target) > loss(model(image), target)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_attack_on_half_precision_images_keeps_the_budget(dtype):
    image, target = torch.rand(4, 3, 8, 8, device="cuda").to(dtype), torch.arange(4, device="cuda")
    found = pgd(net(), image, target, eps=EPS, steps=3)
    assert found.dtype == dtype
    assert (found.double() - image.double()).abs().max().item() <= EPS + 1e-6


def trained(tmp_path, callbacks, **options):
    torch.manual_seed(0)
    module = ImageClassifier(SmallCNN(in_channels=3, num_classes=10), lr=0.01, schedule="constant")
    before = [parameter.detach().clone() for parameter in module.parameters()]
    # enough steps for the loss scale of float16 to come down
    batches = [(torch.rand(8, 3, 16, 16), torch.randint(0, 10, (8,))) for _ in range(8)]
    trainer = pl.Trainer(
        accelerator="gpu",
        devices=1,
        max_epochs=1,
        callbacks=callbacks,
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, DataLoader(batches, batch_size=None), DataLoader(batches[:1], batch_size=None))
    after = [parameter.detach().cpu() for parameter in module.parameters()]
    assert all(torch.isfinite(parameter).all() for parameter in after)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    return trainer, torch.cat([parameter.flatten() for parameter in after])


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
@pytest.mark.parametrize("forward", ["shared", "clean"])
def test_jafr_trains_in_every_precision(tmp_path, precision, forward):
    callback = JacobianFrequencyRegularization(0.05, forward=forward)
    trainer, weights = trained(tmp_path, [callback], precision=precision)
    assert torch.isfinite(trainer.callback_metrics["jafr/bias"])
    _, plain = trained(tmp_path, [], precision=precision)
    assert not torch.equal(weights, plain)


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_all_step_callbacks_together(tmp_path, precision):
    callbacks = [
        PreemptiveSharpening(stages=["train"]),
        JacobianFrequencyRegularization(0.05),
        AdversarialTraining(EPS),
    ]
    trained(tmp_path, callbacks, precision=precision)


def test_shard_batches_equal_those_on_the_cpu(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    pack([Sample(f"{i:03d}", image, i % 5) for i, image in enumerate(pixels)], tmp_path, samples_per_shard=16)

    def batches(device):
        data = ShardDataModule(train=str(tmp_path), test=str(tmp_path), batch_size=8, num_workers=1)
        found = []
        for stage, loader in (("fit", "train_dataloader"), ("test", "test_dataloader")):
            data.setup(stage)
            for batch in getattr(data, loader)():
                image, target = data.transfer_batch_to_device(batch, torch.device(device), 0)
                found.append((image, target, data.batch_ids))
        data.teardown("test")
        return found

    on_cpu, on_gpu = batches("cpu"), batches("cuda")
    assert len(on_gpu) == len(on_cpu) == 10
    for found, wanted in zip(on_gpu, on_cpu, strict=True):
        for part, other in zip(found, wanted, strict=True):
            assert part.is_cuda
            assert torch.equal(part.cpu(), other)

"""restore: a checkpoint of a swapped model gives the network that was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.swap_nets import small_resnet

from lightning_robust.errors import InputError
from lightning_robust.nn import restore, revert_downsampling, swap_downsampling


def _checkpoint() -> tuple[dict[str, Any], torch.nn.Module]:
    net = small_resnet().eval()
    with torch.no_grad():
        net[1].conv1.weight.mul_(2)
    record = swap_downsampling(net, "flc", exclude="0.0").to_record()
    return {"state_dict": net.state_dict(), "lightning_robust": {"downsampling": record}}, net


@pytest.mark.parametrize("form", ["dict", "file", "text"])
def test_restored_equals_trained(form: str, tmp_path: Path) -> None:
    contents, net = _checkpoint()
    path = tmp_path / "last.ckpt"
    torch.save(contents, path)
    restored = restore(small_resnet(), {"dict": contents, "file": path, "text": str(path)}[form]).eval()
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(restored(x), net(x))
    assert torch.equal(restore(restored, contents)(x), net(x))


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    contents, _ = _checkpoint()
    for broken in ({"state_dict": contents["state_dict"]}, {"lightning_robust": contents["lightning_robust"]}):
        with pytest.raises(InputError, match="no state_dict with a record"):
            restore(small_resnet(), broken)
    with pytest.raises(InputError, match="no checkpoint at"):
        restore(small_resnet(), tmp_path / "absent.ckpt")
    unsafe = tmp_path / "unsafe.ckpt"
    torch.save(contents | {"extra": Path("a")}, unsafe)
    with pytest.raises(InputError, match="weights_only"):
        restore(small_resnet(), unsafe)
    torch.save([1], unsafe)
    with pytest.raises(InputError, match="expected the dict"):
        restore(small_resnet(), unsafe)


def test_weights_of_another_network_leave_the_module_unswapped() -> None:
    contents, _ = _checkpoint()
    contents["state_dict"] = {"other": torch.zeros(1)}
    net = small_resnet()
    with pytest.raises(InputError, match="do not fit Sequential"):
        restore(net, contents)
    assert revert_downsampling(net) == ()


def test_another_swap_on_the_module_is_refused() -> None:
    contents, _ = _checkpoint()
    net = small_resnet()
    swap_downsampling(net, "asap", exclude="0.0")
    with pytest.raises(InputError, match=r"pool=asap.*pool=flc"):
        restore(net, contents)

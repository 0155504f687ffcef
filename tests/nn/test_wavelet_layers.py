from __future__ import annotations

import pytest
import torch

from lightning_robust.errors import InputError
from lightning_robust.functional import wavedec2
from lightning_robust.nn import WaveletDecomposition2d, WaveletReconstruction2d


def test_layers_are_the_functions() -> None:
    image = torch.rand(2, 3, 16, 12, generator=torch.Generator().manual_seed(0))
    decomposition = WaveletDecomposition2d("db2", level=2, mode="reflect")
    bands = decomposition(image)
    for ours, theirs in zip(bands, wavedec2(image, "db2", 2, "reflect"), strict=True):
        assert torch.equal(ours, theirs)
    composed = WaveletReconstruction2d("db2", mode="reflect")(bands)
    torch.testing.assert_close(composed, image, rtol=0, atol=1e-6)
    assert repr(decomposition) == "WaveletDecomposition2d(wavelet=db2, level=2, mode=reflect)"
    assert not decomposition.state_dict()


@pytest.mark.parametrize("layer", [WaveletDecomposition2d, WaveletReconstruction2d])
def test_unknown_options_are_refused_at_once(layer: type) -> None:
    with pytest.raises(InputError, match="wavelet='db0'"):
        layer("db0")
    with pytest.raises(InputError, match="mode='same'"):
        layer(mode="same")

"""The counts behind the figures and tables of pixel deflection."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    import deflection_bench

    yield deflection_bench
    sys.path.remove(str(FOLDER))
    for name in set(sys.modules) - before:
        if str(FOLDER) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_the_share_of_a_change_in_the_object_s_half(bench):
    height = torch.linspace(1, 0, 6).expand(3, 4, 6)
    change = torch.zeros(3, 4, 6)
    change[0] = 0.5
    change[1, :, :3] = 1
    change[2, 1, 1], change[2, 2, 5] = 1, 3
    assert bench.share_inside(height, change).tolist() == pytest.approx([0.5, 1, 0.25])


def test_shares_of_ranks(bench):
    top = torch.tensor([[7, 1, 2, 3, 4], [7, 1, 2, 3, 4], [5, 6, 7, 8, 9], [1, 2, 3, 4, 5]])
    assert bench.shares(top, torch.tensor([1, 7, 9, 0])) == [25, 25, 0, 0, 25, 25]


def test_maps_are_alike_up_to_level_and_contrast(bench):
    heat = torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(0))
    other = torch.stack([0.1 + 0.5 * heat[0], 1 - heat[1]])
    torch.testing.assert_close(bench.correlation(heat, other), torch.tensor([1.0, -1.0]))
    assert bench.correlation(heat, torch.ones(2, 5, 5)).tolist() == [0, 0]


def _judge(folder, attack, defense, label, split="report", kind="judge"):
    place = folder / kind / "net" / split / attack.replace(" ", "-") / defense.replace(" ", "-")
    place.mkdir(parents=True)
    np.savez(place / "0.npz", label=label, target=np.zeros(label.shape[1], int))


def _pieces(folder, split="report"):
    import deflection_pieces
    from deflection_work import Place

    return deflection_pieces.Pieces(Place(folder, folder, folder), "net", split)


@pytest.mark.usefixtures("bench")
def test_attacks_on_one_image_are_not_images_of_their_own(tmp_path):
    import deflection_page
    from deflection_pieces import difference
    from deflection_rows import TABLE_4_ATTACKS

    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 2, (1, 12)) for _ in range(2))
    for attack in TABLE_4_ATTACKS:
        _judge(tmp_path, deflection_page.named(attack), "pd", first)
        _judge(tmp_path, deflection_page.named(attack), "noise", second)
    pieces = _pieces(tmp_path)
    one = [pieces.judged(deflection_page.named("FGSM"), name) for name in ("pd", "noise")]
    assert deflection_page.against(pieces, "pd", "noise") == difference(*one)


@pytest.mark.usefixtures("bench")
def test_the_search_picks_each_parameter_by_its_mean_accuracy(tmp_path):
    from deflection_pieces import chosen_defense
    from deflection_rows import SEARCH, SEARCHED

    best = {"sigma": "0.02", "deflections": "500", "window": "2"}
    assert chosen_defense(_pieces(tmp_path, "tune")) is None
    for parameter, names in SEARCH.items():
        for name in names:
            right = 7 if name.split()[1] == best[parameter] else 6
            for attack in SEARCHED:
                _judge(tmp_path, attack, name, np.array([[0] * right + [1] * (10 - right)]), "tune")
    assert chosen_defense(_pieces(tmp_path, "tune")) == "chosen 0.02-500-2"


@pytest.mark.usefixtures("bench")
def test_the_worst_attack_is_taken_image_by_image(tmp_path):
    from deflection_pieces import worst

    _judge(tmp_path, "BPDA", "pd", np.array([[0, 0, 1, 1]]), kind="adapt")
    _judge(tmp_path, "EOT 1", "pd", np.array([[0, 1, 0, 1]]), kind="adapt")
    assert worst(_pieces(tmp_path), "pd")[1].tolist() == [1, 0, 0, 0]

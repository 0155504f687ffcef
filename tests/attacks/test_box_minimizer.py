from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from lightning_robust.attacks.box_minimizer import minimize_in_box


def with_gradient(function):
    """The objective of a function (points, rows) to values."""

    def objective(point, rows):
        leaf = point.detach().requires_grad_()
        value = function(leaf, rows)
        return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]

    return objective


def _reference_minimum(objective, start, row):
    def fun(x):
        value, gradient = objective(torch.from_numpy(x)[None], torch.tensor([row]))
        return value.item(), gradient[0].numpy().astype(np.float64)

    bounds = [(0, 1)] * start.shape[1]
    return minimize(fun, start[row].numpy(), jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 1000})


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 5), size=st.integers(1, 12), history=st.sampled_from([1, 3, 10]))
def test_minimum_of_convex_quadratics_is_scipys(seed, rows, size, history):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(rows, size, size, generator=generator, dtype=torch.float64)
    curvature = root @ root.mT + 0.1 * torch.eye(size, dtype=torch.float64)
    # centers on both sides of the box, so that about half of the variables end on its faces
    center = 3 * torch.rand(rows, size, generator=generator, dtype=torch.float64) - 1
    start = torch.rand(rows, size, generator=generator, dtype=torch.float64)

    def function(point, index):
        offset = point - center[index]
        return ((offset[:, None] @ curvature[index])[:, 0] * offset).sum(1)

    objective = with_gradient(function)
    found = minimize_in_box(objective, start, evaluations=2000, history=history)
    assert found.min() >= 0
    assert found.max() <= 1
    values = function(found, torch.arange(rows))
    for row in range(rows):
        assert values[row].item() <= _reference_minimum(objective, start, row).fun * (1 + 1e-4) + 1e-9


def logistic_problem(seed, rows=6, size=40, dtype=torch.float64):
    """Size plus the price of a small smooth net's answer: what the attack minimizes."""
    generator = torch.Generator().manual_seed(seed)
    inner = torch.randn(size, 16, generator=generator, dtype=torch.float64).to(dtype)
    outer = torch.randn(16, generator=generator, dtype=torch.float64).to(dtype)
    start = torch.rand(rows, size, generator=generator, dtype=torch.float64).to(dtype)
    price = torch.logspace(-2, 2, rows, dtype=torch.float64).to(dtype)

    def function(point, index):
        answer = ((point - 0.5) @ inner).tanh() @ outer
        return (point - start[index]).square().sum(1) + price[index] * torch.nn.functional.softplus(answer)

    return with_gradient(function), start, price


@pytest.mark.parametrize("seed", range(4))
def test_minimum_of_a_smooth_net_is_as_low_as_scipys(seed):
    objective, start, _ = logistic_problem(seed)
    found = minimize_in_box(objective, start, evaluations=1000, history=10)
    values, _ = objective(found, torch.arange(len(start)))
    reference = torch.tensor([_reference_minimum(objective, start, row).fun for row in range(len(start))])
    # neither is convex, so either may find the lower of two valleys
    assert (values <= reference * 1.02).double().mean() > 0.8
    assert (values / reference).median() <= 1.001


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_takes_few_evaluations_and_leaves_rows_that_are_done(dtype):
    objective, start, _ = logistic_problem(9, dtype=dtype)
    sizes = []

    def counting(point, rows):
        sizes.append(len(rows))
        return objective(point, rows)

    minimize_in_box(counting, start, evaluations=1000, history=10)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 6 > sizes[-1]
    assert len(sizes) < 150


def test_rows_do_not_know_each_other():
    objective, start, _ = logistic_problem(3)
    whole = minimize_in_box(objective, start, evaluations=60, history=5)
    for row in range(len(start)):
        alone = minimize_in_box(
            lambda point, rows, row=row: objective(point, rows + row),
            start[row : row + 1],
            evaluations=60,
            history=5,
        )
        torch.testing.assert_close(alone[0], whole[row], rtol=0, atol=1e-7)


def test_evaluations_are_bounded_and_a_row_without_a_value_stays_where_it_is():
    calls = []

    def objective(point, rows):
        calls.append(1)
        value = point.square().sum(1)
        return torch.where(rows == 0, torch.nan, value), 2 * point

    start = torch.full((2, 3), 0.5)
    found = minimize_in_box(objective, start, evaluations=1, history=2)
    assert torch.equal(found, start)
    assert len(calls) == 1
    found = minimize_in_box(objective, start, evaluations=50, history=2)
    assert torch.equal(found[0], start[0])
    assert found[1].abs().max() < 1e-6


def test_a_value_that_is_not_a_number_on_the_way_is_stepped_back_from():
    def objective(point, rows):
        value = (point - 0.4).square().sum(1) * 100
        return torch.where(point.amax(1) < 0.3, torch.nan, value), 200 * (point - 0.4)

    found = minimize_in_box(objective, torch.ones(1, 2), evaluations=100, history=3)
    torch.testing.assert_close(found, torch.full((1, 2), 0.4), rtol=0, atol=1e-3)

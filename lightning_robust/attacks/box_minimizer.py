"""A limited-memory quasi-Newton method in the unit box that minimizes many functions at once, one per row."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

Objective: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

_SUFFICIENT = 1e-4
# SciPy's factr times the resolution of float64
_TOLERANCE = 1e7 * torch.finfo(torch.float64).eps


def minimize_in_box(objective: Objective, start: Tensor, *, evaluations: int, history: int) -> Tensor:
    """Minimize every row's own function over [0, 1]^d; no row's path depends on the others.

    The direction is that of L-BFGS in the variables that are not held by the box (a projected quasi-Newton method, as
    Schmidt, Kim and Sra describe in "Optimization for Machine Learning", 2011, chapter 11), the step an Armijo search
    along the projected path. Rows accept or reject their trial points independently, so that each evaluation serves
    the whole batch, and rows that are done leave it.

    Args:
        objective: (points (b, d), row numbers (b,)) to values (b,) and gradients (b, d).
        start: in the box, shape (B, d).
        evaluations: of the objective per row, at most.
        history: pairs of steps and gradient changes to keep.

    Returns:
        The last accepted points, shape (B, d): those with the lowest value seen.
    """
    result = start.clone()
    rows = torch.arange(len(start), device=start.device)
    value, gradient = objective(start, rows)
    state = _State.begin(start, rows, value, gradient, history)
    keep = torch.isfinite(value)
    tolerance = max(_TOLERANCE, 4 * torch.finfo(start.dtype).eps)
    for _ in range(evaluations - 1):
        keep &= state.prepare(tolerance)
        if not bool(keep.all()):
            result[state.rows] = state.point
            state = state.select(keep)
        if len(state.rows) == 0:
            break
        keep = state.advance(objective, tolerance)
    result[state.rows] = state.point
    return result


@dataclasses.dataclass
class _State:
    """Where every row stands; ``steps`` and ``changes`` are rings of shape (b, history, d)."""

    rows: Tensor
    point: Tensor
    value: Tensor
    gradient: Tensor
    direction: Tensor
    plain: Tensor
    length: Tensor
    trial: Tensor
    slope: Tensor
    steps: Tensor
    changes: Tensor
    pairs: Tensor

    @classmethod
    def begin(cls, point: Tensor, rows: Tensor, value: Tensor, gradient: Tensor, history: int) -> _State:
        ring = point.new_zeros(len(point), history, point.shape[1])
        state = cls(
            rows=rows,
            point=point.clone(),
            value=value,
            gradient=gradient,
            direction=torch.zeros_like(point),
            plain=torch.ones_like(rows, dtype=torch.bool),
            length=torch.ones_like(value),
            trial=point,
            slope=torch.zeros_like(value),
            steps=ring,
            changes=ring.clone(),
            pairs=torch.zeros_like(rows),
        )
        state.direction = -state._free(gradient)
        state.length = _cautious(state.direction)
        return state

    def select(self, keep: Tensor) -> _State:
        return _State(**{field.name: getattr(self, field.name)[keep] for field in dataclasses.fields(self)})

    def prepare(self, tolerance: float) -> Tensor:
        """Project the next trial points; return which rows can still descend by more than the tolerance."""
        self._project()
        enough = tolerance * self.value.abs()
        # cut off by the box, a quasi-Newton direction may climb; the gradient's never does
        climbing = ~self.plain & ~(self.slope < -enough)
        if bool(climbing.any()):
            self._use_gradient(climbing)
            self._project()
        return self.slope < -enough

    def advance(self, objective: Objective, tolerance: float) -> Tensor:
        """Judge the trial points and choose the next directions; return which rows have not converged."""
        value, gradient = objective(self.trial, self.rows)
        accepted = value <= self.value + _SUFFICIENT * self.slope
        curvature = value - self.value - self.slope
        shrink = torch.nan_to_num(-self.slope / (2 * curvature), nan=0.1).clamp(0.1, 0.5)
        self.length = torch.where(accepted, self.length, self.length * shrink)
        scale = torch.maximum(self.value.abs(), value.abs())
        converged = accepted & (self.value - value <= tolerance * scale)
        moved = accepted.nonzero()[:, 0]
        slot = self.pairs[moved] % self.steps.shape[1]
        self.steps[moved, slot] = self.trial[moved] - self.point[moved]
        self.changes[moved, slot] = gradient[moved] - self.gradient[moved]
        self.pairs[moved] += 1
        self.point = torch.where(accepted[:, None], self.trial, self.point)
        self.gradient = torch.where(accepted[:, None], gradient, self.gradient)
        self.value = torch.where(accepted, value, self.value)
        if len(moved):
            self._use_newton(moved)
        return ~converged

    def _project(self) -> None:
        self.trial = (self.point + self.length[:, None] * self.direction).clamp(0, 1)
        self.slope = (self.gradient * (self.trial - self.point)).sum(dim=1)

    def _free(self, vector: Tensor) -> Tensor:
        held = ((self.point <= 0) & (self.gradient > 0)) | ((self.point >= 1) & (self.gradient < 0))
        return vector.masked_fill(held, 0)

    def _use_gradient(self, chosen: Tensor) -> None:
        steepest = -self._free(self.gradient)
        self.direction = torch.where(chosen[:, None], steepest, self.direction)
        self.length = torch.where(chosen, _cautious(steepest), self.length)
        self.plain = self.plain | chosen

    def _use_newton(self, chosen: Tensor) -> None:
        """Apply the two-loop recursion (Nocedal and Wright, algorithm 7.4) to the free variables of some rows."""
        part = self if len(chosen) == len(self.rows) else self.select(chosen)
        vector = part._free(part.gradient)
        recalled = []
        scale = torch.full_like(part.value, torch.nan)
        for age in range(min(part.steps.shape[1], int(part.pairs.max()))):
            slot = (part.pairs - 1 - age) % part.steps.shape[1]
            row = torch.arange(len(slot), device=slot.device)
            step, change = part._free(part.steps[row, slot]), part._free(part.changes[row, slot])
            curvature, square = (step * change).sum(dim=1), change.square().sum(dim=1)
            usable = curvature > torch.finfo(change.dtype).eps * square
            inverse = torch.where(usable, 1 / curvature, 0)
            weight = inverse * (step * vector).sum(dim=1)
            vector = vector - weight[:, None] * change
            scale = torch.where(usable & scale.isnan(), curvature / square, scale)
            recalled.append((step, change, inverse, weight))
        plain = scale.isnan()
        vector = vector * torch.where(plain, 1, scale)[:, None]
        for step, change, inverse, weight in reversed(recalled):
            vector = vector + (weight - inverse * (change * vector).sum(dim=1))[:, None] * step
        vector = -part._free(vector)
        self.direction[chosen] = vector
        self.length[chosen] = torch.where(plain, _cautious(vector), 1)
        self.plain[chosen] = plain


def _cautious(direction: Tensor) -> Tensor:
    """Length of the first step along a gradient: as far as the gradient, but at most one unit."""
    size: Tensor = torch.linalg.vector_norm(direction, dim=1)
    return (1 / size.clamp(min=torch.finfo(size.dtype).tiny)).clamp(max=1)

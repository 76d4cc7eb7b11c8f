"""Kriging from neighbours is kriging, its error bars are right, and the curve keeps neighbours together."""

import itertools

import numpy as np
import pytest
import torch
from mamba_diffusion.curve import hilbert_index, hilbert_order, inverse, look_up, take
from mamba_diffusion.kriging import Covariance, correlation, krige, nearest, nearest_others, offsets, surprises

COV = Covariance("medium", 0.3, 1e-6, (False, False))


def draw(count: int, fields: int, cov: Covariance, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Gaussian fields of that covariance at random places."""
    generator = torch.Generator().manual_seed(seed)
    coords = torch.rand(fields, count, 2, generator=generator, dtype=torch.float64)
    distance = offsets(coords[:, :, None], coords[:, None], cov.wraps).norm(dim=-1)
    matrix = correlation(distance, cov.smoothness, cov.length) + cov.nugget * torch.eye(count, dtype=torch.float64)
    noise = torch.randn(fields, count, 1, generator=generator, dtype=torch.float64)
    return coords, torch.linalg.cholesky(matrix) @ noise


def test_all_neighbours_give_the_textbook_solution():
    """The bordered system, solved as one."""
    coords, values = draw(12, 1, COV)
    query = torch.tensor([[[0.4, 0.6]]], dtype=torch.float64)
    mean, std = krige(query, coords, values, nearest(query, coords, 12, COV.wraps), COV)
    distance = (coords[0, :, None] - coords[0]).norm(dim=-1)
    system = torch.ones(13, 13, dtype=torch.float64)
    system[:12, :12] = correlation(distance, "medium", 0.3) + 1e-6 * torch.eye(12)
    system[12, 12] = 0
    right = torch.ones(13, dtype=torch.float64)
    right[:12] = correlation((coords[0] - query[0]).norm(dim=-1), "medium", 0.3)
    weights = torch.linalg.solve(system, right)
    torch.testing.assert_close(mean[0, 0], weights[:12] @ values[0])
    torch.testing.assert_close(std[0, 0, 0].square(), 1 - weights @ right + 1e-6)


@pytest.mark.parametrize("smoothness", ["rough", "medium", "smooth"])
def test_error_bars_are_right(smoothness):
    """Standardised errors of held-out points have mean square 1, whatever the unit of the values."""
    cov = Covariance(smoothness, 0.5, 1e-5, (False, False))
    coords, values = draw(150, 20, cov)
    values = 1000 * values + 7
    seen, rest = slice(0, 120), slice(120, 150)
    near = nearest(coords[:, rest], coords[:, seen], 16, cov.wraps)
    mean, std = krige(coords[:, rest], coords[:, seen], values[:, seen], near, cov)
    _, amplitude, _ = surprises(coords[:, seen], values[:, seen], nearest_others(coords[:, seen], 16, cov.wraps), cov)
    z = (values[:, rest] - mean) / (std * amplitude)
    assert float(z.square().mean()) == pytest.approx(1, abs=0.2)
    assert float(amplitude.mean()) == pytest.approx(1000, rel=0.1)


def test_sensors_are_reproduced_and_constants_stay():
    coords, values = draw(40, 1, COV)
    near = nearest(coords, coords, 16, COV.wraps)
    mean, std = krige(coords, coords, values, near, COV)
    torch.testing.assert_close(mean, values, rtol=0, atol=1e-3)
    assert float(std.max()) < 3e-3
    flat, _ = krige(coords + 0.01, coords, torch.full_like(values, 5.0), near, COV)
    torch.testing.assert_close(flat, torch.full_like(values, 5.0))


def test_nearest_in_chunks_and_around_the_edge(monkeypatch):
    from mamba_diffusion import kriging

    torch.manual_seed(0)
    points, queries = torch.rand(2, 30, 2), torch.rand(2, 50, 2)
    whole = nearest(queries, points, 5, (False, False))
    monkeypatch.setattr(kriging, "PAIRS", 100)
    assert torch.equal(nearest(queries, points, 5, (False, False)), whole)
    left, right = torch.tensor([[[0.01, 0.5]]]), torch.tensor([[[0.3, 0.5], [0.98, 0.5]]])
    assert nearest(left, right, 1, (True, False)).item() == 1
    assert nearest(left, right, 1, (False, True)).item() == 0


def test_sensor_leaves_itself_out():
    coords = torch.tensor([[[0.1], [0.2], [0.3], [0.8]]])
    values = torch.tensor([[[1.0], [1.0], [1.0], [9.0]]])
    cov = Covariance("medium", 0.5, 1e-4, (False,))
    surprise, _, _ = surprises(coords, values, nearest_others(coords, 3, cov.wraps), cov)
    assert surprise[0, 3, 0].abs() > surprise[0, 0, 0].abs()


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_curve_visits_every_cell_once_and_steps_to_neighbours(dims):
    side = 8
    cells = torch.tensor(list(itertools.product(range(side), repeat=dims)))
    index = hilbert_index((cells + 0.5) / side, bits=3)
    assert torch.equal(index.sort().values, torch.arange(side**dims))
    along = cells[index.argsort()]
    assert (along.diff(dim=0).abs().sum(-1) == 1).all()


def test_order_and_its_inverse():
    coords = torch.rand(3, 20, 2)
    order = hilbert_order(coords)
    torch.testing.assert_close(take(take(coords, order), inverse(order)), coords)
    np.testing.assert_array_equal(hilbert_order(take(coords, order)), torch.arange(20).expand(3, -1))


@pytest.mark.parametrize("dims", [1, 2])
def test_table_of_the_curve_gives_its_index(dims):
    """GPUs look the index up; a point on the edge belongs to the last cell."""
    coords = torch.cat([torch.rand(2, 40, dims, generator=torch.Generator().manual_seed(0)), torch.ones(2, 1, dims)], 1)
    assert torch.equal(look_up(coords, bits=4), hilbert_index(coords, bits=4))

"""The PyTorch form of selective_scan_2d for many states: bands of all directions at once."""

import pytest
import torch
from ssm_kernels import selective_scan_2d
from ssm_kernels.ops.selective_scan_2d import DIRECTIONS, torch_impl, torch_impl_bands
from ssm_kernels.testing import assert_as_accurate, error_ratio, scan_2d_inputs
from torch import Tensor

STATES = torch_impl.FEW + 1


def results(inputs: dict, impl: str, directions: tuple = DIRECTIONS) -> dict[str, Tensor]:
    """Output and gradients."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
    y = selective_scan_2d(**leaves, directions=directions, impl=impl)
    cotangent = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape).to(y.dtype)
    grads = torch.autograd.grad(y, list(leaves.values()), cotangent)
    return {"y": y.detach()} | {f"d{name}": g for name, g in zip(leaves, grads, strict=True)}


@pytest.mark.parametrize("band", [1, 1 << 20])
@pytest.mark.parametrize(("height", "width"), [(9, 10), (17, 1), (1, 70), (1, 1), (12, 13)])
def test_bands_are_the_definition(monkeypatch, height, width, band):
    """One band, or bands of 64 steps that carry states and adjoints over; any height and width."""
    monkeypatch.setattr(torch_impl_bands, "BAND", band)
    inputs = scan_2d_inputs(2, height, width, 3, STATES, dtype=torch.float64).kwargs()
    inputs["A"] = inputs["A"] * 0.02  # memory across bands
    found, truth = results(inputs, "torch"), results(inputs, "reference")
    for name, value in truth.items():
        assert error_ratio(found[name], value) < 1e-13, name


@pytest.mark.parametrize("few", [0, STATES])
def test_both_ways_agree(monkeypatch, few):
    """One state or five, one by one or together."""
    monkeypatch.setattr(torch_impl, "FEW", few)
    for states in (1, STATES):
        inputs = scan_2d_inputs(1, 7, 8, 2, states, dtype=torch.float64).kwargs()
        found, truth = results(inputs, "torch"), results(inputs, "reference")
        assert max(error_ratio(found[name], truth[name]) for name in truth) < 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("directions", [("column_reversed",), ("column", "row", "column")], ids=len)
def test_accuracy_with_any_directions(dtype, directions):
    inputs = scan_2d_inputs(2, 6, 7, 4, STATES, directions=len(directions), dtype=dtype).kwargs()
    doubled = {name: x.double() for name, x in inputs.items()}
    truth = results(doubled, "reference", directions)
    found, eager = results(inputs, "torch", directions), results(inputs, "reference", directions)
    for name, value in truth.items():
        assert_as_accurate(name, found[name], eager[name], value)


def test_copies_are_those_of_a_band(monkeypatch):
    """A taller image is read in more bands, not in larger ones."""
    largest = []
    read = torch_impl_bands.Scans.read

    def spy(scans: torch_impl_bands.Scans, image: Tensor, band: Tensor) -> Tensor:
        found = read(scans, image, band)
        largest.append(found.numel())
        return found

    monkeypatch.setattr(torch_impl_bands, "BAND", 4 * 64 * STATES)
    monkeypatch.setattr(torch_impl_bands.Scans, "read", spy)
    for height in (20, 60):
        results(scan_2d_inputs(1, height, 7, STATES, STATES).kwargs(), "torch")
        assert max(largest) == 4 * 64 * STATES

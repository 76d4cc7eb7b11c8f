"""The PyTorch form beats the loop on a CPU by a wide margin: what "auto" runs there is not the definition."""

import time
from collections.abc import Callable

import pytest
import torch
from ssm_kernels import selective_scan, selective_scan_2d
from ssm_kernels.testing import scan_2d_inputs, scan_inputs

ROUNDS = 5


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def ratio(call: Callable[[str], object]) -> float:
    """Time of the loop over that of the PyTorch form, the best of alternating rounds: other work comes and goes."""
    call("torch")
    times = [(seconds(lambda: call("torch")), seconds(lambda: call("reference"))) for _ in range(ROUNDS)]
    ours, loop = (min(column) for column in zip(*times, strict=True))
    return loop / ours


def forward_and_both(function: Callable, inputs: dict) -> tuple[float, float]:
    """Ratios of the forward alone, and of forward and backward."""

    def forward(impl: str) -> None:
        with torch.no_grad():
            function(**inputs, impl=impl)

    def both(impl: str) -> None:
        leaves = {name: x.detach().requires_grad_() for name, x in inputs.items() if x is not None}
        function(**leaves, impl=impl).sum().backward()

    return ratio(forward), ratio(both)


@pytest.mark.slow
@pytest.mark.parametrize(("state", "least"), [(16, (2.5, 4.0)), (1, (4.0, 5.0))])
def test_selective_scan(state, least):
    """(B, L, D) = (2, 1024, 192); measured on two cores at 6 and 8 (N = 16), 11 and 15 (N = 1)."""
    inputs = scan_inputs(2, 1024, 192, state).kwargs()
    found = forward_and_both(lambda **x: selective_scan(**x, dt_softplus=True), inputs)
    assert found[0] > least[0]
    assert found[1] > least[1]


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "least"), [((1, 32, 32, 60, 1), (5, 10)), ((2, 16, 16, 96, 16), (2, 3))])
def test_selective_scan_2d(shape, least):
    """One state, taken line by line, and sixteen, taken in bands."""
    found = forward_and_both(selective_scan_2d, scan_2d_inputs(*shape).kwargs())
    assert found[0] > least[0]
    assert found[1] > least[1]

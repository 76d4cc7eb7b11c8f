"""`selective_scan` against its float64 definition: outputs, states and every gradient, in every dtype and direction."""

from itertools import pairwise, product

import pytest
import torch
from ssm_kernels.ops.selective_scan import selective_scan
from ssm_kernels.testing import assert_as_accurate, error_ratio, poisoned_buffers, scan_inputs

gpu, slow = pytest.mark.gpu, pytest.mark.slow
WHERE = [
    ("cpu", "torch"),
    pytest.param("cuda", "triton", marks=pytest.mark.gpu),
    pytest.param("cuda", "torch", marks=pytest.mark.gpu),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def results(inputs, impl, **options):
    """Return y, the final state and all gradients under fixed cotangents; `inputs` maps names to tensors or None."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in inputs.items() if x is not None}
    y, final = selective_scan(**leaves, impl=impl, return_final_state=True, **options)
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(t.shape, generator=generator).to(y.dtype).to(t) for t in (y, final)]
    grads = torch.autograd.grad([y, final], list(leaves.values()), cotangents)
    return {"y": y.detach(), "final": final.detach()} | {f"d{name}": g for name, g in zip(leaves, grads, strict=True)}


def doubled(inputs):
    return {name: None if x is None else x.double() for name, x in inputs.items()}


def three_results(inputs, impl, **options):
    """Return the truth, what eager PyTorch makes of it in this dtype, and the result under test."""
    truth = results(doubled(inputs), "reference", **options)
    return truth, results(inputs, "reference", **options), results(inputs, impl, **options)


def assert_parity(inputs, impl, **options):
    truth, eager, found = three_results(inputs, impl, **options)
    for name in truth:
        assert_as_accurate(name, found[name], eager[name], truth[name])


def assert_parity_of_draws(draws):
    """Judge `three_results` of several draws together: the error of one number is luck, that of many is not."""
    for name in draws[0][0]:
        truth, eager, found = (torch.stack([draw[k][name] for draw in draws]) for k in range(3))
        assert_as_accurate(name, found, eager, truth)


CASES = {
    "one step": ((2, 1, 3, 2), None, False),
    "a group per channel": ((1, 131, 7, 5), 7, False),
    "one number per row": ((9, 67, 1, 1), None, True),
    "whole chunks": ((2, 192, 6, 16), 3, False),
}


# on the CPU each half precision in one direction: no line depends on both; the rest is slow
EVERY_WAY = [
    pytest.param("cpu", "torch", dtype, reverse, marks=slow if dtype == DTYPES[1 + reverse] else ())
    for dtype, reverse in product(DTYPES, (False, True))
] + [
    pytest.param("cuda", impl, dtype, reverse, marks=gpu)
    for impl, dtype, reverse in product(("triton", "torch"), DTYPES, (False, True))
]


@pytest.mark.parametrize(("device", "impl", "dtype", "reverse"), EVERY_WAY, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_all_arguments(device, impl, dtype, reverse, case):
    shape, groups, batched = CASES[case]
    draws = []
    for seed in range(8 if shape[2] * shape[3] < 64 else 1):
        made = scan_inputs(*shape, groups=groups, batched_A=batched, dtype=dtype, device=device, seed=seed)
        inputs = made.kwargs()
        draws.append(three_results(inputs, impl, dt_softplus=True, reverse=reverse))
    assert_parity_of_draws(draws)


@pytest.mark.parametrize(("device", "impl"), WHERE)
@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("batched", [False, True])
def test_only_what_is_needed(device, impl, softplus, batched):
    inputs = scan_inputs(2, 70, 5, 3, optional=False, batched_A=batched, device=device).kwargs()
    inputs["dt"] = inputs["dt"].abs()
    assert_parity(inputs, impl, dt_softplus=softplus)


@pytest.mark.parametrize(("device", "impl"), WHERE)
@pytest.mark.parametrize("batched", [False, True])
def test_rows_with_their_own_rates(device, impl, batched):
    made = [scan_inputs(3, 33, 4, 2, batched_A=batched, device=device, seed=seed).kwargs() for seed in range(8)]
    assert_parity_of_draws([three_results(inputs, impl, dt_softplus=True) for inputs in made])


@pytest.mark.parametrize(("device", "impl"), WHERE)
@pytest.mark.parametrize("state", [8, 100, 256])
def test_states_of_any_size(device, impl, state):
    inputs = scan_inputs(1, 66, 3, state, device=device).kwargs()
    assert_parity(inputs, impl, dt_softplus=True)


@pytest.mark.parametrize(("device", "impl"), WHERE)
@pytest.mark.parametrize("reverse", [False, True])
def test_states_that_last_for_many_chunks(device, impl, reverse):
    """Slow decays: the first step still counts at the last one, five chunks on, and the other way in the gradient."""
    inputs = scan_inputs(2, 330, 6, 4, device=device).kwargs()
    inputs["A"] = inputs["A"] * 0.01
    assert_parity(inputs, impl, dt_softplus=True, reverse=reverse)


@pytest.mark.parametrize("reverse", [False, True])
def test_slabs_and_segments_do_not_show(monkeypatch, reverse):
    """A small tile cuts rows, groups and channels, and many segments; the result is that of one piece."""
    from ssm_kernels.ops.selective_scan import torch_impl_plan

    inputs = scan_inputs(2, 130, 6, 4, groups=3, dtype=torch.float64).kwargs()
    inputs["A"] = inputs["A"] * 0.01
    whole = results(inputs, "torch", dt_softplus=True, reverse=reverse)
    for tile in (100, 20, 4):
        monkeypatch.setattr(torch_impl_plan, "TILE", tile)
        cut = results(inputs, "torch", dt_softplus=True, reverse=reverse)
        assert max(error_ratio(cut[name], whole[name]) for name in whole) < 1e-13


def test_buffers_do_not_grow_with_the_row(monkeypatch):
    """The states of all steps would be 64 times a tile for every 64 steps; only one segment of them lives at a time."""
    from ssm_kernels.ops.selective_scan import torch_impl_plan, torch_impl_run

    largest = []
    buffer = torch_impl_run.Run.buffer

    def spy(run, *steps):
        made = buffer(run, *steps)
        largest.append(made.numel())
        return made

    monkeypatch.setattr(torch_impl_plan, "TILE", 32)
    monkeypatch.setattr(torch_impl_run.Run, "buffer", spy)
    for length in (200, 800):
        results(scan_inputs(2, length, 4, 4).kwargs(), "torch", dt_softplus=True)
        assert max(largest) == 32 * 32


def test_softplus_is_that_of_pytorch():
    """With L=1, A=0 and B=C=x=1 the output is softplus(dt): threshold 20, exact tails."""
    dt = torch.tensor([-1e4, -90.0, -20.0, -1.0, 0.0, 1.0, 19.9, 20.1, 1e4]).reshape(-1, 1, 1)
    one = torch.ones_like(dt)
    y = selective_scan(one, dt, torch.zeros(1, 1), one, one, dt_softplus=True, impl="torch")
    assert torch.equal(y, torch.nn.functional.softplus(dt))


@pytest.mark.parametrize(("device", "impl"), WHERE)
@pytest.mark.parametrize("reverse", [False, True])
def test_two_halves_with_carried_state_are_one_run(device, impl, reverse):
    inputs = scan_inputs(2, 150, 4, 3, dtype=torch.float32, device=device).kwargs()
    inputs["A"] = inputs["A"] * 0.01
    options = {"dt_softplus": True, "reverse": reverse, "impl": impl, "return_final_state": True}
    y, final = selective_scan(**inputs, **options)

    def half(part, state):
        cut = {k: inputs[k][:, part] for k in ("x", "dt", "B", "C", "z")}
        return selective_scan(**(inputs | cut | {"initial_state": state}), **options)

    parts = [slice(0, 71), slice(71, None)]
    first, second = parts[::-1] if reverse else parts
    y_first, middle = half(first, inputs["initial_state"])
    y_second, last = half(second, middle)
    joined = torch.cat([y_second, y_first] if reverse else [y_first, y_second], 1)
    assert error_ratio(joined, y) < 1e-6
    assert error_ratio(last, final) < 1e-6


@pytest.mark.parametrize(("device", "impl"), WHERE)
def test_reverse_is_flip_run_flip(device, impl):
    inputs = scan_inputs(2, 130, 4, 3, device=device).kwargs()
    found = results(inputs, impl, dt_softplus=True, reverse=True)
    flipped = {k: inputs[k].flip(1) for k in ("x", "dt", "B", "C", "z")}
    y, final = selective_scan(**(inputs | flipped), dt_softplus=True, return_final_state=True, impl=impl)
    assert error_ratio(y.flip(1), found["y"]) < 1e-6
    assert error_ratio(final, found["final"]) < 1e-6


@pytest.mark.parametrize(("device", "impl"), WHERE)
def test_repeats_bit_equal(device, impl):
    inputs = scan_inputs(2, 200, 6, 4, groups=2, device=device).kwargs()
    first, second = (results(inputs, impl, dt_softplus=True) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("device", "impl"), WHERE)
def test_every_buffer_is_written(device, impl):
    inputs = scan_inputs(2, 131, 6, 3, groups=2, device=device).kwargs()
    clean = results(inputs, impl, dt_softplus=True)
    with poisoned_buffers():
        poisoned = results(inputs, impl, dt_softplus=True)
    assert all(torch.equal(clean[name], poisoned[name]) for name in clean)


@pytest.mark.parametrize(("device", "impl"), [("cpu", "reference"), *WHERE])
def test_autocast_changes_nothing(device, impl):
    inputs = scan_inputs(2, 20, 4, 3, device=device).kwargs()
    plain = results(inputs, impl, dt_softplus=True)
    with torch.autocast(device, torch.bfloat16):
        cast = results(inputs, impl, dt_softplus=True)
    assert all(torch.equal(plain[name], cast[name]) for name in plain)


@pytest.mark.parametrize(("device", "impl"), WHERE)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dt", [1e4, -1e4])
@pytest.mark.parametrize("rate", [-1e4, -1e-6])
def test_extreme_steps_and_rates(device, impl, dtype, dt, rate):
    """Decays of exactly 0 and 1, time steps of 1e4 and 0: finite, and as accurate as the definition."""
    inputs = scan_inputs(1, 70, 4, 3, dtype=dtype, device=device).kwargs()
    small = {name: inputs[name] * 1e-2 for name in ("x", "B", "C")}  # float16 ends at 65504
    inputs |= small | {"dt": torch.full_like(inputs["dt"], dt), "A": torch.full_like(inputs["A"], rate)}
    assert_parity(inputs, impl, dt_softplus=True)


def test_mixed_extremes_stay_finite():
    """Steps and rates that jump by eight orders of magnitude from one element to the next."""
    inputs = scan_inputs(2, 200, 5, 4).kwargs()
    generator = torch.Generator().manual_seed(3)
    inputs["dt"] = (torch.rand(2, 200, 5, generator=generator) - 0.5) * 2e4
    inputs["A"] = -torch.exp(torch.empty(5, 4).uniform_(-14, 10, generator=generator))
    for name, found in results(inputs, "torch", dt_softplus=True).items():
        assert torch.isfinite(found).all(), name


def test_growing_systems_overflow_only_where_the_definition_does():
    """A zero state stays zero while decays above 1 overflow beside it."""
    x = torch.zeros(1, 200, 1)
    x[:, -1] = 1
    y = selective_scan(
        x, torch.ones_like(x), torch.full((1, 1), 5.0), torch.ones_like(x), torch.ones_like(x), impl="torch"
    )
    assert torch.equal(y, x)


def packed_inputs(bounds, own_parameters, dtype, device="cpu"):
    inputs = scan_inputs(1, bounds[-1], 6, 3, groups=2, dtype=dtype, device=device).kwargs()
    rows = scan_inputs(len(bounds) - 1, 1, 6, 3, batched_A=own_parameters, dtype=dtype, device=device)
    slow = rows.A * 0.02  # else nothing is left of a state a chunk later, and a state that strays is not seen
    return inputs | {"A": slow, "D": rows.D, "initial_state": rows.initial_state}


@pytest.mark.parametrize(("device", "impl"), WHERE)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("own_parameters", [False, True])
@pytest.mark.parametrize("bounds", [[0, 5, 5, 64, 65, 130, 130], [0, 0, 129], [0, 70, 250], [0, 1, 2, 70]], ids=str)
def test_packed_is_every_sequence_alone(device, impl, reverse, own_parameters, bounds):
    """Outputs, states and gradients; empty sequences pass their state, and its gradient, through."""
    inputs = packed_inputs(bounds, own_parameters, torch.float32, device)
    cu_seqlens = torch.tensor(bounds, dtype=torch.int32, device=device)
    packed = results(inputs, impl, dt_softplus=True, reverse=reverse, cu_seqlens=cu_seqlens)
    truth = results(doubled(inputs), "reference", dt_softplus=True, reverse=reverse, cu_seqlens=cu_seqlens)
    for name in truth:
        assert error_ratio(packed[name], truth[name]) < 1e-6, name
    for s, (begin, end) in enumerate(pairwise(bounds)):
        if begin == end:
            assert torch.equal(packed["final"][s], inputs["initial_state"][s])
            continue
        alone = {k: inputs[k][:, begin:end] for k in ("x", "dt", "B", "C", "z")}
        alone |= {"initial_state": inputs["initial_state"][s : s + 1]}
        if own_parameters:
            alone |= {"A": inputs["A"][s], "D": inputs["D"][s]}
        y, final = selective_scan(
            **(inputs | alone), dt_softplus=True, reverse=reverse, return_final_state=True, impl="torch"
        )
        assert error_ratio(packed["y"][:, begin:end], y.double()) < 1e-6
        assert error_ratio(packed["final"][s], final[0].double()) < 1e-6


def test_packed_without_initial_state():
    inputs = packed_inputs([0, 40, 40, 99], False, torch.float64) | {"initial_state": None}
    bounds = torch.tensor([0, 40, 40, 99])
    found = results(inputs, "torch", dt_softplus=True, cu_seqlens=bounds)
    truth = results(inputs, "reference", dt_softplus=True, cu_seqlens=bounds)
    assert max(error_ratio(found[name], truth[name]) for name in truth if truth[name].abs().max() > 0) < 1e-13
    assert (found["final"][1] == 0).all()


def test_parity_can_fail():
    """A gradient that is off by a thousandth is seen."""
    inputs = scan_inputs(2, 20, 3, 2).kwargs()
    truth = results(doubled(inputs), "reference", dt_softplus=True)
    eager = results(inputs, "reference", dt_softplus=True)
    with pytest.raises(AssertionError, match="dA: error ratio"):
        assert_as_accurate("dA", eager["dA"] * 1.001, eager["dA"], truth["dA"])

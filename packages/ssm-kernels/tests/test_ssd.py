"""`ssd` against its float64 definition: outputs, states and every gradient, in every dtype and direction.

Half-precision inputs meet in half-precision products on tensor cores, so that what comes out in float32 (states,
gradients of parameters) is as good as the inputs' dtype: it is judged in that dtype. With B and C in float32 it is not.
"""

from itertools import product

import pytest
import torch
from ssm_kernels.ops.ssd import ssd, ssd_bidirectional, torch_impl
from ssm_kernels.testing import assert_as_accurate, error_ratio, poisoned_buffers
from ssm_kernels.testing.ssd import ssd_inputs
from torch.autograd import gradcheck

gpu, slow = pytest.mark.gpu, pytest.mark.slow
WHERE = [
    ("cpu", "torch"),
    pytest.param("cuda", "triton", marks=gpu),
    pytest.param("cuda", "torch", marks=gpu),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
DRAWS = 4  # judged together: the error of a few numbers is luck


def results(inputs, impl, **options):
    """Return y, the final state and all gradients under fixed cotangents; `inputs` maps names to tensors or None."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in inputs.items() if x is not None}
    y, final = ssd(**leaves, impl=impl, return_final_state=True, **options)
    generator = torch.Generator().manual_seed(1)
    # numbers that every dtype holds: the truth must not see others than the kernels do
    cotangents = [torch.randn(t.shape, generator=generator).bfloat16().to(t) for t in (y, final)]
    grads = torch.autograd.grad([y, final], list(leaves.values()), cotangents)
    return {"y": y.detach(), "final": final.detach()} | {f"d{name}": g for name, g in zip(leaves, grads, strict=True)}


def doubled(inputs):
    return {name: None if x is None else x.double() for name, x in inputs.items()}


def assert_in_dtype(name, ours, theirs, exact, dtype):
    """Judge in the dtype of the inputs, scaled so that float16 holds it."""
    assert ours.dtype == theirs.dtype, name
    scale = 1 if ours.dtype == dtype else exact.abs().max().clamp_min(1e-30)
    assert_as_accurate(name, (ours / scale).to(dtype), (theirs / scale).to(dtype), exact / scale)


def assert_parity(shape, impl, made, change=lambda inputs: {}, draws=DRAWS, **options):
    """Judge several draws together, in the dtype of the inputs; `change` replaces some of them."""
    truth, eager, found = [], [], []
    for seed in range(draws):
        inputs = ssd_inputs(*shape, **made, seed=seed).kwargs()
        inputs |= change(inputs)
        truth.append(results(doubled(inputs), "reference", **options))
        eager.append(results(inputs, "reference", **options))
        found.append(results(inputs, impl, **options))
    for name in truth[0]:
        exact, theirs, ours = (torch.stack([draw[name] for draw in kind]) for kind in (truth, eager, found))
        assert_in_dtype(name, ours, theirs, exact, made.get("dtype", torch.float32))


CASES = {  # batch, length, heads, width, state
    "one step": ((2, 1, 3, 2, 4), {}),
    "a group per head": ((1, 131, 3, 5, 7), {"groups": 3}),
    "one number": ((3, 67, 1, 1, 1), {"D_per_channel": True}),
    "whole chunks": ((2, 128, 4, 8, 16), {"groups": 2, "rate": 0.05}),
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
    shape, made = CASES[case]
    assert_parity(shape, impl, made | {"dtype": dtype, "device": device}, dt_softplus=True, reverse=reverse)


@pytest.mark.parametrize(("device", "impl"), WHERE)
@pytest.mark.parametrize("chunk", [16, 32, 128])
def test_any_chunk(device, impl, chunk):
    assert_parity((2, 70, 2, 3, 4), impl, {"rate": 0.05, "device": device}, dt_softplus=True, chunk=chunk)


@pytest.mark.parametrize(("device", "impl"), WHERE)
@pytest.mark.parametrize("reverse", [False, True])
def test_packed(device, impl, reverse):
    """Empty sequences first, in between and last, each with its own state; chunks never cross a bound."""
    bounds = torch.tensor([0, 0, 19, 19, 100, 100], device=device)
    made = {"rows": 5, "rate": 0.05, "device": device}
    assert_parity((1, 100, 2, 4, 3), impl, made, dt_softplus=True, reverse=reverse, cu_seqlens=bounds)


@pytest.mark.parametrize(("device", "impl"), WHERE)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_float32_weights_make_float32_products(device, impl, dtype):
    """With B and C in float32 the states and the gradients of parameters are as good as float32, whatever x is."""
    truth, eager, found = [], [], []
    for seed in range(DRAWS):
        inputs = ssd_inputs(2, 70, 4, 8, 16, rate=0.1, device=device, seed=seed).kwargs()
        inputs |= {name: inputs[name].to(dtype) for name in ("x", "dt", "z")}
        truth.append(results(doubled(inputs), "reference", dt_softplus=True))
        eager.append(results(inputs, "reference", dt_softplus=True))
        found.append(results(inputs, impl, dt_softplus=True))
    for name in truth[0]:
        exact, theirs, ours = (torch.stack([draw[name] for draw in kind]) for kind in (truth, eager, found))
        assert_as_accurate(name, ours, theirs, exact)


@pytest.mark.parametrize(("device", "impl"), WHERE)
def test_nothing_optional(device, impl):
    assert_parity((2, 70, 3, 5, 4), impl, {"optional": False, "device": device}, lambda i: {"dt": i["dt"].abs()})


@pytest.mark.parametrize(("device", "impl"), WHERE)
@pytest.mark.parametrize("reverse", [False, True])
def test_two_halves_with_carried_state_are_one_run(device, impl, reverse):
    inputs = ssd_inputs(2, 150, 3, 4, 5, rate=0.01, device=device).kwargs()
    options = {"dt_softplus": True, "reverse": reverse, "impl": impl, "return_final_state": True}
    y, final = ssd(**inputs, **options)

    def half(part, state):
        cut = {k: inputs[k][:, part] for k in ("x", "dt", "B", "C", "z")}
        return ssd(**(inputs | cut | {"initial_state": state}), **options)

    parts = [slice(0, 71), slice(71, None)]
    first, second = parts[::-1] if reverse else parts
    y_first, middle = half(first, inputs["initial_state"])
    y_second, last = half(second, middle)
    joined = torch.cat([y_second, y_first] if reverse else [y_first, y_second], 1)
    assert error_ratio(joined, y) < 1e-6
    assert error_ratio(last, final) < 1e-6


EXTREME = list(product((1e4, -1e4), (-1e4, -1e-6)))
# on the CPU each half precision with each step and each rate, once: no line depends on more than one of them
EXTREMES = [
    pytest.param("cpu", "torch", dtype, dt, rate, marks=slow if dtype == DTYPES[1 + ((dt > 0) == (rate < -1))] else ())
    for dtype, (dt, rate) in product(DTYPES, EXTREME)
] + [
    pytest.param("cuda", impl, dtype, *extreme, marks=gpu)
    for impl, dtype, extreme in product(("triton", "torch"), DTYPES, EXTREME)
]


@pytest.mark.parametrize(("device", "impl", "dtype", "dt", "rate"), EXTREMES, ids=str)
def test_extreme_steps_and_rates(device, impl, dtype, dt, rate):
    """Decays of exactly 0 and 1, time steps of 1e4 and 0: finite, and as accurate as the definition."""

    def extreme(inputs):
        small = {name: inputs[name] * 1e-2 for name in ("x", "B", "C")}  # float16 ends at 65504
        return small | {"dt": torch.full_like(inputs["dt"], dt), "A": torch.full_like(inputs["A"], rate)}

    assert_parity((1, 70, 2, 4, 3), impl, {"dtype": dtype, "device": device}, extreme, draws=8, dt_softplus=True)


@pytest.mark.parametrize(("device", "impl"), WHERE)
def test_strong_decays_leave_the_weak_ones_their_bits(device, impl):
    """A step that wipes the state out, in a row of steps that hardly decay: sums of logarithms must not lose those."""
    inputs = ssd_inputs(1, 64, 2, 4, 3, optional=False, device=device).kwargs()
    inputs["dt"] = torch.full_like(inputs["dt"], 1e-3)
    inputs["dt"][:, 5::20] = 1e5
    inputs["x"][:, 5::20] *= 1e-8
    truth, eager, found = results(doubled(inputs), "reference"), results(inputs, "reference"), results(inputs, impl)
    for name in ("y", "final", "dx", "dB", "dC"):
        assert_as_accurate(name, found[name], eager[name], truth[name])


@pytest.mark.parametrize(("device", "impl"), WHERE)
def test_repeats_bit_equal_and_every_buffer_is_written(device, impl):
    inputs = ssd_inputs(2, 131, 4, 5, 3, groups=2, device=device).kwargs()
    first, second = (results(inputs, impl, dt_softplus=True) for _ in range(2))
    with poisoned_buffers():
        poisoned = results(inputs, impl, dt_softplus=True)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(first[name], poisoned[name]) for name in first)


@pytest.mark.parametrize(("device", "impl"), [("cpu", "reference"), *WHERE])
def test_autocast_changes_nothing(device, impl):
    inputs = ssd_inputs(2, 20, 2, 4, 3, device=device).kwargs()
    plain = results(inputs, impl, dt_softplus=True)
    with torch.autocast(device, torch.bfloat16):
        cast = results(inputs, impl, dt_softplus=True)
    assert all(torch.equal(plain[name], cast[name]) for name in plain)


def test_softplus_is_that_of_pytorch():
    """With L=1, A=0 and B=C=x=1 the output is softplus(dt): threshold 20, exact tails."""
    dt = torch.tensor([-1e4, -90.0, -20.0, -1.0, 0.0, 1.0, 19.9, 20.1, 1e4]).reshape(-1, 1, 1)
    one = torch.ones_like(dt)[..., None]
    y = ssd(one, dt, torch.zeros(1), one, one, dt_softplus=True, impl="torch")
    assert torch.equal(y[..., 0], torch.nn.functional.softplus(dt))


def test_memory_does_not_grow_with_the_square_of_the_row(monkeypatch):
    """Tables of pairs of steps are made for one chunk at a time, of one size for every row."""
    sizes = []
    read = torch_impl._read

    def spy(*args):
        chunk = read(*args)
        sizes.append(chunk.within.numel())
        return chunk

    monkeypatch.setattr(torch_impl, "_read", spy)
    for length in (100, 400):
        results(ssd_inputs(1, length, 2, 3, 4).kwargs(), "torch", dt_softplus=True, chunk=16)
        assert max(sizes) == 2 * 16 * 16


def check_gradients(inputs, impl, **options):
    given = {name: x.requires_grad_() for name, x in inputs.items() if x is not None}

    def function(*tensors):
        return ssd(**dict(zip(given, tensors, strict=True)), impl=impl, return_final_state=True, **options)

    assert gradcheck(function, tuple(given.values()), fast_mode=True)


@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_of_all_arguments(impl, reverse):
    made = {"groups": 2, "D_per_channel": reverse, "dtype": torch.float64}
    check_gradients(ssd_inputs(2, 5, 4, 2, 2, **made).kwargs(), impl, dt_softplus=True, reverse=reverse)


@pytest.mark.parametrize("impl", ["torch", "reference"])
def test_gradients_of_packed_rows(impl):
    inputs = ssd_inputs(1, 6, 2, 2, 2, rows=3, dtype=torch.float64).kwargs()
    inputs["dt"] = inputs["dt"].abs() + 3
    check_gradients(inputs, impl, cu_seqlens=torch.tensor([0, 4, 4, 6]))


def test_only_one_output_is_used():
    """The gradient of the state alone, and of y alone, where the other output is ignored."""
    inputs = ssd_inputs(2, 7, 2, 3, 2, dtype=torch.float64).kwargs()
    for output in (0, 1):
        grads = []
        for impl in ("torch", "reference"):
            leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
            out = ssd(**leaves, dt_softplus=True, return_final_state=True, impl=impl)[output]
            grads.append(torch.autograd.grad(out.square().sum(), list(leaves.values()), allow_unused=True))
        for name, ours, theirs in zip(inputs, *grads, strict=True):
            expected = torch.zeros_like(ours) if theirs is None else theirs
            torch.testing.assert_close(ours, expected, msg=lambda m, name=name: f"{name}: {m}")


def test_only_what_requires_gradient_gets_one():
    inputs = ssd_inputs(1, 5, 2, 2, 2).kwargs()
    A = inputs["A"].requires_grad_()
    ssd(**inputs).sum().backward()
    assert A.grad is not None
    assert all(x.grad is None for name, x in inputs.items() if name != "A")


def both_directions(dtype, device="cpu"):
    inputs = {}
    for seed, suffix in enumerate(("", "_b")):
        made = ssd_inputs(2, 70, 4, 3, 5 - seed, groups=1 + seed, dtype=dtype, device=device, seed=seed).kwargs()
        del made["initial_state"]
        z = made.pop("z")
        inputs |= {name + suffix: x for name, x in made.items()}
    return inputs | {"z": z}


def bidirectional_results(inputs, impl):
    leaves = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
    y = ssd_bidirectional(**leaves, average=True, impl=impl)
    cotangent = torch.linspace(-1, 1, y.numel()).bfloat16().reshape(y.shape).to(y)
    return {"y": y.detach()} | dict(zip(leaves, torch.autograd.grad(y, list(leaves.values()), cotangent), strict=True))


@pytest.mark.parametrize(("device", "impl"), WHERE)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bidirectional(device, impl, dtype):
    """Two scans from the two ends, added, halved, gated; the directions have groups and states of their own."""
    inputs = both_directions(dtype, device)
    truth = bidirectional_results(doubled(inputs), "reference")
    found, eager = bidirectional_results(inputs, impl), bidirectional_results(inputs, "reference")
    for name in truth:
        assert_in_dtype(name, found[name], eager[name], truth[name], dtype)


def test_bidirectional_is_flip_scan_flip():
    inputs = both_directions(torch.float64)
    ahead = {name: x for name, x in inputs.items() if not name.endswith("_b") and name != "z"}
    back = {name.removesuffix("_b"): x for name, x in inputs.items() if name.endswith("_b")}
    back |= {name: back[name].flip(1) for name in ("x", "dt", "B", "C")}
    total = ssd(**ahead, dt_softplus=True) + ssd(**back, dt_softplus=True).flip(1)
    wanted = 0.5 * total * torch.nn.functional.silu(inputs["z"])
    torch.testing.assert_close(ssd_bidirectional(**inputs, average=True), wanted)

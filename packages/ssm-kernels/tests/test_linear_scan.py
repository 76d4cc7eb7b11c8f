"""`linear_scan` against its definition in float64: outputs, states and every gradient, of S4D and of S5 forms."""

from itertools import product

import pytest
import torch
from ssm_kernels import linear_scan, linear_scan_bidirectional, linear_scan_step
from ssm_kernels.testing import assert_as_accurate, error_ratio, linear_inputs, poisoned_buffers
from torch.autograd import gradcheck

WHERE = [
    ("cpu", "torch"),
    pytest.param("cuda", "triton", marks=pytest.mark.gpu),
    pytest.param("cuda", "torch", marks=pytest.mark.gpu),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
RULES = ["zoh", "bilinear"]
FORMS = pytest.mark.parametrize("shared", [False, True], ids=["s4d", "s5"])


def results(inputs, impl, **options):
    """Return outputs and all gradients under fixed cotangents; with an initial state also the final one."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in inputs.items() if x is not None}
    keep = "initial_state" in leaves
    found = linear_scan(**leaves, impl=impl, return_final_state=keep, **options)
    outputs = dict(zip(("y", "final"), found if keep else (found,), strict=False))
    generator = torch.Generator().manual_seed(1)
    cotangents = []
    for x in outputs.values():
        real, imag = torch.randn(2, *x.shape, generator=generator)
        cotangents.append((torch.complex(real, imag) if x.is_complex() else real.to(leaves["x"].dtype)).to(x))
    grads = torch.autograd.grad(list(outputs.values()), list(leaves.values()), cotangents)
    found = {name: x.detach() for name, x in outputs.items()}
    found |= {f"d{name}": g for name, g in zip(leaves, grads, strict=True)}
    return {name: torch.view_as_real(x) if x.is_complex() else x for name, x in found.items()}


def doubled(inputs):
    wide = {True: torch.complex128, False: torch.float64}
    return {name: x if x is None else x.to(wide[x.is_complex()]) for name, x in inputs.items()}


def assert_parity(shape, impl, *, mode="scan", slack=1.5, rule="zoh", reverse=False, **made):
    """Compare some draws together: the error of a few numbers is luck, that of many is not."""
    draws = []
    for seed in range(6):
        inputs = linear_inputs(*shape, seed=seed, state=mode == "scan", **made).kwargs()
        options = {"discretization": rule, "reverse": reverse}
        truth = results(doubled(inputs), "reference", **options)
        eager, found = results(inputs, "reference", **options), results(inputs, impl, mode=mode, **options)
        draws.append((truth, eager, found))
    for name in draws[0][0]:
        truth, eager, found = (torch.stack([draw[k][name] for draw in draws]) for k in range(3))
        assert_as_accurate(name, found, eager, truth, slack)


CASES = {
    "one step": (2, 1, 33, 2),
    "one channel": (2, 17, 1, 5),
    "one mode": (2, 23, 34, 1),
    "chunks and a rest": (1, 40, 7, 3),
}
WAYS = pytest.mark.parametrize(("rule", "reverse"), [("zoh", False), ("bilinear", True)])


# on the CPU each half precision in one direction and by one rule: no line depends on both; the rest is slow
EVERY_WAY = [
    pytest.param("cpu", "torch", dtype, *way, marks=pytest.mark.slow if dtype == DTYPES[1 + i] else ())
    for dtype, (i, way) in product(DTYPES, enumerate(WAYS.args[1]))
] + [
    pytest.param("cuda", impl, dtype, *way, marks=pytest.mark.gpu)
    for impl, dtype, way in product(("triton", "torch"), DTYPES, WAYS.args[1])
]


@pytest.mark.parametrize(("device", "impl", "dtype", "rule", "reverse"), EVERY_WAY, ids=str)
@pytest.mark.parametrize("case", CASES)
@FORMS
def test_as_accurate_as_the_definition(device, impl, dtype, case, rule, reverse, shared):
    options = {"shared": shared, "dtype": dtype, "device": device, "rule": rule, "reverse": reverse}
    assert_parity(CASES[case], impl, **options)


@pytest.mark.parametrize(("device", "impl", "dtype", "rule", "reverse"), EVERY_WAY, ids=str)
@FORMS
def test_convolution_is_as_accurate(device, impl, dtype, rule, reverse, shared):
    """A transform mixes all steps of a row: its error is that of the largest one."""
    options = {"shared": shared, "dtype": dtype, "device": device, "rule": rule, "reverse": reverse}
    assert_parity(CASES["chunks and a rest"], impl, mode="fft", slack=4, **options)


@pytest.mark.parametrize(("device", "impl"), WHERE)
@FORMS
def test_states_that_nobody_sees(device, impl, shared):
    """Without them the scan may keep its states in another unit."""
    inputs = linear_inputs(2, 40, 5, 3, shared=shared, state=False, device=device).kwargs()
    truth, eager = results(doubled(inputs), "reference"), results(inputs, "reference")
    found = results(inputs, impl)
    for name in truth:
        assert_as_accurate(name, found[name], eager[name], truth[name])


@pytest.mark.parametrize("mode", ["scan", "fft"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("reverse", [False, True])
@FORMS
def test_float64_is_the_definition(mode, rule, reverse, shared):
    """To the last digits, over several chunks; real modes too."""
    for paired in (False, True):
        for length in (1, 37, 150):
            inputs = linear_inputs(2, length, 3, 4, shared=shared, paired=paired, dtype=torch.float64).kwargs()
            if mode == "fft":
                inputs["initial_state"] = None
            options = {"discretization": rule, "reverse": reverse}
            truth = results(inputs, "reference", **options)
            found = results(inputs, "torch", mode=mode, **options)
            for name in truth:
                assert error_ratio(found[name], truth[name]) < 1e-11, (name, length, paired)


# each form by one rule: no line depends on both. Of the definition PyTorch itself makes the gradients
@pytest.mark.parametrize(
    ("impl", "rule", "shared"),
    [
        pytest.param(
            *case, marks=() if case in {("torch", "zoh", False), ("torch", "bilinear", True)} else pytest.mark.slow
        )
        for case in product(("torch", "reference"), RULES, (False, True))
    ],
)
def test_gradcheck(impl, rule, shared):
    inputs = linear_inputs(2, 5, 2, 2, shared=shared, dtype=torch.float64).kwargs()
    given = tuple(x.requires_grad_() for x in inputs.values())

    def function(*tensors):
        *first, state = tensors
        return linear_scan(*first, initial_state=state, return_final_state=True, discretization=rule, impl=impl)

    assert gradcheck(function, given)


def test_gradcheck_of_the_convolution():
    inputs = linear_inputs(2, 5, 2, 2, state=False, dtype=torch.float64)
    given = tuple(x.requires_grad_() for x in (inputs.x, inputs.Lambda, inputs.B, inputs.C, inputs.step))
    assert gradcheck(lambda *t: linear_scan(*t, mode="fft"), given)


@FORMS
def test_slow_and_still_modes(shared):
    """Rates of 0 and near 0: the input is summed up. Float32 loses nothing to exp(z) - 1."""
    for rate in (0.0, -1e-12, -1e-5, -3e-3):
        inputs = linear_inputs(2, 20, 3, 2, shared=shared, dtype=torch.float64).kwargs()
        inputs["Lambda"] = torch.full_like(inputs["Lambda"], rate)
        truth = results(inputs, "reference")
        found = results(inputs, "torch")
        single = {n: x.to(torch.complex64) if x.is_complex() else x.float() for n, x in inputs.items()}
        rounded = results(single, "torch")
        for name in truth:
            if name != "dLambda":  # the definition divides by the rate, in its gradient twice
                assert error_ratio(found[name], truth[name]) < 1e-9, (name, rate)
                assert error_ratio(rounded[name], truth[name]) < 1e-6, (name, rate)
        assert error_ratio(rounded["dLambda"], found["dLambda"]) < 1e-5


def test_fast_modes_stay_finite():
    """Decays that underflow and phases of many turns, in half precision."""
    for dtype in DTYPES:
        inputs = linear_inputs(2, 40, 3, 4, dtype=dtype).kwargs()
        inputs["Lambda"] = inputs["Lambda"] * 1e4
        for name, found in results(inputs, "torch").items():
            assert torch.isfinite(found).all(), name


@FORMS
def test_two_halves_with_carried_state_are_one_run(shared):
    inputs = linear_inputs(2, 100, 3, 4, shared=shared).kwargs()
    x = inputs.pop("x")
    for reverse in (False, True):
        options = {"reverse": reverse, "return_final_state": True}
        whole, final = linear_scan(x, **inputs, **options)
        parts = (x[:, 41:], x[:, :41]) if reverse else (x[:, :41], x[:, 41:])
        first, middle = linear_scan(parts[0], **inputs, **options)
        second, last = linear_scan(parts[1], **(inputs | {"initial_state": middle}), **options)
        joined = torch.cat([second, first] if reverse else [first, second], 1)
        assert error_ratio(joined, whole) < 1e-6
        assert error_ratio(torch.view_as_real(last), torch.view_as_real(final)) < 1e-6


@pytest.mark.parametrize("impl", ["torch", "reference"])
@FORMS
def test_step_by_step_is_the_scan(impl, shared):
    inputs = linear_inputs(2, 9, 3, 4, shared=shared).kwargs()
    x, state = inputs.pop("x"), inputs.pop("initial_state")
    wanted, final = linear_scan(x, **inputs, initial_state=state, return_final_state=True, impl="reference")
    rows = []
    for t in range(9):
        y, state = linear_scan_step(x[:, t], **inputs, state=state, impl=impl)
        rows.append(y)
    assert error_ratio(torch.stack(rows, 1), wanted) < 1e-6
    assert error_ratio(torch.view_as_real(state), torch.view_as_real(final)) < 1e-6


@pytest.mark.parametrize("mode", ["scan", "fft"])
@FORMS
def test_causal(mode, shared):
    """A later input changes no earlier output, also where the convolution wraps around."""
    inputs = linear_inputs(1, 30, 2, 3, shared=shared, state=False, dtype=torch.float64).kwargs()
    inputs.pop("initial_state")
    before = linear_scan(**inputs, mode=mode)
    inputs["x"] = inputs["x"].clone()
    inputs["x"][:, 17:] += 100
    assert (linear_scan(**inputs, mode=mode) - before)[:, :17].abs().max() < 1e-11


@pytest.mark.parametrize("mode", ["scan", "fft"])
@FORMS
def test_bidirectional(mode, shared):
    """The sum of two scans; with tied weights it turns round with its input."""
    inputs = linear_inputs(2, 33, 3, 4, shared=shared, state=False, dtype=torch.float64).kwargs()
    inputs.pop("initial_state")
    C_b = linear_inputs(2, 33, 3, 4, shared=shared, dtype=torch.float64, seed=1).C
    y = linear_scan_bidirectional(**inputs, C_b=C_b, mode=mode)
    wanted = linear_scan(**inputs) + linear_scan(**(inputs | {"C": C_b}), reverse=True)
    assert error_ratio(y, wanted) < 1e-12
    tied = linear_scan_bidirectional(**inputs, C_b=inputs["C"], mode=mode)
    flipped = linear_scan_bidirectional(**(inputs | {"x": inputs["x"].flip(1)}), C_b=inputs["C"], mode=mode)
    assert error_ratio(flipped.flip(1), tied) < 1e-12


def test_half_the_step_is_twice_the_resolution():
    """The same signal sampled twice as finely gives the same outputs at the old places, to the order of the step."""
    errors = []
    for length in (100, 400):
        inputs = linear_inputs(1, length, 2, 4, state=False, dtype=torch.float64).kwargs()
        inputs.pop("initial_state")
        time = torch.arange(2 * length, dtype=torch.float64) / (2 * length)
        signal = torch.sin(9 * time)[None, :, None].expand(1, -1, 2)
        inputs["step"] = torch.full((2,), 1 / length, dtype=torch.float64)
        inputs["x"] = signal[:, ::2]
        coarse = linear_scan(**inputs)
        fine = linear_scan(**(inputs | {"x": signal, "step": inputs["step"] / 2}))
        errors.append(error_ratio(fine[:, ::2], coarse))
    assert errors[0] < 0.05
    assert errors[1] < 0.4 * errors[0]  # a quarter of the step


@pytest.mark.parametrize("mode", ["scan", "fft"])
@FORMS
def test_repeats_bit_equal_and_writes_every_buffer(mode, shared):
    inputs = linear_inputs(2, 70, 5, 3, shared=shared, state=mode == "scan").kwargs()
    first = results(inputs, "torch", mode=mode)
    with poisoned_buffers():
        second = results(inputs, "torch", mode=mode)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("impl", ["torch", "reference"])
@FORMS
def test_autocast_changes_nothing(impl, shared):
    inputs = linear_inputs(2, 20, 4, 3, shared=shared).kwargs()
    plain = results(inputs, impl)
    with torch.autocast("cpu", torch.bfloat16):
        cast = results(inputs, impl)
    assert all(torch.equal(plain[name], cast[name]) for name in plain)


def test_channels_in_blocks_do_not_show(monkeypatch):
    from ssm_kernels.ops.linear_scan import torch_impl

    inputs = linear_inputs(2, 40, 7, 3, dtype=torch.float64).kwargs()
    whole = results(inputs, "torch")
    monkeypatch.setattr(torch_impl, "TABLE", 2000)
    cut = results(inputs, "torch")
    assert max(error_ratio(cut[name], whole[name]) for name in whole) < 1e-13


def test_transforms_in_slabs_do_not_show(monkeypatch):
    from ssm_kernels.ops.long_conv1d import torch_impl

    inputs = linear_inputs(3, 40, 7, 3, state=False, dtype=torch.float64).kwargs()
    whole = results(inputs, "torch", mode="fft")
    monkeypatch.setattr(torch_impl, "SLAB", 200)
    cut = results(inputs, "torch", mode="fft")
    assert max(error_ratio(cut[name], whole[name]) for name in whole) < 1e-13


def test_any_strides():
    inputs = linear_inputs(2, 20, 4, 3).kwargs()
    strided = {name: torch.stack([x, x + 1], -1)[..., 0] for name, x in inputs.items()}
    strided["x"] = inputs["x"].permute(2, 0, 1).contiguous().permute(1, 2, 0)
    first, second = results(inputs, "torch"), results(strided, "torch")
    assert all(error_ratio(second[name], first[name]) < 1e-6 for name in first)


def test_parity_can_fail():
    inputs = linear_inputs(2, 20, 3, 2).kwargs()
    truth, eager = results(doubled(inputs), "reference"), results(inputs, "reference")
    with pytest.raises(AssertionError, match="dC: error ratio"):
        assert_as_accurate("dC", eager["dC"] * 1.001, eager["dC"], truth["dC"])


WRONG = {
    "x": (lambda i: {"x": i["x"][0]}, r"x must be \(B, L, D\) with every size at least 1, got \(5, 3\)"),
    "Lambda": (lambda i: {"Lambda": i["Lambda"][:2]}, r"Lambda must be \(D, M\) with D=3, or \(P,\) .*, got \(2, 4\)"),
    "B": (lambda i: {"B": i["B"].mT}, r"B must be \(D, M\) = \(3, 4\), got \(4, 3\)"),
    "C": (lambda i: {"C": i["C"][:, :2]}, r"C must be \(D, M\) = \(3, 4\), got \(3, 2\)"),
    "step": (lambda i: {"step": i["step"][:1]}, r"step must be \(D,\) = \(3,\), got \(1,\)"),
    "complex step": (lambda i: {"step": i["step"] + 0j}, "step must be float32, .*, got complex64"),
    "integers": (lambda i: {"Lambda": i["Lambda"].real.int()}, "Lambda must be complex or floating, got int32"),
    "kinds": (lambda i: {"Lambda": i["Lambda"].real}, "B must be real, as Lambda is, got complex64"),
    "state": (lambda i: {"initial_state": i["initial_state"][:1]}, r"initial_state must be \(B, D, M\) = \(2, 3, 4\)"),
    "real state": (lambda i: {"initial_state": i["initial_state"].real}, "initial_state must be complex, as Lambda is"),
    "mode": (lambda i: {"mode": "loop"}, "mode must be 'scan' or 'fft', got 'loop'"),
    "rule": (lambda i: {"discretization": "euler"}, "discretization must be 'zoh' or 'bilinear', got 'euler'"),
    "impl": (lambda i: {"impl": "cuda"}, "impl must be one of auto, triton, torch, reference, got 'cuda'"),
    "states of a convolution": (lambda i: {"mode": "fft"}, "initial_state must be left out with mode='fft'"),
    "device": (lambda i: {"C": i["C"].to("meta")}, "C must be on cpu like the first argument, got meta"),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors_name_the_argument(case):
    change, message = WRONG[case]
    inputs = linear_inputs(2, 5, 3, 4).kwargs()
    with pytest.raises(ValueError, match=f"linear_scan: {message}"):
        linear_scan(**(inputs | change(inputs)))


def test_errors_of_the_other_functions():
    inputs = linear_inputs(2, 5, 3, 4).kwargs()
    state, x = inputs.pop("initial_state"), inputs.pop("x")
    with pytest.raises(ValueError, match=r"linear_scan_step: x must be \(B, D\)"):
        linear_scan_step(x, **inputs, state=state)
    with pytest.raises(ValueError, match=r"linear_scan_step: state must be \(B, D, M\) = \(2, 3, 4\)"):
        linear_scan_step(x[:, 0], **inputs, state=state[:1])
    with pytest.raises(ValueError, match=r"linear_scan_bidirectional: C_b must be \(D, M\) = \(3, 4\), got \(3, 2\)"):
        linear_scan_bidirectional(x, **inputs, C_b=inputs["C"][:, :2])
    with pytest.raises(ValueError, match=r"linear_scan: return_final_state must be left out with mode='fft'"):
        linear_scan(x, **inputs, mode="fft", return_final_state=True)

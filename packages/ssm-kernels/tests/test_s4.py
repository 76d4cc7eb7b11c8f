"""S4, S4D and HiPPO: the published definitions' numbers, the filter in all its forms, the modules."""

import json
from pathlib import Path

import pytest
import torch
from ssm_kernels import linear_scan, long_conv1d, s4_discretize, s4_kernel
from ssm_kernels.nn import S4, S4D
from ssm_kernels.nn.hippo import hippo_legs, legs_modes, s4d_modes
from ssm_kernels.testing import error_ratio
from torch.autograd import gradcheck

DATA = Path(__file__).parent / "data"
DTYPES = {"F64": torch.float64, "F32": torch.float32}
INITS = ["legs", "inv", "lin", "real"]


def golden(name):
    """Read a safetensors file (its length, a JSON header, the numbers): this package does not depend on the library."""
    content = bytearray((DATA / f"{name}.safetensors").read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    metadata = header.pop("__metadata__")
    tensors = {}
    for key, entry in header.items():
        begin, end = entry["data_offsets"]
        numbers = torch.frombuffer(content[start + begin : start + end], dtype=DTYPES[entry["dtype"]])
        tensors[key] = numbers.reshape(entry["shape"])
    return tensors, json.loads(metadata["float32_atol"])


def complex_of(tensors, name):
    return torch.complex(tensors[f"{name}_real"], tensors[f"{name}_imag"])


def s4d_results(tensors, dtype, mode, paired):
    """Return both kernels, both outputs, states and the gradients of y_zoh under the keys of the file."""
    leaves = {k[6:]: x.to(dtype).requires_grad_() for k, x in tensors.items() if k.startswith("state.")}
    u = tensors["input.u"].to(dtype).requires_grad_()
    real = -leaves["A_log_neg_real"].exp()
    if paired:
        Lambda = torch.complex(real, leaves["A_imag"])
        weights = {name: complex_of(leaves, name) for name in "BC"}
    else:
        Lambda, weights = real, {name: leaves[f"{name}_real"] for name in "BC"}
    arguments = {"Lambda": Lambda, **weights, "step": leaves["log_dt"].exp()}
    impulse = torch.zeros(1, 20, 3, dtype=dtype)
    impulse[:, 0] = 1
    found = {}
    for rule in ("zoh", "bilinear"):
        options = {"discretization": rule, "mode": mode}
        found[f"output.kernel_{rule}"] = linear_scan(impulse, **arguments, **options)[0].mT
        y = linear_scan(u.mT, **arguments, **options).mT + leaves["D"][:, None] * u
        found[f"output.y_{rule}"] = y
        if mode == "scan":
            _, state = linear_scan(u.mT, **arguments, **options, return_final_state=True)
            found[f"mid.final_state_{rule}_real"] = state.real
            found[f"mid.final_state_{rule}_imag"] = state.imag if paired else torch.zeros_like(state)
    wanted = [name for name in leaves if f"grad.state.{name}" in tensors]
    cotangent = tensors["grad.output.y_zoh"].to(dtype)
    grads = torch.autograd.grad(found["output.y_zoh"], [u, *(leaves[name] for name in wanted)], cotangent)
    found["grad.input.u"] = grads[0]
    return {k: x.detach() for k, x in found.items()} | {
        f"grad.state.{name}": g for name, g in zip(wanted, grads[1:], strict=True)
    }


@pytest.mark.parametrize("mode", ["scan", "fft"])
@pytest.mark.parametrize("name", [*INITS, "trained"])
def test_s4d_gives_the_numbers_of_its_definition(name, mode):
    tensors, tolerance = golden(f"mamba_s4d_{name}")
    found = s4d_results(tensors, torch.float64, mode, name != "real")
    assert {k for k in tensors if k.startswith(("output.", "grad.input", "grad.state"))} <= set(found)
    for key, x in found.items():
        assert (x - tensors[key]).abs().max() <= 1e-12 * tensors[key].abs().max().clamp_min(1), key
    for key, x in s4d_results(tensors, torch.float32, mode, name != "real").items():
        assert (x - tensors[key]).abs().max() <= tolerance[key], key


@pytest.mark.parametrize("name", INITS)
def test_s4d_starts_from_the_published_modes(name):
    """One of each conjugate pair; which one is free, and so is their order."""
    tensors, _ = golden(f"mamba_s4d_{name}")
    Lambda = s4d_modes(name, 8)
    assert torch.allclose(Lambda.real.sort()[0], (-tensors["state.A_log_neg_real"][0].exp()).sort()[0], atol=1e-12)
    if name != "real":
        wanted = tensors["state.A_imag"][0].abs().sort()[0]
        assert torch.allclose(Lambda.imag.abs().sort()[0], wanted, atol=1e-12)


def test_hippo_is_the_published_matrix():
    tensors, _ = golden("mamba_hippo_legs")
    A, B = hippo_legs(16)
    assert torch.allclose(A, tensors["output.A"], atol=1e-13)
    assert torch.allclose(B, tensors["output.B"], atol=1e-13)
    Lambda, P, B_modes, V = legs_modes(16)
    wanted = tensors["output.eigenvalues_normal_imag"]
    assert torch.allclose(Lambda.imag, wanted[wanted > 0], atol=1e-12)
    assert torch.allclose(Lambda.real, torch.full((8,), -0.5, dtype=torch.float64), atol=1e-12)
    # half of the modes and their conjugates make the real matrix again
    normal = 2 * (V @ torch.diag(Lambda) @ V.mH).real
    low_rank = 2 * (V @ P).real
    assert torch.allclose(normal - torch.outer(low_rank, low_rank), A, atol=1e-12)
    assert torch.allclose(2 * (V @ B_modes).real, B, atol=1e-12)


def legs_arguments(tensors, dtype):
    """Return the dense golden model in its modes, (D, M), leaves for gradients, and the skip weights."""
    leaves = {k: tensors[f"state.{k}"].to(dtype).requires_grad_() for k in ("B", "C", "log_dt", "D")}
    Lambda, P, _, V = legs_modes(8)
    kind = torch.complex64 if dtype == torch.float32 else torch.complex128
    Lambda, P, V = Lambda.to(kind), P.to(kind), V.to(kind)
    B = (V.mH @ leaves["B"].to(kind)).expand(3, 4)
    arguments = (Lambda.expand(3, 4), P.expand(3, 4), B, leaves["C"].to(kind) @ V, leaves["log_dt"].exp())
    return arguments, leaves


@pytest.mark.parametrize("method", ["cauchy", "dense"])
def test_s4_gives_the_numbers_of_the_dense_matrices(method):
    """Woodbury and Cauchy sums against the trapezoidal rule on the matrix itself."""
    tensors, tolerance = golden("mamba_s4_dense")
    for dtype in (torch.float64, torch.float32):
        arguments, leaves = legs_arguments(tensors, dtype)
        u = tensors["input.u"].to(dtype).requires_grad_()
        kernel = s4_kernel(*arguments, 20, method=method)
        y = long_conv1d(u.mT, kernel).mT + leaves["D"][:, None] * u
        grads = torch.autograd.grad(y, [u, *leaves.values()], tensors["grad.output.y_bilinear"].to(dtype))
        found = {"output.kernel_bilinear": kernel, "output.y_bilinear": y, "grad.input.u": grads[0]}
        found |= {f"grad.state.{name}": g for name, g in zip(leaves, grads[1:], strict=True)}
        for key, x in found.items():
            scale = tensors[key].abs().max()
            allowed = 1e-12 * scale if dtype == torch.float64 else tolerance[key]
            assert (x - tensors[key]).abs().max() <= allowed, key


def random_model(channels=2, modes=3, kind=torch.complex128):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    Lambda = torch.complex(-0.1 - draw(channels, modes).abs(), 3 * draw(channels, modes))
    P, B, C = (torch.complex(draw(channels, modes), draw(channels, modes)) for _ in range(3))
    return [*(t.to(kind) for t in (Lambda, P, B, C)), 0.05 + 0.1 * draw(channels).abs()]


@pytest.mark.parametrize("length", [1, 2, 3, 16, 37])
def test_filter_is_the_recurrence_of_any_length(length):
    """Cauchy sums, powers of the matrix and single steps agree; a shorter filter is the beginning of a longer one."""
    model = random_model()
    cauchy, dense = (s4_kernel(*model, length, method=method) for method in ("cauchy", "dense"))
    A, B, C = s4_discretize(*model)
    state, rows = B, []
    for _ in range(length):
        rows.append((C * state).sum(1))
        state = (A @ state[:, :, None])[..., 0]
    wanted = torch.stack(rows, 1)
    assert error_ratio(cauchy, wanted) < 1e-12
    assert error_ratio(dense, wanted) < 1e-12
    assert error_ratio(s4_kernel(*model, 64)[:, :length], wanted) < 1e-12


def test_s4_without_low_rank_is_s4d():
    Lambda, P, B, C, step = random_model()
    impulse = torch.zeros(1, 24, 2, dtype=torch.float64)
    impulse[:, 0] = 1
    wanted = linear_scan(impulse, Lambda, B, C, step, discretization="bilinear")[0].mT
    assert error_ratio(s4_kernel(Lambda, torch.zeros_like(P), B, C, step, 24), wanted) < 1e-12


@pytest.mark.parametrize("method", ["cauchy", "dense"])
def test_gradcheck_of_the_filter(method):
    model = tuple(t.requires_grad_() for t in random_model(1, 2))
    assert gradcheck(lambda *t: s4_kernel(*t, 5, method=method), model)


def test_single_precision_is_accurate_for_slow_modes():
    """C (1 - A^L) and the Cauchy sums cancel for small steps; single precision loses little to it."""
    Lambda, P, B, _ = (t.expand(4, -1) for t in (*legs_modes(64)[:3], torch.zeros(1)))
    C = torch.complex(*torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    model = (Lambda, P, B, C, torch.tensor([1e-4, 1e-3, 1e-2, 0.1], dtype=torch.float64))
    truth = s4_kernel(*model, 200, method="dense")
    single = [t.to(torch.complex64) for t in model[:4]]
    for method in ("cauchy", "dense"):
        found = s4_kernel(*single, model[4].float(), 200, method=method)
        assert found.dtype == torch.float32
        assert max(error_ratio(a, b) for a, b in zip(found, truth, strict=True)) < 1e-4


WRONG = {
    "Lambda": ({"Lambda": torch.ones(2, 3)}, "Lambda must be complex64 or complex128, got float32"),
    "P": ({"P": torch.ones(2, 2)}, r"P must be \(D, M\) = \(2, 3\), got \(2, 2\)"),
    "step": ({"step": torch.ones(3)}, r"step must be \(D,\) = \(2,\) and real, got \(3,\) float32"),
    "length": ({"length": 0}, "length must be at least 1, got 0"),
    "method": ({"method": "toeplitz"}, "method must be 'cauchy' or 'dense', got 'toeplitz'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors_name_the_argument(case):
    arguments = dict(zip(("Lambda", "P", "B", "C", "step"), random_model(), strict=True)) | {"length": 5}
    change, message = WRONG[case]
    with pytest.raises(ValueError, match=f"s4_kernel: {message}"):
        s4_kernel(**(arguments | change))


def tokens(batch=2, length=20, channels=6, dtype=torch.float32):
    return torch.randn(batch, length, channels, generator=torch.Generator().manual_seed(0), dtype=dtype)


MODULES = {
    "s4": lambda **k: S4(6, d_state=8, **k),
    "s4 dense": lambda **k: S4(6, d_state=8, method="dense", **k),
    "s4d": lambda **k: S4D(6, d_state=8, **k),
    "s4d fft": lambda **k: S4D(6, d_state=8, mode="fft", init="inv", **k),
    "s4d real": lambda **k: S4D(6, d_state=3, init="real", discretization="bilinear", **k),
}


@pytest.mark.parametrize("name", MODULES)
def test_module_step_by_step_is_the_module(name):
    model = MODULES[name]()
    x = tokens()
    wanted = model(x)
    state = model.initial_state(2)
    options = {"matrices": model.matrices()} if isinstance(model, S4) else {}
    rows = []
    for t in range(x.shape[1]):
        y, state = model.step(x[:, t], state, **options)
        rows.append(y)
    assert error_ratio(torch.stack(rows, 1), wanted) < 1e-5


@pytest.mark.parametrize("name", MODULES)
def test_module_is_causal_or_sees_both_sides(name):
    for both in (False, True):
        model = MODULES[name](bidirectional=both)
        x = tokens().requires_grad_()
        (grad,) = torch.autograd.grad(model(x)[:, 10].sum(), x)
        assert grad[:, :11].abs().amax((0, 2)).min() > 0
        future = grad[:, 11:].abs().amax((0, 2))
        assert future.min() > 1e-6 if both else future.max() < 1e-5


@pytest.mark.parametrize("name", MODULES)
def test_tied_bidirectional_module_turns_round_with_its_input(name):
    model = MODULES[name](bidirectional=True)
    for part in ("real", "imag"):
        if hasattr(model, f"C_{part}"):
            getattr(model, f"C_b_{part}").data.copy_(getattr(model, f"C_{part}"))
    x = tokens()
    assert error_ratio(model(x.flip(1)).flip(1), model(x)) < 1e-5


@pytest.mark.parametrize("name", MODULES)
def test_module_trains_and_stays_stable(name):
    """Every parameter has a gradient, the loss falls, and no rate becomes positive: it is the exponential of one."""
    torch.manual_seed(0)
    model = MODULES[name](bidirectional=True)
    x, wanted = tokens(4, 16), torch.tanh(tokens(4, 16).cumsum(1))
    optimizer = torch.optim.Adam(model.parameters(), 3e-2)
    losses = []
    for _ in range(12):
        loss = (model(x) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert (-model.log_A_real.exp() < 0).all()


@pytest.mark.parametrize("name", MODULES)
def test_module_at_twice_the_resolution(name):
    """Half the step on a signal sampled twice as finely: the outputs at the old places stay."""
    torch.manual_seed(1)
    model = MODULES[name](project=False)
    model.D.data.zero_()
    model.log_step.data.fill_(-4.0)
    time = torch.arange(400) / 400
    signal = torch.stack([torch.sin((3 + k) * time) for k in range(6)], 1)[None]
    coarse, fine = model(signal[:, ::2]), model(signal, step_scale=0.5)[:, ::2]
    assert error_ratio(fine, coarse) < 0.05
    assert error_ratio(model(signal)[:, ::2], coarse) > 0.2


def test_half_precision_and_autocast():
    for name, make in MODULES.items():
        model = make()
        y = model(tokens())
        with torch.autocast("cpu", torch.bfloat16):
            half = model(tokens())
        assert error_ratio(half, y) < 2e-2, name
        assert half.dtype == torch.bfloat16
        cast = model.bfloat16()(tokens().bfloat16())
        assert cast.dtype == torch.bfloat16
        assert torch.isfinite(cast).all()


def test_first_values():
    """Steps log-uniform in their range; B of S4D is 1; the inner form has no output layer."""
    model = S4D(512, d_state=4, dt_min=1e-3, dt_max=0.1, project=False)
    step = model.log_step.exp()
    assert step.min() > 0.999e-3
    assert step.max() < 0.1001
    assert abs(model.log_step.mean() - torch.tensor([1e-3, 0.1]).log().mean()) < 0.2
    assert (model.B_real == 1).all()
    assert (model.B_imag == 0).all()
    assert not any(name.startswith("out") for name in model.state_dict())
    assert abs(torch.complex(model.C_real, model.C_imag).abs().square().mean() - 1) < 0.15


def test_module_errors():
    with pytest.raises(ValueError, match=r"S4D: x must be \(B, L, 6\), got \(20, 6\)"):
        S4D(6)(tokens()[0])
    with pytest.raises(ValueError, match=r"S4: x must be \(B, L, 6\)"):
        S4(6)(tokens(channels=5))
    with pytest.raises(ValueError, match=r"S4D.step: bidirectional must be False, got True"):
        model = S4D(6, bidirectional=True)
        model.step(tokens()[:, 0], model.initial_state(2))
    with pytest.raises(ValueError, match=r"S4.step: x must be \(B, 6\), got \(2, 20, 6\)"):
        S4(6).step(tokens(), S4(6).initial_state(2))
    with pytest.raises(ValueError, match="d_state must be even and at least 2, got 7"):
        S4(6, d_state=7)
    with pytest.raises(ValueError, match="init must be 'legs', 'inv', 'lin' or 'real', got 'random'"):
        S4D(6, init="random")

"""The Triton kernels of `depthwise_conv1d`: in Triton's interpreter on short rows, on a GPU at real sizes."""

from itertools import product

import numpy as np
import pytest
import torch
import triton
from ssm_kernels.ops.depthwise_conv1d import depthwise_conv1d, kernels
from ssm_kernels.testing import assert_as_accurate, error_ratio, poisoned_buffers
from torch._dynamo.testing import CompileCounterWithBackend

gpu = pytest.mark.gpu
DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"
NAMES = ("x", "weight", "bias", "initial_state")
HALF = (torch.bfloat16, torch.float16)
WAYS = [("causal", False, "silu"), ("causal", True, None), ("same", True, "silu"), ("same", False, None)]


def make(batch, length, channels, taps, *, dtype=torch.float32, state=False, bounds=None, seed=0):
    """Return the inputs by name and the gradient of y; weight, bias and state in float32."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, kind=torch.float32):
        return torch.randn(*shape, generator=generator).to(kind).to(DEVICE)

    inputs = {"x": normal(batch, length, channels, kind=dtype), "weight": normal(channels, taps) / taps**0.5}
    inputs["bias"] = normal(channels)
    if state:
        inputs["initial_state"] = normal(batch if bounds is None else len(bounds) - 1, channels, taps - 1)
    return inputs, normal(batch, length, channels, kind=dtype)


def run(inputs, cotangent, impl, **settings):
    """Return the output and every gradient by name."""
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    y = depthwise_conv1d(**leaves, impl=impl, **settings)
    grads = torch.autograd.grad(y, list(leaves.values()), cotangent)
    return {"y": y.detach(), **{f"grad_{name}": g for name, g in zip(leaves, grads, strict=True)}}


def assert_parity(inputs, cotangent, eager="reference", **settings):
    wide = {name: x.double() for name, x in inputs.items()}
    truth = run(wide, cotangent.double(), eager, **settings)
    theirs, ours = run(inputs, cotangent, eager, **settings), run(inputs, cotangent, "triton", **settings)
    for name, value in truth.items():
        assert_as_accurate(f"{name} {settings}", ours[name], theirs[name], value)


def options(padding, reverse, activation):
    return {"padding": padding, "reverse": reverse, "activation": activation}


# two ways for every length, one causal and one not, even and odd lengths each in all four; the rest is slow
LENGTHS = [
    pytest.param(taps, way, marks=() if (taps // 2 + i) % 2 else pytest.mark.slow, id=f"{taps}-{way}")
    for taps in range(2, 9)
    for i, way in enumerate(WAYS)
]


@pytest.mark.parametrize(("taps", "way"), LENGTHS)
def test_every_filter_length(taps, way):
    """Output and all gradients over two chunks, with a state where there can be one; of two rows for one length."""
    inputs, cotangent = make(2 if taps == 4 else 1, 19, 16, taps, state=way[0] == "causal")
    assert_parity(inputs, cotangent, **options(*way))


@pytest.mark.parametrize(("padding", "reverse"), list(product(("causal", "same"), (False, True))))
def test_packed_sequences(padding, reverse):
    """Empty sequences, one of one step, one shorter than the filter, one of several chunks; an empty one at the end."""
    bounds = [0, 0, 1, 3, 21, 22, 22]
    inputs, cotangent = make(1, 22, 16, 4, state=padding == "causal", bounds=bounds)
    assert_parity(inputs, cotangent, cu_seqlens=torch.tensor(bounds).to(DEVICE), **options(padding, reverse, "silu"))


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("way", WAYS[:3:2], ids=str)
def test_half_precision_sums_in_float32(dtype, way):
    inputs, cotangent = make(1, 18, 40, 4, dtype=dtype, state=way[0] == "causal")
    assert_parity(inputs, cotangent, **options(*way))


@pytest.mark.parametrize("sizes", [(1, 1, 1, 2), (3, 1, 7, 8), (1, 5, 1, 3), (1, 2, 130, 3), (1, 8, 96, 4)], ids=str)
def test_small_and_odd_sizes(sizes):
    """One step, one channel, fewer steps than taps, several blocks of channels. Float64 is the measure: 8 ulp."""
    inputs, cotangent = make(*sizes, state=True, seed=3)
    truth = run({n: x.double() for n, x in inputs.items()}, cotangent.double(), "torch", activation="silu")
    for name, ours in run(inputs, cotangent, "triton", activation="silu").items():
        assert error_ratio(ours, truth[name]) < 1e-6, name


def test_any_strides_and_dtypes():
    """Views (of a wider tensor, transposed, expanded, not aligned) with parameters of any dtype."""
    inputs, cotangent = make(2, 9, 12, 3, state=True)
    views = {
        "half of a projection": lambda x: torch.cat([x, x], 2)[..., 12:],
        "channels first": lambda x: x.mT.contiguous().mT,
        "every second step": lambda x: x.repeat_interleave(2, 1)[:, ::2],
        "expanded": lambda x: x[:1, :1].expand(x.shape),
        "not aligned": lambda x: torch.cat([x[..., :1], x], 2)[..., 1:],
    }
    inputs["weight"] = inputs["weight"].bfloat16().T.contiguous().T
    inputs["bias"], inputs["initial_state"] = inputs["bias"].double(), inputs["initial_state"].half()
    for name, view in views.items():
        viewed, seen = {**inputs, "x": view(inputs["x"])}, view(cotangent)
        expected, found = (run(viewed, seen, impl, activation="silu") for impl in ("torch", "triton"))
        for key, value in expected.items():
            assert found[key].dtype == value.dtype, f"{name} {key}"
            rounding = max(torch.finfo(value.dtype).eps, 1e-6)  # summed in float32 whatever the parameter's dtype
            assert error_ratio(found[key], value) <= rounding, f"{name} {key}"


@pytest.mark.parametrize("packed", [False, True])
def test_writes_all_of_its_results_and_repeats_exactly(packed):
    bounds = [0, 4, 4, 19] if packed else None
    inputs, cotangent = make(1, 19, 5, 4, state=True, bounds=bounds)
    settings = {"activation": "silu", "cu_seqlens": None if bounds is None else torch.tensor(bounds).to(DEVICE)}
    first = run(inputs, cotangent, "triton", **settings)
    with poisoned_buffers():
        second = run(inputs, cotangent, "triton", **settings)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_same_result_for_any_chunk(monkeypatch):
    """The output does not depend on the launch configuration at all, the gradients of the parameters by a rounding."""
    inputs, cotangent = make(1, 35, 8, 4)
    short = run(inputs, cotangent, "triton", activation="silu")
    monkeypatch.setattr(kernels, "ENOUGH_PROGRAMS", 1)
    one = run(inputs, cotangent, "triton", activation="silu")
    for name in ("y", "grad_x"):
        assert torch.equal(short[name], one[name]), name
    for name in ("grad_weight", "grad_bias"):
        torch.testing.assert_close(short[name], one[name])
        assert not torch.equal(short[name], torch.zeros_like(short[name]))


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_extreme_values_stay_finite(dtype):
    """An exponential that overflows gives a gate of 0, in both directions."""
    inputs, cotangent = make(1, 6, 4, 2, dtype=dtype)
    inputs["x"] = 6e4 * inputs["x"].sign()
    inputs["weight"] = inputs["weight"].clamp(-0.4, 0.4)  # sums as large as float16 can be, of both signs
    with np.errstate(over="ignore"):  # the interpreter is NumPy, which warns
        results = run(inputs, cotangent, "triton", activation="silu")
    assert results["y"].max() > 2e4
    for name, value in results.items():
        assert torch.isfinite(value).all(), name


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # PyTorch's own checker
def test_operator_contract():
    """Schema, fake kernel and autograd registration with the Triton kernels behind them."""
    inputs, cotangent = make(1, 3, 2, 2, state=True)
    rest = (None, "causal", False, "silu", "triton")
    leaves = [x.requires_grad_() for x in inputs.values()]
    torch.library.opcheck(torch.ops.ssm_kernels.depthwise_conv1d.default, (*leaves, *rest))
    plain = [x.detach() for x in leaves]
    torch.library.opcheck(torch.ops.ssm_kernels.depthwise_conv1d_backward.default, (cotangent, *plain, *rest))


@gpu
@pytest.mark.parametrize("impl", ["auto", "triton"])
def test_compiles_once_for_all_sizes(impl):
    """torch.compile(fullgraph, dynamic) over the Triton kernels, forward and backward."""
    counter = CompileCounterWithBackend("aot_eager")

    def function(x, weight, bias):
        return depthwise_conv1d(x * 2, weight, bias, activation="silu", impl=impl)

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
    for batch, length in [(2, 5), (3, 4)]:
        inputs, cotangent = make(batch, length, 6, 4)
        leaves = [x.requires_grad_() for x in inputs.values()]
        expected, result = function(*leaves), compiled(*leaves)
        assert torch.equal(result, expected)
        theirs = torch.autograd.grad(expected, leaves, cotangent)
        for ours, other in zip(torch.autograd.grad(result, leaves, cotangent), theirs, strict=True):
            assert torch.equal(ours, other)
    assert counter.frame_count == 1


def test_refuses_float64_weights():
    """An explicit choice never falls back; "auto" leaves them to PyTorch."""
    inputs, _ = make(1, 3, 2, 2)
    inputs["weight"] = inputs["weight"].double()
    with pytest.raises(ValueError, match="weight must be float32 or narrower with impl='triton', got float64"):
        depthwise_conv1d(**inputs, impl="triton")
    torch.testing.assert_close(depthwise_conv1d(**inputs), depthwise_conv1d(**inputs, impl="reference"))


REAL = {
    "Vim-T 224": (128, 197, 384, 4),
    "few long rows": (1, 65536, 192, 4),
    "odd": (3, 333, 37, 5),
    "MambaVision": (16, 196, 320, 3),
    "long filter": (4, 1000, 240, 8),
    "few channels": (8, 4096, 10, 4),
}


@gpu
@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("case", REAL)
def test_real_sizes(case, way, dtype):
    inputs, cotangent = make(*REAL[case], dtype=dtype, state=way[0] == "causal")
    assert_parity(inputs, cotangent, eager="torch", **options(*way))


@gpu
@pytest.mark.parametrize("reverse", [False, True])
def test_real_packed_sequences(reverse):
    bounds = [0, 0, 197, 200, 1224, 1225, 9000, 9000]
    inputs, cotangent = make(1, 9000, 384, 4, dtype=torch.bfloat16, state=True, bounds=bounds)
    cu_seqlens = torch.tensor(bounds, dtype=torch.int32, device="cuda")
    assert_parity(inputs, cotangent, eager="torch", cu_seqlens=cu_seqlens, **options("causal", reverse, "silu"))


@gpu
def test_real_sizes_repeat_exactly():
    inputs, cotangent = make(16, 333, 2048, 4, dtype=torch.bfloat16)
    first, second = (run(inputs, cotangent, "triton", activation="silu") for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@gpu
@pytest.mark.parametrize("reverse", [False, True])
def test_more_than_two_to_the_31_elements(reverse):
    """The ends of a row whose offsets need 64 bits equal those of the ends alone."""
    channels, length, part = 2048, 2**20 + 77, 64
    weight, bias = torch.randn(channels, 4, device="cuda"), torch.randn(channels, device="cuda")
    x = torch.randn(1, length, channels, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    y = depthwise_conv1d(x, weight, bias, reverse=reverse, activation="silu", impl="triton")
    cotangent = torch.zeros_like(y)
    cotangent[:, :part], cotangent[:, -part:] = 1.0, 1.0
    (grad,) = torch.autograd.grad(y, x, cotangent)
    for end in (slice(0, 2 * part), slice(-2 * part, None)):
        ends = x.detach()[:, end].clone().requires_grad_()
        alone = depthwise_conv1d(ends, weight, bias, reverse=reverse, activation="silu", impl="torch")
        (theirs,) = torch.autograd.grad(alone, ends, cotangent[:, end].contiguous())
        outer = slice(0, part) if end.start == 0 else slice(part, None)
        torch.testing.assert_close(y[:, end][:, outer], alone[:, outer], rtol=0.02, atol=0.02)
        torch.testing.assert_close(grad[:, end], theirs, rtol=0.02, atol=0.02)


@gpu
def test_no_compilation_for_another_batch_or_length(monkeypatch):
    """Forward and backward compile at first, then never again for other B and L, one step and long rows included."""
    compiled = []
    monkeypatch.setattr(triton.knobs.runtime, "jit_post_compile_hook", lambda **info: compiled.append(info["fn"].name))
    for i, (batch, length) in enumerate([(2, 197), (1, 1), (3, 16), (64, 1000), (1, 70001), (16, 333)]):
        inputs, cotangent = make(batch, length, 48, 4, dtype=torch.bfloat16)
        run(inputs, cotangent, "triton", activation="silu")
        if i == 0:
            first = len(compiled)
    assert 0 < first <= 3
    assert len(compiled) == first, compiled

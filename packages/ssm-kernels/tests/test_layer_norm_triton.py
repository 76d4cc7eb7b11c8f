"""The Triton kernels of `layer_norm` and `rms_norm`: in Triton's interpreter on few rows, on a GPU at real sizes."""

import pytest
import torch
import triton
from ssm_kernels import warmup
from ssm_kernels.nn import LayerNorm, RMSNorm
from ssm_kernels.ops.layer_norm import api, kernels, layer_norm, rms_norm
from ssm_kernels.testing import assert_as_accurate, error_ratio, poisoned_buffers
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

gpu = pytest.mark.gpu
DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"
BF16, HALF, SINGLE = torch.bfloat16, torch.float16, torch.float32
NORMS = pytest.mark.parametrize("norm", [layer_norm, rms_norm], ids=["layer_norm", "rms_norm"])


def make(*shape, dtype=SINGLE, residual=None, bias=True, parameters=SINGLE, seed=0):
    """Return the inputs by name; rows have a mean and a spread of their own."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes, kind):
        return torch.randn(*sizes, generator=generator).to(kind).to(DEVICE)

    inputs = {"x": normal(*shape, kind=dtype) * 2 + 0.5, "weight": normal(shape[-1], kind=parameters)}
    if bias:
        inputs["bias"] = normal(shape[-1], kind=parameters)
    if residual is not None:
        inputs["residual"] = normal(*shape, kind=residual)
    return inputs


def run(norm, inputs, impl, cotangents=None, **settings):
    """Return the results and every gradient by name; the gradient of the results is drawn, or given."""
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    results = norm(**leaves, impl=impl, **settings)
    results = results if isinstance(results, tuple) else (results,)
    if cotangents is None:
        cotangents = [drawn(y) for y in results]
    against = [c.to(y) for c, y in zip(cotangents, results, strict=True)]
    grads = torch.autograd.grad(results, list(leaves.values()), against)
    named = dict(zip(("y", "total")[: len(results)], (y.detach() for y in results), strict=True))
    return named | {f"grad_{name}": g for name, g in zip(leaves, grads, strict=True)}


def drawn(like, seed=9):
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed)).to(like)


def assert_parity(norm, inputs, **settings):
    """Ours is as near to the definition in float64 as the definition in the inputs' dtypes."""
    theirs, ours = run(norm, inputs, "reference", **settings), run(norm, inputs, "triton", **settings)
    rounded = [drawn(theirs[name]) for name in ("y", "total") if name in theirs]
    truth = run(norm, {name: x.double() for name, x in inputs.items()}, "reference", rounded)
    for name, value in truth.items():
        assert_as_accurate(f"{name} {settings}", ours[name], theirs[name], value)


@NORMS
@pytest.mark.parametrize("channels", [10, 48, 54, 257])
def test_several_tiles_and_odd_widths(norm, channels, monkeypatch):
    """The backward's programs walk over several tiles each, the last of which is not full."""
    monkeypatch.setattr(kernels, "PROGRAMS", 2)
    assert_parity(norm, make(3, 17, channels))


@pytest.mark.parametrize(("dtype", "residual"), [(BF16, SINGLE), (HALF, HALF), (SINGLE, BF16), (BF16, HALF)], ids=str)
def test_sum_in_front(dtype, residual):
    """Both results and all gradients, for equal dtypes and for those that promote to one of them or to a third one."""
    inputs = make(5, 7, 60, dtype=dtype, residual=residual)
    assert_parity(layer_norm, inputs)
    promoted = torch.promote_types(dtype, residual)
    ours = run(layer_norm, inputs, "triton")
    assert (ours["y"].dtype, ours["total"].dtype) == (dtype, promoted)
    assert torch.equal(ours["total"], inputs["x"] + inputs["residual"])
    assert [ours[f"grad_{name}"].dtype for name in inputs] == [x.dtype for x in inputs.values()]


def test_what_is_normalised_is_the_sum_as_returned():
    """With a sum of a narrow dtype the norm is that of the rounded sum, not of one that nobody sees."""
    inputs = make(40, 48, dtype=BF16, residual=BF16)
    y, total = layer_norm(**inputs, dtype=SINGLE, impl="triton")
    alone = layer_norm(total, inputs["weight"], inputs["bias"], dtype=SINGLE, impl="triton")
    assert torch.equal(y, alone)


@NORMS
def test_dtype_of_the_result(norm):
    inputs = make(6, 32, dtype=SINGLE, residual=SINGLE)
    assert_parity(norm, inputs, dtype=BF16)
    assert run(norm, inputs, "triton", dtype=HALF)["y"].dtype == HALF


def test_parameters_of_any_dtype_and_missing_ones():
    """Gradients come in the parameters' own dtypes; a weight alone, a bias alone, and neither."""
    for inputs in (make(9, 20, parameters=BF16), make(9, 20, bias=False)):
        assert_parity(layer_norm, inputs)
    inputs = make(9, 20)
    weight = inputs.pop("weight")
    for bias in (inputs["bias"], None):
        x = inputs["x"].clone().requires_grad_()
        y = layer_norm(x, None, bias, impl="triton")
        expected = layer_norm(x, None, bias, impl="torch")
        grads = [torch.autograd.grad(result, x, drawn(y))[0] for result in (y, expected)]
        assert error_ratio(y, expected) < 1e-6 and error_ratio(*grads) < 1e-6
    assert weight.shape == (20,)


def test_one_channel_is_its_bias():
    """The variance is zero, and so is the gradient of the weight; that of x is one rounding of what it cancels."""
    inputs = make(9, 1)
    found = run(layer_norm, inputs, "triton")
    assert torch.equal(found["y"], inputs["bias"].expand(9, 1))
    assert not found["grad_weight"].any()
    cancelled = drawn(found["y"]) * inputs["weight"] * 1e-5**-0.5
    assert (found["grad_x"].abs() <= torch.finfo(torch.float32).eps * cancelled.abs()).all()


def test_any_strides():
    """Views (of a wider tensor, transposed, expanded, not aligned) of inputs and of the gradient."""
    views = {
        "half": lambda x: torch.cat([x, x], -1)[..., 24:],
        "transposed": lambda x: x.mT.contiguous().mT,
        "expanded": lambda x: x[:1, :1].expand(x.shape),
        "not aligned": lambda x: torch.cat([x[..., :1], x], -1)[..., 1:],
    }
    inputs = make(2, 9, 24, residual=SINGLE)
    for name, view in views.items():
        viewed = {**inputs, "x": view(inputs["x"]), "residual": view(inputs["residual"])}
        against = [view(drawn(inputs["x"])), view(drawn(inputs["x"], seed=3))]
        expected, found = (run(layer_norm, viewed, impl, against) for impl in ("torch", "triton"))
        for key, value in expected.items():
            assert error_ratio(found[key], value) < 2e-6, f"{name} {key}"


@NORMS
def test_rows_with_padding_are_read_where_they_lie(norm, monkeypatch):
    """What a scan padded to 56 channels leaves, with and without a sum in front: no copy, right, the same twice.

    Not to the bit what a copy of it gives: threads that load other vectors add up channels in another order.
    """
    monkeypatch.setattr(kernels, "PROGRAMS", 2)
    for inputs in (make(3, 17, 54), make(2, 5, 3, 10, dtype=BF16, residual=SINGLE), make(40, 6)):
        padded = F.pad(inputs["x"], (0, 2))[..., :-2]
        assert kernels._spaced(padded) == (padded, padded.shape[-1] + 2)
        assert_parity(norm, {**inputs, "x": padded})
        found, again = (run(norm, {**inputs, "x": padded}, "triton") for _ in "ab")
        assert all(torch.equal(again[name], value) for name, value in found.items())


def test_other_distances_of_rows_are_copied():
    """Uneven ones, and those that would be compiled for anew: all but the first step, every first step, a third."""
    x = make(4, 9, 24)["x"]
    for view in (x[:, 1:], x[:, 0], x[..., ::2], x[..., :8], x[:1, :1].expand(4, 9, 24)):
        copied, apart = kernels._spaced(view)
        assert copied.is_contiguous() and apart == view.shape[-1] and torch.equal(copied, view)
    alone = x[:1]
    assert kernels._spaced(alone) == (alone, 24)


def test_empty_rows():
    """No rows: no result, and gradients of zero for the parameters."""
    found = run(layer_norm, make(2, 0, 12, residual=SINGLE), "triton")
    assert found["y"].shape == found["total"].shape == found["grad_x"].shape == (2, 0, 12)
    assert not found["grad_weight"].any() and found["grad_weight"].shape == (12,)


def test_every_buffer_is_written():
    """With memory that is NaN until written, results and gradients are what they are."""
    inputs = make(70, 10, dtype=BF16, residual=SINGLE)
    expected = run(rms_norm, inputs, "triton")
    with poisoned_buffers():
        found = run(rms_norm, inputs, "triton")
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_repeats_are_bit_equal_on_any_grid(monkeypatch):
    """Twice the same; and y and the gradient of x for any size of tiles and number of programs."""
    inputs = make(90, 48, residual=BF16)
    expected, again = run(layer_norm, inputs, "triton"), run(layer_norm, inputs, "triton")
    assert all(torch.equal(again[name], value) for name, value in expected.items())
    monkeypatch.setattr(kernels, "PROGRAMS", 3)
    other = run(layer_norm, inputs, "triton")
    assert all(torch.equal(other[name], expected[name]) for name in ("y", "total", "grad_x", "grad_residual"))


def test_only_what_is_asked_for():
    """Every subset of inputs that require a gradient, and only one of the two results in use."""
    inputs = make(11, 20, dtype=BF16, residual=SINGLE)
    expected = run(layer_norm, inputs, "triton")
    for wanted in (["x"], ["weight"], ["bias", "residual"]):
        leaves = {name: x.detach().requires_grad_(name in wanted) for name, x in inputs.items()}
        results = layer_norm(**leaves, impl="triton")
        grads = torch.autograd.grad(results, [leaves[name] for name in wanted], [drawn(y) for y in results])
        for name, grad in zip(wanted, grads, strict=True):
            assert torch.equal(grad, expected[f"grad_{name}"]), f"{name} of {wanted}"
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    y, total = layer_norm(**leaves, impl="triton")
    passed = torch.autograd.grad(total, list(leaves.values()), drawn(total), allow_unused=True, retain_graph=True)
    assert passed[1] is None and passed[2] is None
    assert torch.equal(passed[3], drawn(total)) and torch.equal(passed[0], drawn(total).bfloat16())
    alone = torch.autograd.grad(y, leaves["x"], drawn(y))[0]
    assert error_ratio(alone, run(layer_norm, inputs, "torch", [drawn(y), torch.zeros_like(total)])["grad_x"]) < 1e-2


def test_the_sum_used_twice():
    """A residual stream: the sum goes to the next norm, whose gradients come back to it through both ways."""

    def stream(x, weight, bias, residual, impl):
        y, total = layer_norm(x, weight, bias, residual=residual, impl=impl)
        z, total = rms_norm(y.tanh(), weight, residual=total, impl=impl)
        return z + total

    inputs = {name: x.detach().requires_grad_() for name, x in make(8, 24, residual=SINGLE).items()}
    results = [stream(**inputs, impl=impl) for impl in ("triton", "torch")]
    against = drawn(results[0])
    grads = [torch.autograd.grad(result, list(inputs.values()), against) for result in results]
    for name, ours, theirs in zip(inputs, *grads, strict=True):
        assert error_ratio(ours, theirs) < 2e-6, name


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # PyTorch's own checker
def test_operator_contract():
    """Schemas, fake results and autograd agree with what runs."""
    inputs = make(4, 10, dtype=BF16, residual=SINGLE)
    leaves = [inputs[name].detach().requires_grad_() for name in ("x", "weight", "bias", "residual")]
    torch.library.opcheck(torch.ops.ssm_kernels.layer_norm.default, (*leaves, BF16, 1e-5, True))
    torch.library.opcheck(torch.ops.ssm_kernels.layer_norm.default, (*leaves[:3], None, BF16, 1e-5, False))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # PyTorch's own compiler
def test_compiles_as_one_graph(monkeypatch):
    """One graph for any number of rows, the values of eager, as it is on a GPU."""
    monkeypatch.setattr(api, "use_triton", lambda impl, x: True)
    counter = CompileCounterWithBackend("aot_eager")

    def block(x, weight, bias, residual):
        y, total = layer_norm(x, weight, bias, residual=residual)
        return y * 2, total

    compiled = torch.compile(block, backend=counter, fullgraph=True, dynamic=True)
    counts = []
    for rows in (5, 9):
        inputs = {name: x.requires_grad_() for name, x in make(rows, 16, residual=SINGLE).items()}
        expected, found = block(**inputs), compiled(**inputs)
        grads = [torch.autograd.grad(r, list(inputs.values()), [drawn(y) for y in r]) for r in (expected, found)]
        assert all(torch.equal(a, b) for a, b in zip((*expected, *grads[0]), (*found, *grads[1]), strict=True))
        counts.append(counter.frame_count)
    assert counts[0] == counts[1]


def test_triton_says_what_it_cannot_do():
    """Rows that a program cannot hold and float64: refused by name, and PyTorch's with impl="auto"."""
    long = torch.randn(2, 20000, device=DEVICE)
    with pytest.raises(ValueError, match="C of x must be at most 16384 with impl='triton', got 20000; impl='auto'"):
        layer_norm(long, None, impl="triton")
    assert torch.equal(layer_norm(long, None), F.layer_norm(long, (20000,)))
    with pytest.raises(ValueError, match="weight must be float32 or narrower"):
        layer_norm(long[:, :4], torch.ones(4, dtype=torch.float64, device=DEVICE), impl="triton")


@gpu
@pytest.mark.parametrize(
    ("shape", "dtype", "residual"),
    [
        ((16, 64, 64, 48), BF16, None),
        ((8, 6085, 192), BF16, SINGLE),
        ((256, 197, 384), HALF, None),
        ((5, 16384), SINGLE, BF16),
        ((1, 10), SINGLE, None),
    ],
    ids=str,
)
def test_real_sizes(shape, dtype, residual):
    """Vision's sizes on the device, as accurate as PyTorch, and the same twice."""
    inputs = make(*shape, dtype=dtype, residual=residual)
    for norm in (layer_norm, rms_norm):
        theirs, ours = (run(norm, inputs, impl) for impl in ("torch", "triton"))
        again = run(norm, inputs, "triton")
        rounded = [drawn(theirs[name]) for name in ("y", "total") if name in theirs]
        truth = run(norm, {name: x.double() for name, x in inputs.items()}, "torch", rounded)
        for name, value in truth.items():
            assert_as_accurate(f"{name} {norm.__name__}", ours[name], theirs[name], value)
            assert torch.equal(ours[name], again[name]), name


@gpu
def test_one_compilation_serves_any_number_of_rows():
    """Numbers of rows that are 1, odd and divisible by 16, and those at which the backward has all its programs."""

    def block(x, weight, bias, residual):
        return layer_norm(x, weight, bias, residual=residual)

    def leaves(rows):
        return [x.requires_grad_() for x in make(rows, 48, dtype=BF16, residual=SINGLE).values()]

    warmup(block, *leaves(64))
    for rows in (1, 7, 333, 4096, 70000):
        assert warmup(block, *leaves(rows)).kernels == (), rows


@gpu
def test_offsets_beyond_32_bits():
    """2^31 numbers and more: the last rows are normalised as they are alone."""
    rows = 2**31 // 192 + 1000
    x = torch.empty(rows, 192, dtype=BF16, device=DEVICE).normal_()
    weight = torch.ones(192, device=DEVICE)
    assert torch.equal(layer_norm(x, weight, impl="triton")[-500:], layer_norm(x[-500:], weight, impl="triton"))


@gpu
def test_modules_on_the_device_under_autocast():
    """The modules' result is in autocast's dtype, and their parameters' gradients in float32."""
    for module in (LayerNorm(48).to(DEVICE), RMSNorm(48).to(DEVICE)):
        x = torch.randn(64, 48, device=DEVICE, dtype=BF16)
        with torch.autocast("cuda", BF16):
            y, total = module(x, x.float())
        assert (y.dtype, total.dtype) == (BF16, SINGLE)
        (y.float().square().sum() + total.sum()).backward()
        assert all(p.grad is not None and p.grad.dtype == SINGLE for p in module.parameters())

"""The Triton kernels of `window_attention`: in Triton's interpreter on tiny pictures, on a GPU at real sizes."""

import pytest
import torch
import triton
from ssm_kernels import window_attention
from ssm_kernels.ops.window_attention import kernels
from ssm_kernels.testing import assert_as_accurate, error_ratio, poisoned_buffers
from torch._dynamo.testing import CompileCounterWithBackend

gpu = pytest.mark.gpu
DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"
HALF = (torch.bfloat16, torch.float16)
NAMES = ("y", "grad_q", "grad_k", "grad_v", "grad_table")
# batch, height, width, heads, head dim, window, key window, shift, position bias
GEOMETRIES = {
    "plain": (2, 4, 8, 1, 8, 4, 4, 0, False),
    "bias": (1, 5, 5, 2, 10, 5, 5, 0, True),
    "shift": (1, 8, 8, 1, 7, 4, 4, 2, True),
    "shift, no bias": (1, 6, 6, 1, 3, 3, 3, 1, False),
    "shift of one window": (1, 5, 5, 1, 3, 5, 5, 3, True),
    "overlap": (1, 4, 8, 1, 5, 4, 6, 0, True),
    "overlap, no bias": (1, 3, 6, 2, 25, 3, 5, 0, False),
    "keys reach beyond the next window": (1, 2, 4, 1, 3, 2, 6, 0, True),
    "windows of one pixel": (1, 2, 3, 1, 4, 1, 3, 0, True),
    "one pixel": (1, 1, 1, 1, 1, 1, 1, 0, True),
    "several blocks": (1, 9, 9, 1, 10, 9, 9, 4, True),
}


@pytest.fixture(autouse=True)
def one_window_a_program(monkeypatch, request):
    """The interpreter takes its time for windows that fill a group up: without groups, where they are not the point."""
    if DEVICE == "cpu" and "in_groups" not in request.node.name:
        for name in ("FORWARD", "QUERIES", "KEYS"):
            monkeypatch.setattr(kernels, name, (*getattr(kernels, name)[:4], 1))
        kernels.plan.cache_clear()
        yield
        kernels.plan.cache_clear()
    else:
        yield


def make(geometry, dtype=torch.float32, table_dtype=None, seed=0):
    """Return q, k, v, the cotangent and perhaps the table, and the settings."""
    batch, height, width, heads, dim, window, key_window, shift, bias = geometry
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, height, width, heads, dim)
    tensors = [torch.randn(shape, generator=generator).to(dtype) for _ in range(4)]
    if bias:
        table = torch.randn((window + key_window - 1) ** 2, heads, generator=generator)
        tensors.append(table.to(table_dtype or dtype))
    return [t.to(DEVICE) for t in tensors], {"window": window, "key_window": key_window, "shift": shift}


def run(tensors, settings, impl):
    """Return the output and every gradient by name."""
    q, k, v, cotangent, *table = tensors
    leaves = [t.detach().requires_grad_() for t in (q, k, v, *table)]
    y = window_attention(*leaves[:3], bias_table=leaves[3] if table else None, impl=impl, **settings)
    return dict(zip(NAMES, [y.detach(), *torch.autograd.grad(y, leaves, cotangent)], strict=False))


def assert_parity(tensors, settings, eager="reference"):
    truth = run([t.double() for t in tensors], settings, eager)
    theirs, ours = run(tensors, settings, eager), run(tensors, settings, "triton")
    for name, value in truth.items():
        assert_as_accurate(name, ours[name], theirs[name], value)


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_as_accurate_as_the_definition(geometry):
    """Output and all gradients in float32, judged against float64."""
    assert_parity(*make(geometry))


@pytest.mark.parametrize("geometry", [(1, 6, 2, 1, 4, 2, 2, 1, True), (1, 2, 6, 1, 4, 2, 4, 0, True)], ids=str)
def test_windows_in_groups(geometry):
    """Three windows in programs of two: the fourth does not exist, and nothing is written for it."""
    kernels.plan.cache_clear()
    assert kernels.FORWARD[4] == kernels.KEYS[4] == 2
    assert_parity(*make(geometry))


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", ["shift", "overlap, no bias"])
def test_half_precision(name, dtype):
    assert_parity(*make(GEOMETRIES[name], dtype))


def test_few_queries_are_left_over():
    """144 are two blocks of 64 and one of 16, which has a launch of its own."""
    tensors, settings = make((1, 12, 12, 1, 3, 12, 12, 0, False), torch.float16)
    plan = kernels.plan(3, 1, 12, 12, 0, torch.float16, DEVICE)
    assert [(s["FIRST"], s["COUNT"], s["BLOCK_Q"]) for s in plan.forward] == [(0, 128, 64), (128, 16, 16)]
    q, k, v, _ = tensors
    truth, theirs, ours = (
        window_attention(*x, impl=impl, **settings)
        for x, impl in (([t.double() for t in (q, k, v)], "reference"), ((q, k, v), "reference"), ((q, k, v), "triton"))
    )
    assert_as_accurate("y", ours, theirs, truth)


@pytest.mark.parametrize("dim", [8, 16, 30, 49, 64, 128])
def test_every_head_dim(dim):
    """Padding to a power of two happens inside the kernels only. Float64 is the measure: 8 roundings of float32.

    The interpreter adds the products of a row up one by one, which costs more of them than eager PyTorch does.
    """
    tensors, settings = make((1, 3, 3, 1, dim, 3, 3, 0, True))
    truth = run([t.double() for t in tensors], settings, "reference")
    for name, ours in run(tensors, settings, "triton").items():
        assert error_ratio(ours, truth[name]) < 1e-6, name


def test_float32_table_of_half_precision_tokens():
    """As trained: the gradient of the table is float32, summed in float32, and as good as its factors allow."""
    tensors, settings = make(GEOMETRIES["bias"], torch.float16, torch.float32)
    truth = run([t.double() for t in tensors], settings, "reference")
    ours = run(tensors, settings, "triton")
    assert ours["grad_table"].dtype == torch.float32
    for name, value in truth.items():
        assert error_ratio(ours[name], value) < 2e-3, name  # the saved output, from which it follows, is float16


def test_parts_of_the_table_gradient_add_up(monkeypatch):
    """However many windows a program takes, the sum is the same to a rounding."""
    tensors, settings = make((3, 2, 2, 1, 4, 2, 2, 1, True))
    results = []
    for enough in (1, 4, 1000):
        monkeypatch.setattr(kernels, "ENOUGH_PROGRAMS", enough)
        results.append(run(tensors, settings, "triton"))
    for other in results[1:]:
        torch.testing.assert_close(other["grad_table"], results[0]["grad_table"], rtol=1e-5, atol=1e-6)
        assert torch.equal(other["grad_k"], results[0]["grad_k"])


def test_any_strides_and_dtypes():
    """Views of a joint projection are read in place; others are copied; each result has its argument's dtype."""
    (q, k, v, cotangent, table), settings = make((1, 2, 2, 2, 5, 2, 2, 0, True))
    joint = torch.stack([q, k, v], 3)
    views = {
        "joint projection": joint.unbind(3),
        "expanded": (q[:, :1].expand(q.shape), k, v),
        "channels first": [x.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2) for x in (q, k, v)],
        "mixed dtypes": (q.half(), k.bfloat16(), v),
        "crop": [torch.cat([x, x], 2)[:, :, 1:3] for x in (q, k, v)],
    }
    for name, (a, b, c) in views.items():
        tensors = [a, b, c, cotangent.mT.contiguous().mT.to(a.dtype), table.T.contiguous().T.half()]
        ours, theirs = run(tensors, settings, "triton"), run(tensors, settings, "torch")
        for key, value in theirs.items():
            assert ours[key].dtype == value.dtype, f"{name} {key}"
            rounding = max(torch.finfo(value.dtype).eps, 1e-6 if a.dtype == torch.float32 else 1e-3)
            assert error_ratio(ours[key], value) <= rounding, f"{name} {key}"


@pytest.mark.parametrize("name", ["shift of one window", "keys reach beyond the next window"])
def test_writes_all_of_its_results_and_repeats_exactly(name):
    tensors, settings = make(GEOMETRIES[name])
    first = run(tensors, settings, "triton")
    with poisoned_buffers():
        second = run(tensors, settings, "triton")
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


@pytest.mark.parametrize("name", ["shift of one window"])
def test_large_scores_stay_finite(name):
    """Scores far beyond the range of exp, of both signs, and a table that forbids: nothing overflows."""
    tensors, settings = make(GEOMETRIES[name], torch.float16)
    tensors[0], tensors[1] = tensors[0] * 100, tensors[1] * 100
    tensors[4][::3] = float("-inf")
    tensors[4][tensors[4].shape[0] // 2] = -100.0  # the middle row: everybody sees itself
    for key, value in run(tensors, settings, "triton").items():
        assert torch.isfinite(value).all(), key


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # PyTorch's own checker
def test_operator_contract():
    """Schema, fake kernel and autograd registration with the Triton kernels behind them."""
    (q, k, v, grad, table), settings = make((1, 2, 2, 1, 3, 2, 2, 1, True))
    args = (*(t.requires_grad_() for t in (q, k, v, table)), *settings.values(), 0.3, "triton")
    torch.library.opcheck(torch.ops.ssm_kernels.window_attention.default, args)
    plain = [t.detach() if isinstance(t, torch.Tensor) else t for t in args]
    output = torch.ops.ssm_kernels.window_attention.default(*plain)
    inputs = (grad, *plain[:4], *output, *plain[4:])
    torch.library.opcheck(torch.ops.ssm_kernels.window_attention_backward.default, inputs)


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("k must be float32 or narrower with impl='triton', got float64", {"k": torch.float64}),
        ("bias_table must be float32 or narrower with impl='triton', got float64", {"bias_table": torch.float64}),
    ],
)
def test_refuses_float64(message, change):
    """An explicit choice never falls back; "auto" leaves it to PyTorch."""
    (q, k, v, _, table), settings = make(GEOMETRIES["bias"])
    arguments = {"q": q, "k": k, "v": v, "bias_table": table}
    arguments |= {name: arguments[name].to(dtype) for name, dtype in change.items()}
    with pytest.raises(ValueError, match=f"^window_attention: {message}"):
        window_attention(**arguments, **settings, impl="triton")
    assert window_attention(**arguments, **settings).dtype == q.dtype


def test_refuses_a_head_that_is_too_large():
    q = torch.zeros(1, 2, 2, 1, 129, device=DEVICE)
    with pytest.raises(ValueError, match=r"d of q must be at most 128 with impl='triton', got 129"):
        window_attention(q, q, q, window=2, impl="triton")
    assert window_attention(q, q, q, window=2).shape == q.shape


# windows on a side of the picture, heads, head dim, window, key window, shift
REAL = {
    "HAT-light": (4, 6, 10, 16, 16, 0),
    "HAT-light, shifted": (4, 6, 10, 16, 16, 8),
    "HAT": (4, 6, 30, 16, 16, 0),
    "OCAB": (4, 6, 30, 16, 24, 0),
    "MambaVision": (4, 8, 40, 14, 14, 0),
    "a few left over": (3, 3, 40, 12, 18, 0),
    "a few left over, shifted": (3, 3, 25, 20, 20, 9),
    "Swin": (8, 3, 32, 7, 7, 3),
    "wide heads": (4, 2, 128, 8, 8, 4),
    "Contrast": (4, 6, 25, 16, 24, 0),
}


@gpu
@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("name", REAL)
def test_real_sizes(name, dtype):
    """With and without a bias, judged by PyTorch in the same dtype."""
    count, heads, dim, window, key_window, shift = REAL[name]
    for bias in (True, False):
        geometry = (2, count * window, count * window, heads, dim, window, key_window, shift, bias)
        assert_parity(*make(geometry, dtype), eager="torch")


@gpu
def test_real_sizes_repeat_exactly():
    tensors, settings = make((2, 64, 64, 6, 30, 16, 24, 0, True), torch.bfloat16)
    first, second = (run(tensors, settings, "triton") for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@gpu
@pytest.mark.parametrize("impl", ["auto", "triton"])
def test_compiles_once_for_all_sizes(impl):
    """torch.compile(fullgraph, dynamic) over the Triton kernels, forward and backward."""
    counter = CompileCounterWithBackend("aot_eager")

    def function(q, k, v, table):
        return window_attention(q * 2, k, v, window=4, shift=2, bias_table=table, impl=impl)

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
    for batch, height, width in [(2, 8, 12), (3, 12, 20)]:
        (q, k, v, cotangent, table), _ = make((batch, height, width, 3, 7, 4, 4, 2, True))
        leaves = [t.requires_grad_() for t in (q, k, v, table)]
        expected, result = function(*leaves), compiled(*leaves)
        assert torch.equal(result, expected)
        theirs = torch.autograd.grad(expected, leaves, cotangent)
        for ours, other in zip(torch.autograd.grad(result, leaves, cotangent), theirs, strict=True):
            assert torch.equal(ours, other)
    assert counter.frame_count == 1


@gpu
def test_no_compilation_for_another_picture(monkeypatch):
    """Forward and backward compile at first, then never again for other batches, heights, widths and heads."""
    compiled = []
    monkeypatch.setattr(triton.knobs.runtime, "jit_post_compile_hook", lambda **info: compiled.append(info["fn"].name))
    counts = []
    for batch, height, width, heads in [(2, 16, 24, 3), (1, 8, 8, 1), (3, 64, 128, 16), (16, 8, 40, 6)]:
        run(*make((batch, height, width, heads, 12, 8, 8, 4, True), torch.bfloat16), "triton")
        counts.append(len(compiled))
    assert 0 < counts[0] <= 6
    assert counts[-1] == counts[0], compiled

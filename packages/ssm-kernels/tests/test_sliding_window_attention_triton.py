"""The Triton kernels of `sliding_window_attention`: in Triton's interpreter on tiny inputs, on a GPU at real sizes."""

import pytest
import torch
import triton
from ssm_kernels import sliding_window_attention
from ssm_kernels.testing import assert_as_accurate, error_ratio, poisoned_buffers

gpu = pytest.mark.gpu
DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"
HALF = (torch.bfloat16, torch.float16)
# shape, window; four sizes are a sequence, five a picture
CASES = {
    "band": ((2, 21, 2, 5), 3),
    "band of several tiles": ((1, 70, 1, 8), 40),
    "band wider than the sequence": ((1, 3, 1, 3), 9),
    "square": ((1, 7, 9, 2, 5), 3),
    "even square": ((1, 6, 10, 1, 5), 4),
    "square of the whole picture": ((2, 5, 5, 1, 3), 5),
    "square of one line": ((1, 2, 9, 1, 4), 2),
}


def make(case, dtype=torch.float32, seed=0):
    """Return q, k, v and the cotangent, and the settings."""
    shape, window = case
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(shape, generator=generator).to(dtype).to(DEVICE) for _ in range(4)]
    return tensors, {"window": window, "ndim": len(shape) - 3}


def run(tensors, settings, impl):
    """Return the output and every gradient by name."""
    leaves = [t.detach().requires_grad_() for t in tensors[:3]]
    y = sliding_window_attention(*leaves, impl=impl, **settings)
    grads = torch.autograd.grad(y, leaves, tensors[3])
    return dict(zip(["y", "grad_q", "grad_k", "grad_v"], [y.detach(), *grads], strict=True))


def assert_parity(tensors, settings, eager="reference"):
    truth = run([t.double() for t in tensors], settings, eager)
    theirs, ours = run(tensors, settings, eager), run(tensors, settings, "triton")
    for name, value in truth.items():
        assert_as_accurate(name, ours[name], theirs[name], value)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_as_accurate_as_the_definition(case):
    """Output and all gradients in float32: the clamped borders are where keys and queries differ."""
    assert_parity(*make(case))


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", ["band", "even square"])
def test_half_precision(name, dtype):
    assert_parity(*make(CASES[name], dtype))


@pytest.mark.parametrize("dim", [16, 25, 49, 128])
def test_every_head_dim(dim):
    """Float64 is the measure, 8 roundings of float32: the interpreter adds the products of a row up one by one."""
    tensors, settings = make(((1, 3, 4, 1, dim), 3))
    truth = run([t.double() for t in tensors], settings, "reference")
    for name, ours in run(tensors, settings, "triton").items():
        assert error_ratio(ours, truth[name]) < 1e-6, name


def test_any_strides_and_dtypes():
    (q, k, v, cotangent), settings = make(((1, 9, 2, 5), 2))
    views = [
        torch.stack([q, k, v], 2).unbind(2),
        (q[:, :1].expand(q.shape), k, v),
        (q.half(), k.bfloat16(), v.mT.contiguous().mT),
    ]
    for arguments in views:
        tensors = [*arguments, cotangent.mT.contiguous().mT.to(arguments[0].dtype)]
        ours, theirs = run(tensors, settings, "triton"), run(tensors, settings, "torch")
        for key, value in theirs.items():
            assert ours[key].dtype == value.dtype, key
            rounding = max(torch.finfo(value.dtype).eps, 1e-6 if arguments[0].dtype == torch.float32 else 1e-3)
            assert error_ratio(ours[key], value) <= rounding, key


@pytest.mark.parametrize("name", ["band wider than the sequence", "square of one line"])
def test_writes_all_of_its_results_and_repeats_exactly(name):
    tensors, settings = make(CASES[name])
    first = run(tensors, settings, "triton")
    with poisoned_buffers():
        second = run(tensors, settings, "triton")
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


def test_large_scores_stay_finite():
    """Scores far beyond the range of exp, and blocks in which a query sees nobody: nothing overflows."""
    tensors, settings = make(((1, 40, 1, 4), 2), torch.float16)
    tensors[0], tensors[1] = tensors[0] * 100, tensors[1] * 100
    for key, value in run(tensors, settings, "triton").items():
        assert torch.isfinite(value).all(), key


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # PyTorch's own checker
def test_operator_contract():
    (q, k, v, grad), _ = make(((1, 1, 3, 1, 2), 1))
    leaves = [t.requires_grad_() for t in (q, k, v)]
    torch.library.opcheck(torch.ops.ssm_kernels.sliding_window_attention.default, (*leaves, 1, True, "triton"))
    plain = [t.detach() for t in leaves]
    output = torch.ops.ssm_kernels.sliding_window_attention.default(*plain, 1, True, "triton")
    inputs = (grad, *plain, *output, 1, True, "triton")
    torch.library.opcheck(torch.ops.ssm_kernels.sliding_window_attention_backward.default, inputs)


def test_refuses_what_the_kernels_cannot_do():
    """An explicit choice never falls back; "auto" leaves it to PyTorch."""
    q = torch.zeros(1, 4, 1, 129, device=DEVICE)
    with pytest.raises(ValueError, match=r"d of q must be at most 128 with impl='triton', got 129"):
        sliding_window_attention(q, q, q, window=2, impl="triton")
    with pytest.raises(ValueError, match=r"k must be float32 or narrower with impl='triton', got float64"):
        sliding_window_attention(q, q.double(), q, window=2, impl="triton")
    assert sliding_window_attention(q, q.double(), q, window=2).shape == q.shape


REAL = {
    "neighbourhood 7": ((2, 56, 56, 4, 32), 7),
    "neighbourhood 13, odd sizes": ((1, 61, 47, 3, 30), 13),
    "even neighbourhood": ((1, 32, 48, 2, 49), 8),
    "wide heads": ((1, 24, 24, 2, 128), 5),
    "band": ((2, 3000, 4, 64), 100),
    "narrow band": ((2, 1001, 4, 10), 1),
}


@gpu
@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("name", REAL)
def test_real_sizes(name, dtype):
    """Judged by PyTorch in the same dtype; and a second run is bit-equal."""
    tensors, settings = make(REAL[name], dtype)
    assert_parity(tensors, settings, eager="torch")
    first, second = (run(tensors, settings, "triton") for _ in range(2))
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


@gpu
def test_no_compilation_for_another_size(monkeypatch):
    """Forward and backward compile at first, then never again for other batches, sizes and heads."""
    compiled = []
    monkeypatch.setattr(triton.knobs.runtime, "jit_post_compile_hook", lambda **info: compiled.append(info["fn"].name))
    counts = []
    for batch, height, width, heads in [(2, 16, 24, 3), (1, 7, 7, 1), (3, 64, 128, 16), (16, 8, 41, 6)]:
        run(*make(((batch, height, width, heads, 12), 7), torch.bfloat16), "triton")
        counts.append(len(compiled))
    assert 0 < counts[0] <= 3
    assert counts[-1] == counts[0], compiled

"""sliding_window_attention: against its float64 definition, dense attention with a mask, PyTorch's operator checks."""

import time

import pytest
import torch
from ssm_kernels import sliding_window_attention
from ssm_kernels.ops.sliding_window_attention import torch_impl
from ssm_kernels.testing import assert_as_accurate, poisoned_buffers
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# shape, window; four sizes are a sequence, five a picture
CASES = {
    "band": ((2, 21, 3, 5), 4),
    "band of several tiles": ((1, 150, 2, 8), 3),
    "band wider than a tile": ((1, 150, 1, 10), 70),
    "band wider than the sequence": ((2, 5, 1, 3), 9),
    "itself alone": ((1, 4, 2, 3), 0),
    "one token": ((1, 1, 1, 1), 3),
    "square": ((2, 7, 9, 2, 5), 3),
    "even square": ((1, 9, 6, 2, 7), 4),
    "square of the whole picture": ((1, 5, 5, 1, 4), 5),
    "square of one pixel": ((1, 3, 5, 2, 4), 1),
    "several tiles": ((1, 11, 19, 1, 4), 5),
    "one line": ((1, 1, 12, 1, 3), 1),
}


def make(case, dtype=torch.float32, device="cpu", seed=0):
    """Return q, k, v and the cotangent, and the settings."""
    shape, window = case
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(shape, generator=generator).to(dtype).to(device) for _ in range(4)]
    return tensors, {"window": window, "ndim": len(shape) - 3}


def run(tensors, settings, impl):
    """Return the output and every gradient by name."""
    leaves = [t.detach().requires_grad_() for t in tensors[:3]]
    y = sliding_window_attention(*leaves, impl=impl, **settings)
    grads = torch.autograd.grad(y, leaves, tensors[3])
    return dict(zip(["y", "grad_q", "grad_k", "grad_v"], [y.detach(), *grads], strict=True))


def dense(tensors, settings):
    """Return the same by dense attention, with a mask written down from the words of the documentation."""
    leaves = [t.detach().requires_grad_() for t in tensors[:3]]
    *sizes, _, _ = tensors[0].shape[1:]
    window, place = settings["window"], torch.arange(tensors[0][0, ..., 0, 0].numel())
    if settings["ndim"] == 1:
        mask = (place[:, None] - place).abs() <= window
    else:
        mask = torch.ones(len(place), len(place), dtype=torch.bool)
        for position, size in ((place // sizes[1], sizes[0]), (place % sizes[1], sizes[1])):
            start = torch.tensor([min(max(p - window // 2, 0), size - window) for p in position.tolist()])[:, None]
            mask &= (position >= start) & (position < start + window)
        assert (mask.sum(1) == window**2).all()
    q, k, v = (x.flatten(1, -3).transpose(1, 2) for x in leaves)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(tensors[0].shape)
    grads = torch.autograd.grad(y, leaves, tensors[3])
    return dict(zip(["y", "grad_q", "grad_k", "grad_v"], [y.detach(), *grads], strict=True))


@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_is_dense_attention_with_a_mask(case, impl):
    """Output and all gradients in float64: who sees whom, at the borders too."""
    tensors, settings = make(case, torch.float64)
    expected = dense(tensors, settings)
    for name, value in run(tensors, settings, impl).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["band", "even square", "several tiles"])
def test_as_accurate_as_the_definition(name, dtype, device):
    tensors, settings = make(CASES[name], dtype, device)
    truth = run([t.double() for t in tensors], settings, "reference")
    result, eager = run(tensors, settings, "torch"), run(tensors, settings, "reference")
    for key, value in truth.items():
        assert_as_accurate(key, result[key], eager[key], value)


@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize("case", [((1, 6, 1, 2), 2), ((1, 3, 4, 1, 2), 2)], ids=["band", "square"])
def test_gradients_are_those_of_the_function(case, impl):
    tensors, settings = make(case, torch.float64)
    leaves = [t.requires_grad_() for t in tensors[:3]]
    assert torch.autograd.gradcheck(
        lambda *x: sliding_window_attention(*x, impl=impl, **settings), leaves, fast_mode=True
    )


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # PyTorch's own checker
@pytest.mark.parametrize("name", ["band", "square"])
def test_operator_contract(name):
    """Schema, fake kernel, autograd registration and AOT dispatch of the registered operator."""
    (q, k, v, grad), settings = make(CASES[name])
    band = settings["ndim"] == 1
    q, k, v, grad = (x.unsqueeze(1) if band else x for x in (q, k, v, grad))
    rest = (settings["window"], band, "torch")
    leaves = [t.detach().requires_grad_() for t in (q, k, v)]
    torch.library.opcheck(torch.ops.ssm_kernels.sliding_window_attention.default, (*leaves, *rest))
    output = torch.ops.ssm_kernels.sliding_window_attention.default(q, k, v, *rest)
    inputs = (grad, q, k, v, *output, *rest)
    torch.library.opcheck(torch.ops.ssm_kernels.sliding_window_attention_backward.default, inputs)


@pytest.mark.parametrize("ndim", [1, 2])
def test_compiles_once_for_all_sizes(ndim):
    """Fullgraph with dynamic batch and positions: no break, no compilation per size, same numbers."""
    counter = CompileCounterWithBackend("aot_eager")

    def function(q, k, v):
        return sliding_window_attention(q * 2, k, v, window=3, ndim=ndim)

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
    for batch, height, width in [(2, 8, 12), (3, 13, 9), (5, 16, 20)]:
        shape = (batch, height, width, 6, 7) if ndim == 2 else (batch, height * width, 6, 7)
        tensors, _ = make((shape, 3))
        leaves = [t.requires_grad_() for t in tensors[:3]]
        expected, result = function(*leaves), compiled(*leaves)
        torch.testing.assert_close(result, expected)
        theirs = torch.autograd.grad(expected, leaves, tensors[3])
        for ours, other in zip(torch.autograd.grad(result, leaves, tensors[3]), theirs, strict=True):
            torch.testing.assert_close(ours, other)
    assert counter.frame_count == 1


def test_exports_with_a_dynamic_length():
    class Attend(torch.nn.Module):
        def forward(self, q, k, v):
            return sliding_window_attention(q, k, v, window=2)

    tensors, _ = make(((2, 8, 2, 5), 2))
    dims = {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("length", max=512)}
    program = torch.export.export(Attend(), tuple(tensors[:3]), dynamic_shapes=[dims] * 3)
    (q, k, v, _), _ = make(((3, 23, 2, 5), 2))
    torch.testing.assert_close(program.module()(q, k, v), sliding_window_attention(q, k, v, window=2))


def test_result_does_not_depend_on_the_tiles(monkeypatch):
    """Small and large tiles, one image at a time or all at once: the same output and gradients."""
    for name in ("band of several tiles", "square", "several tiles"):
        tensors, settings = make(CASES[name], torch.float64)
        whole = run(tensors, settings, "torch")
        for tile, budget in ((1, 1), (4, 10**4), (1000, 10**9)):
            with monkeypatch.context() as patch:
                patch.setitem(torch_impl.SCORE_BYTES, "cpu", budget)
                patch.setattr(torch_impl, "SHORTEST_TILE", {1: tile, 2: tile})
                for key, value in run(tensors, settings, "torch").items():
                    torch.testing.assert_close(value, whole[key], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["band", "even square"])
def test_writes_all_of_its_results(name, device):
    """Buffers that start as NaN end as the same numbers, and a second run is bit-equal."""
    tensors, settings = make(CASES[name], device=device)
    first = run(tensors, settings, "auto")
    with poisoned_buffers():
        second = run(tensors, settings, "auto")
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


@pytest.mark.parametrize("ndim", [1, 2])
def test_scores_that_are_made_grow_with_the_window_and_the_length(ndim):
    """Counted, not timed: twice the tokens make twice the scores, and dense attention would make four times."""

    def scores(size, window):
        shape = (1, 1, size, 1, 4) if ndim == 1 else (1, size, size, 1, 4)
        q = torch.empty(shape, device="meta")
        return sum(tile.seen.numel() for tile in torch_impl._tiles(q, window, ndim == 1, 4))

    size = {1: 256, 2: 32}[ndim]
    assert scores(2 * size, 8) < 1.15 * 2**ndim * scores(size, 8)
    assert scores(2 * size, 8) < 0.6 * (2 * size) ** (2 * ndim)


def test_any_strides_and_dtypes():
    """Views and mixed dtypes give what contiguous float64 inputs of the same numbers give."""
    for name in ("band", "square"):
        (q, k, v, _), settings = make(CASES[name])
        joint = torch.stack([q, k, v], -3)
        views = [joint.unbind(-3), (q[:1].expand(q.shape), k.half(), v), (q.half(), k.bfloat16().mT.contiguous().mT, v)]
        for arguments in views:
            result = sliding_window_attention(*arguments, **settings)
            truth = sliding_window_attention(*(x.double() for x in arguments), impl="reference", **settings)
            assert result.dtype == arguments[0].dtype
            torch.testing.assert_close(result.double(), truth, rtol=2e-3, atol=2e-3)


def test_autocast_does_not_change_the_result():
    (q, k, v, _), settings = make(CASES["square"])
    expected = sliding_window_attention(q, k, v, **settings)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sliding_window_attention(q, k, v, **settings), expected)


def test_meta_device_gives_shape_and_dtype():
    q = torch.empty(2, 8, 8, 3, 5, dtype=torch.bfloat16, device="meta", requires_grad=True)
    y = sliding_window_attention(q, q, q, window=3, ndim=2)
    y.sum().backward()
    assert (y.shape, y.dtype) == (q.shape, q.dtype)
    assert q.grad is not None


def test_long_sequences_stay_cheap():
    """A dense mask of this length would be 4 GB; a band of 32 is done within seconds."""
    q = torch.randn(1, 65536, 1, 8)
    start = time.perf_counter()
    assert torch.isfinite(sliding_window_attention(q, q, q, window=32)).all()
    assert time.perf_counter() - start < 20


Q = torch.zeros(1, 8, 6, 2, 3)


@pytest.mark.parametrize(
    ("message", "change"),
    [
        (r"ndim must be 1 or 2, got 3", {"ndim": 3}),
        (r"q must be \(B, H, W, heads, d\) with ndim=2, got \(8, 6, 2, 3\)", dict.fromkeys("qkv", Q[0])),
        (r"q must be \(B, L, heads, d\) with ndim=1, got \(1, 8, 6, 2, 3\)", {"ndim": 1}),
        (r"q must be without an empty axis", dict.fromkeys("qkv", Q[:0])),
        (r"q must be float32, .* got int64", {"q": Q.long()}),
        (r"k must be \(B, H, W, heads, d\) = .*, got \(1, 8, 6, 2, 2\)", {"k": Q[..., :2]}),
        (r"v must be on cpu like the first argument, got meta", {"v": Q.to("meta")}),
        (r"window must be in 1\.\.6, the smaller side of the picture, got 7", {"window": 7}),
        (r"window must be in 1\.\.6, .* got 0", {"window": 0}),
        (r"window must be at least 0 with ndim=1, got -1", {**dict.fromkeys("qkv", Q[0]), "ndim": 1, "window": -1}),
        (r"impl must be one of auto, triton, torch, reference, got 'flex'", {"impl": "flex"}),
    ],
)
def test_refuses_bad_input(message, change):
    arguments = {"q": Q, "k": Q, "v": Q, "window": 3, "ndim": 2, **change}
    with pytest.raises(ValueError, match=f"^sliding_window_attention: {message}"):
        sliding_window_attention(**arguments)

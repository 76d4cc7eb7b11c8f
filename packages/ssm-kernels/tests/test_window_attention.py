"""window_attention: against its float64 definition, the published index tables, PyTorch's operator checks."""

from pathlib import Path

import pytest
import torch
from ssm_kernels import window_attention
from ssm_kernels.ops.window_attention import torch_impl
from ssm_kernels.testing import assert_as_accurate, error_ratio, poisoned_buffers
from torch._dynamo.testing import CompileCounterWithBackend

DATA = Path(__file__).parent / "data"
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# batch, height, width, heads, head dim, window, key window, shift, position bias
GEOMETRIES = {
    "plain": (2, 8, 12, 3, 5, 4, 4, 0, False),
    "bias": (2, 8, 12, 3, 10, 4, 4, 0, True),
    "shift": (1, 12, 8, 2, 7, 4, 4, 2, True),
    "shift-of-one-window": (1, 5, 5, 2, 3, 5, 5, 3, False),
    "shift-of-one-row": (2, 3, 9, 1, 8, 3, 3, 1, True),
    "overlap": (2, 8, 12, 3, 5, 4, 6, 0, True),
    "overlap-no-bias": (1, 6, 9, 2, 49, 3, 5, 0, False),
    "keys-reach-beyond-the-next-window": (1, 4, 6, 2, 3, 2, 8, 0, True),
    "one-pixel-windows": (2, 2, 3, 2, 4, 1, 3, 0, True),
    "one-pixel": (1, 1, 1, 1, 1, 1, 1, 0, True),
    "contrast": (1, 16, 32, 6, 25, 16, 24, 0, True),
}


def make(geometry, dtype=torch.float32, device="cpu", seed=0):
    """Return the tensors and the settings.

    The table is float32 as trained parameters are; on a GPU, where the products are made in the dtype of q, k and v
    and its gradient cannot be better than they are, it has that dtype.
    """
    batch, height, width, heads, dim, window, key_window, shift, bias = geometry
    generator = torch.Generator().manual_seed(seed)
    wide = torch.promote_types(dtype, torch.float32) if device == "cpu" else dtype
    shape = (batch, height, width, heads, dim)
    tensors = [torch.randn(shape, generator=generator).to(dtype) for _ in range(4)]  # q, k, v and the cotangent
    if bias:
        tensors.append(torch.randn((window + key_window - 1) ** 2, heads, generator=generator).to(wide))
    return [t.to(device) for t in tensors], {"window": window, "key_window": key_window, "shift": shift}


def run(tensors, settings, impl):
    """Return the output and every gradient by name."""
    q, k, v, cotangent, *table = tensors
    leaves = [t.detach().requires_grad_() for t in (q, k, v, *table)]
    y = window_attention(*leaves[:3], bias_table=leaves[3] if table else None, impl=impl, **settings)
    grads = torch.autograd.grad(y, leaves, cotangent)
    return dict(zip(["y", "grad_q", "grad_k", "grad_v", "grad_table"], [y.detach(), *grads], strict=False))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_as_accurate_as_the_definition(geometry, dtype, device):
    """Output and all gradients, judged against float64 on the same rounded inputs."""
    tensors, settings = make(geometry, dtype, device)
    truth = run([t.double() for t in tensors], settings, "reference")
    result, eager = run(tensors, settings, "torch"), run(tensors, settings, "reference")
    for name, value in truth.items():
        assert_as_accurate(name, result[name], eager[name], value)


@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize("name", ["shift", "overlap", "keys-reach-beyond-the-next-window"])
def test_gradients_are_those_of_the_function(name, impl):
    """gradcheck in float64: catches a definition that is differentiated wrongly too."""
    batch, height, width, _, _, window, key_window, shift, bias = GEOMETRIES[name]
    small = (batch, min(height, 2 * window), min(width, 2 * window), 1, 2, window, key_window, shift, bias)
    (q, k, v, _, *table), settings = make(small, torch.float64)
    leaves = [t.requires_grad_() for t in (q, k, v, *table)]

    def function(q, k, v, *table):
        return window_attention(q, k, v, bias_table=table[0] if table else None, impl=impl, **settings)

    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # PyTorch's own checker
@pytest.mark.parametrize("name", ["plain", "shift", "overlap"])
def test_operator_contract(name):
    """Schema, fake kernel, autograd registration and AOT dispatch of the registered operator."""
    (q, k, v, _, *table), settings = make(GEOMETRIES[name])
    leaves = [t.requires_grad_() for t in (q, k, v)]
    bias = table[0].requires_grad_() if table else None
    args = (*leaves, bias, *settings.values(), 0.3, "torch")
    torch.library.opcheck(torch.ops.ssm_kernels.window_attention.default, args)
    grad = torch.randn(q.shape)
    plain = [t.detach() if isinstance(t, torch.Tensor) else t for t in args]
    output = torch.ops.ssm_kernels.window_attention.default(*plain)
    inputs = (grad, *plain[:4], *output, *plain[4:])
    torch.library.opcheck(torch.ops.ssm_kernels.window_attention_backward.default, inputs)


def test_compiles_once_for_all_sizes():
    """Fullgraph with dynamic batch, height and width: no break, no compilation per size, same numbers."""
    counter = CompileCounterWithBackend("aot_eager")

    def function(q, k, v, table):
        return window_attention(q * 2, k, v, window=4, key_window=6, bias_table=table)

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
    for batch, height, width in [(2, 8, 12), (3, 12, 8), (5, 16, 20)]:  # no size equal to another one at first
        (q, k, v, cotangent, table), _ = make((batch, height, width, 3, 7, 4, 6, 0, True))
        leaves = [t.requires_grad_() for t in (q, k, v, table)]
        expected = function(*leaves)
        result = compiled(*leaves)
        torch.testing.assert_close(result, expected)
        for ours, theirs in zip(
            torch.autograd.grad(result, leaves, cotangent),
            torch.autograd.grad(expected, leaves, cotangent),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs)
    assert counter.frame_count == 1


def test_exports_with_a_dynamic_batch():
    class Attend(torch.nn.Module):
        def forward(self, q, k, v):
            return window_attention(q, k, v, window=4, shift=2)

    (q, k, v, _), _ = make((2, 8, 8, 2, 5, 4, 4, 2, False))
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(Attend(), (q, k, v), dynamic_shapes=[{0: batch}] * 3)
    (q, k, v, _), _ = make((5, 8, 8, 2, 5, 4, 4, 2, False), seed=1)
    torch.testing.assert_close(program.module()(q, k, v), window_attention(q, k, v, window=4, shift=2))


def test_reads_published_tables_in_their_order():
    """Row numbers of the table equal the index buffers of the published models (HAT: after its rotation by 880)."""
    from safetensors.torch import load_file

    golden = load_file(DATA / "position-indices.safetensors")
    rows = golden["rows"].long()
    for key_window, index in [(16, golden["index_window"].long()), (24, golden["index_overlap"].long() + 880)]:
        number = torch.arange((16 + key_window - 1) ** 2, dtype=torch.float64)[:, None]
        bias = torch_impl._position_bias(number, 16, key_window, torch.float64)
        assert torch.equal(bias[0, rows].long(), index)


def test_shift_mask_is_the_published_one():
    """A shifted window lets exactly those pixels see each other that share a group in the published mask."""
    from safetensors.torch import load_file

    groups = load_file(DATA / "position-indices.safetensors")["shift_regions_32x48"]
    q = torch.zeros(1, 32, 48, 1, 1)
    # with equal scores the result is the mean over the pixels that are seen: v selects one seen pixel at a time
    seen = groups[:, :, None] == groups[:, None, :]  # (6 windows, 256 queries, 256 keys)
    v = torch.randn(32, 48, generator=torch.Generator().manual_seed(0))
    windows = v.roll((-8, -8), (0, 1)).unfold(0, 16, 16).unfold(1, 16, 16).reshape(6, 256)
    mean = (seen * windows[:, None]).sum(2) / seen.sum(2)
    expected = mean.reshape(2, 3, 16, 16).permute(0, 2, 1, 3).reshape(32, 48).roll((8, 8), (0, 1))
    result = window_attention(q, q, v[None, :, :, None, None], window=16, shift=8)
    torch.testing.assert_close(result[0, :, :, 0, 0], expected)


def test_frame_of_zeros_is_attended_to():
    """Equal scores and values of one give the share of the key window that lies in the picture."""
    q = torch.zeros(1, 16, 16, 1, 4)
    y = window_attention(q, q, torch.ones_like(q), window=16, key_window=24)
    torch.testing.assert_close(y, torch.full_like(q, 16**2 / 24**2))


def test_result_does_not_depend_on_the_slabs(monkeypatch):
    """One window at a time, a few, or all at once: the same output and gradients."""
    for name in ("shift", "overlap", "plain"):
        tensors, settings = make(GEOMETRIES[name], torch.float64)
        whole = run(tensors, settings, "torch")
        window, key_window, heads = settings["window"], settings["key_window"], tensors[0].shape[3]
        for windows in (1, 2, 5):
            budget = windows * heads * window**2 * key_window**2 * 8
            with monkeypatch.context() as patch:
                patch.setitem(torch_impl.SCORE_BYTES, "cpu", budget)
                for key, value in run(tensors, settings, "torch").items():
                    torch.testing.assert_close(value, whole[key], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("most", [1, 2, 3, 7, 100])
def test_slabs_cover_every_window_once(most):
    count = torch.zeros(3, 4, 5)
    for box in torch_impl._slabs(3, range(1, 4), range(5), most):
        count[box] += 1
        assert count[box].numel() <= most
    assert torch.equal(count[:, 1:], torch.ones(3, 3, 5))
    assert not count[:, 0].any()


@pytest.mark.parametrize(("window", "key_window"), [(4, 4), (4, 6), (2, 8), (3, 5), (1, 3)])
def test_gradients_of_keys_are_added_without_overlap(window, key_window):
    """No pixel is written twice in one pass (that would be a race on a GPU), and the passes cover every window."""
    side = 7 * window + key_window - window
    pixels = torch.arange(side * side).view(1, side, side, 1, 1)
    windows = torch_impl._windows(pixels, key_window, window)
    count = 0
    for rows, columns in torch_impl._disjoint_passes(window, key_window):
        part = windows[:, rows, columns]
        assert part.unique().numel() == part.numel()
        count += part.shape[1] * part.shape[2]
    assert count == 49


def test_no_scores_in_memory_without_a_bias(monkeypatch):
    """The forward leaves windows without bias and mask to the fused attention of PyTorch."""
    monkeypatch.setattr(torch_impl, "_probabilities", lambda *_: pytest.fail("the scores were made"))
    for name in ("plain", "overlap-no-bias"):
        (q, k, v, _), settings = make(GEOMETRIES[name])
        assert torch.isfinite(window_attention(q, k, v, **settings)).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["shift", "overlap", "overlap-no-bias"])
def test_writes_all_of_its_results(name, device):
    """Buffers that start as NaN end as the same numbers, and a second run is bit-equal."""
    tensors, settings = make(GEOMETRIES[name], device=device)
    first = run(tensors, settings, "auto")
    with poisoned_buffers():
        second = run(tensors, settings, "auto")
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


def test_any_strides_and_dtypes():
    """Random sizes, views and mixed dtypes give what contiguous float64 inputs of the same numbers give."""
    from hypothesis import given, settings
    from hypothesis import strategies as st

    views = st.sampled_from(["contiguous", "channels_first", "sliced", "expanded", "from_qkv"])
    dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])

    def view(x, kind):
        if kind == "channels_first":
            return x.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2)
        if kind == "sliced":
            return torch.cat([x, x], 2)[:, :, : x.shape[2]].flip(0)
        if kind == "expanded":
            return x[:1].expand(x.shape)
        return torch.stack([x, x + 1], 3)[:, :, :, 0] if kind == "from_qkv" else x

    @settings(max_examples=30, deadline=None, derandomize=True, database=None)
    @given(
        st.tuples(*[st.integers(1, 3)] * 5),
        st.integers(1, 4),
        st.integers(0, 2),
        st.integers(0, 3),
        st.tuples(views, views, views, views),
        st.tuples(dtypes, dtypes, dtypes, dtypes),
    )
    def check(sizes, window, border, shift, kinds, kind_dtypes):
        batch, rows, columns, heads, dim = sizes
        shift = 0 if border else shift % window
        geometry = (batch, rows * window, columns * window, heads, dim, window, window + 2 * border, shift, True)
        tensors, options = make(geometry)
        for i, (kind, dtype) in enumerate(zip(kinds, kind_dtypes, strict=True)):
            tensors[i] = view(tensors[i].to(dtype), kind)
        tensors[3] = tensors[3].to(tensors[0].dtype)
        result, eager = run(tensors, options, "torch"), run(tensors, options, "reference")
        truth = run([t.double() for t in tensors], options, "reference")
        for name, value in truth.items():
            if value.abs().max() < 1e-6:  # a softmax over one key has a zero gradient: no relative error
                continue
            if result[name].dtype == torch.float64:  # then the definition is the truth itself
                assert error_ratio(result[name], value) < 1e-13, name
            else:
                assert_as_accurate(name, result[name], eager[name], value)

    check()


def test_autocast_does_not_reach_inside():
    """Under autocast the inputs keep their precision: the result equals the one without."""
    (q, k, v, _, table), settings = make(GEOMETRIES["bias"])
    expected = window_attention(q, k, v, bias_table=table, **settings)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(window_attention(q, k, v, bias_table=table, **settings), expected)


def test_meta_device_gives_shape_and_dtype():
    q = torch.empty(2, 8, 8, 3, 5, dtype=torch.bfloat16, device="meta", requires_grad=True)
    y = window_attention(q, q, q, window=4, shift=1)
    y.sum().backward()
    assert (y.shape, y.dtype) == (q.shape, q.dtype)
    assert q.grad is not None
    assert q.grad.shape == q.shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_large_scores_stay_finite(dtype):
    """Scores far beyond the range of exp: softmax saturates, nothing overflows, forward and backward."""
    tensors, settings = make(GEOMETRIES["shift"], dtype)
    tensors[0], tensors[1] = tensors[0] * 100, tensors[1] * 100
    for name, value in run(tensors, settings, "torch").items():
        assert torch.isfinite(value).all(), name


Q = torch.zeros(1, 8, 8, 2, 3)


@pytest.mark.parametrize(
    ("message", "change"),
    [
        (r"q must be \(B, H, W, heads, d\), got \(8, 8, 2, 3\)", {"q": Q[0]}),
        (r"q must be without an empty axis", {"q": Q[:0], "k": Q[:0], "v": Q[:0]}),
        (r"q must be float32, .* got int64", {"q": Q.long()}),
        (r"k must be \(B, H, W, heads, d\) = \(1, 8, 8, 2, 3\), got \(1, 8, 8, 2, 2\)", {"k": Q[..., :2]}),
        (r"v must be on cpu like the first argument, got meta", {"v": Q.to("meta")}),
        (r"H of q must be a multiple of window = 5, got 8; pad H by 2", {"window": 5}),
        (r"W of q must be a multiple of window = 4, got 7; pad W by 1", dict.fromkeys("qkv", Q[:, :, :7])),
        (r"window must be at least 1, got 0", {"window": 0}),
        (r"key_window must be window \+ an even number = 4, 6, \.\.\., got 5", {"key_window": 5}),
        (r"key_window must be .* got 2", {"key_window": 2}),
        (r"shift must be in 0\.\.3, got 4", {"shift": 4}),
        (r"shift must be 0 with overlapping keys, got 1", {"shift": 1, "key_window": 6}),
        (r"bias_table must be .* = \(49, 2\), got \(49, 3\)", {"bias_table": torch.zeros(49, 3)}),
        (r"bias_table must be .* = \(81, 2\), got \(49, 2\)", {"bias_table": torch.zeros(49, 2), "key_window": 6}),
        (r"impl must be one of auto, triton, torch, reference, got 'cuda'", {"impl": "cuda"}),
    ],
)
def test_refuses_bad_input(message, change):
    arguments = {"q": Q, "k": Q, "v": Q, "window": 4, **change}
    with pytest.raises(ValueError, match=f"^window_attention: {message}"):
        window_attention(**arguments)

"""depthwise_conv1d: against its float64 definition, causal-conv1d's numbers, nn.Conv1d, PyTorch's operator checks."""

from itertools import product
from pathlib import Path

import pytest
import torch
from ssm_kernels import depthwise_conv1d
from ssm_kernels.testing import assert_as_accurate, error_ratio, poisoned_buffers
from torch._dynamo.testing import CompileCounterWithBackend

DATA = Path(__file__).parent / "data"
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NAMES = ("x", "weight", "bias", "initial_state")
# batch, length, channels, taps
SIZES = [(1, 1, 1, 2), (2, 3, 16, 8), (3, 17, 5, 4), (1, 300, 7, 3), (2, 31, 64, 5)]


def make(sizes, *, dtype=torch.float32, device="cpu", state=False, packed=False, seed=0):
    """Return x, weight, bias, initial_state (or None), cotangent and cu_seqlens; parameters in float32 or wider."""
    batch, length, channels, taps = sizes
    generator = torch.Generator().manual_seed(seed)
    wide = torch.promote_types(dtype, torch.float32)
    bounds = None
    if packed:  # an empty sequence and one shorter than the filter among them
        batch = 1
        bounds = torch.tensor(sorted([0, 0, min(2, length), length // 2, length])).to(device)

    def normal(*shape, kind=wide):
        return torch.randn(*shape, generator=generator).to(kind).to(device)

    first = normal(4 if packed else batch, channels, taps - 1) if state else None
    x, cotangent = normal(batch, length, channels, kind=dtype), normal(batch, length, channels, kind=dtype)
    return x, normal(channels, taps), normal(channels), first, cotangent, bounds


def run(tensors, impl, **settings):
    """Return the output and every gradient by name."""
    x, weight, bias, state, cotangent, bounds = tensors
    leaves = {
        n: t.detach().requires_grad_() for n, t in zip(NAMES, (x, weight, bias, state), strict=True) if t is not None
    }
    y = depthwise_conv1d(**leaves, cu_seqlens=bounds, impl=impl, **settings)
    grads = torch.autograd.grad(y, list(leaves.values()), cotangent, materialize_grads=True)
    return {"y": y.detach(), **{f"grad_{name}": grad for name, grad in zip(leaves, grads, strict=True)}}


def widened(tensors):
    return [t.double() if t is not None and t.is_floating_point() else t for t in tensors]


EVERY = list(product(SIZES, DTYPES, ("causal", "same")))
# on the CPU the long row, whose definition takes its time, in float32 and causal only; the rest is slow. Only the sum
# over steps is cut into parts for it, after the padding is laid out
WHERE = [
    pytest.param(
        *(sizes, dtype, padding, "cpu"),
        marks=pytest.mark.slow if sizes[1] > 100 and (dtype, padding) != (torch.float32, "causal") else (),
    )
    for sizes, dtype, padding in EVERY
] + [pytest.param(*case, "cuda", marks=pytest.mark.gpu) for case in EVERY]


@pytest.mark.parametrize(("sizes", "dtype", "padding", "device"), WHERE, ids=str)
def test_as_accurate_as_the_definition(sizes, dtype, padding, device):
    """Output and all gradients in both directions, with and without activation, state and packed sequences."""
    for reverse, activation, packed in product((False, True), (None, "silu"), (False, True)):
        tensors = make(sizes, dtype=dtype, device=device, state=padding == "causal", packed=packed)
        settings = {"padding": padding, "reverse": reverse, "activation": activation}
        truth = run(widened(tensors), "reference", **settings)
        result, eager = run(tensors, "torch", **settings), run(tensors, "reference", **settings)
        for name, value in truth.items():
            assert_as_accurate(f"{name} {settings} packed {packed}", result[name], eager[name], value)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # PyTorch says that it costs a copy
@pytest.mark.parametrize("taps", range(2, 9))
def test_same_is_that_of_conv1d(taps):
    """padding="same" puts the extra tap of an even filter where PyTorch does; causal is padding k - 1 and a cut."""
    x, weight, bias, *_ = make((2, 9, 3, taps))
    conv = torch.nn.functional.conv1d
    same = conv(x.mT, weight[:, None], bias, padding="same", groups=3).mT
    causal = conv(x.mT, weight[:, None], bias, padding=taps - 1, groups=3).mT[:, :9]
    torch.testing.assert_close(depthwise_conv1d(x, weight, bias, padding="same"), same)
    torch.testing.assert_close(depthwise_conv1d(x, weight, bias), causal)


@pytest.mark.parametrize("padding", ["causal", "same"])
def test_reverse_is_the_flipped_result_of_the_flipped_sequence(padding):
    x, weight, bias, state, *_ = make((2, 11, 5, 4), state=True)
    state = state if padding == "causal" else None
    settings = {"padding": padding, "initial_state": state, "activation": "silu"}
    expected = depthwise_conv1d(x.flip(1), weight, bias, **settings).flip(1)
    torch.testing.assert_close(depthwise_conv1d(x, weight, bias, reverse=True, **settings), expected)


def test_state_continues_a_sequence():
    """A sequence cut in two, the second half given the last steps of the first, gives the whole; in both directions."""
    x, weight, bias, *_ = make((2, 12, 5, 4))
    whole = depthwise_conv1d(x, weight, bias)
    rest = depthwise_conv1d(x[:, 7:], weight, bias, initial_state=x[:, 4:7].mT)
    torch.testing.assert_close(rest, whole[:, 7:])
    whole = depthwise_conv1d(x, weight, bias, reverse=True)
    rest = depthwise_conv1d(x[:, :7], weight, bias, reverse=True, initial_state=x[:, 7:10].flip(1).mT)
    torch.testing.assert_close(rest, whole[:, :7])


def test_packed_sequences_do_not_meet():
    """Every packed sequence gives what it gives alone, with its own state."""
    bounds = [0, 3, 3, 4, 11]
    x, weight, bias, *_ = make((1, 11, 5, 4))
    state = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(1))
    for reverse in (False, True):
        packed = depthwise_conv1d(
            x, weight, bias, reverse=reverse, initial_state=state, cu_seqlens=torch.tensor(bounds, dtype=torch.int32)
        )
        for s in (0, 2, 3):
            part = slice(bounds[s], bounds[s + 1])
            alone = depthwise_conv1d(x[:, part], weight, bias, reverse=reverse, initial_state=state[s : s + 1])
            torch.testing.assert_close(packed[:, part], alone)


def test_equals_causal_conv1d():
    """Numbers of the reference of causal-conv1d: state, activation, bias, gradients."""
    from safetensors.torch import load_file

    golden = load_file(DATA / "mamba_causal_conv1d.safetensors")
    x, weight, bias = golden["input.x"].double().mT, golden["input.weight"].double(), golden["input.bias"].double()
    state = golden["input.initial_states"].double()
    cases = {
        "output.zero_state.y": depthwise_conv1d(x, weight, bias, activation="silu"),
        "output.no_activation.y": depthwise_conv1d(x, weight, bias),
        "output.no_bias.y": depthwise_conv1d(x, weight, activation="silu"),
        "output.short.y": depthwise_conv1d(
            golden["input.x_short"].double().mT, weight, bias, activation="silu", initial_state=state
        ),
    }
    for name, value in cases.items():
        torch.testing.assert_close(value.mT, golden[name], rtol=0, atol=1e-12)
    leaves = [t.requires_grad_() for t in (x, weight, bias, state)]
    y = depthwise_conv1d(x, weight, bias, activation="silu", initial_state=state)
    torch.testing.assert_close(y.mT, golden["output.y"], rtol=0, atol=1e-12)
    grads = torch.autograd.grad(y, leaves, golden["grad.output.y"].double().mT)
    torch.testing.assert_close(grads[0].mT, golden["grad.input.x"], rtol=0, atol=1e-12)
    for name, grad in zip(("weight", "bias", "initial_states"), grads[1:], strict=True):
        torch.testing.assert_close(grad, golden[f"grad.input.{name}"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize(("padding", "packed"), [("causal", False), ("causal", True), ("same", True)])
def test_gradients_are_those_of_the_function(padding, packed, impl):
    """gradcheck in float64, both directions."""
    for reverse in (False, True):
        x, weight, bias, state, _, bounds = make((2, 6, 2, 3), dtype=torch.float64, state=True, packed=packed)
        leaves = [x, weight, bias, *([state] if padding == "causal" else [])]

        def function(x, weight, bias, state=None, bounds=bounds, reverse=reverse):
            return depthwise_conv1d(
                x,
                weight,
                bias,
                padding=padding,
                reverse=reverse,
                activation="silu",
                initial_state=state,
                cu_seqlens=bounds,
                impl=impl,
            )

        assert torch.autograd.gradcheck(function, [t.requires_grad_() for t in leaves], fast_mode=True)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # PyTorch's own checker
@pytest.mark.parametrize("packed", [False, True])
def test_operator_contract(packed):
    """Schema, fake kernel, autograd registration and AOT dispatch of both registered operators."""
    x, weight, bias, state, cotangent, bounds = make((2, 9, 3, 4), state=True, packed=packed)
    rest = ("causal", True, "silu", "torch")
    leaves = [t.requires_grad_() for t in (x, weight, bias, state)]
    torch.library.opcheck(torch.ops.ssm_kernels.depthwise_conv1d.default, (*leaves, bounds, *rest))
    plain = [t.detach() for t in leaves]
    torch.library.opcheck(torch.ops.ssm_kernels.depthwise_conv1d_backward.default, (cotangent, *plain, bounds, *rest))
    torch.library.opcheck(
        torch.ops.ssm_kernels.depthwise_conv1d.default, (x, weight, None, None, None, "same", False, None, "auto")
    )


def test_compiles_once_for_all_sizes():
    """Fullgraph with dynamic batch and length: no break, no compilation per size, same numbers."""
    counter = CompileCounterWithBackend("aot_eager")

    def function(x, weight, bias):
        return depthwise_conv1d(x * 2, weight, bias, activation="silu")

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
    for batch, length in [(2, 11), (3, 5), (7, 32)]:  # no size equal to another one at first
        x, weight, bias, _, cotangent, _ = make((batch, length, 6, 4))
        leaves = [t.requires_grad_() for t in (x, weight, bias)]
        expected, result = function(*leaves), compiled(*leaves)
        torch.testing.assert_close(result, expected)
        theirs = torch.autograd.grad(expected, leaves, cotangent)
        for ours, other in zip(torch.autograd.grad(result, leaves, cotangent), theirs, strict=True):
            torch.testing.assert_close(ours, other)
    assert counter.frame_count == 1


def test_exports_with_dynamic_batch_and_length():
    class Convolve(torch.nn.Module):
        def forward(self, x, weight):
            return depthwise_conv1d(x, weight, padding="same")

    x, weight, *_ = make((2, 11, 6, 4))
    sizes = {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("length", max=4096)}
    program = torch.export.export(Convolve(), (x, weight), dynamic_shapes=[sizes, None])
    x, *_ = make((5, 3, 6, 4), seed=1)
    torch.testing.assert_close(program.module()(x, weight), depthwise_conv1d(x, weight, padding="same"))


@pytest.mark.parametrize("device", DEVICES)
def test_writes_all_of_its_results(device):
    """Buffers that start as NaN end as the same numbers, and a second run is bit-equal."""
    for packed in (False, True):
        tensors = make((2, 19, 5, 4), device=device, state=True, packed=packed)
        first = run(tensors, "auto", activation="silu")
        with poisoned_buffers():
            second = run(tensors, "auto", activation="silu")
        for name, value in first.items():
            assert torch.equal(value, second[name]), name


def test_any_strides_and_dtypes():
    """Random sizes, views and mixed dtypes give what contiguous float64 inputs of the same numbers give."""
    from hypothesis import given, settings
    from hypothesis import strategies as st

    dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])
    views = {
        "contiguous": lambda x: x,
        "channels_first": lambda x: x.mT.contiguous().mT,
        "sliced": lambda x: torch.cat([x, x], 1)[:, ::2],
        "expanded": lambda x: x[:1, :1].expand(x.shape),
    }
    kinds = st.sampled_from(sorted(views))

    @settings(max_examples=40, deadline=None, derandomize=True, database=None)
    @given(
        st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 5), st.integers(2, 8)),
        st.sampled_from(["causal", "same"]),
        st.tuples(st.booleans(), st.booleans()),
        st.sampled_from([None, "silu"]),
        st.tuples(kinds, kinds),
        st.tuples(dtypes, dtypes, dtypes),
    )
    def check(sizes, padding, flags, activation, kind, kind_dtypes):
        reverse, packed = flags
        x, weight, bias, _, cotangent, bounds = make(sizes, packed=packed)
        x, cotangent = (views[k](t.to(kind_dtypes[0])) for k, t in zip(kind, (x, cotangent), strict=True))
        weight = weight.to(kind_dtypes[1]).T.contiguous().T
        tensors = x, weight, bias.to(kind_dtypes[2]), None, cotangent, bounds
        options = {"padding": padding, "reverse": reverse, "activation": activation}
        truth = run(widened(tensors), "reference", **options)
        result, eager = run(tensors, "torch", **options), run(tensors, "reference", **options)
        for name, value in truth.items():
            if result[name].dtype == torch.float64:
                assert error_ratio(result[name], value) < (1e-13 if weight.dtype == torch.float64 else 1e-5), name
            else:
                assert_as_accurate(name, result[name], eager[name], value)

    check()


def test_autocast_does_not_reach_inside():
    """Under autocast the inputs keep their precision: the result equals the one without."""
    x, weight, bias, *_ = make((2, 9, 5, 4))
    expected = depthwise_conv1d(x, weight, bias)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(depthwise_conv1d(x, weight, bias), expected)


def test_meta_device_gives_shape_and_dtype():
    x = torch.empty(2, 9, 5, dtype=torch.bfloat16, device="meta", requires_grad=True)
    weight = torch.empty(5, 4, device="meta", requires_grad=True)
    y = depthwise_conv1d(x, weight, activation="silu")
    y.sum().backward()
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert weight.grad is not None
    assert weight.grad.shape == weight.shape


X, W = torch.zeros(2, 6, 3), torch.zeros(3, 4)
ONE = torch.zeros(1, 6, 3)


@pytest.mark.parametrize(
    ("message", "change"),
    [
        (r"x must be \(B, L, D\), got \(6, 3\)", {"x": X[0]}),
        (r"x must be without an empty axis", {"x": X[:, :0]}),
        (r"x must be float32, .* got int64", {"x": X.long()}),
        (r"weight must be float32, .* got bool", {"weight": W.bool()}),
        (r"weight must be \(D, k\) = \(3, k\), got \(3, 1, 4\)", {"weight": W[:, None]}),
        (r"k of weight must be in 2\.\.8, got 9", {"weight": torch.zeros(3, 9)}),
        (r"weight must be on cpu", {"weight": W.to("meta")}),
        (r"bias must be \(D,\) = \(3,\), got \(4,\)", {"bias": torch.zeros(4)}),
        (r"padding must be 'causal' or 'same', got 'valid'", {"padding": "valid"}),
        (r"activation must be None or 'silu', got 'gelu'", {"activation": "gelu"}),
        (
            r"initial_state must be \(B, D, k - 1\) = \(2, 3, 3\), got \(2, 3, 4\)",
            {"initial_state": torch.zeros(2, 3, 4)},
        ),
        (r"initial_state must be None with padding='same'", {"initial_state": torch.zeros(2, 3, 3), "padding": "same"}),
        (r"B of x must be 1 with cu_seqlens, got 2", {"cu_seqlens": torch.tensor([0, 6])}),
        (r"cu_seqlens must be int32 or int64", {"x": ONE, "cu_seqlens": torch.tensor([0.0, 6.0])}),
        (r"cu_seqlens must be \(S \+ 1,\), got \(1,\)", {"x": ONE, "cu_seqlens": torch.tensor([0])}),
        (r"cu_seqlens must be from 0 to L = 6 .* got \[0, 5\]", {"x": ONE, "cu_seqlens": torch.tensor([0, 5])}),
        (r"cu_seqlens must be .* got \[0, 4, 3, 6\]", {"x": ONE, "cu_seqlens": torch.tensor([0, 4, 3, 6])}),
        (
            r"initial_state must be \(S, D, k - 1\) = \(2, 3, 3\), got \(1, 3, 3\)",
            {"x": ONE, "cu_seqlens": torch.tensor([0, 4, 6]), "initial_state": torch.zeros(1, 3, 3)},
        ),
        (r"impl must be one of auto, triton, torch, reference, got 'cuda'", {"impl": "cuda"}),
    ],
)
def test_refuses_bad_input(message, change):
    with pytest.raises(ValueError, match=f"^depthwise_conv1d: {message}"):
        depthwise_conv1d(**{"x": X, "weight": W, **change})


def test_reference_refuses_bad_bounds_too():
    with pytest.raises(ValueError, match="cu_seqlens must be from 0 to L = 6"):
        depthwise_conv1d(ONE, W, cu_seqlens=torch.tensor([0, 5]), impl="reference")

"""The convolutions of ssm_kernels.compat: numbers of the published code, states, packed sequences, versions, errors."""

from pathlib import Path

import pytest
import torch
from ssm_kernels.compat import conv, conv_extension
from ssm_kernels.compat.conv import causal_conv1d_fn, causal_conv1d_ref, causal_conv1d_update
from ssm_kernels.compat.errors import UnknownChoice

DATA = Path(__file__).parent / "data"
FUNCTIONS = pytest.mark.parametrize("function", [causal_conv1d_fn, causal_conv1d_ref])
UPDATES = pytest.mark.parametrize("function", [causal_conv1d_update, conv.causal_conv1d_update_ref])


@pytest.fixture
def numbers():
    """Return a function that reads a file: inputs in float64 without their prefix, and the rest."""
    from safetensors.torch import load_file

    def read(name):
        tensors = load_file(DATA / f"{name}.safetensors")
        if name == "mamba_causal_conv1d":
            tensors |= load_file(DATA / f"{name}_states.safetensors")
        given = {key.removeprefix("input."): x for key, x in tensors.items() if key.startswith("input.")}
        return {k: x.double() if x.is_floating_point() else x for k, x in given.items()}, tensors

    return read


def same(x, expected):
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-13)


@FUNCTIONS
def test_convolution_equals_the_published_one(numbers, function):
    x, expected = numbers("mamba_causal_conv1d")
    weight, bias, before = x["weight"], x["bias"], x["initial_states"]
    y, last = function(x["x"], weight, bias, initial_states=before, return_final_states=True, activation="silu")
    same(y, expected["output.y"])
    same(last, expected["output.final_states"])
    y, last = function(x["x"], weight, bias, return_final_states=True, activation="swish")
    same(y, expected["output.zero_state.y"])
    same(last, expected["output.zero_state.final_states"])
    same(function(x["x"], weight, bias), expected["output.no_activation.y"])
    same(function(x["x"], weight, activation="silu"), expected["output.no_bias.y"])


@FUNCTIONS
def test_sequence_shorter_than_the_filter(numbers, function):
    x, expected = numbers("mamba_causal_conv1d")
    out = torch.full_like(x["initial_states"], torch.nan)
    y, last = function(
        x["x_short"],
        x["weight"],
        x["bias"],
        initial_states=x["initial_states"],
        return_final_states=True,
        final_states_out=out,
        activation="silu",
    )
    assert last is out
    same(y, expected["output.short.y"])
    same(out, expected["output.short.final_states"])
    _, last = function(x["x_short"], x["weight"], return_final_states=True)
    same(last, expected["output.short_zero_state.final_states"])


def test_gradients_equal_the_published_ones(numbers):
    x, expected = numbers("mamba_causal_conv1d")
    names = ("x", "weight", "bias", "initial_states")
    leaves = {name: x[name].requires_grad_() for name in names}
    y = causal_conv1d_fn(**leaves, activation="silu")
    y.backward(expected["grad.output.y"].double())
    for name in names:
        torch.testing.assert_close(leaves[name].grad, expected[f"grad.input.{name}"], rtol=0, atol=1e-12)


def test_last_steps_carry_gradient():
    """Two halves with the state in between are one whole, gradients included."""
    x = torch.randn(2, 3, 9, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 4, dtype=torch.float64)
    first, state = causal_conv1d_fn(x[..., :5], weight, return_final_states=True)
    second = causal_conv1d_fn(x[..., 5:], weight, initial_states=state)
    whole = causal_conv1d_fn(x, weight)
    same(torch.cat([first, second], -1), whole)
    halves = torch.autograd.grad(torch.cat([first, second], -1).square().sum(), x)[0]
    same(halves, torch.autograd.grad(whole.square().sum(), x)[0])


@FUNCTIONS
def test_packed_sequences_equal_one_after_another(function):
    """seq_idx in rows of different lengths, with states before, a negative index, and gradients."""
    torch.manual_seed(0)
    seq_idx = torch.tensor([[0, 0, 0, 1, 1, 2], [0, 1, 1, 1, -1, -1]], dtype=torch.int32)
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    weight, bias = torch.randn(3, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    before = torch.randn(2, 3, 2, dtype=torch.float64)
    y = function(x, weight, bias, seq_idx=seq_idx, initial_states=before, activation="silu")
    expected = torch.zeros_like(x)
    for row, start, stop in ((0, 0, 3), (0, 3, 5), (0, 5, 6), (1, 0, 1), (1, 1, 4)):
        state = before[row : row + 1] if start == 0 else None
        alone = function(x[row : row + 1, :, start:stop], weight, bias, initial_states=state, activation="silu")
        expected[row, :, start:stop] = alone[0]
    same(y, expected)
    same(torch.autograd.grad(y.sin().sum(), x)[0], torch.autograd.grad(expected.sin().sum(), x)[0])


@UPDATES
def test_update_equals_the_published_one(numbers, function):
    """One token, a state longer than the filter, several tokens, a ring."""
    x, expected = numbers("mamba_causal_conv1d_update")
    cases = {
        "one": ("x1", "conv_state", "silu", None),
        "long_state": ("x1", "conv_state_long", "silu", None),
        "several": ("xT", "conv_state_long", None, None),
        "circular": ("xT", "conv_state_long", "silu", x["cache_seqlens"]),
    }
    for case, (token, kept, activation, seen) in cases.items():
        state = x[kept].clone()
        y = function(x[token], state, x["weight"], x["bias"], activation, seen)
        same(y, expected[f"output.{case}.y"])
        same(state, expected[f"output.{case}.conv_state"])


def test_update_of_chosen_rows(numbers):
    """Rows of a pool of states; a negative one gives zeros and leaves the pool alone."""
    x, _ = numbers("mamba_causal_conv1d_update")
    pool = torch.randn(5, *x["conv_state"].shape[1:], dtype=torch.float64)
    before = pool.clone()
    token = torch.cat([x["x1"], x["x1"][:1]])
    rows = torch.tensor([4, -1, 1], dtype=torch.int32)
    y = causal_conv1d_update(token, pool, x["weight"], x["bias"], "silu", conv_state_indices=rows)
    alone = before[[4, 1]].clone()
    expected = causal_conv1d_update(token[[0, 2]], alone, x["weight"], x["bias"], "silu")
    same(y[[0, 2]], expected)
    assert not y[1].any()
    same(pool[[4, 1]], alone)
    same(pool[[0, 2, 3]], before[[0, 2, 3]])


@pytest.mark.parametrize("taps", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_updates_continue_a_sequence(taps, dtype):
    """Token by token, from zeros, is the convolution of the whole."""
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, 6).to(dtype), torch.randn(3, taps)
    state = torch.zeros(2, 3, taps, dtype=dtype)  # one longer than needed, as the mixers have it
    tokens = [causal_conv1d_update(x[..., t], state, weight, None, "silu") for t in range(6)]
    assert {t.dtype for t in tokens} == {dtype}
    torch.testing.assert_close(torch.stack(tokens, -1), causal_conv1d_fn(x, weight, activation="silu"))


def test_states_of_packed_sequences():
    x = torch.arange(1.0, 15.0).view(7, 2)
    states = conv.causal_conv1d_varlen_states(x, torch.tensor([0, 4, 5, 7], dtype=torch.int32), 3)
    assert states[:, 0].tolist() == [[3.0, 5.0, 7.0], [0.0, 0.0, 9.0], [0.0, 11.0, 13.0]]


def test_extension_in_the_forms_of_its_versions(numbers):
    """causal_conv1d_cuda as of 1.1 (Vim), 1.2 and 1.6: the same numbers from each."""
    x, expected = numbers("mamba_causal_conv1d")
    dout = expected["grad.output.y"].double()
    args = x["x"], x["weight"], x["bias"]
    same(conv_extension.causal_conv1d_fwd(*args, None, True), expected["output.zero_state.y"])
    y = conv_extension.causal_conv1d_fwd(*args, None, x["initial_states"], None, True)
    same(y, expected["output.y"])
    out, final = torch.empty_like(y), torch.empty_like(x["initial_states"])
    assert conv_extension.causal_conv1d_fwd(*args, None, x["initial_states"], out, final, True) is None
    same(out, y)
    same(final, expected["output.final_states"])

    wanted = [expected[f"grad.input.{name}"] for name in ("x", "weight", "bias", "initial_states")]
    dx = torch.empty_like(y)
    got = conv_extension.causal_conv1d_bwd(*args, dout, None, x["initial_states"], None, dx, True, True)
    assert got[0] is dx
    for gradient, known in zip(got, wanted, strict=True):
        torch.testing.assert_close(gradient, known, rtol=0, atol=1e-12)
    places = [torch.empty_like(t) for t in wanted]
    conv_extension.causal_conv1d_bwd(*args, dout, None, x["initial_states"], None, *places, True)
    for gradient, known in zip(places, wanted, strict=True):
        torch.testing.assert_close(gradient, known, rtol=0, atol=1e-12)
    short = conv_extension.causal_conv1d_bwd(*args, dout, None, None, True)
    assert len(short) == 3


def test_extension_updates(numbers):
    x, expected = numbers("mamba_causal_conv1d_update")
    state, out = x["conv_state"].clone(), torch.empty_like(x["x1"])
    y = conv_extension.causal_conv1d_update(x["x1"], state, x["weight"], x["bias"], True)
    same(y, expected["output.one.y"])
    state = x["conv_state"].clone()
    conv_extension.causal_conv1d_update(x["x1"], state, x["weight"], x["bias"], out, True, None, None)
    same(out, y)
    same(state, expected["output.one.conv_state"])


X, W = torch.rand(2, 3, 5), torch.rand(3, 4)


def test_other_activation_is_refused_as_there():
    """A wrong value, and of the type that code written for causal-conv1d catches."""
    # no stub: NotImplementedError is the type that causal-conv1d raises for such a value, and callers catch
    assert issubclass(UnknownChoice, NotImplementedError)
    for function in (causal_conv1d_fn, causal_conv1d_ref):
        with pytest.raises(UnknownChoice, match="activation must be None, silu, or swish, got 'gelu'"):
            function(X, W, activation="gelu")
    with pytest.raises(ValueError, match="got True"):
        causal_conv1d_update(X[..., 0], torch.zeros(2, 3, 3), W, None, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X[0]}, r"x must be \(B, D, L\), got \(3, 5\)"),
        ({"seq_idx": torch.zeros(2, 4)}, r"seq_idx must be \(B, L\) = \(2, 5\), got \(2, 4\)"),
        ({"seq_idx": torch.zeros(2, 5), "return_final_states": True}, "return_final_states must be False with seq_idx"),
        ({"weight": W.mT}, "weight must be"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        causal_conv1d_fn(**({"x": X, "weight": W} | change))


def test_wrong_states_and_counts_are_named():
    with pytest.raises(
        ValueError, match=r"conv_state must be .* = \(2, 3, K\) with K at least k - 1 = 3, got \(2, 3, 2\)"
    ):
        causal_conv1d_update(X[..., 0], torch.zeros(2, 3, 2), W)
    with pytest.raises(ValueError, match=r"cache_seqlens must be \(B,\) = \(2,\)"):
        causal_conv1d_update(X[..., 0], torch.zeros(2, 3, 3), W, cache_seqlens=torch.zeros(3).int())
    with pytest.raises(ValueError, match="5, 7 or 8 arguments, got 2"):
        conv_extension.causal_conv1d_fwd(X, W)
    with pytest.raises(ValueError, match="7, 10 or 12 arguments, got 2"):
        conv_extension.causal_conv1d_bwd(X, W)
    with pytest.raises(ValueError, match="5 to 8 arguments, got 2"):
        conv_extension.causal_conv1d_update(X, W)

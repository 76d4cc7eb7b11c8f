"""The scans of ssm_kernels.compat: numbers of the published code in its own layouts, dtypes, gradients, errors."""

import json
from pathlib import Path

import pytest
import torch
from ssm_kernels.compat import inner
from ssm_kernels.compat.extensions import core_bwd, core_fwd, mamba_bwd, mamba_fwd, oflex_fwd
from ssm_kernels.compat.scan import selective_scan_fn, selective_scan_ref
from ssm_kernels.compat.state_update import selective_state_update, selective_state_update_ref

DATA = Path(__file__).parent / "data"
CASES = sorted(path.stem for path in DATA.glob("mamba_selective_scan_*"))
GROUPED = sorted(path.stem for path in DATA.glob("scan-*") if "512" not in path.stem)


def golden(name):
    from safetensors import safe_open

    with safe_open(DATA / f"{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


def inputs(tensors, dtype=torch.float64):
    return {
        key.removeprefix("input."): x.to(dtype).requires_grad_()
        for key, x in tensors.items()
        if key.startswith("input.") and "cotangent" not in key
    }


def check_gradients(tensors, leaves, atol=1e-9):
    for name, leaf in leaves.items():
        torch.testing.assert_close(leaf.grad, tensors[f"grad.input.{name}"].double(), rtol=0, atol=atol)


@pytest.mark.parametrize("function", [selective_scan_fn, selective_scan_ref])
@pytest.mark.parametrize("name", CASES)
def test_scan_equals_the_published_one(name, function):
    """Outputs, last state and all gradients for every form of B and C, in float64."""
    tensors, metadata = golden(name)
    softplus = json.loads(metadata["config"])["delta_softplus"]
    leaves = inputs(tensors)
    y, last = function(**leaves, delta_softplus=softplus, return_last_state=True)
    atol = 1e-8 if "extreme" in name else 1e-11  # the reference's softplus is linear above 20
    torch.testing.assert_close(y, tensors["output.y"], rtol=0, atol=atol * 10)
    torch.testing.assert_close(last, tensors["output.last_state"], rtol=0, atol=atol * 10)
    y.backward(tensors["grad.output.y"].double())
    check_gradients(tensors, leaves, atol=1e-6 if "extreme" in name else 1e-9)


def test_result_alone_without_the_last_state():
    tensors, _ = golden("mamba_selective_scan_plain")
    y = selective_scan_fn(**inputs(tensors, torch.float32), return_last_state=None)  # as MambaVision calls it
    assert isinstance(y, torch.Tensor)
    assert y.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_with_float_parameters(dtype):
    """The combination of dtypes that every public model uses under autocast."""
    tensors, _ = golden("mamba_selective_scan_full")
    leaves = inputs(tensors, torch.float32)
    leaves = {
        k: x.detach().to(dtype).requires_grad_() if k in ("u", "delta", "B", "C", "z") else x for k, x in leaves.items()
    }
    y, last = selective_scan_fn(**leaves, delta_softplus=True, return_last_state=True)
    assert (y.dtype, last.dtype) == (dtype, torch.float32)
    assert y.shape == leaves["u"].shape
    y.sum().backward()
    for name, leaf in leaves.items():
        assert leaf.grad.dtype == leaf.dtype, name
        assert leaf.grad.isfinite().all(), name


@pytest.mark.parametrize("out_float", [True, False])
@pytest.mark.parametrize("name", GROUPED)
def test_vmamba_extension_equals_the_published_one(name, out_float):
    """fwd and bwd of oflex, called as VMamba's autograd function calls them."""
    tensors, metadata = golden(name)
    softplus = json.loads(metadata["config"])["delta_softplus"]
    x = {key: leaf.detach() for key, leaf in inputs(tensors, torch.float32).items()}
    arguments = (x["u"], x["delta"], x["A"], x["B"], x["C"], x.get("D"), x.get("delta_bias"))
    out, states = oflex_fwd(*arguments, softplus, 1, out_float)
    atol = json.loads(metadata["suggested_atol_float32"])
    torch.testing.assert_close(out.double(), tensors["output.y"], rtol=0, atol=atol["output.y"])
    dout = tensors["input.cotangent"].float()
    gradients = core_bwd(*arguments, dout, states, softplus, 1)
    names = ("u", "delta", "A", "B", "C", "D", "delta_bias")
    for key, gradient in zip(names, gradients, strict=True):
        if key in x:
            expected = tensors[f"grad.input.{key}"].double()
            torch.testing.assert_close(gradient.double(), expected, rtol=0, atol=atol[f"grad.input.{key}"])
        else:
            assert gradient is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_oflex_takes_half_and_gives_float(dtype):
    tensors, _ = golden("scan-d-bias-softplus")
    x = {key: leaf.detach() for key, leaf in inputs(tensors, torch.float32).items()}
    half = {key: value.to(dtype) for key, value in x.items() if key in ("u", "delta", "B", "C")}
    rounded = {key: half[key].float() if key in half else value for key, value in x.items()}
    order = ("u", "delta", "A", "B", "C", "D", "delta_bias")
    arguments = [(x | half)[key] for key in order]
    out, states = oflex_fwd(*arguments, True, 1, True)
    assert (out.dtype, states.dtype) == (torch.float32, torch.float32)
    exact, _ = oflex_fwd(*[rounded[key] for key in order], True, 1, True)
    torch.testing.assert_close(out, exact, rtol=1e-5, atol=1e-5)  # not rounded to half on the way
    gradients = core_bwd(*arguments, torch.ones_like(out), states, True, 1)
    assert [g.dtype for g in gradients] == [a.dtype for a in arguments]
    assert core_fwd(*arguments, True, 1)[0].dtype == dtype


def test_states_of_the_extensions_end_with_the_last_state():
    tensors, _ = golden("mamba_selective_scan_full")
    x = {key: leaf.detach() for key, leaf in inputs(tensors, torch.float32).items()}
    out, states, gated = mamba_fwd(*[x[k] for k in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")], True)
    torch.testing.assert_close(states[:, :, -1, 1::2].double(), tensors["output.last_state"], rtol=0, atol=4e-6)
    torch.testing.assert_close(gated.double(), tensors["output.y"], rtol=0, atol=1e-5)
    torch.testing.assert_close(out * torch.nn.functional.silu(x["z"]), gated)


def test_states_of_the_extensions_have_an_entry_per_segment():
    u, weights = torch.rand(1, 1, 2049), torch.rand(1, 1, 2, 2049)
    _, states = mamba_fwd(u, u, -torch.ones(1, 2), weights, weights, None, None, None, False)
    assert states.shape == (1, 1, 2, 4)


def test_mamba_extension_backward():
    """With a buffer for the gradient of z, and the output once more, as the fused block wants them."""
    tensors, _ = golden("mamba_selective_scan_full")
    order = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
    x = {key: leaf.detach() for key, leaf in inputs(tensors, torch.float32).items()}
    out, states, gated = mamba_fwd(*[x[key] for key in order], True)
    dz = torch.full_like(x["z"], torch.nan)
    dout = tensors["grad.output.y"].float()
    *gradients, of_z, again = mamba_bwd(*[x[key] for key in order], dout, states, out, dz, True, True)
    assert of_z is dz
    torch.testing.assert_close(again, gated)
    for key, gradient in zip(("u", "delta", "A", "B", "C", "D", "delta_bias", "z"), [*gradients, of_z], strict=True):
        expected = tensors[f"grad.input.{key}"].double()
        atol = 3e-6 * expected.abs().max().item()
        torch.testing.assert_close(gradient.double(), expected, rtol=0, atol=atol)


def test_step_of_channels_in_a_row_is_shared():
    """delta of VMamba's extension may serve several channels; its gradient sums over them."""
    torch.manual_seed(0)
    u, delta = torch.randn(2, 6, 9), torch.rand(2, 3, 9)
    A, B, bias = -torch.rand(6, 2), torch.randn(2, 1, 2, 9), torch.rand(3)
    out, states = oflex_fwd(u, delta, A, B, B, None, bias, True, 1, True)
    wide = (u, delta.repeat_interleave(2, 1), A, B, B, None, bias.repeat_interleave(2))
    torch.testing.assert_close(out, oflex_fwd(*wide, True, 1, True)[0])
    shared = core_bwd(u, delta, A, B, B, None, bias, torch.ones_like(u), states, True, 1)
    single = core_bwd(*wide, torch.ones_like(u), states, True, 1)
    torch.testing.assert_close(shared[1], single[1].unflatten(1, (3, 2)).sum(2))
    torch.testing.assert_close(shared[6], single[6].unflatten(0, (3, 2)).sum(1))


def block(dtype=torch.float64, given=()):
    """Arguments of mamba_inner_fn: D 4, N 3, R 2, L 7."""
    g = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_()

    constant = {"B": draw(4, 3), "C": draw(2, 1, 3, 7)}
    rows = 2 + 3 * (2 - len(given))
    return {
        "xz": draw(2, 8, 7),
        "conv1d_weight": draw(4, 1, 3),
        "conv1d_bias": draw(4),
        "x_proj_weight": draw(rows, 4),
        "delta_proj_weight": draw(4, 2),
        "out_proj_weight": draw(5, 4),
        "out_proj_bias": draw(5),
        "A": (-torch.rand(4, 3, generator=g, dtype=torch.float64)).to(dtype).requires_grad_(),
        "B": constant["B"] if "B" in given else None,
        "C": constant["C"] if "C" in given else None,
        "D": draw(4),
        "delta_bias": draw(4),
    }


def published_steps(a, A):
    """Compose a block as mamba-ssm's own reference does, from PyTorch's convolution and the defining loop."""
    x, z = a["xz"].chunk(2, 1)
    x = torch.nn.functional.conv1d(x, a["conv1d_weight"], a["conv1d_bias"], padding=2, groups=4)[..., :7]
    x = torch.nn.functional.silu(x)
    low = x.mT @ a["x_proj_weight"].T
    delta = (low[..., :2] @ a["delta_proj_weight"].T).mT
    B = low[..., 2:5].mT if a["B"] is None else a["B"]
    C = low[..., -3:].mT if a["C"] is None else a["C"]
    return selective_scan_ref(x, delta, A, B, C, a["D"], z, a["delta_bias"], True), (x, delta, B, C, z)


@pytest.mark.parametrize("given", [(), ("B",), ("C",), ("B", "C")])
def test_inner_functions_compose_the_block(given):
    """Result and gradients of the fused functions, computed or given B and C, against the composition."""
    a = block(given=given)
    y, _ = published_steps(a, a["A"])
    expected = torch.nn.functional.linear(y.mT, a["out_proj_weight"], a["out_proj_bias"])
    leaves = [t for t in a.values() if t is not None]
    wanted = torch.autograd.grad(expected.square().sum(), leaves)
    for function in (inner.mamba_inner_fn, inner.mamba_inner_ref):
        got = function(**a)
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(torch.autograd.grad(got.square().sum(), leaves), wanted)
    without = {k: v for k, v in a.items() if not k.startswith("out_proj")}
    torch.testing.assert_close(inner.mamba_inner_fn_no_out_proj(**without), y)


def test_biases_and_norms_of_the_projections():
    """What FalconMamba and Jamba add: RMS norms of the step, B and C, and biases of B and C."""
    a, g = block(), torch.Generator().manual_seed(2)
    extra = {"B_proj_bias": 3, "C_proj_bias": 3, "b_rms_weight": 3, "c_rms_weight": 3, "dt_rms_weight": 4}
    extra = {k: torch.randn(n, generator=g, dtype=torch.float64) for k, n in extra.items()}
    _, (x, delta, B, C, z) = published_steps(a, a["A"])

    def norm(t, weight):
        return (torch.nn.functional.rms_norm(t.mT, t.shape[1:2], eps=1e-5) * weight).mT

    B = norm(B + extra["B_proj_bias"][:, None], extra["b_rms_weight"])
    C = norm(C + extra["C_proj_bias"][:, None], extra["c_rms_weight"])
    y = selective_scan_ref(
        x, norm(delta, extra["dt_rms_weight"]), a["A"], B, C, a["D"], z, a["delta_bias"], delta_softplus=True
    )
    expected = torch.nn.functional.linear(y.mT, a["out_proj_weight"], a["out_proj_bias"])
    torch.testing.assert_close(inner.mamba_inner_fn(**a, **extra, b_c_dt_rms_eps=1e-5), expected)


def test_both_ends_of_vim():
    """Vim's bimamba_inner_fn: the second scan runs over everything flipped, and the sum is projected."""
    a = block()
    A_b = -torch.rand(4, 3, dtype=torch.float64).requires_grad_()
    y, (x, delta, B, C, z) = published_steps(a, a["A"])
    back = selective_scan_ref(
        x.flip(-1), delta.flip(-1), A_b, B.flip(-1), C.flip(-1), a["D"], z.flip(-1), a["delta_bias"], True
    )
    expected = torch.nn.functional.linear((y + back.flip(-1)).mT, a["out_proj_weight"], a["out_proj_bias"])
    torch.testing.assert_close(inner.bimamba_inner_fn(**a, A_b=A_b), expected)
    torch.testing.assert_close(inner.bimamba_inner_ref(**a, A_b=A_b), expected)


@pytest.mark.parametrize("function", [selective_state_update, selective_state_update_ref])
@pytest.mark.parametrize("name", ["mamba_state_update", "mamba_state_update_heads"])
def test_state_update_equals_the_published_one(name, function):
    tensors, _ = golden(name)
    x = {key: leaf.detach() for key, leaf in inputs(tensors).items()}
    few = {key: x[key] for key in ("x", "dt", "A", "B", "C")}
    runs = {"": (x, True), "plain.": (few, True), "no_softplus_abs_dt.": (few | {"dt": x["dt"].abs()}, False)}
    for case, (arguments, softplus) in runs.items():
        state = x["state"].clone()
        y = function(**(arguments | {"state": state}), dt_softplus=softplus)
        torch.testing.assert_close(y, tensors[f"output.{case}y"], rtol=0, atol=1e-12)
        torch.testing.assert_close(state, tensors[f"output.{case}state"], rtol=0, atol=1e-12)  # changed in place


@pytest.mark.parametrize("groups", [None, 2])
def test_state_update_with_one_rate_per_head(groups):
    """Mamba-2 expands step, rate and bias over a head: another operator, the same numbers as without expanding."""
    torch.manual_seed(0)
    shape = (2, 4, 3, 5)  # B, H, P, N
    dt, bias = (torch.randn(*size, 1, dtype=torch.float64).expand(*size, 3) for size in ((2, 4), (4,)))
    A = -torch.rand(4, 1, 1, dtype=torch.float64).expand(4, 3, 5)
    x, z, D = (torch.randn(size, dtype=torch.float64) for size in (shape[:3], shape[:3], shape[1:3]))
    B, C = torch.randn(2, 2, *([groups] if groups else []), 5, dtype=torch.float64)
    ends = []
    for form in (torch.Tensor.contiguous, lambda t: t):
        state = torch.ones(shape, dtype=torch.float64)
        step = {"dt": form(dt), "A": form(A), "dt_bias": form(bias)}
        ends.append((selective_state_update(state, x, B=B, C=C, D=D, z=z, **step, dt_softplus=True), state))
    torch.testing.assert_close(ends[0], ends[1])


def test_state_update_of_chosen_rows():
    tensors, _ = golden("mamba_state_update_heads")
    x = {key: leaf.detach() for key, leaf in inputs(tensors).items()}
    pool = torch.zeros(5, *x["state"].shape[1:], dtype=torch.bfloat16)
    rows = torch.tensor([3, 0])
    pool[rows] = x["state"].bfloat16()
    alone = x["state"].bfloat16()
    expected = selective_state_update(**(x | {"state": alone}), dt_softplus=True)
    got = selective_state_update(**(x | {"state": pool}), dt_softplus=True, state_batch_indices=rows.int())
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(pool[rows], alone)
    assert not pool[[1, 2, 4]].any()


A = -torch.rand(4, 3)
X, W = torch.rand(2, 4, 5), torch.rand(2, 3, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u": X[0]}, r"u must be \(B, D, L\)"),
        ({"delta": X[:, :3]}, r"delta must be \(B, D, L\) = \(2, 4, 5\), got \(2, 3, 5\)"),
        ({"A": A.to(torch.complex64)}, "A must be real, got torch.complex64"),
        ({"A": A[:3]}, r"A must be \(D, N\) = \(4, N\), got \(3, 3\)"),
        ({"B": W.mT}, r"B must be \(B, N, L\), \(B, G, N, L\) or \(D, N\) = \(2, 3, 5\), got \(2, 5, 3\)"),
        ({"C": W[:, None].expand(2, 3, 3, 5)}, "C must be .* with G a divisor of D=4"),
        ({"D": torch.ones(3)}, r"D must be \(D,\) = \(4,\)"),
        ({"z": X[..., :4]}, r"z must be \(B, D, L\)"),
        ({"delta_bias": torch.ones(5)}, r"delta_bias must be \(D,\)"),
        ({"u": X.long()}, "u must be float32, .* got int64"),
    ],
)
def test_wrong_arguments_are_named_as_there(change, message):
    arguments = {"u": X, "delta": X, "A": A, "B": W, "C": W} | change
    with pytest.raises(ValueError, match=f"selective_scan_fn: {message}"):
        selective_scan_fn(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"xz": torch.rand(2, 7, 7)}, r"xz must be \(B, 2 D, L\) = \(B, 8, L\), got \(2, 7, 7\)"),
        ({"conv1d_weight": torch.rand(4, 3)}, r"conv1d_weight must be \(D, 1, k\), got \(4, 3\)"),
        ({"x_proj_weight": torch.rand(9, 4)}, r"x_proj_weight must be .* = \(8, 4\), got \(9, 4\)"),
        ({"checkpoint_lvl": 2}, "checkpoint_lvl must be 0 or 1, got 2"),
        ({"B": torch.rand(4, 3), "b_rms_weight": torch.ones(3)}, "x_proj_weight must be"),
        ({"A": torch.rand(4, 3) + 0j}, "A must be real"),
    ],
)
def test_wrong_arguments_of_the_block(change, message):
    with pytest.raises(ValueError, match=f"mamba_inner_fn: {message}"):
        inner.mamba_inner_fn(**(block(torch.float32) | change))


def test_wrong_arguments_of_the_step():
    state, x = torch.zeros(2, 4, 3), torch.rand(2, 4)
    good = {"state": state, "x": x, "dt": x, "A": A, "B": W[..., 0], "C": W[..., 0]}
    for change, message in (
        ({"state": state[0, 0]}, r"state must be \(B, P, N\) or \(B, H, P, N\), got \(3,\)"),
        ({"x": x[:, :3]}, r"x must be \(B, P\) = \(2, 4\), got \(2, 3\)"),
        ({"dt": x[:1]}, "dt must be the shape of x"),
        ({"A": A + 0j}, "A must be real"),
        ({"B": torch.rand(2, 3, 3)}, "B must be .* with G a divisor of 4"),
        ({"dt_bias": torch.rand(3)}, r"dt_bias must be \(P\) = \(4,\)"),
    ):
        with pytest.raises(ValueError, match=f"selective_state_update: {message}"):
            selective_state_update(**(good | change))

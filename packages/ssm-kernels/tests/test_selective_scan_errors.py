"""Every argument that is wrong is named, with what it must be, what it is, and what to do."""

import sys
from types import ModuleType

import pytest
import torch
from ssm_kernels.ops.selective_scan import selective_scan
from ssm_kernels.ops.selective_scan.reference import selective_scan_reference
from ssm_kernels.testing import error_ratio, scan_inputs

ZERO = torch.zeros

WRONG = {
    "x rank": ({"x": ZERO(2, 5)}, r"x must be (B, L, D) with every size at least 1, got (2, 5)"),
    "x empty": ({"x": ZERO(2, 0, 4)}, r"x must be (B, L, D) with every size at least 1, got (2, 0, 4)"),
    "x integer": (
        {"x": ZERO(2, 5, 4, dtype=torch.int64)},
        r"x must be float32, bfloat16, float16 or float64, got int64",
    ),
    "dt shape": ({"dt": ZERO(2, 5, 1)}, r"dt must be (B, L, D) = (2, 5, 4), got (2, 5, 1)"),
    "A rank": ({"A": ZERO(4)}, r"A must be (D, N) or (B, D, N) with N at least 1, got (4,)"),
    "A channels": ({"A": ZERO(5, 3)}, r"A must be (D, N) or (B, D, N) = (4, 3) or (2, 4, 3), got (5, 3)"),
    "A empty": ({"A": ZERO(4, 0)}, r"A must be (D, N) or (B, D, N) with N at least 1, got (4, 0)"),
    "B state": ({"B": ZERO(2, 5, 2)}, r"B must be (B, L, N) = (2, 5, 3), got (2, 5, 2)"),
    "B groups": ({"B": ZERO(2, 5, 3, 3)}, r"B must be (B, L, G, N) with G a divisor of D=4, got (2, 5, 3, 3)"),
    "B grouped length": ({"B": ZERO(2, 6, 2, 3)}, r"B must be (B, L, G, N) = (2, 5, 2, 3), got (2, 6, 2, 3)"),
    "C": ({"C": ZERO(2, 5, 1, 3)}, r"C must be the shape of B = (2, 5, 3), got (2, 5, 1, 3)"),
    "D": ({"D": ZERO(3)}, r"D must be (D,) or (B, D) = (4,) or (2, 4), got (3,)"),
    "D complex": (
        {"D": ZERO(4, dtype=torch.complex64)},
        r"D must be float32, bfloat16, float16 or float64, got complex64",
    ),
    "z": ({"z": ZERO(2, 5, 3)}, r"z must be (B, L, D) = (2, 5, 4), got (2, 5, 3)"),
    "z integer": (
        {"z": ZERO(2, 5, 4, dtype=torch.int32)},
        r"z must be float32, bfloat16, float16 or float64, got int32",
    ),
    "dt_bias": ({"dt_bias": ZERO(1)}, r"dt_bias must be (D,) = (4,), got (1,)"),
    "initial_state": ({"initial_state": ZERO(1, 4, 3)}, r"initial_state must be (B, D, N) = (2, 4, 3), got (1, 4, 3)"),
    "device": ({"A": ZERO(4, 3, device="meta")}, r"A must be on cpu like the first argument, got meta"),
    "state device": ({"initial_state": ZERO(2, 4, 3, device="meta")}, r"initial_state must be on cpu"),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_argument_is_named(name):
    change, message = WRONG[name]
    with pytest.raises(ValueError) as caught:
        selective_scan(**(scan_inputs(2, 5, 4, 3).kwargs() | change))
    assert str(caught.value).startswith(f"selective_scan: {message}")
    assert "; " in str(caught.value), "what to do comes after a semicolon"


PACKED = {
    "dtype": (torch.tensor([0.0, 5.0]), {}, "cu_seqlens must be int32 or int64, got torch.float32"),
    "rank": (torch.tensor([[0, 5]]), {}, "cu_seqlens must be (S + 1,) with S at least 1, got (1, 2)"),
    "one bound": (torch.tensor([5]), {}, "cu_seqlens must be (S + 1,) with S at least 1, got (1,)"),
    "batch": (
        torch.tensor([0, 5]),
        {"x": ZERO(2, 5, 4)},
        "x must be (1, L, D) when cu_seqlens is given, got (2, 5, 4)",
    ),
    "state": (torch.tensor([0, 2, 5]), {"initial_state": ZERO(1, 4, 3)}, "initial_state must be (S, D, N) = (2, 4, 3)"),
    "A": (torch.tensor([0, 2, 5]), {"A": ZERO(1, 4, 3)}, "A must be (D, N) or (S, D, N) = (4, 3) or (2, 4, 3)"),
    "end": (torch.tensor([0, 4]), {}, "cu_seqlens must be non-decreasing from 0 to L=5, got [0, 4]"),
    "begin": (torch.tensor([1, 5]), {}, "cu_seqlens must be non-decreasing from 0 to L=5, got [1, 5]"),
    "order": (torch.tensor([0, 4, 2, 5]), {}, "cu_seqlens must be non-decreasing from 0 to L=5, got [0, 4, 2, 5]"),
    "device": (ZERO(2, dtype=torch.int32, device="meta"), {}, "cu_seqlens must be on cpu like the first argument"),
}


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("name", PACKED)
def test_packed_arguments_are_named(name, impl):
    bounds, change, message = PACKED[name]
    inputs = scan_inputs(1, 5, 4, 3).kwargs() | {"initial_state": None}
    with pytest.raises(ValueError) as caught:
        selective_scan(**(inputs | change), cu_seqlens=bounds, impl=impl)
    assert str(caught.value).startswith(f"selective_scan: {message}")


def test_many_bounds_are_shown_in_part():
    inputs = scan_inputs(1, 5, 4, 3).kwargs() | {"initial_state": None}
    with pytest.raises(ValueError, match=r"got \[0, 0, 0, 0, 0, 0, 0, 0, \.\.\.\]"):
        selective_scan(**inputs, cu_seqlens=torch.zeros(20, dtype=torch.int32))


def test_unknown_implementation():
    with pytest.raises(
        ValueError, match="selective_scan: impl must be one of auto, triton, torch, reference, mamba_ssm"
    ):
        selective_scan(**scan_inputs(1, 2, 2, 1).kwargs(), impl="cuda")


def test_triton_in_float64():
    with pytest.raises(ValueError, match="selective_scan: impl='triton' cannot run here: float64"):
        selective_scan(**scan_inputs(1, 2, 2, 1, dtype=torch.float64).kwargs(), impl="triton")


def test_mamba_ssm_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    inputs = scan_inputs(1, 2, 2, 1).kwargs() | {"initial_state": None}
    with pytest.raises(ValueError, match=r"install the extra ssm-kernels\[mamba-ssm\]"):
        selective_scan(**inputs, impl="mamba_ssm")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"initial_state": ZERO(2, 2, 3)}, "initial_state"),
        ({"reverse": True}, "reverse=True"),
        ({"A": ZERO(2, 2, 3)}, "A or D with a batch axis"),
        ({"D": ZERO(2, 2)}, "A or D with a batch axis"),
    ],
)
def test_mamba_ssm_lacks(change, message):
    inputs = scan_inputs(2, 5, 2, 3, optional=False).kwargs()
    with pytest.raises(ValueError, match=f"selective_scan: impl='mamba_ssm' does not support {message}"):
        selective_scan(**(inputs | change), impl="mamba_ssm")


def test_mamba_ssm_lacks_packed_sequences():
    inputs = scan_inputs(1, 5, 2, 3, optional=False).kwargs()
    with pytest.raises(ValueError, match="selective_scan: impl='mamba_ssm' does not support cu_seqlens"):
        selective_scan(**inputs, cu_seqlens=torch.tensor([0, 5]), impl="mamba_ssm")


def stand_in(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False):
    """The signature and the (B, D, L) layout of that package, by our reference."""
    assert all(t is None or t.is_contiguous() for t in (u, delta, B, C, z))
    assert {u.dtype, delta.dtype, B.dtype, C.dtype} == {u.dtype}
    assert A.dtype == torch.float32
    turned = [t.permute(0, 3, 1, 2) if t.dim() == 4 else t.transpose(1, 2) for t in (B, C)]
    rows = [t.transpose(1, 2) for t in (u, delta)]
    y, final = selective_scan_reference(
        *rows, A, *turned, D, None if z is None else z.transpose(1, 2), delta_bias, dt_softplus=delta_softplus
    )
    y = y.transpose(1, 2)
    return (y, final) if return_last_state else y


@pytest.mark.parametrize("groups", [None, 2])
def test_mamba_ssm_is_called_in_its_own_layout(monkeypatch, groups):
    module = ModuleType("selective_scan_interface")
    module.selective_scan_fn = stand_in
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops.selective_scan_interface", module)
    inputs = scan_inputs(2, 5, 4, 3, groups=groups).kwargs() | {"initial_state": None}
    options = {"dt_softplus": True, "return_final_state": True}
    x = inputs["x"].requires_grad_()
    y, final = selective_scan(**inputs, **options, impl="mamba_ssm")
    wanted, wanted_final = selective_scan(**inputs, **options, impl="reference")
    assert error_ratio(y.detach(), wanted.detach()) < 1e-6
    assert error_ratio(final, wanted_final.detach()) < 1e-6
    assert not final.requires_grad, "that package drops the gradient of the state; ours says so"
    (found,), (truth,) = (torch.autograd.grad(out.sum(), x) for out in (y, wanted))
    assert error_ratio(found, truth) < 1e-6

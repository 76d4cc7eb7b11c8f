"""Every argument of `ssd` that is wrong is named, with what it must be, what it is, and what to do."""

import sys
from types import ModuleType

import pytest
import torch
from ssm_kernels.ops.ssd import ssd, ssd_bidirectional
from ssm_kernels.ops.ssd.reference import ssd_reference
from ssm_kernels.testing.ssd import ssd_inputs

ZERO = torch.zeros

WRONG = {  # B, L, H, P, G, N = 2, 5, 4, 6, 2, 3
    "x rank": ({"x": ZERO(2, 5, 24)}, "x must be (B, L, H, P) with every size at least 1, got (2, 5, 24)"),
    "x empty": ({"x": ZERO(2, 0, 4, 6)}, "x must be (B, L, H, P) with every size at least 1, got (2, 0, 4, 6)"),
    "x integer": ({"x": ZERO(2, 5, 4, 6, dtype=torch.int64)}, "x must be float32, bfloat16, float16 or float64, got"),
    "dt": ({"dt": ZERO(2, 5, 4, 6)}, "dt must be (B, L, H) = (2, 5, 4), got (2, 5, 4, 6)"),
    "A": ({"A": ZERO(4, 3)}, "A must be (H,) = (4,), got (4, 3)"),
    "B rank": ({"B": ZERO(2, 5, 3)}, "B must be (B, L, G, N) with every size at least 1, got (2, 5, 3)"),
    "B empty": ({"B": ZERO(2, 5, 2, 0)}, "B must be (B, L, G, N) with every size at least 1, got (2, 5, 2, 0)"),
    "B length": ({"B": ZERO(2, 6, 2, 3)}, "B must be (B, L, G, N) = (2, 5, 2, 3), got (2, 6, 2, 3)"),
    "B groups": ({"B": ZERO(2, 5, 3, 3)}, "B must be (B, L, G, N) with G a divisor of H=4, got (2, 5, 3, 3)"),
    "C": ({"C": ZERO(2, 5, 1, 3)}, "C must be the shape of B = (2, 5, 2, 3), got (2, 5, 1, 3)"),
    "D": ({"D": ZERO(4, 5)}, "D must be (H,) or (H, P) = (4,) or (4, 6), got (4, 5)"),
    "D complex": ({"D": ZERO(4, dtype=torch.complex64)}, "D must be float32, bfloat16, float16 or float64, got"),
    "z": ({"z": ZERO(2, 5, 4)}, "z must be (B, L, H, P) = (2, 5, 4, 6), got (2, 5, 4)"),
    "dt_bias": ({"dt_bias": ZERO(1)}, "dt_bias must be (H,) = (4,), got (1,)"),
    "initial_state": (
        {"initial_state": ZERO(2, 4, 3, 6)},
        "initial_state must be (B, H, P, N) = (2, 4, 6, 3), got (2, 4, 3, 6)",
    ),
    "device": ({"A": ZERO(4, device="meta")}, "A must be on cpu like the first argument, got meta"),
    "state device": ({"initial_state": ZERO(2, 4, 6, 3, device="meta")}, "initial_state must be on cpu"),
    "chunk": ({"chunk": 48}, "chunk must be None or one of 16, 32, 64, 128, got 48"),
    "impl": ({"impl": "cuda"}, "impl must be one of auto, triton, torch, reference, mamba_ssm, got 'cuda'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_argument_is_named(name):
    change, message = WRONG[name]
    with pytest.raises(ValueError) as caught:
        ssd(**(ssd_inputs(2, 5, 4, 6, 3, groups=2).kwargs() | change))
    assert str(caught.value).startswith(f"ssd: {message}")
    assert "; " in str(caught.value), "what to do comes after a semicolon"


PACKED = {
    "dtype": (torch.tensor([0.0, 5.0]), {}, "cu_seqlens must be int32 or int64, got torch.float32"),
    "one bound": (torch.tensor([5]), {}, "cu_seqlens must be (S + 1,) with S at least 1, got (1,)"),
    "state": (
        torch.tensor([0, 2, 5]),
        {"initial_state": ZERO(1, 4, 6, 3)},
        "initial_state must be (S, H, P, N) = (2, 4, 6, 3)",
    ),
    "end": (torch.tensor([0, 4]), {}, "cu_seqlens must be non-decreasing from 0 to L=5, got [0, 4]"),
    "order": (torch.tensor([0, 4, 2, 5]), {}, "cu_seqlens must be non-decreasing from 0 to L=5, got [0, 4, 2, 5]"),
}


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("name", PACKED)
def test_packed_arguments_are_named(name, impl):
    bounds, change, message = PACKED[name]
    inputs = ssd_inputs(1, 5, 4, 6, 3).kwargs() | {"initial_state": None}
    with pytest.raises(ValueError) as caught:
        ssd(**(inputs | change), cu_seqlens=bounds, impl=impl)
    assert str(caught.value).startswith(f"ssd: {message}")


def test_packed_rows_are_one_row():
    inputs = ssd_inputs(2, 5, 4, 6, 3).kwargs() | {"initial_state": None}
    with pytest.raises(ValueError, match=r"ssd: x must be .* when cu_seqlens is given, got \(2, 5, 4, 6\)"):
        ssd(**inputs, cu_seqlens=torch.tensor([0, 5]))


def test_the_second_direction_is_named():
    one = ssd_inputs(2, 5, 4, 6, 3).kwargs()
    names = ("x", "dt", "A", "B", "C", "D", "dt_bias")
    both = {name: one[name] for name in names} | {f"{name}_b": one[name] for name in names}
    with pytest.raises(ValueError, match=r"ssd_bidirectional: A_b must be \(H,\) = \(4,\), got \(3,\)"):
        ssd_bidirectional(**(both | {"A_b": ZERO(3)}))
    with pytest.raises(ValueError, match="ssd_bidirectional: x_b must be the shape of x"):
        ssd_bidirectional(**(both | {"x_b": ZERO(2, 6, 4, 6)}))
    with pytest.raises(ValueError, match="ssd_bidirectional: z must be"):
        ssd_bidirectional(**both, z=ZERO(2, 5, 4))
    with pytest.raises(ValueError, match="ssd_bidirectional: chunk must be"):
        ssd_bidirectional(**both, chunk=7)


def test_triton_in_float64():
    with pytest.raises(ValueError, match="ssd: impl='triton' cannot run here: float64"):
        ssd(**ssd_inputs(1, 2, 2, 1, 1, dtype=torch.float64).kwargs(), impl="triton")


def test_mamba_ssm_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    with pytest.raises(ValueError, match=r"install the extra ssm-kernels\[mamba-ssm\]"):
        ssd(**ssd_inputs(1, 2, 2, 1, 1).kwargs(), impl="mamba_ssm")


def test_what_mamba_ssm_lacks_is_named():
    inputs = ssd_inputs(1, 2, 2, 1, 1).kwargs() | {"initial_state": None}
    with pytest.raises(ValueError, match=r"ssd: impl='mamba_ssm' does not support reverse=True"):
        ssd(**inputs, reverse=True, impl="mamba_ssm")
    with pytest.raises(ValueError, match=r"ssd: impl='mamba_ssm' does not support cu_seqlens"):
        ssd(**inputs, cu_seqlens=torch.tensor([0, 2]), impl="mamba_ssm")


def test_mamba_ssm_is_called_in_its_own_form(monkeypatch):
    """A stand-in for the package computes by our definition: arguments arrive where they belong."""
    seen = {}

    def mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size, **options):
        seen.update(options, chunk_size=chunk_size, dtypes=(dt.dtype, A.dtype))
        return ssd_reference(
            x, dt, A, B, C, options["D"], options["z"], options["dt_bias"], options["initial_states"], None,
            dt_softplus=options["dt_softplus"],
        )  # fmt: skip

    module = ModuleType("mamba_ssm.ops.triton.ssd_combined")
    module.mamba_chunk_scan_combined = mamba_chunk_scan_combined
    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    inputs = ssd_inputs(1, 9, 2, 3, 2, dtype=torch.bfloat16).kwargs()
    options = {"dt_softplus": True, "return_final_state": True}
    found, wanted = (ssd(**inputs, **options, impl=impl) for impl in ("mamba_ssm", "reference"))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert seen["return_final_states"] and seen["dtypes"] == (torch.bfloat16, torch.float32)

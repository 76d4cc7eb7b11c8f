"""`ssd` and `ssd_step` give the numbers of mamba-ssm's reference functions.

The files hold float32 inputs, float64 results of the published code, and an absolute tolerance per tensor for float32
(ten times the error of its own float32 run).
"""

import json
from pathlib import Path

import pytest
import torch
from ssm_kernels.ops.ssd import ssd
from ssm_kernels.ops.ssd_step import ssd_step
from torch.nn import functional as F

DATA = Path(__file__).parent / "data"
DTYPES = {"F64": torch.float64, "F32": torch.float32}
WHERE = [
    ("cpu", torch.float64, "torch"),
    ("cpu", torch.float64, "reference"),
    ("cpu", torch.float32, "torch"),
    pytest.param("cuda", torch.float32, "triton", marks=pytest.mark.gpu),
]


def golden(name):
    """Read a safetensors file (its length, a JSON header, the numbers): this package does not depend on the library."""
    content = bytearray((DATA / f"{name}.safetensors").read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    metadata = header.pop("__metadata__")
    tensors = {}
    for key, entry in header.items():
        begin, end = entry["data_offsets"]
        numbers = torch.frombuffer(content[start + begin : start + end], dtype=DTYPES[entry["dtype"]])
        tensors[key] = numbers.reshape(entry["shape"])
    return tensors, json.loads(metadata["float32_atol"])


def inputs_of(tensors, dtype, device):
    found = {key[6:]: x.to(device, dtype) for key, x in tensors.items() if key.startswith("input.")}
    return {name: x.requires_grad_() for name, x in found.items()}


def assert_equal(found, tensors, tolerances, dtype):
    for key, value in found.items():
        truth = tensors[key]
        allowed = 1e-12 * truth.abs().max().clamp_min(1).item() if dtype == torch.float64 else tolerances[key]
        error = (value.detach().cpu() - truth).abs().max().item()
        assert error <= allowed, f"{key}: {error:.1e}, allowed {allowed:.1e}"


@pytest.mark.parametrize(("device", "dtype", "impl"), WHERE)
def test_chunk_scan_combined(device, dtype, impl):
    """D, z, bias, softplus, two groups; an initial state; rows of no whole chunks; D per channel; all gradients."""
    tensors, tolerances = golden("mamba_ssd")
    given = inputs_of(tensors, dtype, device)
    initial, per_channel = given.pop("initial_states"), given.pop("D_headdim")
    options = {"dt_softplus": True, "return_final_state": True, "impl": impl, "chunk": 16}
    y, final = ssd(**given, **options)
    found = {"output.y": y, "output.final_state": final}
    grads = torch.autograd.grad(y, list(given.values()), tensors["grad.output.y"].to(y))
    found |= {f"grad.input.{name}": grad for name, grad in zip(given, grads, strict=True)}
    found["output.initial.y"], found["output.initial.final_state"] = ssd(**given, initial_state=initial, **options)
    ragged = {name: x[:, :21] if name in ("x", "dt", "B", "C", "z") else x for name, x in given.items()}
    found["output.ragged.y"], found["output.ragged.final_state"] = ssd(**ragged, **options)
    found["output.D_headdim.y"] = ssd(**(given | {"D": per_channel}), **options)[0]
    plain = {name: x for name, x in given.items() if name not in ("D", "z")}
    found["output.plain.y"] = ssd(**plain, **options)[0]
    assert_equal(found, tensors, tolerances, dtype)


@pytest.mark.parametrize(("device", "dtype", "impl"), WHERE)
def test_limited_steps(device, dtype, impl):
    """dt_limit is a clamp of the finished step in front of the scan."""
    tensors, tolerances = golden("mamba_ssd")
    given = inputs_of(tensors, dtype, device)
    delta = F.softplus(given["dt"] + given["dt_bias"]).clamp(0.1, 0.8)
    y = ssd(given["x"], delta, given["A"], given["B"], given["C"], given["D"], impl=impl)
    assert_equal({"output.dt_limit.y": y}, tensors, tolerances, dtype)


@pytest.mark.parametrize(("device", "dtype", "impl"), WHERE)
def test_minimal_discrete(device, dtype, impl):
    """The form of the paper: a decay per step and head that nothing else depends on, X already multiplied by dt."""
    tensors, tolerances = golden("mamba_ssd_minimal")
    given = inputs_of(tensors, dtype, device)
    # dt = -log decay makes exp(dt * -1) the decay; X / dt takes it out of the input again
    dt = -given["A"]
    x = given["X"] / dt[..., None]
    options = {"return_final_state": True, "impl": impl}
    y, final = ssd(x, dt, -torch.ones(3).to(x), given["B"], given["C"], **options)
    found = {"output.y": y, "output.final_state": final}
    leaves = [given[name] for name in ("X", "A", "B", "C")]
    grads = torch.autograd.grad(y, leaves, tensors["grad.output.y"].to(y))
    found |= {f"grad.input.{name}": grad for name, grad in zip(("X", "A", "B", "C"), grads, strict=True)}
    initial = given["initial_states"][:, 0]
    y, final = ssd(x, dt, -torch.ones(3).to(x), given["B"], given["C"], initial_state=initial, **options)
    found |= {"output.initial.y": y, "output.initial.final_state": final}
    assert_equal(found, tensors, tolerances, dtype)


@pytest.mark.parametrize(("device", "dtype", "impl"), WHERE)
def test_state_update_with_one_rate_per_head(device, dtype, impl):
    """selective_state_update with heads, where all channels of a head share dt, A and bias, is one step of ssd."""
    tensors, _ = golden("mamba_state_update_heads")
    given = {name: x.detach() for name, x in inputs_of(tensors, dtype, device).items()}
    shared = {"dt": given["dt"][..., 0], "A": given["A"][:, 0, 0], "dt_bias": given["dt_bias"][:, 0]}
    y, state = ssd_step(**(given | shared), dt_softplus=True, impl=impl)
    delta = F.softplus(shared["dt"] + shared["dt_bias"])
    B, C = (given[name].repeat_interleave(2, 1)[:, :, None] for name in "BC")
    wanted = torch.exp(delta * shared["A"])[..., None, None] * given["state"]
    wanted = wanted + (delta[..., None] * given["x"])[..., None] * B
    out = ((wanted * C).sum(-1) + given["D"] * given["x"]) * F.silu(given["z"])
    rounding = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(state, wanted, **rounding)
    torch.testing.assert_close(y, out, **rounding)

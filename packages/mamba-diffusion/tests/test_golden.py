"""The legacy networks compute what the origin's do: outputs, every module on the way, gradients, its Heun sampler."""

import json

import numpy as np
import pytest
import torch
from mamba_diffusion.condition import Condition
from mamba_diffusion.config import ModelConfig
from mamba_diffusion.model import SparseField
from mamba_diffusion.samplers import SamplerConfig, integrate
from mamba_diffusion.weights import load_model


def build(case, kind: str) -> SparseField:
    said = json.loads(case.meta["config"])
    config = ModelConfig(
        kind=kind,
        width=said["d_model"],
        layers=said["num_layers"],
        mixer="legacy",
        heads=said["heads"],
        iterations=said.get("perceiver_iterations", 1),
        fourier=said["num_fourier_feats"],
        fourier_cap=None,
        order="given",
        standardise=False,
        noise_length=0.0,
    )
    model = SparseField(config)
    state = {k: torch.from_numpy(v) for k, v in case.under("state.").items()}
    model.network.load_state_dict(state)  # strict: the origin's keys are ours
    return model.double().eval()


def inputs(case) -> dict[str, torch.Tensor]:
    return {k: torch.from_numpy(v).double().requires_grad_(k != "cotangent") for k, v in case.under("input.").items()}


def velocity(model: SparseField, x: dict[str, torch.Tensor], z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    one = torch.ones_like(z)
    return model(z, t, Condition(x["input_coords"], x["input_values"], x["query_coords"], 0 * one, one))


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_velocity_and_gradients_are_the_origins(golden, kind):
    case = golden(f"diffusion-{kind}-legacy")
    model, x = build(case, kind), inputs(case)
    output = velocity(model, x, x["noisy_values"], x["t"])
    np.testing.assert_allclose(output.detach(), case["output.velocity"], rtol=0, atol=1e-9)
    (output * x["cotangent"]).sum().backward()
    for name, wanted in case.under("grad.input.").items():
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(x[name].grad / scale, wanted / scale, rtol=0, atol=1e-9, err_msg=name)
    parameters = dict(model.network.named_parameters())
    for name, wanted in case.under("grad.state.").items():
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(parameters[name].grad / scale, wanted / scale, rtol=0, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_every_module_on_the_way(golden, kind):
    case = golden(f"diffusion-{kind}-legacy")
    model, x = build(case, kind), inputs(case)
    seen = {}
    for name in case.under("mid."):
        module = model.network.get_submodule(name)
        module.register_forward_hook(lambda m, i, o, n=name: seen.setdefault(n, []).append(o.detach()))
    velocity(model, x, x["noisy_values"], x["t"])
    for name, wanted in case.under("mid.").items():
        found = next(o for o in seen[name] if o.shape == wanted.shape)  # fourier runs for sensors and queries
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_heun_is_the_origins(golden, kind):
    case = golden(f"diffusion-{kind}-legacy")
    model, x = build(case, kind), inputs(case)
    with torch.no_grad():
        z = integrate(
            lambda z, t: velocity(model, x, z, torch.full((2,), t, dtype=torch.float64)),
            x["noise"].detach(),
            SamplerConfig(steps=4),
        )
    np.testing.assert_allclose(z, case["output.heun4_unclipped"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(z.clamp(0, 1), case["output.heun4"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_float32_stays_within_the_suggested_tolerance(golden, kind):
    case = golden(f"diffusion-{kind}-legacy")
    model, x = build(case, kind).float(), {k: v.detach().float() for k, v in inputs(case).items()}
    allowed = json.loads(case.meta["suggested_atol_float32"])["output.velocity"]
    found = velocity(model, x, x["noisy_values"], x["t"]).detach()
    np.testing.assert_allclose(found, case["output.velocity"], rtol=0, atol=allowed)


def test_checkpoint_of_the_origin_loads(golden, tmp_path):
    """A .pth with the origin's training state; sizes come from the parameters."""
    case = golden("diffusion-v2-legacy")
    state = {k: torch.from_numpy(v) for k, v in case.under("state.").items()}
    torch.save({"epoch": 3, "model_state_dict": state, "best_val_loss": 0.1}, tmp_path / "mamba_v2_best.pth")
    model = load_model(tmp_path / "mamba_v2_best.pth")
    assert (model.config.kind, model.config.width, model.config.layers, model.config.iterations) == ("v2", 32, 4, 2)
    assert torch.equal(model.network.state_dict()["decoder.7.weight"], state["decoder.7.weight"])


def test_tokens_in_chunks_do_not_change_the_legacy_scan(monkeypatch):
    from mamba_diffusion import legacy

    torch.manual_seed(0)
    scan = legacy.LegacyScan(8, 4, 0.0).double()
    u = torch.randn(2, 50, 8, dtype=torch.float64)
    whole = scan(u)
    monkeypatch.setattr(legacy, "CHUNK", 7)
    torch.testing.assert_close(scan(u), whole, rtol=0, atol=1e-12)

"""Samplers on a Gaussian whose exact flow is known: orders, marginals, and diffusers as a second opinion."""

import math

import numpy as np
import pytest
import torch
from mamba_diffusion.samplers import SamplerConfig, integrate, times

MEAN, STD = 2.0, 0.3


def velocity(z: torch.Tensor, t: float) -> torch.Tensor:
    """The exact velocity where the data is Gaussian, E[z_1 - e | z_t]."""
    variance = (1 - t) ** 2 + (t * STD) ** 2
    away = (z - t * MEAN) / variance
    return MEAN + t * STD**2 * away - (1 - t) * away


def normal(count: int = 20_000) -> torch.Tensor:
    """Return quantiles of the normal distribution: no sampling error."""
    places = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return math.sqrt(2) * torch.erfinv(2 * places - 1)


def error(sampler: str, steps: int) -> float:
    noise = normal(2_000)
    found = integrate(velocity, noise, SamplerConfig(sampler=sampler, steps=steps))
    return float((found - (MEAN + STD * noise)).abs().mean())


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("heun", 2)])
def test_convergence_order(sampler, order):
    steps = [20, 40, 80]
    errors = [error(sampler, n) for n in steps]
    found = math.log(errors[-2] / errors[-1]) / math.log(steps[-1] / steps[-2])
    assert order - 0.15 < found < order + 0.3


def test_figures_of_euler_and_heun():
    """Mean errors at 10, 20, 40 steps as an independent implementation found them."""
    assert [round(error("euler", n), 4) for n in (10, 20, 40)] == pytest.approx([0.0426, 0.0222, 0.0113], abs=2e-3)
    assert [round(error("heun", n), 4) for n in (10, 20, 40)] == pytest.approx([0.0025, 0.0007, 0.0002], abs=3e-4)


@pytest.mark.parametrize(
    "cfg",
    [
        SamplerConfig(sampler="sde", steps=200, temperature=0.5),
        SamplerConfig(sampler="sde", steps=200, temperature=1.0),
        SamplerConfig(sampler="ddim", steps=200, eta=0.3),
        SamplerConfig(sampler="ddim", steps=200, eta=1.0),
        SamplerConfig(sampler="heun", steps=20, grid="refined"),
    ],
    ids=lambda c: f"{c.sampler}-{c.temperature}-{c.eta}-{c.grid}",
)
def test_marginals_are_kept(cfg):
    """The origin's SDE widened 0.300 to 0.316 or more: it added noise without the score."""
    generator = torch.Generator().manual_seed(0)
    noise = normal()[torch.randperm(20_000, generator=generator)]
    fresh = lambda: torch.randn(noise.shape, generator=generator, dtype=torch.float64)  # noqa: E731
    found = integrate(velocity, noise, cfg, fresh=fresh)
    assert float(found.mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(found.std()) == pytest.approx(STD, abs=0.011)


@pytest.mark.parametrize("cfg", [SamplerConfig(sampler="sde", temperature=0.0), SamplerConfig(sampler="ddim", eta=0.0)])
def test_without_fresh_noise_they_are_euler(cfg):
    noise = normal(50)
    found = integrate(velocity, noise, cfg, fresh=lambda: noise)
    torch.testing.assert_close(found, integrate(velocity, noise, SamplerConfig(sampler="euler")))


def test_refined_times_are_close_together_at_the_data():
    steps = np.diff(times(SamplerConfig(steps=8, grid="refined")))
    assert (np.diff(steps) < 0).all()
    assert steps.sum() == pytest.approx(1)


def test_unipc_of_diffusers_beats_euler():
    found = integrate(velocity, normal(500).float()[None, :, None], SamplerConfig(sampler="unipc", steps=20))
    assert float(found.std()) == pytest.approx(STD, abs=0.004)
    assert float(found.mean()) == pytest.approx(MEAN, abs=0.01)


def test_euler_is_the_scheduler_of_diffusers():
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    noise, steps = normal(100).float(), 10
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist())
    z = noise
    for sigma, timestep in zip(scheduler.sigmas, scheduler.timesteps, strict=False):
        z = scheduler.step(-velocity(z, 1 - float(sigma)), timestep, z, return_dict=False)[0]
    ours = integrate(velocity, noise, SamplerConfig(sampler="euler", steps=steps))
    torch.testing.assert_close(z, ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"sampler": "magic"}, "sampler must be one of heun, euler"),
        ({"eta": 2.0}, r"eta must be in \[0, 1\]"),
        ({"temperature": -1.0}, "temperature must be at least 0"),
    ],
)
def test_bad_settings(values, said):
    with pytest.raises(ValueError, match=said):
        SamplerConfig(**values)
    with pytest.raises(ValueError, match="without fresh noise"):
        integrate(velocity, normal(3), SamplerConfig(sampler="sde"))

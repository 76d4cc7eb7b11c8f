"""diffusers' UniPC on our flow: its time runs from noise level 1 to 0 and its velocity points the other way."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .samplers import SamplerConfig, Velocity


def unipc(
    velocity: Velocity,
    noise: Tensor,
    cfg: SamplerConfig,
    keep: Callable[[Tensor, float], Tensor],
    seen: Callable[[float, Tensor], None] | None,
) -> Tensor:
    """Follow the flow with one evaluation a step.

    Args:
        velocity: dz/dt.
        noise: z at t = 0.
        cfg: Its steps; the grid is the scheduler's.
        keep: As `enforce` of `integrate`.
        seen: As there.

    Raises:
        ValueError: diffusers is not installed.

    Source: Zhao et al. 2023, arXiv:2302.04867.
    """
    try:
        from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
    except ModuleNotFoundError as error:
        raise ValueError("sampler unipc needs diffusers; pip install 'mamba-diffusion[diffusers]'") from error
    scheduler = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=1.0)
    scheduler.set_timesteps(cfg.steps)
    z = noise
    levels = [float(sigma) for sigma in scheduler.sigmas]  # its timesteps are rounded to whole numbers
    for number, timestep in enumerate(scheduler.timesteps):
        v = velocity(z, 1 - levels[number])
        z = keep(scheduler.step(-v, timestep, z, return_dict=False)[0], 1 - levels[number + 1])
        if seen is not None:
            seen(1 - levels[number + 1], z)
    return z

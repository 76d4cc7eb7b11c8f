"""The decoding steps as a diffusers scheduler, with the calls and random numbers of `AmusedScheduler`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.outputs import BaseOutput
from torch import Tensor

from .decoding import DecodeOptions, decode_step
from .decoding import hidden_share as share_after


@dataclass
class MuseMambaSchedulerOutput(BaseOutput):
    """Tokens after a step: `prev_sample` with hidden ones, `pred_original_sample` without."""

    prev_sample: Tensor
    pred_original_sample: Tensor


class MuseMambaScheduler(SchedulerMixin, ConfigMixin):
    """Iterative parallel decoding, step by step.

    Args:
        mask_token_id: Id of a hidden token.
        masking_schedule: "cosine" or "linear".
        order: "confidence", "halton" or "random".
        sample_temperature: Of the distribution that tokens are drawn from.
        top_k: Draw from the k likeliest codes; 0 from all.
        revise: Let settled tokens be hidden again.

    Source: MaskGIT (arXiv:2202.04200); with the defaults a step is that of diffusers' AmusedScheduler.
    """

    order = 1  # diffusers' meaning: model calls per step
    temperatures: Tensor | None
    timesteps: Tensor | None

    @register_to_config
    def __init__(
        self,
        mask_token_id: int,
        masking_schedule: str = "cosine",
        order: str = "confidence",
        sample_temperature: float = 1.0,
        top_k: int = 0,
        revise: bool = False,
    ) -> None:
        self.temperatures = None
        self.timesteps = None

    def set_timesteps(
        self,
        num_inference_steps: int,
        temperature: float | tuple[float, float] = (2.0, 0.0),
        device: torch.device | str | None = None,
    ) -> None:
        """Plan the steps.

        Args:
            num_inference_steps: How many.
            temperature: Of the noise on the confidence, first and last step; one number falls to 0.01.
            device: Of the time steps.
        """
        first, last = temperature if isinstance(temperature, tuple | list) else (temperature, 0.01)
        self.timesteps = torch.arange(num_inference_steps, device=device).flip(0)
        self.temperatures = torch.linspace(first, last, num_inference_steps, device=device)

    def options(self) -> DecodeOptions:
        """Return the options of `decode_step` for the planned steps."""
        assert self.temperatures is not None, "call set_timesteps first"
        config = self.config
        return DecodeOptions(
            steps=len(self.temperatures),
            mask_temperature=(float(self.temperatures[0]), float(self.temperatures[-1])),
            schedule=config["masking_schedule"],
            order=config["order"],
            sample_temperature=config["sample_temperature"],
            top_k=config["top_k"],
            revise=config["revise"],
        )

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        starting_mask_ratio: float = 1.0,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
        scores: Tensor | None = None,
        fixed: Tensor | None = None,
    ) -> MuseMambaSchedulerOutput | tuple[Tensor, Tensor]:
        """Draw tokens and hide some again.

        Args:
            model_output: Logits, (B, L, V), or (B, V, h, w) beside a sample (B, h, w).
            timestep: One of `timesteps`; they fall to 0.
            sample: Tokens, (B, L) or (B, h, w).
            starting_mask_ratio: Share of tokens that was hidden at the start.
            generator: Where random numbers come from.
            return_dict: Return an object instead of a tuple.
            scores: A critic's probability that each token is wrong, (B, L).
            fixed: (B, L) bool: tokens that are never hidden again.
        """
        grid = (int(sample.shape[1]), int(sample.shape[2])) if sample.ndim == 3 else self._grid(sample.shape[1])
        logits = model_output.flatten(2).mT if model_output.ndim == 4 else model_output
        options = self.options()
        after, whole = decode_step(
            logits,
            sample.flatten(1),
            options.steps - 1 - int(timestep),
            options,
            hidden=self.config["mask_token_id"],
            start=starting_mask_ratio,
            grid=grid,
            scores=scores,
            fixed=fixed,
            generator=generator,
        )
        after, whole = after.view_as(sample), whole.view_as(sample)
        if not return_dict:
            return after, whole
        return MuseMambaSchedulerOutput(prev_sample=after, pred_original_sample=whole)

    def add_noise(self, sample: Tensor, timesteps: int, generator: torch.Generator | None = None) -> Tensor:
        """Hide as many random tokens as are hidden at a time step, as image variation begins with."""
        options = self.options()
        step = options.steps - 1 - int(timesteps)
        share = share_after(step, options.steps, options.schedule)
        device = sample.device if generator is None else generator.device
        hidden = torch.rand(sample.shape, generator=generator, device=device).to(sample.device) < share
        return torch.where(hidden, self.config["mask_token_id"], sample)

    @staticmethod
    def _grid(length: int) -> tuple[int, int]:
        side = round(length**0.5)
        return (side, side) if side * side == length else (1, length)

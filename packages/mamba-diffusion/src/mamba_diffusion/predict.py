"""Samples of whole fields: the sensors in, K fields out, in chunks that fit the memory.

Ni sensors, Nq queries, C channels, d axes, K samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .condition import Condition
from .kriging import nearest, offsets
from .model import SparseField
from .process import make_noise, noise_numbers
from .samplers import SamplerConfig, integrate

SAME_PLACE = 1e-5  # of the domain
CHUNK = 1 << 14  # queries decoded at once, over all samples
CHUNK_CPU = 1 << 10  # likewise: what its caches hold
TOKENS = 1 << 17  # sensors and anchors that run together, over all samples
PAIRS = 1 << 25  # pairs of tokens that the seed's networks look at together, over all samples
MOST_PAIRS = 1 << 34  # of one field: beyond, a sample takes minutes on any device


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What is asked of a model.

    Attributes:
        samples: K.
        sampler: How one is drawn.
        seed: Of the noise; the same seed gives the same samples.
        noise_std: How observed values are enforced where a query lies on a sensor: None leaves them to the network, 0
            puts them there exactly, more adds the sensor's own error, in the unit of the values.
        chunk: Queries decoded at once, over all samples; None takes 16,384 on a GPU and 1,024 on a CPU. The samples do
            not depend on it.
        bf16: Run the network in bfloat16; kriging and the path stay float32.
    """

    samples: int = 1
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    seed: int = 0
    noise_std: float | None = None
    chunk: int | None = None
    bf16: bool = False

    def __post_init__(self) -> None:
        """Refuse what gives no sample."""
        if self.samples < 1:
            raise ValueError(f"Prediction: samples must be at least 1, got {self.samples}; change --samples")
        if self.noise_std is not None and self.noise_std < 0:
            raise ValueError(f"Prediction: noise_std must be at least 0, got {self.noise_std}; change --noise-std")
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"Prediction: chunk must be at least 1, got {self.chunk}; change --chunk")


class Noise:
    """Draws noise, one sample after another, on the CPU, so that every device sees the same.

    Samples come in pairs, 0 and 1, 2 and 3, ... with opposite noise: each is as likely as the other, and what noise
    adds to their mean nearly cancels.

    Args:
        model: For its kind of noise.
        seeds: One a field.
        samples: K, of every field.
        coords: Where it is wanted, (fields * K or 1, Nq, d).
    """

    def __init__(self, model: SparseField, seeds: Sequence[int], samples: int, coords: Tensor) -> None:
        self.config, self.coords = model.config, coords
        self.streams = [[np.random.default_rng((seed, n)) for n in range((samples + 1) // 2)] for seed in seeds]
        first = [(samples + 1) // 2 * field for field in range(len(seeds))]
        self.pair = torch.tensor([a + n // 2 for a in first for n in range(samples)], device=coords.device)
        signs = [-1.0 if n % 2 else 1.0 for _ in seeds for n in range(samples)]
        self.sign = torch.tensor(signs, device=coords.device)[:, None, None]

    def __call__(self) -> Tensor:
        """Return new noise, (fields * K, Nq, C) float32."""
        drawn = [noise_numbers(rng, self.config, self.coords.shape[1]) for field in self.streams for rng in field]
        numbers = {k: torch.from_numpy(np.stack([d[k] for d in drawn])).to(self.coords.device) for k in drawn[0]}
        return self.sign * make_noise({k: x[self.pair] for k, x in numbers.items()}, self.coords)


@torch.inference_mode()
def sample_fields(
    model: SparseField,
    coords: Tensor,
    values: Tensor,
    queries: Tensor,
    asked: Prediction,
    *,
    seeds: Sequence[int] | None = None,
    seen: Callable[[float, Tensor], None] | None = None,
) -> Tensor:
    """Draw K samples of every field.

    Args:
        model: With its weights, on the device of the tensors.
        coords: Places of the sensors, (B, Ni, d) in [0, 1].
        values: Their values, (B, Ni, C), in the data's unit.
        queries: Where the fields are wanted, (B, Nq, d) in [0, 1].
        asked: How many, and how.
        seeds: Of the noise, one a field; None gives field n the seed `asked.seed` + n.
        seen: Told the time and all samples (B * K, Nq, C) in the data's unit after every step.

    Returns:
        (B, K, Nq, C) float32, in the data's unit.

    Raises:
        ValueError: A shape is wrong, or the queries do not fit a network that cannot decode them in chunks.
    """
    given = model.prepare(coords, values, queries)
    fields, rows = coords.shape[0], fields_at_once(model, coords.shape[1], queries.shape[1])
    total = fields * asked.samples
    whole = given.repeat(asked.samples)
    seeds = range(asked.seed, asked.seed + fields) if seeds is None else seeds
    noise = Noise(model, seeds, asked.samples, whole.query_coords)
    start = noise()

    def velocity(z: Tensor, t: float) -> Tensor:
        parts = []
        for first in range(0, total, rows):
            part = slice(first, min(total, first + rows))
            time = torch.full((part.stop - first,), t, device=z.device)
            chunk = decode_at_once(model, part.stop - first, asked.chunk)
            with torch.autocast(z.device.type, torch.bfloat16, enabled=asked.bf16):
                parts.append(model(z[part], time, whole.fields(part), chunk))
        return torch.cat(parts)

    def tell(t: float, z: Tensor) -> None:
        assert seen is not None
        seen(t, model.to_field(z, whole))

    enforce = None if asked.noise_std is None else enforcer(model, whole, values, start, asked)
    z = integrate(velocity, start, asked.sampler, fresh=noise, enforce=enforce, seen=None if seen is None else tell)
    return model.to_field(z, whole).unflatten(0, (fields, asked.samples))


def fields_at_once(model: SparseField, sensors: int, queries: int) -> int:
    """Return how many samples run together.

    Raises:
        ValueError: Not even one fits: the network looks at pairs of all queries.
    """
    if model.config.kind == "ours":
        return max(1, TOKENS // (sensors + min(queries, model.config.anchors)))
    pairs = (sensors + queries) ** 2
    if pairs > MOST_PAIRS:
        raise ValueError(
            f"sample_fields: sensors and queries must be at most {math.isqrt(MOST_PAIRS)} together for kind="
            f"{model.config.kind}, got {sensors} and {queries}: all of them look at one another; ask for a smaller "
            "grid, give fewer sensors, or use a model of kind ours"
        )
    return max(1, PAIRS // pairs)


def decode_at_once(model: SparseField, fields: int, chunk: int | None) -> int | None:
    """Return the queries a field that are decoded together; None for networks that need them all."""
    if model.config.kind != "ours":
        return None
    usual = CHUNK_CPU if model.mean.device.type == "cpu" else CHUNK
    return max(1, (chunk or usual) // fields)


def enforcer(
    model: SparseField, given: Condition, values: Tensor, start: Tensor, asked: Prediction
) -> Callable[[Tensor, float], Tensor]:
    """Return what puts observed values where queries lie on sensors, at every time on the straight path to them.

    With a sensor error every sample gets its own draw of it, so that the spread of the samples there is that error.
    """
    which = nearest(given.query_coords, given.input_coords, 1, model.config.wraps)[..., 0]
    place = given.input_coords.gather(1, which[..., None].expand(-1, -1, model.config.dims))
    on_sensor = (offsets(given.query_coords, place, model.config.wraps).abs() < SAME_PLACE).all(-1, keepdim=True)
    seen = values.repeat_interleave(asked.samples, 0)
    observed = seen.gather(1, which[..., None].expand(-1, -1, model.config.channels))
    if asked.noise_std:
        generator = torch.Generator().manual_seed(asked.seed)
        error = torch.randn(seen.shape, generator=generator).to(seen.device)
        observed = observed + asked.noise_std * error.gather(1, which[..., None].expand_as(observed))
    target = model.to_flow(observed, given)

    def put(z: Tensor, t: float) -> Tensor:
        return torch.where(on_sensor, (1 - t) * start + t * target, z)

    return put

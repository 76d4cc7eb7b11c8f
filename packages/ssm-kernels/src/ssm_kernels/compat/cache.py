"""Where mamba-ssm's mixers keep their states while text is generated. B is the batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from ..ops.checks import refuse

State = tuple[Tensor, Tensor]  # of the convolution, of the scan


@dataclass
class InferenceParams:
    """What `mamba_ssm.utils.generation.InferenceParams` holds.

    Attributes:
        max_seqlen: Length to generate to.
        max_batch_size: Rows.
        seqlen_offset: Tokens seen so far.
        batch_size_offset: Not used by the mixers.
        key_value_memory_dict: States by layer number.
        lengths_per_sample: Tokens of each row, (B,).
    """

    max_seqlen: int
    max_batch_size: int
    seqlen_offset: int = 0
    batch_size_offset: int = 0
    key_value_memory_dict: dict[int, State] = field(default_factory=dict)
    lengths_per_sample: Tensor | None = None

    def reset(self, max_seqlen: int, max_batch_size: int) -> None:
        """Begin anew; the states stay where they are."""
        self.max_seqlen, self.max_batch_size, self.seqlen_offset = max_seqlen, max_batch_size, 0
        if self.lengths_per_sample is not None:
            self.lengths_per_sample.zero_()


class Cached(Protocol):
    """A mixer that keeps states."""

    layer_idx: int | None

    def allocate_inference_cache(self, batch_size: int, max_seqlen: int, dtype: Any = None, **kwargs: Any) -> State:
        """Give zero states."""
        ...


def state_of(mixer: Cached, inference_params: InferenceParams, batch_size: int, initialize_states: bool) -> State:
    """Give the states of a layer, zero ones the first time or where `initialize_states` asks for it.

    Raises:
        ValueError: The mixer has no `layer_idx`, or its states are of another batch.
    """
    if mixer.layer_idx is None:
        refuse(type(mixer).__name__, "layer_idx", "a number with inference_params", None, "give one when building it")
    kept = inference_params.key_value_memory_dict
    if mixer.layer_idx not in kept:
        kept[mixer.layer_idx] = mixer.allocate_inference_cache(batch_size, inference_params.max_seqlen)
    state = kept[mixer.layer_idx]
    if state[0].shape[0] != batch_size:
        found = f"states of {state[0].shape[0]} rows"
        refuse(type(mixer).__name__, "inference_params", f"of {batch_size} rows", found, "begin with a new one")
    if initialize_states:
        for part in state:
            part.zero_()
    return state

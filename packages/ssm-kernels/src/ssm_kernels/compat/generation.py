"""mamba-ssm's text generation, as in `mamba_ssm.utils.generation`. Letters: B batch, L length, V vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..ops.checks import refuse
from .cache import InferenceParams


@dataclass
class Generated:
    """What `generate` returns with `return_dict_in_generate`.

    Attributes:
        sequences: Prompt and new tokens, (B, L).
        scores: Logits that each new token was drawn from, (B, V) each; None unless asked for.
    """

    sequences: Tensor
    scores: tuple[Tensor, ...] | None


class Streamer(Protocol):
    """Takes tokens as they come."""

    def put(self, value: Tensor) -> None:
        """Take the next tokens."""
        ...

    def end(self) -> None:
        """Take note that there are no more."""
        ...


class GenerationMixin:
    """Gives a model `generate`.

    The model is called as model(input_ids, position_ids=..., inference_params=..., num_last_tokens=1) and returns an
    object with `logits` (B, 1, V).
    """

    def generate(
        self,
        input_ids: Tensor,
        max_length: int,
        top_k: int = 1,
        top_p: float = 0.0,
        min_p: float = 0.0,
        temperature: float = 1.0,
        return_dict_in_generate: bool = False,
        output_scores: bool = False,
        **kwargs: Any,
    ) -> Tensor | Generated:
        """Continue (B, L) tokens up to `max_length`; see `decode`.

        Returns:
            (B, max_length) or less where a row of end tokens ended it; with `return_dict_in_generate` a `Generated`.
        """
        done = decode(
            input_ids, self, max_length, top_k, top_p, min_p, temperature, output_scores=output_scores, **kwargs
        )
        return done if return_dict_in_generate else done.sequences


@torch.inference_mode()
def decode(
    input_ids: Tensor,
    model: Any,
    max_length: int,
    top_k: int = 1,
    top_p: float = 0.0,
    min_p: float = 0.0,
    temperature: float = 1.0,
    repetition_penalty: float = 1.0,
    eos_token_id: int | None = None,
    teacher_outputs: Tensor | None = None,
    vocab_size: int | None = None,
    cg: bool = False,
    enable_timing: bool = False,
    output_scores: bool = False,
    streamer: Streamer | None = None,
) -> Generated:
    """Generate token by token with the states of the mixers.

    Args:
        input_ids: Prompts of one length, (B, L).
        model: See `GenerationMixin`.
        max_length: Prompt and new tokens.
        top_k: Draw from the k most probable tokens; 1 takes the most probable one, 0 draws from all.
        top_p: With k > 1, draw from the most probable tokens that together have this probability; 0 is off.
        min_p: With k = 0, leave out tokens below this share of the most probable one's probability; 0 is off.
        temperature: Divides the logits.
        repetition_penalty: Above 1 makes tokens that were there less probable.
        eos_token_id: Stop when every row has it.
        teacher_outputs: Tokens to take in place of drawn ones, (B, L).
        vocab_size: Leave out what lies behind in padded logits.
        cg: Accepted; no CUDA graph is captured.
        enable_timing: Accepted, without effect.
        output_scores: Keep the logits.
        streamer: Takes the tokens as they come.

    Returns:
        Tokens and, if asked for, logits.
    """
    cache = InferenceParams(max_seqlen=max_length, max_batch_size=input_ids.shape[0])
    sequences, scores, token = input_ids, [], input_ids
    if streamer is not None:
        streamer.put(input_ids.cpu())
    while True:
        logits = _logits(model, token, cache)[..., :vocab_size]
        if output_scores:
            scores.append(logits.clone())
        cache.seqlen_offset += token.shape[1]
        if teacher_outputs is not None and teacher_outputs.shape[1] > cache.seqlen_offset:
            token = teacher_outputs[:, cache.seqlen_offset].unsqueeze(1)
        else:
            penalised = modify_logit_for_repetition_penalty(logits, sequences, repetition_penalty)
            token = sample(penalised, top_k, top_p, min_p, temperature).unsqueeze(1)
        sequences = torch.cat([sequences, token], dim=1)
        if streamer is not None:
            streamer.put(token.cpu())
        ended = eos_token_id is not None and bool((token == eos_token_id).all())
        if ended or cache.seqlen_offset >= max_length - 1:
            break
    if streamer is not None:
        streamer.end()
    return Generated(sequences, tuple(scores) if output_scores else None)


def _logits(model: Any, token: Tensor, cache: InferenceParams) -> Tensor:
    position = None
    if cache.seqlen_offset > 0:
        position = torch.full((token.shape[0], 1), cache.seqlen_offset, dtype=torch.long, device=token.device)
    out = model(token, position_ids=position, inference_params=cache, num_last_tokens=1)
    return out.logits.squeeze(dim=1)


def sample(logits: Tensor, top_k: int = 1, top_p: float = 0.0, min_p: float = 0.0, temperature: float = 1.0) -> Tensor:
    """Draw a token for each row of (B, V) logits, (B,); see `decode` for the rest.

    Raises:
        ValueError: `top_p` is above 1.
    """
    if top_k == 1:
        return logits.argmax(dim=-1)
    if top_p > 1.0:
        refuse("sample", "top_p", "in 0..1", top_p, "0 is off")
    if top_k > 0:
        best, tokens = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
        chosen = torch.multinomial(_within_top_p(best / temperature, top_p).softmax(-1), 1)
        return tokens.gather(-1, chosen).squeeze(-1)
    if min_p > 0.0:
        probabilities = logits.softmax(-1)
        logits = logits.masked_fill(probabilities < min_p * probabilities.amax(-1, keepdim=True), -torch.inf)
        return torch.multinomial((logits / temperature).softmax(-1), 1).squeeze(-1)
    return torch.multinomial(_within_top_p(logits / temperature, top_p).softmax(-1), 1).squeeze(-1)


def _within_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Take away the least probable tokens, as many as together have a probability of at most 1 - top_p."""
    if not 0.0 < top_p < 1.0:
        return logits
    ordered, order = logits.sort(dim=-1)
    out = ordered.softmax(-1).cumsum(-1) <= 1.0 - top_p
    return logits.masked_fill(torch.zeros_like(out).scatter(-1, order, out), -torch.inf)


def modify_logit_for_repetition_penalty(
    logits: Tensor, prev_output_tokens: Tensor, repetition_penalty: float = 1.0
) -> Tensor:
    """Divide positive and multiply negative logits (B, V) of the tokens (B, L) that were there."""
    if repetition_penalty == 1.0:
        return logits
    score = logits.gather(1, prev_output_tokens)
    score = torch.where(score < 0, score * repetition_penalty, score / repetition_penalty)
    return logits.scatter(1, prev_output_tokens, score)

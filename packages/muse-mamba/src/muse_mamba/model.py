"""The token model: image tokens, some of them hidden, and a text in; logits for every token out.

B batch, L image tokens, T text tokens, V codes, d width. Token number V stands for a hidden token.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .blocks import CriticBlock, Judged, ParallelBlock, ScanBlock, TransformerBlock
from .checks import refuse
from .config import CONCATENATED, ModelConfig
from .layers import FeedForward, Text, left_pad, norm
from .pretrained import Pretrained
from .scan import TextMamba
from .weights import MODEL_KIND


class Predicted(NamedTuple):
    """What the model says.

    Attributes:
        logits: (B, L, V).
        states: After the last norm, (B, L, d): for self-conditioning and the "self" critic.
        judged: Per layer of layer-critic; else empty.
    """

    logits: Tensor
    states: Tensor
    judged: list[Judged]


class TokenModel(Pretrained):
    """Predicts hidden image tokens from the others and a text, in one of the ways of `config.METHODS`.

    Args:
        config: What it is made of.
        outputs: Numbers per token that the head gives; None is V.

    Attributes:
        checkpointing: Recompute every block in the backward pass instead of keeping its activations.

    Source: Muse (arXiv:2301.00704); docs/methods.md says how each method is read.
    """

    config_class: ClassVar = ModelConfig
    kind: ClassVar = MODEL_KIND

    def __init__(self, config: ModelConfig, outputs: int | None = None) -> None:
        super().__init__()
        self.config: ModelConfig = config
        self.checkpointing = False
        dim, method = config.dim, config.method
        self.embedding = nn.Embedding(config.vocab + 1, dim)
        self.position = nn.Parameter(torch.randn(config.length, dim) * 0.02)
        nn.init.normal_(self.embedding.weight, std=0.02 if method != "transformer" else 1.0)
        self.text_proj = nn.Identity() if config.text_dim == dim else nn.Linear(config.text_dim, dim, bias=False)
        self.text_norm, self.text_mixer = (
            (norm(dim), TextMamba(config, both=False)) if config.text_mixer == "mamba1" else (None, None)
        )
        self.null = nn.Parameter(torch.randn(1, 1, dim) * 0.02) if config.scans_text else None
        self.blocks = nn.ModuleList(self._block(number) for number in range(config.depth))
        self.over_positions = self._over_positions()
        self.norm = norm(dim)
        self.head = nn.Linear(dim, outputs or config.vocab, bias=False)
        self.recall = FeedForward(dim, config.ff_mult) if config.self_conditioning else None
        self.cond_embedding, self.cond_proj = (None, None)
        if config.cond_vocab:
            self.cond_embedding = nn.Embedding(config.cond_vocab, dim)
            self.cond_proj = nn.Linear(dim, dim, bias=False)
            nn.init.zeros_(self.cond_proj.weight)
        self.critic: nn.Module | None = None
        if config.critic == "self":
            self.critic = nn.Linear(dim, 1)
        elif config.critic != "none":
            self.critic = TokenModel(config.critic_config(), outputs=1)

    def _block(self, number: int) -> nn.Module:
        config = self.config
        textual = config.sees_text(number)
        if config.method == "transformer":
            return TransformerBlock(config, textual=textual)
        if config.method == "layer-critic":
            return CriticBlock(config, number, textual=textual)
        if config.method == "parallel" and textual:
            return ParallelBlock(config, number, scans=number == 0 or config.parallel_text_depth == "all")
        return ScanBlock(config, number, textual=textual)

    def _over_positions(self) -> nn.Linear | None:
        """Return the layer over positions of concat-seq-in and -out, at first one that takes the image tokens."""
        if self.config.method not in ("concat-seq-out", "concat-seq-in"):
            return None
        length, before = self.config.length, self.config.text_length
        layer = nn.Linear(before + length, length, bias=False)
        with torch.no_grad():
            layer.weight.copy_(torch.eye(length, before + length).roll(before, 1))
        return layer

    def forward(
        self,
        ids: Tensor,
        text: Tensor | None,
        text_mask: Tensor | None = None,
        *,
        drop: Tensor | None = None,
        cond_ids: Tensor | None = None,
        previous: Tensor | None = None,
    ) -> Predicted:
        """Predict all tokens.

        Args:
            ids: (B, L) int64 in [0, V]; V is a hidden token.
            text: States of the text encoder, (B, T, Ct); None for no text at all.
            text_mask: (B, T) bool, True for tokens, wherever the pads are. None means no pads.
            drop: (B,) bool: rows that are not told their text.
            cond_ids: Tokens of the smaller picture, (B, Lc), for models with `cond_vocab`.
            previous: `states` of a first pass, (B, L, d), for models with `self_conditioning`.

        Raises:
            ValueError: A shape does not fit.
        """
        self._check(ids, text, text_mask, cond_ids)
        seen = self._text(ids.shape[0], text, text_mask, drop)
        h = self.embedding(ids) + self.position
        if self.recall is not None:
            h = h + self.recall(torch.zeros_like(h) if previous is None else previous.to(h.dtype))
        if self.cond_embedding is not None and self.cond_proj is not None and cond_ids is not None:
            h = h + self.cond_proj(self._spread(self.cond_embedding(cond_ids)))
        judged: list[Judged] = []
        if self.config.method in CONCATENATED:
            h = self._joined(h, seen)
        elif self.config.method == "parallel":
            h = self._parallel(h, seen)
        else:
            for block in self.blocks:
                out = self._run(block, h, seen)
                if isinstance(out, tuple):
                    judged.append(Judged(*out))
                    out = out[0]
                h = cast(Tensor, out)
        if judged:
            h = judged[-1].states  # nothing follows that the last critic could weigh
        states = self.norm(h)
        return Predicted(self.head(states), states, judged)

    def early_logits(self, states: Tensor) -> Tensor:
        """Return what the shared head makes of a layer's states."""
        return self.head(self.norm(states))

    def _joined(self, h: Tensor, seen: Text) -> Tensor:
        """Run blocks over text and picture as one sequence."""
        length, prefix = h.shape[1], seen.states.shape[1]
        sequence, mask = torch.cat([seen.states, h], 1), torch.cat([seen.mask, seen.mask.new_ones(h.shape[:2])], 1)
        layer = self.over_positions
        if layer is not None and self.config.method == "concat-seq-in":
            h = layer(sequence.mT).mT
            for block in self.blocks:
                h = cast(Tensor, self._run(block, h, seen))
            return h
        joined = True
        for number, block in enumerate(self.blocks):
            if joined and not self.config.sees_text(number):
                sequence, joined = self._picture_of(sequence, length), False
            sequence = cast(Tensor, self._run(block, sequence, seen, mask if joined else None, prefix if joined else 0))
        return self._picture_of(sequence, length) if joined else sequence

    def _picture_of(self, sequence: Tensor, length: int) -> Tensor:
        layer = self.over_positions
        return sequence[:, -length:] if layer is None else layer(sequence.mT).mT

    def _parallel(self, h: Tensor, seen: Text) -> Tensor:
        stream, made = seen.states, None
        for block in self.blocks:
            if isinstance(block, ParallelBlock):
                h, stream, made = cast("tuple[Tensor, Tensor, Tensor]", self._run(block, h, stream, seen.mask, made))
            else:
                h = cast(Tensor, self._run(block, h, seen))
        return h

    def _run(self, block: nn.Module, *arguments: object) -> object:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *arguments, use_reentrant=False)
        return block(*arguments)

    def _text(self, rows: int, text: Tensor | None, mask: Tensor | None, drop: Tensor | None) -> Text:
        config = self.config
        if text is None:
            like = self.embedding.weight
            text = like.new_zeros(rows, config.text_length, config.text_dim)
            mask = torch.zeros(text.shape[:2], dtype=torch.bool, device=like.device)
        elif mask is None:
            mask = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
        assert mask is not None
        text = text.to(self.embedding.weight.dtype)
        dropped = ~mask.any(1) if drop is None else drop | ~mask.any(1)
        length = config.text_length if config.fixed_text else min(text.shape[1], config.text_length)
        text, mask = left_pad(text, mask, length)
        states = self.text_proj(text)
        if self.null is not None:
            last = torch.arange(length, device=mask.device) == length - 1
            mask = torch.where(dropped[:, None], last, mask)
            states = torch.where((dropped[:, None] & last)[..., None], self.null.to(states.dtype), states)
        states = states * mask[..., None]
        if self.text_mixer is not None and self.text_norm is not None:
            states = (states + self.text_mixer(self.text_norm(states), mask=mask)) * mask[..., None]
        pooled = states.sum(1) / mask.sum(1, keepdim=True).clamp_min(1)
        return Text(states, mask, mask & ~dropped[:, None], pooled)

    def _spread(self, small: Tensor) -> Tensor:
        """Repeat the tokens of a smaller picture over the grid: (B, Lc, d) to (B, L, d)."""
        (rows, columns), (less_rows, less_columns) = self.config.grid, self.config.cond_grid
        small = small.unflatten(1, (less_rows, less_columns))
        large = small.repeat_interleave(rows // less_rows, 1).repeat_interleave(columns // less_columns, 2)
        return large.flatten(1, 2)

    def _check(self, ids: Tensor, text: Tensor | None, mask: Tensor | None, cond_ids: Tensor | None) -> None:
        config = self.config
        if ids.ndim != 2 or ids.shape[1] != config.length:
            remedy = "a model has one grid; flatten it"
            refuse("TokenModel", "ids", f"(B, L) = (B, {config.length})", tuple(ids.shape), remedy)
        if text is not None and (text.ndim != 3 or text.shape[0] != ids.shape[0] or text.shape[2] != config.text_dim):
            wanted = f"(B, T, Ct) = ({ids.shape[0]}, T, {config.text_dim})"
            refuse("TokenModel", "text", wanted, tuple(text.shape), "use the text encoder that it was trained with")
        if text is not None and mask is not None and mask.shape != text.shape[:2]:
            refuse("TokenModel", "text_mask", str(tuple(text.shape[:2])), tuple(mask.shape), "one flag per text token")
        if bool(config.cond_vocab) != (cond_ids is not None):
            wanted = "given for a super-resolution model" if config.cond_vocab else "None without cond_vocab"
            refuse("TokenModel", "cond_ids", wanted, "none" if cond_ids is None else "a tensor", "check the model")
        if cond_ids is not None and cond_ids.shape[1:] != (config.cond_grid[0] * config.cond_grid[1],):
            refuse("TokenModel", "cond_ids", f"(B, {config.cond_grid})", tuple(cond_ids.shape), "flatten the grid")

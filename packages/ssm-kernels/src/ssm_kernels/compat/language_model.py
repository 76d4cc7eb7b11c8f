"""mamba-ssm's language models, as in `mamba_ssm.models`. Letters: B batch, L length, C channels, V vocabulary."""

from __future__ import annotations

import json
import math
from collections import namedtuple
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.checks import refuse
from .block import Block, GatedMLP, add_and_norm
from .cache import InferenceParams, State
from .generation import GenerationMixin
from .hub import CONFIG, WEIGHTS, load_config_hf, load_state_dict_hf
from .mamba import Mamba
from .mamba2 import Mamba2
from .norms import RMSNorm

CausalLMOutput = namedtuple("CausalLMOutput", ["logits"])


@dataclass
class MambaConfig:
    """Sizes of a `MambaLMHeadModel`.

    Attributes:
        d_model: Channels C.
        d_intermediate: Channels of the MLPs; 0 leaves them out.
        n_layer: Blocks.
        vocab_size: V before padding.
        ssm_cfg: Arguments of the mixers, and under "layer" which, "Mamba1" or "Mamba2".
        attn_layer_idx: Must be empty: attention layers are not covered.
        attn_cfg: Their arguments.
        rms_norm: RMSNorm, not LayerNorm.
        residual_in_fp32: Keep the residual in float32.
        fused_add_norm: Sum and norm in one call.
        pad_vocab_size_multiple: V is rounded up to a multiple of it.
        tie_embeddings: One weight for embedding and head.
    """

    d_model: int = 2560
    d_intermediate: int = 0
    n_layer: int = 64
    vocab_size: int = 50277
    ssm_cfg: dict[str, Any] = field(default_factory=dict)
    attn_layer_idx: list[int] = field(default_factory=list)
    attn_cfg: dict[str, Any] = field(default_factory=dict)
    rms_norm: bool = True
    residual_in_fp32: bool = True
    fused_add_norm: bool = True
    pad_vocab_size_multiple: int = 8
    tie_embeddings: bool = True


def create_block(
    d_model: int,
    d_intermediate: int = 0,
    ssm_cfg: dict[str, Any] | None = None,
    attn_layer_idx: list[int] | None = None,
    attn_cfg: dict[str, Any] | None = None,
    norm_epsilon: float = 1e-5,
    rms_norm: bool = False,
    residual_in_fp32: bool = False,
    fused_add_norm: bool = False,
    layer_idx: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Block:
    """Make one block; the arguments are those of `MambaConfig`, and the number of the layer.

    Raises:
        ValueError: The layer is to be attention, or the mixer is unknown.
    """
    if attn_layer_idx and layer_idx in attn_layer_idx:
        refuse("create_block", "attn_layer_idx", "empty", attn_layer_idx, "attention layers are not covered")
    mixer = dict(ssm_cfg or {})
    layer = mixer.pop("layer", "Mamba1")
    if layer not in ("Mamba1", "Mamba2"):
        refuse("create_block", "ssm_cfg['layer']", "'Mamba1' or 'Mamba2'", repr(layer), "Mamba3 is not covered")
    factory = {"device": device, "dtype": dtype}
    block = Block(
        d_model,
        partial(Mamba2 if layer == "Mamba2" else Mamba, layer_idx=layer_idx, **mixer, **factory),
        nn.Identity
        if d_intermediate == 0
        else partial(GatedMLP, hidden_features=d_intermediate, out_features=d_model, **factory),
        partial(RMSNorm if rms_norm else nn.LayerNorm, eps=norm_epsilon, **factory),
        fused_add_norm,
        residual_in_fp32,
    )
    block.layer_idx = layer_idx
    return block


def init_weights(
    module: nn.Module,
    n_layer: int,
    initializer_range: float = 0.02,
    rescale_prenorm_residual: bool = True,
    n_residuals_per_layer: int = 1,
) -> None:
    """Initialise one module, for `nn.Module.apply`, as GPT-2 does.

    Args:
        module: Linear layers get a zero bias (unless it is marked _no_reinit), embeddings normal weights.
        n_layer: Layers of the model.
        initializer_range: Standard deviation of embeddings.
        rescale_prenorm_residual: Draw what ends a branch anew, divided by sqrt(branches of the model).
        n_residuals_per_layer: Branches of a layer.
    """
    if isinstance(module, nn.Linear):
        if module.bias is not None and not getattr(module.bias, "_no_reinit", False):
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=initializer_range)
    if rescale_prenorm_residual:
        for name, parameter in module.named_parameters():
            if name in ("out_proj.weight", "fc2.weight"):
                nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))
                with torch.no_grad():
                    parameter.div_(math.sqrt(n_residuals_per_layer * n_layer))


class MixerModel(nn.Module):
    """Embedding, blocks and a last norm; the arguments are those of `MambaConfig`.

    Args:
        d_model: Channels C.
        n_layer: Blocks.
        d_intermediate: Channels of the MLPs; 0 leaves them out.
        vocab_size: V.
        ssm_cfg: Arguments of the mixers.
        attn_layer_idx: Must be empty.
        attn_cfg: Not used.
        norm_epsilon: Of the norms.
        rms_norm: RMSNorm, not LayerNorm.
        initializer_cfg: Arguments of `init_weights`.
        fused_add_norm: Sum and norm in one call.
        residual_in_fp32: Keep the residual in float32.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(
        self,
        d_model: int,
        n_layer: int,
        d_intermediate: int,
        vocab_size: int,
        ssm_cfg: dict[str, Any] | None = None,
        attn_layer_idx: list[int] | None = None,
        attn_cfg: dict[str, Any] | None = None,
        norm_epsilon: float = 1e-5,
        rms_norm: bool = False,
        initializer_cfg: dict[str, Any] | None = None,
        fused_add_norm: bool = False,
        residual_in_fp32: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.residual_in_fp32, self.fused_add_norm = residual_in_fp32, fused_add_norm
        factory = {"device": device, "dtype": dtype}
        self.embedding = nn.Embedding(vocab_size, d_model, **factory)
        one = partial(
            create_block,
            d_model,
            d_intermediate,
            ssm_cfg,
            attn_layer_idx,
            attn_cfg,
            norm_epsilon,
            rms_norm,
            residual_in_fp32,
            fused_add_norm,
            **factory,
        )
        self.layers = nn.ModuleList(one(layer_idx=i) for i in range(n_layer))
        self.norm_f = (RMSNorm if rms_norm else nn.LayerNorm)(d_model, eps=norm_epsilon, **factory)
        branches = 1 if d_intermediate == 0 else 2
        self.apply(_initialiser(n_layer, initializer_cfg, branches))

    def forward(
        self, input_ids: Tensor, inference_params: InferenceParams | None = None, **mixer_kwargs: Any
    ) -> Tensor:
        """Give (B, L, C) for tokens (B, L)."""
        x, residual = self.embedding(input_ids), None
        for layer in self.layers:
            x, residual = layer(x, residual, inference_params=inference_params, **mixer_kwargs)
        if self.fused_add_norm:
            y = add_and_norm(self.norm_f, x, residual, prenorm=False, residual_in_fp32=self.residual_in_fp32)
            assert isinstance(y, Tensor)
            return y
        total = x if residual is None else x + residual
        return self.norm_f(total.to(self.norm_f.weight.dtype))

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> dict[int, State]:
        """Give zero states for every layer."""
        return {
            i: layer.allocate_inference_cache(batch_size, max_seqlen, dtype=dtype, **kwargs)
            for i, layer in enumerate(self.layers)
            if isinstance(layer, Block)
        }


class MambaLMHeadModel(nn.Module, GenerationMixin):
    """Language model with mamba-ssm's names; its checkpoints load.

    Args:
        config: Sizes.
        initializer_cfg: Arguments of `init_weights`.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(
        self,
        config: MambaConfig,
        initializer_cfg: dict[str, Any] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.config = config
        multiple = config.pad_vocab_size_multiple
        vocab_size = -(-config.vocab_size // multiple) * multiple
        factory = {"device": device, "dtype": dtype}
        self.backbone = MixerModel(
            config.d_model,
            config.n_layer,
            config.d_intermediate,
            vocab_size,
            config.ssm_cfg,
            config.attn_layer_idx,
            config.attn_cfg,
            rms_norm=config.rms_norm,
            initializer_cfg=initializer_cfg,
            fused_add_norm=config.fused_add_norm,
            residual_in_fp32=config.residual_in_fp32,
            **factory,
        )
        self.lm_head = nn.Linear(config.d_model, vocab_size, bias=False, **factory)
        self.apply(_initialiser(config.n_layer, initializer_cfg, 1))
        self.tie_weights()

    def tie_weights(self) -> None:
        """Give the head the embedding's weight, if the configuration says so."""
        if self.config.tie_embeddings:
            self.lm_head.weight = self.backbone.embedding.weight

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        inference_params: InferenceParams | None = None,
        num_last_tokens: int = 0,
        **mixer_kwargs: Any,
    ) -> CausalLMOutput:
        """Give logits.

        Args:
            input_ids: Tokens, (B, L).
            position_ids: Not used.
            inference_params: Keeps the states of the mixers.
            num_last_tokens: How many of the last tokens to give logits for; 0 is all.
            **mixer_kwargs: For the mixers, such as seq_idx.

        Returns:
            `logits` (B, L, V).
        """
        x = self.backbone(input_ids, inference_params=inference_params, **mixer_kwargs)
        return CausalLMOutput(self.lm_head(x[:, -num_last_tokens:] if num_last_tokens > 0 else x))

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> dict[int, State]:
        """Give zero states for every layer."""
        return self.backbone.allocate_inference_cache(batch_size, max_seqlen, dtype=dtype, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name: str,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> MambaLMHeadModel:
        """Load what `save_pretrained` wrote; a folder, since nothing is downloaded."""
        model = cls(MambaConfig(**load_config_hf(pretrained_model_name)), device=device, dtype=dtype, **kwargs)
        model.load_state_dict(load_state_dict_hf(pretrained_model_name, device=device, dtype=dtype))
        return model

    def save_pretrained(self, save_directory: str) -> None:
        """Write configuration and weights into a folder, which is made."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.state_dict(), folder / WEIGHTS)
        (folder / CONFIG).write_text(json.dumps(asdict(self.config), indent=4), encoding="utf-8")


def _initialiser(n_layer: int, options: dict[str, Any] | None, branches: int) -> Callable[[nn.Module], None]:
    return partial(init_weights, n_layer=n_layer, **{"n_residuals_per_layer": branches} | (options or {}))

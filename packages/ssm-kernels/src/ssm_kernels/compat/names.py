"""Which names each drop-in module offers, and where in `ssm_kernels.compat` they are defined.

`MODULES[module][name]` is (source file, name there). A package's own `__init__` is listed under its name.
"""

from __future__ import annotations

from collections.abc import Mapping

Exports = Mapping[str, tuple[str, str]]

VERSIONS = {
    "mamba_ssm": "2.3.2.post1+ssm.kernels",
    "causal_conv1d": "1.7.0+ssm.kernels",
}
DISTRIBUTIONS = {"mamba_ssm": "mamba-ssm", "causal_conv1d": "causal-conv1d"}


def _of(source: str, *names: str, **renamed: str) -> Exports:
    """List names of one source file; a keyword gives the name there of what is offered under another."""
    return {name: (source, name) for name in names} | {name: (source, there) for name, there in renamed.items()}


_NORMS = _of("norms", "RMSNorm", "layer_norm_fn", "rms_norm_fn", "layer_norm_linear_fn")
# what the mixer files there import for themselves, and public code asks of them
_INSIDE = {
    **_of("scan", "selective_scan_fn"),
    **_of("inner", "mamba_inner_fn"),
    **_of("conv", "causal_conv1d_fn", "causal_conv1d_update"),
    **_of("state_update", "selective_state_update"),
    **_of("norms", "RMSNorm", "layer_norm_fn", "rms_norm_fn"),
}

MODULES: dict[str, Exports] = {
    "mamba_ssm": {
        **_of("scan", "selective_scan_fn"),
        **_of("inner", "mamba_inner_fn"),
        **_of("mamba", "Mamba"),
        **_of("mamba2", "Mamba2"),
        **_of("language_model", "MambaLMHeadModel"),
    },
    "mamba_ssm.ops": {},
    "mamba_ssm.ops.selective_scan_interface": {
        **_of("scan", "selective_scan_fn", "selective_scan_ref"),
        **_of("inner", "mamba_inner_fn", "mamba_inner_ref", "mamba_inner_fn_no_out_proj"),
        **_of("inner", "bimamba_inner_fn", "bimamba_inner_ref"),
        **_of("conv", "causal_conv1d_fn"),
    },
    "mamba_ssm.ops.triton": {},
    "mamba_ssm.ops.triton.selective_state_update": _of(
        "state_update", "selective_state_update", "selective_state_update_ref"
    ),
    "mamba_ssm.ops.triton.layer_norm": _NORMS,
    "mamba_ssm.ops.triton.layernorm": _NORMS,  # the file's name in mamba-ssm 1.x
    "mamba_ssm.ops.triton.layernorm_gated": _of(
        "gated_norms", "RMSNorm", "LayerNorm", "rmsnorm_fn", "layernorm_fn", "rms_norm_ref"
    ),
    "mamba_ssm.ops.triton.ssd_combined": _of(
        "ssd",
        "mamba_chunk_scan_combined",
        "mamba_chunk_scan",
        "mamba_split_conv1d_scan_combined",
        "ssd_chunk_scan_combined_ref",
    ),
    "mamba_ssm.modules": {},
    "mamba_ssm.modules.mamba_simple": {
        **_of("mamba", "Mamba"),
        **_of("block", Block="BlockWithoutMLP"),  # here in mamba-ssm 1.x
        **_INSIDE,
    },
    "mamba_ssm.modules.mamba2": _of("mamba2", "Mamba2"),
    "mamba_ssm.modules.mamba2_simple": _of("mamba2_simple", "Mamba2Simple"),
    "mamba_ssm.modules.block": _of("block", "Block"),
    "mamba_ssm.modules.mlp": _of("block", "GatedMLP"),
    "mamba_ssm.models": {},
    "mamba_ssm.models.config_mamba": _of("language_model", "MambaConfig"),
    "mamba_ssm.models.mixer_seq_simple": {
        **_of("language_model", "MambaLMHeadModel", "MixerModel", "create_block", _init_weights="init_weights"),
        **_of("mamba", "Mamba"),
        **_of("mamba2", "Mamba2"),
        **_of("block", "Block"),
        **_of("norms", "RMSNorm", "layer_norm_fn", "rms_norm_fn"),
    },
    "mamba_ssm.utils": {},
    "mamba_ssm.utils.generation": {
        **_of("generation", "GenerationMixin", "decode", "sample", "modify_logit_for_repetition_penalty"),
        **_of("cache", "InferenceParams"),
    },
    "mamba_ssm.utils.hf": _of("hub", "load_config_hf", "load_state_dict_hf"),
    "causal_conv1d": _of("conv", "causal_conv1d_fn", "causal_conv1d_update"),
    "causal_conv1d.causal_conv1d_interface": _of(
        "conv", "causal_conv1d_fn", "causal_conv1d_ref", "causal_conv1d_update", "causal_conv1d_update_ref"
    ),
    "causal_conv1d.causal_conv1d_varlen": _of("conv", "causal_conv1d_varlen_states", "causal_conv1d_varlen_states_ref"),
    "selective_scan_cuda": _of("extensions", fwd="mamba_fwd", bwd="mamba_bwd"),
    "selective_scan_cuda_core": _of("extensions", fwd="core_fwd", bwd="core_bwd"),
    "selective_scan_cuda_oflex": _of("extensions", fwd="oflex_fwd", bwd="core_bwd"),
    "causal_conv1d_cuda": _of("conv_extension", "causal_conv1d_fwd", "causal_conv1d_bwd", "causal_conv1d_update"),
}

"""The network: RGB in [0, 1] in, RGB `scale` times as large out. One class for the whole family.

B batch, H height, W width (LR pixels), C channels, s scale.
"""

from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import PyTorchModelHubMixin
from ssm_kernels import layer_norm
from ssm_kernels.nn.layer_norm import LayerNorm
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .blocks import Conv, ExactConv, Group, make_upsampler
from .checks import refuse
from .config import ModelConfig


class HybridSR(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="hybrid-sr",
    license="apache-2.0",
    pipeline_tag="image-to-image",
):
    """Super-resolution by groups of scan or attention blocks.

    Args:
        config: What it is made of.

    Attributes:
        config: The configuration.
        checkpointing: Recompute every group in the backward pass instead of keeping its activations: slower training
            by about a third, memory of one group instead of all. Off at first; outputs and gradients do not change.

    Source: Contrast (arXiv:2501.13353) and HAT (arXiv:2205.04437); see docs/models.md for what is taken from where.
    """

    rgb_mean: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.dim
        self.config = config
        self.checkpointing = False
        self.register_buffer("rgb_mean", torch.tensor(config.rgb_mean), persistent=False)
        self.stem = ExactConv(3, dim)
        self.stem_norm = nn.LayerNorm(dim)
        self.groups = nn.ModuleList(Group(config, depth) for depth in config.depths)
        self.final_norm = LayerNorm(dim) if config.final_norm else None
        self.body_conv = Conv(dim, dim)
        self.upsampler = make_upsampler(config)

    def forward(self, x: Tensor) -> Tensor:
        """Upscale a batch of images.

        Args:
            x: (B, 3, H, W), RGB in [0, 1], the dtype of the parameters (any floating one under autocast). Any
                H, W >= 1: sizes that are no multiple of the window are mirrored at the right and bottom
                (the last row or column repeated where the image is too small to mirror) and the result is cut.

        Returns:
            (B, 3, s * H, s * W), not clipped.

        Raises:
            ValueError: `x` has another shape.
        """
        if x.ndim != 4 or x.shape[1] != 3 or x.shape[2] < 1 or x.shape[3] < 1:
            refuse("HybridSR", "x", "(B, 3, H, W) with H, W >= 1", tuple(x.shape), "stack RGB images along axis 0")
        height, width = x.shape[2:]
        x = pad_to_multiple(x, self.config.window)
        mean = self.rgb_mean.to(x.dtype)
        shallow = self.stem(x.permute(0, 2, 3, 1) - mean)
        norm = self.stem_norm
        deep = layer_norm(shallow, norm.weight, norm.bias, eps=norm.eps)  # in float32 also under autocast: the stream
        for group in self.groups:
            if self.checkpointing and torch.is_grad_enabled():
                deep = cast(Tensor, checkpoint(group, deep, use_reentrant=False))
            else:
                deep = group(deep)
        if self.final_norm is not None:
            deep = self.final_norm(deep)
        out = self.upsampler(self.body_conv(deep) + shallow) + mean
        scale = self.config.scale
        return out.permute(0, 3, 1, 2)[:, :, : scale * height, : scale * width]

    @classmethod
    def _from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]  # strict, silent, no free keywords
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        config: ModelConfig | None = None,
        map_location: str = "cpu",
    ) -> "HybridSR":
        from huggingface_hub import hf_hub_download
        from safetensors.torch import load_file

        if config is None:
            refuse("HybridSR.from_pretrained", "folder", "one with config.json", model_id, "save with save_pretrained")
        file = Path(model_id) / "model.safetensors"
        if not Path(model_id).is_dir():
            download = hf_hub_download(
                model_id,
                "model.safetensors",
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
            file = Path(download)
        elif not file.is_file():
            refuse("HybridSR.from_pretrained", "folder", "one with model.safetensors", model_id, "check the path")
        model = cls(config)
        model.load_state_dict(load_file(file))
        return model.to(map_location).eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        from safetensors.torch import save_file

        state: dict[str, Any] = {k: v.detach().contiguous() for k, v in self.state_dict().items()}
        save_file(state, save_directory / "model.safetensors", metadata={"format": "pt"})


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Extend (B, C, H, W) at the right and bottom to multiples: mirrored, or the edge repeated in too small images.

    Returns `x` itself if nothing is missing.
    """
    for axis in (2, 3):
        size = x.shape[axis]
        missing = -size % multiple
        if missing and missing < size:
            x = torch.cat([x, x.narrow(axis, size - 1 - missing, missing).flip(axis)], axis)
        elif missing:
            shape = list(x.shape)
            shape[axis] = missing
            x = torch.cat([x, x.narrow(axis, size - 1, 1).expand(shape)], axis)
    return x

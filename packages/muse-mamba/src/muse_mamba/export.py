"""Networks as files for other programs: ONNX, torch.export, or safetensors in half precision.

What a program needs is three functions: `encoder` (pictures to tokens), `decoder` (tokens to pictures), and `model`
(tokens, text and its mask to logits). The loop of decoding is a dozen lines around them, see docs/drawing.md.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .arguments import ExportOptions
from .model import TokenModel
from .pretrained import exact
from .tokenizer import VQTokenizer
from .weights import find_model, find_tokenizer


class Encoder(nn.Module):
    """Pictures (B, 3, H, W) in [0, 1] to ids (B, h, w)."""

    def __init__(self, tokenizer: VQTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, pictures: Tensor) -> Tensor:
        """Encode."""
        return self.tokenizer(pictures).quantized.ids


class Decoder(nn.Module):
    """Ids (B, h, w) to pictures (B, 3, H, W) in [0, 1]; what `decode` checks is not checked."""

    def __init__(self, tokenizer: VQTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, ids: Tensor) -> Tensor:
        """Decode."""
        values = self.tokenizer.quantizer.entries(ids).float().permute(0, 3, 1, 2)
        with exact(ids):
            return self.tokenizer.decode_values(values).clamp(0, 1)


class Logits(nn.Module):
    """Ids (B, L), states of the text (B, T, Ct) and their mask (B, T) to logits (B, L, V).

    Rows whose mask is empty are those without text, which guidance needs.
    """

    def __init__(self, model: TokenModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """Predict."""
        return self.model(ids, text, mask).logits


def export_command(options: ExportOptions) -> int:
    """Run `muse-mamba export`."""
    assert options.out is not None
    if options.out.exists() and not options.overwrite:
        raise ValueError(f"--out: {options.out} exists; add --overwrite, or choose another file")
    if not options.out.absolute().parent.is_dir():
        raise ValueError(f"--out: {options.out.parent} is no folder; make it, or choose another file")
    network: VQTokenizer | TokenModel
    if options.part == "model":
        network = TokenModel.from_pretrained(find_model(options.model))
    else:
        network = VQTokenizer.from_pretrained(find_tokenizer(options.tokenizer))
    names = export(network, options.part, options.out)
    size = options.out.stat().st_size
    if options.json:
        print(json.dumps({"file": str(options.out), "bytes": size, "inputs": names[0], "outputs": names[1]}, indent=2))
    else:
        print(f"{options.out} ({size / 1e6:.2f} MB): {', '.join(names[0])} to {', '.join(names[1])}")
    return 0


def export(network: VQTokenizer | TokenModel, part: str, file: Path) -> tuple[list[str], list[str]]:
    """Write one function of a network; the file appears under its name only when it is whole.

    Args:
        network: On the CPU, float32, ready to run.
        part: "model", "encoder" or "decoder".
        file: Ends in .onnx, .pt2 or .safetensors (weights in half precision, the configuration as metadata).

    Returns:
        Names of the inputs and of the outputs.

    Raises:
        ValueError: A library is missing, or PyTorch cannot export this network.
    """
    module, inputs, names, output, shapes = _function(network, part)
    half = file.with_name(f"{file.stem}.tmp{file.suffix}")
    if file.suffix == ".safetensors":
        _write_weights(network, half)
    elif file.suffix == ".pt2":
        with torch.no_grad():
            torch.export.save(torch.export.export(module, inputs, dynamic_shapes=shapes), half)
    else:
        _write_onnx(module, inputs, names, output, shapes, half)
    half.replace(file)
    return names, [output]


def _function(network: Any, part: str) -> tuple[nn.Module, tuple[Tensor, ...], list[str], str, Any]:
    """Return a module, inputs that it takes, their names, that of the output, and which sizes may change."""
    batch = torch.export.Dim("batch", min=1, max=1024)
    if part == "model":
        config = network.config
        ids = torch.zeros(2, config.length, dtype=torch.long)
        text = torch.zeros(2, config.text_length, config.text_dim)
        mask = torch.ones(2, config.text_length, dtype=torch.bool)
        shapes = ({0: batch}, {0: batch}, {0: batch})
        return Logits(network).eval(), (ids, text, mask), ["ids", "text", "mask"], "logits", shapes
    side, factor = 16, network.config.factor
    if part == "encoder":
        pictures = torch.zeros(2, 3, side * factor, side * factor)
        return Encoder(network).eval(), (pictures,), ["pictures"], "ids", ({0: batch},)
    ids = torch.zeros(2, side, side, dtype=torch.long)
    return Decoder(network).eval(), (ids,), ["ids"], "pictures", ({0: batch},)


def _write_weights(network: nn.Module, file: Path) -> None:
    from safetensors.torch import save_file

    state = {
        name: x.detach().to(torch.float16 if x.is_floating_point() else x.dtype).contiguous()
        for name, x in network.state_dict().items()
    }
    config: Any = network.config
    save_file(state, file, metadata={"format": "pt", "config": json.dumps(config.to_dict())})


def _write_onnx(
    module: nn.Module, inputs: tuple[Tensor, ...], names: list[str], output: str, shapes: Any, file: Path
) -> None:
    import ssm_kernels.onnx

    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*axis name")  # one name for the batch of all inputs is meant
            ssm_kernels.onnx.export(
                module, inputs, file, dynamic_shapes=shapes, input_names=names, output_names=[output]
            )
    except ImportError as error:
        raise ValueError(f"export: {error}; pip install 'muse-mamba[onnx]'") from error
    except torch.onnx.OnnxExporterError as error:
        detail = " ".join(str(error).split())[-200:]
        raise ValueError(f"export: this network has no ONNX form: {detail}; take .pt2") from error

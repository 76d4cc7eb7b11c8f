"""`upscale --compile`: the same picture, nothing compiled that nobody wants, and one line where that fails."""

import numpy as np
import pytest
import torch
from hybrid_sr.cli import main
from hybrid_sr.compiled import Compiled
from hybrid_sr.config import preset
from hybrid_sr.model import HybridSR
from hybrid_sr.upscaling import upscale
from torch import nn

PICTURE = np.random.default_rng(0).integers(0, 256, (70, 100, 3), dtype=np.uint8)


@pytest.fixture
def model() -> HybridSR:
    torch.manual_seed(0)
    return HybridSR(preset("tiny", 2))


class Seen(nn.Module):
    """Stands for a compiled network: it keeps the shapes that would be compiled."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.shapes = network, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(x.shape[2:]))
        return self.network(x)


@pytest.mark.parametrize("tile", [64, "auto", "full"])
def test_only_tiles_are_compiled(model, tile, monkeypatch):
    """Finding out what a pixel takes runs a small picture first, which must not be compiled for minutes."""
    monkeypatch.setattr(torch, "compile", Seen)
    does = Compiled(model)
    assert np.array_equal(does(PICTURE, tile=tile), upscale(model, PICTURE, tile=tile))
    assert isinstance(does.network, Seen)
    tiles = {(64, 64), (64, 52), (54, 64), (54, 52)}  # the last ones are cut at the picture's end
    assert set(does.network.shapes) == (tiles if tile == 64 else {(70, 100)})


def test_a_compiler_that_fails_is_one_line(model, monkeypatch):
    def broken(graph, inputs):
        raise OSError("no C++ compiler")

    compile_with = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network: compile_with(network, backend=broken))
    with pytest.raises(ValueError, match=r"^--compile: PyTorch cannot compile the network here: .*leave it out$"):
        Compiled(model)(PICTURE)


def test_an_onnx_file_is_not_compiled(capsys):
    assert main(["upscale", "x.png", "--backend", "onnxruntime", "--weights", "x.onnx", "--compile"]) == 2
    assert "--compile: must go with --backend torch, got onnxruntime" in capsys.readouterr().err

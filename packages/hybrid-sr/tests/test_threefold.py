"""Three times as large by way of the x4 network: what it computes, and that the verbs take it."""

import json

import numpy as np
import torch
from hybrid_sr.cli import main
from hybrid_sr.config import ModelConfig
from hybrid_sr.images import Picture, read_picture, write_picture
from hybrid_sr.model import HybridSR
from hybrid_sr.resize import imresize
from hybrid_sr.threefold import Threefold


def test_result_is_the_reduced_result_of_the_network():
    torch.manual_seed(0)
    network = HybridSR(ModelConfig(scale=4, dim=12, depths=(1,), heads=2, window=8)).eval()
    x = torch.rand(1, 3, 16, 24)
    with torch.inference_mode():
        four, three = network(x), Threefold(network)(x)
    assert three.shape == (1, 3, 48, 72)
    wanted = imresize(four[0].permute(1, 2, 0).double().numpy(), 3 / 4)
    inside = (slice(4, -4), slice(4, -4))  # at the edges MATLAB mirrors, PyTorch leaves out
    assert np.abs(three[0].permute(1, 2, 0).numpy() - wanted)[inside].max() < 1e-5


def test_upscale_and_evaluate_take_three(tmp_path, capsys):
    rng = np.random.default_rng(0)
    write_picture(Picture(rng.integers(0, 256, (36, 36, 3), dtype=np.uint8)), tmp_path / "small.png")
    assert main(["upscale", str(tmp_path / "small.png"), "--scale", "3"]) == 0
    assert read_picture(tmp_path / "small_x3.png").pixels.shape == (108, 108, 3)
    (tmp_path / "small_x3.png").unlink()
    capsys.readouterr()
    assert main(["evaluate", "--scale", "3", "--data", str(tmp_path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["model"] == "contrast-no-pe-no-cab x4 and bicubic to 3/4" and result["n"] == 1

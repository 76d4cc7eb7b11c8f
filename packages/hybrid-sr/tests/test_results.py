"""The gains in the README and the model card are those of the committed evaluations, and the means follow from them."""

import json
from pathlib import Path

import pytest

HOME = Path(__file__).parent.parent
FILES = sorted((HOME / "docs" / "results").glob("evaluation-*.json"))


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_row_is_the_evaluation(file):
    result = json.loads(file.read_text())
    numbers = (
        f"{result['bicubic_psnr_y']:.2f} | {result['psnr_y']:.2f} | {result['gain_db']:+.2f} | "
        f"{result['bicubic_ssim_y']:.4f} | {result['ssim_y']:.4f} |"
    )
    for page in ("README.md", "docs/model-card.md"):
        assert f"| x{result['scale']} |" in (HOME / page).read_text()
        assert numbers in (HOME / page).read_text()


@pytest.mark.parametrize("scale", [2, 4])
def test_mean_gain_follows_from_the_evaluations(scale):
    results = [json.loads(file.read_text()) for file in FILES if f"-x{scale}-" in file.name]
    mean = sum(result["gain_db"] * result["n"] for result in results) / sum(result["n"] for result in results)
    assert f"{mean:.2f} dB at x{scale}" in (HOME / "docs" / "model-card.md").read_text()
    card = HOME / "src" / "hybrid_sr" / "weights" / f"contrast-no-pe-no-cab-x{scale}" / "README.md"
    assert f"{mean:+.2f} dB" in card.read_text()

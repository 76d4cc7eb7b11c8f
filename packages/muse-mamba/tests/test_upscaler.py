"""Super-resolution: a second model draws the first one's pictures once more, larger."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from muse_mamba.cli import main
from muse_mamba.config import model_preset
from muse_mamba.model import TokenModel
from muse_mamba.pipeline import MuseMambaPipeline
from PIL import Image

SMALL = model_preset("tiny")
LARGE = replace(SMALL, grid=(8, 8), cond_vocab=SMALL.vocab, cond_grid=SMALL.grid)


@pytest.fixture(scope="module")
def upscaler(tmp_path_factory):
    """Folder of a super-resolution model on which the small picture has much say."""
    torch.manual_seed(0)
    model = TokenModel(LARGE)
    with torch.no_grad():
        model.cond_proj.weight.normal_()
    folder = tmp_path_factory.mktemp("weights") / "upscaler"
    model.save_pretrained(folder)
    return folder


def options(weights, byte_encoder, out):
    return (
        *("--model", weights[0], "--tokenizer", weights[1], "--text-encoder", byte_encoder, "--out", out),
        *("--steps", "2", "--num", "2", "--enlarge", "1", "--device", "cpu"),
    )


def run(capsys, *argv):
    code = main([str(item) for item in argv])
    return code, *capsys.readouterr()


def test_every_large_picture_follows_its_own_small_one(weights, byte_encoder, upscaler):
    small = MuseMambaPipeline.shipped(*weights, str(byte_encoder))
    small.set_progress_bar_config(disable=True)
    first = small(["a", "b"], num_inference_steps=2, generator=torch.Generator().manual_seed(0)).ids
    large = small.upscaled_by(TokenModel.from_pretrained(upscaler))
    large.set_progress_bar_config(disable=True)
    assert large._encoder is small._encoder  # the text encoder is in memory once

    def draw(ids):
        made = large(["a", "b"], cond_ids=ids, num_inference_steps=2, generator=torch.Generator().manual_seed(1))
        assert made.images[0].size == (32, 32)
        return made.ids

    one, other = draw(first), draw(torch.stack([first[0], (first[1] + 5) % SMALL.vocab]))
    assert torch.equal(one[0], other[0])
    assert not torch.equal(one[1], other[1])
    with pytest.raises(ValueError, match="cond_ids must be tokens of smaller pictures"):
        large("a", num_inference_steps=2)
    with pytest.raises(ValueError, match="model must be a super-resolution model"):
        small.upscaled_by(small.model)


def test_generate_draws_large_what_the_pipelines_draw(weights, byte_encoder, upscaler, capsys, tmp_path):
    prompts = ("a red apple", "a bus")
    argv = (*prompts, *options(weights, byte_encoder, tmp_path), "--negative", "grey", "--seed", "3", "--json")
    code, out, err = run(capsys, "generate", *argv, "--upscaler", upscaler)
    assert (code, err) == (0, "")
    result = json.loads(out)
    with Image.open(result["files"][0]) as picture:
        assert picture.size == (32, 32)
        inside = json.loads(picture.text["muse-mamba"])
    assert (inside["model"], inside["upscaler"]) == (str(weights[0]), str(upscaler))
    with Image.open(result["grid"]) as grid:
        assert grid.size == (64, 64)

    small = MuseMambaPipeline.shipped(*weights, str(byte_encoder))
    large = small.upscaled_by(TokenModel.from_pretrained(upscaler))
    ids, settings = None, {"negative_prompt": "grey", "generator": torch.Generator().manual_seed(3)}
    for pipeline in (small, large):
        pipeline.set_progress_bar_config(disable=True)
        made = pipeline(prompts, **settings, num_inference_steps=2, num_images_per_prompt=2, cond_ids=ids)
        ids = made.ids
    for file, image in zip(result["files"], made.images, strict=True):
        assert np.array_equal(np.asarray(Image.open(file)), np.asarray(image))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SMALL, "must be a super-resolution model, got one that draws from the text alone"),
        (
            replace(LARGE, cond_grid=(2, 2)),
            "must enlarge 4 x 4 tokens of 32 codes, as the base model draws, got one for",
        ),
        (replace(LARGE, cond_vocab=16), "got one for 4 x 4 tokens of 16 codes"),
        (replace(LARGE, vocab=64), "must draw the 32 codes of the base model's tokenizer, got 64"),
        (replace(LARGE, text_dim=12), "must read text of width 8, as the base model, got 12"),
    ],
    ids=["plain", "grid", "cond-codes", "codes", "text"],
)
def test_a_model_that_does_not_fit_is_refused(config, message, weights, byte_encoder, capsys, tmp_path):
    TokenModel(config).save_pretrained(tmp_path / "m")
    argv = ("a", *options(weights, byte_encoder, tmp_path / "o"), "--upscaler", tmp_path / "m")
    code, out, err = run(capsys, "generate", *argv)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"muse-mamba generate: --upscaler: {tmp_path / 'm'} must")
    assert message in err
    assert not (tmp_path / "o").exists()


def test_damaged_weights_are_one_line(weights, byte_encoder, upscaler, capsys, tmp_path):
    (tmp_path / "config.json").write_bytes((upscaler / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes((upscaler / "model.safetensors").read_bytes()[:-100])
    argv = ("a", *options(weights, byte_encoder, tmp_path / "o"), "--upscaler", tmp_path)
    code, out, err = run(capsys, "generate", *argv)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{tmp_path / 'model.safetensors'} cannot be read" in err


def test_mistakes_answer_before_torch_is_imported(weights, upscaler, tmp_path):
    """As --model of any verb, and as --upscaler of verbs that have none."""
    Image.new("RGB", (16, 16)).save(tmp_path / "in.png")
    given = {"inpaint": ["--image", "in.png", "--mask", "in.png"]}
    given |= {"outpaint": ["--image", "in.png"], "variation": ["--image", "in.png"]}
    base = f"--model: must be a model that draws from the text alone, got {upscaler}, a super-resolution model; give it"
    calls = [([verb, "a", *given.get(verb, []), "--model", upscaler], base) for verb in ("generate", "report", *given)]
    calls += [([verb, "a", *more, "--upscaler", upscaler], "arguments: --upscaler") for verb, more in given.items()]
    calls += [(["generate", "a", "--model", weights[0], "--upscaler", weights[0]], "must be a super-resolution model")]
    code = (
        "import sys, json; from muse_mamba.cli import main\n"
        "for argv in json.loads(sys.argv[1]): print(main(argv), 'torch' in sys.modules)"
    )
    argv = json.dumps([[str(item) for item in call] for call, _ in calls])
    command = [sys.executable, "-c", code, argv]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == "2 False\n" * len(calls)
    lines = done.stderr.splitlines()
    assert len(lines) == len(calls)
    for line, (call, message) in zip(lines, calls, strict=True):
        assert line.startswith(f"muse-mamba {call[0]}: ")
        assert message in line

"""The command line: what it draws and writes, and that mistakes are one line with exit code 2."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from muse_mamba import generating
from muse_mamba.cli import main
from PIL import Image
from safetensors.numpy import load_file

VERBS = (
    *("generate", "inpaint", "outpaint", "variation", "train", "train-tokenizer"),
    *("encode", "evaluate", "study", "info", "benchmark"),
)


def run(capsys, *argv):
    code = main([str(item) for item in argv])
    out, err = capsys.readouterr()
    return code, out, err


def refused(capsys, *argv):
    """Run a command that must end with exit code 2 and one line on stderr; return the line."""
    try:
        code, out, err = run(capsys, *argv)
    except SystemExit as stop:
        code, (out, err) = stop.code, capsys.readouterr()
    assert code == 2, err
    assert out == ""
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    return err


@pytest.fixture
def drawing(weights, byte_encoder, tmp_path):
    """Options of a drawing verb with random weights."""
    return (
        *("--model", weights[0], "--tokenizer", weights[1], "--text-encoder", byte_encoder),
        *("--out", tmp_path / "out", "--steps", "3", "--num", "2", "--enlarge", "1"),
    )


@pytest.mark.parametrize("verb", VERBS)
def test_help_imports_nothing_heavy(verb):
    code = (
        "import sys; from muse_mamba.cli import main\n"
        "try: code = main(sys.argv[1:])\n"
        "except SystemExit as stop: code = stop.code\n"
        "print(code, [m for m in ('torch', 'diffusers', 'transformers', 'accelerate') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, verb, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("0 []\n")
    assert f"usage: muse-mamba {verb}" in done.stdout


def test_mistakes_answer_before_torch_is_imported(tmp_path):
    code = "import sys; from muse_mamba.cli import main; code = main(sys.argv[1:]); print(code, 'torch' in sys.modules)"
    for argv, message in (
        (["generate"], "no prompt given"),
        (["generate", " "], "a prompt is empty"),
        (["generate", "x" * 2000], "at most 1000 characters, got 2000"),
        (["generate", b"\xff"], "a prompt has bytes that are no text"),
        (["generate", "a", "--negative", " "], "--negative: must say what is not wanted"),
        (["generate", "a", "--out", "/proc/x"], "--out: /proc/x cannot be made"),
        (["generate", "a", "--model", str(tmp_path)], "must be a folder with model.safetensors"),
        (["generate", "a", "--upscaler", str(tmp_path)], "--upscaler: must be a folder with model.safetensors"),
    ):
        done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True)
        assert done.stdout == "2 False\n"
        assert message in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "no verb given"),
        (["generat"], "unknown verb 'generat'"),
        (["generate", "a", "--steps", "0"], "--steps: must be at least 1"),
        (["generate", "a", "--steps", "9999"], "--steps: must be at most 1000, got 9999"),
        (["generate", "a", "--seed", "9" * 20], "--seed: must be at least 0 and finite"),
        (["generate", "a", "--order", "halt"], "--order: must be one of confidence, halton, random, got halt"),
        (["generate", "a", "b", "--num", "129"], "--num: must make at most 256 pictures at a time, got 2 x 129"),
        (["report", "a", "--num", "300"], "--num: must make at most 256 pictures"),
        (["generate", "a", "--enlarge", "99"], "--enlarge: must be at most 32, got 99"),
        (["evaluate", "--tokenizer_only", "--sizes", "64,100000"], "--sizes: must be from 1 to 4096, got 64,100000"),
        (["generate", "a", "--nope"], "unrecognized arguments: --nope"),
        (["inpaint", "a"], "--image is missing"),
        (["inpaint", "a", "--image", "/none.png"], "--image: must be a picture, /none.png is no file"),
        (["outpaint", "a"], "--image is missing"),
        (["train"], "the preset is missing"),
        (["train", "tinny"], "did you mean tiny"),
        (["train", "tiny", "--method", "mamba-atn", "--out", "x"], "did you mean mamba-xattn"),
        (["train", "muse-12x1024", "--method", "concat", "--out", "x"], "transformer for muse-12x1024"),
        (["train", "tiny"], "--out is missing"),
        (["train-tokenizer", "emoji", "--out", "x"], "did you mean emoji-64"),
        (["encode"], "--out is missing"),
        (["study", "--out", "x", "--methods", "concta"], "did you mean concat"),
        (["study", "--out", "x", "--seeds", "0,-1"], "--seeds: must be at least 0, got 0,-1"),
        (["study", "--out", "x", "--methods", "concat"], "--data: must be a folder written by muse-mamba encode"),
        (["info", "studi"], "did you mean study"),
        (["benchmark", "--lengths", "60"], "--lengths: must be square numbers"),
        (["benchmark", "--methods", "concta"], "did you mean concat"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_mistakes_are_one_line_and_exit_code_2(capsys, argv, message):
    assert message in refused(capsys, *argv)


def test_drawn_pictures_have_their_settings_inside_and_the_seed_decides(capsys, drawing, tmp_path):
    code, out, err = run(capsys, "generate", "a red apple", "a bus", *drawing, "--negative", "grey", "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert len(result["files"]) == 4
    with Image.open(result["files"][0]) as picture:
        assert picture.size == (16, 16)
        inside = json.loads(picture.text["muse-mamba"])
    assert inside["prompt"] == "a red apple"
    assert (inside["seed"], inside["steps"], inside["negative"]) == (0, 3, "grey")
    with Image.open(result["grid"]) as grid:
        assert grid.size == (32, 32)
    assert "exists; add --overwrite" in refused(capsys, "generate", "a red apple", "a bus", *drawing)
    first = [np.asarray(Image.open(file)) for file in result["files"]]
    run(capsys, "generate", "a red apple", "a bus", *drawing, "--negative", "grey", "--overwrite")
    assert all((a == np.asarray(Image.open(f))).all() for a, f in zip(first, result["files"], strict=True))
    run(capsys, "generate", "a red apple", "a bus", *drawing, "--seed", "1")
    other = [np.asarray(Image.open(f.replace("-0-", "-1-"))) for f in result["files"]]
    assert any((a != b).any() for a, b in zip(first, other, strict=True))


def test_inpainting_changes_only_what_is_marked(capsys, drawing, tmp_path, weights, byte_encoder):
    from muse_mamba.generating import encode_picture, read_picture, token_mask
    from muse_mamba.pipeline import MuseMambaPipeline

    Image.linear_gradient("L").resize((16, 16)).convert("RGB").save(tmp_path / "in.png")
    mask = np.zeros((16, 16), np.uint8)
    mask[:, 9:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    given = ("--image", tmp_path / "in.png", "--mask", tmp_path / "mask.png")
    code, out, _ = run(capsys, "inpaint", "a wave", *given, *drawing, "--json")
    assert code == 0
    assert len(json.loads(out)["files"]) == 2

    pipeline = MuseMambaPipeline.shipped(*weights, str(byte_encoder))
    pipeline.set_progress_bar_config(disable=True)
    ids = encode_picture(pipeline, read_picture(tmp_path / "in.png"))
    hidden = token_mask(pipeline, mask > 127)
    assert hidden.view(4, 4).tolist() == [[False, False, True, True]] * 4  # the third column is touched
    made = pipeline("a wave", ids=torch.where(hidden, 32, ids), num_inference_steps=3).ids.flatten(1)
    assert torch.equal(made[~hidden], ids[~hidden])
    Image.fromarray(mask * 0).save(tmp_path / "mask.png")
    assert "the mask marks nothing" in refused(capsys, "inpaint", "b", *given, *drawing, "--overwrite")


def test_outpainting_and_variation(capsys, drawing, tmp_path):
    Image.linear_gradient("L").resize((20, 24)).convert("RGB").save(tmp_path / "in.png")
    assert run(capsys, "outpaint", "a wave", "--image", tmp_path / "in.png", *drawing)[0] == 0
    strong = ("--strength", "0.2", "--seed", "5")
    assert run(capsys, "variation", "a wave", "--image", tmp_path / "in.png", *drawing, *strong)[0] == 0
    for share, said in (("1", "--share: must be between 0 and 1"), ("0.999", "--share: must leave something to draw")):
        again = (*drawing, "--overwrite", "--share", share)
        assert said in refused(capsys, "outpaint", "a", "--image", tmp_path / "in.png", *again)


def test_encoder_of_another_width_is_refused(capsys, weights, byte_encoder, tmp_path):
    from muse_mamba.config import model_preset
    from muse_mamba.model import TokenModel

    TokenModel(replace(model_preset("tiny"), text_dim=12)).save_pretrained(tmp_path / "m")
    argv = ("--model", tmp_path / "m", "--tokenizer", weights[1], "--text-encoder", byte_encoder, "--out", tmp_path)
    assert "must be one of width 12" in refused(capsys, "generate", "a", *argv)
    swapped = ("--model", weights[1], "--tokenizer", weights[1])
    assert "one that holds a token-model" in refused(capsys, "generate", "a", *swapped, "--out", tmp_path / "o")


def test_pipeline_is_saved_and_loads(weights, byte_encoder, tmp_path):
    from muse_mamba.pipeline import MuseMambaPipeline

    pipeline = MuseMambaPipeline.shipped(*weights, str(byte_encoder))
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path / "p")
    again = MuseMambaPipeline.from_pretrained(tmp_path / "p")
    again.set_progress_bar_config(disable=True)
    made = [
        p("a bus", num_inference_steps=2, generator=torch.Generator().manual_seed(1)).ids for p in (pipeline, again)
    ]
    assert torch.equal(made[0], made[1])
    seen = []
    pipeline(["a", "b"], num_inference_steps=3, callback=lambda step, ids: seen.append((step, tuple(ids.shape))))
    assert seen == [(step, (2, 16)) for step in range(3)]
    with pytest.raises(ValueError, match="holds no pipeline"):
        MuseMambaPipeline.from_pretrained(tmp_path)


def test_prompt_with_more_tokens_than_the_model_reads_is_said(weights, byte_encoder, caplog):
    from muse_mamba.pipeline import MuseMambaPipeline

    pipeline = MuseMambaPipeline.shipped(*weights, str(byte_encoder))
    pipeline.encode(["a"])
    assert not caplog.messages
    states, _ = pipeline.encode(["a", "a long sentence"])
    assert states.shape[1] == 6
    assert caplog.messages == [
        "prompt: 1 of 2 have more than 6 tokens; the rest of them is not read; make them shorter"
    ]


def test_no_captions_and_no_pictures_are_said(capsys, tmp_path):
    bare, broken = tmp_path / "bare", tmp_path / "broken"
    for folder in (bare, broken):
        folder.mkdir()
    Image.new("RGB", (64, 64)).save(bare / "a.png")
    (broken / "a.png").write_bytes(b"x")
    assert "no picture in" in refused(capsys, "evaluate", "--data", bare)
    assert "none of 1 images has a caption" in refused(capsys, "encode", "--data", bare, "--out", tmp_path / "p")
    picture = ("--image", broken / "a.png", "--out", tmp_path / "o")
    assert "no image that Pillow knows" in refused(capsys, "variation", "a", *picture)
    (broken / "config.json").write_text("{")
    assert f"{broken}/config.json is no configuration" in refused(capsys, "info", broken)


def test_a_disk_that_cannot_be_written_to_is_one_line(capsys, drawing, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    code, _, err = run(capsys, "generate", "a", *drawing)
    assert (code, err) == (1, "muse-mamba generate: [Errno 28] No space left on device\n")


@pytest.mark.parametrize(
    "trouble",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
        RuntimeError("a mistake of ours"),
    ],
)
def test_a_full_memory_is_one_line(capsys, drawing, monkeypatch, trouble):
    def full(*_, **__):
        raise trouble

    monkeypatch.setattr(generating, "load", full)
    if "ours" in str(trouble):
        with pytest.raises(RuntimeError, match="of ours"):
            run(capsys, "generate", "a", *drawing)
    else:
        assert "out of memory; take fewer pictures at a time" in refused(capsys, "generate", "a", *drawing)


def test_info(capsys):
    code, out, _ = run(capsys, "info", "mamba-12x1024", "--method", "concat", "--json")
    result = json.loads(out)
    assert code == 0
    assert result["parameters"] == sum(result["parts"].values()) == 97_836_032
    assert run(capsys, "info", "tokenizer-emoji-64")[0] == 0


def test_info_of_weights(capsys, weights):
    """What ships, and runs' folders of both kinds."""
    code, out, _ = run(capsys, "info", "ship", "--json")
    assert (code, json.loads(out)["method"], json.loads(out)["parameters"]) == (0, "mamba-xattn", 2_903_392)
    for folder in weights:
        found = json.loads(run(capsys, "info", folder, "--json")[1])
        written = load_file(folder / "model.safetensors").values()
        assert found["weights_bytes"] == sum(tensor.nbytes for tensor in written)
    assert "left out for trained weights" in refused(capsys, "info", weights[0], "--method", "concat")


def test_benchmark(capsys, tmp_path):
    argv = ("benchmark", "--preset", "tiny", "--methods", "transformer,concat", "--lengths", "4,16", "--repeats", "1")
    plot = tmp_path / "times.png"
    code, out, _ = run(capsys, *argv, "--steps", "2", "--batch", "1", "--device", "cpu", "--json", "--plot", str(plot))
    result = json.loads(out)
    assert code == 0
    with Image.open(plot) as drawn:
        assert drawn.width > 800
    code, _, said = run(capsys, *argv, "--plot", str(plot))
    assert (code, f"--plot: {plot} exists; add --overwrite" in said) == (2, True)
    assert [(row["method"], row["length"]) for row in result["rows"]] == [
        (method, length) for length in (4, 16) for method in ("transformer", "concat")
    ]
    assert all(row["decoding_ms"] > 0 and row["training_step_ms"] > 0 for row in result["rows"])
    assert set(result["crossover"]) == {"concat"}
    code, _, said = run(capsys, *argv, "--device", "cpu", "--graph")
    assert (code, "benchmark: --graph must have a CUDA GPU, got cpu" in said) == (2, True)


@pytest.mark.gpu
def test_benchmark_of_recorded_graphs(capsys):
    argv = ("benchmark", "--preset", "tiny", "--methods", "all", "--lengths", "16", "--repeats", "1", "--steps", "2")
    code, out, said = run(capsys, *argv, "--graph", "--precision", "bf16", "--json")
    assert code == 0, said
    assert all(row["decoding_ms"] > 0 and row["training_step_ms"] > 0 for row in json.loads(out)["rows"])

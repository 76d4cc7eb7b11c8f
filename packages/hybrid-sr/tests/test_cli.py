"""The command line as a person meets it: what is printed, what is written, exit codes."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hybrid_sr.arguments import EvaluateOptions, UpscaleOptions, parse_options
from hybrid_sr.cli import main
from hybrid_sr.images import Picture, read_picture, write_picture
from hybrid_sr.resize import imresize

RNG = np.random.default_rng(0)
VERBS = ("upscale", "evaluate", "train", "info", "benchmark", "study")


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A folder with the tiny network at x4, random weights, its output near the middle of the range."""
    from hybrid_sr.config import preset
    from hybrid_sr.model import HybridSR

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights") / "model"
    HybridSR(preset("tiny", 4)).save_pretrained(folder)
    return str(folder)


def put(path, height=20, width=24, channels=3, dtype=np.uint8):
    pixels = RNG.integers(0, np.iinfo(dtype).max + 1, (height, width, channels)).astype(dtype)
    write_picture(Picture(pixels), path)
    return pixels


def run(capsys, *argv):
    code = main([str(item) for item in argv])
    out, err = capsys.readouterr()
    return code, out, err


def refused(capsys, *argv):
    """Run a command that must end with exit code 2 and one line on stderr; return the line."""
    code, out, err = run(capsys, *argv)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_fast_and_imports_nothing_heavy(verb):
    code = (
        "import sys; from hybrid_sr.cli import main; code = main(sys.argv[1:]);"
        "print(code, [m for m in ('torch', 'cv2', 'triton', 'accelerate') if m in sys.modules])"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, verb, "--help"], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    assert done.stdout.endswith("0 []\n")
    assert f"usage: hybrid-sr {verb}" in done.stdout
    assert seconds < 10  # 0.3 s on an idle machine; what makes it slow is an import, which is checked above


def test_mistakes_answer_before_torch_is_imported(tmp_path):
    code = "import sys; from hybrid_sr.cli import main; code = main(sys.argv[1:]); print(code, 'torch' in sys.modules)"
    for argv, message in (
        (["upscale", str(tmp_path / "none*.png")], "matches no file"),
        (["upscale", str(tmp_path / "none.png")], "does not exist; check the path"),
        (["upscale", "--sample", "cofee"], "did you mean coffee"),
        (["evaluate", "--data", str(tmp_path)], "holds no picture"),
    ):
        done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True)
        assert done.stdout == "2 False\n"
        assert message in done.stderr
        assert done.stderr.count("\n") == 1


def test_module_runs_as_a_process():
    done = subprocess.run([sys.executable, "-m", "hybrid_sr", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("hybrid-sr 0.")


def test_import_of_the_package_is_light_and_every_public_name_exists():
    code = (
        "import sys, hybrid_sr; first = 'torch' in sys.modules;"
        "[getattr(hybrid_sr, name) for name in hybrid_sr.__all__];"
        "print(first, callable(hybrid_sr.upscale), callable(hybrid_sr.evaluate_images))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False True True\n"


def test_top_level_help_and_mistakes(capsys):
    assert run(capsys, "--help")[0] == 0
    assert "choose upscale" in refused(capsys)
    assert "unknown verb 'upscael'" in refused(capsys, "upscael")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["upscale"], "no picture given"),
        (["upscale", "a.png", "--scale", "5"], "--scale: must be one of 2, 3, 4, got 5"),
        (["upscale", "a.png", "--tile", "x"], "--tile: must be a whole number or one of auto, full, got x"),
        (["upscale", "a.png", "--tile", "100"], "--tile: must be a multiple of 16"),
        (["upscale", "a.png", "--overlap", "7"], "--overlap: must be a multiple of 16"),
        (["upscale", "a.png", "--precision", "fp8"], "--precision: must be one of fp32, bf16, fp16, got fp8"),
        (["upscale", "a.png", "--format", "gif"], "--format: must be one of png"),
        (["upscale", "a.png", "--preset", "nope"], "--preset: must be one of contrast-baseline"),
        (["upscale", "a.png", "--max-megapixels", "-1"], "--max-megapixels: must be above 0"),
        (["upscale", "a.png", "--nope"], "unrecognized arguments: --nope"),
        (["upscale", "a.png", "--out"], "expected one argument"),
        (["upscale", "--sample", "coffee", "--device", "tpu"], "device must be"),
        (["upscale", "--sample", "coffee", "--weights", "/none"], "/none, which does not exist"),
        (["upscale", "a.png", "--sample", "coffee"], "leave out the picture"),
        (["upscale", "--sample", "coffe"], "did you mean coffee"),
        (["evaluate", "--data", "/none"], "/none: is not a folder"),
        (["evaluate", "--lr", "/none"], "--lr: needs --data"),
        (["evaluate", "--set", "foolbox", "--data", "x"], "give one of them"),
        (["evaluate", "--set", "urban100"], "--set: must be one of scikit-image"),
        (["info", "nope"], "unknown name 'nope'"),
        (["info", "--height", "0"], "at least 1"),
        (["benchmark", "--repeats", "0"], "--repeats: must be at least 1, got 0"),
        (["benchmark", "nope"], "unknown name 'nope'"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(capsys, argv, message):
    assert message in refused(capsys, *argv)


def test_options_may_be_spelled_with_underscores_and_names_are_taken_literally():
    options, inputs = parse_options(
        "upscale",
        ["2024.png", "null", "[a].png", "a: b.png", "--self_ensemble", "--max_megapixels=2.5", "--out", "1e3"],
        UpscaleOptions,
        description="",
        positional=("inputs", "*", ""),
    )
    assert inputs == ["2024.png", "null", "[a].png", "a: b.png"]
    assert options.self_ensemble
    assert options.max_megapixels == 2.5
    assert str(options.out) == "1e3"
    assert parse_options("evaluate", [], EvaluateOptions, description="")[0] == EvaluateOptions()


def test_one_picture(tmp_path, capsys, weights):
    put(tmp_path / "photo.jpg")
    code, out, err = run(capsys, "upscale", tmp_path / "photo.jpg", "--weights", weights)
    assert code == 0
    assert err == ""
    assert f"{tmp_path / 'photo.jpg'} -> {tmp_path / 'photo_x4.png'}  96x80" in out
    assert read_picture(tmp_path / "photo_x4.png").pixels.shape == (80, 96, 3)
    assert "exists; add --overwrite" in refused(capsys, "upscale", tmp_path / "photo.jpg", "--weights", weights)
    assert run(capsys, "upscale", tmp_path / "photo.jpg", "--weights", weights, "--overwrite")[0] == 0


def test_a_folder_with_bad_pictures_exits_1_and_counts(tmp_path, capsys, weights):
    put(tmp_path / "in" / "a.png", dtype=np.uint16)
    put(tmp_path / "in" / "sub" / "b.png", channels=4)
    (tmp_path / "in" / "bad.png").write_text("hello")
    code, out, err = run(capsys, "upscale", tmp_path / "in", "--weights", weights, "--out", tmp_path / "out")
    assert code == 1
    assert out.splitlines()[-1] == "2 of 3 pictures upscaled, 1 skipped"
    assert err.count("\n") == 1
    assert "bad.png" in err
    assert read_picture(tmp_path / "out" / "a_x4.png").pixels.dtype == np.uint16
    assert read_picture(tmp_path / "out" / "sub" / "b_x4.png").has_alpha


def test_json_report(tmp_path, capsys, weights):
    put(tmp_path / "a.png")
    code, out, err = run(
        capsys, "upscale", tmp_path / "a.png", tmp_path / "none.png", "--weights", weights, "--json", "--tile", "64"
    )
    report = json.loads(out)
    assert code == 1
    assert (report["n"], report["n_failed"]) == (1, 1)
    assert report["done"][0]["target"] == str(tmp_path / "a_x4.png")
    assert "does not exist" in report["failed"][0]["error"]
    assert "none.png" in err


@pytest.mark.parametrize("damage", ["missing", "text", "large"])
def test_a_single_bad_picture_exits_2(tmp_path, capsys, weights, damage):
    if damage == "text":
        (tmp_path / "a.png").write_text("hello")
    if damage == "large":
        put(tmp_path / "a.png", 50, 50)
    line = refused(capsys, "upscale", tmp_path / "a.png", "--weights", weights, "--max-megapixels", "0.002")
    assert str(tmp_path / "a.png") in line


def test_options_change_the_result(tmp_path, capsys, weights):
    put(tmp_path / "a.png", 80, 70)
    results = {}
    for name, options in {
        "plain": [],
        "tiled": ["--tile", "64", "--overlap", "16"],
        "ensemble": ["--self-ensemble"],
        "bf16": ["--precision", "bf16"],
    }.items():
        out = tmp_path / f"{name}.png"
        assert run(capsys, "upscale", tmp_path / "a.png", "--out", out, "--weights", weights, *options)[0] == 0
        results[name] = read_picture(out).pixels
    for name in ("tiled", "ensemble", "bf16"):
        assert (results[name] != results["plain"]).any(), name


def test_gain_over_bicubic_for_a_pair(tmp_path, capsys, weights):
    original = put(tmp_path / "original.png", 82, 97)
    write_picture(Picture(imresize(original[:80, :96], 1 / 4)), tmp_path / "small.png")
    small, given = tmp_path / "small.png", tmp_path / "original.png"
    code, out, _ = run(capsys, "upscale", small, "--original", given, "--weights", weights)
    assert code == 0
    assert "dB over bicubic" in out
    code, out, _ = run(capsys, "upscale", small, "--original", given, "--weights", weights, "--json", "--overwrite")
    figures = json.loads(out)
    assert figures["gain_db"] == pytest.approx(figures["psnr_y"] - figures["bicubic_psnr_y"])
    assert "check --scale" in refused(capsys, "upscale", given, "--original", given, "--weights", weights)


def test_sample_prints_where_to_look_and_the_gain(tmp_path, capsys, weights):
    argv = ("upscale", "--sample", "chelsea", "--scale", "4", "--weights", weights, "--out", tmp_path / "out")
    code, out, _ = run(capsys, *argv)
    assert code == 0
    assert str(tmp_path / "out" / "chelsea_panel.png") in out
    assert "dB over bicubic" in out
    assert "CC0" in out
    assert "exists; add --overwrite" in refused(capsys, *argv)
    code, out, _ = run(capsys, *argv, "--overwrite", "--json")
    report = json.loads(out)
    assert set(report["files"]) == {"lr", "bicubic", "upscaled", "original", "panel"}
    assert report["gain_db"] == pytest.approx(report["psnr_y"] - report["bicubic_psnr_y"])


def test_evaluate_json(tmp_path, capsys, weights):
    for name in ("a.png", "b.jpg"):
        put(tmp_path / "hr" / name, 102, 81)
    argv = ("evaluate", "--data", tmp_path / "hr", "--weights", weights, "--json")
    code, out, err = run(capsys, *argv)
    result = json.loads(out)
    assert (code, err) == (0, "")
    assert {"psnr_y", "ssim_y", "bicubic_psnr_y", "gain_db", "n", "per_image", "scale", "model"} <= set(result)
    assert [row["name"] for row in result["per_image"]] == ["a", "b"]
    assert all(row["tile"] == "full" for row in result["per_image"])
    assert "tiled_minus_full_db" not in result


def test_evaluate_with_tiles_reports_what_they_cost(tmp_path, capsys, weights):
    put(tmp_path / "hr" / "a.png", 400, 300)
    argv = ("evaluate", "--data", tmp_path / "hr", "--weights", weights, "--tile", "64")
    code, out, _ = run(capsys, *argv, "--json")
    result = json.loads(out)
    assert code == 0
    row = result["per_image"][0]
    assert row["tile"] == 64
    assert row["tiled_minus_full_db"] == result["tiled_minus_full_db"] != 0
    assert abs(result["tiled_minus_full_db"]) < 0.5
    assert "tiles of 64 minus whole pictures" in run(capsys, *argv)[1]


def test_evaluate_with_given_low_resolution(tmp_path, capsys, weights):
    original = put(tmp_path / "hr" / "a.png", 64, 80)
    write_picture(Picture(imresize(original, 1 / 4)), tmp_path / "lr" / "ax4.png")
    argv = ("evaluate", "--data", tmp_path / "hr", "--weights", weights, "--json")
    made = json.loads(run(capsys, *argv)[1])
    given = json.loads(run(capsys, *argv, "--lr", tmp_path / "lr")[1])
    assert made == given


def test_evaluate_prints_a_table_of_packaged_photos(capsys, weights):
    code, out, _ = run(capsys, "evaluate", "--set", "scikit-learn", "--weights", weights)
    assert code == 0
    assert "china" in out
    assert "flower" in out
    assert "mean of 2" in out


def test_json_has_no_infinity(tmp_path, capsys, weights):
    """A constant picture is exact for bicubic; JSON has no word for its infinite PSNR."""
    write_picture(Picture(np.full((64, 64, 3), 100, np.uint8)), tmp_path / "flat.png")
    code, out, _ = run(capsys, "evaluate", "--data", tmp_path, "--weights", weights, "--json")
    assert code == 0
    assert json.loads(out, parse_constant=lambda _: pytest.fail("not JSON"))["bicubic_psnr_y"] is None


def test_info(capsys):
    code, out, _ = run(capsys, "info", "tiny", "--scale", "2", "--height", "16", "--width", "24", "--json")
    result = json.loads(out)
    assert code == 0
    assert (result["preset"], result["scale"], result["input"]) == ("tiny", 2, [16, 24])
    assert {"parameters", "macs", "scan_ops"} <= set(result)
    code, out, _ = run(capsys, "info", "tiny", "--scale", "2", "--height", "16", "--width", "24")
    assert code == 0
    assert f"{result['parameters']:,}" in out


def test_benchmark(capsys):
    argv = ("benchmark", "tiny", "--height", "16", "--width", "24", "--repeats", "2", "--device", "cpu")
    code, out, _ = run(capsys, *argv, "--json")
    result = json.loads(out)
    assert code == 0
    assert 0 < result["ms_min"] <= result["ms"]
    assert result["output_megapixels_per_s"] == pytest.approx(16 * 24 * 16 / result["ms"] / 1e3, rel=0.01)
    assert result["environment"]["torch"] == torch.__version__
    code, out, _ = run(capsys, *argv)
    assert code == 0
    assert "megapixels of output per second" in out


def test_interruption_is_one_line(capsys, monkeypatch):
    def interrupted(_argv):
        raise KeyboardInterrupt

    monkeypatch.setattr("hybrid_sr.cli._info", interrupted)
    code, _, err = run(capsys, "info")
    assert code == 130
    assert err == "hybrid-sr info: interrupted\n"


def test_a_reader_that_leaves_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m hybrid_sr info --help | true", shell=True, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr

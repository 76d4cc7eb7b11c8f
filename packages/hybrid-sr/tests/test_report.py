"""The HTML pages, in a real browser: nothing is fetched, pictures are drawn, the bar follows mouse and keyboard."""

import json
import re
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from hybrid_sr import cli, lam
from hybrid_sr.comparison import write_comparison
from hybrid_sr.config import ModelConfig
from hybrid_sr.files import Job
from hybrid_sr.images import Picture, write_picture
from hybrid_sr.model import HybridSR
from hybrid_sr.page import curves, embedded, page, table
from hybrid_sr.recipes import recipe
from hybrid_sr.resize import imresize

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


def picture(height, width, seed=0):
    rough = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return np.ascontiguousarray(imresize(rough, 8)[:height, :width])


@pytest.fixture
def run(tmp_path):
    """What a training run leaves, of an untrained network."""
    folder, pictures = tmp_path / "run", tmp_path / "pictures"
    torch.manual_seed(0)
    config = recipe("tiny", 2).to_dict()
    config["model"] = ModelConfig(scale=2, dim=12, depths=(1,), heads=2, window=8).to_dict()
    HybridSR(ModelConfig.from_dict(config["model"])).save_pretrained(folder / "model")
    (folder / "config.json").write_text(json.dumps(config))
    row = {"lr": 1e-3, "grad_norm": 1.0, "samples_per_s": 50.0, "peak_bytes": 10**9}
    rows = [json.dumps({"step": 10 * i, "loss": 1 / i, **row}) for i in range(1, 6)]
    (folder / "metrics.jsonl").write_text("\n".join([*rows, '{"step": 60, "lo']))  # cut off by a crash
    (folder / "validation.jsonl").write_text('{"step": 20, "psnr_y": 24.5}\n{"step": 40, "psnr_y": 25.25}\n')
    pictures.mkdir()
    for i, name in enumerate(("first.png", "second.png")):
        write_picture(Picture(picture(96, 128, i)), pictures / name)
    return folder


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, BROWSERS)))
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser):
    """Open a file in the browser; what it fetches and what goes wrong in it must stay empty."""
    context = browser.new_context(viewport={"width": 1000, "height": 900})
    view = context.new_page()
    asked, errors = [], []
    view.on("request", lambda request: asked.append(request.url))
    view.on("pageerror", lambda error: errors.append(str(error)))
    view.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)

    def open_file(path):
        view.goto(path.as_uri())
        assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
        assert errors == []
        return view

    yield open_file
    assert errors == []
    context.close()


def report(run, *arguments):
    return cli.main(["report", str(run), "--data", str(run.parent / "pictures"), *arguments])


def test_report_says_what_it_wrote(run, capsys):
    assert report(run, "--json", "--images", "1") == 0
    printed = json.loads(capsys.readouterr().out)
    (row,) = printed["pictures"]
    assert row["name"] == "first" and row["gain_db"] == pytest.approx(row["psnr_y"] - row["bicubic_psnr_y"])
    text = (run / "report.html").read_text()
    assert len(text.encode()) == printed["bytes"]
    assert "25.25" in text and "step 50" in text  # ends of the curves
    assert not re.search(r'(src|href)="(?!data:)', text)  # nothing beside the page
    assert report(run) == 2
    assert "exists; add --overwrite" in capsys.readouterr().err


def test_report_with_attribution(run, monkeypatch):
    monkeypatch.setattr(lam, "attribute", partial(lam.attribute, fold=2))
    assert report(run, "--lam", "--images", "1") == 0
    text = (run / "report.html").read_text()
    assert text.count('<figure class="lam">') == 1 and "diffusion index" in text


@pytest.mark.browser
def test_report_in_a_browser(run, opened):
    assert report(run) == 0
    view = opened(run / "report.html")
    broken = "[...document.images].filter(image => !image.complete || image.naturalWidth === 0).length"
    assert view.evaluate("document.images.length") == 2 * (2 + 4)  # a slider and four parts for each picture
    assert view.evaluate(broken) == 0
    assert view.locator("svg polyline").count() == 3
    zoomed = view.locator(".zoom img").first.bounding_box()
    assert (zoomed["width"], zoomed["height"]) == (290, 290)  # three screen pixels a pixel, and the frame


def share_of(view):
    return view.evaluate("parseFloat(document.querySelector('.compare').style.getPropertyValue('--at'))")


@pytest.mark.browser
def test_bar_follows_mouse_and_keys(tmp_path, opened):
    """What is left of the bar is bicubic, what is right of it the result: seen in the pixels on the screen."""
    write_picture(Picture(np.full((40, 60, 3), 200, np.uint8)), tmp_path / "a.png")
    write_picture(Picture(np.full((160, 240, 3), 20, np.uint8)), tmp_path / "a_x4.png")
    write_comparison(tmp_path / "a_x4.html", Job(tmp_path / "a.png", tmp_path / "a_x4.png"), 4)
    view = opened(tmp_path / "a_x4.html")
    frame = view.locator(".compare")
    box = frame.bounding_box()
    assert (box["width"], box["height"]) == (240, 160)
    assert share_of(view) == 50
    middle = box["y"] + box["height"] / 2
    view.mouse.move(box["x"] + 120, middle)
    view.mouse.down()
    view.mouse.move(box["x"] + 180, middle, steps=4)
    assert share_of(view) == pytest.approx(75, abs=0.5)
    screen = np.asarray(_screenshot(frame))[120]
    assert (screen[10:170, :3] == 200).all() and (screen[190:230, :3] == 20).all()
    view.mouse.up()
    view.mouse.move(box["x"] + 20, middle)
    assert share_of(view) == pytest.approx(75, abs=0.5)  # only while it is held
    view.keyboard.press("Home")
    assert share_of(view) == 0
    view.keyboard.press("ArrowRight")
    assert share_of(view) > 0


def _screenshot(element):
    import io

    from PIL import Image

    return Image.open(io.BytesIO(element.screenshot())).convert("RGB")


def test_upscale_compare_writes_a_page(tmp_path, capsys):
    write_picture(Picture(picture(24, 32)), tmp_path / "a.png")
    torch.manual_seed(0)
    HybridSR(ModelConfig(scale=2, dim=12, depths=(1,), heads=2, window=8)).save_pretrained(tmp_path / "model")
    arguments = ["upscale", str(tmp_path / "a.png"), "--scale", "2", "--weights", str(tmp_path / "model"), "--compare"]
    assert cli.main(arguments) == 0
    assert "a_x2.html" in capsys.readouterr().out
    assert 'width="64" height="48"' in (tmp_path / "a_x2.html").read_text()
    (tmp_path / "a_x2.png").unlink()
    assert cli.main(arguments) == 2
    assert "a_x2.html: exists" in capsys.readouterr().err
    write_picture(Picture(picture(24, 32)), tmp_path / "b.png")
    assert cli.main(["upscale", str(tmp_path / "b.png"), *arguments[1:]]) == 2
    assert "--compare: belongs to a single picture" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ("config.json", "metrics.jsonl", "model/config.json"))
def test_folders_that_are_no_run(run, missing, capsys):
    (run / missing).unlink()
    assert report(run) == 2
    assert "is no training run; looked for config.json, metrics.jsonl and model/" in capsys.readouterr().err


def test_pictures_are_exact_inside_the_page():
    import base64
    import io

    from PIL import Image

    pixels = picture(33, 47)
    head, _, data = embedded(pixels).partition(",")
    assert head == "data:image/webp;base64"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), pixels)


def test_names_cannot_break_the_page():
    text = page("<script>1", table(("a",), [("<b>",)])) + curves({"<i>": [(1, 2.0), (2, 1.0)]})
    assert "<script>1" not in text and "<b>" not in text and "<i>" not in text


def test_curves_leave_out_what_cannot_be_drawn():
    drawn = curves({"loss": [(1, 1.0), (2, float("nan")), (3, 0.0), (4, 0.5)]}, logarithmic=True)
    assert drawn.count("<circle") == 2 and "nan" not in drawn
    assert "Nothing to draw" in curves({"loss": []})

"""Which files are upscaled, how results are named, and that a bad file stops nothing else."""

import sys

import numpy as np
import pytest
from hybrid_sr.files import Job, plan, upscale_files
from hybrid_sr.images import Picture, read_picture, write_picture
from hybrid_sr.progress import Progress

RNG = np.random.default_rng(0)


def put(path, height=8, width=12, channels=3, *, dtype=np.uint8, icc=None):
    pixels = RNG.integers(0, np.iinfo(dtype).max + 1, (height, width, channels)).astype(dtype)
    write_picture(Picture(pixels, icc), path)
    return pixels


def double(pixels, progress):
    progress(1, 1)
    return pixels.repeat(2, 0).repeat(2, 1)


def targets(root, jobs):
    return {str(job.source.relative_to(root)): str(job.target.relative_to(root)) for job in jobs}


def test_results_lie_beside_the_picture_under_a_new_name(tmp_path):
    put(tmp_path / "a b.jpg")
    assert targets(tmp_path, plan([tmp_path / "a b.jpg"], scale=4)) == {"a b.jpg": "a b_x4.png"}
    assert targets(tmp_path, plan([tmp_path / "a b.jpg"], scale=2, output_format="same")) == {"a b.jpg": "a b_x2.jpg"}
    assert targets(tmp_path, plan([tmp_path / "a b.jpg"], scale=4, output_format="webp")) == {"a b.jpg": "a b_x4.webp"}


def test_out_may_be_a_file_or_a_folder(tmp_path):
    put(tmp_path / "a.jpg")
    assert plan([tmp_path / "a.jpg"], scale=4, out=tmp_path / "b.tif") == [Job(tmp_path / "a.jpg", tmp_path / "b.tif")]
    jobs = plan([tmp_path / "a.jpg"], scale=4, out=tmp_path / "v1.2")
    assert targets(tmp_path, jobs) == {"a.jpg": "v1.2/a_x4.png"}


def test_a_folder_keeps_its_sub_folders(tmp_path):
    for name in ("in/a.png", "in/sub/b.jpg", "in/sub/deep/c.tiff"):
        put(tmp_path / name)
    wanted = {"in/a.png": "a_x4.png", "in/sub/b.jpg": "sub/b_x4.png", "in/sub/deep/c.tiff": "sub/deep/c_x4.png"}
    beside = {source: f"in_x4/{target}" for source, target in wanted.items()}
    assert targets(tmp_path, plan([tmp_path / "in"], scale=4)) == beside
    elsewhere = {source: f"out/{target}" for source, target in wanted.items()}
    assert targets(tmp_path, plan([tmp_path / "in"], scale=4, out=tmp_path / "out")) == elsewhere


def test_the_current_folder_has_a_name_too(tmp_path, monkeypatch):
    put(tmp_path / "in" / "a.png")
    monkeypatch.chdir(tmp_path / "in")
    assert targets(tmp_path, [Job(j.source.resolve(), j.target) for j in plan(["."], scale=4)]) == {
        "in/a.png": "in_x4/a_x4.png"
    }


def test_patterns_are_expanded(tmp_path):
    for name in ("a.png", "b.png", "c.jpg", "sub/d.png"):
        put(tmp_path / name)
    jobs = plan([f"{tmp_path}/*.png"], scale=4)
    assert targets(tmp_path, jobs) == {"a.png": "a_x4.png", "b.png": "b_x4.png"}
    assert len(plan([f"{tmp_path}/**/*.png"], scale=4)) == 3
    with pytest.raises(ValueError, match="matches no file"):
        plan([f"{tmp_path}/*.tif"], scale=4)


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tmp_path):
    put(tmp_path / "a[1].png")
    assert targets(tmp_path, plan([tmp_path / "a[1].png"], scale=4)) == {"a[1].png": "a[1]_x4.png"}


def test_two_pictures_never_get_one_name(tmp_path):
    for name in ("a.png", "a.jpg", "b.png"):
        put(tmp_path / name)
    names = targets(tmp_path, plan([tmp_path], scale=4, out=tmp_path / "out"))
    assert names == {"a.jpg": "out/a_jpg_x4.png", "a.png": "out/a_png_x4.png", "b.png": "out/b_x4.png"}


def test_results_are_not_upscaled_again(tmp_path):
    for name in ("a.png", "a_x4.png", "other_x4.png"):
        put(tmp_path / name)
    assert set(targets(tmp_path, plan([f"{tmp_path}/*.png"], scale=4))) == {"a.png", "other_x4.png"}
    put(tmp_path / "in" / "a.png")
    put(tmp_path / "in" / "out" / "a_x4.png")
    assert len(plan([tmp_path / "in"], scale=4, out=tmp_path / "in" / "out")) == 1


def test_a_picture_named_twice_is_done_once(tmp_path):
    put(tmp_path / "a.png")
    assert len(plan([tmp_path / "a.png", tmp_path / "a.png", f"{tmp_path}/*.png"], scale=4)) == 1


def test_out_that_cannot_be_meant_is_refused(tmp_path):
    put(tmp_path / "in" / "a.png")
    put(tmp_path / "in" / "b.png")
    with pytest.raises(ValueError, match="is a file name, but 2 pictures are meant; give a folder"):
        plan([tmp_path / "in"], scale=4, out=tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"must end in one of"):
        plan([tmp_path / "in" / "a.png"], scale=4, out=tmp_path / "b.gif")


def test_depth_grey_and_profile_survive_the_way_through_files(tmp_path):
    pixels = put(tmp_path / "grey.png", channels=1, dtype=np.uint16, icc=b"profile")
    report = upscale_files(double, plan([tmp_path / "grey.png"], scale=2), scale=2)
    assert report.exit_code == 0
    back = read_picture(tmp_path / "grey_x2.png")
    np.testing.assert_array_equal(back.pixels, pixels.repeat(2, 0).repeat(2, 1))
    assert back.icc_profile == b"profile"
    row = report.done[0]
    assert (row["width"], row["height"], row["target"]) == (24, 16, str(tmp_path / "grey_x2.png"))


def test_bad_pictures_are_named_skipped_and_counted(tmp_path, capsys):
    put(tmp_path / "good.png")
    put(tmp_path / "large.png", 40, 40)
    put(tmp_path / "cut.jpg", 64, 64)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:900])
    (tmp_path / "text.png").write_text("hello")
    put(tmp_path / "z.png")
    said = []
    report = upscale_files(double, plan([tmp_path], scale=2), scale=2, max_megapixels=0.001, say=said.append)
    assert report.exit_code == 1
    assert len(report.done) == len(said) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == len(report.failed) == 3
    for name, line, row in zip(("cut.jpg", "large.png", "text.png"), errors, report.failed, strict=True):
        assert name in line
        assert name in row["error"]
        assert row["source"] == str(tmp_path / name)


@pytest.mark.parametrize("error", [RuntimeError("can't allocate memory:\n 9 bytes"), MemoryError(), ValueError("NaN")])
def test_a_picture_that_cannot_be_upscaled_does_not_stop_the_next(tmp_path, error, capsys):
    put(tmp_path / "a.png")
    put(tmp_path / "b.png")

    def fails_once(pixels, progress):
        if not fails_once.failed:
            fails_once.failed = True
            raise error
        return double(pixels, progress)

    fails_once.failed = False
    report = upscale_files(fails_once, plan([tmp_path], scale=2), scale=2)
    assert (len(report.done), len(report.failed), report.exit_code) == (1, 1, 1)
    err = capsys.readouterr().err
    assert str(tmp_path / "a.png") in err
    assert err.count("\n") == 1


def test_existing_results_are_kept_without_overwrite(tmp_path):
    put(tmp_path / "a.png")
    before = put(tmp_path / "a_x2.png")
    called = []

    def watched(pixels, progress):
        called.append(1)
        return double(pixels, progress)

    report = upscale_files(watched, [Job(tmp_path / "a.png", tmp_path / "a_x2.png")], scale=2)
    assert report.exit_code == 2
    assert "add --overwrite" in report.failed[0]["error"]
    assert not called, "the check must come before the work"
    np.testing.assert_array_equal(read_picture(tmp_path / "a_x2.png").pixels, before)
    report = upscale_files(watched, [Job(tmp_path / "a.png", tmp_path / "a_x2.png")], scale=2, overwrite=True)
    assert report.exit_code == 0


def test_a_picture_is_never_its_own_result(tmp_path):
    before = put(tmp_path / "a.png")
    report = upscale_files(double, [Job(tmp_path / "a.png", tmp_path / "a.png")], scale=2, overwrite=True)
    assert "replaced by its own result" in report.failed[0]["error"]
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png").pixels, before)


def test_formats_that_cannot_hold_the_result_fail_before_the_work(tmp_path):
    put(tmp_path / "a.png", channels=4)

    def never(pixels, progress):
        raise AssertionError("must not run")

    report = upscale_files(never, plan([tmp_path / "a.png"], scale=2, output_format="jpg"), scale=2)
    assert "cannot hold transparency" in report.failed[0]["error"]


def test_progress_without_a_terminal_is_a_line_now_and_then(capsys, monkeypatch):
    clock = iter(range(0, 100, 4))
    monkeypatch.setattr("hybrid_sr.progress.time.monotonic", lambda: float(next(clock)))
    with Progress("a.png", watched=False, every=10) as progress:
        for i in range(1, 11):
            progress(i, 10)
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 5
    assert all(line.startswith("a.png: ") and line.endswith(" s left") for line in lines)


def test_progress_on_a_terminal_is_a_bar(capsys):
    with Progress("a.png", watched=True) as progress:
        for i in range(1, 5):
            progress(i, 4)
    err = capsys.readouterr().err
    assert "a.png" in err
    assert "/4 [" in err


def test_progress_asks_whether_a_person_watches(monkeypatch):
    for answer in (True, False):
        monkeypatch.setattr(sys.stderr, "isatty", lambda answer=answer: answer)
        assert Progress("a").watched is answer

"""A GPU whose memory is full: every trainer says in one line which micro-batch fits, having tried it."""

import importlib
from types import SimpleNamespace

import pytest

TRAINERS = {
    "hybrid-sr": ("hybrid_sr.train", ["tiny"]),
    "mamba-diffusion": ("mamba_diffusion.train", ["tiny"]),
    "muse-mamba": ("muse_mamba.train", ["tiny"]),
    "muse-mamba-tokenizer": ("muse_mamba.tokenizer.train", ["tiny"]),
    "vim-compress": ("vim_compress.train", ["tiny"]),
}


@pytest.mark.parametrize(
    ("limit", "said"),
    [(4, "--micro_batch 4 fits"), (1, "--micro_batch 1 fits"), (0, "no smaller one fits")],
)
@pytest.mark.parametrize("name", list(TRAINERS))
def test_says_which_batch_fits(monkeypatch, capsys, tmp_path, name, limit, said):
    """The trainer stands in for one whose memory holds `limit` samples; what it is asked to try is looked at, too."""
    import torch

    module, preset = TRAINERS[name]
    module = importlib.import_module(module)
    tried = []

    def train(cfg, out, *, resume_run=False):
        tried.append((cfg.micro_batch, cfg.micro_steps, cfg.stop_at))
        if cfg.micro_batch > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(module, "train", train)
    batch = ["--global_batch", "24", "--micro_batch", "12", "--steps", "10", "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stop:
        module.main([*preset, *batch])
    assert stop.value.code == 1
    text = capsys.readouterr().err
    assert "full at --micro_batch 12" in text
    assert said in text
    assert text.strip().count("\n") == 0
    assert tried[0] == (12, 2, None)
    assert tried[1:] == [(micro, 2, 2) for micro in (8, 4, 2, 1) if micro >= limit]


@pytest.mark.parametrize(
    ("micro", "said"), [(5, "try --micro_batch 2"), (12, "try --micro_batch 4"), (1, "no smaller one fits")]
)
@pytest.mark.parametrize("package", ["hybrid_sr", "mamba_diffusion", "muse_mamba", "vim_compress"])
def test_several_processes_are_told_what_the_run_would_take(package, micro, said):
    """Nothing is tried then; what is named divides the batch of all processes, and is smaller than what failed."""
    outofmemory = importlib.import_module(f"{package}.outofmemory")
    cfg = SimpleNamespace(micro_batch=micro, global_batch=24 if micro == 12 else 20, processes=2, graph=False)
    assert said in outofmemory.fitting_batch(cfg, lambda *_: pytest.fail("tried"))


@pytest.mark.parametrize("micro", [1, 5])
@pytest.mark.parametrize("package", ["hybrid_sr", "mamba_diffusion", "muse_mamba", "vim_compress"])
def test_several_recording_processes_are_told_to_leave_that_out_first(package, micro):
    """One process of several that tried by itself would wait for the others for ever."""
    outofmemory = importlib.import_module(f"{package}.outofmemory")
    cfg = SimpleNamespace(micro_batch=micro, global_batch=20, processes=2, graph=True)
    more = {"recorded": True} if package == "muse_mamba" else {}  # its trainers share the function
    answer = outofmemory.fitting_batch(cfg, lambda *_: pytest.fail("tried"), **more)
    assert f"try --micro_batch {micro} without --graph" in answer

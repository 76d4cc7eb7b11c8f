"""Processes of several machines find each other at torchrun's rendezvous: two groups on the loopback device."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
from PIL import Image

TRAIN = (
    *("hybrid_sr.train", "tiny", "--scale", "2", "--patch", "8", "--min_contrast", "0", "--validation", "none"),
    *("--steps", "3", "--warmup", "0", "--log_every", "1", "--global_batch", "2", "--micro_batch", "1"),
)


def test_two_machines_have_the_losses_of_one_process(tmp_path):
    y, x = np.mgrid[:32, :32]
    for number in range(2):
        Image.fromarray((x * y * (number + 3) % 251).astype(np.uint8)).convert("RGB").save(tmp_path / f"{number}.png")
    data = ("--data", str(tmp_path))
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    machine = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"),
        *("--rdzv_backend", "c10d", "--rdzv_id", "test", "--rdzv_endpoint", f"localhost:{port}", "-m"),
        *(*TRAIN, *data, "--out", str(tmp_path / "two"), "--processes", "2"),
    ]
    alone = [sys.executable, "-m", *TRAIN, *data, "--out", str(tmp_path / "one")]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    running = [
        subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        for command in (machine, machine, alone)
    ]
    said = [process.communicate(timeout=240)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], "\n".join(said)
    losses = [
        [json.loads(row)["loss"] for row in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("one", "two")
    ]
    assert len(losses[0]) == 3
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)


def test_example_of_a_large_model_trains(workspace):
    """The file that FSDP2 cuts up, at a size for one process."""
    command = [sys.executable, str(workspace / "docs" / "launch" / "large_model.py"), "--width", "16", "--depth", "1"]
    command += ["--side", "16", "--steps", "4"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout.splitlines()[-1])
    assert row["last_loss"] < row["first_loss"]
    assert row["processes"] == 1

"""What the pages' examples take for granted, for tools/docs_examples.py: tensors by name, files, small options."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# One step with the smallest network on the pictures that `photos` writes; later options win over those of the page.
# One step of the preset `tiny` on the pictures that `prepare` writes. Of a page's own options only KEPT stay.
STEP = "--steps 1 --warmup 0 --global_batch 2 --micro_batch 2 --validation none --log_every 1 --save_every 1"
TRAIN = {
    ("hybrid-sr", "train"): f"tiny {STEP} --patch 8 --min_contrast 0 --data given/photos",
    ("mamba-diffusion", "train"): f"tiny-v2 {STEP} --data given/photos",
    ("muse-mamba", "train"): f"tiny {STEP} --data given/captioned --tokenizer given/captioned/tokenizer",
    ("muse-mamba", "train-tokenizer"): f"tiny {STEP} --size 16 --discriminator_layers 2 --data given/photos",
    ("vim-compress", "train"): f"tiny {STEP} --data given/classes",
}
KEPT = ("--out", "--from", "--teacher", "--init", "--resume")
# Other commands of long blocks that run after all, with these options behind the page's.
SMALL = {
    ("mamba-diffusion", "reconstruct"): "--samples 2 --steps 1 --sampler euler",
    ("vim-compress", "prune"): "--device cpu --precision fp32 --batch 2 --target parameters=0.8x",
    ("vim-compress", "classify"): "",
}

# Commands ahead of a page's own, run small.
FIRST = {"packages/mamba-diffusion/docs/reconstruct.md": "mamba-diffusion train tiny --out runs/t"}

SCAN = """
import torch
x, z, dt, x_b, dt_b = torch.rand(5, 1, 30, 8)
A, A_b = -torch.rand(2, 8, 4)
B, C, B_b, C_b = torch.randn(4, 1, 30, 4)
D, D_b, bias, bias_b, dt_bias = torch.randn(5, 8)
"""
SSD = """
import torch
x, z, x_b = torch.randn(3, 1, 30, 4, 8)
dt, dt_b = torch.rand(2, 1, 30, 4)
A, A_b = -torch.rand(2, 4)
B, C, B_b, C_b = torch.randn(4, 1, 30, 1, 16)
D, D_b, bias, bias_b, dt_bias = torch.randn(5, 4)
"""
NAMES: dict[str, str] = {
    "selective_scan": SCAN,
    "ssd": SSD,
    "selective_scan_2d": """
import torch
x, dt = torch.randn(1, 6, 5, 8), torch.rand(1, 6, 5, 4, 8)
A, D, dt_bias = -torch.rand(4, 8, 2), torch.ones(4, 8), torch.zeros(4, 8)
B, C = torch.randn(2, 1, 6, 5, 4, 2)
""",
    "depthwise_conv1d": "import torch\nx, weight, bias = torch.randn(2, 9, 8), torch.randn(8, 4), torch.randn(8)",
    "linear_scan": """
import torch
x, token = torch.randn(2, 9, 8), torch.randn(2, 8)
Lambda, B, C = (torch.randn(8, 4, dtype=torch.complex64) for _ in range(3))
Lambda, step, state = Lambda - 2, torch.rand(8), torch.zeros(2, 8, 4, dtype=torch.complex64)
""",
    "layer_norm": """
import torch
x, stream = torch.randn(2, 2, 9, 8)
branch, weight, bias = x.bfloat16(), torch.rand(8), torch.rand(8)
""",
    "s4": "import torch\nx, batch = torch.randn(2, 9, 192), 2\ntokens = torch.randn(3, batch, 192)",
    "sliding_window_attention": """
import torch
q, k, v = torch.randn(3, 1, 9, 2, 8)
q2, k2, v2 = torch.randn(3, 1, 9, 10, 2, 8)
""",
    "window_attention": """
import torch
q, k, v = torch.randn(3, 1, 16, 32, 2, 8)
table, big = torch.randn(961, 2), torch.randn(1521, 2)
""",
    "steps": """
import torch
x, z, dt = torch.rand(3, 2, 8)
weight, window = torch.randn(8, 4), torch.zeros(2, 8, 3)
A, B, C, state = -torch.rand(8, 4), torch.randn(2, 4), torch.randn(2, 4), torch.zeros(2, 8, 4)
D, bias, dt_bias = torch.randn(3, 8)
""",
}


def small(package: str, verb: str, argv: Sequence[str]) -> list[str] | None:
    """Return the arguments with which a command of a long block runs in seconds; None if it is only read."""
    if (package, verb) in TRAIN:
        return [*TRAIN[package, verb].split(), *kept(argv)]
    if (package, verb) in SMALL:
        return [*argv, *SMALL[package, verb].split()]
    return None


def kept(argv: Sequence[str]) -> list[str]:
    """Return those of a training's options that place it among the page's other commands."""
    found = []
    for place, word in enumerate(argv):
        if word in KEPT:
            found += [word] if word == "--resume" else [word, argv[place + 1].lstrip("/")]  # inside the page's folder
    return found


def prepare(page: str, names: dict[str, Any]) -> None:
    """Fill the current folder and the names of the examples.

    Args:
        page: Path of the page below the root, such as packages/hybrid-sr/README.md.
        names: Receives the tensors.
    """
    folder = Path()
    photos(folder / "given" / "photos")
    for name in ("photo.jpg", "picture.png", "face.png", "house.png", "apple.png"):
        picture(0).save(folder / name)
    for name in ("photos", "pictures"):
        photos(folder / name)
    mask().save(folder / "mask.png")
    if "mamba-diffusion" in page or page.startswith("docs/"):
        sensors(folder)
    if "vim-compress" in page or page.startswith("docs/"):
        for number in range(2):
            photos(folder / "given" / "classes" / f"class{number}")
        published(folder / "vim_t_midclstok_76p1acc.pth")
    if "muse-mamba" in page or page.startswith("docs/"):
        captioned(folder / "given" / "captioned")
    if page.startswith("packages/ssm-kernels/"):
        exec(NAMES.get(Path(page).stem, ""), names)


def published(file: Path) -> None:
    """Write a checkpoint like the published one of that name, with random weights."""
    import timm
    import torch
    import vim_compress.models  # noqa: F401

    torch.save({"model": timm.create_model("vim_tiny_patch16_224").state_dict()}, file)


def picture(number: int) -> Any:
    """Return a smooth picture with edges, 32 x 32."""
    import numpy as np
    from PIL import Image

    y, x = np.mgrid[:32, :32] / 32
    waves = [np.sin((9 + 4 * c) * x + (5 + number) * y * y * 3) > 0.2 * c for c in range(3)]
    return Image.fromarray((np.stack(waves, -1) * 170 + 40).astype(np.uint8))


def mask() -> Any:
    """Return a mask whose upper half is to be drawn anew."""
    from PIL import Image

    image = Image.new("L", (32, 32))
    image.paste(255, (0, 0, 32, 16))
    return image


def photos(folder: Path) -> None:
    """Write two pictures."""
    folder.mkdir(parents=True)
    for number in range(2):
        picture(number).save(folder / f"photo{number}.png")


def sensors(folder: Path) -> None:
    """Write three channels at 40 places, as CSV and NPZ, and places to ask about."""
    import numpy as np

    draw = np.random.default_rng(0)
    places = np.stack([draw.uniform(-10, 30, 40), draw.uniform(40, 42, 40)], 1)  # a narrow strip: few pixels
    values = np.sin(places @ draw.uniform(0.05, 0.2, (2, 3)))
    rows = "".join(",".join(f"{number:.3f}" for number in row) + "\n" for row in np.hstack([places, values]))
    (folder / "sensors.csv").write_text(f"lon,lat,red,green,blue\n{rows}")
    (folder / "places.csv").write_text("lon,lat\n1.5,41\n2.5,41.5\n")
    np.savez(folder / "sensors.npz", coords=places, values=values)


def captioned(folder: Path) -> None:
    """Write two pictures with captions, the captions as vectors, and a tokenizer with random weights."""
    import numpy as np
    import torch
    from muse_mamba.text import TextCache
    from muse_mamba.tokenizer import VQTokenizer, tokenizer_preset

    photos(folder)
    captions = ["a wave", "another wave"]
    rows = [{"file_name": f"photo{number}.png", "text": text} for number, text in enumerate(captions)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = np.random.default_rng(0).integers(-127, 128, (5, 8), dtype=np.int8)
    scales = np.full(5, 0.01, np.float16)
    TextCache(values, scales, np.array([0, 2, 5]), captions, "random").save(folder / "text.safetensors")
    torch.manual_seed(0)
    VQTokenizer(tokenizer_preset("tiny")).save_pretrained(folder / "tokenizer")

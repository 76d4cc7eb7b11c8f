"""What every row of the study does: train in a folder, score what came out, count what it costs."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config import CnnConfig, MambaVisionConfig, ModelConfig, VimConfig
from .pruner import TICKET
from .recipes import TrainConfig


@dataclass(frozen=True)
class Context:
    """Where a row works: the study's folder, the row's name and seed, and the dense run's configuration."""

    folder: Path
    name: str
    seed: int
    base: TrainConfig

    def run(self, part: str = "run") -> Path:
        """Return the folder of one of the row's trainings."""
        return self.folder / "runs" / f"{self.name}-{self.seed}" / part

    def dense(self, name: str = "dense") -> Path:
        """Return the trained dense network with the same seed."""
        return self.folder / "runs" / f"{name}-{self.seed}" / "run" / "model"


def train(cfg: TrainConfig, out: Path) -> float:
    """Run the trainer in a folder, going on with what is there; return the seconds it took all together."""
    from .train import train as run

    done = out / "seconds.json"
    if done.is_file():
        return json.loads(done.read_text())["seconds"]
    begun = time.monotonic()
    out.parent.mkdir(parents=True, exist_ok=True)
    progress = run(cfg, out, resume_run=(out / "config.json").is_file())
    if progress.step < cfg.steps and not drawn(out):
        raise SystemExit(f"{out}: stopped at step {progress.step} of {cfg.steps}; the study goes on from there")
    seconds = time.monotonic() - begun
    done.write_text(json.dumps({"seconds": seconds}))
    return seconds


def drawn(out: Path) -> bool:
    """Say whether a run ended with its early-bird ticket."""
    file = out / TICKET
    return file.is_file() and json.loads(file.read_text())["ticket_step"] is not None


def accuracy_of(at: Context, model: Any) -> float:
    """Return the accuracy of a network on the study's held-out pictures, in percent."""
    import torch

    from .validation import score

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return score(model.to(device).eval(), _held(at, model.config), device)


_HELD: dict[tuple[str, tuple[int, int]], Any] = {}


def _held(at: Context, config: ModelConfig) -> Any:
    from .sources import read_part
    from .validation import Held

    key = (str(at.base.data), config.image)
    if key not in _HELD:
        held = read_part(at.base.data, max(config.image), "held")
        assert held is not None  # a study refuses others
        _HELD[key] = Held(held, config)
    return _HELD[key]


def measured(at: Context, folder: Path, seconds: float, masks: Path | None = None) -> dict[str, Any]:
    """Return what a row says of a trained network; latency is added when nothing else runs."""
    from .info import count
    from .masks import apply_masks, load_masks, per_layer, sparsity_of
    from .weights import load_model

    model = load_model(folder)
    row: dict[str, Any] = {"sparsity": 0.0}
    if masks is not None:
        found = load_masks(masks)
        apply_masks(model, found)  # so that what is scored is what was pruned
        row = {"sparsity": sparsity_of(found), "per_layer": per_layer(found)}
    return row | {
        "method": at.name,
        "seed": at.seed,
        "steps": at.base.steps,
        "parameters": count(model),
        "total_macs": macs_of(model.config),
        "top1": accuracy_of(at, model),
        "seconds": seconds,
        "model": str(folder.relative_to(at.folder)),
        "config": model.config.to_dict(),
    }


def macs_of(config: ModelConfig) -> int:
    """Return the multiply-adds of a network for one picture; a linear scan counts by its products only."""
    from .info import model_info

    if isinstance(config, CnnConfig):
        import torch

        from .info import count_macs
        from .models import make_network

        with torch.device("meta"):
            return sum(count_macs(make_network(config), torch.empty(1, config.channels, *config.image)))
    return model_info(config)["total_macs"]


def transferred(at: Context, folder: Path) -> dict[str, float]:
    """Return the accuracy at twice the resolution, with the steps halved and without."""
    from .weights import load_model

    found = {}
    for name, scale in (("top1_double_size", 1.0), ("top1_double_size_half_step", 0.5)):
        model = load_model(folder)
        config = model.config
        assert isinstance(config, VimConfig | MambaVisionConfig)
        model.set_input_size((2 * config.image[0], 2 * config.image[1]))
        for module in model.modules():
            if hasattr(module, "step_scale"):
                module.step_scale = scale  # pyright: ignore[reportArgumentType]
        found[name] = accuracy_of(at, model)
    return found

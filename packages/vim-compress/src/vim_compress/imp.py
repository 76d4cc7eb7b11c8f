"""Iterative magnitude pruning with rewinding, its controls, and how far apart two networks are along a line.

Source: Frankle and Carbin 2019, arXiv:1803.03635; Paul et al. 2022, arXiv:2210.03044.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from .masks import Masks, choose, load_masks, save_masks
from .models import make_network
from .recipes import TrainConfig
from .sparsity import SparsityConfig
from .weights import load_model

Control = Literal["ticket", "random", "reinit"]
REWIND = "rewind.safetensors"


@dataclass(frozen=True)
class Round:
    """One round: its folder, the sparsity it was trained at and its masks (None for the dense one)."""

    folder: Path
    sparsity: float
    masks: Path | None


def iterative_pruning(
    cfg: TrainConfig,
    out: Path,
    *,
    rounds: int,
    share: float = 0.2,
    rewind_step: int = 0,
    train: Callable[[TrainConfig, Path], object],
    dense: Path | None = None,
) -> list[Round]:
    """Train, prune a share of what is left by magnitude over all layers, rewind the survivors, and train again.

    Every round is a run of the trainer in a folder of its own, so an interrupted one goes on where it was: `train` has
    to resume. After n rounds the sparsity is 1 - (1 - share)^n.

    Args:
        cfg: The dense run. Later rounds have the same, from `rewind_step` on.
        out: Folder of the rounds: round-0 (dense), round-1, ...
        rounds: How often is pruned.
        share: Of the weights that are left.
        rewind_step: Step whose weights the survivors get back; 0 are the first ones.
        train: Runs a configuration in a folder, resuming what is there.
        dense: Folder of the finished dense run with that `rewind_step`; None trains it as round-0.
    """
    if dense is None:
        dense = out / "round-0"
        train(replace(cfg, rewind_step=rewind_step), dense)
    out.mkdir(parents=True, exist_ok=True)
    found = [Round(dense, 0.0, None)]
    for number in range(1, rounds + 1):
        before, sparsity = found[-1], 1 - (1 - share) ** number
        file = out / f"round-{number}.masks.safetensors"
        if not file.is_file():
            masks = next_masks(before, sparsity)
            save_masks(file, masks, {"round": number, "share": share})
        folder = out / f"round-{number}"
        train(rewound(cfg, dense / REWIND, rewind_step, file), folder)
        found.append(Round(folder, sparsity, file))
    return found


def next_masks(before: Round, sparsity: float) -> Masks:
    """Prune a trained round to a sparsity by |w| over all layers; what was pruned stays pruned.

    The classifier is left whole: its weights are the smallest, and a network without them says nothing.
    """
    from .masks import HEAD, prunable

    weights = {n: p.detach().abs() for n, p in prunable(newest_weights(before.folder)).items() if n != HEAD}
    old = None if before.masks is None else load_masks(before.masks)
    return choose(weights, sparsity, "global", before=old)


def newest_weights(run: Path) -> torch.nn.Module:
    """Return the network of a finished run: its averaged weights."""
    return load_model(run / "model")


def rewound(cfg: TrainConfig, weights: Path, step: int, masks: Path) -> TrainConfig:
    """Return the run of a round: the survivors start from the weights of a step, with the schedule from there on."""
    sparsity = SparsityConfig(mask=str(masks))
    return replace(cfg, init=str(weights), first_step=step, sparsity=sparsity)


def control(cfg: TrainConfig, masks: Path, out: Path, kind: Control, *, rewind: Path, step: int) -> TrainConfig:
    """Return the run that a ticket is compared with.

    Args:
        cfg: The dense run.
        masks: The ticket's.
        out: Where the control's own masks go.
        kind: "ticket" itself; "random": as many weights of each layer, chosen by chance; "reinit": the ticket's masks
            on newly drawn weights.
        rewind: Weights to start from.
        step: Their step.
    """
    if kind == "random":
        generator = torch.Generator().manual_seed(cfg.seed)
        shuffled = {n: shuffle(m, generator) for n, m in load_masks(masks).items()}
        save_masks(out, shuffled, {"control": kind})
        return rewound(cfg, rewind, step, out)
    if kind == "reinit":
        return replace(cfg, seed=cfg.seed + 1_000, first_step=step, sparsity=SparsityConfig(mask=str(masks)))
    return rewound(cfg, rewind, step, masks)


def shuffle(mask: Tensor, generator: torch.Generator) -> Tensor:
    """Return a mask with as many ones in other places."""
    order = torch.randperm(mask.numel(), generator=generator)
    return mask.flatten()[order].view_as(mask)


def interpolate(a: Mapping[str, Tensor], b: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return (1 - share) a + share b; integers are a's."""
    return {n: x.lerp(b[n], share) if x.is_floating_point() else x for n, x in a.items()}


def barrier(a: Path, b: Path, error: Callable[[torch.nn.Module], float], points: int = 11) -> float:
    """Return how much worse than its ends the path between two networks gets: max error minus the ends' mean.

    Args:
        a: Folder of a saved network.
        b: Folder of another, of the same configuration.
        error: Of a network, for example 100 minus the accuracy in percent.
        points: On the line, both ends included.
    """
    one, other = load_model(a), load_model(b)
    middle = make_network(one.config).eval()
    errors = []
    for point in range(points):
        middle.load_state_dict(interpolate(one.state_dict(), other.state_dict(), point / (points - 1)))
        errors.append(error(middle))
    return max(errors) - (errors[0] + errors[-1]) / 2


def snip_masks(cfg: TrainConfig, sparsity: float, batches: int = 8) -> Masks:
    """Choose masks before training by |w g|, g being the mean gradient over some batches at the first weights.

    Source: Lee et al. 2018, arXiv:1810.02340.
    """
    from .data import Numbered, loader, open_source
    from .importance import mean_gradients
    from .masks import HEAD, prunable
    from .preprocess import to_float

    source, _, config = open_source(replace(cfg, validation="none"), rank=0, verbose=False)
    assert isinstance(source, Numbered)
    torch.manual_seed(cfg.seed)  # the weights that the run will start with
    model = make_network(config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device)
    found = []
    for batch, _ in zip(loader(replace(cfg, workers=0), source, 0, 0, pin=False), range(batches), strict=False):
        found.append((to_float(batch["image"], config, device), batch["target"].argmax(-1).to(device)))
    gradients = mean_gradients(model, found)
    scores = {n: (p.detach() * gradients[n]).abs().cpu() for n, p in prunable(model).items() if n != HEAD}
    return choose(scores, sparsity, "global")

"""The rows of the study: what is trained for each, and what is written down.

Every row runs in a process of its own: `python -m vim_compress.rows DIR NAME SEED`. What a row trains it leaves in
DIR/runs/NAME-SEED/, where it goes on after an interruption; what it found, in DIR/rows/NAME-SEED.json.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .config import CnnConfig, ModelConfig
from .recipes import TrainConfig
from .sparsity import SparsityConfig
from .trials import Context, accuracy_of, macs_of, measured, train, transferred
from .weights import read_config

SPARSITIES = (0.6, 0.8, 0.9)
KEPT = (0.75, 0.5, 0.25)
TICKETS = (0.3, 0.5, 0.7)
PICTURES = "pictures"  # folder in the study's, of those that all rows of a seed train on
GATE_L1 = 1e-4
IMP_SHARE = 0.369  # three rounds end at about 37, 60 and 75 % sparsity


@dataclass(frozen=True)
class Job:
    """One row's task: its name, what it waits for, and the function that does it."""

    name: str
    needs: tuple[str, ...]
    work: Callable[[Context], dict[str, Any]]


def jobs() -> list[Job]:
    """Return every row of the study, those first that others wait for."""
    found = [_plain("dense"), _plain("cnn", _cnn), _plain("mambavision", _hybrid)]
    for place in ("output", "inner"):
        found.append(_plain(f"se-{place}", _vim(se=place)))
    found += [_plain("mobile-stem", _vim(stem="mobilenet")), _plain("mobile-tokens", _vim(token_conv="depthwise2d"))]
    found.append(_plain("mambavision-separable", _hybrid_with(conv_blocks="separable")))
    for kind in ("shifted", "band", "neighbourhood"):
        found.append(_plain(f"mambavision-{kind}", _hybrid_with(attention=kind, windows=(4, 4, 4, 2))))
    found.append(_plain("mambavision-small-windows", _hybrid_with(windows=(4, 4, 4, 2))))
    for mixer in ("mamba2", "s4", "s4d", "s5"):
        found.append(Job(f"vim-{mixer}", (), _trained(_vim(mixer=mixer), transfer=mixer != "mamba2")))
        found.append(_plain(f"mambavision-{mixer}", _hybrid_with(mixer=mixer)))
    for final in SPARSITIES:
        label = f"{round(100 * final)}"
        for schedule in ("cosine", "cubic", "linear", "const"):
            if schedule == "cosine" or final == 0.8:
                found.append(_pruned(f"{schedule}-{label}", score="magnitude", schedule=schedule, final=final))
        found.append(_pruned(f"taylor-{label}", score="taylor", final=final))
        found.append(Job(f"snip-{label}", (), _snip(final)))
    for score in ("gradient", "rms_gradient", "random"):
        found.append(_pruned(f"{score.replace('_', '-')}-80", score=score, final=0.8))
    for regrow in ("grad", "magnitude"):
        found.append(_pruned(f"regrow-{regrow}-80", score="magnitude", final=0.8, regrow=regrow))
    for scope in ("global", "erk"):
        found.append(_pruned(f"cosine-{scope}-80", score="magnitude", final=0.8, scope=scope))
    found.append(Job("imp", (), _imp))
    found += [Job(f"early-bird-{round(100 * p)}", (), _early_bird(p)) for p in TICKETS]
    for kept in KEPT:
        found.append(Job(f"cut-{round(100 * kept)}", ("dense",), _cut(kept, "magnitude")))
    found.append(Job("cut-taylor-50", ("dense",), _cut(0.5, "taylor")))
    found.append(Job("cut-random-50", ("dense",), _cut(0.5, "random")))
    return found


def find_job(name: str) -> Job:
    """Return a row by its name.

    Raises:
        ValueError: No such row; the nearest are named.
    """
    from difflib import get_close_matches

    known = {job.name: job for job in jobs()}
    if name not in known:
        close = get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"nearest are {', '.join(close)}" if close else f"known are {', '.join(known)}"
        raise ValueError(f"study: unknown experiment {name!r}; {hint}")
    return known[name]


Change = Callable[[ModelConfig], ModelConfig]


def _vim(**options: Any) -> Change:
    return lambda model: replace(model, **options)


def _hybrid(model: ModelConfig) -> ModelConfig:
    from .presets import mambavision_micro_32

    new = mambavision_micro_32()
    shared = {k: getattr(model, k) for k in ("image", "channels", "classes", "mean", "std", "drop_path")}
    return replace(new, **shared)


def _hybrid_with(**options: Any) -> Change:
    return lambda model: replace(_hybrid(model), **options)


def _cnn(model: ModelConfig) -> ModelConfig:
    shared = {k: getattr(model, k) for k in ("image", "channels", "classes", "mean", "std")}
    return CnnConfig(**shared)


def _plain(name: str, change: Change = lambda model: model) -> Job:
    return Job(name, (), _trained(change))


def _trained(change: Change, *, transfer: bool = False) -> Callable[[Context], dict[str, Any]]:
    def work(at: Context) -> dict[str, Any]:
        seconds = train(replace(at.base, model=change(at.base.model)), at.run())
        row = measured(at, at.run() / "model", seconds)
        return row | (transferred(at, at.run() / "model") if transfer else {})

    return work


def _pruned(name: str, **options: Any) -> Job:
    def work(at: Context) -> dict[str, Any]:
        steps = at.base.steps
        plan = SparsityConfig(
            start=round(0.1 * steps), end=round(0.7 * steps), update_every=max(1, steps // 60), **options
        )
        seconds = train(replace(at.base, sparsity=plan), at.run())
        return measured(at, at.run() / "model", seconds, masks=at.run() / "masks.safetensors")

    return Job(name, (), work)


def _snip(final: float) -> Callable[[Context], dict[str, Any]]:
    def work(at: Context) -> dict[str, Any]:
        from .imp import snip_masks
        from .masks import save_masks

        file = at.run("masks.safetensors")
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            save_masks(file, snip_masks(at.base, final), {"score": "snip"})
        seconds = train(replace(at.base, sparsity=SparsityConfig(mask=str(file))), at.run())
        return measured(at, at.run() / "model", seconds, masks=file)

    return work


def _imp(at: Context) -> dict[str, Any]:
    """Train the rounds, the controls of the last one, and the barriers between neighbours."""
    from .imp import REWIND, barrier, control, iterative_pruning

    begun = time.monotonic()
    rewind = round(0.05 * at.base.steps)
    parts = at.run("rounds")
    found = iterative_pruning(at.base, parts, rounds=3, share=IMP_SHARE, rewind_step=rewind, train=train)
    rounds = []
    for number, one in enumerate(found):
        row = measured(at, one.folder / "model", 0.0, masks=one.masks)
        if number:
            before = found[number - 1].folder / "model"
            row["barrier"] = barrier(before, one.folder / "model", lambda m: 100 - accuracy_of(at, m), points=7)
        rounds.append(row)
    last = found[-1]
    assert last.masks is not None
    controls = {}
    for kind in ("random", "reinit"):
        own = parts / f"{kind}.masks.safetensors"
        cfg = control(at.base, last.masks, own, kind, rewind=found[0].folder / REWIND, step=rewind)
        train(cfg, parts / kind)
        controls[kind] = measured(at, parts / kind / "model", 0.0)["top1"]
    row = measured(at, last.folder / "model", time.monotonic() - begun, masks=last.masks)
    return row | {"rounds": rounds, "controls": controls, "rewind_step": rewind, "runs_trained": len(found) + 2}


def _early_bird(pruned: float) -> Callable[[Context], dict[str, Any]]:
    """Search with gates, cut at the ticket, and train what is left for the steps that remain."""

    def work(at: Context) -> dict[str, Any]:
        from .prune import save_cut

        epoch = max(1, at.base.steps // 20)
        search = replace(
            at.base,
            model=replace(at.base.model, gates=True),
            sparsity=SparsityConfig(gate_l1=GATE_L1, ticket=pruned, ticket_every=epoch),
        )
        seconds = train(search, at.run("search"))
        looks = json.loads((at.run("search") / "ticket.json").read_text())
        drawn = looks["ticket_step"] or at.base.steps
        small = at.run("ticket")
        if not (small / "config.json").is_file():
            save_cut(ticket_network(at.run("search") / "model", pruned), small, overwrite=True)
        model = read_config(small)
        left = max(1, at.base.steps - drawn)
        going_on = replace(at.base, model=model, init=str(small), steps=left, warmup=min(at.base.warmup, left // 10))
        seconds += train(going_on, at.run())
        row = measured(at, at.run() / "model", seconds)
        macs, dense = row["total_macs"], macs_of(replace(at.base.model, classes=model.classes))
        cost = (drawn * dense + left * macs) / (at.base.steps * dense)
        return row | {"ticket_step": looks["ticket_step"], "looks": looks["looks"], "training_cost": cost}

    return work


def ticket_network(folder: Path, pruned: float) -> Any:
    """Cut a trained network with gates to the units whose gates are the largest of all."""
    from .axes import find_axes
    from .cut import cut, fold_gates
    from .earlybird import gate_mask
    from .weights import load_model

    model = load_model(folder)
    axes = [axis for axis in find_axes(model) if axis.gate]
    tensors = dict(model.named_parameters())
    kept = gate_mask({axis.name: tensors[str(axis.gate)] for axis in axes}, pruned)
    parts = kept.split([axis.size for axis in axes])
    units = {axis.name: part.nonzero().flatten().tolist() for axis, part in zip(axes, parts, strict=True)}
    return cut(fold_gates(model), {name: chosen or [0] for name, chosen in units.items()})


def _cut(kept: float, by: str) -> Callable[[Context], dict[str, Any]]:
    """Cut the dense network and recover with the dense one as the teacher, at half of its steps."""

    def work(at: Context) -> dict[str, Any]:
        import torch

        from .axes import find_axes
        from .cut import cut
        from .importance import importance
        from .prune import save_cut, taylor_batches
        from .target import best_units, sizes_at
        from .weights import load_model

        small = at.run("cut")
        if not (small / "config.json").is_file():
            model = load_model(at.dense())
            axes = find_axes(model)
            device = torch.device("cpu")
            batches = taylor_batches(at.base.data, model.config, 8, device) if by == "taylor" else ()
            scores = importance(model, axes, by, batches, seed=at.seed)  # pyright: ignore[reportArgumentType]
            save_cut(cut(model, best_units(scores, sizes_at(axes, scores, kept, "uniform"))), small, overwrite=True)
        before = measured(at, small, 0.0)["top1"]
        cfg = replace(
            at.base,
            model=read_config(small),
            init=str(small),
            teacher=str(at.dense()),
            steps=max(2, at.base.steps // 2),
            lr=max(at.base.min_lr, at.base.lr / 2),
            warmup=min(at.base.warmup, at.base.steps // 8),
        )
        seconds = train(cfg, at.run())
        return measured(at, at.run() / "model", seconds) | {"top1_before": before, "kept": kept, "steps": cfg.steps}

    return work


def main(argv: Sequence[str] | None = None) -> int:
    """Do one row and write it down."""
    folder, name, seed = sys.argv[1:] if argv is None else argv
    settings = json.loads((Path(folder) / "study-config.json").read_text())
    base = replace(base_config(settings, int(seed)), ahead=str(Path(folder) / PICTURES))
    at = Context(Path(folder), name, int(seed), base)
    row = find_job(name).work(at)
    file = Path(folder) / "rows" / f"{name}-{seed}.json"
    file.parent.mkdir(exist_ok=True)
    half = file.with_suffix(".tmp")
    half.write_text(json.dumps(row, indent=1))
    half.replace(file)
    return 0


def base_config(settings: dict[str, Any], seed: int) -> TrainConfig:
    """Return the dense run of a study: its recipe with what the command line changed."""
    from .recipes import recipe

    changed = {k: settings[k] for k in ("data", "steps", "global_batch", "workers") if settings.get(k) is not None}
    base = recipe(settings["recipe"])
    changed["micro_batch"] = changed.get("global_batch", base.micro_batch)
    steps = changed.get("steps", base.steps)
    changed |= {"warmup": min(base.warmup, steps // 10), "save_every": steps, "sample_every": steps, "seed": seed}
    changed["log_every"] = max(1, min(base.log_every, steps // 4))
    return replace(base, **changed)


if __name__ == "__main__":
    raise SystemExit(main())

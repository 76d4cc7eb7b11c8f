"""The rows of the study: what is trained for each, and what is written down.

Every row runs in a process of its own: `python -m vim_compress.rows DIR NAME SEED [eager]`. On a GPU its training steps
are recorded and replayed, which a few networks do not allow: those run again with `eager`. What a row trains it leaves
in DIR/runs/NAME-SEED/, where it goes on after an interruption; what it found, in DIR/rows/NAME-SEED.json.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
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
IMP_ROUNDS = 3
REWIND_SHARE = 0.05  # of the steps: where iterative pruning goes back to


@dataclass(frozen=True)
class Job:
    """One row's task: its name, what it waits for, and the function that does it."""

    name: str
    needs: tuple[str, ...]
    work: Callable[[Context], dict[str, Any]]


def jobs() -> list[Job]:
    """Return every row of the study, those first that others wait for."""
    return [*_networks(), *_prunings(), *_cuts()]


def _networks() -> list[Job]:
    """Return the dense networks, and those built otherwise."""
    found = [_plain("dense", rewind=True), _plain("cnn", _cnn), _plain("mambavision", _hybrid)]
    found += [_plain(f"se-{place}", _vim(se=place)) for place in ("output", "inner")]
    found += [_plain("patch-stem", _vim(stem="patch")), _plain("mobile-tokens", _vim(token_conv="depthwise2d"))]
    found.append(_plain("mambavision-separable", _hybrid_with(conv_blocks="separable")))
    for kind in ("shifted", "band", "neighbourhood"):
        found.append(_plain(f"mambavision-{kind}", _hybrid_with(attention=kind, windows=(4, 4, 4, 2))))
    found.append(_plain("mambavision-small-windows", _hybrid_with(windows=(4, 4, 4, 2))))
    for mixer in ("mamba2", "s4", "s4d", "s5"):
        for family, change in (("vim", _vim(mixer=mixer)), ("mambavision", _hybrid_with(mixer=mixer))):
            found.append(Job(f"{family}-{mixer}", (), _trained(change, transfer=mixer != "mamba2")))
    return found


def _prunings() -> list[Job]:
    """Return what is masked: every rule at three sparsities, tickets and their controls."""
    found = []
    for final in SPARSITIES:
        label = f"{round(100 * final)}"
        for schedule in ("cosine", "cubic", "linear", "const"):
            found.append(_pruned(f"{schedule}-{label}", score="magnitude", schedule=schedule, final=final))
        for score in ("taylor", "gradient", "rms_gradient", "random"):
            found.append(_pruned(f"{score.replace('_', '-')}-{label}", score=score, final=final))
        for regrow in ("grad", "magnitude"):
            found.append(_pruned(f"regrow-{regrow}-{label}", score="magnitude", final=final, regrow=regrow))
        for scope in ("global", "erk"):
            found.append(_pruned(f"cosine-{scope}-{label}", score="magnitude", final=final, scope=scope))
        found.append(Job(f"snip-{label}", (), _snip(final)))
    found.append(Job("imp", ("dense",), _imp))
    for number in range(1, IMP_ROUNDS + 1):
        label = f"{round(100 * (1 - (1 - IMP_SHARE) ** number))}"
        for kind in ("random", "reinit"):
            found.append(Job(f"imp-{kind}-{label}", ("imp",), _imp_control(number, kind)))
    return found


def _cuts() -> list[Job]:
    """Return what is cut smaller."""
    found = [Job(f"early-bird-{round(100 * p)}", (), _early_bird(p)) for p in TICKETS]
    for kept in KEPT:
        label = f"{round(100 * kept)}"
        found.append(Job(f"cut-{label}", ("dense",), _cut(kept, "magnitude")))
        found += [Job(f"cut-{by}-{label}", ("dense",), _cut(kept, by)) for by in ("taylor", "random")]
        found.append(Job(f"mambavision-cut-{label}", ("mambavision",), _cut(kept, "magnitude", of="mambavision")))
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


def _plain(name: str, change: Change = lambda model: model, *, rewind: bool = False) -> Job:
    return Job(name, (), _trained(change, rewind=rewind))


def rewind_step(base: TrainConfig) -> int:
    """Return the step whose weights iterative pruning goes back to."""
    return round(REWIND_SHARE * base.steps)


def _trained(change: Change, *, transfer: bool = False, rewind: bool = False) -> Callable[[Context], dict[str, Any]]:
    def work(at: Context) -> dict[str, Any]:
        cfg = replace(at.base, model=change(at.base.model), rewind_step=rewind_step(at.base) if rewind else None)
        seconds = train(cfg, at.run())
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
    """Train the rounds, which start from the dense row, and measure the barriers between neighbours."""
    from .imp import barrier, iterative_pruning

    begun, dense, step = time.monotonic(), at.dense().parent, rewind_step(at.base)
    found = iterative_pruning(
        at.base, at.run("rounds"), rounds=IMP_ROUNDS, share=IMP_SHARE, rewind_step=step, train=train, dense=dense
    )
    rounds = []
    for before, one in pairwise(found):
        apart = barrier(before.folder / "model", one.folder / "model", lambda m: 100 - accuracy_of(at, m), points=7)
        seconds = json.loads((one.folder / "seconds.json").read_text())["seconds"]
        row = measured(at, one.folder / "model", seconds, masks=one.masks)
        rounds.append(row | {"method": f"imp-{round(100 * one.sparsity)}", "barrier": apart})
    return {**rounds[-1], "seconds": time.monotonic() - begun, "rounds": rounds, "rewind_step": step}


def _imp_control(number: int, kind: str) -> Callable[[Context], dict[str, Any]]:
    """Train what the ticket of a round is compared with."""

    def work(at: Context) -> dict[str, Any]:
        from .imp import REWIND, control

        masks = replace(at, name="imp").run("rounds") / f"round-{number}.masks.safetensors"
        own = masks if kind == "reinit" else at.run("masks.safetensors")
        own.parent.mkdir(parents=True, exist_ok=True)
        rewind = at.dense().parent / REWIND
        cfg = control(at.base, masks, own, kind, rewind=rewind, step=rewind_step(at.base))  # pyright: ignore[reportArgumentType]
        return measured(at, at.run() / "model", train(cfg, at.run()), masks=own)

    return work


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


def _cut(kept: float, by: str, of: str = "dense") -> Callable[[Context], dict[str, Any]]:
    """Cut a trained network and recover with the uncut one as the teacher, at half of its steps."""

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
            model = load_model(at.dense(of))
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
            teacher=str(at.dense(of)),
            steps=max(2, at.base.steps // 2),
            lr=max(at.base.min_lr, at.base.lr / 2),
            warmup=min(at.base.warmup, at.base.steps // 8),
        )
        seconds = train(cfg, at.run())
        return measured(at, at.run() / "model", seconds) | {"top1_before": before, "kept": kept, "steps": cfg.steps}

    return work


def main(argv: Sequence[str] | None = None) -> int:
    """Do one row and write it down."""
    import torch

    folder, name, seed, *eager = sys.argv[1:] if argv is None else argv
    settings = json.loads((Path(folder) / "study-config.json").read_text())
    base = base_config(settings, int(seed))
    base = replace(base, ahead=None if base.resident else str(Path(folder) / PICTURES))
    base = replace(base, graph=torch.cuda.is_available() and not eager)
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

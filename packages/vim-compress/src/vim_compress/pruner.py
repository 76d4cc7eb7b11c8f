"""Pruning while training: masks that follow a schedule, gates that are driven to zero, and the early-bird ticket.

The trainer calls `gradients` before each optimizer step and `after` once it is done. What is masked has no gradient, so
its weight, both moments and the average stay exactly zero between updates; at an update they are set to zero.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .earlybird import EarlyBird, gate_mask
from .masks import HEAD, Masks, apply_masks, check_fit, choose, load_masks, prunable, save_masks, sparsity_of
from .sparsity import SparsityConfig, regrow_at, sparsity_at

if TYPE_CHECKING:
    from .recipes import TrainConfig

TICKET = "ticket.json"
MASKS = "masks.safetensors"


class Pruner:
    """What a run prunes. Without pruning and gates it does nothing.

    Args:
        cfg: The run.
        model: The network that is trained.
        average: Its running average, whose weights are masked too.

    Attributes:
        masks: By parameter name; empty without pruning.

    Raises:
        ValueError: The mask file is of another network, or gates are wanted that the network lacks.
    """

    def __init__(self, cfg: TrainConfig, model: nn.Module, average: nn.Module) -> None:
        self.cfg: SparsityConfig = cfg.sparsity
        self.seed = cfg.seed
        self.model, self.average = model, average
        self.weights = prunable(model) if self.cfg.prunes else {}
        if self.cfg.scope == "global":  # the classifier's weights are the smallest: ranked with all, they would all go
            self.weights.pop(HEAD, None)
        device = next(model.parameters()).device
        self.masks: Masks = {n: torch.ones_like(p, dtype=torch.bool) for n, p in self.weights.items()}
        self.fixed = self.cfg.mask is not None
        if self.cfg.mask is not None:
            given = load_masks(self.cfg.mask)
            check_fit(given, {n: p.shape for n, p in self.weights.items()})
            self.masks = {n: given[n].to(device) for n in given}
            self.weights = {n: self.weights[n] for n in given}
        scored = self.cfg.score in ("gradient", "rms_gradient", "taylor")
        self.sums: dict[str, Tensor] = {n: torch.zeros_like(p) for n, p in self.weights.items()} if scored else {}
        grown = self.cfg.regrow == "grad"
        self.dense: dict[str, Tensor] = {n: torch.zeros_like(p) for n, p in self.weights.items()} if grown else {}
        self.history: dict[str, Tensor] = {}  # magnitudes that weights had when they were pruned
        self.count = torch.zeros((), device=device)  # steps whose gradients are in the sums
        self.gates = {n: p for n, p in model.named_parameters() if n.rpartition(".")[2].startswith("gate")}
        self.watch = EarlyBird()
        self.ticket_step: int | None = None
        if (self.cfg.gate_l1 or self.cfg.ticket) and not self.gates:
            raise ValueError("sparsity: gate_l1 and ticket need channel gates, got a model without; set --model.gates")
        self._zero(None)

    @torch.no_grad()
    def gradients(self) -> None:
        """Gather scores, pull gates to zero and mask gradients; they must be unscaled and the same on every process.

        Everything happens in tensors that stay where they are: a recorded step does it too.
        """
        if self.cfg.gate_l1:
            for gate in self.gates.values():
                if gate.grad is not None:
                    gate.grad.add_(gate.sign(), alpha=self.cfg.gate_l1)
        if self.sums or self.dense:
            self._observe()
        grads = [(p.grad, self.masks[n]) for n, p in self.weights.items() if p.grad is not None]
        if grads:
            torch._foreach_mul_(  # pyright: ignore[reportPrivateImportUsage]
                [g for g, _ in grads], [m.to(g.dtype) for g, m in grads]
            )

    def _observe(self) -> None:
        self.count += 1
        for name, weight in self.weights.items():
            if weight.grad is None:
                continue
            gradient = weight.grad.float()
            if self.dense:
                self.dense[name] += gradient.abs()
            if self.cfg.score == "gradient":
                self.sums[name] += gradient.abs()
            elif self.cfg.score == "rms_gradient":
                self.sums[name] += gradient.square()
            elif self.cfg.score == "taylor":
                self.sums[name] += (weight.float() * gradient).abs()

    @torch.no_grad()
    def after(self, step: int, optimizer: torch.optim.Optimizer, out: Path | None) -> None:
        """Update masks and look for the ticket, if it is time.

        Args:
            step: Steps done.
            optimizer: Whose moments are masked.
            out: Folder for the ticket; None on all but the main process.
        """
        cfg = self.cfg
        if cfg.score != "none" and not self.fixed and cfg.start <= step <= cfg.end + cfg.update_every:
            due = step % cfg.update_every == 0 or step == cfg.end
            if due:
                self.update(step, optimizer)
        if cfg.ticket and self.ticket_step is None and step % cfg.ticket_every == 0:
            kept = gate_mask(self.gates, cfg.ticket)
            distances = self.watch.add(kept)
            if self.watch.fired is not None:
                self.ticket_step = step
            if out is not None:
                self._write_ticket(out, step, distances)

    @property
    def stops(self) -> bool:
        """Whether the ticket was drawn and the run shall end."""
        return self.ticket_step is not None and self.cfg.ticket_stop

    def update(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Choose new masks for the sparsity of a step."""
        scores = self.scores(step)
        grown = self.cfg.regrow != "none"
        old = self.masks
        target = sparsity_at(step, self.cfg)
        factor = self.cfg.head_factor
        masks = choose(scores, target, self.cfg.scope, before=old, head_factor=factor)
        if grown:
            masks = self._exchange(step, masks, scores)
        for name, mask in masks.items():
            self.masks[name].copy_(mask)
        self._zero(optimizer)
        for gathered in (*self.sums.values(), *self.dense.values(), self.count):
            gathered.zero_()

    def scores(self, step: int) -> dict[str, Tensor]:
        """Return the score of every weight; low ones are pruned first."""
        if self.cfg.score == "magnitude":
            return {n: p.detach().abs() for n, p in self.weights.items()}
        if self.cfg.score == "random":
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
            return {n: torch.rand(p.shape, generator=generator).to(p.device) for n, p in self.weights.items()}
        mean = {n: total / self.count.clamp_min(1) for n, total in self.sums.items()}
        return {n: s.sqrt() for n, s in mean.items()} if self.cfg.score == "rms_gradient" else mean

    def _exchange(self, step: int, masks: Masks, scores: Mapping[str, Tensor]) -> Masks:
        """Drop the worst of the kept weights and let as many of the pruned ones come back."""
        share = regrow_at(step, self.cfg)
        for name, mask in masks.items():
            count = min(round(share * int(mask.sum())), int((~mask).sum()))
            if count == 0:
                continue
            wanted = self.dense.get(name) if self.cfg.regrow == "grad" else self.history.get(name)
            if wanted is None:
                continue
            lost = ~mask
            worst = scores[name].float().masked_fill(lost, torch.inf).flatten().topk(count, largest=False).indices
            best = wanted.float().masked_fill(mask, -torch.inf).flatten().topk(count).indices
            flat = mask.clone().flatten()
            flat[worst] = False
            flat[best] = True
            masks[name] = flat.view_as(mask)
        return masks

    @torch.no_grad()
    def _zero(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Set what is masked to zero in the weights, their average and the moments."""
        if not self.masks:
            return
        if self.cfg.regrow == "magnitude":
            for name, weight in self.weights.items():
                gone = ~self.masks[name] & (weight != 0)
                before = self.history.get(name, torch.zeros_like(weight))
                self.history[name] = torch.where(gone, weight.abs(), before)
        apply_masks(self.model, self.masks)
        apply_masks(self.average, self.masks)
        if optimizer is None:
            return
        for name, weight in self.weights.items():
            for moment in optimizer.state.get(weight, {}).values():
                if isinstance(moment, Tensor) and moment.shape == weight.shape:
                    moment.mul_(self.masks[name])

    def _write_ticket(self, out: Path, step: int, distances: list[float]) -> None:
        from .checkpoint import replace_text

        file = out / TICKET
        rows = json.loads(file.read_text())["looks"] if file.is_file() else []
        rows = [row for row in rows if row["step"] < step] + [{"step": step, "distances": distances}]
        drawn = {"ticket_step": self.ticket_step, "pruned": self.cfg.ticket, "looks": rows}
        replace_text(file, json.dumps(drawn, indent=1) + "\n")

    def save(self, out: Path, step: int) -> None:
        """Write the masks beside the run, if there are any."""
        if self.masks:
            save_masks(out / MASKS, self.masks, {"step": step, "score": self.cfg.score, "scope": self.cfg.scope})

    def sparsity(self) -> float:
        """Return the share of zeros now."""
        return sparsity_of(self.masks)

    def state_dict(self) -> dict[str, Any]:
        """Return what has to be kept to go on after an interruption."""
        return {
            "masks": {n: m.cpu() for n, m in self.masks.items()},
            "sums": {n: s.cpu() for n, s in self.sums.items()},
            "dense": {n: s.cpu() for n, s in self.dense.items()},
            "history": {n: s.cpu() for n, s in self.history.items()},
            "count": int(self.count),
            "watch": self.watch.state_dict(),
            "ticket_step": -1 if self.ticket_step is None else self.ticket_step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned."""
        device = next(self.model.parameters()).device
        for name in ("masks", "sums", "dense", "history"):
            setattr(self, name, {n: x.to(device) for n, x in state[name].items()})
        self.count.fill_(state["count"])
        self.watch.load_state_dict(state["watch"])
        self.ticket_step = None if state["ticket_step"] < 0 else state["ticket_step"]

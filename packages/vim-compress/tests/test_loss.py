"""The objective: targets, a teacher, and the run's own average."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from vim_compress.loss import classification_loss, divergence
from vim_compress.recipes import recipe, tiny
from vim_compress.train import objective


def outputs():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 3, generator=generator), torch.randn(5, 3, generator=generator)


def test_divergence_is_that_of_the_softened_distributions():
    logits, taught = outputs()
    p, q = (taught / 2).softmax(-1), (logits / 2).softmax(-1)
    assert torch.allclose(divergence(logits, taught, 2.0), (p * (p / q).log()).sum(-1).mean(), atol=1e-6)
    assert divergence(logits, logits + 3.0) == pytest.approx(0.0, abs=1e-6)


def test_teacher_takes_its_share():
    logits, taught = outputs()
    target = torch.eye(3)[torch.tensor([0, 1, 2, 0, 1])]
    plain = classification_loss(logits, target)
    assert torch.allclose(plain, nn.functional.cross_entropy(logits, target))
    mixed = classification_loss(logits, target, taught, weight=0.3, temperature=2.0)
    assert torch.allclose(mixed, 0.7 * plain + 0.3 * 4 * divergence(logits, taught, 2.0))


def test_own_average_is_imitated_from_a_quarter_of_the_run_on():
    torch.manual_seed(0)
    network, average = nn.Linear(4, 3), nn.Linear(4, 3)
    batch = {"image": torch.randn(5, 4), "target": torch.eye(3)[torch.tensor([0, 1, 2, 0, 1])]}

    def loss_at(step):
        cfg = replace(tiny(), mesa=0.5, steps=20)
        accelerator = SimpleNamespace(autocast=nullcontext)
        progress = SimpleNamespace(step=step)
        run = SimpleNamespace(
            cfg=cfg, network=network, average=average, teacher=None, accelerator=accelerator, progress=progress
        )
        return objective(run, batch)

    plain = classification_loss(network(batch["image"]), batch["target"])
    assert torch.equal(loss_at(4), plain)
    apart = divergence(network(batch["image"]), average(batch["image"]))
    assert torch.allclose(loss_at(5), plain + 0.5 * apart)
    loss_at(5).backward()
    assert average.weight.grad is None
    assert network.weight.grad is not None


def test_published_recipes_of_mambavision_imitate_their_average():
    assert [recipe(f"mambavision_{size}").mesa for size in ("t", "s", "l")] == [0.5, 0.5, 6.0]

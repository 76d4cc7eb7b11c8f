"""Recorded steps of several processes exchange their gradients themselves, to the mean that the wrapper would make."""

import importlib
from typing import Any

import pytest
import torch
from torch import distributed, nn


@pytest.fixture(params=["hybrid_sr", "mamba_diffusion", "muse_mamba", "vim_compress"])
def exchange(request: pytest.FixtureRequest) -> Any:
    """The class of each of the four trainers, which do not import one another."""
    return importlib.import_module(f"{request.param}.exchange").Exchange


def network():
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 2))
    made.register_parameter("unused", nn.Parameter(torch.ones(2)))
    made.register_parameter("frozen", nn.Parameter(torch.ones(2), requires_grad=False))
    return made


def test_gradients_and_loss_are_the_mean_over_processes(exchange, monkeypatch):
    """Two processes, half of a batch each, have the gradients of one process with the whole batch."""
    x = torch.randn(8, 5)
    networks, whole = [network(), network()], network()
    parts = [exchange(made.parameters(), 2) for made in networks]
    for made, part, half in zip(networks, parts, x.chunk(2), strict=True):
        loss = made(half).square().mean()
        loss.backward()
        part.gather(loss)
    summed = parts[0].flat + parts[1].flat
    monkeypatch.setattr(distributed, "all_reduce", lambda flat: flat.copy_(summed))
    loss = whole(x).square().mean()
    loss.backward()
    for made, part in zip(networks, parts, strict=True):
        part.average()
        assert part.spread() == pytest.approx(loss.item())
        for (name, found), wanted in zip(made.named_parameters(), whole.parameters(), strict=True):
            if name in ("unused", "frozen"):  # no gradient: the optimizer must leave them alone, weight decay included
                assert found.grad is None
            else:
                torch.testing.assert_close(found.grad, wanted.grad)


def test_the_next_step_takes_new_gradients(exchange, monkeypatch):
    """Gradients that are views of the message must not be taken for the next step's."""
    monkeypatch.setattr(distributed, "all_reduce", lambda flat: flat.mul_(2))
    made = network()
    part = exchange(made.parameters(), 2)
    for scale in (1.0, 3.0):
        for parameter in made.parameters():
            parameter.grad = None
        loss = scale * made(torch.ones(1, 5)).sum()
        loss.backward()
        first = made.get_parameter("0.weight")
        assert first.grad is not None
        wanted = first.grad.clone()
        part.gather(loss)
        part.average()
        assert part.spread() == loss
        assert first.grad is not None
        assert torch.equal(first.grad, wanted)


def test_one_process_is_left_alone(exchange):
    made = network()
    part = exchange(made.parameters(), 1)
    loss = made(torch.ones(1, 5)).sum()
    loss.backward()
    before = [p.grad for p in made.parameters()]
    part.gather(loss)
    part.average()
    assert part.spread() == loss
    assert not part.spread().requires_grad
    assert all(p.grad is g for p, g in zip(made.parameters(), before, strict=True))

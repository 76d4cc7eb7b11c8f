"""The drop-in mixers under torch.compile and torch.export: one graph for every batch and length, gradients included."""

import pytest
import torch
from ssm_kernels.compat.mamba import Mamba
from ssm_kernels.compat.mamba2 import Mamba2
from torch.export import Dim

MIXERS = {"Mamba": lambda: Mamba(8, d_state=4), "Mamba2": lambda: Mamba2(8, d_state=4, headdim=4)}


@pytest.mark.parametrize("name", MIXERS)
def test_one_graph_for_all_sizes(name):
    torch.manual_seed(0)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    mixer = MIXERS[name]()
    compiled = torch.compile(mixer, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch, length in ((2, 5), (3, 9), (2, 16)):
        x = torch.randn(batch, length, 8, requires_grad=True)
        y, expected = compiled(x), mixer(x)
        torch.testing.assert_close(y, expected)
        got = torch.autograd.grad(y.square().sum(), [x, *mixer.parameters()])
        torch.testing.assert_close(got, torch.autograd.grad(expected.square().sum(), [x, *mixer.parameters()]))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("name", MIXERS)
def test_export_with_free_batch_and_length(name):
    torch.manual_seed(0)
    mixer = MIXERS[name]().eval()
    sizes = ({0: Dim("batch"), 1: Dim("length")},)
    program = torch.export.export(mixer, (torch.randn(2, 5, 8),), dynamic_shapes=sizes)
    x = torch.randn(3, 8, 8)
    torch.testing.assert_close(program.module()(x), mixer(x))

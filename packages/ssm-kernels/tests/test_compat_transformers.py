"""transformers' Mamba models give the same numbers with ssm_kernels.compat as without; our operators compute them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

MODELS = ("mamba", "falcon_mamba", "jamba", "mamba2", "bamba")

# Runs alone: what transformers calls is decided when its model files are imported.
SCRIPT = '''
import json, sys, warnings
from collections import Counter
from importlib import import_module
import ssm_kernels.compat

ssm_kernels.compat.install()  # before transformers is imported
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import logging

logging.set_verbosity_error()
torch.set_num_threads(1)
SMALL = dict(vocab_size=40, hidden_size=16, num_hidden_layers=2, pad_token_id=0)
HYBRID = dict(intermediate_size=16, num_attention_heads=2, num_key_value_heads=1)
CONFIGS = {
    "mamba": ("Mamba", dict(state_size=4)),
    "falcon_mamba": ("FalconMamba", dict(state_size=4)),
    "jamba": ("Jamba", dict(HYBRID, mamba_d_state=4, attn_layer_period=2, attn_layer_offset=1, num_experts=1,
                            num_experts_per_tok=1)),
    "mamba2": ("Mamba2", dict(state_size=4, num_heads=4, head_dim=8, n_groups=2, chunk_size=4)),
    "bamba": ("Bamba", dict(HYBRID, attn_layer_indices=[1], mamba_n_heads=4, mamba_d_head=8, mamba_d_state=4,
                            mamba_chunk_size=4)),
}


class Count(TorchDispatchMode):
    """Counts the operators of ssm_kernels that run."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator.namespace == "ssm_kernels":
            self.calls[str(operator)] += 1
        return operator(*args, **(kwargs or {}))


def run(name):
    prefix, options = CONFIGS[name]
    home = import_module(f"transformers.models.{name}.modeling_{name}")
    config = getattr(import_module(f"transformers.models.{name}.configuration_{name}"), f"{prefix}Config")
    torch.manual_seed(0)
    model = getattr(home, f"{prefix}ForCausalLM")(config(**SMALL, **options)).eval()
    ids = torch.randint(1, 40, (2, 7), generator=torch.Generator().manual_seed(1))
    with Count() as count:
        with torch.no_grad():
            logits = model(ids).logits
            tokens = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)
        model.train()
        loss = model(ids, labels=ids).loss
        loss.backward()
    gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    return {"logits": logits, "tokens": tokens, "loss": loss.detach(), **gradients}, count.calls


ours = {name: run(name) for name in sys.argv[1:]}
ssm_kernels.compat.uninstall()
for module in [m for m in sys.modules if m.startswith("transformers.models.") and m.split(".")[2] in CONFIGS]:
    del sys.modules[module]
report = {}
for name, (values, calls) in ours.items():
    expected, none = run(name)
    assert values.keys() == expected.keys()
    apart = {
        key: (values[key].double() - expected[key].double()).abs().max().item()
        / max(expected[key].abs().double().max().item(), 1e-3)
        for key in values
    }
    report[name] = {"calls": calls, "calls_without": none, "apart": apart}
print(json.dumps(report))
'''


@pytest.fixture(scope="module")
def report():
    """Every model with and without: how far apart (of the largest value), and which operators of ours ran."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *MODELS], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_generated_tokens_are_the_same(report, name):
    apart = report[name]["apart"]
    assert apart["logits"] < 1e-5
    assert apart["tokens"] == 0


@pytest.mark.parametrize("name", [name for name in MODELS if name != "falcon_mamba"])
def test_loss_and_gradients_are_the_same(report, name):
    """In training transformers calls the fused functions. FalconMamba is not here: see docs/compat.md."""
    too_far = {key: value for key, value in report[name]["apart"].items() if value > 2e-4}
    assert not too_far


@pytest.mark.parametrize("name", MODELS)
def test_our_operators_were_called(report, name):
    """Whole sequences, single tokens and backward each went through the operators, and without compat nothing did."""
    scan = "ssd" if name in ("mamba2", "bamba") else "selective_scan"
    wanted = {f"ssm_kernels.{scan}{part}.default" for part in ("", "_backward", "_step")}
    wanted |= {f"ssm_kernels.{op}.default" for op in ("depthwise_conv1d", "depthwise_conv1d_step")}
    wanted.add("ssm_kernels.depthwise_conv1d_backward.default")
    assert wanted <= set(report[name]["calls"])
    assert report[name]["calls_without"] == {}

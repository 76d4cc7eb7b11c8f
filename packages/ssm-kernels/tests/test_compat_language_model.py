"""ssm_kernels.compat's blocks, language models and generation: the forms of mamba-ssm 1 and 2, states, drawing."""

from functools import partial

import pytest
import torch
from ssm_kernels.compat import generation
from ssm_kernels.compat.block import Block, BlockWithoutMLP, GatedMLP
from ssm_kernels.compat.cache import InferenceParams
from ssm_kernels.compat.generation import sample
from ssm_kernels.compat.language_model import MambaConfig, MambaLMHeadModel, create_block, init_weights
from ssm_kernels.compat.mamba import Mamba
from ssm_kernels.compat.norms import RMSNorm
from torch import nn

MIXERS = {"Mamba1": {"d_state": 4}, "Mamba2": {"d_state": 4, "headdim": 8}}


def model(layer="Mamba1", **changes):
    torch.manual_seed(0)
    config = MambaConfig(d_model=16, n_layer=2, vocab_size=30, ssm_cfg={"layer": layer, **MIXERS[layer]})
    for name, value in changes.items():
        setattr(config, name, value)
    return MambaLMHeadModel(config)


def tokens(batch=2, length=5):
    return torch.randint(0, 30, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("layer", MIXERS)
@pytest.mark.parametrize("d_intermediate", [0, 24])
def test_fused_and_separate_sums_agree(layer, d_intermediate):
    """One model, both paths of its blocks; every parameter gets a gradient."""
    fused = model(layer, d_intermediate=d_intermediate)
    separate = model(layer, d_intermediate=d_intermediate, fused_add_norm=False)
    separate.load_state_dict(fused.state_dict())
    logits = fused(tokens()).logits
    assert logits.shape == (2, 5, 32)  # padded to a multiple of 8
    torch.testing.assert_close(separate(tokens()).logits, logits)
    logits.sum().backward()
    assert all(p.grad is not None for p in fused.parameters())


@pytest.mark.parametrize("layer", MIXERS)
def test_generation_with_states_equals_whole_sequences(layer):
    """Each new token's logits are those that the whole sequence so far gives without states."""
    lm, prompt = model(layer), tokens()
    done = lm.generate(prompt, max_length=9, return_dict_in_generate=True, output_scores=True)
    assert done.sequences.shape == (2, 9)
    assert torch.equal(done.sequences[:, :5], prompt)
    with torch.no_grad():
        whole = lm(done.sequences).logits[:, 4:-1]
    torch.testing.assert_close(torch.stack(done.scores, 1), whole)
    assert torch.equal(whole.argmax(-1), done.sequences[:, 5:])
    taught = lm.generate(prompt[:, :2], max_length=5, teacher_outputs=prompt)
    assert torch.equal(taught, prompt)
    assert len(lm.allocate_inference_cache(2, 9)) == 2


def test_generation_ends_and_streams():
    class Heard:
        def __init__(self):
            self.got, self.ended = [], False

        def put(self, value):
            self.got.append(value)

        def end(self):
            self.ended = True

    lm, heard = model(), Heard()
    first = lm.generate(tokens(1), max_length=6)[0, -1].item()
    stopped = lm.generate(tokens(1), max_length=20, eos_token_id=first, streamer=heard, vocab_size=30)
    assert stopped.shape == (1, 6)
    assert heard.ended
    assert torch.equal(torch.cat(heard.got, 1), stopped)


def test_drawing_respects_its_bounds():
    torch.manual_seed(0)
    logits = torch.log(torch.tensor([[0.05, 0.5, 0.15, 0.3]])).expand(400, 4)

    def drawn(**options):
        return set(sample(logits, **options).tolist())

    assert drawn() == {1}
    assert drawn(top_k=2) == {1, 3}
    assert drawn(top_k=0) == {0, 1, 2, 3}
    assert drawn(top_k=0, top_p=0.7) == {1, 3}
    assert drawn(top_k=4, top_p=0.9) == {1, 2, 3}
    assert drawn(top_k=0, min_p=0.2) == {1, 2, 3}
    assert drawn(top_k=0, temperature=0.01) == {1}
    with pytest.raises(ValueError, match=r"top_p must be in 0..1, got 1.5"):
        sample(logits, top_k=2, top_p=1.5)


def test_repetition_makes_tokens_less_probable():
    logits, seen = torch.tensor([[2.0, -1.0, 3.0]]), torch.tensor([[0, 1, 0]])
    penalised = generation.modify_logit_for_repetition_penalty(logits, seen, 2.0)
    assert penalised.tolist() == [[1.0, -2.0, 3.0]]
    assert logits.tolist() == [[2.0, -1.0, 3.0]]  # the scores that are kept


def test_saved_models_load(tmp_path):
    lm = model("Mamba2")
    lm.save_pretrained(str(tmp_path / "lm"))
    again = MambaLMHeadModel.from_pretrained(str(tmp_path / "lm"))
    assert again.config == lm.config
    assert again.lm_head.weight is again.backbone.embedding.weight
    torch.testing.assert_close(again(tokens()).logits, lm(tokens()).logits)
    half = MambaLMHeadModel.from_pretrained(str(tmp_path / "lm"), dtype=torch.bfloat16)
    assert half.lm_head.weight.dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"must be a folder with config.json, got state-spaces/mamba-130m"):
        MambaLMHeadModel.from_pretrained("state-spaces/mamba-130m")


def test_block_of_version_one():
    """Vim and others build it with a mixer and a norm alone."""
    torch.manual_seed(0)
    block = BlockWithoutMLP(8, partial(Mamba, layer_idx=0), norm_cls=partial(RMSNorm, eps=1e-5), fused_add_norm=True)
    x = torch.randn(2, 3, 8)
    y, residual = block(x)
    torch.testing.assert_close(residual, x)
    torch.testing.assert_close(y, block.mixer(nn.functional.rms_norm(x, (8,), block.norm.weight, 1e-5)))
    assert block(x, residual, inference_params=InferenceParams(3, 2))[1].shape == x.shape


def test_gated_mlp():
    mlp = GatedMLP(8, hidden_features=10, out_features=5, multiple_of=4)
    assert (mlp.fc1.out_features, mlp.fc2.in_features) == (24, 12)
    x = torch.randn(3, 8)
    value, gate = mlp.fc1(x).chunk(2, -1)
    torch.testing.assert_close(mlp(x), mlp.fc2(value * nn.functional.silu(gate)))
    assert GatedMLP(96).fc2.in_features == 256


def test_initialisation_keeps_marked_biases_and_scales_branches():
    block = Block(8, Mamba, nn.Identity)
    kept = block.mixer.dt_proj.bias.clone()
    before = block.mixer.out_proj.weight.std()
    block.apply(partial(init_weights, n_layer=100))
    assert torch.equal(block.mixer.dt_proj.bias, kept)
    assert block.mixer.out_proj.weight.std() < 0.3 * before


def test_what_is_not_covered_is_named():
    with pytest.raises(ValueError, match=r"attn_layer_idx must be empty, got \[1\]"):
        model(attn_layer_idx=[1])
    with pytest.raises(ValueError, match="must be 'Mamba1' or 'Mamba2', got 'Mamba3'"):
        create_block(8, ssm_cfg={"layer": "Mamba3"})

"""The ideas that are options of the same network: off they change nothing, on they compute what their names say."""

import math
from dataclasses import replace

import pytest
import torch
from hybrid_sr.attention import VariedOverlapAttention, eager_window_attention, use_eager_attention
from hybrid_sr.config import ModelConfig, preset
from hybrid_sr.info import count, model_info
from hybrid_sr.mixers import SSD2D, Windowed
from hybrid_sr.model import HybridSR
from ssm_kernels import window_attention
from ssm_kernels.nn.ss2d import SS2D

TINY = ModelConfig(scale=2, dim=12, depths=(2, 1), heads=2, window=8)
VARIANTS = {
    "registers": {"registers": 3},
    "clip": {"softmax_clip": 0.5},
    "multi-query": {"multi_query": True},
    "multi-query with registers and table": {"multi_query": True, "registers": 2, "position": "table"},
    "scan-window": {"scan_window": 4},
    "ssd": {"mixer": "ssd", "d_state": 3},
    "geglu": {"ffn": "geglu"},
    "residual-scale": {"residual_scale": 0.2, "final_norm": False},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_variant_trains_every_parameter_and_survives_saving(changes, tmp_path):
    torch.manual_seed(0)
    model = HybridSR(replace(TINY, **changes))
    x = torch.rand(1, 3, 16, 9)
    y = model(x)
    assert y.shape == (1, 3, 32, 18)
    y.square().mean().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    model.save_pretrained(tmp_path)
    again = HybridSR.from_pretrained(tmp_path)
    assert again.config == model.config
    torch.testing.assert_close(again(x), y)


@pytest.mark.parametrize("name", ("registers", "multi-query", "ssd"))
def test_variant_runs_in_half_precision(name):
    torch.manual_seed(0)
    model = HybridSR(replace(TINY, **VARIANTS[name]))
    x = torch.rand(1, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(x)
    assert (half.float() - model(x)).abs().max() < 0.05


@pytest.mark.parametrize(("window", "key_window", "shift"), [(4, 4, 0), (4, 4, 2), (4, 6, 0)])
@pytest.mark.parametrize("biased", (False, True))
def test_plain_attention_is_the_operator(window, key_window, shift, biased):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 8, 12, 3, 5, dtype=torch.float64).unbind()
    table = torch.randn((window + key_window - 1) ** 2, 3, dtype=torch.float64) if biased else None
    kwargs = {"window": window, "key_window": key_window, "shift": shift, "bias_table": table}
    torch.testing.assert_close(
        eager_window_attention(q, k, v, **kwargs), window_attention(q, k, v, impl="reference", **kwargs)
    )


def test_shared_keys_are_the_same_keys_for_every_head():
    torch.manual_seed(0)
    q, (k, v) = torch.randn(1, 8, 8, 3, 5), torch.randn(2, 1, 8, 8, 1, 5).unbind()
    alone = eager_window_attention(q, k, v, window=4, key_window=6)
    spread = eager_window_attention(q, k.expand(q.shape), v.expand(q.shape), window=4, key_window=6)
    torch.testing.assert_close(alone, spread)


def test_multi_query_runs_in_the_operator_and_saves_two_projections():
    layer = VariedOverlapAttention(
        12, 3, 4, overlap_ratio=0.5, position_bias=False, registers=0, clip=0.0, multi_query=True
    )
    assert count(layer.qkv) == 12 * (12 + 2 * 4) + 12 + 2 * 4
    x = torch.randn(1, 8, 8, 12)
    q, k, v = layer.qkv(x).split((12, 4, 4), -1)
    q, k, v = q.unflatten(-1, (3, 4)), k.unflatten(-1, (1, 4)), v.unflatten(-1, (1, 4))
    torch.testing.assert_close(layer(x), layer.proj(eager_window_attention(q, k, v, window=4, key_window=6).flatten(3)))


def test_clipping_cuts_small_weights_to_zero_and_leaves_equal_ones_alive():
    q, k = torch.zeros(1, 2, 2, 1, 1), torch.zeros(1, 2, 2, 1, 1)
    v = torch.arange(4.0).reshape(1, 2, 2, 1, 1)
    cut = 0.5 / 4
    even = eager_window_attention(q, k, v, window=2, key_window=2, clip=0.5)
    torch.testing.assert_close(even, torch.full_like(even, ((1 + cut) / 4 - cut) * 6))
    q, k = q + 1, torch.tensor([0.0, 0.0, 0.0, 5.0]).reshape(1, 2, 2, 1, 1)
    peak = math.exp(5) / (math.exp(5) + 3)
    sharp = eager_window_attention(q, k, v, window=2, key_window=2, clip=0.5, scale=1.0)
    torch.testing.assert_close(sharp, torch.full_like(sharp, ((1 + cut) * peak - cut) * 3))


def test_registers_are_keys_that_every_window_sees():
    q, k = torch.ones(1, 4, 4, 1, 8), torch.zeros(1, 4, 4, 1, 8)
    v = torch.zeros_like(k)
    registers = torch.stack([torch.full((1, 1, 8), 10.0), torch.full((1, 1, 8), 7.0)])
    seen = eager_window_attention(q, k, v, window=2, key_window=2, registers=registers)
    torch.testing.assert_close(seen, torch.full_like(seen, 7.0), atol=1e-3, rtol=0)


def test_windowed_scan_does_not_leave_its_window():
    torch.manual_seed(0)
    layer = Windowed(SS2D(6), 4)
    x = torch.randn(1, 8, 8, 6)
    changed = x.clone()
    changed[:, :4, :4] += 1
    difference = (layer(changed) - layer(x)).abs().sum(-1)[0]
    assert difference[:4, :4].all()
    assert not difference[4:].any() and not difference[:, 4:].any()
    torch.testing.assert_close(layer(x)[:, 4:, :4], layer.mixer(x[:, 4:, :4]))


def _ssd_by_loop(layer: SSD2D, x: torch.Tensor) -> torch.Tensor:
    """Walk every direction pixel by pixel."""
    u = layer.conv2d(layer.in_proj(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    u = torch.nn.functional.gelu(u)
    height, width, inner = u.shape[1:]
    pixels = [(y, z) for y in range(height) for z in range(width)]
    by_column = [(y, z) for z in range(width) for y in range(height)]
    out = torch.zeros_like(u)
    for number, order in enumerate((pixels, by_column, pixels[::-1], by_column[::-1])):
        state = x.new_zeros(layer.heads, inner // layer.heads, layer.d_state)
        for y, z in order:
            p = layer.x_proj_weight[number] @ u[0, y, z]
            dt, B, C = p.split((layer.heads, layer.d_state, layer.d_state))
            delta = torch.nn.functional.softplus(dt + layer.dt_bias[number])
            value = u[0, y, z].unflatten(0, (layer.heads, -1))
            decay = torch.exp(-delta * layer.A_log[number].exp())
            state = decay[:, None, None] * state + (delta[:, None] * value)[..., None] * B
            out[0, y, z] += (state @ C + layer.D[number, :, None] * value).flatten()
    return layer.out_proj(layer.out_norm(out))


def test_ssd_scans_in_four_directions():
    torch.manual_seed(0)
    layer = SSD2D(6, 3, 1.0, 2).double()
    x = torch.randn(1, 3, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), _ssd_by_loop(layer, x))


def test_ssd_parameter_count():
    dim, heads, state = 12, 3, 4
    inner = 24
    wanted = 2 * dim * inner + 4 * inner * (heads + 2 * state) + 12 * inner + 12 * heads
    assert count(SSD2D(dim, state, 2.0, heads)) == wanted


def test_residual_scale_multiplies_what_a_group_adds():
    torch.manual_seed(0)
    group = HybridSR(replace(TINY, residual_scale=0.2)).get_submodule("groups.0")
    plain = HybridSR(TINY).get_submodule("groups.0")
    plain.load_state_dict(group.state_dict())
    x = torch.randn(1, 8, 8, 12)
    torch.testing.assert_close(group(x) - x, 0.2 * (plain(x) - x))


def test_eager_attention_changes_no_result():
    torch.manual_seed(0)
    model = HybridSR(replace(preset("hat-light", 2), dim=12, depths=(2,), heads=2, window=8, squeeze_factor=6))
    x = torch.rand(1, 3, 16, 16)
    fused = model(x)
    assert use_eager_attention(model) == 3
    torch.testing.assert_close(model(x), fused)


def test_eager_attention_can_be_trained_after_inference():
    q, k, v = torch.randn(3, 1, 8, 8, 1, 4).unbind()
    with torch.inference_mode():
        eager_window_attention(q, k, v, window=8, key_window=12, bias_table=torch.zeros(361, 1))
        eager_window_attention(q, k, v, window=4, key_window=4, shift=1, bias_table=torch.zeros(49, 1))
    for window, key_window, shift, size in ((8, 12, 0, 361), (4, 4, 1, 49)):
        table = torch.zeros(size, 1, requires_grad=True)
        y = eager_window_attention(q, k, v, window=window, key_window=key_window, shift=shift, bias_table=table)
        y.square().sum().backward()
        assert table.grad is not None and table.grad.any()


def test_scans_of_variants_are_counted():
    plain = model_info(TINY, 2, 16, 16)["scan_ops"]
    assert model_info(replace(TINY, scan_window=4), 2, 16, 16)["scan_ops"] == plain
    assert model_info(replace(TINY, mixer="ssd"), 2, 16, 16)["scan_ops"] == plain


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"softmax_clip": 1.0}, r"softmax_clip must be in \[0, 1\)"),
        ({"registers": -1}, "registers must be a whole number of at least 0"),
        ({"registers": 2, "overlap_attention": False}, "off without overlap_attention"),
        ({"scan_window": 3}, "scan_window must be 0, or a divisor of window=8"),
        ({"scan_window": 4, "mixer": "attention"}, "with a mixer that scans"),
        ({"mixer": "ssd", "heads": 2, "ssm_ratio": 1.25}, "ssm_ratio must be such that"),
    ],
)
def test_impossible_variants_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)

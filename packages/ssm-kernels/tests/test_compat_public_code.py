"""How public vision code calls mamba-ssm, causal-conv1d and the extensions: the same call forms run on compat.

Each test follows one repository's way through the drop-in names, with its views, flips and autograd functions, and
compares with this package's own modules, forward and backward.
"""

from pathlib import Path

import pytest
import ssm_kernels.compat
import torch
from ssm_kernels.nn import SS2D, BidirectionalMamba
from torch.nn import functional as F

DATA = Path(__file__).parent / "data"


@pytest.fixture(autouse=True)
def drop_in():
    ssm_kernels.compat.install()
    yield
    ssm_kernels.compat.uninstall()


def vmamba_scan(oflex):
    """An autograd function around the extension, as every VMamba-like repository has one."""
    import selective_scan_cuda_core
    import selective_scan_cuda_oflex

    class Scan(torch.autograd.Function):
        @staticmethod
        def forward(ctx, u, delta, A, B, C, D, bias):
            if oflex:
                out, x, *_ = selective_scan_cuda_oflex.fwd(u, delta, A, B, C, D, bias, True, 1, True)
            else:
                out, x, *_ = selective_scan_cuda_core.fwd(u, delta, A, B, C, D, bias, True, 1)
            ctx.save_for_backward(u, delta, A, B, C, D, bias, x)
            return out

        @staticmethod
        def backward(ctx, dout, *args):
            if dout.stride(-1) != 1:
                dout = dout.contiguous()
            u, delta, A, B, C, D, bias, x = ctx.saved_tensors
            extension = selective_scan_cuda_oflex if oflex else selective_scan_cuda_core
            du, ddelta, dA, dB, dC, dD, dbias, *_ = extension.bwd(u, delta, A, B, C, D, bias, dout, x, True, 1)
            return du, ddelta, dA, dB, dC, dD, dbias

    return Scan.apply


def mambair_scan(u, delta, A, B, C, D, bias):
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return selective_scan_fn(
        u, delta, A, B, C, D, z=None, delta_bias=bias, delta_softplus=True, return_last_state=False
    )


def published_ss2d(block, x, scan):
    """SS2D by copies in four orders, one grouped scan, and views of its result: x (B, H, W, C)."""
    x = block.in_proj(x).permute(0, 3, 1, 2).contiguous()
    x = F.silu(block.conv2d(x))
    B, _, H, W = x.shape
    L, K, N, R = H * W, 4, block.A_logs.shape[1], block.dt_projs_weight.shape[2]
    both = torch.stack([x.view(B, -1, L), x.transpose(2, 3).contiguous().view(B, -1, L)], dim=1).view(B, 2, -1, L)
    xs = torch.cat([both, torch.flip(both, dims=[-1])], dim=1)
    low = torch.einsum("b k d l, k c d -> b k c l", xs, block.x_proj_weight)
    dts, Bs, Cs = torch.split(low, [R, N, N], dim=2)
    dts = torch.einsum("b k r l, k d r -> b k d l", dts, block.dt_projs_weight).contiguous()
    out = scan(
        xs.view(B, -1, L), dts.view(B, -1, L), -block.A_logs.float().exp(), Bs.contiguous(), Cs.contiguous(),
        block.Ds.float(), block.dt_projs_bias.float().view(-1),
    ).view(B, K, -1, L)  # fmt: skip
    assert out.dtype == torch.float32
    back = torch.flip(out[:, 2:4], dims=[-1]).view(B, 2, -1, L)
    columns = (out[:, 1] + back[:, 1]).view(B, -1, W, H).transpose(2, 3).contiguous().view(B, -1, L)
    y = out[:, 0] + back[:, 0] + columns
    return block.out_proj(block.out_norm(y.transpose(1, 2).contiguous().view(B, H, W, -1)))


@pytest.mark.parametrize("way", ["MambaIR", "VMamba oflex", "VMamba core"])
def test_ss2d_by_copies_equals_ours(way):
    torch.manual_seed(0)
    block = SS2D(6, d_state=2, ssm_ratio=2.0, activation="silu")
    scan = mambair_scan if way == "MambaIR" else vmamba_scan(way.endswith("oflex"))
    x = torch.randn(2, 3, 5, 6, requires_grad=True)
    leaves = [x, *block.parameters()]
    y, expected = published_ss2d(block, x, scan), block(x)
    torch.testing.assert_close(y, expected)
    got = torch.autograd.grad(y.square().sum(), leaves)
    torch.testing.assert_close(got, torch.autograd.grad(expected.square().sum(), leaves), rtol=1e-3, atol=1e-5)


def test_vims_mixer_by_flips_equals_ours():
    """Two calls of mamba_inner_fn_no_out_proj, the second over the flipped sequence, as Vim's fused path."""
    from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn_no_out_proj

    torch.manual_seed(0)
    mixer = BidirectionalMamba(8)
    x = torch.randn(2, 7, 8, requires_grad=True)
    xz = (mixer.in_proj.weight @ x.reshape(-1, 8).T).view(-1, 2, 7).transpose(0, 1)

    def direction(xz, suffix, A_log):
        conv, x_proj, dt_proj = (getattr(mixer, f"{name}{suffix}") for name in ("conv1d", "x_proj", "dt_proj"))
        return mamba_inner_fn_no_out_proj(
            xz, conv.weight, conv.bias, x_proj.weight, dt_proj.weight, -A_log.float().exp(), None, None,
            getattr(mixer, f"D{suffix}").float(), delta_bias=dt_proj.bias.float(), delta_softplus=True,
        )  # fmt: skip

    y = direction(xz, "", mixer.A_log)
    back = direction(xz.flip([-1]), "_b", mixer.A_b_log)
    out = F.linear((y + back.flip([-1])).transpose(1, 2) / 2, mixer.out_proj.weight, mixer.out_proj.bias)
    torch.testing.assert_close(out, mixer(x))
    leaves = [x, *mixer.parameters()]
    got = torch.autograd.grad(out.square().sum(), leaves)
    torch.testing.assert_close(got, torch.autograd.grad(mixer(x).square().sum(), leaves), rtol=1e-3, atol=1e-5)


def test_vims_model_file_finds_its_names():
    """The imports of its model file, and the way its blocks call the fused norms and the mixer."""
    from mamba_ssm.modules.mamba_simple import Mamba
    from mamba_ssm.ops.triton.layernorm import RMSNorm, layer_norm_fn, rms_norm_fn
    from mamba_ssm.utils.generation import GenerationMixin
    from mamba_ssm.utils.hf import load_config_hf, load_state_dict_hf

    assert all(callable(name) for name in (layer_norm_fn, GenerationMixin, load_config_hf, load_state_dict_hf))
    torch.manual_seed(0)
    mixer = Mamba(
        16,
        d_state=4,
        layer_idx=1,
        bimamba_type="v2",
        if_divide_out=True,
        init_layer_scale=None,
        device=None,
        dtype=None,
    )
    norm = RMSNorm(16, eps=1e-5, device=None, dtype=None)
    x, residual = torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    y, kept = rms_norm_fn(
        x, norm.weight, norm.bias, residual=residual, prenorm=True, residual_in_fp32=True, eps=norm.eps
    )
    torch.testing.assert_close(kept, x + residual)
    same = BidirectionalMamba(16, d_state=4)
    same.load_state_dict(mixer.state_dict())
    torch.testing.assert_close(mixer(y, inference_params=None), same(y))


def test_mambavision_mixer():
    """A scan without gate, asked for its last state with None; its result is joined to the other half's channels."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    from ssm_kernels import selective_scan

    torch.manual_seed(0)
    u, dt, weights = torch.randn(2, 4, 9), torch.randn(2, 4, 9), torch.randn(2, 3, 9)
    A, D, bias = -torch.rand(4, 3), torch.rand(4), torch.rand(4)
    y = selective_scan_fn(
        u, dt, A, weights, weights, D, z=None, delta_bias=bias, delta_softplus=True, return_last_state=None
    )
    expected = selective_scan(u.mT, dt.mT, A, weights.mT, weights.mT, D, dt_bias=bias, dt_softplus=True)
    torch.testing.assert_close(torch.cat([y, u], dim=1).transpose(1, 2)[..., :4], expected)


def test_vendored_interface_of_vim():
    """A repository's own copy of the interface: causal_conv1d_cuda 1.1 and selective_scan_cuda, called directly."""
    import causal_conv1d_cuda
    import selective_scan_cuda
    from causal_conv1d import causal_conv1d_fn

    torch.manual_seed(0)
    x, z, weight, bias = torch.randn(2, 4, 6), torch.randn(2, 4, 6), torch.randn(4, 3), torch.randn(4)
    convolved = causal_conv1d_cuda.causal_conv1d_fwd(x, weight, bias, None, True)
    torch.testing.assert_close(convolved, causal_conv1d_fn(x, weight, bias, None, activation="silu"))
    A, B = -torch.rand(4, 2), torch.randn(2, 1, 2, 6)
    out, states, gated = selective_scan_cuda.fwd(convolved, x, A, B, B, None, z, bias, True)
    dz = torch.empty_like(z)
    du, *_, of_z, again = selective_scan_cuda.bwd(
        convolved, x, A, B, B, None, z, bias, gated, states, out, dz, True, True
    )
    dx, dweight, dbias = causal_conv1d_cuda.causal_conv1d_bwd(x, weight, bias, du, None, torch.empty_like(x), True)
    torch.testing.assert_close(again, gated)
    assert of_z is dz
    assert [g.shape for g in (dx, dweight, dbias)] == [x.shape, weight.shape, bias.shape]


def test_pickled_models_find_their_class():
    """Whole modules that were saved name mamba_ssm.modules.mamba_simple.Mamba."""
    import pickle

    from ssm_kernels.compat.mamba import Mamba

    name = b"cmamba_ssm.modules.mamba_simple\nMamba\n."
    assert pickle.loads(name) is Mamba

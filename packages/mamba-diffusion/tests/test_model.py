"""What every model promises: order of points does not matter, chunks do not matter, units do not matter."""

import pytest
import torch
from mamba_diffusion.model import SparseField
from mamba_diffusion.predict import Prediction, sample_fields
from mamba_diffusion.process import flow_loss, make_noise
from mamba_diffusion.samplers import SamplerConfig

QUICK = SamplerConfig(steps=2)


def points(sensors: int = 20, queries: int = 30, *, channels: int = 3, dims: int = 2, fields: int = 1):
    generator = torch.Generator().manual_seed(5)
    make = lambda *shape: torch.rand(*shape, generator=generator)  # noqa: E731
    return make(fields, sensors, dims), make(fields, sensors, channels), make(fields, queries, dims)


def velocity(model: SparseField, coords, values, queries, chunk=None):
    given = model.prepare(coords, values, queries)
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(queries.shape[0], queries.shape[1], values.shape[2], generator=generator)
    return model(z, torch.full((queries.shape[0],), 0.4), given, chunk), z, given


@pytest.mark.parametrize("name", ["tiny", "tiny-v2"])
def test_order_of_points_does_not_matter(tiny_model, name):
    model, (coords, values, queries) = tiny_model(name), points()
    v, z, _ = velocity(model, coords, values, queries)
    generator = torch.Generator().manual_seed(2)
    a, b = torch.randperm(20, generator=generator), torch.randperm(30, generator=generator)
    given = model.prepare(coords[:, a], values[:, a], queries[:, b])
    again = model(z[:, b], torch.tensor([0.4]), given)
    torch.testing.assert_close(again, v[:, b], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 7, 30, 100])
def test_chunks_do_not_matter(tiny_model, chunk):
    model, (coords, values, queries) = tiny_model(anchors=8), points()
    whole, *_ = velocity(model, coords, values, queries)
    parts, *_ = velocity(model, coords, values, queries, chunk)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)


def test_networks_whose_queries_see_each_other_refuse_chunks(tiny_model):
    with pytest.raises(ValueError, match="chunk must be None for kind=v2"):
        velocity(tiny_model("tiny-v2"), *points(), chunk=3)


def test_query_that_is_no_anchor_does_not_change_the_others(tiny_model):
    """That is what makes the cost linear: drop the last queries and the rest stays."""
    model, (coords, values, queries) = tiny_model(), points()
    given = model.prepare(coords, values, queries, anchors=10)
    fewer = model.prepare(coords, values, queries[:, :20], anchors=10)
    z = torch.randn(1, 30, 3, generator=torch.Generator().manual_seed(3))
    t = torch.tensor([0.3])
    torch.testing.assert_close(model(z, t, given)[:, :20], model(z[:, :20], t, fewer), rtol=1e-5, atol=1e-6)


def test_units_do_not_matter(tiny_model):
    """Ours sees values relative to the sensors: another unit of the data gives the same field in that unit."""
    model, (coords, values, queries) = tiny_model(channels=1), points(channels=1)
    asked = Prediction(samples=2, sampler=QUICK)
    kelvin = sample_fields(model, coords, values, queries, asked)
    model.mean.fill_(-273.15)
    celsius = sample_fields(model, coords, values - 273.15, queries, asked)
    torch.testing.assert_close(celsius + 273.15, kelvin, rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", ["tiny", "tiny-v2"])
def test_same_seed_same_sample_and_other_seed_another(tiny_model, name):
    model, given = tiny_model(name), points()
    first, again = (sample_fields(model, *given, Prediction(samples=2, sampler=QUICK, seed=4)) for _ in range(2))
    other = sample_fields(model, *given, Prediction(samples=2, sampler=QUICK, seed=5))
    assert torch.equal(first, again)
    assert first.shape == (1, 2, 30, 3)
    assert not torch.equal(first, other)
    assert not torch.equal(first[:, 0], first[:, 1])


def test_sample_does_not_depend_on_what_runs_beside_it(tiny_model, monkeypatch):
    from mamba_diffusion import predict

    model, given = tiny_model(), points(fields=2)
    asked = Prediction(samples=3, sampler=QUICK)
    together = sample_fields(model, *given, asked)
    monkeypatch.setattr(predict, "TOKENS", 1)
    torch.testing.assert_close(sample_fields(model, *given, asked), together, rtol=1e-4, atol=1e-5)


def test_finer_grid_sees_more_of_the_same_noise(tiny_model):
    """Smooth noise is a function of the place."""
    from mamba_diffusion.predict import Noise

    model = tiny_model()
    coarse = torch.rand(1, 16, 2, generator=torch.Generator().manual_seed(0))
    fine = torch.cat([coarse, torch.rand(1, 40, 2)], 1)
    pair = Noise(model, [3], 2, coarse)()
    assert torch.equal(pair[0], -pair[1])  # samples come in pairs with opposite noise
    a, b = Noise(model, [3], 1, coarse)(), Noise(model, [3], 1, fine)()
    torch.testing.assert_close(b[:, :16], a, rtol=0, atol=1e-4)


def test_noise_is_standard_and_correlated_as_said():
    import numpy as np
    from mamba_diffusion.config import preset
    from mamba_diffusion.process import noise_numbers

    config, rng = preset("ours"), np.random.default_rng(0)
    coords = torch.tensor([[0.5, 0.5], [0.5 + config.noise_length, 0.5], [0.9, 0.1]]).expand(2000, -1, -1)
    drawn = [noise_numbers(rng, config, 3) for _ in range(2000)]
    noise = make_noise({k: torch.from_numpy(np.stack([d[k] for d in drawn])) for k in drawn[0]}, coords)
    assert float(noise.square().mean()) == pytest.approx(1, abs=0.05)
    near, far = (noise[:, 0] * noise[:, 1]).mean(), (noise[:, 0] * noise[:, 2]).mean()
    assert float(near) == pytest.approx(0.607, abs=0.05)
    assert float(far) == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("name", ["tiny", "tiny-v2"])
def test_observed_values_can_be_enforced(tiny_model, name):
    model, (coords, values, queries) = tiny_model(name), points()
    queries[:, :20] = coords
    free = sample_fields(model, coords, values, queries, Prediction(samples=2, sampler=QUICK))
    hard = sample_fields(model, coords, values, queries, Prediction(samples=2, sampler=QUICK, noise_std=0.0))
    torch.testing.assert_close(hard[:, :, :20], values[:, None].expand(-1, 2, -1, -1), rtol=0, atol=1e-5)
    assert (free[:, :, :20] - values[:, None]).abs().max() > 1e-4
    many = sample_fields(
        model, coords, values, queries, Prediction(samples=200, sampler=SamplerConfig(steps=1), noise_std=0.1)
    )
    assert float(many[:, :, :20].std(1).mean()) == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize(("dims", "channels"), [(1, 1), (2, 2), (3, 1)])
def test_dimensions_and_channels(tiny_model, dims, channels):
    model = tiny_model(dims=dims, channels=channels)
    found = sample_fields(model, *points(channels=channels, dims=dims), Prediction(samples=1, sampler=QUICK))
    assert found.shape == (1, 1, 30, channels)
    assert torch.isfinite(found).all()


def test_periodic_axis_has_no_edge(tiny_model):
    """A field turned round the axis by any share is the same field turned."""
    model = tiny_model(periodic=(True, False), order="hilbert", layers=1)
    torch.nn.init.zeros_(model.network.context_layers[0].scan.layer.mamba.out_proj.weight)  # the curve has a beginning
    coords, values, queries = points()
    _, z, given = velocity(model, coords, values, queries)
    turn = torch.tensor([0.25, 0.0])
    turned = model.prepare((coords + turn) % 1, values, (queries + turn) % 1)
    torch.testing.assert_close(turned.base, given.base, rtol=1e-3, atol=1e-3)
    model.network.fourier.B.zero_()
    a = model(z, torch.tensor([0.4]), given)
    b = model(z, torch.tensor([0.4]), turned)
    torch.testing.assert_close(b, a, rtol=1e-2, atol=1e-2)


def test_untrained_network_already_has_error_bars(tiny_model):
    """At the start the flow leaves noise as it is, so that samples are kriging and its standard deviation."""
    import dataclasses

    from mamba_diffusion.config import preset

    model = SparseField(dataclasses.replace(preset("tiny"), noise_length=0.0)).eval()
    coords, values, queries = points(60, 40)
    given = model.prepare(coords, values, queries)
    samples = sample_fields(model, coords, values, queries, Prediction(samples=120, sampler=SamplerConfig(steps=6)))
    torch.testing.assert_close(samples.mean(1), given.base, rtol=0, atol=0.45 * float(given.spread.max()))
    assert float((samples.std(1) / given.spread).mean()) == pytest.approx(1, abs=0.05)


def test_folder_round_trips(tiny_model, tmp_path):
    model = tiny_model()
    model.mean.fill_(3.0)
    model.save_pretrained(tmp_path)
    again = SparseField.from_pretrained(tmp_path)
    assert again.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_loss_is_zero_for_the_right_velocity():
    data, noise, spread = torch.randn(2, 5, 3), torch.randn(2, 5, 3), torch.rand(2, 5, 3) + 0.1
    assert flow_loss(data - noise, data, noise, spread) == 0
    even = flow_loss(data, data, noise, torch.ones_like(spread))
    torch.testing.assert_close(even, noise.square().mean())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"coords": torch.rand(1, 20, 3)}, r"input_coords must be \(B, N, 2\)"),
        ({"values": torch.rand(1, 20, 2)}, r"input_values must be \(B, N, 3\)"),
        ({"values": torch.rand(1, 19, 3)}, "input_values must be 20 points"),
        ({"coords": torch.rand(1, 3, 2), "values": torch.rand(1, 3, 3)}, "at least 4 sensors, got 3"),
    ],
)
def test_shapes_that_do_not_fit(tiny_model, change, said):
    coords, values, queries = points()
    with pytest.raises(ValueError, match=said):
        tiny_model().prepare(change.get("coords", coords), change.get("values", values), queries)


def test_grid_that_does_not_fit_says_what_does(tiny_model):
    coords, values, _ = points()
    with pytest.raises(ValueError, match=r"must be at most \d+ together for kind=v2, got 20 and 200000"):
        sample_fields(tiny_model("tiny-v2"), coords, values, torch.rand(1, 200_000, 2), Prediction())

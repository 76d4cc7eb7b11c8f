"""The model: a network, the scaling of its training data, and what it does with sensors before the flow starts.

B fields, Ni sensors, Nq queries, C channels, d axes.
"""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from .checks import refuse
from .condition import Condition
from .config import ModelConfig
from .curve import hilbert_order, take
from .kriging import Covariance, krige, nearest, nearest_others, surprises
from .ours import OursNetwork
from .seed_models import SeedNetwork

LEAST_SCALE = 1e-2  # of the standardised values: equal sensors do not blow up their features
FEWEST = 4  # sensors
EVIDENCE = 0.05  # share of a sensor's score that counts: neighbours tell the same


class SparseField(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="mamba-diffusion",
    license="apache-2.0",
    tags=["sparse-reconstruction", "flow-matching"],
):
    """Flow from noise to a field, given a few of its values.

    Args:
        config: What it is made of.

    Attributes:
        config: The configuration.
        mean: (C,) of the training data, in the data's unit; stored with the weights.
        std: (C,) likewise.
        network: The velocity.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(config.channels))
        self.register_buffer("std", torch.ones(config.channels))
        self.network = OursNetwork(config) if config.kind == "ours" else SeedNetwork(config)

    @property
    def covariances(self) -> list[Covariance]:
        """Of the kriging that ours starts from."""
        c = self.config
        if c.smoothness != "mixed":
            return [Covariance(c.smoothness, c.length, c.nugget, c.wraps)]
        return [
            Covariance("rough", c.length, c.nugget, c.wraps),
            Covariance("medium", c.length, c.nugget / 10, c.wraps),
        ]

    @torch.no_grad()
    def prepare(
        self, input_coords: Tensor, input_values: Tensor, query_coords: Tensor, *, anchors: int | None = None
    ) -> Condition:
        """Do what is done once per field, whatever the number of samples and steps.

        Args:
            input_coords: Places of the sensors, (B, Ni, d) in [0, 1], Ni >= 4.
            input_values: Their values, (B, Ni, C), in the unit of the training data.
            query_coords: Where the field is wanted, (B, Nq, d) in [0, 1].
            anchors: The first so many queries are anchors; None spreads at most `config.anchors` evenly along the
                curve.

        Returns:
            What `forward` needs.

        Raises:
            ValueError: A shape is wrong, or there are too few sensors.
        """
        self._check(input_coords, input_values, query_coords)
        with torch.autocast(input_coords.device.type, enabled=False):
            values = (input_values.float() - self.mean.float()) / self.std.float()
            coords, queries = input_coords.float(), query_coords.float()
            if self.config.kind == "ours":
                return self._krige(coords, values, queries, anchors)
            shape = (*queries.shape[:2], self.config.channels)
            given = Condition(coords, values, queries, values.new_zeros(shape), values.new_ones(shape))
            if self.config.order == "given":
                return given
            return given._replace(input_order=hilbert_order(coords), query_order=hilbert_order(queries))

    def _krige(self, coords: Tensor, values: Tensor, queries: Tensor, anchors: int | None) -> Condition:
        c = self.config
        others = nearest_others(coords, c.neighbours, c.wraps)
        near = nearest(queries, coords, c.neighbours, c.wraps)
        bases, spreads, surprise, scores = [], [], [], []
        for cov in self.covariances:
            differences, amplitude, score = surprises(coords, values, others, cov)
            base, spread = krige(queries, coords, values, near, cov)
            bases.append(base)
            spreads.append(spread * amplitude)
            surprise.append(differences)
            scores.append(score)
        weights = (EVIDENCE * coords.shape[1] * torch.stack(scores)).softmax(0)
        base = (weights * torch.stack(bases)).sum(0)
        variances = torch.stack([s**2 + (b - base) ** 2 for b, s in zip(bases, spreads, strict=True)])
        spread = (weights * variances).sum(0).sqrt()
        if anchors is None:
            count = min(queries.shape[1], c.anchors)
            steps = torch.arange(count, device=queries.device) * queries.shape[1] // count
            anchor = hilbert_order(queries)[:, steps]
        else:
            anchor = torch.arange(anchors, device=queries.device).expand(queries.shape[0], -1)
        places = take(queries, anchor)
        return Condition(
            coords,
            values,
            queries,
            base,
            spread,
            doubt=(bases[-1] - bases[0]) / spread,
            surprise=(weights * torch.stack(surprise)).sum(0),
            centre=values.mean(1, keepdim=True),
            scale=values.std(1, keepdim=True).clamp_min(LEAST_SCALE),
            near_input=others,
            near=near,
            anchor=anchor,
            near_anchor=nearest(queries, places, c.anchor_neighbours, c.wraps),
            context_order=hilbert_order(torch.cat([coords, places], 1)),
        )

    def _check(self, input_coords: Tensor, input_values: Tensor, query_coords: Tensor) -> None:
        c = self.config
        for name, x, last in (
            ("input_coords", input_coords, c.dims),
            ("input_values", input_values, c.channels),
            ("query_coords", query_coords, c.dims),
        ):
            if x.ndim != 3 or x.shape[-1] != last or x.shape[1] < 1:
                refuse("SparseField", name, f"(B, N, {last})", tuple(x.shape), "one row a point, a batch of fields")
        if input_coords.shape[1] != input_values.shape[1]:
            refuse("SparseField", "input_values", f"{input_coords.shape[1]} points", input_values.shape[1], "pair them")
        if input_coords.shape[1] < FEWEST:
            refuse("SparseField", "input_coords", f"at least {FEWEST} sensors", input_coords.shape[1], "give more")

    def forward(self, noisy: Tensor, t: Tensor, given: Condition, chunk: int | None = None) -> Tensor:
        """Return the velocity dz/dt.

        Args:
            noisy: z at time t, (B, Nq, C); noise at t = 0, the field in the flow's unit at t = 1.
            t: (B,) in [0, 1].
            given: From `prepare`.
            chunk: Queries decoded at once (ours only); None for all.

        Returns:
            (B, Nq, C), the dtype of `noisy`.
        """
        if isinstance(self.network, OursNetwork):
            return self.network(noisy, t, given, chunk)
        if chunk is not None and chunk < noisy.shape[1]:
            remedy = "its queries see each other; leave chunk out, or take a model of kind ours"
            refuse("SparseField", "chunk", f"None for kind={self.config.kind}", chunk, remedy)
        return self.network(noisy, t, given).to(noisy.dtype)

    def to_field(self, z: Tensor, given: Condition) -> Tensor:
        """Turn z (B, Nq, C) into values in the unit of the training data."""
        return (given.base + given.spread * z) * self.std + self.mean

    def to_flow(self, values: Tensor, given: Condition) -> Tensor:
        """Turn values at the queries (B, Nq, C), in the unit of the training data, into z."""
        return ((values - self.mean) / self.std - given.base) / given.spread

    @property
    def checkpointing(self) -> bool:
        """Recompute every layer in the backward pass instead of keeping its activations."""
        return self.network.checkpointing

    @checkpointing.setter
    def checkpointing(self, on: bool) -> None:
        self.network.checkpointing = on

    @classmethod
    def _from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]  # strict, silent, no free keywords
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        config: ModelConfig | None = None,
        map_location: str = "cpu",
    ) -> "SparseField":
        from huggingface_hub import hf_hub_download
        from safetensors.torch import load_file

        if config is None:
            refuse("SparseField.from_pretrained", "folder", "one with config.json", model_id, "use save_pretrained")
        file = Path(model_id) / "model.safetensors"
        if not Path(model_id).is_dir():
            download = hf_hub_download(
                model_id,
                "model.safetensors",
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
            file = Path(download)
        elif not file.is_file():
            refuse("SparseField.from_pretrained", "folder", "one with model.safetensors", model_id, "check the path")
        model = cls(config)
        model.load_state_dict(load_file(file))
        return model.to(map_location).eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        from safetensors.torch import save_file

        state: dict[str, Any] = {k: v.detach().contiguous() for k, v in self.state_dict().items()}
        save_file(state, save_directory / "model.safetensors", metadata={"format": "pt"})

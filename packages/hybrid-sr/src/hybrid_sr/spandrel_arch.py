"""Let programs that use spandrel load files of `hybrid-sr export`: call `register()` before its `ModelLoader`.

import spandrel
from hybrid_sr.spandrel_arch import register

register()
net = spandrel.ModelLoader().load_from_file("net.safetensors")
"""

from __future__ import annotations

from spandrel import MAIN_REGISTRY, Architecture, ArchRegistry, ArchSupport, ImageModelDescriptor
from spandrel.util import KeyCondition

from .keymap import CONFIG_TENSOR
from .model import HybridSR
from .weights import carried_config


class HybridSRArch(Architecture[HybridSR]):
    """How spandrel recognises and builds our networks."""

    def __init__(self) -> None:
        needed = KeyCondition.has_all(CONFIG_TENSOR, "stem.weight", "stem_norm.weight", "body_conv.weight")
        super().__init__(id="hybrid-sr", name="hybrid-sr", detect=needed)

    def load(self, state_dict: dict) -> ImageModelDescriptor[HybridSR]:
        """Build the network of a state dict that carries its configuration."""
        state = dict(state_dict)
        model = HybridSR(carried_config(state.pop(CONFIG_TENSOR)))
        config = model.config
        return ImageModelDescriptor(
            model.eval(),
            state,
            architecture=self,
            purpose="Restoration" if config.scale == 1 else "SR",
            tags=[f"{config.dim}dim", f"{len(config.depths)}groups", config.mixer],
            supports_half=False,  # float16 overflows in the scan's steps
            supports_bfloat16=True,
            scale=config.scale,
            input_channels=3,
            output_channels=3,
        )


def register(registry: ArchRegistry = MAIN_REGISTRY) -> None:
    """Add our networks to a registry, spandrel's own if none is given; once is enough, more do no harm."""
    registry.add(ArchSupport.from_architecture(HybridSRArch()), ignore_duplicates=True)

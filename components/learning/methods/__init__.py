"""The methods, each a module that states its source, what trains, its loss and its adaptations to MM-DiT.

All of them train by one loop on the same backbone, data, draws and budget (`learning.pure.steps`): a method is a
function that adds its adapter to the backbone and says what of it trains by which loss. `[V]` is the placeholder word
of the profile in every method; where a method has embeddings they stand in its place.
"""

from collections.abc import Mapping

from components.learning.methods import (
    b_lora,
    cifc,
    custom_diffusion,
    dop,
    dreambooth,
    dreambooth_ewc,
    lora,
    mix_of_show,
    purecc,
    textual_inversion,
)
from components.learning.stages import Prepare
from components.learning_settings import Method

METHODS: Mapping[Method, Prepare] = {
    "purecc": purecc.prepare,
    "dreambooth": dreambooth.prepare,
    "dreambooth-ewc": dreambooth_ewc.prepare,
    "lora": lora.prepare,
    "textual-inversion": textual_inversion.prepare,
    "custom-diffusion": custom_diffusion.prepare,
    "mix-of-show": mix_of_show.prepare,
    "cifc": cifc.prepare,
    "b-lora": b_lora.prepare,
    "dop": dop.prepare,
}

__all__ = ["METHODS"]

"""B-LoRA: LoRA in two groups of blocks, of which one comes to hold the content and the other the style.

Source: Frenkel et al. 2024 (arXiv 2403.14572).
Trains: LoRA on the attention projections of the blocks `learning.b_lora.content` and `.style`. Both train; the adapter
keeps the group of the concept's kind.
Loss: L_CC on the target text ("[V] star"), as the paper trains on "A [v]": what is not said is divided among the
blocks.
Adaptations: SDXL's two transformer blocks do not exist in MM-DiT. Which blocks carry content and which style is found
by `components.backbones.block_influence` and written down in the profile.
"""

from __future__ import annotations

from components.learning.cache import ConditionedBatch
from components.learning.flow_matching import FlowSample
from components.learning.losses import step_loss
from components.learning.objective import squared_error
from components.learning.stages import Recipe
from components.learning.task import Task
from components.learning.training import StepLoss


def prepare(task: Task) -> Recipe:
    blocks, backbone = task.learning.b_lora, task.backbone
    assert blocks is not None, "the settings see to it"
    both = tuple(sorted({*blocks.content, *blocks.style}))
    task.add_adapter(lora=task.learning.lora.model_copy(update={"blocks": both}))

    def loss(flow: FlowSample, batch: ConditionedBatch) -> StepLoss:
        v_BCHW = backbone.velocity(flow.x_t_BCHW, flow.t_B, batch.target, task.stage)
        return step_loss({"cc": squared_error(v_BCHW, flow.target_BCHW)}, {"cc": 1.0})

    kept = blocks.style if task.concept.kind == "style" else blocks.content
    return Recipe(task.groups("lora"), loss, kept_blocks=kept)

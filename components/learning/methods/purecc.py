"""PureCC, stage 2: pure learning of theta2 under the guidance of the extractor theta1 (METHOD section 4).

Source: the PureCC paper, CVPR 2026 (arXiv 2603.07561).
Trains: LoRA on every attention projection and the concept's embeddings, which start from theta1's. With
`stages: merged` theta1 has no stage of its own and trains here too, by its own L_CC.
Loss: L_PCC = L_CC + eta L_PureCC (15), and w_dop ||v_theta2(base) - v_0(base)||^2 where `dop_weight` is set.
Adaptations: none; the paper's model is this one. The settings are its ablations and ours, see `LearningSettings`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from components.backbones.interface import TextEncoding
from components.backbones.sd3 import SD3Backbone
from components.learning.cache import ConditionedBatch
from components.learning.flow_matching import FlowSample
from components.learning.guidance_bank import GuidanceBank
from components.learning.losses import flow_matching_loss
from components.learning.objective import guidance_metrics, guide, squared_error
from components.learning.stages import Recipe
from components.learning.task import EXTRACTOR, Task
from components.learning.training import Loss, ParameterGroup, StepLoss
from components.learning_settings import LearningSettings, StageSettings

Condition = tuple[TextEncoding, str | None]


def pure_learning_loss(backbone: SD3Backbone, adapter: str, extractor: str, settings: LearningSettings) -> Loss:
    """L_PCC (15).

    `original` says where v_orig (9) comes from: theta2 with gradient (`trainable`, as released), theta2 without
    (`detached`), or the untouched base (`frozen`). R_cb (10) is taken against the same v_orig, so that the closed form
    of lambda* minimises L_PureCC in each case. `guidance` says what R_tar (8) is the difference of.
    """
    dop_weight = settings.dop_weight or 0.0
    frozen = frozen_velocities(backbone, extractor, settings)

    def loss(flow: FlowSample, batch: ConditionedBatch) -> StepLoss:
        x_BCHW, t_B = flow.x_t_BCHW, flow.t_B
        moving: list[Condition] = [(batch.base, adapter)] if settings.original == "detached" else []
        with torch.no_grad():
            if batch.fixed is None:
                guidance_BCHW, *v_fixed = frozen(flow, batch, moving)
            else:
                guidance_BCHW, *v_fixed = batch.fixed
                v_fixed = [*backbone.velocities(x_BCHW, t_B, moving), *v_fixed]
        learned: list[Condition] = [(batch.complete, adapter)]
        if settings.original == "trainable" or dop_weight:
            learned.append((batch.base, adapter))
        v_complete_BCHW, *v_learned = backbone.velocities(x_BCHW, t_B, learned)
        v_orig_BCHW = v_learned[0] if settings.original == "trainable" else v_fixed[0]

        step = guide(v_complete_BCHW, v_orig_BCHW, guidance_BCHW, settings.lambda_star)
        cc = squared_error(v_complete_BCHW, flow.target_BCHW)
        purecc = squared_error(v_complete_BCHW, step.target_BCHW)
        total = cc + settings.eta * purecc
        metrics = {"loss/cc": cc.detach(), "loss/purecc": purecc.detach()}
        if dop_weight:
            dop = squared_error(v_learned[-1], v_fixed[-1])
            total, metrics["loss/dop"] = total + dop_weight * dop, dop.detach()
        metrics["loss/total"] = total.detach()
        return StepLoss(total, metrics | guidance_metrics(step, v_complete_BCHW, v_orig_BCHW))

    return loss


def frozen_velocities(
    backbone: SD3Backbone, extractor: str, settings: LearningSettings
) -> Callable[..., tuple[Tensor, ...]]:
    """R_tar (8) at some points, then the velocities of `moving` conditions, then the base's where it is needed.

    But for the moving ones nothing of it changes while theta2 trains.
    """

    def velocities(flow: FlowSample, batch: ConditionedBatch, moving: Sequence[Condition] = ()) -> tuple[Tensor, ...]:
        towards, contrast = {
            "null": (batch.target, batch.null),
            "class": (batch.target, batch.class_text),
            "complete-base": (batch.complete, batch.base),
        }[settings.guidance]
        conditions: list[Condition] = [(towards, extractor), (contrast, extractor), *moving]
        if settings.original == "frozen" or settings.dop_weight:
            conditions.append((batch.base, None))
        v_towards_BCHW, v_contrast_BCHW, *others = backbone.velocities(flow.x_t_BCHW, flow.t_B, conditions)
        return v_towards_BCHW - v_contrast_BCHW, *others

    return velocities


def merged_loss(pure: Loss, extractor: Loss) -> Loss:
    """L_PCC of theta2 and L_CC of theta1, which has no stage of its own; theta1 gets no gradient from the former."""

    def loss(flow: FlowSample, batch: ConditionedBatch) -> StepLoss:
        ours, theirs = pure(flow, batch), extractor(flow, batch)
        total = ours.total + theirs.total
        added = {"loss/extractor": theirs.total.detach(), "loss/total": total.detach()}
        return StepLoss(total, {**ours.metrics, **added})

    return loss


def prepare(task: Task) -> Recipe:
    learning = task.learning
    if learning.has_extractor:
        embeddings_NRD = task.load_extractor()
    else:
        embeddings_NRD = task.initial_embeddings()
        kinds = learning.extractor.trains.split("+")
        task.add_adapter(
            EXTRACTOR,
            lora=learning.lora if "lora" in kinds else None,
            embeddings_NRD=embeddings_NRD if "embeddings" in kinds else None,
        )
    task.add_adapter(lora=learning.lora, embeddings_NRD=embeddings_NRD)
    loss = pure_learning_loss(task.backbone, task.stage, EXTRACTOR, learning)
    groups = task.groups("lora", "embeddings")
    if not learning.has_extractor:
        loss = merged_loss(loss, flow_matching_loss(task.backbone, EXTRACTOR))
        groups += _extractor_groups(task, learning.extractor)
    bank = None
    if learning.guidance_bank is not None:
        bank = GuidanceBank(
            task.encoded,
            frozen_velocities(task.backbone, EXTRACTOR, learning),
            learning,
            seed=task.profile.seed,
            stage=task.stage,
            shift=task.backbone.timestep_shift,
        )
    return Recipe(groups, loss, bank=bank)


def _extractor_groups(task: Task, settings: StageSettings) -> list[ParameterGroup]:
    rates = {"lora": settings.lora_learning_rate, "embeddings": settings.embedding_learning_rate}
    parameters = task.backbone.parameters(EXTRACTOR)
    return [ParameterGroup(f"extractor.{kind}", parameters[kind], rates[kind]) for kind in parameters]

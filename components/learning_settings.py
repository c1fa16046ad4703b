"""The settings of learning: method, stages, objective, baselines; which method reads which of them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Settings(BaseModel):
    """Base of every settings class: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SamplingSettings(Settings):
    steps: int = Field(28, ge=1)
    guidance_scale: float = Field(5.0, ge=0)
    batch_size: int = Field(8, ge=1)


class LoraSettings(Settings):
    rank: int = Field(4, ge=1)
    alpha: float = Field(4.0, gt=0)
    blocks: tuple[int, ...] | None = Field(
        None, min_length=1, description="blocks of the transformer whose attention gets LoRA; None: all"
    )


class StageSettings(Settings):
    """One training stage; embeddings and LoRA have rates of their own."""

    steps: int = Field(ge=1)
    lora_learning_rate: float = Field(1e-4, gt=0)
    embedding_learning_rate: float = Field(1e-3, gt=0)
    warmup_steps: int = Field(0, ge=0)


class ExtractorSettings(StageSettings):
    """Stage 1 (METHOD section 3): what the representation extractor theta1 trains."""

    trains: Literal["lora+embeddings", "embeddings", "lora"] = "lora+embeddings"


class PureSettings(StageSettings):
    """Stage 2, and the only stage of every method but purecc."""

    weight_learning_rate: float = Field(
        1e-5, gt=0, description="of the base's own weights, in methods that train those"
    )
    lora_from_step: int = Field(0, ge=0, description="embeddings first: so many steps before LoRA trains too")


class LambdaSettings(Settings):
    """The scale of the guidance in v_pure (13). The logged lambda_star/* is the closed form (12) in any case."""

    fixed: float | None = Field(None, description="this number in the place of the closed form")
    per: Literal["sample", "batch"] = Field("sample", description="one closed form for each sample, or for the batch")

    @model_validator(mode="after")
    def _one_scale(self) -> LambdaSettings:
        if self.fixed is not None and self.per != "sample":
            raise ValueError("a fixed scale has no closed form that per could change")
        return self


class PriorSettings(Settings):
    """Images of the class that the base itself draws, which a method goes on to draw the same (prior preservation)."""

    images: int = Field(16, ge=1)
    weight: float = Field(1.0, ge=0, description="of their loss beside L_CC")
    sampling: SamplingSettings = SamplingSettings()


class BLoraSettings(Settings):
    """The blocks that B-LoRA trains; what is kept of them follows the concept's kind."""

    content: tuple[int, ...] = Field(min_length=1, description="kept for an instance")
    style: tuple[int, ...] = Field(min_length=1, description="kept for a style")

    @model_validator(mode="after")
    def _disjoint(self) -> BLoraSettings:
        if both := sorted(set(self.content) & set(self.style)):
            raise ValueError(f"the blocks {both} cannot be content and style")
        return self


Method = Literal[
    "purecc",
    "dreambooth",
    "dreambooth-ewc",
    "lora",
    "textual-inversion",
    "custom-diffusion",
    "mix-of-show",
    "cifc",
    "b-lora",
    "dop",
]
_LORA = {"purecc", "lora", "mix-of-show", "cifc", "b-lora", "dop"}
_EMBEDDINGS = {"purecc", "textual-inversion", "custom-diffusion", "mix-of-show", "cifc"}
_WEIGHTS = {"dreambooth", "dreambooth-ewc", "custom-diffusion"}
# Which methods read a setting of `learning`; what does not stand here they all read.
READ_BY: dict[str, set[str]] = {
    "original": {"purecc"},
    "guidance": {"purecc"},
    "eta": {"purecc"},
    "lambda_star": {"purecc"},
    "guidance_bank": {"purecc"},
    "stages": {"purecc"},
    "extractor": {"purecc"},
    "dop_weight": {"purecc", "dop"},
    "embeddings": _EMBEDDINGS,
    "lora": _LORA,
    "lora.blocks": _LORA - {"b-lora"},
    "b_lora": {"b-lora"},
    "prior": _WEIGHTS,
    "ewc_weight": {"dreambooth-ewc"},
    "earlier": {"cifc"},
    "orthogonality_weight": {"cifc"},
    "pure.lora_learning_rate": _LORA,
    "pure.embedding_learning_rate": _EMBEDDINGS,
    "pure.weight_learning_rate": _WEIGHTS,
    "pure.lora_from_step": _LORA & _EMBEDDINGS,
}
# What is only shown or kept on the way: no result depends on it.
_COURSE = ("checkpoint_every", "preview_every", "snapshot_steps")
# What stage 2 alone reads.
_SECOND_STAGE = (
    "method",
    "original",
    "guidance",
    "guidance_bank",
    "eta",
    "lambda_star",
    "stages",
    "dop_weight",
    "pure",
)
# Settings that came later: left out where they are off, so that what was trained before them still counts as unchanged.
_OFF = {"guidance_bank": None, "compile": False, "quantize_base": None, "offload_activations": False}


class LearningSettings(Settings):
    """How a concept is learned. Names of parts of the objective as in METHOD section 4."""

    method: Method = "purecc"
    stages: Literal["separate", "merged"] = Field(
        "separate", description="merged: no stage 1, the extractor learns along with theta2 (an ablation)"
    )
    original: Literal["trainable", "detached", "frozen"] = Field("frozen", description="where v_orig (9) comes from")
    guidance: Literal["null", "class", "complete-base"] = Field(
        "null",
        description="R_tar (8): theta1 on the target less the null text, on the target less the class text, or on the "
        "complete less the base text",
    )
    eta: float = Field(1.0, ge=0, description="weight of L_PureCC (15); 0: L_CC alone, from the same warm embeddings")
    lambda_star: LambdaSettings = LambdaSettings()
    dop_weight: float | None = Field(
        None, ge=0, description="of ||v_theta(base) - v_0(base)||^2; None: 1 for the method dop, none for purecc"
    )
    embeddings: Literal["per-layer", "single"] = Field(
        "per-layer", description="one embedding for each block, or one at the first block's input"
    )
    references: int | None = Field(None, ge=1, description="use the first so many references; None: all")
    lora: LoraSettings = LoraSettings()
    extractor: ExtractorSettings
    pure: PureSettings
    prior: PriorSettings = PriorSettings()
    ewc_weight: float = Field(1.0, ge=0, description="mu of EWC, with a Fisher information of mean 1")
    earlier: tuple[str, ...] = Field(
        (), description="adapter folders of concepts learned before, which cifc keeps the new one orthogonal to"
    )
    orthogonality_weight: float = Field(0.1, ge=0)
    b_lora: BLoraSettings | None = None
    batch_size: int = Field(2, ge=1, description="references per step, spread over the processes of the run")
    gradient_accumulation: int = Field(1, ge=1)
    gradient_clip: float = Field(1.0, gt=0)
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    gradient_checkpointing: bool = False
    offload_activations: bool = Field(
        False, description="what the backward pass needs waits in the host's memory: less of the GPU's, more time"
    )
    quantize_base: Literal["int8"] | None = Field(
        None, description="the frozen base's weights in 8 bits while training; needs the extra `quantization`"
    )
    compile: bool = Field(False, description="torch.compile of the transformer's blocks; its warm-up takes minutes")
    guidance_bank: int | None = Field(
        None,
        ge=1,
        description="so many draws of t and noise per reference, whose guidance is computed before the first step and "
        "used again; None: a new draw in each step",
    )
    logit_mean: float = 0.0
    logit_std: float = Field(1.0, gt=0)
    ema_decay: float | None = Field(None, gt=0, lt=1)
    checkpoint_every: int = Field(50, ge=1)
    preview_every: int = Field(0, ge=0, description="0: no previews")
    snapshot_steps: list[int] = Field([], description="steps whose adapter is kept besides the last, for curves")

    @model_validator(mode="after")
    def _possible(self) -> LearningSettings:
        if self.pure.lora_from_step >= self.pure.steps:
            raise ValueError(f"LoRA from step {self.pure.lora_from_step} of {self.pure.steps} would never train")
        if self.quantize_base is not None and self.method in _WEIGHTS:
            raise ValueError(f"{self.method} trains the base's own weights, which quantize_base would round")
        if self.guidance_bank is not None and self.stages == "merged":
            raise ValueError("guidance_bank needs a frozen extractor: with stages: merged it learns along")
        if self.method == "dop" and self.dop_weight == 0:
            raise ValueError("dop with dop_weight 0 is the method lora: take that one")
        if self.method == "b-lora" and self.b_lora is None:
            raise ValueError("b-lora needs b_lora.content and b_lora.style: the blocks that it trains")
        return self

    @property
    def has_extractor(self) -> bool:
        """Whether stage 1 is trained before stage 2."""
        return self.method == "purecc" and self.stages == "separate"

    def unread(self) -> dict[str, str]:
        """Settings that these settings make meaningless, each with the reason."""
        why = f"the method {self.method} does not read it"
        found = {name: why for name, methods in READ_BY.items() if self.method not in methods}
        unrated = {"embeddings": "lora", "lora": "embedding"}.get(self.extractor.trains)
        if self.method == "purecc" and unrated is not None:
            found[f"extractor.{unrated}_learning_rate"] = f"the extractor trains {self.extractor.trains} only"
        if self.method == "purecc" and self.stages == "merged":
            for name in ("steps", "warmup_steps"):
                found[f"extractor.{name}"] = "with stages: merged the extractor learns in the steps of `pure`"
        return found

    def of_stage(self, stage: Literal["extractor", "pure-learning"]) -> dict[str, Any]:
        """What the result of a stage depends on, as JSON; everything that stands here counts in at least one stage."""
        content = self.model_dump(mode="json", exclude=set(_COURSE))
        for name, off in _OFF.items():
            if content[name] == off:
                content.pop(name)
        for name in self.unread():
            first, _, second = name.partition(".")
            if not second:
                content.pop(first, None)
            elif first in content:
                content[first].pop(second)
        if stage == "extractor":
            for name in _SECOND_STAGE:
                content.pop(name, None)
            for name in {"embeddings": ["lora"], "lora": ["embeddings"]}.get(self.extractor.trains, []):
                content.pop(name, None)
        elif self.has_extractor:
            content.pop("extractor")
        _add_taken_out(content)
        return content


def _add_taken_out(content: dict[str, Any]) -> None:
    """Settings that were taken out, as they stood in what was trained without using them, which is still unchanged."""
    if "lambda_star" in content:
        content["cc_weight"] = 1.0
        content["lambda_star"] |= {"minimum": None, "blend": 0.0, "toward": 1.0}
    for stage in ("extractor", "pure"):
        if "steps" in content.get(stage, {}):
            content[stage]["early_stopping"] = None

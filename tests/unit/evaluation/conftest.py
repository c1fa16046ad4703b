"""Small randomly initialised evaluators in the Hugging Face layout, and a backbone that only colours."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor

from components.backbones.interface import TextEncoding
from components.concepts.concept import Concept, Reference
from components.concepts.texts import derive_texts
from components.evaluation.pictures import Picture

SIDE = 32


def _seeded(text: str) -> torch.Generator:
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big"))


@dataclass
class ColouringBackbone:
    """The image is low-frequency noise of the seed plus a colour of the prompt; an adapter shifts the colour.

    `[V]` in a prompt without an adapter, or an adapter on a prompt without `[V]`, changes nothing.
    """

    fingerprint: str = "base-1"
    latent_shape: tuple[int, int, int] = (4, 4, 4)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    calls: list[tuple[str | None, tuple[str, ...]]] = field(default_factory=list)
    fail_after: int | None = None
    scale: float = 1.0
    _prompts: dict[int, str] = field(default_factory=dict)

    def scale_adapter(self, name: str, factor: float) -> None:
        self.scale = factor

    def encode_text(self, prompts: Sequence[str]) -> TextEncoding:
        numbers = []
        for prompt in prompts:
            number = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:3], "big")
            self._prompts[number] = prompt
            numbers.append(number)
        context = torch.tensor(numbers, dtype=torch.float64)[:, None, None]
        return TextEncoding(context, torch.zeros(len(prompts), 1), tuple({} for _ in prompts))

    def sample(
        self,
        text: TextEncoding,
        negative: TextEncoding,
        *,
        seeds: Sequence[int],
        steps: int,
        guidance_scale: float,
        adapter: str | None,
    ) -> Tensor:
        assert len(text) == len(negative) == len(seeds)
        prompts = [self._prompts[int(row)] for row in text.context_BLD[:, 0, 0]]
        if self.fail_after is not None and len(self.calls) >= self.fail_after:
            raise KeyboardInterrupt
        self.calls.append((adapter, tuple(prompts)))
        images = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            plain = prompt.replace("[V] ", "").replace(", in [V] style", "")
            colour = torch.rand(3, 1, 1, generator=_seeded(plain)) * 2 - 1
            if adapter is not None and "[V]" in prompt:
                colour = colour + self.scale * torch.tensor([0.6, -0.3, 0.2])[:, None, None]
            noise = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
            noise = torch.nn.functional.interpolate(noise, (SIDE, SIDE), mode="bicubic")[0]
            images.append((0.6 * colour + 0.4 * noise).clamp(-1, 1))
        return torch.stack(images)


@pytest.fixture
def backbone() -> ColouringBackbone:
    return ColouringBackbone()


def noise_pictures(count: int, seed: int, side: int = SIDE) -> list[Picture]:
    rng = np.random.default_rng(seed)
    return [
        np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((side // 4, side // 4, 1))).astype(np.uint8)
        for _ in range(count)
    ]


@pytest.fixture
def pictures() -> list[Picture]:
    return noise_pictures(6, 0)


@pytest.fixture
def concept(tmp_path: Path) -> Concept:
    folder = tmp_path / "data" / "striped_star"
    folder.mkdir(parents=True)
    references = []
    for index, picture in enumerate(noise_pictures(3, 1)):
        path = folder / f"{index:02d}.png"
        Image.fromarray(picture).save(path)
        text = "a [V] star on the left, brick background"
        references.append(Reference(path, text, derive_texts(text, kind="instance", class_word="star")))
    return Concept("striped_star", "instance", "star", "CC0-1.0", "made for a test", folder, tuple(references))


def save_clip(folder: Path, seed: int = 0) -> None:
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

    torch.manual_seed(seed)
    letters = [chr(code) for code in range(33, 127)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)}, merges=[], model_max_length=77
    )
    end = len(tokens) - 1
    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokens), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 77, "projection_dim": 12,
            "bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end,
        },
        vision_config={
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 32, "patch_size": 8, "projection_dim": 12,
        },
        projection_dim=12,
    )  # fmt: skip
    CLIPModel(config).save_pretrained(folder)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor=processor, tokenizer=tokenizer).save_pretrained(folder)


def save_dinov2(folder: Path) -> None:
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

    torch.manual_seed(1)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8)
    Dinov2Model(config).save_pretrained(folder)
    BitImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)


def save_vit(folder: Path) -> None:
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

    torch.manual_seed(2)
    config = ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    ViTModel(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)


def save_style_encoder(folder: Path) -> None:
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(5)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8,
        projection_dim=12,
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)


def save_segformer(folder: Path) -> None:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessorPil

    torch.manual_seed(3)
    names = ["object", "snow", "brick", "grass"]
    config = SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[3, 3],
        strides=[2, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=16,
        id2label=dict(enumerate(names)), label2id={name: number for number, name in enumerate(names)},
    )  # fmt: skip
    model = SegformerForSemanticSegmentation(config)
    torch.nn.init.normal_(model.decode_head.classifier.weight, std=3.0)
    model.save_pretrained(folder)
    SegformerImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)


def save_sam(folder: Path) -> None:
    from transformers import SamConfig, SamImageProcessorPil, SamModel

    torch.manual_seed(4)
    config = SamConfig(
        vision_config={
            "hidden_size": 16, "output_channels": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 64, "patch_size": 8, "window_size": 4, "global_attn_indexes": [1], "mlp_dim": 32,
            "num_pos_feats": 4,
        },
        prompt_encoder_config={
            "hidden_size": 8, "image_size": 64, "patch_size": 8, "mask_input_channels": 4, "image_embedding_size": 8,
        },
        mask_decoder_config={
            "hidden_size": 8, "mlp_dim": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "iou_head_hidden_dim": 8,
        },
    )  # fmt: skip
    SamModel(config).save_pretrained(folder)
    side = {"height": 64, "width": 64}
    SamImageProcessorPil(
        size={"longest_edge": 64},
        pad_size=side,
        mask_size={"longest_edge": 16},
        mask_pad_size={"height": 16, "width": 16},
    ).save_pretrained(folder)


@pytest.fixture(scope="session")
def evaluator_models(session_folder: Path) -> Path:
    """A folder with `clip`, `dino`, `vit`, `csd`, `segmenter` and `sam`, randomly initialised."""
    folder = session_folder / "evaluators"
    with FileLock(session_folder / "evaluators.lock"):
        if not folder.exists():
            folder.mkdir()
            for name, save in (
                ("clip", save_clip),
                ("dino", save_dinov2),
                ("vit", save_vit),
                ("csd", save_style_encoder),
                ("segmenter", save_segformer),
                ("sam", save_sam),
            ):
                save(folder / name)
    return folder

"""The oracle: a classifier of the world's attributes, trained on renders, that judges generated images."""

from __future__ import annotations

from pathlib import Path

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from components.world.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT_LOOKS,
    HELD_OUT_STYLES,
    POSITIONS,
    SHAPES,
    SIZES,
    named_looks,
    named_styles,
)

PATTERNED = "patterned"
UNNAMED = "unnamed"
NO_STYLE = "none"


def attribute_labels() -> dict[str, list[str]]:
    """Attribute -> its labels, in the order of the oracle's outputs.

    `colour` is of plain objects and `patterned` for all other looks; `look` and `style` know the held-out concepts by
    name too, which the base model does not.
    """
    return {
        "background": list(BACKGROUNDS),
        "shape": list(SHAPES),
        "position": list(POSITIONS),
        "size": list(SIZES),
        "colour": [*COLOURS, PATTERNED],
        "look": [*COLOURS, *named_looks(), *HELD_OUT_LOOKS, UNNAMED],
        "style": [NO_STYLE, *named_styles(), *HELD_OUT_STYLES, UNNAMED],
    }


def _block(before: int, after: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.GroupNorm(8, after), nn.SiLU(inplace=True)
    )


class Oracle(nn.Module, PyTorchModelHubMixin):
    """Attributes of the object of a one-object image, its background and style, and the mask of all objects."""

    def __init__(self, labels: dict[str, list[str]], width: int = 32):
        super().__init__()
        self.labels = labels
        self.entry = nn.Sequential(_block(3, width, 2), _block(width, width, 1))
        self.quarter = nn.Sequential(_block(width, 2 * width, 2), _block(2 * width, 2 * width, 1))
        self.eighth = nn.Sequential(_block(2 * width, 4 * width, 2), _block(4 * width, 4 * width, 1))
        self.squeeze = _block(4 * width, width, 1)
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(width * 64 + 4 * width, 8 * width), nn.SiLU())
        self.heads = nn.ModuleDict({name: nn.Linear(8 * width, len(words)) for name, words in labels.items()})
        self.up_quarter = _block(4 * width + 2 * width, 2 * width, 1)
        self.up_half = _block(2 * width + width, width, 1)
        self.mask = nn.Conv2d(width, 4, 1)

    def forward(self, images_BCHW: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Logits (B, labels) of each attribute, and mask logits (B, H, W), of images (B, 3, 64, 64) in [-1, 1]."""
        half = self.entry(images_BCHW)
        quarter = self.quarter(half)
        eighth = self.eighth(quarter)
        features = self.trunk(torch.cat([self.squeeze(eighth).flatten(1), eighth.amax((2, 3))], 1))
        up = nn.functional.interpolate(eighth, scale_factor=2.0)
        up = self.up_quarter(torch.cat([up, quarter], 1))
        up = self.up_half(torch.cat([nn.functional.interpolate(up, scale_factor=2.0), half], 1))
        mask = nn.functional.pixel_shuffle(self.mask(up), 2).squeeze(1)
        return {name: head(features) for name, head in self.heads.items()}, mask

    @classmethod
    def load(cls, folder: Path) -> Oracle:
        """Read a folder written by `save_pretrained`."""
        oracle: Oracle = cls.from_pretrained(str(folder))
        return oracle.eval()

    @torch.inference_mode()
    def probabilities(self, images_BCHW: Tensor, batch_size: int = 128) -> dict[str, Tensor]:
        """Attribute -> probabilities (B, labels)."""
        parts = [self(part)[0] for part in images_BCHW.split(batch_size)]
        return {name: torch.cat([part[name] for part in parts]).float().softmax(-1) for name in self.labels}

    def predict(self, images_BCHW: Tensor) -> dict[str, list[str]]:
        """Attribute -> the most probable label of each image."""
        return {
            name: [self.labels[name][index] for index in values.argmax(-1).tolist()]
            for name, values in self.probabilities(images_BCHW).items()
        }

    @torch.inference_mode()
    def object_mask(self, images_BCHW: Tensor) -> Tensor:
        """Probability (B, H, W) that a pixel shows an object."""
        return self(images_BCHW)[1].float().sigmoid()

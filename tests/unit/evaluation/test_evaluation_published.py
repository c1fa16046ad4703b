"""Published state dicts against an own forward pass of OpenAI's architecture, on small random checkpoints in their
layout: HPSv2.1 (open_clip, text and pictures) and CSD (a picture tower with two projections)."""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from components.errors import InvalidInput
from components.evaluation.encoders import ClipEncoder, ClipParts, fit
from components.evaluation.evaluators import load_evaluators
from components.evaluation.published import find_file, read_state_dict
from components.evaluation.style_encoder import StyleEncoder
from components.settings import EvaluatorSettings
from flows.doctor import check_evaluators
from flows.job import _model_digest

CPU = torch.device("cpu")
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, activation: nn.Module):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        layers = [("c_fc", nn.Linear(width, 4 * width)), ("gelu", activation), ("c_proj", nn.Linear(4 * width, width))]
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        inner = self.ln_1(x)
        x = x + self.attn(inner, inner, inner, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Blocks(nn.Module):
    def __init__(self, width: int, heads: int, activation: nn.Module):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, activation) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class PictureTower(nn.Module):
    def __init__(self, width: int, heads: int, features: int | None, activation: nn.Module, side: int = 32):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 8, 8, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((side // 8) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Blocks(width, heads, activation)
        self.proj = None if features is None else nn.Parameter(torch.randn(width, features) / width**0.5)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(pixels), 1, -1), patches], 1) + self.positional_embedding
        x = self.ln_post(self.transformer(self.ln_pre(x))[:, 0])
        return x if self.proj is None else x @ self.proj


class OpenClip(nn.Module):
    """Head widths of ViT-H-14: 80 in the picture tower, 64 in the text tower."""

    def __init__(self, vocabulary: int, features: int = 12):
        super().__init__()
        self.visual = PictureTower(160, 2, features, nn.GELU())
        self.transformer = Blocks(128, 2, nn.GELU())
        self.token_embedding = nn.Embedding(vocabulary, 128)
        self.positional_embedding = nn.Parameter(torch.randn(77, 128))
        self.ln_final = nn.LayerNorm(128)
        self.text_projection = nn.Parameter(torch.randn(128, features) / 128**0.5)
        self.logit_scale = nn.Parameter(torch.tensor(3.0))
        self.register_buffer("attn_mask", torch.full((77, 77), float("-inf")).triu(1))

    def encode_text(self, ids: Tensor) -> Tensor:
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        x = self.ln_final(self.transformer(x, self.attn_mask[: ids.shape[1], : ids.shape[1]]))
        return x[torch.arange(len(ids)), ids.argmax(-1)] @ self.text_projection


class Csd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = PictureTower(128, 2, None, QuickGELU())
        self.last_layer_style = nn.Parameter(torch.randn(128, 10))
        self.last_layer_content = nn.Parameter(torch.randn(128, 10))


def pixels_of(pictures: list[np.ndarray]) -> Tensor:
    scaled = (np.stack(pictures) / 255 - MEAN) / STD
    return torch.from_numpy(scaled).permute(0, 3, 1, 2).float()


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return (first * second).sum(axis=1) / norms


@pytest.fixture(scope="module")
def open_clip(evaluator_models: Path) -> OpenClip:
    from transformers import CLIPTokenizer

    torch.manual_seed(11)
    return OpenClip(len(CLIPTokenizer.from_pretrained(evaluator_models / "clip"))).eval()


@pytest.fixture(scope="module")
def hps(open_clip: OpenClip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hps") / "HPS_v2.1_compressed.pt"
    torch.save({"epoch": 1, "state_dict": open_clip.state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def csd() -> Csd:
    torch.manual_seed(12)
    return Csd().eval()


def save_csd(csd: Csd, folder: Path, layout: str) -> Path:
    state = {name: value.detach().clone() for name, value in csd.state_dict().items()}
    if layout == "safetensors":
        save_file(state, folder / "model.safetensors")
        return folder / "model.safetensors"
    training = {
        "model_state_dict": {f"module.{name}": value for name, value in state.items()},
        "opt_bb": {"state": {0: {"step": torch.tensor(1.0)}}, "best": np.float64(0.5)},
        "iter": 3,
        "args": argparse.Namespace(arch="vit_large"),
    }
    file = folder / "pytorch_model.bin"
    torch.save(training, file)
    if layout == "training checkpoint of numpy 1":
        written = folder / "written.bin"
        file.rename(written)
        with zipfile.ZipFile(written) as old, zipfile.ZipFile(file, "w") as new:
            for name in old.namelist():
                content = old.read(name)
                if name.endswith("data.pkl"):
                    assert b"numpy._core.multiarray" in content
                    content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
                new.writestr(name, content)
    return file


def test_hps_is_the_state_dict_run_by_hand(hps: Path, open_clip: OpenClip, evaluator_models: Path, pictures) -> None:
    from transformers import CLIPTokenizer

    clip = str(evaluator_models / "clip")
    encoder = ClipEncoder(str(hps), CPU, batch_size=4, parts=ClipParts.of_hps(str(hps), clip, CPU))
    texts = ["a red star", "snow", "", "a star on the left, brick background", "b", "c"]
    tokenizer = CLIPTokenizer.from_pretrained(clip)
    with torch.no_grad():
        images = open_clip.visual(pixels_of(pictures)).double().numpy()
        rows = [open_clip.encode_text(tokenizer(text, return_tensors="pt").input_ids)[0] for text in texts]
    np.testing.assert_allclose(cosines(encoder.encode_images(pictures), images), 1, atol=1e-5)
    np.testing.assert_allclose(cosines(encoder.encode_texts(texts), torch.stack(rows).double().numpy()), 1, atol=1e-5)
    assert cosines(images[:1], images[1:2]) < 1 - 1e-3, "the checks above can tell pictures apart"
    names = {name: str(evaluator_models / name) for name in ("clip", "dino", "segmenter")}
    scorer = load_evaluators(EvaluatorSettings(**names, hps=str(hps)), Path("/"), CPU).preferences["hps"]
    expected = 100 * cosines(images, torch.stack(rows).double().numpy())
    np.testing.assert_allclose(scorer.score(pictures, texts), expected, atol=1e-3)
    alone = [scorer.score([picture], [text])[0] for picture, text in zip(pictures, texts, strict=True)]
    np.testing.assert_allclose(scorer.score(pictures, texts), alone, atol=1e-4)


def test_hps_sees_pictures_whole(hps: Path, open_clip: OpenClip, evaluator_models: Path) -> None:
    wide = np.random.default_rng(3).integers(0, 256, (16, 32, 3)).astype(np.uint8)
    framed = np.zeros((32, 32, 3), dtype=np.uint8)
    framed[8:24] = wide
    from PIL import Image

    assert np.array_equal(np.asarray(fit(Image.fromarray(wide), 32)), framed)
    assert fit(Image.fromarray(wide), 8).size == (8, 8)
    parts = ClipParts.of_hps(str(hps), str(evaluator_models / "clip"), CPU)
    encoder = ClipEncoder(str(hps), CPU, parts=parts)
    np.testing.assert_allclose(encoder.encode_images([wide]), encoder.encode_images([framed]))
    assert encoder.info["preprocessing"]["whole_picture_in_square"] == 32


@pytest.mark.parametrize("layout", ["safetensors", "training checkpoint", "training checkpoint of numpy 1"])
def test_csd_is_the_style_projection_of_its_tower(csd: Csd, tmp_path: Path, pictures, layout: str) -> None:
    encoder = StyleEncoder(str(save_csd(csd, tmp_path, layout)), CPU, batch_size=4)
    with torch.no_grad():
        features = csd.backbone(pixels_of(pictures))
        style, content = (features @ head for head in (csd.last_layer_style, csd.last_layer_content))
    encoded = encoder.encode_images(pictures)
    np.testing.assert_allclose(cosines(encoded, style.double().numpy()), 1, atol=1e-5)
    assert (cosines(encoded, content.double().numpy()) < 0.99).all()
    np.testing.assert_allclose(np.concatenate([encoder.encode_images([one]) for one in pictures]), encoded, atol=1e-5)


def test_a_style_encoder_in_transformers_layout(evaluator_models: Path, pictures) -> None:
    from transformers import CLIPVisionModelWithProjection

    encoder = StyleEncoder(str(evaluator_models / "csd"), CPU)
    model = CLIPVisionModelWithProjection.from_pretrained(evaluator_models / "csd").eval()
    with torch.no_grad():
        expected = model(pixel_values=pixels_of(pictures)).image_embeds.double().numpy()
    np.testing.assert_allclose(cosines(encoder.encode_images(pictures), expected), 1, atol=1e-5)


class Payload:
    """What unpickling it would do is to write a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> Any:
        return (Path.touch, (self.file,))


def test_no_code_of_a_checkpoint_is_run(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1)}, "extra": Payload(tmp_path / "ran")}, tmp_path / "bad.pt")
    with pytest.raises(InvalidInput, match="safely"):
        read_state_dict(tmp_path / "bad.pt")
    assert not (tmp_path / "ran").exists()
    assert pickle.loads(pickle.dumps(Payload(tmp_path / "ran"))) is None
    assert (tmp_path / "ran").exists(), "the payload would have worked"


def test_other_checkpoints_are_refused(csd: Csd, hps: Path, evaluator_models: Path, tmp_path: Path) -> None:
    clip = str(evaluator_models / "clip")
    style = save_csd(csd, tmp_path, "safetensors")
    with pytest.raises(InvalidInput, match="not the state dict of CSD"):
        StyleEncoder(str(hps), CPU)
    with pytest.raises(InvalidInput, match=r"not the state dict of HPSv2\.1"):
        ClipParts.of_hps(str(style), clip, CPU)
    state = read_state_dict(hps)
    del state["transformer.resblocks.1.ln_1.bias"]
    torch.save({"state_dict": state}, tmp_path / "short.pt")
    with pytest.raises(InvalidInput, match="not the state dict"):
        ClipParts.of_hps(str(tmp_path / "short.pt"), clip, CPU)
    (tmp_path / "torn.pt").write_bytes(hps.read_bytes()[:1000])
    (tmp_path / "torn.safetensors").write_bytes(style.read_bytes()[:1000])
    torch.save([1, 2], tmp_path / "list.pt")
    for name, problem in (("torn.pt", "safely"), ("torn.safetensors", "safely"), ("list.pt", "no state dict")):
        with pytest.raises(InvalidInput, match=problem):
            read_state_dict(tmp_path / name)


def test_a_tokenizer_of_another_vocabulary_is_refused(evaluator_models: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save({"state_dict": OpenClip(50).state_dict()}, tmp_path / "hps.pt")
    with pytest.raises(InvalidInput, match="50"):
        ClipParts.of_hps(str(tmp_path / "hps.pt"), str(evaluator_models / "clip"), CPU)


def test_files_are_found_by_path_or_in_the_hubs_cache(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no such file"):
        find_file("./none.pt")
    with pytest.raises(InvalidInput, match="no such file"):
        find_file("none.pt")
    with pytest.raises(InvalidInput, match="cannot be fetched"):
        find_file("xswu/HPSv2/HPS_v2.1_compressed.pt")
    (tmp_path / "a.pt").write_bytes(b"1")
    assert find_file(str(tmp_path / "a.pt")) == tmp_path / "a.pt"
    first = _model_digest(tmp_path, "a.pt")
    (tmp_path / "a.pt").write_bytes(b"22")
    assert _model_digest(tmp_path, "a.pt") != first, "other weights are another evaluation"


def test_doctor_names_weights_that_are_not_there(project: Path) -> None:
    from components.settings import load_profile

    checks = {check.name: check for check in check_evaluators(load_profile("sd35-medium"), project)}
    assert not checks["evaluator hps"].ok
    assert "hf download xswu/HPSv2 HPS_v2.1_compressed.pt" in checks["evaluator hps"].mend
    (project / "weights.pt").write_bytes(b"1")
    there = load_profile("sd35-medium", ["evaluation.evaluators.csd=weights.pt"])
    assert {check.name: check.ok for check in check_evaluators(there, project)}["evaluator csd"]

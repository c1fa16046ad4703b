"""The encoders against transformers used directly: own loading, own preprocessing arithmetic."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from components.errors import InvalidInput
from components.evaluation.encoders import ClipEncoder, FeatureEncoder, resolve
from components.evaluation.evaluators import load_evaluators
from components.evaluation.preference import ClipPreference
from components.settings import EvaluatorSettings

CPU = torch.device("cpu")


def by_hand(picture: np.ndarray, mean: list[float], std: list[float]) -> torch.Tensor:
    """A 32 x 32 picture that needs no resizing: scale to [0, 1], normalise."""
    scaled = picture.astype(np.float64) / 255
    return torch.from_numpy(((scaled - mean) / std).transpose(2, 0, 1)).float()


def cosine_of(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


@pytest.mark.parametrize("name", ["dino", "vit"])
def test_features_are_the_class_token(evaluator_models: Path, pictures, name) -> None:
    from transformers import Dinov2Model, ViTModel

    encoder = FeatureEncoder(str(evaluator_models / name), CPU, batch_size=4)
    features = encoder.encode_images(pictures)
    model = (Dinov2Model if name == "dino" else ViTModel).from_pretrained(evaluator_models / name).eval()
    given = encoder.info["preprocessing"]
    pixels = torch.stack([by_hand(picture, given["image_mean"], given["image_std"]) for picture in pictures])
    with torch.no_grad():
        expected = model(pixel_values=pixels).last_hidden_state[:, 0].double().numpy()
    assert features.dtype == np.float64
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1)
    for row, truth in zip(features, expected, strict=True):
        assert cosine_of(row, truth) == pytest.approx(1, abs=1e-6)
    assert cosine_of(features[0], expected[1]) < 1 - 1e-6, "the check above can tell pictures apart"


def test_clip_joins_pictures_and_texts(evaluator_models: Path, pictures) -> None:
    from transformers import CLIPModel, CLIPTokenizer

    path = evaluator_models / "clip"
    encoder = ClipEncoder(str(path), CPU, batch_size=4)
    texts = ["a red star", "snow", "", "a star on the left, brick background", "b", "c"]
    model = CLIPModel.from_pretrained(path).eval()
    tokenizer = CLIPTokenizer.from_pretrained(path)
    given = encoder.info["preprocessing"]
    pixels = torch.stack([by_hand(picture, given["image_mean"], given["image_std"]) for picture in pictures])
    with torch.no_grad():
        images = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output).double().numpy()
        rows = []
        for text in texts:  # one at a time: no padding is involved
            tokens = tokenizer(text, return_tensors="pt")
            rows.append(model.text_projection(model.text_model(**tokens).pooler_output)[0].double().numpy())
    for row, truth in zip(encoder.encode_images(pictures), images, strict=True):
        assert cosine_of(row, truth) == pytest.approx(1, abs=1e-6)
    encoded = encoder.encode_texts(texts)
    for row, truth in zip(encoded, rows, strict=True):
        assert cosine_of(row, truth) == pytest.approx(1, abs=1e-5)
    assert cosine_of(encoded[0], encoded[3]) < 1 - 1e-6


def test_a_text_beyond_the_models_length_is_cut(evaluator_models: Path) -> None:
    encoder = ClipEncoder(str(evaluator_models / "clip"), CPU)
    assert encoder.encode_texts(["star " * 200]).shape == (1, 12)


def test_batches_change_nothing(evaluator_models: Path, pictures) -> None:
    one, many = (FeatureEncoder(str(evaluator_models / "dino"), CPU, batch_size=size) for size in (1, 6))
    np.testing.assert_allclose(one.encode_images(pictures), many.encode_images(pictures), atol=1e-6)


def test_preference_is_the_scaled_cosine_of_each_with_its_own_prompt(evaluator_models: Path, pictures) -> None:
    path = str(evaluator_models / "clip")
    prompts = [f"prompt {index}" for index in range(len(pictures))]
    encoder = ClipEncoder(path, CPU)
    images, texts = encoder.encode_images(pictures), encoder.encode_texts(prompts)
    expected = [cosine_of(image, text) for image, text in zip(images, texts, strict=True)]
    np.testing.assert_allclose(ClipPreference(path, CPU, scale=100).score(pictures, prompts), 100 * np.array(expected))
    scale = float(load_file(f"{path}/model.safetensors")["logit_scale"].exp())
    np.testing.assert_allclose(
        ClipPreference(path, CPU).score(pictures, prompts), scale * np.array(expected), rtol=1e-6
    )


def test_one_changed_weight_changes_the_recorded_digest(evaluator_models: Path, tmp_path: Path) -> None:
    changed = tmp_path / "dino"
    shutil.copytree(evaluator_models / "dino", changed)
    weights = load_file(changed / "model.safetensors")
    weights["layernorm.bias"][0] += 1e-3
    save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})
    infos = [
        FeatureEncoder(str(path), CPU).info for path in (evaluator_models / "dino", changed, evaluator_models / "dino")
    ]
    assert infos[0]["weights_sha256"] == infos[2]["weights_sha256"] != infos[1]["weights_sha256"]


def test_missing_weights_are_an_error_not_random_numbers(evaluator_models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "dino"
    shutil.copytree(evaluator_models / "dino", folder)
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.0.mlp.fc1.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidInput, match="missing"):
        FeatureEncoder(str(folder), CPU)


def test_what_is_no_evaluator_is_named(evaluator_models: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no such evaluator"):
        resolve("infra/models/none", tmp_path)
    assert resolve("openai/clip-vit-base-patch32", tmp_path) == "openai/clip-vit-base-patch32"
    (tmp_path / "clip").mkdir()
    assert resolve("clip", tmp_path) == str(tmp_path / "clip")
    with pytest.raises(InvalidInput, match="cannot be loaded"):
        FeatureEncoder(str(tmp_path / "clip"), CPU)
    with pytest.raises(InvalidInput, match=r"cannot be loaded|pictures and texts"):
        ClipEncoder(str(evaluator_models / "dino"), CPU)


def test_a_profile_may_name_every_evaluator(evaluator_models: Path, tmp_path: Path) -> None:
    clip, dino, style = (str(evaluator_models / name) for name in ("clip", "dino", "csd"))
    settings = EvaluatorSettings(
        clip=clip, dino=dino, segmenter=str(evaluator_models / "sam"), hps=clip, pickscore=clip, csd=style
    )
    loaded = load_evaluators(settings, tmp_path, CPU)
    assert set(loaded.info) == {"clip", "dino", "segmenter", "csd", "hps", "pickscore"}
    assert loaded.info["hps"]["scale"] == 100
    assert loaded.info["segmenter"]["architecture"] == "SamModel"
    with pytest.raises(InvalidInput, match="oracle"):
        load_evaluators(settings.model_copy(update={"oracle": str(tmp_path / "a/b/none")}), tmp_path, CPU)

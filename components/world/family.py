"""The tiny model family in the Hugging Face / diffusers layout of Stable Diffusion 3.5, before any training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from tokenizers import pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from components.world.vocabulary import words

TEXT_LENGTH = 20
SHIFT = 3.0
_START, _END = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True)
class FamilySize:
    """What differs between the shipped family and the one that tests make in a second.

    Attributes:
        heads: attention heads of the transformer, of `head_width` each.
        blocks: MM-DiT blocks, the first `dual_blocks` with a second image attention.
        text_width, text_blocks: of each CLIP text encoder; T5 is twice as wide.
        autoencoder_channels: per resolution; each but the first halves the side.
        latent_channels: channels of the latent.
        image_side: pixels.
    """

    heads: int = 3
    head_width: int = 64
    blocks: int = 6
    dual_blocks: int = 2
    text_width: int = 96
    text_blocks: int = 2
    autoencoder_channels: tuple[int, ...] = (16, 32, 64)
    latent_channels: int = 8
    image_side: int = 64


FAMILY_SIZES = {
    "tiny": FamilySize(),
    "micro": FamilySize(
        heads=2,
        head_width=8,
        blocks=3,
        dual_blocks=2,
        text_width=16,
        autoencoder_channels=(8, 8, 16),
        latent_channels=4,
    ),
}


def byte_pair_merges(vocabulary: Sequence[str]) -> list[tuple[str, str]]:
    """Merges that make every word one token: the most frequent pair first, ties by the alphabet.

    The trainer of `tokenizers` breaks ties by hash order, differently in each process: two processes that train one
    model would read the same word as different tokens.
    """
    spelled = [[*word[:-1], f"{word[-1]}</w>"] for word in vocabulary]
    merges = []
    while pairs := Counter(pair for symbols in spelled for pair in pairwise(symbols)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for symbols in spelled:
            index = 0
            while index < len(symbols) - 1:
                if (symbols[index], symbols[index + 1]) == best:
                    symbols[index : index + 2] = ["".join(best)]
                index += 1
    return merges


def clip_tokenizer(pad_token: str = _END) -> CLIPTokenizer:
    """A byte-pair CLIP tokenizer in which every word of the vocabulary is one token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = byte_pair_merges(words())
    entries = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *("".join(pair) for pair in merges)]
    entries = [*dict.fromkeys(entries), _START, _END]
    return CLIPTokenizer(
        vocab={entry: index for index, entry in enumerate(entries)},
        merges=merges,
        model_max_length=TEXT_LENGTH,
        pad_token=pad_token,
    )


def t5_tokenizer() -> T5Tokenizer:
    """A unigram T5 tokenizer in which every word of the vocabulary is one token; other words are unknown."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [(f"▁{word}", -2.0) for word in words()] + [(",", -2.0), (".", -2.0)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=TEXT_LENGTH)


def _clip_text_model(size: FamilySize, tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=size.text_width,
            intermediate_size=4 * size.text_width,
            num_hidden_layers=size.text_blocks,
            num_attention_heads=max(1, size.text_width // 32),
            projection_dim=size.text_width,
            max_position_embeddings=TEXT_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).eval()


def _zero_initialise(transformer: SD3Transformer2DModel) -> None:
    """The adaLN linears and the last projection start at zero, as DiT prescribes and diffusers does not do."""
    for name, module in transformer.named_modules():
        if (
            isinstance(module, torch.nn.Linear)
            and (".norm1" in name or name.startswith("norm_out") or name == "proj_out")
        ) or (isinstance(module, torch.nn.Linear) and ".norm1_context" in name):
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)


def untrained_pipeline(size: FamilySize, *, seed: int = 0, zero_initialise: bool = True) -> StableDiffusion3Pipeline:
    """The pipeline with random weights from one seed.

    Args:
        zero_initialise: False gives an output that depends on the text from the start, which tests want.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first, second, third = clip_tokenizer(), clip_tokenizer(pad_token="!"), t5_tokenizer()
        width = size.heads * size.head_width
        latent_side = size.image_side // 2 ** (len(size.autoencoder_channels) - 1)
        transformer = SD3Transformer2DModel(
            sample_size=latent_side,
            patch_size=2,
            in_channels=size.latent_channels,
            out_channels=size.latent_channels,
            num_layers=size.blocks,
            attention_head_dim=size.head_width,
            num_attention_heads=size.heads,
            joint_attention_dim=2 * size.text_width,
            caption_projection_dim=width,
            pooled_projection_dim=2 * size.text_width,
            pos_embed_max_size=2 * latent_side // 2,
            dual_attention_layers=tuple(range(size.dual_blocks)),
            qk_norm="rms_norm",
        )
        if zero_initialise:
            _zero_initialise(transformer)
        stages = len(size.autoencoder_channels)
        autoencoder = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * stages,
            up_block_types=("UpDecoderBlock2D",) * stages,
            block_out_channels=size.autoencoder_channels,
            layers_per_block=1,
            latent_channels=size.latent_channels,
            norm_num_groups=8,
            sample_size=size.image_side,
            use_quant_conv=False,
            use_post_quant_conv=False,
            shift_factor=0.0,
            scaling_factor=1.0,
        )
        t5 = T5EncoderModel(
            T5Config(
                vocab_size=len(third),
                d_model=2 * size.text_width,
                d_ff=4 * size.text_width,
                d_kv=32,
                num_heads=max(1, size.text_width // 32),
                num_layers=size.text_blocks,
                feed_forward_proj="gated-gelu",
                dropout_rate=0.0,
                is_encoder_decoder=False,
            )
        )
        return StableDiffusion3Pipeline(
            transformer=transformer.eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
            vae=autoencoder.eval(),
            text_encoder=_clip_text_model(size, first),
            tokenizer=first,
            text_encoder_2=_clip_text_model(size, second),
            tokenizer_2=second,
            text_encoder_3=t5.eval(),
            tokenizer_3=third,
        )


def create_untrained(folder: Path, *, size: str = "micro", seed: int = 0, zero_initialise: bool = False) -> None:
    """Write an untrained family to a folder that `StableDiffusion3Pipeline.from_pretrained` loads.

    Args:
        size: a key of `FAMILY_SIZES`.
    """
    untrained_pipeline(FAMILY_SIZES[size], seed=seed, zero_initialise=zero_initialise).save_pretrained(folder)

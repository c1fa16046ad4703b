"""Stable Diffusion 3 / 3.5 as a backbone: one shared transformer, adapters by name.

Shape suffixes as in `components.backbones.interface`; N transformer blocks, R rows per mention, D inner width.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from components.backbones import adapter_loading, base_folder, sampling
from components.backbones.adapted import AdaptedTransformer
from components.backbones.device import device_of
from components.backbones.interface import Backbone, TextEncoding
from components.backbones.text_encoders import TextEncoders, load_tokenizer
from components.errors import InvalidInput
from components.settings import BaseSettings, LoraSettings

_TEXT_BATCH = 32


class SD3Backbone(Backbone):
    """The pre-trained model of a profile; made by `SD3Backbone.load`.

    Text encoders and autoencoder are loaded when first used and can be freed; the transformer and the tokenizers stay.
    """

    def __init__(self, folder: Path, settings: BaseSettings):
        import diffusers
        import transformers

        transformers.utils.logging.disable_progress_bar()
        diffusers.utils.logging.disable_progress_bar()
        self.folder, self.settings = folder, settings
        self._device, self._dtype = device_of(settings), getattr(torch, settings.dtype)
        if self._device.type == "cpu":
            # this switch governs the CPU kernel too, which is slow for the ~100 tokens of small images
            torch.backends.cuda.enable_flash_sdp(False)
            if settings.threads is not None:
                torch.set_num_threads(settings.threads)
        self.tokenizer = load_tokenizer(
            folder, placeholder=settings.placeholder, max_sequence_length=settings.max_sequence_length
        )
        self._scheduler = diffusers.FlowMatchEulerDiscreteScheduler.load_config(folder, subfolder="scheduler")
        if self._scheduler.get("use_dynamic_shifting"):
            raise InvalidInput(
                "a timestep shift that depends on the resolution is not supported",
                file=folder / "scheduler" / "scheduler_config.json",
                field="use_dynamic_shifting",
            )
        transformer = diffusers.SD3Transformer2DModel.from_pretrained(
            folder, subfolder="transformer", torch_dtype=self._dtype
        )
        self.adapted = AdaptedTransformer(
            transformer.to(self._device),
            train_timesteps=self._scheduler["num_train_timesteps"],
            rows_per_mention=self.tokenizer.rows_per_mention,
        )
        self._vae_config = diffusers.AutoencoderKL.load_config(folder, subfolder="vae")
        self._text: TextEncoders | None = None
        self._vae: Any = None
        self._fingerprint: str | None = None

    @classmethod
    def load(cls, settings: BaseSettings, *, parts: Iterable[str] = ("transformer",)) -> SD3Backbone:
        """Load a base.

        Args:
            parts: what to load at once: `text`, `vae`, `transformer`; the others follow when first used.

        Raises:
            InvalidInput: the folder or hub id does not exist, a file is missing or corrupt, the placeholder is not one
                token. The text encoders are checked when they are loaded.
        """
        backbone = cls(base_folder.resolve(settings), settings)
        if "text" in parts:
            backbone.text_encoders()
        if "vae" in parts:
            backbone.autoencoder()
        return backbone

    def free(self, *parts: str) -> None:
        """Drop `text` and/or `vae` from memory; they are loaded again when next used."""
        if "text" in parts:
            self._text = None
        if "vae" in parts:
            self._vae = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def fingerprint(self) -> str:
        if self._fingerprint is None:
            self._fingerprint = base_folder.fingerprint(self.folder)
        return self._fingerprint

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def transformer(self) -> Any:
        """The diffusers transformer; no adapter acts in it outside of `velocity` and `sample`."""
        return self.adapted.transformer

    @property
    def timestep_shift(self) -> float:
        """The shift of the scheduler: that of training and sampling."""
        return float(self._scheduler["shift"])

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        side = self.settings.resolution // 2 ** (len(self._vae_config["block_out_channels"]) - 1)
        return int(self.transformer.config.in_channels), side, side

    # texts and images

    def encode_text(self, prompts: Sequence[str]) -> TextEncoding:
        encode = self.text_encoders()
        batches = [prompts[start : start + _TEXT_BATCH] for start in range(0, len(prompts), _TEXT_BATCH)]
        return TextEncoding.cat([encode(batch) for batch in batches])

    @torch.no_grad()
    def encode_image(self, images_BCHW: Tensor) -> Tensor:
        vae = self.autoencoder()
        mode_BCHW = vae.encode(images_BCHW.to(self._device, self._dtype)).latent_dist.mode().float()
        return (mode_BCHW - vae.config.shift_factor) * vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents_BCHW: Tensor) -> Tensor:
        vae = self.autoencoder()
        latents_BCHW = latents_BCHW / vae.config.scaling_factor + vae.config.shift_factor
        return vae.decode(latents_BCHW.to(self._device, self._dtype), return_dict=False)[0].float().clamp(-1, 1)

    def text_encoders(self) -> TextEncoders:
        """The text encoders, loaded when first asked for."""
        if self._text is None:
            width = int(self.transformer.config.joint_attention_dim)
            self._text = TextEncoders(
                self.folder, self.tokenizer, device=self._device, dtype=self._dtype, context_width=width
            )
        return self._text

    def autoencoder(self) -> Any:
        """The autoencoder, loaded when first asked for."""
        if self._vae is None:
            from diffusers import AutoencoderKL

            vae = AutoencoderKL.from_pretrained(self.folder, subfolder="vae", torch_dtype=self._dtype)
            self._vae = vae.to(self._device).eval().requires_grad_(False)
        return self._vae

    # the flow

    def velocity(self, x_BCHW: Tensor, t_B: Tensor, text: TextEncoding, adapter: str | None) -> Tensor:
        return self.adapted.forward(x_BCHW, t_B, text, [adapter] * len(text))

    def velocity_at(self, step: int, x_BCHW: Tensor, t_B: Tensor, text: TextEncoding, adapter: str | None) -> Tensor:
        """The velocity in a step of sampling, where `adapter` may also be a composition of several."""
        composition = self.adapted.composition(adapter)
        if composition is None:
            return self.velocity(x_BCHW, t_B, text, adapter)
        if any("" in rows for rows in text.concept_rows):
            raise InvalidInput("[V] names no concept where several act", field="prompt", mend="write each as <name>")
        velocities = [self.velocity(x_BCHW, t_B, text, each) for each in composition.acting(step)]
        return torch.stack(velocities).mean(0)

    def velocities(
        self, x_BCHW: Tensor, t_B: Tensor, conditions: Sequence[tuple[TextEncoding, str | None]]
    ) -> list[Tensor]:
        """The velocities at the same x_t under several (text, adapter), in as few forward passes as possible.

        Conditions that act through the same adapter's weights, or through none, share a pass: embeddings may differ by
        sample.
        """
        groups: dict[str | None, list[int]] = {}
        for index, (_, adapter) in enumerate(conditions):
            groups.setdefault(self.adapted.changes_of(adapter), []).append(index)
        results: dict[int, Tensor] = {}
        for members in groups.values():
            v_BCHW = self.adapted.forward(
                x_BCHW.repeat(len(members), 1, 1, 1),
                t_B.repeat(len(members)),
                TextEncoding.cat([conditions[index][0] for index in members]),
                [conditions[index][1] for index in members for _ in range(len(x_BCHW))],
            )
            results |= dict(zip(members, v_BCHW.chunk(len(members)), strict=True))
        return [results[index] for index in range(len(conditions))]

    @torch.no_grad()
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
        """As in the protocol; `negative` holds one prompt for all, or one for each."""
        return self.decode(
            self.sample_latents(
                text, negative, seeds=seeds, steps=steps, guidance_scale=guidance_scale, adapter=adapter
            )
        )

    @torch.no_grad()
    def sample_latents(
        self,
        text: TextEncoding,
        negative: TextEncoding,
        *,
        seeds: Sequence[int],
        steps: int,
        guidance_scale: float,
        adapter: str | None,
    ) -> Tensor:
        """As `sample`, before the autoencoder: scaled latents."""
        if len(seeds) != len(text):
            raise ValueError(f"{len(seeds)} seeds for {len(text)} prompts")
        if guidance_scale > 1:
            text = TextEncoding.cat(
                [negative if len(negative) == len(text) else negative.select([0] * len(text)), text]
            )
        number = itertools.count()
        return sampling.euler(
            self._scheduler,
            sampling.noise(seeds, self.latent_shape).to(self._device),
            lambda x_BCHW, t_B: self.velocity_at(next(number), x_BCHW, t_B, text, adapter),
            steps=steps,
            guidance_scale=guidance_scale,
        )

    # adapters

    def create_adapter(
        self,
        name: str,
        *,
        concept: str,
        lora: LoraSettings | None = None,
        embeddings_NRD: Tensor | None = None,
        weights: Mapping[str, Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        """Add a frozen adapter.

        Args:
            lora: LoRA that changes nothing yet (A from the seed, B zero).
            embeddings_NRD: layer-wise embeddings with this value.
            weights: differences to the base's weights of these names.
        """
        self.adapted.create(name, concept=concept, lora=lora, embeddings_NRD=embeddings_NRD, weights=weights, seed=seed)

    def parameters(self, name: str) -> dict[str, dict[str, nn.Parameter]]:
        """Kind (`lora`, `embeddings`, `weights`) -> name -> parameter; frozen until `requires_grad_` is called."""
        return self.adapted.parameters(name)

    def measure_context_rows(
        self, text: TextEncoding, latents_BCHW: Tensor, *, times: Sequence[float] = (0.25, 0.5, 0.75), seed: int = 0
    ) -> Tensor:
        """Mean context rows of the concept at the input of each block of the untouched base: (N, R, D).

        With these as embeddings the adapted model starts close to the base that reads the placeholder word.

        Args:
            text: prompts that mention the concept, each with the latent of the image it describes.
            times: the t at which the images are noised.
        """
        x_1_BCHW = sampling.noise([seed + index for index in range(len(text))], self.latent_shape).to(self._device)
        rows = []
        for t in times:
            x_BCHW = (1 - t) * latents_BCHW.to(self._device) + t * x_1_BCHW
            t_B = torch.full((len(text),), t, device=self._device)
            rows.append(self.adapted.context_rows(x_BCHW, t_B, text))
        return torch.stack(rows).mean(0)

    def save_adapter(self, name: str, folder: Path, *, blocks: Sequence[int] | None = None) -> None:
        """Write the weight files of an adapter, see `components.backbones.adapter_loading.save`."""
        adapter_loading.save(self, name, folder, blocks=blocks)

    def load_adapter(self, folder: Path, name: str) -> None:
        """Load an adapter folder under a name, see `components.backbones.adapter_loading.load`."""
        adapter_loading.load(self, folder, name)

    def replace_adapter(self, folder: Path, name: str) -> None:
        """Put the adapter of a folder in the place of a loaded one, see `components.backbones.adapter_loading`."""
        adapter_loading.replace(self, folder, name)

    def scale_adapter(self, name: str, factor: float) -> None:
        self.adapted.scale(name, factor)

    def remove_adapter(self, name: str) -> None:
        self.adapted.remove(name)

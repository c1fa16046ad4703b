"""Images by ONNX Runtime from an exported folder: the same prompts, the same noise, the same steps as torch.

The arithmetic between the graphs is numpy; of torch only the noise is taken, so that equal seeds give equal images.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.backbones import sampling
from components.backbones.concept_embeddings import embedding_index
from components.backbones.prompts import PromptTokenizer
from components.errors import InvalidInput
from components.export.onnx_folder import ADAPTER, DECODER, ENCODERS, FACTS, FORMAT, TRANSFORMER
from components.files import verify_manifest

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
Array = NDArray[np.float32]


@dataclass(frozen=True)
class RuntimeAdapter:
    """An adapter of ONNX Runtime, memory-mapped.

    Attributes:
        options: of a run through which the adapter acts.
        embeddings: whether it has any; if not, its concept is the placeholder word.
        held: the adapter itself, which lives as long as the options that name it.
    """

    options: Any
    embeddings: bool
    held: Any


class OnnxSampler:
    """The graphs of a concept, or of a base to which adapters are added at run time.

    Args:
        folder: what `export_onnx` or `export_onnx_base` wrote.
        providers: execution providers in order of preference; default: CUDA where a device answers, then CPU.

    Raises:
        IntegrityError: the folder does not match its manifest.
        InvalidInput: it is no such folder, or ONNX Runtime is not installed.
    """

    def __init__(self, folder: Path, providers: Sequence[str] | None = None):
        try:
            import onnxruntime
        except ImportError as error:
            raise InvalidInput(f"ONNX Runtime is missing: {error}", mend="pip install 'purecc[onnx]'") from error
        self.facts = _facts(folder)
        self._adapters: dict[str, RuntimeAdapter] = {}
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads := os.environ.get("OMP_NUM_THREADS"):
            options.intra_op_num_threads = int(threads)
        wanted = list(providers) if providers is not None else _providers()

        def load(name: str) -> Any:
            return onnxruntime.InferenceSession(str(folder / name), options, providers=wanted)

        self._transformer, self._decoder = load(TRANSFORMER), load(DECODER)
        self._encoders = [load(name) for name in ENCODERS if (folder / name).is_file()]
        self._scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
        from components.backbones.text_encoders import load_tokenizers

        self._tokenizer: PromptTokenizer = load_tokenizers(
            folder,
            placeholder=self.facts["placeholder"],
            max_sequence_length=self.facts["max_sequence_length"],
            t5=(folder / "tokenizer_3").is_dir(),
        )

    @property
    def providers(self) -> list[str]:
        """The execution providers that really run; what is merely available says nothing of this machine."""
        return list(self._transformer.get_providers())

    def load_adapter(self, folder: Path) -> str:
        """Load what `export_onnx_adapter` wrote, or put it in the place of the same concept's; gives the concept.

        Raises:
            IntegrityError: the folder does not match its manifest.
            InvalidInput: it was made for another base, or the graphs here have an adapter folded in.
        """
        import onnxruntime

        facts = _facts(folder)
        if self.facts["concept"] is not None:
            mend = "export the base for adapters (export_onnx_base)"
            raise InvalidInput(f"<{self.facts['concept']}> is folded into these graphs", file=folder, mend=mend)
        if facts["base_fingerprint"] != self.facts["base_fingerprint"]:
            made, here = str(facts["base_fingerprint"])[:12], self.facts["base_fingerprint"][:12]
            raise InvalidInput(f"made for the base {made}, this is {here}", file=folder)
        adapter, options = onnxruntime.LoraAdapter(), onnxruntime.RunOptions()
        adapter.Load(str(folder / ADAPTER))
        options.add_active_adapter(adapter)
        self._adapters[facts["concept"]] = RuntimeAdapter(options, bool(facts["embeddings"]), adapter)
        return str(facts["concept"])

    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        negative_prompt: str = "",
        steps: int | None = None,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        adapter: str | None = None,
    ) -> Array:
        """Images (B, 3, H, W) in [-1, 1], one per prompt.

        Args:
            adapter: concept of a loaded adapter, which acts; default: what is folded in, or the base alone.
            height, width: pixels; default: the base's resolution. Multiples of twice the pixels per latent.

        Raises:
            InvalidInput: a prompt names another concept, or a size does not fit.
        """
        steps = steps or int(self.facts["steps"])
        scale = float(self.facts["guidance_scale"]) if guidance_scale is None else guidance_scale
        guided = scale > 1
        if adapter is not None and adapter not in self._adapters:
            loaded = ", ".join(self._adapters) or "none"
            raise InvalidInput(f"no adapter {adapter!r} is loaded", mend=f"loaded adapters: {loaded}")
        acting = self._adapters[adapter] if adapter is not None else None
        known = self.facts["concept"] if adapter is None else adapter
        texts = [*([negative_prompt] * len(prompts) if guided else []), *prompts]
        context_BLD, pooled_BP, row_BL = self._encode(texts, known)
        if acting is not None and not acting.embeddings:
            row_BL = np.full_like(row_BL, -1)
        options = None if acting is None else acting.options
        shape = (int(self.facts["latent_channels"]), self._side(height), self._side(width))
        x_BCHW: Array = sampling.noise(seeds, shape).numpy()
        sigmas = euler_sigmas(self._scheduler, steps)
        for sigma, next_sigma in itertools.pairwise(sigmas):
            both_BCHW = np.concatenate([x_BCHW, x_BCHW]) if guided else x_BCHW
            timestep_B = np.full(len(both_BCHW), sigma * self._scheduler["num_train_timesteps"], np.float32)
            inputs = {"latents": both_BCHW, "timestep": timestep_B, "context": context_BLD, "pooled": pooled_BP}
            given = _known(self._transformer, {**inputs, "concept_rows": row_BL})
            v_BCHW = self._transformer.run(None, given, options)[0]
            if guided:
                v_null_BCHW, v_text_BCHW = np.split(v_BCHW, 2)
                v_BCHW = v_null_BCHW + np.float32(scale) * (v_text_BCHW - v_null_BCHW)
            x_BCHW = x_BCHW + np.float32(next_sigma - sigma) * v_BCHW
        pixels: Array = self._decoder.run(None, {"latents": x_BCHW})[0]
        return pixels

    def _side(self, pixels: int | None) -> int:
        per_latent = int(self.facts["pixels_per_latent"])
        pixels = pixels or int(self.facts["resolution"])
        if pixels % (2 * per_latent):
            raise InvalidInput(f"{pixels} pixels", field="height, width", mend=f"take a multiple of {2 * per_latent}")
        return pixels // per_latent

    def _encode(self, prompts: Sequence[str], known: str | None) -> tuple[Array, Array, NDArray[np.int64]]:
        """Context, pooled vectors, and for each context row the index of its embedding or -1.

        Args:
            known: the one concept that prompts may name; None: none.
        """
        tokens = self._tokenizer(prompts)
        clip_BND, pooled = self._encoders[0].run(None, {"ids": tokens.clip_BN.numpy()})
        clip_2_BND, pooled_2 = self._encoders[1].run(None, {"ids": tokens.clip_2_BN.numpy()})
        width = int(self.facts["context_width"])
        clip_BND = np.concatenate([clip_BND, clip_2_BND], axis=-1)
        clip_BND = np.pad(clip_BND, ((0, 0), (0, 0), (0, width - clip_BND.shape[-1])))
        if tokens.t5_BM is not None:
            t5_BMD = self._encoders[2].run(None, {"ids": tokens.t5_BM.numpy()})[0]
        else:
            t5_BMD = np.zeros((len(prompts), int(self.facts["max_sequence_length"]), width), np.float32)
        context_BLD = np.concatenate([clip_BND, t5_BMD], axis=1).astype(np.float32)
        row_BL = np.full(context_BLD.shape[:2], -1, np.int64)
        per_mention = self._tokenizer.rows_per_mention
        for sample, mentioned in enumerate(tokens.concept_rows):
            for concept, rows in mentioned.items():
                if known is None or concept not in ("", known):
                    mend = "name an adapter" if known is None else f"this export knows <{known}>"
                    raise InvalidInput(f"<{concept}> is not known", field="prompt", mend=mend)
                for position, row in enumerate(rows):
                    row_BL[sample, row] = embedding_index(position, len(rows), per_mention)
        return context_BLD, np.concatenate([pooled, pooled_2], axis=-1).astype(np.float32), row_BL


def euler_sigmas(scheduler: dict[str, Any], steps: int) -> Array:
    """The noise levels of diffusers' FlowMatchEulerDiscreteScheduler with a constant shift s: steps + 1 of them.

    sigma' = s sigma / (1 + (s - 1) sigma); the grid of timesteps runs from the largest to the smallest trained level,
    both of which are shifted already.
    """
    count, shift = int(scheduler["num_train_timesteps"]), float(scheduler["shift"])

    def shifted(sigma: Any) -> Any:
        return shift * sigma / (1 + (shift - 1) * sigma)

    trained = shifted(np.linspace(1, count, count, dtype=np.float32)[::-1] / count)
    sigmas = shifted(np.linspace(trained[0] * count, trained[-1] * count, steps) / count)
    return np.append(sigmas, 0.0).astype(np.float32)


def _known(session: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs that the graph has: the rows of a concept without embeddings go nowhere."""
    names = {each.name for each in session.get_inputs()}
    return {name: value for name, value in inputs.items() if name in names}


def _facts(folder: Path) -> dict[str, Any]:
    """The facts of an export, every byte of which is verified first."""
    verify_manifest(folder, foreign=True)
    try:
        facts = dict(json.loads((folder / FACTS).read_text(encoding="utf-8")))
        known = facts["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"not an ONNX export: {error}", file=folder / FACTS) from error
    if not known:
        raise InvalidInput(f"format {facts['format']}", file=folder / FACTS, mend="export it again")
    return facts


def _providers() -> list[str]:
    import torch

    # the list of available providers names CUDA on machines without a device, too
    return ["CUDAExecutionProvider", "CPUExecutionProvider"] if torch.cuda.is_available() else ["CPUExecutionProvider"]

"""Adds a PureCC concept to a Stable Diffusion 3 pipeline of diffusers. This file needs diffusers and safetensors only.

    from diffusers import StableDiffusion3Pipeline
    from load_concept import load_concept

    pipe = StableDiffusion3Pipeline.from_pretrained(BASE)
    load_concept(pipe, "FOLDER")
    pipe("a <NAME> dog on the left").images[0]

`pipe.load_lora_weights(FOLDER)` alone loads the weights and leaves the concept's embeddings out: the pictures differ.
"""

import re
from pathlib import Path

import torch
from safetensors import safe_open


def load_concept(pipe, folder, adapter_name="concept"):  # type: ignore[no-untyped-def]
    """Load LoRA and layer-wise embeddings; from then on `<NAME>` in a prompt is the concept. Returns NAME."""
    folder = Path(folder)
    with safe_open(folder / "concept_embeddings.safetensors", framework="pt") as file:
        facts = file.metadata()
        Y_NRD = file.get_tensor("concept_embeddings") if list(file.keys()) else None
    if (folder / "pytorch_lora_weights.safetensors").is_file():
        pipe.load_lora_weights(folder, weight_name="pytorch_lora_weights.safetensors", adapter_name=adapter_name)
    mention = re.compile(rf"<{re.escape(facts['concept'])}>|\[V\]")
    rows_of_batch: list[list[int]] = []  # for each sample of the batch: rows of R embeddings, -1 where it has none

    def rows(text, max_sequence_length):  # type: ignore[no-untyped-def]
        """For every row of the context which embedding replaces it, or -1."""
        clip, t5 = pipe.tokenizer, pipe.tokenizer_3
        encoders = [(clip, clip.model_max_length, 0)]
        encoders += [(t5, max_sequence_length, clip.model_max_length)] if t5 is not None else []
        found = [-1] * (clip.model_max_length + max_sequence_length)
        for number, (tokenizer, length, offset) in enumerate(encoders):
            spans = [(match.start(), match.end()) for match in re.finditer(rf"\b{facts['placeholder']}\b", text)]
            encoded = tokenizer(text, truncation=True, max_length=length, return_offsets_mapping=True)
            for start, end in spans:
                hits = [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a < end and b > start and a < b]
                for position, hit in enumerate(hits):
                    found[offset + hit] = number + position
        return found

    encode_prompt = pipe.encode_prompt

    def encode(prompt, *args, **options):  # type: ignore[no-untyped-def]
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        texts = [mention.sub(facts["placeholder"], each) for each in prompts]
        each_times = options.get("num_images_per_prompt", 1)
        length = options.get("max_sequence_length", 256)
        # only what was written <NAME> is the concept: the placeholder word itself stays a word
        plans = [rows(text, length) if mention.search(each) else None for text, each in zip(texts, prompts)]
        empty = [-1] * (pipe.tokenizer.model_max_length + length)
        rows_of_batch[:] = [plan or empty for plan in plans for _ in range(each_times)]
        others = {key: texts for key in ("prompt_2", "prompt_3") if key in options or not args}
        return encode_prompt(texts, *args, **{**options, **others})

    def hook(number):  # type: ignore[no-untyped-def]
        def replace(module, args, kwargs):  # type: ignore[no-untyped-def]
            context_BLD = kwargs["encoder_hidden_states"]
            if Y_NRD is None or number >= len(Y_NRD) or not rows_of_batch:
                return None
            missing = context_BLD.shape[0] - len(rows_of_batch)  # guidance: the negative prompts stand first
            plan = [[-1] * context_BLD.shape[1]] * missing + rows_of_batch
            where_BL = torch.tensor(plan, device=context_BLD.device)
            values_BLD = Y_NRD[number].to(context_BLD)[where_BL.clamp(min=0)]
            return args, {
                **kwargs,
                "encoder_hidden_states": torch.where(where_BL[..., None] >= 0, values_BLD, context_BLD),
            }

        return replace

    pipe.encode_prompt = encode
    for number, block in enumerate(pipe.transformer.transformer_blocks):
        block.register_forward_pre_hook(hook(number), with_kwargs=True)
    return facts["concept"]

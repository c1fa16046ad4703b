"""A concept for users of diffusers: the adapter's files, a loader of one module, and how to use them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.backbones import adapter_folder
from components.errors import InvalidInput
from components.files import MANIFEST, atomic_folder

_LOADER = Path(__file__).with_name("load_concept.py")
_README = """# {concept}

An adapter for `{base}` (fingerprint `{fingerprint}`), made with PureCC.

```python
from diffusers import StableDiffusion3Pipeline
from load_concept import load_concept  # the file beside this one

pipe = StableDiffusion3Pipeline.from_pretrained("{base}")
load_concept(pipe, "{folder}")
image = pipe("a <{concept}> {class_word} on the left", height={resolution}, width={resolution},
             num_inference_steps={steps}, guidance_scale={guidance}, max_sequence_length={length}).images[0]
```

The concept is weights (LoRA) and layer-wise embeddings. `pipe.load_lora_weights("{folder}")`, and
`PeftModel.from_pretrained(pipe.transformer, "{folder}")`, load the weights alone: the base's word
`{placeholder}` then stands for the concept, and what the embeddings know of it is missing from the pictures.

`sha256sum -c SHA256SUMS` checks the files.
"""


def export_diffusers(
    adapter: Path, out: Path, base: Mapping[str, Any], *, class_word: str, signature: str | None = None
) -> Path:
    """Write the folder for diffusers' users; it takes its name only when it is whole.

    Args:
        adapter: a verified adapter folder.
        base: what the registry knows of the base: `settings`, `fingerprint`, `sampling`.
        class_word: what the concept is an example of.
        signature: the adapter's signature, written beside it if given.

    Raises:
        IntegrityError, InvalidInput: the adapter folder is not whole.
    """
    files = adapter_folder.read(adapter)
    if files.weights:
        raise InvalidInput(
            "it changes the base's own weights, for which diffusers has no loader",
            file=adapter / adapter_folder.WEIGHTS,
            mend="use --format onnx, or the registered model",
        )
    settings, sampling = base["settings"], base["sampling"]
    with atomic_folder(out) as folder:
        for file in adapter.iterdir():
            if file.name != MANIFEST:
                shutil.copy2(file, folder / file.name)
        shutil.copy2(_LOADER, folder / _LOADER.name)
        if signature is not None:
            (folder / "signature.json").write_text(signature, encoding="utf-8")
        text = _README.format(
            concept=files.concept,
            base=settings["path"],
            fingerprint=base["fingerprint"][:16],
            folder=out.name,
            class_word=class_word,
            resolution=settings["resolution"],
            length=settings["max_sequence_length"],
            placeholder=files.placeholder,
            steps=sampling["steps"],
            guidance=sampling["guidance_scale"],
        )
        (folder / "README.md").write_text(text, encoding="utf-8")
        (folder / "base.json").write_text(json.dumps(dict(base), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return out

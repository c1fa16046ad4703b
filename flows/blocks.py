"""Find the blocks that B-LoRA trains on a base (`learning.b_lora`).

    python -m flows.blocks --content "a red star" "a red heart" --style "a red star" "a blue star"

Prints the influence of each block for pairs of prompts that differ in content alone, and in style alone, and what to
write into the profile.
"""

from __future__ import annotations

import argparse

from components.backbones.block_influence import block_influence, choose
from components.backbones.sd3 import SD3Backbone
from components.settings import load_profile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="tiny")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--content", nargs=2, action="append", required=True, metavar="PROMPT")
    parser.add_argument("--style", nargs=2, action="append", required=True, metavar="PROMPT")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--count", type=int, default=1, help="blocks of each kind")
    given = parser.parse_args()
    backbone = SD3Backbone.load(load_profile(given.profile, given.overrides).base)
    found = {
        kind: block_influence(backbone, [(one, other) for one, other in pairs], seeds=range(given.seeds))
        for kind, pairs in (("content", given.content), ("style", given.style))
    }
    print(f"{'block':>5} {'content':>8} {'style':>8}")
    for block, (content, style) in enumerate(zip(found["content"], found["style"], strict=True)):
        print(f"{block:5d} {content:8.3f} {style:8.3f}")
    content_blocks, style_blocks = choose(found["content"], found["style"], given.count)
    print(f"b_lora: {{content: {list(content_blocks)}, style: {list(style_blocks)}}}")


if __name__ == "__main__":
    main()

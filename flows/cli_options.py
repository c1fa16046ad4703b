"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

DEFAULT_PROFILE = "tiny"

Json = Annotated[bool, typer.Option("--json", help="one JSON document on stdout")]
Name = Annotated[str, typer.Argument(help="the concept's name")]
ProfileName = Annotated[str, typer.Option("--profile", help="a file of profiles/, or a path to a YAML file")]
PolicyProfile = Annotated[
    str | None,
    typer.Option(
        "--profile", help="whose promotion.public_key holds, where PURECC_PUBLIC_KEY is not set; default: the version's"
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="set one value of the profile, e.g. learning.eta=1.5"),
]

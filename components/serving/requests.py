"""What a consumer may ask for, checked before a model sees it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from components.concepts.texts import prompt_problem
from components.errors import InvalidInput

MAXIMUM_STEPS = 200
MAXIMUM_GUIDANCE = 50.0
MAXIMUM_REQUESTS = 64  # in one call

_Seed = Annotated[int, Field(ge=0, lt=2**63)]
_Steps = Annotated[int, Field(ge=1, le=MAXIMUM_STEPS)]
_Guidance = Annotated[float, Field(ge=0, le=MAXIMUM_GUIDANCE, allow_inf_nan=False)]


class ImageRequest(BaseModel):
    """One image. What is not stated is the service's default."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    prompt: str = Field(min_length=1, description="concepts are named <name>")
    seed: _Seed = 0
    steps: _Steps | None = None
    guidance: _Guidance | None = None
    negative_prompt: str = ""

    @field_validator("prompt", "negative_prompt")
    @classmethod
    def _is_text(cls, value: str) -> str:
        if problem := prompt_problem(value):
            raise ValueError(f"{problem[0]} ({problem[1]})")
        return value

    @field_validator("prompt")
    @classmethod
    def _is_not_blank(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("is blank")
        return value


def read_request(row: Mapping[str, Any], where: str = "request") -> ImageRequest:
    """A request from a row of a table or a JSON object; absent, null and NaN mean the default.

    Args:
        where: how errors name the row.

    Raises:
        InvalidInput: the field is named.
    """
    stated = {str(key): plain for key, value in row.items() if (plain := _plain(value)) is not None}
    for key in ("seed", "steps"):  # a column of integers with gaps arrives as floats
        value = stated.get(key)
        if isinstance(value, float) and value.is_integer():
            stated[key] = int(value)
    try:
        return ImageRequest.model_validate(stated)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise InvalidInput("is missing", field=f"{where}: {field}", mend="state a prompt") from error
        known = ", ".join(ImageRequest.model_fields)
        mend = f"known fields: {known}" if first["type"] == "extra_forbidden" else "correct the value"
        shown = ascii(first.get("input"))[:80]
        raise InvalidInput(f"{first['msg']}, got {shown}", field=f"{where}: {field[:80]}", mend=mend) from error


def read_requests(rows: Sequence[Mapping[str, Any]]) -> list[ImageRequest]:
    """Every row of one call.

    Raises:
        InvalidInput: there is none, there are too many, or one is wrong: row and field are named.
    """
    if not 1 <= len(rows) <= MAXIMUM_REQUESTS:
        raise InvalidInput(f"{len(rows)} rows in one call", mend=f"send 1 to {MAXIMUM_REQUESTS}")
    return [read_request(row, f"row {number}") for number, row in enumerate(rows)]


def _plain(value: Any) -> Any:
    """A value of pandas or numpy as Python's own; None for what stands for nothing."""
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        value = value.item()
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return None
    return None if isinstance(value, float) and math.isnan(value) else value

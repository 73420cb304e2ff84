"""What every section of the configuration has in common, and the types of its values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationInfo, field_validator

from oubliette.config.document import Expanded
from oubliette.config.values import check_name, check_url

Name = Annotated[str, AfterValidator(check_name)]
Url = Annotated[str, AfterValidator(check_url)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


def _from_home(path: Path, info: ValidationInfo) -> Path:
    """A relative path is meant from the home; ``~`` is the user's."""
    base = (info.context or {}).get("home", Path.cwd())
    return Path(base, path.expanduser())


FilePath = Annotated[Path, Field(strict=False), AfterValidator(_from_home)]


def _holds_text(annotation: Any) -> bool:
    """Whether text may stay text in a field of this type."""
    return annotation in {str, Path, SecretStr} or any(_holds_text(inner) for inner in get_args(annotation))


class Section(BaseModel):
    """What every section has in common."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        populate_by_name=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _read_expanded(cls, value: Any, info: ValidationInfo) -> Any:
        """A number or a switch may come out of a placeholder: ``"port": "${PORT}"``."""
        if not isinstance(value, Expanded) or _holds_text(cls.model_fields[info.field_name or ""].annotation):
            return value
        try:
            return json.loads(value)
        except ValueError:
            return str(value)

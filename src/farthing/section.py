"""Section: the frozen, documented base of everything that a recipe is made of."""

from __future__ import annotations

import types
import typing

from pydantic import BaseModel, ConfigDict, model_validator

NEWER = "newer"
"""marks a field that came when runs were already on disk: at its default it leaves no trace in a fingerprint"""


class Section(BaseModel):
    """A table of a recipe: immutable, unknown names refused, every field documented by the string below it."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_default=True,
        protected_namespaces=(),
    )

    @model_validator(mode="before")
    @classmethod
    def _none_unsets(cls, data: object) -> object:
        # TOML has no null: "none" takes back an optional value that a base recipe has set.
        if not isinstance(data, dict):
            return data
        optional = {
            name for name, field in cls.model_fields.items() if types.NoneType in typing.get_args(field.annotation)
        }
        for key, value in data.items():
            if (
                isinstance(value, bool)
                and key in cls.model_fields
                and not _admits(bool, cls.model_fields[key].annotation)
            ):
                raise ValueError(f"{key}={str(value).lower()}: true and false are no numbers or words")
        return {key: None if key in optional and value == "none" else value for key, value in data.items()}


def _admits(kind: type, annotation: object) -> bool:
    """Whether an annotation is, or has among its alternatives, exactly this type."""
    return annotation is kind or any(_admits(kind, part) for part in typing.get_args(annotation))


def recorded(section: Section) -> dict[str, typing.Any]:
    """What a fingerprint is taken of: every field, JSON-ready, but for newer ones that are at their default."""
    table = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            table[name] = recorded(value)
        elif NEWER in field.metadata and value == field.default:
            del table[name]
    return table

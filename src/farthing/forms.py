"""Tables from files, held against the types that their readers rely on."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

T = TypeVar("T")

_ADAPTERS: dict[type, TypeAdapter[Any]] = {}
"""made once: making one evaluates the annotations of a class"""


class Form(BaseModel):
    """What every reader of a file relies on; its other fields are for those who know them."""

    model_config = ConfigDict(strict=True, extra="allow")


def shaped(kind: type[T], table: Any) -> T:
    """`table` as a dataclass or model of this kind, with all that is in it.

    Raises:
        ValueError: something in it is of another kind; one line that names the first such place.
    """
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    try:
        made: T = _ADAPTERS[kind].validate_python(table)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise ValueError(f"{where}: {first['msg'].removeprefix('Input ')}") from None
    return made

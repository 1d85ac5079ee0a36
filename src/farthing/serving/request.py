"""What a client asks for: the body of /v1/completions, as strict as OpenAI's own."""

from __future__ import annotations

from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from farthing.errors import nearest
from farthing.serving.refusal import Refusal
from farthing.sinks.legible import legible

MOST_STOPS = 4
LONGEST_STOP = 256
"""characters; every token is compared with each stop string, so they must be short"""
_SHOWN = 60
"""characters of an offending value that a message repeats"""
_NOT_JSON = "json_invalid"

_PROMPT = "a string, a list of strings, a list of token ids, or a list of lists of them"
_STOP = f"a string of 1 to {LONGEST_STOP} characters, or a list of up to {MOST_STOPS} of them"
_KINDS = {"prompt": _PROMPT, "stop": _STOP}
"""fields of several types, for which pydantic would complain once for each"""

Stop = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]


class StreamOptions(BaseModel):
    """What else a stream is to tell."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class CompletionRequest(BaseModel):
    """The body of a request, each field as OpenAI defines it; `top_k` is an addition."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    model: str | None = None
    prompt: str | list[str] | list[int] | list[list[int]] | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    user: str | None = None
    best_of: int | None = None
    suffix: str | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, all texts or all token ids."""
        if self.prompt is None or isinstance(self.prompt, str):
            return [self.prompt or ""]
        one_of_ids = isinstance(self.prompt[0], int)
        return cast("list[str] | list[list[int]]", [self.prompt] if one_of_ids else self.prompt)


def parse(body: bytes) -> CompletionRequest:
    """The request that a body holds.

    Raises:
        Refusal: 400 for what is no JSON or not offered here, 422 for a field that is out of range.
    """
    try:
        asked = CompletionRequest.model_validate_json(body)
    except ValidationError as error:
        raise _refused(error) from None
    _check_offered(asked)
    return asked


def _check_offered(asked: CompletionRequest) -> None:
    absent = {
        "best_of": asked.best_of not in (None, asked.n or 1),
        "suffix": bool(asked.suffix),
        "presence_penalty": bool(asked.presence_penalty),
        "frequency_penalty": bool(asked.frequency_penalty),
        "logit_bias": bool(asked.logit_bias),
    }
    for name in (name for name, wanted in absent.items() if wanted):
        hint = "; ask for n texts and choose yourself" if name == "best_of" else ""
        raise Refusal(
            400, f"{name}: this server does not offer it; leave it out{hint}", code="unsupported_parameter", param=name
        )
    if asked.stream_options is not None and not asked.stream:
        raise Refusal(400, "stream_options: only with stream=true", code="invalid_value", param="stream_options")
    if asked.prompt == []:
        raise Refusal(422, 'prompt: []: holds nothing; "" starts a new document', code="invalid_value", param="prompt")


def _refused(error: ValidationError) -> Refusal:
    problems = error.errors(include_url=False, include_context=False)
    # An unknown name is the likeliest cause of whatever else is wrong.
    first = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")
    if first["type"] == _NOT_JSON or not first["loc"]:
        reason = first["msg"].partition(": ")[2] if first["type"] == _NOT_JSON else "not an object"
        return Refusal(400, f"the body is not a JSON object: {reason}", code="invalid_json")
    param, path = str(first["loc"][0]), ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        known = CompletionRequest if path == param else StreamOptions
        name = legible(path[:_SHOWN])
        close = nearest(name.rpartition(".")[2], known.model_fields)
        return Refusal(400, f"{name}: no such field{close}", code="unknown_parameter", param=name)
    if param in _KINDS:
        return Refusal(422, f"{param}: must be {_KINDS[param]}", code="invalid_value", param=param)
    message = f"{path}: {_shown(first['input'])}: {first['msg'][:1].lower()}{first['msg'][1:]}"
    return Refusal(422, message, code="invalid_value", param=param)


def _shown(value: Any) -> str:
    if isinstance(value, int) and abs(value) >= 10**_SHOWN:
        return "a number of many digits"  # Python refuses to write thousands of them
    text = legible(repr(value)[: _SHOWN + 1])
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."

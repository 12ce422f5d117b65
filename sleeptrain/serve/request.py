"""The body of a completions request: its fields, and what of OpenAI's fields is refused."""

from __future__ import annotations

import secrets
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, StrictBool, StrictInt, StrictStr, ValidationError

from sleeptrain.errors import UserError
from sleeptrain.inference.sampling import Sampling
from sleeptrain.inference.text import Codec
from sleeptrain.serve.errors import ApiError, wrong
from sleeptrain.serve.limits import Limits

MOST_STOPS = 16
"""Stop strings of a request; OpenAI takes four."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (None, 1), "echo": (None, False), "frequency_penalty": (None, 0), "logit_bias": (None, {}),
    "logprobs": (None,), "presence_penalty": (None, 0), "suffix": (None, ""),
}  # fmt: skip
"""Fields of OpenAI's that are not implemented, and the values that ask for nothing."""


class StreamOptions(BaseModel):
    """What a stream holds besides text."""

    model_config = ConfigDict(extra="ignore")
    include_usage: StrictBool = False


class CompletionRequest(BaseModel):
    """A request for texts that continue prompts; `top_k`, `min_p` and `session` are additions to OpenAI's fields."""

    model_config = ConfigDict(extra="allow")
    model: StrictStr
    prompt: Any
    """A text, token ids, or a list of either."""
    max_tokens: StrictInt | None = None
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: StrictInt | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    n: StrictInt | None = Field(None, ge=1)
    seed: StrictInt | None = None
    stop: StrictStr | list[StrictStr] | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    user: StrictStr | None = None
    session: StrictStr | None = None
    """`new`, or the id of a session, whose text the prompt continues."""
    _drawn: int = PrivateAttr(default_factory=lambda: secrets.randbits(62))
    """The seed where none is given: otherwise the same prompt would always get the same text."""

    def count(self, limits: Limits) -> int:
        """The most tokens of each text; 16 by default, as OpenAI's. Raises ApiError where it is out of range."""
        count = 16 if self.max_tokens is None else self.max_tokens
        if not 1 <= count <= limits.tokens:
            raise wrong("max_tokens", f"{count} is not in 1..{limits.tokens}, the limit of this server")
        return count

    def stops(self) -> list[str]:
        """The stop strings. Raises ApiError for an empty one and for too many."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > MOST_STOPS or not all(stops):
            raise wrong("stop", f"must be at most {MOST_STOPS} strings that are not empty")
        return stops

    def sampling(self, index: int) -> Sampling:
        """How the text `index` of a prompt is sampled; temperature 1 by default, as OpenAI's. Texts of one prompt differ."""
        temperature = 1.0 if self.temperature is None else self.temperature
        seed = ((self._drawn if self.seed is None else self.seed) + index) % (1 << 63)
        return Sampling(temperature, self.top_k or 0, self.top_p or 1.0, seed, self.min_p or 0.0)


def parse_request(body: bytes, name: str) -> CompletionRequest:
    """The request in a body. Raises ApiError unless it is one for the model `name` without anything that is not implemented."""
    try:
        request = CompletionRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        param = ".".join(map(str, first["loc"][:1])) or None
        raise ApiError(400, f"{param or 'body'}: {first['msg']}", "invalid_request", param) from None
    if request.model != name:
        raise ApiError(
            404, f"model {request.model!r} does not exist; this server has {name!r}", "model_not_found", "model"
        )
    for field, value in (request.model_extra or {}).items():
        if field not in NEUTRAL:
            raise ApiError(400, f"{field}: there is no such field", "unknown_field", field)
        if value not in NEUTRAL[field]:
            raise ApiError(400, f"{field}: not implemented; leave it out", "unsupported_value", field)
    return request


def prompt_tokens(
    request: CompletionRequest, codec: Codec, vocab: int, continued: bool, limits: Limits
) -> list[list[int]]:
    """The tokens of every prompt of a request. Raises ApiError for prompts that cannot be read.

    `continued`: it continues a session's text, so that it may be empty, and has no start-of-document token.
    """
    prompts, most = _prompts(request.prompt), limits.rows + limits.waiting
    if not 1 <= len(prompts) * (request.n or 1) <= most:
        raise wrong("prompt", f"{len(prompts)} prompts times n = {request.n or 1} are not 1 to {most} texts")
    if request.session is not None and len(prompts) * (request.n or 1) != 1:
        raise wrong("session", "a session has one text; give one prompt and n = 1")
    found = []
    for prompt in prompts:
        try:
            tokens = codec.encode(prompt, continued=continued) if isinstance(prompt, str) else prompt
        except (UserError, UnicodeEncodeError) as error:
            raise wrong("prompt", str(error)) from None
        if not continued and not (prompt and tokens):
            raise wrong("prompt", "is empty; give at least one token")
        if any(not 0 <= token < vocab for token in tokens):
            raise wrong("prompt", f"token ids must be in 0..{vocab - 1}")
        if len(tokens) > limits.session_tokens:
            raise wrong(
                "prompt", f"{len(tokens):,} tokens are above {limits.session_tokens:,}, the limit of this server"
            )
        found.append(tokens)
    return found


def _prompts(prompt: Any) -> list[str | list[int]]:
    """The prompts of a request, each a text or token ids."""
    if isinstance(prompt, str) or (isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt)):
        return [prompt]
    if isinstance(prompt, list) and all(
        isinstance(p, str) or (isinstance(p, list) and all(type(t) is int for t in p)) for p in prompt
    ):
        return list(prompt)
    raise wrong("prompt", "must be a text, token ids, or a list of either")

# SPDX-License-Identifier: 0BSD
"""A client for `POST /v1/completions`, the text completions endpoint of Atoma and of every
OpenAI-compatible server: one file, nothing but the standard library.

    import completions

    MODEL = "meta-llama/Llama-3.3-70B-Instruct"
    response = completions.create(prompt="Say this is a test", model=MODEL, max_tokens=16)
    print(response.text)

    with completions.create_stream(prompt="Once upon a time", model=MODEL) as stream:
        for chunk in stream:
            print(chunk.text, end="", flush=True)

The key comes from the environment ($ATOMASDK_BEARER_AUTH); for other servers, see `Client`. Whatever
goes wrong at the other end is an `APIError`. From top to bottom: the data, the errors, the client,
the stream, the transport (private), the command line.
"""

from __future__ import annotations

import functools
import inspect
import io
import itertools
import os
import re
import sys
import time
from dataclasses import dataclass, field

TYPE_CHECKING = False  # type checkers take it as true; typing would cost milliseconds to import
if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable, Iterator, Mapping
    from dataclasses import KW_ONLY
    from http.client import HTTPResponse
    from typing import Any, Concatenate, ParamSpec, TypeVar
    from urllib.request import OpenerDirector, Request

    P = ParamSpec("P")
    R = TypeVar("R")
    E = TypeVar("E", bound=Exception)
    T = TypeVar("T", bound="_Received")
    Json = dict[str, Any]
else:
    Any, Json = object, dict

__version__ = "0.1.0"

# ---------------------------------------------------------------------------------------- the data

# dataclass() looks up the module of a class, which a file run by exec or importlib may not be in.
_unlisted = sys.modules.setdefault(__name__, sys) is sys


class _Record:
    """What all the dataclasses share."""

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return {**vars(self), "request_id": None} == {**vars(other), "request_id": None}

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({values})"


class _Received(_Record):
    """What those of an answer share: from JSON and back, by their own fields."""

    extra: dict[str, Any]

    @classmethod
    def from_dict(cls: type[T], data: dict[str, Any]) -> T:
        """An instance made of a JSON object. Absent and null are the same.

        Unknown keys, and known ones of a wrong type, go to `extra`; but where the answer itself
        depends on it (choices, text, index, finish_reason), a wrong type raises
        `APIResponseValidationError`, which says where, with `data` as its `body`.
        """
        try:
            return _typed(cls, data)
        except APIResponseValidationError as error:
            error.body = data
            raise

    @classmethod
    def from_json(cls: type[T], text: str | bytes) -> T:
        """`from_dict` of JSON text, or of its bytes in UTF-8; the same error if it is no JSON."""
        return cls.from_dict(_json_value(text))

    def to_dict(self) -> dict[str, Any]:
        """The JSON object: every known field, null where it is None, then `extra`, which wins."""
        data = {name: getattr(self, name) for name in _plan(type(self))[0]}
        for name, value in data.items():
            if isinstance(value, _Received):
                data[name] = value.to_dict()
            elif name == "choices":
                data[name] = [choice.to_dict() for choice in value]
        return {**data, **self.extra}

    def to_json(self) -> str:
        """`to_dict` as JSON text, in ASCII; NaN and infinities are written as they were read."""
        import json

        return json.dumps(self.to_dict())


@dataclass(repr=False, eq=False)
class CompletionTokensDetails(_Received):
    """Where the tokens of the completions went; a part of `Usage`."""

    accepted_prediction_tokens: int | None = None
    audio_tokens: int | None = None
    reasoning_tokens: int | None = None
    rejected_prediction_tokens: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(repr=False, eq=False)
class PromptTokensDetails(_Received):
    """Where the tokens of the prompts went; a part of `Usage`."""

    audio_tokens: int | None = None
    cached_tokens: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(repr=False, eq=False)
class Usage(_Received):
    """How many tokens a request took."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(repr=False, eq=False)
class LogProbs(_Received):
    """The log-probabilities of the tokens of a choice: lists with one item a token."""

    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None
    text_offset: list[int] | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(repr=False, eq=False)
class CompletionChoice(_Received):
    """One completion. Its `finish_reason`, mostly "stop" or "length", is None until it is whole."""

    text: str = ""
    index: int = 0
    logprobs: LogProbs | None = None
    finish_reason: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(repr=False, eq=False)
class CompletionsResponse(_Received):
    """An answer, or one chunk of a stream. `created` is in Unix seconds; `request_id`, from the
    `x-request-id` header, is no part of equality nor of `to_dict`."""

    choices: list[CompletionChoice]
    id: str = ""
    object: str = "text_completion"
    created: int = 0
    model: str = ""
    system_fingerprint: str | None = None
    usage: Usage | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    request_id: str | None = None

    @property
    def text(self) -> str:
        """The text of the choice with the lowest index; "" when there is none."""
        return min(self.choices, key=lambda choice: choice.index).text if self.choices else ""


@dataclass(repr=False, eq=False)
class CompletionsRequest(_Record):
    """The parameters of a completion; `client.create(**vars(request))` sends them.

    As in https://platform.openai.com/docs/api-reference/completions/create:

    prompt             a text, several texts, the tokens of one, or the tokens of several
    model              the name of the model
    best_of            how many completions the server makes, to return the `n` best
    echo               have the prompt back in front of the completion
    frequency_penalty  -2.0 to 2.0: holds back tokens for each time they came before
    logit_bias         from token id to what is added to its logit, -100 to 100
    logprobs           how many of the most probable tokens come with each one
    max_tokens         how many tokens a completion has at most
    n                  how many choices come for each prompt
    presence_penalty   -2.0 to 2.0: holds back tokens that came before at all
    seed               makes sampling repeatable, as far as the server can
    stop               where to stop: one text or several, which are no part of the completion
    stream_options     {"include_usage": true} ends a stream with its usage
    suffix             what comes after the completion
    temperature        0 to 2: how random sampling is
    top_p              0 to 1: the share of probability that sampling is kept to
    user               a name for the end user
    extra              whatever else a server takes, such as {"top_k": 40}
    """

    prompt: str | list[str] | list[int] | list[list[int]]
    model: str
    if TYPE_CHECKING:
        _: KW_ONLY
    best_of: int | None = None
    echo: bool | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: int | None = None
    max_tokens: int | None = None
    n: int | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream_options: dict[str, Any] | None = None
    suffix: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    user: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that is sent: without what is None, and with one `stop` as a list of one.

        Raises `TypeError` that names an argument of a wrong type, and `ValueError` if a key of
        `extra` is the name of a field, or `stream`.
        """
        data: dict[str, Any] = {}
        for name, annotation in CompletionsRequest.__annotations__.items():
            value = getattr(self, name)
            if value is None and annotation.endswith("None"):
                continue
            if not _fits(annotation, value):
                raise _misfit(TypeError, name, annotation, value)
            data[name] = [value] if name == "stop" and isinstance(value, str) else value
        extra = data.pop("extra")
        if not {"stream", *CompletionsRequest.__annotations__}.isdisjoint(extra):
            raise ValueError("extra: holds stream, or what is a parameter of its own")
        return {**data, **extra}

    def to_json(self) -> str:
        """`to_dict` as JSON text, in ASCII. Raises `TypeError` or `ValueError` that names what has
        no JSON, NaN and infinities included."""
        import json

        encode, members = json.JSONEncoder(allow_nan=False).encode, []
        for name, value in self.to_dict().items():
            try:
                members.append(encode({name: value})[1:-1])
            except (TypeError, ValueError, RecursionError) as error:
                kind = TypeError if isinstance(error, TypeError) else ValueError
                raise kind(f"{name}: {error}") from None
        return f"{{{', '.join(members)}}}"


if _unlisted:
    del sys.modules[__name__]

_DECISIVE = ("choices", "text", "index", "finish_reason")  # what the answer itself depends on
_STR, _INT, _NUMBERS = {str}, {int}, {float, int}
_NULLABLE, _DICTS = {float, int, type(None)}, {dict, type(None)}
_FITS: dict[str, Callable[[Any], bool]] = {  # by an annotation without its nulls
    "bool": lambda v: isinstance(v, bool),
    "str": lambda v: isinstance(v, str),
    "int": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "float": lambda v: isinstance(v, (float, int)) and not isinstance(v, bool),
    "dict[str, Any]": lambda v: isinstance(v, dict),
    "dict[str, float]": lambda v: (
        isinstance(v, dict) and _NUMBERS.issuperset(map(type, v.values()))
    ),
    "list[str]": lambda v: isinstance(v, list) and _STR.issuperset(map(type, v)),
    "list[int]": lambda v: isinstance(v, list) and _INT.issuperset(map(type, v)),
    "list[list[int]]": lambda v: isinstance(v, list) and all(map(_FITS["list[int]"], v)),
    "list[float]": lambda v: isinstance(v, list) and _NULLABLE.issuperset(map(type, v)),
    "list[dict[str, float]]": lambda v: (
        isinstance(v, list)
        and _DICTS.issuperset(map(type, v))
        and {type(logprob) for top in v if top for logprob in top.values()} <= _NUMBERS
    ),
}


def _fits(annotation: str, value: Any) -> bool:
    options = annotation.replace(" | None", "").split(" | ")
    return (value is None and annotation.endswith("None")) or any(
        _FITS[option](value) for option in options
    )


def _read_plan(cls: Any) -> tuple[dict[str, Any], ...]:
    """How a dataclass is read, by its annotations: the type that nearly every value of a field has;
    what tells of any other whether it fits, or makes it fit; the defaults; and the types."""
    types = {n: item.type.replace(" | None", "") for n, item in cls.__dataclass_fields__.items()}
    defaults = {name: getattr(cls, name, None) for name in types}
    names = [name for name in types if name not in ("extra", "request_id")]
    kinds = {name: {"str": str, "int": int}.get(types[name], object) for name in names}
    return kinds, {name: _reader(name, types[name]) for name in names}, defaults, types


_plan: Any = functools.lru_cache(maxsize=None)(_read_plan)


def _reader(name: str, kind: str) -> Callable[[Any], Any]:
    record = globals().get(kind)
    if record:
        return lambda value: isinstance(value, dict) and _typed(record, value)
    return {"choices": _choices, "created": _unix_seconds}.get(name) or _FITS[kind]


def _choices(value: Any) -> Any:
    return isinstance(value, list) and [
        _typed(CompletionChoice, item, place) for place, item in enumerate(value)
    ]


def _unix_seconds(value: Any) -> Any:
    """A time that came as a number with a fraction, or as RFC 3339 text, in whole Unix seconds."""
    try:
        if isinstance(value, float):
            return int(value)
        form = r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.\d+)?(?:[Zz]|([+-]\d\d:\d\d))"
        match: Any = re.fullmatch(form, value, re.ASCII)
        day, clock, zone = match.groups("+00:00")
        from datetime import datetime

        return int(datetime.fromisoformat(f"{day}T{clock}{zone}").timestamp())
    except (AttributeError, OverflowError, TypeError, ValueError):
        return False


def _typed(cls: type[T], data: Any, place: int | None = None) -> T:
    if not isinstance(data, dict):
        path = cls.__name__ if place is None else f"choices[{place}]"
        raise _misfit(APIResponseValidationError, path, "dict", data)
    kinds, readers, defaults, types = _plan(cls)
    extra: dict[str, Any] = {}
    values = {**defaults, "index": place} if place else defaults.copy()
    values["extra"] = extra
    for name, value in data.items():
        kind = kinds.get(name)
        if type(value) is kind:
            values[name] = value
        elif kind is None:
            extra[name] = value
        elif value is not None:
            fit = readers[name](value)
            if fit is not False:
                values[name] = value if fit is True else fit
            elif name in _DECISIVE:
                path = name if place is None else f"choices[{place}].{name}"
                raise _misfit(APIResponseValidationError, path, types[name], value)
            else:
                extra[name] = value
    if "choices" in kinds and values["choices"] is None:
        raise _misfit(APIResponseValidationError, "choices", "list", None)
    new = cls.__new__(cls)
    new.__dict__ = values
    return new


def _misfit(error: type[E], path: str, annotation: str, value: Any) -> E:
    found = type(value).__name__
    if isinstance(value, (list, dict)):
        items = value if isinstance(value, list) else value.values()
        found += f"[{' | '.join(sorted({type(item).__name__ for item in items}))}]"
    return error(f"{path}: expected {annotation.replace(' | None', '')}, got {found}")


@functools.lru_cache(maxsize=None)
def _json_decoder() -> Callable[[str], tuple[Any, int]]:
    from json import JSONDecoder

    return JSONDecoder().raw_decode


def _json_value(text: str | bytes) -> Any:
    try:
        text = text if isinstance(text, str) else str(text, "utf-8")
        stripped = text.strip(" \t\r\n\ufeff")
        value, end = _json_decoder()(stripped)
        if end < len(stripped):
            raise ValueError(f"something follows the value, after {end} characters")
        return value
    except (ValueError, RecursionError) as error:
        raise APIResponseValidationError(f"no JSON: {error}", body=text) from error


# -------------------------------------------------------------------------------------- the errors


class APIError(Exception):
    """Whatever a server or a network does wrong. Itself: an error where an answer should be.

    message     what happened, in one line; the text of the exception
    code        the server's own code: text, a number or None
    type        the server's name for this kind of error, or None
    param       the parameter that it is about, or None
    body        what the server sent: the JSON value, else text, else bytes
    request_id  from the `x-request-id` header, or None
    partial     what had arrived of a stream when it failed, merged; else None
    """

    code: str | float | None = None
    type: str | None = None
    param: str | None = None
    body: Any = None
    request_id: str | None = None
    partial: CompletionsResponse | None = None

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        vars(self).update(details)


class APIStatusError(APIError):
    """Any answer that is no 2xx; redirects are among them, for they are not followed.

    status_code  the number
    headers      those of the answer, by lower-case names
    retry_after  how many seconds the server asks to wait, or None
    """

    status_code: int = 0
    headers: dict[str, str] = {}
    retry_after: float | None = None


class BadRequestError(APIStatusError):
    """A parameter is wrong."""


class AuthenticationError(APIStatusError):
    """The key is missing or wrong."""


class PermissionDeniedError(APIStatusError):
    """The key does not allow this."""


class NotFoundError(APIStatusError):
    """There is no such model, or no such URL."""


class ConflictError(APIStatusError):
    """The request conflicts with another."""


class UnprocessableEntityError(APIStatusError):
    """A parameter is wrong, in the words of FastAPI."""


class RateLimitError(APIStatusError):
    """Too many requests, or nothing left to pay them with."""


class InternalServerError(APIStatusError):
    """The server, or the gateway in front of it, failed: any status from 500 on."""


class APIResponseValidationError(APIError, ValueError):
    """A 2xx, or a text given to `from_json`, that is no completion: `body` holds it."""


class APIConnectionError(APIError):
    """Refused, reset, cut off, no such host, no trusted certificate: see `__cause__`."""


class APITimeoutError(APIConnectionError):
    """The `timeout` passed, or the `idle_timeout` of a stream."""


class StreamInterruptedError(APIConnectionError):
    """A stream ended before the answer did: `partial` holds what had arrived."""


_STATUS_ERRORS = {400: BadRequestError, 401: AuthenticationError, 403: PermissionDeniedError}
_STATUS_ERRORS.update({404: NotFoundError, 409: ConflictError, 422: UnprocessableEntityError})
_STATUS_ERRORS[429] = RateLimitError


def _is_error(body: Any) -> bool:
    """Whether a server reports an error where an answer should be; older vLLM has the second form."""
    return isinstance(body, dict) and (
        body.get("error") is not None or body.get("object") == "error"
    )


def _json_or_raw(data: bytes) -> Any:
    """A body as the JSON value that it holds, else as text, else as it is."""
    try:
        return _json_value(data)
    except APIResponseValidationError as error:
        return error.body


def _reason(body: Any) -> tuple[str, dict[str, Any]]:
    """What an error body says, in whichever shape, and the code, type and param that it gives."""
    details: dict[str, Any] = {}
    while isinstance(body, (dict, list)) and body:
        if isinstance(body, list):
            faults = list(filter(_is_fault, body))
            body = (
                "; ".join(f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in faults) or body[0]
            )
            continue
        for name in ("error_type", "type", "param", "code"):
            value = body.get(name)
            if isinstance(value, str) or (name == "code" and type(value) in (int, float)):
                details[name.replace("error_", "")] = value
        inner = (body.get(name) for name in ("message", "detail", "error"))
        body = next(
            (found for found in inner if found and isinstance(found, (str, dict, list))), ""
        )
    text = body[:20_000].lstrip() if isinstance(body, str) else ""
    if text.startswith("<"):
        title = re.search(r"<title[^<>]*>([^<]+)", text, re.IGNORECASE)
        text = title[1] if title else re.sub(r"<[^<>]*>", " ", text)
    return text, details


def _is_fault(item: Any) -> bool:
    """Whether an item of an error's list says what is wrong where, as FastAPI does."""
    loc = item.get("loc") if isinstance(item, dict) else None
    return (
        isinstance(loc, list)
        and {str, int}.issuperset(map(type, loc))
        and type(item.get("msg")) is str
    )


def _one_line(text: str) -> str:
    """`text` as a message can hold it: printable, on one line, cut short."""
    shown = "".join(char if char.isprintable() else " " for char in text[:5000])
    words = " ".join(shown.split())
    return words if len(words) <= 500 else f"{words[:500]}..."


def _seconds(text: str, unit: float = 1) -> float | None:
    """The wait that a `retry-after` header asks for (RFC 9110, 10.2.3), or None."""
    try:
        seconds = float(text) / unit
    except ValueError:
        import email.utils

        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (IndexError, OverflowError, TypeError, ValueError):
            return None
    return seconds if 0 <= seconds < float("inf") else None


def _may_help(error: APIError) -> bool:
    """Whether the same request may well get another answer."""
    if not isinstance(error, APIStatusError):
        untrusted = hasattr(error.__cause__, "verify_message")  # the certificate
        lost = isinstance(error, APIConnectionError) and not isinstance(error, APITimeoutError)
        return lost and not untrusted
    status, verdict = error.status_code, error.headers.get("x-should-retry")
    passing = status in (408, 409, 425, 429) or (status >= 500 and status != 501)
    return verdict == "true" or (passing and verdict != "false")


# -------------------------------------------------------------------------------------- the client


def _parameters_of(
    model: Callable[Concatenate[Any, P], object], returns: str
) -> Callable[[Callable[..., R]], Callable[Concatenate[Any, P], R]]:
    """Gives a method the parameters of `model`, for type checkers, `help()` and `inspect`."""

    def decorate(method: Callable[..., R]) -> Callable[Concatenate[Any, P], R]:
        parameters = list(inspect.signature(model).parameters.values())
        parameters[3:] = [p.replace(kind=p.KEYWORD_ONLY) for p in parameters[3:]]
        vars(method)["__signature__"] = inspect.Signature(parameters, return_annotation=returns)
        return method

    return decorate


class Client:
    """Asks one server for completions, over connections that it keeps alive.

    api_key             by default what the environment has for the server: $ATOMASDK_BEARER_AUTH
                        for https://api.atoma.network, $OPENAI_API_KEY for https://api.openai.com,
                        $COMPLETIONS_API_KEY for the origin of $COMPLETIONS_BASE_URL; no other
                        server is sent a key
    base_url            by default $COMPLETIONS_BASE_URL, else https://api.atoma.network/v1;
                        "/completions" is added to its path, and a query is kept
    timeout             seconds for a whole call, to the last byte, retries and waits included; None
                        for no bound. (Name resolution alone cannot be bounded from Python.)
    idle_timeout        seconds for each wait for the next event of a stream
    max_retries         how often a request that failed is sent again, where that may help
    headers             more headers; they win over the client's own
    ssl_context         by default `ssl.create_default_context()`
    max_response_bytes  how large an answer, or one event of a stream, may be

    A client is safe to share between threads and to use after `fork`, and is a context manager. It
    pickles with its key and without its connections. Proxies are those of `urllib.request`. Raises
    `TypeError` or `ValueError` that names the argument and shows no key and no header.
    """

    def __init__(
        self,
        api_key: str | None = None,
        base_url: str | None = None,
        *,
        timeout: float | None = 600.0,
        idle_timeout: float | None = None,
        max_retries: int = 2,
        headers: Mapping[str, str] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        max_response_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        self._options = {name: value for name, value in vars().items() if name != "self"}
        for name in ("timeout", "idle_timeout", "max_retries", "max_response_bytes"):
            kind, value = "float | None" if "timeout" in name else "int", self._options[name]
            if not _fits(kind, value):
                raise _misfit(TypeError, name, kind, value)
            if value is not None and not value >= (0 if kind == "int" else float("-inf")):
                raise ValueError(f"{name}: {value} is out of range")
        self._options["base_url"], self._url, self._origin = _endpoint(base_url)
        self._shown_url = self._url.partition("?")[0]
        key = _key("api_key", api_key) if api_key is not None else _key_of(self._origin)
        own = _checked_headers(headers or {})
        self._options.update(api_key=key, headers=own)
        self._headers = {
            "host": self._origin.partition("//")[2],
            "user-agent": f"completions/{__version__} Python/{sys.version[: sys.version.index('.', 2)]}",
            "content-type": "application/json",
            **({"authorization": f"Bearer {key}"} if key else {}),
            **own,
        }
        self._secrets = [word for value in own.values() for word in value.split() if len(word) > 7]
        self._secrets += [key] if key and len(key) > 7 else []
        self._connections = _KeepAlive(ssl_context)
        self._openers: list[OpenerDirector] = []  # one, made at first use

    @_parameters_of(CompletionsRequest.__init__, "CompletionsResponse")
    def create(self, *args: Any, **kwargs: Any) -> CompletionsResponse:
        """The completion of a prompt. The parameters are those of `CompletionsRequest`.

        Raises `TypeError` or `ValueError` that names the argument for what is wrong in the call,
        and an `APIError` for the rest: `APIStatusError` for a status that is no 2xx,
        `APIConnectionError` where no whole answer came, its `APITimeoutError` after the timeout,
        `APIResponseValidationError` for a 2xx that is no completion.
        """
        return self._call(_request(args, kwargs).to_json(), self._response)

    @_parameters_of(CompletionsRequest.__init__, "CompletionsStream")
    def create_stream(self, *args: Any, **kwargs: Any) -> CompletionsStream:
        """The same piece by piece, as it is made: see `CompletionsStream`.

        Takes what `create` takes, raises what `create` raises, and returns with the first event.
        """
        request = _request(args, kwargs)
        body = f'{request.to_json()[:-1]}, "stream": true}}'
        batch = isinstance(request.prompt, list) and not {int}.issuperset(map(type, request.prompt))
        asked = (len(request.prompt) if batch else 1) * (request.n or 1)
        return self._call(body, functools.partial(CompletionsStream, self, asked))

    @_parameters_of(__init__, "Client")
    def with_options(self, *args: Any, **changes: Any) -> Client:
        """A client that differs in the options named, which are those of `Client`.

        It shares the connections, unless `ssl_context` is among them. `headers` are added to those
        there are. To a `base_url` of another origin neither the key nor the headers go along. Cheap
        enough for each call: `client.with_options(timeout=seconds_left).create(...)`.
        """
        changes.update(zip(("api_key", "base_url"), args))
        kept = self._options
        if "base_url" in changes and _endpoint(changes["base_url"])[2] != self._origin:
            kept = {**kept, "api_key": None, "headers": {}}
        headers = {**kept["headers"], **_checked_headers(changes.get("headers") or {})}
        client = object.__new__(type(self))
        vars(client).update(vars(self))
        Client.__init__(client, **{**kept, **changes, "headers": headers})
        if "ssl_context" not in changes:
            client._connections, client._openers = self._connections, self._openers
        return client

    def close(self) -> None:
        """Closes the connections: idle ones now, others with their answers. A call makes new ones."""
        self._connections.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(type(self), **self._options), ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(base_url={self._shown_url.rpartition('/')[0]!r})"

    def _call(self, body: str, finish: Callable[[_Connection, float], R]) -> R:
        """What `finish` makes of the answer; the request is sent again where that may help."""
        deadline = _deadline(self._options["timeout"])
        attempt = 0
        while True:
            try:
                return self._attempt(body.encode(), finish, deadline)
            except APIError as error:
                wait = getattr(error, "retry_after", None)
                if wait is None:
                    import random

                    wait = min(0.5 * 2 ** min(attempt, 4), 8) * random.uniform(0.75, 1)
                late = wait > _LONGEST_WAIT or time.monotonic() + wait >= deadline
                if late or attempt >= self._options["max_retries"] or not _may_help(error):
                    raise
            time.sleep(wait)
            attempt += 1

    def _attempt(
        self, body: bytes, finish: Callable[[_Connection, float], R], deadline: float
    ) -> R:
        from urllib.request import Request

        began, connection, status, request_id = time.monotonic(), None, None, None
        try:
            if not self._openers:
                self._openers.append(_opener(self._connections))
            request = Request(self._url, body, self._headers, method="POST")
            connection = self._openers[0].open(request, timeout=_time_left(deadline))
            status, request_id = connection.status, connection.headers.get("x-request-id")
            request_id = request_id and self._message(request_id)
            encoding = connection.headers.get("content-encoding", "identity")
            if not 200 <= status < 300:
                raise self._status_error(connection)
            if encoding != "identity":
                data = connection.whole_body(self._options["max_response_bytes"])
                message = self._message(f"the answer came with Content-Encoding: {encoding}")
                raise APIResponseValidationError(message, body=data)
            answer, connection = connection, None  # which `finish` releases
            return finish(answer, deadline)
        except BaseException as error:
            if connection:
                self._connections.release(connection)
            if isinstance(error, APIError):
                error.request_id = request_id
            if isinstance(error, _network_errors()):
                failure = self._failure(error, APIConnectionError, deadline)
                failure.request_id = request_id
                raise failure from error
            raise
        finally:
            logging = sys.modules.get("logging")
            if logging:
                facts = self._shown_url, status, time.monotonic() - began, request_id
                logging.getLogger(__name__).debug("POST %s: %s in %.3f s, request id %s", *facts)

    def _response(self, connection: _Connection, _: float) -> CompletionsResponse:
        try:
            body = _json_value(connection.whole_body(self._options["max_response_bytes"]))
        finally:
            request_id = connection.headers.get("x-request-id")
            self._connections.release(connection)
        if _is_error(body):
            raise self._reported(body)
        response = CompletionsResponse.from_dict(body)
        response.request_id = request_id
        return response

    def _reported(self, body: Any) -> APIError:
        """The error that a server reports where an answer should be."""
        reason, details = _reason(body)
        return APIError(self._message(reason or "an error without a message"), body=body, **details)

    def _status_error(self, answer: _Connection) -> APIStatusError:
        data = answer.error_body()
        for secret in self._secrets:
            data = data.replace(secret.encode("latin-1"), b"***")
        body, status, headers = _json_or_raw(data), answer.status, answer.headers
        reason, details = _reason(body)
        if isinstance(body, bytes):
            reason = f"{len(body)} bytes that are no text"
        elif "location" in headers:
            reason = f"redirects, which are not followed, to {headers['location']}"
        elif status == 401 and "authorization" not in self._headers:
            names = _key_variables(self._origin) or ["COMPLETIONS_BASE_URL and COMPLETIONS_API_KEY"]
            reason += f" (no key was sent: give api_key, or set {' or '.join(names)})"
        reason = reason.strip() or data.decode("utf-8", "replace").strip() or answer.response.reason
        wait = _seconds(headers.get("retry-after-ms", ""), 1000)
        wait = _seconds(headers.get("retry-after", ""), 1) if wait is None else wait
        kind = _STATUS_ERRORS.get(status, InternalServerError if status >= 500 else APIStatusError)
        message = self._message(f"HTTP {status}: {reason}")
        details.update(status_code=status, headers=headers, retry_after=wait, body=body)
        return kind(message, **details)

    def _failure(self, error: BaseException, kind: type[APIError], *deadlines: float) -> APIError:
        """The error of ours for what broke; after a deadline that is the timeout, whatever it was."""
        for name, deadline in zip(("timeout", "idle_timeout"), deadlines):
            if time.monotonic() >= deadline:
                limit = f"the {name} of {self._options[name]} s"
                return APITimeoutError(f"POST {self._shown_url}: not answered within {limit}")
        return kind(self._message(f"POST {self._shown_url}: {type(error).__name__}: {error}"))

    def _message(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return _one_line(text)


def _endpoint(base_url: str | None) -> tuple[str, str, str]:
    """The base URL, the URL of the endpoint, and its origin."""
    if base_url is None:
        base_url = os.environ.get("COMPLETIONS_BASE_URL") or "https://api.atoma.network/v1"
    if not isinstance(base_url, str):
        raise _misfit(TypeError, "base_url", "str", base_url)
    host_port = r"(\[[\da-fA-F:.]+\]|[^\0-,/:-@\[-^`{-\x9f]+)(?::(\d{1,5}))?"
    form = rf"(https?)://{host_port}((?:/[!-\"$->@-~]*)?)(\?[!-\"$-~]*)?"
    match: Any = re.fullmatch(form, base_url.strip(), re.IGNORECASE | re.ASCII)
    try:
        scheme, host, port, path, query = match.groups("")
        scheme, host = scheme.lower(), host.lower().encode("ascii" if host.isascii() else "idna")
        if int(port or 0) > 65535:
            raise ValueError
    except (AttributeError, ValueError):
        rule = "http:// or https://, a host, and perhaps a port, a path and a query, all in ASCII"
        raise ValueError(f"base_url: expected {rule}, without a user or password") from None
    default_port = {"http": "80", "https": "443"}[scheme]
    origin = f"{scheme}://{host.decode()}" + (f":{port}" if port not in ("", default_port) else "")
    return base_url.strip(), f"{origin}{path.rstrip('/')}/completions{query}", origin


def _key_variables(origin: str) -> list[str]:
    """The environment variables in which the key of an origin is looked up."""
    official = {"ATOMASDK_BEARER_AUTH": "https://api.atoma.network"}
    official["OPENAI_API_KEY"] = "https://api.openai.com"
    names = [name for name, its_origin in official.items() if its_origin == origin]
    try:
        own = os.environ.get("COMPLETIONS_BASE_URL") and _endpoint(None)[2]
    except ValueError:  # which this client has no use for
        own = None
    return ["COMPLETIONS_API_KEY", *names] if own == origin else names


def _key_of(origin: str) -> str | None:
    names = [name for name in _key_variables(origin) if os.environ.get(name, "").strip()]
    return _key(names[0], os.environ[names[0]]) if names else None


def _key(name: str, key: str) -> str:
    if not isinstance(key, str):
        raise _misfit(TypeError, name, "str", key)
    if not re.fullmatch(r"[!-~]+", key.strip()):
        raise ValueError(f"{name}: a key is ASCII without spaces; this one (not shown) is not")
    return key.strip()


def _checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers by lower-case names; `http.client` would quote one that cannot be sent."""
    words = [*headers, *headers.values()] if hasattr(headers, "values") else [None]
    if not all(isinstance(word, str) for word in words):
        raise TypeError("headers: expected a dict of str to str")
    for name, value in headers.items():
        token, plain = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", r"[\t -~\xa0-\xff]*"
        framing = name.lower() in ("content-length", "transfer-encoding")
        if framing or not re.fullmatch(token, name) or not re.fullmatch(plain, value):
            raise ValueError(
                "headers: one (not shown) cannot be sent, or is not for a caller to set"
            )
    return {name.lower(): value.strip() for name, value in headers.items()}


def _request(args: tuple[Any, ...], arguments: dict[str, Any]) -> CompletionsRequest:
    if "stream" in arguments:
        raise TypeError("stream: call create_stream instead")
    for name in arguments.keys() - CompletionsRequest.__annotations__.keys():
        raise TypeError(f"{name}: no parameter; what only some servers take goes in extra={{...}}")
    if len(args) > 2:
        raise TypeError("only prompt and model may come by position")
    return CompletionsRequest(*args, **arguments)


_default: dict[str, Client] = {}


def _of_default_client(method: Callable[Concatenate[Any, P], R]) -> Callable[P, R]:
    """The method as a function, of a client that is made at first use."""

    @functools.wraps(method)
    def function(*args: P.args, **kwargs: P.kwargs) -> R:
        client = _default.get("client") or _default.setdefault("client", Client())
        return method(client, *args, **kwargs)

    signature = inspect.signature(method)
    parameters = list(signature.parameters.values())[1:]
    vars(function)["__signature__"] = signature.replace(parameters=parameters)
    return function


create = _of_default_client(Client.create)
create_stream = _of_default_client(Client.create_stream)


# -------------------------------------------------------------------------------------- the stream


class CompletionsStream:
    """The chunks of a completion, each a `CompletionsResponse`, as they arrive; `create_stream`
    makes it.

    A loop over it ends when the answer is whole: at `data: [DONE]`, or at the end of the connection
    if every choice that was asked for has its finish_reason. Else it raises, with what had arrived
    as `partial`: `StreamInterruptedError` where the connection ended too early, `APITimeoutError`
    after the timeout or the idle_timeout, `APIResponseValidationError` for an event that is no
    chunk, `APIError` itself for an error that the server reports.

    Closed early, by `close()`, the end of a `with` block or the loss of the last reference, it
    closes its connection, so that the server stops. A stream belongs to one thread at a time.
    """

    def __init__(
        self, client: Client, asked: int, connection: _Connection, deadline: float
    ) -> None:
        self.request_id = connection.headers.get("x-request-id")
        self._client, self._asked, self._deadline = client, asked, deadline
        self._idle_timeout = client._options["idle_timeout"]
        self._connection: _Connection | None = connection
        self._events = _events(connection, client._options["max_response_bytes"])
        self._top: dict[str, Any] = {}
        self._settled = {"choices"}  # the names whose value stays
        self._choices: dict[int, _Merged] = {}
        self._finished: set[int] = set()
        self._error: APIError | None = None
        self._first = self._read()

    def __iter__(self) -> CompletionsStream:
        return self

    def __next__(self) -> CompletionsResponse:
        chunk, self._first = self._first or self._read(), None
        if chunk is None:
            raise StopIteration
        return chunk

    @property
    def response(self) -> CompletionsResponse:
        """What has arrived so far, merged into one; after the loop, the whole answer.

        At the top `id`, `object`, `created` and `model` are the first that are not empty; in a
        choice, texts and lists are joined, also in its log-probs. Anything else is the last that is
        not null. Made anew each time, at the cost of all the text.
        """
        choices = [{**self._choices[i].plain(), "index": i} for i in sorted(self._choices)]
        response = CompletionsResponse.from_dict({**self._top, "choices": choices})
        response.request_id = self.request_id
        return response

    def close(self) -> None:
        """Ends the stream. What has not been read is lost."""
        connection, self._connection, self._first = self._connection, None, None
        if connection:
            self._client._connections.release(connection)

    def __enter__(self) -> CompletionsStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> CompletionsResponse | None:
        """The next chunk; None at the end."""
        if self._error:
            raise self._error
        if not self._connection:
            return None
        wire = self._connection.wire
        try:
            _time_left(self._deadline)
            if self._idle_timeout is not None:
                wire.deadline = min(self._deadline, _deadline(self._idle_timeout))
            for kind, data in self._events:
                return self._chunk(kind, data)
            if not self._connection.done and not self._is_whole():
                raise ConnectionError("the connection ended before the answer did")
        except BaseException as error:
            late = time.monotonic() >= wire.deadline
            if isinstance(error, _network_errors()) and (late or not self._is_whole()):
                deadlines = self._deadline, wire.deadline
                self._error = self._client._failure(error, StreamInterruptedError, *deadlines)
                self._error.__cause__ = error
            elif isinstance(error, APIError):
                self._error = error
            elif not isinstance(error, _network_errors()):
                self.close()
                raise
        self.close()
        if self._error:
            self._error.partial, self._error.request_id = self.response, self.request_id
            raise self._error
        return None

    def _chunk(self, kind: bytes, data: bytes) -> CompletionsResponse:
        """The chunk that an event holds, once it is merged into what came before."""
        body = _json_or_raw(data) if kind == b"error" else _json_value(data)
        if kind == b"error" or _is_error(body):
            raise self._client._reported(body)
        if kind != b"plain" and isinstance(body, dict) and body.get("choices") is None:
            body["choices"] = []
        chunk = CompletionsResponse.from_dict(body)
        chunk.request_id = self.request_id
        for name, value in body.items():
            if value is not None and name not in self._settled:
                self._top[name] = value
                if value and name in ("id", "object", "created", "model"):
                    self._settled.add(name)
        for choice, part in zip(chunk.choices, body["choices"]):
            if choice.index not in self._choices:
                self._choices[choice.index] = _Merged()
            self._choices[choice.index].add(part)
            if choice.finish_reason:
                self._finished.add(choice.index)
        return chunk

    def _is_whole(self) -> bool:
        """Whether all the choices that were asked for, and all that came, are finished."""
        return self._asked <= len(self._finished) == len(self._choices)


class _Merged(Json):
    """JSON objects merged into one: texts and lists joined, of anything else the last."""

    def add(self, part: dict[str, Any], nested: str = "logprobs") -> None:
        for name, value in part.items():
            if value is None:
                continue
            before, kind = self.get(name), type(value)
            if kind is str and name != "finish_reason":
                if type(before) is not io.StringIO:
                    before = self[name] = io.StringIO()
                before.write(value)
            elif kind is list:
                self[name] = before if type(before) is list else []
                self[name] += value
            elif kind is dict and name == nested:
                self[name] = before if type(before) is _Merged else _Merged()
                self[name].add(value, "")
            else:
                self[name] = value

    def plain(self) -> dict[str, Any]:
        """A JSON object that does not change any more."""
        plain = dict(self)
        for name, value in self.items():
            if isinstance(value, (io.StringIO, _Merged)):
                plain[name] = value.getvalue() if isinstance(value, io.StringIO) else value.plain()
            elif isinstance(value, list):
                plain[name] = value.copy()
        return plain


def _events(connection: _Connection, limit: int) -> Iterator[tuple[bytes, bytes]]:
    """The type and the data of each server-sent event of a body, as in
    https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation.
    A body that is plain JSON, or HTML, comes as one event of type `plain`."""
    bom, blank = b"\xef\xbb\xbf", b"\xef\xbb\xbf \t\r\n"
    piece = more = connection.piece()
    while more and (len(piece) < 3 or not piece.strip(blank)) and len(piece) <= limit:
        more = connection.piece()
        piece += more
    if piece.strip(blank)[:1] in (b"{", b"[", b"<"):
        body = connection.whole_body(limit, piece)
        connection.done = True
        yield b"plain", body
        return
    piece = piece[3:] if piece.startswith(bom) else piece
    line, after_cr, kind = bytearray(), False, b""
    data: Any = b""
    while piece:
        line += piece[1:] if after_cr and piece[:1] == b"\n" else piece
        after_cr, lines = piece[-1:] == b"\r", []
        if b"\n" in piece or b"\r" in piece:
            lines = bytes(line).splitlines(True)  # of bytes: at LF, CR and CRLF only
            line.clear()
            if lines and lines[-1][-1:] not in (b"\r", b"\n"):
                line += lines.pop()
        for text in lines:
            if text in (b"\n", b"\r", b"\r\n"):
                if len(data) > limit:
                    raise _too_large("an event", limit)
                if data[:6] == b"[DONE]":
                    connection.done = True  # though the last bytes of the body may be to come
                    return
                if data or kind == b"error":
                    yield kind, bytes(data)
                kind, data = b"", b""
                continue
            name, _, value = text.rstrip(b"\r\n").partition(b":")
            value = value[1:] if value[:1] == b" " else value
            if name == b"event":
                kind = value
            elif name in (b"data", b"error"):  # llama.cpp once sent errors in a field of theirs
                kind = b"error" if name == b"error" else kind
                if data:
                    data = data if type(data) is bytearray else bytearray(data)
                    data += b"\n"
                data += value
        if len(line) + len(data) > limit:
            raise _too_large("an event", limit)
        piece = connection.piece()


def _too_large(what: str, limit: int, body: bytes | None = None) -> APIResponseValidationError:
    message = f"{what} is larger than the max_response_bytes of {limit}"
    return APIResponseValidationError(message, body=body)


# -------------------------------------------------------------- the transport, private from here on

_NOW = float("-inf")  # a deadline for what is there already
_CONNECT_SECONDS = 10
_ERROR_SECONDS, _ERROR_BYTES = 5, 1024 * 1024  # to read of the body of an error
_IDLE_SECONDS, _IDLE_CONNECTIONS = 60, 32  # to keep
_LONGEST_WAIT = 120  # seconds between two tries
_TCP_OPTIONS = {"TCP_NODELAY": 1, "TCP_KEEPINTVL": 60, "TCP_KEEPCNT": 5}
_TCP_OPTIONS.update(TCP_KEEPIDLE=60, TCP_KEEPALIVE=60)  # two names: the second is macOS's


def _network_errors(*more: type[Exception]) -> tuple[type[Exception], ...]:
    from http.client import HTTPException

    return (OSError, HTTPException, *more)


def _deadline(seconds: float | None) -> float:
    """When so many seconds are over; never, if they are None or more than the kernel can count."""
    if seconds is None or seconds > 2_000_000:
        return float("inf")
    return time.monotonic() + max(seconds, 0)


def _time_left(deadline: float) -> float | None:
    """Seconds until a deadline, as sockets take them; raises `TimeoutError` when it has passed."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return None if left == float("inf") else left


class _Socket(io.RawIOBase):
    """A socket to read from until `deadline`; closed with its last reference."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self.sock, self.deadline = sock, deadline
        self.ended = False  # the other side has closed
        self.received = False  # something, since this was reset
        self.blocked: tuple[type[OSError], ...] = (BlockingIOError,)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.sock.settimeout(0 if self.deadline == _NOW else _time_left(self.deadline))
        size = self.sock.recv_into(buffer)
        self.ended, self.received = not size, self.received or size > 0
        return size

    def close(self) -> None:
        self.sock.close()
        super().close()


class _Reader(io.BufferedReader):
    """What `http.client` reads from; its closing is ignored, so that the connection can be kept."""

    def close(self) -> None:
        pass

    flush = close


class _Connection:
    """A connection and the exchange that is going on over it.

    To `http.client` it is the socket; what that writes is collected, to leave in one piece.
    """

    response: HTTPResponse

    def __init__(self, wire: _Socket, key: tuple[Any, ...]) -> None:
        self.wire, self.reader = wire, _Reader(wire, 65536)
        self.key, self.idle_since = key, 0.0
        self.outgoing: list[bytes] = []
        self.sendall = self.outgoing.append

    def makefile(self, _: str) -> _Reader:
        return self.reader

    def close(self) -> None:
        pass

    def ask(self, deadline: float, *request: Any) -> _Connection:
        """Sends a request (method, target, body, headers) and reads the answer up to its body."""
        from http.client import HTTPConnection

        self.wire.deadline, self.wire.received = deadline, False
        client = HTTPConnection("in.the.headers")
        client.sock = self
        try:
            client.request(*request)
            try:
                sent = self.send()
            except OSError as error:  # the server's answer may be there all the same
                sent, self.wire.deadline = False, min(deadline, time.monotonic() + 1)
                try:
                    self.response = client.getresponse()
                except _network_errors():
                    raise error
            else:
                self.response = client.getresponse()
            if self.wire.ended:
                raise ConnectionError("the connection ended in the middle of the headers")
        except BaseException:
            self.wire.close()
            raise
        self.wire.deadline = deadline
        self.status = self.response.status
        self.headers = {name.lower(): value for name, value in self.response.getheaders()}
        self.left = self.response.length  # None for a chunked body, and one that the end ends
        self.reusable = sent and not self.response.will_close and self.status >= 200
        self.over = False  # the body has been read to its end
        self.done = False  # the answer is whole, though its last bytes may not have come
        self.body = io.BytesIO()
        return self

    def send(self) -> bool:
        """Sends what was collected; stops, and returns False, if the answer is there before."""
        import socket

        data, deadline = memoryview(b"".join(self.outgoing)), self.wire.deadline
        self.outgoing.clear()
        while data:
            self.wire.sock.settimeout(min(_time_left(deadline) or 0.1, 0.1))
            try:
                data = data[self.wire.sock.send(data[:65536]) :]
            except socket.timeout:
                pass
            self.wire.deadline = _NOW
            try:
                if data and self.reader.peek(1):
                    return False
            except self.wire.blocked:
                pass
            self.wire.deadline = deadline
        return True

    def piece(self) -> bytes:
        """The next piece of the body; b"" at its end. Raises `IncompleteRead` if it was cut."""
        if self.left is None:
            piece = self.response.read1(65536)
        else:
            piece = self.reader.read1(min(self.left, 65536)) if self.left else b""
            self.left -= len(piece)
            if self.left and not piece:
                from http.client import IncompleteRead

                raise IncompleteRead(b"", self.left)
        self.over = not piece
        return piece

    def whole_body(self, limit: int, start: bytes = b"") -> bytes:
        self.body.write(start)
        while self.body.tell() <= limit:
            piece = self.piece()
            if not piece:
                return self.body.getvalue()
            self.body.write(piece)
        raise _too_large("the answer", limit, self.body.getvalue())

    def error_body(self) -> bytes:
        """The body of an error, as far as it comes in reasonable time and size."""
        self.wire.deadline = min(self.wire.deadline, time.monotonic() + _ERROR_SECONDS)
        try:
            self.whole_body(_ERROR_BYTES)
        except _network_errors(APIResponseValidationError):
            pass
        return self.body.getvalue()[:_ERROR_BYTES]

    def is_quiet(self) -> bool:
        """Whether the body is at its end, and nothing follows, without waiting for it."""
        self.wire.deadline, over = _NOW, False
        try:
            over = not self.piece()
            self.reader.peek(1)
        except self.wire.blocked:
            return over
        except _network_errors():
            pass
        return False


class _KeepAlive:
    """The handler with which `urllib.request` opens http and https: it keeps connections."""

    handler_order = 500

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self.context = context
        self.idle: list[_Connection] = []
        self.closed = False

    def __lt__(self, other: Any) -> bool:
        return bool(self.handler_order < other.handler_order)

    def add_parent(self, _: OpenerDirector) -> None:
        pass

    def http_open(self, request: Request) -> _Connection:
        """A connection on which the answer has begun, a kept one where there is one."""
        if request.type == "https" and not self.context:
            import ssl

            self.context = ssl.create_default_context()
            self.context.set_alpn_protocols(["http/1.1"])
        deadline = _deadline(request.timeout)
        tunnel = getattr(request, "_tunnel_host", None)  # to the server: `host` is its proxy
        headers = dict(request.header_items())
        credentials = headers.pop("Proxy-authorization", None) if tunnel else None
        context = self.context if request.type == "https" else None
        key = os.getpid(), context, request.host, tunnel, credentials
        post = request.get_method(), request.selector, request.data, headers
        began, connection = time.monotonic(), self.kept(key)
        if connection:
            try:
                return connection.ask(deadline, *post)
            except _network_errors():
                if connection.wire.received or time.monotonic() >= min(began + 1, deadline):
                    raise
        return _connected(key, deadline).ask(deadline, *post)

    https_open = http_open

    def kept(self, key: tuple[Any, ...]) -> _Connection | None:
        """An idle connection that is still good; those too old, or another process's, are closed."""
        for connection in self.idle[::-1]:
            young = time.monotonic() - connection.idle_since < _IDLE_SECONDS
            usable = young and connection.key[0] == key[0]
            if usable and connection.key != key:
                continue
            try:
                self.idle.remove(connection)
            except ValueError:  # another thread took it
                continue
            if usable and connection.is_quiet():
                return connection
            connection.wire.close()
        return None

    def release(self, connection: _Connection) -> None:
        """Keeps a connection whose answer was read to its end, and closes any other."""
        if not (connection.reusable and (connection.over or connection.done)) or self.closed:
            connection.wire.close()
            return
        connection.idle_since = time.monotonic()
        self.idle.append(connection)
        if len(self.idle) > _IDLE_CONNECTIONS:
            self.idle.pop(0).wire.close()

    def close(self) -> None:
        self.closed = True
        while self.idle:
            self.idle.pop().wire.close()


def _connected(key: tuple[Any, ...], deadline: float) -> _Connection:
    """A new connection, through a proxy's tunnel and with TLS where they are called for."""
    from urllib.parse import urlsplit

    _, context, host, tunnel, credentials = key
    limit = min(deadline, time.monotonic() + _CONNECT_SECONDS)
    connection, target = None, urlsplit(f"//{host}")
    try:
        port = target.port or (443 if context and not tunnel else 80)
        wire = _Socket(_connected_socket(target.hostname or "", port, limit), limit)
        connection = _Connection(wire, key)
        if tunnel:
            target = urlsplit(f"//{tunnel}")
            place = tunnel if target.port else f"{tunnel}:443"
            headers = {
                "Host": place,
                **({"Proxy-Authorization": credentials} if credentials else {}),
            }
            connection.ask(limit, "CONNECT", place, None, headers)
            if connection.status != 200:
                reason = f"HTTP {connection.status} {connection.response.reason}"
                raise ConnectionError(f"the proxy opens no tunnel: {reason}")
            connection = _Connection(wire, key)  # without what came in the clear
        if context:
            import ssl

            name = (target.hostname or "").encode("ascii")  # a str would load the codec for IDNA
            tls = context.wrap_socket(
                wire.sock, server_hostname=name, do_handshake_on_connect=False
            )
            wire.sock, wire.blocked = tls, (ssl.SSLWantReadError, ssl.SSLWantWriteError)
            tls.settimeout(_time_left(limit))
            tls.do_handshake()
        return connection
    except BaseException as error:
        if connection:
            connection.wire.close()
        if isinstance(error, OSError) and time.monotonic() >= limit:
            raise ConnectionError(f"no connection within {_CONNECT_SECONDS} s") from error
        raise


def _connected_socket(host: str, port: int, deadline: float) -> socket.socket:
    """A TCP connection to the first address of the host that answers; they share the time."""
    import socket

    addresses = socket.getaddrinfo(host.encode("ascii"), port, type=socket.SOCK_STREAM)
    for place, (family, kind, protocol, _, address) in enumerate(addresses):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout((_time_left(deadline) or 0) / (len(addresses) - place))
            sock.connect(address)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _TCP_OPTIONS.items():
                if hasattr(socket, name):
                    sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
            return sock
        except BaseException as error:
            sock.close()
            if not isinstance(error, OSError) or place == len(addresses) - 1:
                raise
    raise OSError("the host has no address")


def _opener(handler: Any) -> OpenerDirector:
    """An opener for http and https, through the proxies of the environment, and for nothing else."""
    from urllib.request import OpenerDirector, ProxyHandler, getproxies

    opener = OpenerDirector()
    opener.add_handler(handler)
    proxies = getproxies()
    if proxies:  # for it makes a cycle of references, and a client is to vanish with its last one
        opener.add_handler(ProxyHandler(proxies))
    return opener


# -------------------------------------------------------------------------------- the command line


def main(argv: list[str] | None = None) -> int:
    """Runs the command line, and returns its exit code: 0; 1 if the request failed, with one line on
    standard error; 2 for wrong usage; 130 for Ctrl-C. A closed pipe is no error."""
    import argparse
    import json

    helps = dict(re.findall(r"^ +(\w+)  +(\S.+)", CompletionsRequest.__doc__ or "", re.MULTILINE))
    parser = argparse.ArgumentParser(prog="completions", description="Completes a prompt.")
    parser.add_argument("prompt", nargs="?", help="by default what standard input holds")
    parser.add_argument("--model", required=True, help=helps.get("model"))
    parser.add_argument("--base-url", help="by default $COMPLETIONS_BASE_URL, else Atoma's")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds, 600 by default")
    parser.add_argument("--json", action="store_true", help="print the whole response, as JSON")
    parser.add_argument("-v", "--verbose", action="store_true", help="usage and speed, to stderr")
    parser.add_argument("--extra", action="append", default=[], metavar="KEY=JSON")
    hows: dict[str, Any] = {"int": {"type": int}, "float": {"type": float}, "str": {"type": str}}
    hows["bool"] = {"action": "store_true", "default": None}
    for name, annotation in list(CompletionsRequest.__annotations__.items())[2:-1]:
        how: Any = hows.get(annotation.split()[0], {"type": json.loads})
        how = {"action": "append"} if name == "stop" else how
        parser.add_argument(f"--{name.replace('_', '-')}", help=helps.get(name), **how)
    options = parser.parse_args(argv)
    try:
        _run(**vars(options))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    except (APIError, TypeError, ValueError) as error:
        print(f"completions: {error}", file=sys.stderr)
        return 1 if isinstance(error, APIError) else 2
    return 0


def _run(
    base_url: str, timeout: float, json: bool, verbose: bool, extra: list[str], **request: Any
) -> None:
    from json import loads

    began = time.monotonic()
    pairs = (pair.partition("=") for pair in extra)
    request["extra"] = {name: loads(value) for name, _, value in pairs}
    if request["prompt"] is None:
        request["prompt"] = sys.stdin.read()
    client = Client(base_url=base_url, timeout=timeout)
    if json:
        response = client.create(**request)
        _show(f"{response.to_json()}\n")
    else:
        if verbose and request["stream_options"] is None:
            request["stream_options"] = {"include_usage": True}
        with client.create_stream(**request) as stream:
            try:
                for chunk in stream:
                    _show("".join(choice.text for choice in chunk.choices if choice.index == 0))
            finally:
                response = stream.response
                others = "".join(f"\n{choice.text}" for choice in response.choices[1:])
                _show(others + "\n" * (sys.stdout.isatty() and not response.text.endswith("\n")))
    if verbose:
        usage, seconds = response.usage or Usage(), time.monotonic() - began
        speed = f"{seconds:.2f} s, {usage.completion_tokens / seconds:.1f} tokens/s"
        print(f"{usage.prompt_tokens} + {usage.completion_tokens} tokens, {speed}", file=sys.stderr)


def _show(text: str) -> None:
    """Writes text at once; to a terminal with its control characters shown, not obeyed."""
    if sys.stdout.isatty():
        controls = r"[\x00-\x08\x0b-\x1f\x7f-\x9f]"
        text = re.sub(controls, lambda match: repr(match[0])[1:-1], text)
    sys.stdout.buffer.write(text.encode(sys.stdout.encoding, "backslashreplace"))
    sys.stdout.buffer.flush()


# Not where the file was pasted into a notebook, or run by exec.
if __name__ == "__main__" and main.__code__.co_filename == globals().get("__file__"):
    sys.exit(main())

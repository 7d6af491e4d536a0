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

The key comes from the environment, once: see `Client`. A fault of the other end is an `APIError`.
"""

from __future__ import annotations

import copy
import functools
import inspect
import io
import os
import re
import sys
import time
import weakref
from collections import defaultdict
from dataclasses import dataclass, field

TYPE_CHECKING = False  # type checkers take it as true; typing would cost milliseconds to import
if TYPE_CHECKING:
    import ssl
    from dataclasses import KW_ONLY
    from typing import Any, Callable, Concatenate, Iterator, Mapping, ParamSpec, TypeVar

    P = ParamSpec("P")
    R = TypeVar("R")
    Typed = Callable[[Callable[..., R]], Callable[Concatenate[Any, P], R]]
    Json = dict[str, Any]
else:
    Any, Json = object, dict

__version__ = "0.1.0"

# ---------------------------------------------------------------------------------------- the data

# dataclass() looks up the module of a class, which a file run by exec or importlib may not be in.
_unlisted = sys.modules.setdefault(__name__, sys) is sys


class _Record:
    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return {**vars(self), "request_id": None} == {**vars(other), "request_id": None}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{n}={v!r}' for n, v in vars(self).items())})"


class _Received(_Record):
    @classmethod
    def from_dict(cls: type[R], data: dict[str, Any]) -> R:
        """An instance made of a JSON object, in which null is the same as absent.

        What is unknown or of a wrong type goes to `extra`; but choices, text, index, finish_reason
        of a wrong type raise `APIResponseValidationError`, which says where; `data` is its `body`.
        """
        return _new(cls, data)

    @classmethod
    def from_json(cls: type[R], text: str | bytes) -> R:
        """`from_dict` of JSON text, or of its bytes in UTF-8; the same error if it is no JSON."""
        _check("text", "str | bytes", text)
        return _new(cls, _json_value(text))

    def to_dict(self: Any) -> dict[str, Any]:
        """The JSON object: every known field, null where it is None, then `extra`, which wins."""
        fields = [(name, getattr(self, name)) for name in _plan(type(self))[0]]
        data: Json = {n: v.to_dict() if hasattr(v, "to_dict") else v for n, v in fields}
        if "choices" in data:
            data["choices"] = [choice.to_dict() for choice in data["choices"]]
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
    extra: dict[str, Any] = field(default_factory=Json)


@dataclass(repr=False, eq=False)
class PromptTokensDetails(_Received):
    """Where the tokens of the prompts went; a part of `Usage`."""

    audio_tokens: int | None = None
    cached_tokens: int | None = None
    extra: dict[str, Any] = field(default_factory=Json)


@dataclass(repr=False, eq=False)
class Usage(_Received):
    """How many tokens a request took."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None
    extra: dict[str, Any] = field(default_factory=Json)


@dataclass(repr=False, eq=False)
class LogProbs(_Received):
    """The log-probabilities of the tokens of a choice: lists with one item a token."""

    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None
    text_offset: list[int] | None = None
    extra: dict[str, Any] = field(default_factory=Json)


@dataclass(repr=False, eq=False)
class CompletionChoice(_Received):
    """One completion. Its `finish_reason`, mostly "stop" or "length", is None until it is whole."""

    text: str = ""
    index: int = 0
    logprobs: LogProbs | None = None
    finish_reason: str | None = None
    extra: dict[str, Any] = field(default_factory=Json)


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
    extra: dict[str, Any] = field(default_factory=Json)
    request_id: str | None = None

    @property
    def text(self) -> str:
        """The text of the choice with the lowest index; "" when there is none."""
        return min(self.choices, key=lambda choice: choice.index).text if self.choices else ""


@dataclass(repr=False, eq=False)
class CompletionsRequest(_Record):
    """The parameters of a completion, as in
    https://platform.openai.com/docs/api-reference/completions/create; sent by `create(**vars(it))`.

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
    logit_bias: dict[str, float] | dict[str, int] | None = None
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
    extra: dict[str, Any] = field(default_factory=Json)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that is sent: without what is None, and with one `stop` as a list of one.
        Raises `TypeError` or `ValueError` that names a wrong argument."""
        fields, data = CompletionsRequest.__annotations__, Json()
        for name, annotation in fields.items():
            value = getattr(self, name)
            if value is not None or "None" not in annotation:
                _check(name, annotation, value)
                data[name] = [value] if name == "stop" and isinstance(value, str) else value
        if not {"stream", *fields}.isdisjoint(data.pop("extra")):
            raise ValueError("extra: holds stream, or what is a parameter of its own")
        return {**data, **self.extra}

    def to_json(self) -> str:
        """`to_dict` as JSON text. Raises also for what has no JSON, NaN and infinities included."""
        import json

        encode, members = json.JSONEncoder(allow_nan=False).encode, Json()
        for name, value in self.to_dict().items():
            try:
                members[name] = f"{encode(name)}: {encode(value)}"
            except (TypeError, ValueError, RecursionError) as error:
                kind = TypeError if isinstance(error, TypeError) else ValueError
                raise kind(f"{name}: {error}") from None
        return f"{{{', '.join(members.values())}}}"


if _unlisted:
    del sys.modules[__name__]

# Where a wrong type is an error, for the answer itself depends on it: what is expected.
_DECISIVE = {"choices": "list", "text": "str", "index": "int", "finish_reason": "str"}
_INT, _NUMBER_OR_NULL, _DICT_OR_NULL = {int}, {float, int, type(None)}, {dict, type(None)}
_is: Callable[[Any, Any], bool] = isinstance  # but type checkers do not narrow by it
# Whether a value fits, or what makes it fit: by a field, or by an annotation without its nulls.
_FITS: dict[str, Callable[[Any], Any]] = {
    "choices": lambda v: _is(v, list),
    "created": lambda v: _unix_seconds(v),
    "None": lambda v: v is None,
    "bool": lambda v: isinstance(v, bool),
    "str": lambda v: isinstance(v, str),
    "bytes": lambda v: isinstance(v, (bytes, bytearray)),
    "int": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "float": lambda v: isinstance(v, (float, int)) and not isinstance(v, bool),
    "dict[str, Any]": lambda v: _is(v, dict) and all(map(_FITS["str"], v)),
    "dict[str, float]": lambda v: _is(v, dict) and all(map(_FITS["float"], v.values())),
    "dict[str, int]": lambda v: _is(v, dict) and all(map(_FITS["int"], v.values())),
    "list[str]": lambda v: _is(v, list) and not [x for x in v if not _is(x, str)],
    "list[int]": lambda v: _is(v, list) and ({*map(type, v)} <= _INT or all(map(_FITS["int"], v))),
    "list[list[int]]": lambda v: _is(v, list) and all(map(_FITS["list[int]"], v)),
    "list[float]": lambda v: _is(v, list) and _NUMBER_OR_NULL.issuperset(map(type, v)),
    "list[dict[str, float]]": lambda v: (
        _is(v, list)
        and _DICT_OR_NULL.issuperset(map(type, v))
        and not [n for d in v if d for n in d.values() if not (type(n) is float or type(n) is int)]
    ),
    "Mapping[str, str]": lambda v: hasattr(v, "items") and _FITS["list[str]"]([*v, *v.values()]),
    "LogProbs": lambda v: _is(v, dict) and _new(LogProbs, v),
    "Usage": lambda v: _is(v, dict) and _new(Usage, v),
    "PromptTokensDetails": lambda v: _is(v, dict) and _new(PromptTokensDetails, v),
    "CompletionTokensDetails": lambda v: _is(v, dict) and _new(CompletionTokensDetails, v),
    "ssl.SSLContext": lambda v: hasattr(v, "wrap_socket"),
}


def _check(name: str, annotation: str, value: Any) -> None:
    if not any(_FITS[kind](value) for kind in annotation.split(" | ")):
        raise TypeError(_misfit(name, annotation, value))


def _read_plan(cls: Any) -> tuple[dict[str, Any], ...]:
    """By field: the type that nearly every value has, what tells if any other fits, the default."""
    types = {n: item.type.replace(" | None", "") for n, item in cls.__dataclass_fields__.items()}
    names = [name for name in types if name not in ("extra", "request_id")]
    kinds = {name: {"str": str, "int": int}.get(types[name], object) for name in names}
    readers = {name: _FITS.get(name) or _FITS[types[name]] for name in names}
    return kinds, readers, {name: getattr(cls, name, None) for name in types}


def _unix_seconds(value: Any) -> Any:
    """A time that came as a number with a fraction, or as RFC 3339 text, in whole Unix seconds."""
    try:
        if isinstance(value, float):
            return int(value)
        form = r"(\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d)(?:\.\d+)?(?:[Zz]|([+-]\d\d:\d\d))"
        match: Any = re.fullmatch(form, value, re.ASCII)
        from datetime import datetime

        return int(datetime.fromisoformat("".join(match.groups("+00:00"))).timestamp())
    except (AttributeError, OverflowError, TypeError, ValueError):
        return False


def _new(cls: type[R], data: Any, place: int | None = None, answer: Any = None) -> R:
    """An instance made of a JSON object; `place` is that of a choice among those of `answer`."""
    if not _is(data, dict):
        path = f"{cls.__name__} as JSON" if place is None else f"choices[{place}]"
        raise APIResponseValidationError(_misfit(path, "dict", data), body=answer or data)
    kinds, readers, defaults = _plan(cls)
    new = cls.__new__(cls)
    values = new.__dict__ = dict(defaults, index=place) if place else defaults.copy()
    extra = values["extra"] = {}
    for name, value in data.items():
        kind = kinds.get(name)
        if type(value) is kind:
            values[name] = value
        elif kind is None:
            extra[name] = value
        elif value is not None:
            fit = readers[name](value)
            if fit is False and name in _DECISIVE:
                path = name if place is None else f"choices[{place}].{name}"
                message = _misfit(path, _DECISIVE[name], value)
                raise APIResponseValidationError(message, body=answer or data)
            (extra if fit is False else values)[name] = value if isinstance(fit, bool) else fit
    if "choices" in values:
        if values["choices"] is None:
            raise APIResponseValidationError(_misfit("choices", "list", None), body=data)
        parts = enumerate(values["choices"])
        values["choices"] = [_new(CompletionChoice, part, i, data) for i, part in parts]
    return new


_plan: Any = functools.lru_cache(maxsize=None)(_read_plan)


def _misfit(path: str, expected: str, value: Any) -> str:
    return f"{path}: expected {expected.replace(' | None', '')}, got {type(value).__name__}"


@functools.lru_cache(maxsize=None)
def _decoder() -> Any:
    from json import JSONDecoder

    return JSONDecoder()


def _json_value(text: str | bytes) -> Any:
    """What JSON text says; for any other text, or bytes, these themselves."""
    try:
        text = text if isinstance(text, str) else str(text, "utf-8")
        stripped = text.strip(" \t\r\n\ufeff")
        value, end = _decoder().raw_decode(stripped)
        return value if end == len(stripped) else _decoder().decode(stripped)  # which raises
    except (ValueError, RecursionError):
        return text


# -------------------------------------------------------------------------------------- the errors


class APIError(Exception):
    """What a server or a network does wrong; itself, an error object where an answer should be."""

    code: str | float | None = None  # the server's own code: text or a number
    type: str | None = None  # the server's name for this kind of error
    param: str | None = None  # the parameter that it is about
    body: Any = None  # what the server sent: the JSON value, else text, else bytes
    request_id: str | None = None  # from the `x-request-id` header
    partial: CompletionsResponse | None = None  # what had arrived of a stream, merged

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        vars(self).update(details)


class APIStatusError(APIError):
    """Any answer that is no 2xx; redirects are among them, for they are not followed."""

    status_code: int = 0
    headers: dict[str, str] = {}  # of the answer, by lower-case names
    retry_after: float | None = None  # how many seconds the server asks to wait


class BadRequestError(APIStatusError):
    """400: a parameter is wrong."""


class AuthenticationError(APIStatusError):
    """401: the key is missing or wrong."""


class PermissionDeniedError(APIStatusError):
    """403: the key does not allow this."""


class NotFoundError(APIStatusError):
    """404: no such model, or no such URL."""


class ConflictError(APIStatusError):
    """409: the request conflicts with another."""


class UnprocessableEntityError(APIStatusError):
    """422: a parameter is wrong, says FastAPI."""


class RateLimitError(APIStatusError):
    """429: too many requests, or nothing left to pay with."""


class InternalServerError(APIStatusError):
    """500 and above: the server failed, or a gateway."""


class APIResponseValidationError(APIError, ValueError):
    """A 2xx, or a text given to `from_json`, that is no completion: `body` holds it."""


class APIConnectionError(APIError):
    """Refused, reset, cut off, no such host, no trusted certificate: see `__cause__`."""


class APITimeoutError(APIConnectionError):
    """The `timeout` passed, or the `idle_timeout` of a stream."""


class StreamInterruptedError(APIConnectionError):
    """A stream ended before the answer did: `partial` holds what had arrived."""


# The classes in the order of their definition; the last is for all from 500 on.
_ERRORS: Any = dict(zip((400, 401, 403, 404, 409, 422, 429, 500), APIStatusError.__subclasses__()))


def _reason(body: Any) -> tuple[str, dict[str, Any]]:
    """What an error body says, in whichever shape, and the code, type and param that it gives."""
    details, raw = Json(), isinstance(body, str)
    while _is(body, (dict, list)):
        if _is(body, list):
            try:  # FastAPI's, one fault after the other
                body = "; ".join(f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in body)
            except (KeyError, TypeError, RecursionError):
                body = body[0]
            continue
        for name in ("error_type", "type", "param", "code"):
            value = body.get(name)
            if isinstance(value, str) or (name == "code" and type(value) in (int, float)):
                details[name.replace("error_", "")] = value
        body = body.get("message") or body.get("detail") or body.get("error")
    text = body.lstrip("\ufeff\t\r\n ")[:20_000] if isinstance(body, str) else ""
    if text.startswith("<" if raw else ("<!", "<html", "<HTML")):  # for "<s>" may be a token
        title = re.search(r"<title[^<>]*>([^<]+)", text, re.IGNORECASE)
        text = title[1] if title else re.sub(r"<[^<>]*>", " ", text)
    return text, details


def _seconds(text: str, unit: float = 1) -> float | None:
    """The wait that a `retry-after` header asks for (RFC 9110, 10.2.3), or None."""
    from email.utils import mktime_tz, parsedate_tz

    try:
        date: Any = parsedate_tz(text)
        wait = mktime_tz(date) - time.time() if date else float(text) / unit
        return wait if 0 <= wait < float("inf") else None
    except (IndexError, OverflowError, ValueError):  # the first up to Python 3.9
        return None


def _may_help(error: APIError) -> bool:
    """Whether the same request may well get another answer."""
    if not isinstance(error, APIStatusError):
        lost = type(error) in (APIConnectionError, StreamInterruptedError)
        return lost and not hasattr(error.__cause__, "verify_message")  # of the certificate
    status, verdict = error.status_code, error.headers.get("x-should-retry")
    passing = status in (408, 409, 425, 429) or (status >= 500 and status != 501)
    return verdict == "true" or (passing and verdict != "false")


# -------------------------------------------------------------------------------------- the client


def _parameters_of(model: Callable[Concatenate[Any, P], object]) -> Typed[R, P]:
    """Gives a method the parameters of `model`, for type checkers, `help()` and `inspect`."""

    def decorate(method: Callable[..., R]) -> Callable[Concatenate[Any, P], R]:
        parameters = list(inspect.signature(model).parameters.values())
        parameters[3:] = [p.replace(kind=p.KEYWORD_ONLY) for p in parameters[3:]]
        vars(method)["__signature__"] = inspect.signature(method).replace(parameters=parameters)
        return method

    return decorate


class _Closing:
    def __enter__(self: R) -> R:
        return self

    def __exit__(self: Any, *_: object) -> None:
        self.close()


class Client(_Closing):
    """Asks one server for completions, over connections that it keeps alive.

    api_key             by default what the environment has for the server: $ATOMASDK_BEARER_AUTH
                        for https://api.atoma.network, $OPENAI_API_KEY for https://api.openai.com,
                        $COMPLETIONS_API_KEY for the origin of $COMPLETIONS_BASE_URL; no other
                        server is sent a key
    base_url            by default $COMPLETIONS_BASE_URL, else https://api.atoma.network/v1;
                        "/completions" is added to its path, and a query is kept
    timeout             seconds for a whole call, to the last byte, retries and waits included; None
                        for no bound. (Name resolution alone cannot be bounded from Python.)
    idle_timeout        seconds for each wait for the next event of a stream, after its headers
    max_retries         how often a request that failed is sent again, where that may help
    headers             more headers; they win over the client's own
    ssl_context         by default `ssl.create_default_context()`
    max_response_bytes  how large an answer, or one event of a stream, may be

    May be shared between threads and used after `fork`; a context manager; pickles with its key and
    without its connections. Proxies are those of `urllib.request`. Raises a `TypeError` or
    `ValueError` that names the argument and shows no key and no header.
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
        self._options: Json = {name: value for name, value in vars().items() if name != "self"}
        for name, value in self._options.items():
            _check(name, Client.__init__.__annotations__[name], value)
            if value != value or (name.startswith("max_") and value < 0):
                raise ValueError(f"{name}: {value} is out of range")
        self._options["base_url"], self._url, self._origin = _endpoint(base_url)
        self._shown_url = self._url.partition("?")[0]
        key, own = _key(self._origin, api_key), _checked_headers(headers)
        self._options.update(api_key=key, headers=own)
        private = {"Authorization": f"Bearer {key}", **own} if key else own
        words = {word for v in private.values() for word in (v, *v.split()) if len(word) > 7}
        self._secrets = sorted(words, key=len, reverse=True)  # one may begin another
        public = {"Host": self._origin.partition("//")[2], "Accept-encoding": "identity"}
        public["User-agent"] = "completions/{} Python/{}.{}".format(__version__, *sys.version_info)
        self._headers = {**public, "Content-type": "application/json", **private}
        self._connections = _KeepAlive(ssl_context)
        self._opener = functools.lru_cache(maxsize=1)(functools.partial(_opener, self._connections))

    @_parameters_of(CompletionsRequest.__init__)
    def create(self, *args: Any, **kwargs: Any) -> CompletionsResponse:
        """The completion of a prompt; the parameters are those of `CompletionsRequest`. Raises
        `TypeError`, `ValueError` for what is wrong in the call, `APIError` for the rest:
        `APIStatusError` for a status that is no 2xx, `APIConnectionError` for none or a cut answer,
        `APITimeoutError` after the timeout, `APIResponseValidationError` for no completion."""
        return self._call(_request(*args, **kwargs).to_json(), self._response)

    @_parameters_of(CompletionsRequest.__init__)
    def create_stream(self, *args: Any, **kwargs: Any) -> CompletionsStream:
        """The same, piece by piece: a `CompletionsStream`, once its first event has arrived."""
        request = _request(*args, **kwargs)
        body = f'{request.to_json()[:-1]}, "stream": true}}'
        batch = isinstance(request.prompt, list) and not all(map(_FITS["int"], request.prompt[:1]))
        asked = (len(request.prompt) if batch else 1) * max(request.n or 1, 1)
        return self._call(body, functools.partial(CompletionsStream, self, asked))

    @_parameters_of(__init__)
    def with_options(self, **changes: Any) -> Client:
        """A client that differs in the options named; shares the connections unless `ssl_context`
        is one of them. `headers` are added to those there are; to a `base_url` of another origin
        neither they nor the key go along. Cheap: `client.with_options(timeout=9).create(...)`."""
        kept: Json = {**self._options}
        if "base_url" in changes and _endpoint(changes["base_url"])[2] != self._origin:
            kept.update(api_key=None, headers={})
        changes["headers"] = {**kept["headers"], **_checked_headers(changes.get("headers"))}
        client = object.__new__(type(self))
        vars(client).update(vars(self))
        Client.__init__(client, **{**kept, **changes})
        if "ssl_context" not in changes:
            client._connections, client._opener = self._connections, self._opener
        return client

    def close(self) -> None:
        """Closes the connections: idle ones now, others with their answers. Calls make new ones."""
        self._connections.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(type(self), **self._options), ()

    def _call(self, body: str, finish: Callable[[_Connection, float], R]) -> R:
        deadline, attempt = _deadline(self._options["timeout"]), 0
        while True:
            try:
                return self._try(body.encode(), finish, deadline)
            except APIError as error:
                told, jitter = getattr(error, "retry_after", None), time.perf_counter() * 1e5 % 0.25
                wait = 0.5 * 2 ** min(attempt, 4) * (1 - jitter) if told is None else told
                late = wait > min(120, deadline - time.monotonic())
                if late or attempt >= self._options["max_retries"] or not _may_help(error):
                    raise
            time.sleep(wait)
            attempt += 1

    def _try(self, body: bytes, finish: Callable[[_Connection, float], R], deadline: float) -> R:
        from urllib.request import Request

        began, connection, status, request_id = time.monotonic(), None, None, None
        try:
            request = Request(self._url, body, self._headers, self._origin)
            connection = self._opener().open(request, timeout=_time_left(deadline))
            status, headers = connection.response.status, connection.headers
            if "x-request-id" in headers:
                headers["x-request-id"] = request_id = self._message(headers["x-request-id"])
            if not 200 <= status < 300:
                raise self._status_error(connection)
            encoding = (headers.get("content-encoding") or "identity").lower()
            if encoding != "identity":
                message = self._message(f"the answer came with Content-Encoding: {encoding}")
                data = _json_value(connection.error_body())
                raise APIResponseValidationError(message, body=data)
            answer, connection = connection, None  # which `finish` releases
            return finish(answer, deadline)
        except APIError as error:
            error.request_id = request_id
            raise
        except _network_errors() as why:
            raise self._failure(why, APIConnectionError, deadline, request_id=request_id) from why
        except ValueError:  # whose text may quote a password
            raise APIConnectionError("the URL of the server or a proxy cannot be used") from None
        finally:
            if connection:
                self._connections.release(connection)
            get_logger = getattr(sys.modules.get("logging"), "getLogger", None)
            if get_logger:
                facts = self._shown_url, status, time.monotonic() - began, request_id
                get_logger(__name__).debug("POST %s: %s in %.3f s, request id %s", *facts)

    def _response(self, connection: _Connection, _: float) -> CompletionsResponse:
        try:
            body = _json_value(connection.whole_body(self._options["max_response_bytes"]))
            self._refuse_error(body)
            response = CompletionsResponse.from_dict(body)
            response.request_id = connection.headers.get("x-request-id")
            return response
        finally:
            self._connections.release(connection)

    def _refuse_error(self, body: Any, kind: bytes = b"") -> None:
        """Raises for an error, which in older vLLM has the second form, or text, as the answer."""
        told = _is(body, dict) and (body.get("error") is not None or body.get("object") == "error")
        if told or kind == b"error":
            reason, details = _reason(body)
            reason = self._message(reason) or self._message(f"an unexplained error {details or ''}")
            raise APIError(reason, body=body, **details)
        if isinstance(body, (bytes, str)):
            said = _reason(body)[0] or f"{len(body)} bytes, no text"
            text = self._message(f"POST {self._shown_url}: no JSON object: {said}")
            raise APIResponseValidationError(text, body=body)

    def _status_error(self, answer: _Connection) -> APIStatusError:
        data, status, headers = answer.error_body(), answer.response.status, answer.headers
        for secret in self._secrets:
            data = data.replace(secret.encode("latin-1"), b"***")
        body = _json_value(data)
        said, details = _reason(body)
        hint = f" (POST {self._shown_url})" if status == 404 else ""
        if isinstance(body, bytes):
            said = f"{len(body)} bytes, no text but {headers.get('content-encoding', 'binary')}"
        elif 300 <= status < 400 and "location" in headers:
            said = f"redirects, which are not followed, to {headers['location']}"
        elif status == 401 and not {"Authorization", "Api-key", "X-api-key"} & self._headers.keys():
            names = [*_keys(self._origin)] or ["COMPLETIONS_BASE_URL and COMPLETIONS_API_KEY"]
            hint = f" (no key was sent: give api_key, or set {' or '.join(names)} at the start)"
        said = self._message(said) or self._message(data.strip().decode()) or answer.response.reason
        wait = _seconds(headers.get("retry-after-ms", ""), 1000)
        wait = _seconds(headers.get("retry-after", "")) if wait is None else wait
        kind: type[APIStatusError] = _ERRORS.get(min(status, 500), APIStatusError)
        details.update(status_code=status, headers=headers, retry_after=wait, body=body)
        return kind(self._message(f"HTTP {status}: {said}{hint}"), **details)

    def _failure(self, why: Any, kind: type[APIError], *ends: float, **more: Any) -> APIError:
        """The error of ours for what broke; after a deadline, that of its timeout."""
        for name, end in zip(("timeout", "idle_timeout"), ends):
            if time.monotonic() >= end:
                limit = f"the {name} of {self._options[name]} s"
                return APITimeoutError(f"POST {self._shown_url}: no answer within {limit}", **more)
        said = re.sub(r"IncompleteRead\(.*", "the answer was cut", f"{type(why).__name__}: {why}")
        return kind(self._message(f"POST {self._shown_url}: {said}"), **more)

    def _message(self, text: str) -> str:
        """`text` as a message can hold it: without secrets, printable, on one line, cut short."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        words = " ".join("".join(c if c.isprintable() else " " for c in text[:5000]).split())
        return words if len(words) <= 500 else f"{words[:500]}..."


def _endpoint(base_url: str | None) -> tuple[str, str, str]:
    """The base URL, the URL of the endpoint, and its origin."""
    if base_url is None:
        base_url = os.environ.get("COMPLETIONS_BASE_URL") or "https://api.atoma.network/v1"
    _check("base_url", "str", base_url)
    host_port = r"(\[[\da-fA-F:.]+\]|[^\0-,/:-@\[-^`{-\x9f]+)((?::\d{1,5})?)"
    form = rf"(https?)://{host_port}((?:/[!-\"$->@-~]*)?)(\?[!-\"$-~]*)?"
    match: Any = re.fullmatch(form, base_url.strip(), re.IGNORECASE | re.ASCII)
    try:
        scheme, host, port, path, query = match.groups("")
        host = host.lower().encode("ascii" if host.isascii() else "idna").decode()
        match = re.fullmatch(host_port, host + port)  # for IDNA makes "@" of "\uff20", and others
        range(1, 65536).index(int(match.group(2)[1:] or 1))  # a ValueError for what is no port
    except (AttributeError, ValueError):
        rule = "http:// or https://, a host, perhaps a port, a path, a query; no user or password"
        raise ValueError(f"base_url: expected {rule} (default: $COMPLETIONS_BASE_URL)") from None
    origin = re.sub("^(http:.*):80$|^(https:.*):443$", r"\1\2", f"{scheme.lower()}://{host}{port}")
    return base_url, f"{origin}{path.rstrip('/')}/completions{query}", origin


def _keys(origin: str) -> dict[str, str]:
    """The environment variables for the key of an origin, and what they hold."""
    hosts = {"ATOMASDK_BEARER_AUTH": "api.atoma.network", "OPENAI_API_KEY": "api.openai.com"}
    names = [name for name, host in hosts.items() if origin == f"https://{host}"]
    try:
        if _endpoint(os.environ.get("COMPLETIONS_BASE_URL", ""))[2] == origin:
            names.insert(0, "COMPLETIONS_API_KEY")
    except ValueError:  # not set, or not to a URL
        pass
    return {name: os.environ.get(name, "").strip() for name in names}


def _key(origin: str, given: str | None) -> str | None:
    keys = _keys(origin) if given is None else {"api_key": given.strip()}
    key = next((key for key in keys.values() if key or given is not None), None)
    if key is not None and not re.fullmatch(r"[!-~]+", key):
        raise ValueError(f"{' or '.join(keys)}: the key (not shown) is empty, spaced or not ASCII")
    return key


def _checked_headers(headers: Mapping[str, str] | None) -> dict[str, str]:
    """The headers, by names as urllib spells them; none may end early and begin another."""
    _check("headers", "Mapping[str, str] | None", headers)
    fields = [(name.capitalize(), value) for name, value in (headers or {}).items()]
    form = r"(?!Content-length\n|Transfer-encoding\n)[!#$%&'*+.^_`|~0-9A-Za-z-]+\n[\t -~\xa0-\xff]*"
    if not all(re.fullmatch(form, f"{name}\n{value}") for name, value in fields):
        raise ValueError("headers: one (not shown) cannot be sent, or is not for a caller to set")
    return {name: value.strip() for name, value in fields}


def _request(prompt: Any, model: Any, **arguments: Any) -> CompletionsRequest:
    for name in arguments.keys() - CompletionsRequest.__annotations__.keys():
        raise TypeError(f"{name}: no parameter; with_options, create_stream, extra={{...}} may do")
    return CompletionsRequest(prompt, model, **arguments)


def _of_default_client(method: Callable[Concatenate[Any, P], R]) -> Callable[P, R]:
    @functools.wraps(method)
    def function(*args: P.args, **kwargs: P.kwargs) -> R:
        return method(_default(), *args, **kwargs)

    vars(function)["__signature__"] = inspect.signature(functools.partial(method, None))
    function.__qualname__ = method.__name__  # where pickle looks it up
    return function


_default = functools.lru_cache(maxsize=None)(Client)
create = _of_default_client(Client.create)
create_stream = _of_default_client(Client.create_stream)


# -------------------------------------------------------------------------------------- the stream


class CompletionsStream(_Closing):
    """The chunks of a completion as they arrive, each a `CompletionsResponse`.

    It ends when the answer is whole: at `data: [DONE]`, or with the connection if every choice that
    was asked for has its finish_reason. Else it raises, with what came as `partial`:
    `StreamInterruptedError` (the connection ended), `APITimeoutError` (timeout or idle_timeout),
    `APIResponseValidationError` (an event is no chunk), `APIError` itself (the server reports it).

    `close()`, the end of a `with` block or the loss of the last reference close its connection, so
    that the server stops. A stream belongs to one thread at a time.
    """

    def __init__(self, client: Any, asked: int, answer: _Connection, deadline: float) -> None:
        self.request_id = answer.headers.get("x-request-id")
        self._client, self._asked, self._deadline = client, asked, deadline
        self._connection: _Connection | None = answer
        self._events = _events(answer, client._options["max_response_bytes"])
        self._raw, self._top, self._merged = Json(), Json(), Json()  # last; typed; all so far
        self._choices: dict[int, Json] = defaultdict(lambda: {"text": io.StringIO()})
        self._error: APIError | None = None
        self._first: CompletionsResponse | None = None
        self._first = next(self, None)

    def __iter__(self) -> CompletionsStream:
        return self

    def __next__(self) -> CompletionsResponse:
        if self._first:
            chunk, self._first = self._first, None
            return chunk
        connection, idle_timeout = self._connection, self._client._options["idle_timeout"]
        if not connection:
            raise copy.copy(self._error) if self._error else StopIteration
        try:
            if time.monotonic() >= self._deadline:
                raise TimeoutError
            if idle_timeout is not None:
                connection.wire.deadline = min(self._deadline, _deadline(idle_timeout))
            for kind, data in self._events:
                return self._chunk(kind, data)
            if not connection.done and not self._is_whole():
                raise ConnectionError("the connection ended before the answer did")
        except APIError as error:
            raise self._failed(error)
        except _network_errors() as why:
            if time.monotonic() >= connection.wire.deadline or not self._is_whole():
                ends: Any = (StreamInterruptedError, self._deadline, connection.wire.deadline)
                raise self._failed(self._client._failure(why, *ends)) from why
        except BaseException as why:
            self._failed(StreamInterruptedError(f"interrupted by {type(why).__name__}"))
            raise
        self.close()
        raise StopIteration

    @property
    def response(self) -> CompletionsResponse:
        """What has arrived so far, merged into one; after the loop, the whole answer.

        At the top `id`, `object`, `created` and `model` are the first that are not empty; in a
        choice, texts and lists are joined, also in its log-probs. Anything else is the last that is
        not null. Made anew each time, at the cost of all the text.
        """
        choices = [{**_plain(self._choices[i]), "index": i} for i in sorted(self._choices)]
        response = CompletionsResponse.from_dict({**self._merged, "choices": choices})
        response.request_id = self.request_id
        return response

    def close(self) -> None:
        """Ends the stream. What has not been read is lost."""
        connection, self._connection, self._first = self._connection, None, None
        if connection:
            self._client._connections.release(connection)

    def _failed(self, error: APIError) -> APIError:
        self.close()
        error.partial, error.request_id = self.response, self.request_id
        self._error = copy.copy(error)  # not itself, whose traceback refers to this stream
        return error

    def _chunk(self, kind: bytes, data: bytes) -> CompletionsResponse:
        """The chunk of an event, once merged; all but its choices is typed only if it changed."""
        body = _json_value(data)
        parts: Any = body.get("choices") if _is(body, dict) else False
        self._raw["choices"] = parts
        if not (_is(parts, list) and self._top) or body != self._raw or kind == b"error":
            self._client._refuse_error(body, kind)
            parts = [] if parts is None and kind != b"\n" else parts
            self._raw = Json(body, choices=[]) if _is(parts, list) else body
            self._top.update(vars(_new(CompletionsResponse, self._raw)), request_id=self.request_id)
            first = {n for n in ("id", "object", "created", "model") if self._merged.get(n)}
            self._merged.update({n: v for n, v in body.items() if v is not None and n not in first})
        chunk = CompletionsResponse.__new__(CompletionsResponse)
        chunk.__dict__ = Json(self._top, choices=[], extra={**self._top["extra"]})
        choices = chunk.choices
        for part in parts:
            choices.append(_new(CompletionChoice, part, len(choices), body))
        for choice, part in zip(choices, parts):
            whole = self._choices[choice.index]
            whole["text"].write(choice.text)
            if choice.finish_reason is not None or choice.logprobs or choice.extra:
                _merge(whole, {**part, "text": None})
        return chunk

    def _is_whole(self) -> bool:
        """Whether all the choices that were asked for, and all that came, are finished."""
        finished = [choice for choice in self._choices.values() if choice.get("finish_reason")]
        return self._asked <= len(finished) == len(self._choices)


def _merge(whole: Json, part: Json, nested: str | None = "logprobs") -> None:
    """Adds a choice, or the `nested` object in it, to what came before."""
    for name, value in part.items():
        make, join = _JOINED.get(type(value), (None, None))
        if make and name != "finish_reason" and (type(value) is not dict or name == nested):
            if type(whole.get(name)) is not make:
                whole[name] = make()
            join(whole[name], value)
        elif value is not None and (value != "" or name not in whole):  # an empty finish_reason
            whole[name] = value


def _plain(merged: Json) -> Json:
    """A JSON object that does not change any more."""
    return {name: _COPIES.get(type(value), copy.copy)(value) for name, value in merged.items()}


# What a value is joined in, and how. A defaultdict is what _merge made, not JSON as it came.
_JOINED: dict[Any, Any] = {dict: (defaultdict, functools.partial(_merge, nested=None))}
_JOINED.update({str: (io.StringIO, io.StringIO.write), list: (list, vars(list)["extend"])})
_COPIES: dict[Any, Any] = {io.StringIO: io.StringIO.getvalue, defaultdict: _plain}


def _events(connection: _Connection, limit: int) -> Iterator[tuple[bytes, bytes]]:
    """The type and the data of each server-sent event of a body, as in
    https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation.
    A body that is JSON, HTML, or text comes as one event of a type that no line can name."""
    blank, (lf, cr), after_cr = b"\xef\xbb\xbf \t\r\n\v\f", b"\n\r", False
    line: Any = b""  # it and data are a bytearray once they grow, else copying would cost most
    piece = more = kind = data = line  # blank lines before the first event are dropped
    while not (connection.over or more.strip(blank) or len(piece) > 4):  # mark and blank
        more = connection.piece()
        piece = re.sub(rb"\A([\xef\xbb\xbf\s]*(\s(?=\s)|\r|\n))?(\xef\xbb\xbf)*", b"", piece + more)
    sse = "event-stream" in connection.headers.get("content-type", "")
    if re.match(rb"[{[<]" if sse else rb"[^:deir]", piece.strip(blank)):  # data, event, id, retry
        yield b"\n", connection.whole_body(limit, piece)
        connection.done = True
        return
    while piece:
        if after_cr or cr in piece:
            piece, after_cr = piece[after_cr and piece[:1] == b"\n" :], piece[-1:] == b"\r"
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if lf in piece:
            *lines, line = (bytes(line) + piece if line else piece).split(b"\n")
        else:
            lines, line = [], bytearray(line) if type(line) is bytes else line
            line += piece
        for text in lines:
            if text:
                name, _, value = text.partition(b":")
                value = value[1:] if value[:1] == b" " else value
                if name == b"data" or name == b"error":  # the latter from an older llama.cpp
                    kind = name if name == b"error" else kind
                    data = bytearray(data) if data and type(data) is bytes else data
                    data += b"\n" + value if data else value
                elif name == b"event":
                    kind = value
            elif data[:6] == b"[DONE]":
                connection.done = True  # though the last bytes of the body may be to come
                return
            elif len(data) <= limit:  # else it is refused below
                if data and data != b"null" or kind == b"error":  # llama.cpp begins with a null
                    yield kind, data if type(data) is bytes else bytes(data)
                kind = data = b""
        if len(line) + len(data) > limit:
            raise _too_large("an event", limit)
        piece = connection.piece()


def _too_large(what: str, limit: int, body: bytes | None = None) -> APIResponseValidationError:
    return APIResponseValidationError(f"{what} exceeds max_response_bytes of {limit}", body=body)


# -------------------------------------------------------------- the transport, private from here on

_NOW = float("-inf")  # a deadline for what is there already
# Headers have 16 kB, as in Node: the email package takes quadratic time for some.
_CONNECT_SECONDS, _IDLE_SECONDS, _IDLE_CONNECTIONS, _HEAD = 10, 60, 32, 16384
_TCP_OPTIONS = {"NODELAY": 1, "KEEPIDLE": 60, "KEEPALIVE": 60, "KEEPINTVL": 60, "KEEPCNT": 5}


def _network_errors(*more: type[Exception]) -> tuple[type[Exception], ...]:
    from http.client import HTTPException

    return (OSError, HTTPException, *more)


def _deadline(seconds: float | None) -> float:
    return float("inf") if seconds is None else time.monotonic() + max(0, min(seconds, 1e9))


def _time_left(deadline: float) -> float:
    """Seconds, as many as sockets can count; raises `TimeoutError` when the deadline has passed."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return (left if left < 2_000_000 else 2_000_000.0) + 0.001  # PyPy's wake up a little early


class _Socket(io.RawIOBase):
    """A socket to read from until `deadline`; closed with its last reference."""

    def __init__(self, sock: Any, deadline: float) -> None:
        self.sock, self.deadline = sock, deadline
        self.room, self.ended = 0.0, False  # how many bytes more may come; whether none will

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.sock.settimeout(0 if self.deadline == _NOW else _time_left(self.deadline))
        if not self.room:
            raise ConnectionError(f"the headers exceed {_HEAD} bytes")
        size: int = self.sock.recv_into(buffer, min(len(buffer), self.room))
        self.room, self.ended = self.room - size, not size
        return size

    def close(self) -> None:
        self.sock.close()


class _Reader(io.BufferedReader):
    """What `http.client` takes for a socket: it reads from it, and cannot close it."""

    def makefile(self, _: str) -> _Reader:
        return self

    def close(self) -> None:
        pass


class _Connection:
    """A connection and the exchange that is going on over it."""

    def __init__(self, wire: _Socket, key: tuple[Any, ...]) -> None:
        self.wire, self.key, self.over = wire, key, True  # over: no body is being read
        self.reader: Any = _Reader(wire, 65536)

    def ask(self, deadline: float, line: tuple[str, str], fields: Any, body: bytes) -> _Connection:
        """Sends a request and reads the answer up to its body."""
        from http.client import HTTPConnection

        client, message, self.wire.room = HTTPConnection(self.key[2]), io.BytesIO(), _HEAD
        client.sock, vars(client)["send"] = self.reader, message.write
        try:
            client.putrequest(*line, skip_host=True, skip_accept_encoding=True)
            for name, value in fields():
                client.putheader(name, value)
            client.endheaders(body)
            # getbuffer() would copy nothing, and crash Python 3.12.0 and 3.12.1: gh-111049
            sent, self.wire.deadline = self.send(memoryview(message.getvalue()), deadline), deadline
            self.response = client.getresponse()
            if self.wire.ended:
                raise ConnectionError("the connection ended in the middle of the headers")
        except BaseException as why:
            self.wire.close()
            raise ConnectionError("invalid headers") if _is(why, (TypeError, ValueError)) else why
        self.headers = {name.lower(): value.strip() for name, value in self.response.getheaders()}
        self.getcode = getattr(self.response, "getcode")  # urllib's, for tracers
        self.reusable = sent and not self.response.will_close and self.response.status >= 200
        self.over, self.done, self.body, self.wire.room = False, False, io.BytesIO(), float("inf")
        return self

    def send(self, data: memoryview, deadline: float) -> bool:
        """Whether all was sent: not if it broke, or something came back before the end."""
        import socket

        while data:
            self.wire.sock.settimeout(min(_time_left(deadline), 0.1))
            try:
                data = data[self.wire.sock.send(data[:65536]) :]
            except OSError as error:  # the server's answer may be there all the same
                if not isinstance(error, socket.timeout):
                    return False
            if data and not self.is_quiet() and self.reader.peek(12)[9:10] not in (b"", b"1", b"2"):
                return False
        return True

    def piece(self) -> bytes:
        """The next piece of the body; b"" at its end. Raises one of `_network_errors` if cut."""
        piece = self.response.read1(65536)
        if self.response.length and not piece:
            raise ConnectionError("the connection ended before the answer did")
        self.over = not piece
        return piece

    def whole_body(self, limit: int, start: bytes = b"") -> bytes:
        self.body.write(start)
        while self.body.tell() <= limit:
            if not self.body.write(self.piece()):
                return self.body.getvalue()
        raise _too_large("the answer", limit, self.body.getvalue())

    def error_body(self) -> bytes:
        """The body of an error, as far as it comes in reasonable time and size."""
        self.wire.deadline = min(self.wire.deadline, time.monotonic() + 5)
        try:
            return self.whole_body(1024 * 1024)
        except _network_errors(APIResponseValidationError):
            return self.body.getvalue()[: 1024 * 1024]

    def is_quiet(self) -> bool:
        """Whether the body is at its end, and nothing follows, without waiting for it."""
        self.wire.deadline, self.wire.room = _NOW, min(self.wire.room, _HEAD)  # trailers too
        try:
            if not self.over:
                self.piece()
            self.reader.peek(1)
        except _network_errors() as error:  # by name, for ssl may not have been imported
            return self.over and type(error).__name__ in ("BlockingIOError", "SSLWantReadError")
        return False


class _KeepAlive:
    """The handler with which `urllib.request` opens http and https: it keeps connections."""

    def __init__(self, context: Any) -> None:
        self.context, self.room = context, _IDLE_CONNECTIONS
        self.idle: dict[_Connection, float] = {}  # since when

    def add_parent(self, _: Any) -> None:
        pass

    def http_open(self, request: Any) -> _Connection:
        """A connection on which the answer has begun, a kept one where there is one."""
        began, deadline, self.room = time.monotonic(), _deadline(request.timeout), _IDLE_CONNECTIONS
        tunnel = getattr(request, "_tunnel_host", None)  # to the server: `host` is its proxy
        credentials = request.headers.pop("Proxy-authorization", None) if tunnel else None
        key = os.getpid(), request.type, request.host, tunnel, credentials
        request.headers["Content-length"] = str(len(request.data))
        # What shows the variables of an error's frames, as Sentry does, shows no key in a method.
        post = ("POST", request.selector), request.header_items, request.data
        connection = self.kept(key)
        if connection:
            try:
                return connection.ask(deadline, *post)
            except _network_errors():
                if connection.wire.room < _HEAD or time.monotonic() >= min(began + 1, deadline):
                    raise
        return self.connected(key, deadline).ask(deadline, *post)

    https_open = http_open

    def kept(self, key: tuple[Any, ...]) -> _Connection | None:
        """An idle connection that is still good; the too old, and another process's, are closed."""
        good, oldest = None, time.monotonic() - _IDLE_SECONDS
        for connection in list(self.idle)[::-1]:
            dead = connection.key[0] != key[0] or self.idle.get(connection, _NOW) <= oldest
            if (dead or not good and connection.key == key) and self.idle.pop(connection, None):
                good = connection if not dead and connection.is_quiet() else good
                if good is not connection:
                    connection.wire.close()
        return good

    def release(self, connection: _Connection) -> None:
        """Keeps a connection, not its answer, if that was read to its end; closes any other."""
        whole, connection.body = connection.over or connection.done, io.BytesIO()
        if whole and connection.reusable and len(self.idle) < self.room:
            self.idle[connection] = time.monotonic()
        else:
            connection.wire.close()

    def close(self) -> None:
        self.room = 0
        self.kept((None,))  # for no process: all are closed

    def connected(self, key: tuple[Any, ...], deadline: float) -> _Connection:
        """A new connection, through a proxy's tunnel and with TLS where they are called for."""
        from urllib.parse import urlsplit

        _, scheme, host, tunnel, secret = key
        limit, target = min(deadline, time.monotonic() + _CONNECT_SECONDS), urlsplit(f"//{host}")
        try:
            if scheme == "https" and not self.context:
                import ssl

                self.context = ssl.create_default_context()
                self.context.set_alpn_protocols(["http/1.1"])
            port = target.port or (443 if scheme == "https" and not tunnel else 80)
            wire = _Socket(_connected_socket(target.hostname or "", port, limit), limit)
            if tunnel:
                target = urlsplit(f"//{tunnel}")
                at = tunnel if target.port else f"{tunnel}:443"
                head = {"Host": at, **({"Proxy-Authorization": secret} if secret else {})}
                said = _Connection(wire, key).ask(limit, ("CONNECT", at), head.items, b"").response
                if said.status != 200:
                    wire.close()
                    raise ConnectionError(f"no tunnel: the proxy said {said.status} {said.reason}")
            if scheme == "https":
                wire.sock.settimeout(_time_left(limit))
                wire.sock = self.context.wrap_socket(wire.sock, server_hostname=target.hostname)
            weakref.finalize(wire, wire.sock.close)  # or a cycle's end would warn of the socket
            return _Connection(wire, key)  # without what a proxy sent in the clear
        except OSError as error:
            if time.monotonic() >= limit:
                raise ConnectionError(f"no connection within {_CONNECT_SECONDS} s") from error
            raise


def _connected_socket(host: str, port: int, deadline: float) -> Any:
    """A TCP connection to the first address of the host that answers; they share the time."""
    import socket

    addresses = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)  # as urllib: some patch it
    while True:
        family, kind, protocol, _, address = addresses.pop(0)
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(_time_left(deadline) / (len(addresses) + 1))
            sock.connect(address)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _TCP_OPTIONS.items():
                if hasattr(socket, f"TCP_{name}"):
                    sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_{name}"), value)
            return sock
        except BaseException as error:
            sock.close()
            if not isinstance(error, OSError) or not addresses:
                raise


def _opener(handler: Any) -> Any:
    """An opener for http and https, through the environment's proxies, and for nothing else."""
    from urllib.request import OpenerDirector, ProxyHandler, UnknownHandler

    opener = OpenerDirector()
    for each in (handler, ProxyHandler(), UnknownHandler()):
        opener.add_handler(each)
        vars(each)["parent"] = weakref.proxy(opener)  # no cycle: it goes with its last reference
    return opener


# -------------------------------------------------------------------------------- the command line


def main(argv: list[str] | None = None) -> int:
    """Runs the command line, and returns its exit code: 0; 1 if the request failed, with one line
    on standard error; 2 for wrong usage; 130 for Ctrl-C. A closed pipe is no error."""
    import argparse
    import json

    def pair(text: str) -> tuple[str, Any]:
        return text.partition("=")[0], json.loads(text.partition("=")[2])

    helps = dict(re.findall(r"^ *(\w+)  +(\S.+)", CompletionsRequest.__doc__ or "", re.MULTILINE))
    parser = argparse.ArgumentParser(prog="completions", description="Completes a prompt.")
    parser.add_argument("prompt", nargs="?", help="by default what standard input holds")
    parser.add_argument("--model", required=True, help=helps.get("model"))
    parser.add_argument("--base-url", help="by default $COMPLETIONS_BASE_URL, else Atoma's")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds, 600 by default")
    parser.add_argument("--json", action="store_true", help="print the whole response, as JSON")
    parser.add_argument("-v", "--verbose", action="store_true", help="usage and speed, to stderr")
    parser.add_argument("--extra", action="append", default=[], metavar="KEY=JSON", type=pair)
    hows: dict[str, Any] = {"int": {"type": int}, "float": {"type": float}, "str": {"type": str}}
    hows.update(bool={"action": "store_true", "default": None}, stop={"action": "append"})
    for name, annotation in list(CompletionsRequest.__annotations__.items())[2:-1]:
        how = hows.get(name) or hows.get(annotation.split()[0], {"type": json.loads})
        parser.add_argument(f"--{name.replace('_', '-')}", help=helps.get(name), **how)
    try:
        options = vars(parser.parse_args(argv))
        options["extra"] = dict(options["extra"])
        options["prompt"] = sys.stdin.read() if options["prompt"] is None else options["prompt"]
        client = Client(base_url=options.pop("base_url"), timeout=options.pop("timeout"))
        _run(client, options.pop("json"), bool(options.pop("verbose") and sys.stderr), options)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (KeyboardInterrupt, SystemExit) as end:
        return getattr(end, "code", 130)  # argparse's has one
    except Exception as error:
        print(f"completions: {error}", file=sys.stderr or io.StringIO())
        return 1 if isinstance(error, (APIError, ArithmeticError, OSError)) else 2
    return 0


def _run(client: Client, as_json: bool, verbose: bool, request: dict[str, Any]) -> None:
    began = time.monotonic()
    if as_json:
        response = client.create(**request)
        _show(f"{response.to_json()}\n")
    else:
        if verbose and request["stream_options"] is None:
            request["stream_options"] = {"include_usage": True}
        stream = client.create_stream(**request)
        try:
            for chunk in stream:
                _show("".join(choice.text for choice in chunk.choices if choice.index == 0))
        finally:
            response = stream.response
            others = "".join(f"\n{choice.text}" for choice in response.choices if choice.index)
            _show(others + "\n" * (sys.stdout.isatty() and (response.text + others)[-1:] != "\n"))
    if verbose:
        usage, seconds = response.usage or Usage(), max(time.monotonic() - began, 0.001)
        speed = f"{seconds:.2f} s, {usage.completion_tokens / seconds:.1f} tokens/s"
        print(f"{usage.prompt_tokens} + {usage.completion_tokens} tokens, {speed}", file=sys.stderr)


def _show(text: str) -> None:
    """Writes text at once; to a terminal with its control characters shown, not obeyed."""
    if sys.stdout.isatty():
        text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda match: repr(match[0])[1:-1], text)
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), end="", flush=True)


# Not where the file was pasted into a notebook, or run by exec. Folder and ending may differ.
_paths = main.__code__.co_filename, globals().get("__file__", "?")
if __name__ == "__main__" and len({os.path.basename(path).split(".")[0] for path in _paths}) == 1:
    sys.exit(main())

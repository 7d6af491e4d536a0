#!/usr/bin/env python3
"""Fuzz completions.py, through its public API and real sockets, for some seconds in all.

    .ci/fuzz.py [SECONDS] [--seed N]    60 seconds by default; needs hypothesis

The properties take turns until the time is over. What fails is shown as small as it can be made,
with the seed that finds it again.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import random
import re
import sys
import threading
import time
import traceback
import types
import typing
import warnings

import hypothesis
from hypothesis import strategies as st

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import completions as c
import test_completions as t

CLASSES = [c.CompletionsResponse, c.CompletionChoice, c.LogProbs, c.Usage]
CLASSES += [c.CompletionTokensDetails, c.PromptTokensDetails]
FIELDS = sorted({field.name for cls in CLASSES for field in dataclasses.fields(cls)})
PARAMETERS = [field.name for field in dataclasses.fields(c.CompletionsRequest)]
EXAMPLES = 100  # of a property, before it is the next one's turn
hypothesis.settings.register_profile(
    "fuzz",
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    report_multiple_bugs=False,
    suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.load_profile("fuzz")
# What fails is shown; how large the strategies are that it came from would hide it.
warnings.simplefilter("ignore", hypothesis.errors.HypothesisWarning)
REFERENCE, SCRIPTED = t.ReferenceServer(), t.ScriptedServer()

# ------------------------------------------------------------------------------- JSON and objects

any_float = st.floats() | st.sampled_from([1e308, -0.0, 1e-320, math.inf, -math.inf, 1.5])
any_int = st.integers() | st.sampled_from([0, -1, 2**31, 2**63, 10**4000])
any_text = st.text() | st.sampled_from(
    ["\x1b", "", "\ud800", "\u2028", "2021-01-01T00:00:00Z", "[DONE]"]
)
scalars = st.none() | st.booleans() | any_int | any_float | any_text
names = st.sampled_from([*FIELDS, "error", "stop_reason"]) | any_text
any_json = st.recursive(
    scalars,
    lambda v: st.lists(v, max_size=4) | st.dictionaries(names, v, max_size=6),
    max_leaves=20,
)


def nearly(cls: type) -> st.SearchStrategy:
    """JSON objects that are nearly right for a class: some of its fields, most with right types."""
    hints = typing.get_type_hints(cls)
    hints.pop("extra"), hints.pop("request_id", None)
    fields = {name: fitting(hint) | any_json for name, hint in hints.items()}
    known = st.fixed_dictionaries({}, optional=fields)
    return st.builds(
        lambda a, b: {**a, **b}, st.dictionaries(any_text, any_json, max_size=2), known
    )


def fitting(hint: typing.Any) -> st.SearchStrategy:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return st.one_of([fitting(argument) for argument in arguments])
    if origin is list:
        return st.lists(fitting(arguments[0]), max_size=4)
    if origin is dict:
        return st.dictionaries(any_text, fitting(arguments[1]), max_size=3)
    if dataclasses.is_dataclass(hint):
        return st.deferred(lambda: nearly(hint))
    kinds = {str: any_text, int: any_int, float: any_float | any_int, type(None): st.none()}
    return kinds.get(hint, any_json)


def is_typed(value: object, hint: typing.Any) -> bool:
    """Whether a value is what an annotation says: a bool is no int, an int is a float."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(is_typed(value, argument) for argument in arguments)
    if origin is list:
        return type(value) is list and all(is_typed(item, arguments[0]) for item in value)
    if origin is dict:
        pairs = value.items() if type(value) is dict else [(None, None)]
        return all(type(k) is str and is_typed(v, arguments[1]) for k, v in pairs)
    if dataclasses.is_dataclass(hint):
        return type(value) is hint and not untyped_fields(value)
    if hint in (object, typing.Any):
        return True
    return type(value) in ((int, float) if hint is float else (hint,))


def untyped_fields(record: object) -> list:
    hints = typing.get_type_hints(type(record))
    return [name for name, hint in hints.items() if not is_typed(getattr(record, name), hint)]


def plain(value: object) -> object:
    """A value that equals another of the same content, though NaN is in it."""
    return json.dumps(value, sort_keys=True)


def keeps(data: object, kept: object) -> bool:
    """Whether nothing of a JSON object that came was lost; but null is as good as absent."""
    if isinstance(data, dict) and isinstance(kept, dict):
        return all(v is None or (n in kept and keeps(v, kept[n])) for n, v in data.items())
    if isinstance(data, list) and isinstance(kept, list) and len(data) == len(kept):
        return all(map(keeps, data, kept))
    return plain(data) == plain(kept)


@hypothesis.given(
    st.sampled_from(CLASSES).flatmap(lambda k: st.tuples(st.just(k), nearly(k) | any_json))
)
def from_dict_gives_what_its_annotations_say_or_one_error(pair):
    cls, data = pair
    before = plain(data)
    try:
        record = cls.from_dict(data)
    except c.APIResponseValidationError as error:
        assert error.body is data and "\n" not in str(error) and len(str(error)) < 1000, error
        return
    finally:
        assert plain(data) == before, "the argument was changed"
    assert type(record) is cls and not untyped_fields(record), untyped_fields(record)
    out = record.to_dict()
    known = {f.name for f in dataclasses.fields(cls)} - {"extra", "request_id"}
    assert known <= out.keys(), known - out.keys()
    assert plain(cls.from_dict(out).to_dict()) == plain(out)
    assert plain(cls.from_json(record.to_json()).to_dict()) == plain(out)
    if "NaN" not in plain(out):
        assert cls.from_json(record.to_json()) == record == cls.from_dict(out)
    if isinstance(data.get("created"), (float, str)):
        data = {name: value for name, value in data.items() if name != "created"}
    assert keeps(data, out), (data, out)


@hypothesis.given(
    st.sampled_from(CLASSES), st.binary() | any_text | st.builds(json.dumps, any_json)
)
def from_json_takes_any_text(cls, text):
    try:
        assert type(cls.from_json(text)) is cls
    except c.APIResponseValidationError as error:
        assert error.body is not None or text.strip() in ("null", b"null"), error


# ------------------------------------------------------------------------------------- the network


def call(steps: list, streamed: bool, **options) -> tuple:
    """What a call gives for the steps of an answer: the texts, the error, the merged answer."""
    SCRIPTED.replies[:] = [steps]
    texts, stream = [], None
    options = {"timeout": 5, "max_retries": 0, "max_response_bytes": 100_000, **options}
    with c.Client(base_url=SCRIPTED.base_url, **options) as client:
        try:
            if not streamed:
                response = client.create("Say", "m")
                assert not untyped_fields(response), response
                return [response.text], None, response.to_dict()
            with client.create_stream("Say", "m") as stream:
                for chunk in stream:
                    assert not untyped_fields(chunk), chunk
                    texts.append(chunk.to_dict())
            return texts, None, stream.response.to_dict()
        except c.APIError as error:
            assert "\n" not in str(error) and 0 < len(str(error)) < 2000, error
            assert not isinstance(error, c.APITimeoutError), error
            merged = error.partial and error.partial.to_dict()
            return texts, (type(error), re.sub(r"127\.0\.0\.1:\d+", "", str(error))), merged


def cut_up(data: bytes, places: list) -> list:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in zip(edges, edges[1:])]


line_ends = st.sampled_from(["\n", "\r", "\r\n"])
places = st.lists(st.integers(0, 10_000), max_size=6)
chunk_json = nearly(c.CompletionsResponse) | st.builds(
    t.chunk, any_text, st.sampled_from([None, "stop"]), st.integers(0, 2)
)
fragments = st.one_of(
    st.builds(lambda value: f"data: {json.dumps(value)}".encode(), chunk_json | any_json),
    st.sampled_from(
        [b"data: [DONE]", b"data:[DONE]", b"event: error", b": keep-alive", b"data", b"data:", b""]
    ),
    st.binary(max_size=12),
    st.sampled_from(["\u2028", "\x85", "\x0c", "\ufeff", "data: \u00fc", "id: 1"]).map(str.encode),
)
bodies = st.lists(st.tuples(fragments, line_ends.map(str.encode)), max_size=12).map(
    lambda pairs: b"".join(fragment + end * 2 for fragment, end in pairs)
)
ends = st.sampled_from(["whole", "cut", "reset"])


@hypothesis.given(bodies | st.binary(), places, ends, st.sampled_from(["chunked", "bare", "sized"]))
def any_stream_cut_anyhow_gives_chunks_or_an_error(body, cuts, end, framing):
    outcomes = []
    for pieces in ([body] if body else [], cut_up(body, cuts)):
        if framing == "chunked":
            steps = [t.STREAM_HEAD, *(t.framed(piece) for piece in pieces)]
            steps += [t.LAST_CHUNK] if end == "whole" else []
        elif framing == "sized":
            size = len(body) + (end == "cut")
            steps = [b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size, *pieces]
        else:
            steps = [t.BARE_HEAD, *pieces]
        outcomes.append(call([*steps, "close"] if end != "reset" else [*steps, "reset"], True))
    if end != "reset":  # which overtakes what was sent before it
        assert plain(repr(outcomes[0])) == plain(repr(outcomes[1])), outcomes


@hypothesis.given(
    st.lists(st.tuples(any_text.filter(bool), line_ends, st.booleans()), min_size=1, max_size=8),
    places,
    st.booleans(),
)
def any_right_stream_gives_its_text(parts, cuts, bom):
    events = "\ufeff" if bom else ""
    for text, end, split in parts:
        data = json.dumps(t.chunk(text), ensure_ascii="\ud800" in text)
        lines = data.replace(", ", f",{end}data: ") if split and ", " not in text else data
        events += f": comment{end}{end}data:{lines}{end}id: 7{end}{end}"
    body = (events + "data: [DONE]\n\n").encode()
    steps = [t.STREAM_HEAD, *map(t.framed, cut_up(body, cuts)), t.LAST_CHUNK]
    chunks, error, merged = call(steps, True)
    assert error is None, error
    assert [chunk["choices"][0]["text"] for chunk in chunks] == [part[0] for part in parts]
    assert merged["choices"][0]["text"] == "".join(part[0] for part in parts)


header_lines = st.sampled_from(
    "Content-Length: 5|Content-Length: -1|Content-Length: 99999999999999999999|nonsense|: x|"
    "X: \xff|Content-Encoding: gzip|Transfer-Encoding: chunked|Connection: close|Location: x|"
    "Retry-After: x|Retry-After-Ms: 9e999|Content-Type: text/html; charset=x|x-request-id: 1".split(
        "|"
    )
)
statuses = st.sampled_from(
    ["200", "201", "204", "299", "100", "302", "400", "401", "404", "429", "500"]
)


@hypothesis.given(
    st.booleans(),
    st.sampled_from(["HTTP/1.1", "HTTP/1.0", "HTTP/9", "ICY"]),
    statuses | any_text.map(lambda text: text.encode("latin-1", "replace").decode("latin-1")),
    st.lists(header_lines, max_size=4),
    st.binary() | any_json.map(lambda value: json.dumps(value).encode()),
    places,
)
def any_answer_gives_a_response_or_an_error(streamed, version, status, headers, body, cuts):
    head = "\r\n".join([f"{version} {status} Reason", *headers, "", ""]).encode("latin-1")
    _, error, merged = call([*cut_up(head + body, cuts), "close"], streamed)
    assert error or merged is not None
    if status in ("400", "404", "429") and version[:6] == "HTTP/1" and error:
        assert issubclass(error[0], (c.APIStatusError, c.APIConnectionError)), error


# ------------------------------------------------------------------------------------ the requests

prompts = st.one_of(
    st.text(max_size=30),
    st.lists(st.text(max_size=10), min_size=1, max_size=3),
    st.lists(st.integers(0, 255), min_size=1, max_size=5),
    st.lists(st.lists(st.integers(0, 255), min_size=1, max_size=3), min_size=1, max_size=3),
)
parameters = {
    "echo": st.booleans(),
    "frequency_penalty": st.floats(-2, 2),
    "logit_bias": st.dictionaries(st.integers(0, 255).map(str), st.floats(-100, 100), max_size=3),
    "logprobs": st.integers(0, 5),
    "max_tokens": st.integers(0, 3),
    "n": st.integers(1, 3),
    "presence_penalty": st.integers(-2, 2),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "stop": st.text(min_size=1) | st.lists(st.text(min_size=1), max_size=4),
    "suffix": st.text(),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0.01, 1),
    "user": st.text(),
    "extra": st.dictionaries(
        st.text().filter(lambda name: name not in (*PARAMETERS, "stream", "knobs")),
        any_json.filter(
            lambda value: not {"NaN", "Infinity"} & {*re.findall("NaN|Infinity", plain(value))}
        ),
        max_size=3,
    ),
}


@hypothesis.given(prompts, st.fixed_dictionaries({}, optional=parameters), st.booleans())
def any_request_reaches_the_server_as_it_was_meant(prompt, given, streamed):
    request = c.CompletionsRequest(prompt, "m", **given)
    meant = request.to_dict()
    assert json.loads(request.to_json()) == meant
    with c.Client(base_url=REFERENCE.base_url, timeout=30, max_retries=0) as client:
        if streamed:
            with client.create_stream(**vars(request)) as stream:
                list(stream)
            response, sent = stream.response, {**meant, "stream": True}
        else:
            response, sent = client.create(**vars(request)), meant
    assert REFERENCE.requests.pop()["body"] == sent
    several = isinstance(prompt, list) and not isinstance(prompt[0], int)
    count = (len(prompt) if several else 1) * given.get("n", 1)
    assert [choice.index for choice in response.choices] == [*range(count)], response
    if given.get("echo") and isinstance(prompt, str):
        assert response.text.startswith(prompt), response.text


@hypothesis.given(prompts | any_json, st.dictionaries(st.sampled_from(PARAMETERS[1:]), any_json))
def any_arguments_make_valid_json_or_are_refused(prompt, given):
    given.setdefault("model", "m")
    try:
        text = c.CompletionsRequest(prompt, **given).to_json()
    except (TypeError, ValueError) as error:
        assert not isinstance(error, c.APIError), error
        return
    assert json.loads(text, parse_constant=lambda constant: 1 / 0)["prompt"] == prompt


PROPERTIES = [value for value in vars().values() if hasattr(value, "hypothesis")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("seconds", nargs="?", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(10**9))
    parser.add_argument("--only", help="part of the name of a property")
    options = parser.parse_args()
    properties = [p for p in PROPERTIES if not options.only or options.only in p.__name__]
    counts, failed = dict.fromkeys(properties, 0), 0
    deadline, seed = time.monotonic() + options.seconds, options.seed
    sys.set_int_max_str_digits(0)  # json.dumps is to write what json.loads refuses to read
    with REFERENCE, SCRIPTED:
        while not failed and (time.monotonic() < deadline or 0 in counts.values()):
            for check in properties:
                if time.monotonic() > deadline and counts[check]:
                    continue
                try:
                    hypothesis.seed(seed)(check)()
                except Exception as error:
                    failed += 1
                    frames = traceback.extract_tb(error.__traceback__)
                    ours = [frame for frame in frames if "hypothesis" not in frame.filename]
                    print(f"{check.__name__}, seed {seed}:", *getattr(error, "__notes__", []))
                    print(*traceback.format_list(ours), f"{type(error).__name__}: {error}", sep="")
                counts[check] += EXAMPLES
            seed += 1
            for thread in [t for t in SCRIPTED.threads if not t.is_alive()]:
                SCRIPTED.threads.remove(thread)
    for check, count in counts.items():
        print(f"{count:7} x {check.__name__}")
    assert threading.active_count() == 1, threading.enumerate()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

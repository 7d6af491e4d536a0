#!/usr/bin/env python3
"""Point the module's checks at other people's servers of /v1/completions.

    servers.py --base-url http://127.0.0.1:8000/v1 --model NAME    at one that runs already
    servers.py --start mlx-lm guidellm                             at these, see start_server.py

Each check prints a line: `ok`; `differs`, the server answers otherwise than OpenAI's would;
`unsupported`, with the server's own reason; or `FAILED`, which is the module's fault: an exception
that is not one of its own, or an answer whose types, text or connections are not as promised.
Exits 1 when something failed, or a server of --start differs where it is not known to.
"""

import argparse
import concurrent.futures
import re
import subprocess
import sys
import time
import typing
from functools import partial
from pathlib import Path

from start_server import EVERY, SERVERS, running

PROMPT = "the people of the first long day"
UNICODE = "na\u00efve \u65e5 \U0001f642 \u2028 \x85 \x0c"
CLASSES = {400: "BadRequest", 401: "Authentication", 403: "PermissionDenied", 404: "NotFound"}
CLASSES.update({409: "Conflict", 422: "UnprocessableEntity", 429: "RateLimit"})
PENALTIES = {"presence_penalty": 2, "frequency_penalty": 2}
ALL = {"top_p": 0.9, "user": "me", "logit_bias": {"50": -99}, "stop": ["~"], "seed": 1, "n": 1}
ANSWERED = {  # how many choices are to come of these parameters, plain and streamed
    "n_choices": (3, {"n": 3, "temperature": 1}),
    "best_of": (1, {"best_of": 2, "temperature": 1}),
    "token_prompt": (1, {"prompt": [40, 50, 60]}),
    "token_prompts": (2, {"prompt": [[40, 50, 60], [70, 80]]}),
    "echo_logprobs": (1, {"echo": True, "logprobs": 1}),
    "every_parameter": (1, {"best_of": 1, "echo": False, "logprobs": 1, **ALL, **PENALTIES}),
    "suffix": (1, {"suffix": " and so on"}),
    "long_prompt": (1, {"prompt": "the people of " * 4000, "max_tokens": 1}),
}
EQUAL = {  # two that are to give the same text, plain and streamed
    "seed": ({"temperature": 1, "seed": 7}, {"temperature": 1, "seed": 7}),
    "extra": ({"temperature": 1, "extra": {"top_k": 1}}, {}),
    "unicode": ({"prompt": UNICODE}, {"prompt": UNICODE}),
}
REFUSED = {  # what is no good; what begins with _ is an option of the client
    "unknown_model": {"model": "no-such-model"},
    "bad_parameter": {"temperature": -1},
    "bad_path": {"_base_url": "{}/no/such"},
    "wrong_key": {"_api_key": "wrong"},
}


class Differs(Exception):
    """The answer is sound, and not what OpenAI's would be."""


def same(got, expected, what):
    if got != expected:
        raise Differs(f"{what}: {got!r:.90}, not {expected!r:.90}")


def fits(value, kind):
    """Whether a value is of an annotated type; bool is no int, an int is a float."""
    inner = typing.get_args(kind)
    if typing.get_origin(kind) is list:
        return type(value) is list and all(fits(item, inner[0]) for item in value)
    if typing.get_origin(kind) is dict:
        return type(value) is dict and all(fits(item, inner[1]) for item in value.values())
    if inner:
        return any(fits(value, item) for item in inner)
    return kind in (typing.Any, object, type(value)) or (kind is float and type(value) is int)


class Checks:
    """Each method without an underscore is a check; what it returns is printed after its `ok`."""

    def __init__(self, module, base_url, model):
        self._module, self._url, self._model = module, base_url, model
        self._client = module.Client(base_url=base_url, timeout=120, max_retries=0)
        self._beyond, self._connects = set(), []
        sys.addaudithook(lambda event, _: event == "socket.connect" and self._connects.append(1))
        self._plain = self._create()

    def _call(self, name, params):
        options = {key[1:]: params.pop(key) for key in list(params) if key[0] == "_"}
        if "base_url" in options:
            options["base_url"] = options["base_url"].format(self._url)
        params = {"prompt": PROMPT, "model": self._model, "max_tokens": 16, **params}
        return getattr(self._client.with_options(**options), name)(**{"temperature": 0, **params})

    def _create(self, **params):
        return self._typed(self._call("create", params), "response")

    def _stream(self, **params):
        texts = {}
        with self._call("create_stream", params) as stream:
            for self._chunks, chunk in enumerate(stream, 1):
                for choice in self._typed(chunk, "chunk").choices:
                    texts[choice.index] = texts.get(choice.index, "") + choice.text
        merged = self._typed(stream.response, "merged")
        assert texts == {choice.index: choice.text for choice in merged.choices}, (texts, merged)
        return merged

    def _typed(self, value, where):
        """Fails unless every field has its annotated type and the JSON round trip is lossless."""
        if sys.version_info >= (3, 10):
            for name, kind in typing.get_type_hints(type(value)).items():
                item = getattr(value, name)
                assert fits(item, kind), f"{where}.{name}: {item!r}, not {kind}"
        for name, item in vars(value).items():
            for part in item if isinstance(item, list) else [item]:
                if hasattr(part, "to_dict"):
                    self._typed(part, f"{where}.{name}")
        self._beyond.update(f"{where}.{name}" for name in value.extra)
        assert type(value).from_json(value.to_json()) == value, f"{where}: no round trip"
        return value

    def _answered(self, count, params):
        for call in self._create, self._stream:
            indexes = [choice.index for choice in call(**params).choices]
            same(indexes, list(range(count)), f"{call.__name__[1:]}: indexes")

    def _equal(self, one, other):
        for call in self._create, self._stream:
            same(call(**one).text, self._create(**other).text, call.__name__[1:])

    def _refused(self, params):
        """The error has its status's class, and one line with the server's reason."""
        for call in self._stream, self._create:
            try:
                call(**params)
            except self._module.APIStatusError as error:
                status, said, body = error.status_code, error.message, error.body
                name = "InternalServer" if status >= 500 else CLASSES.get(status, "APIStatus")
                assert type(error).__name__ == name + "Error", f"{type(error).__name__}: {status}"
                assert said and "\n" not in said, f"message {said!r}"
                while isinstance(body, dict):
                    keys = "error", "message", "detail"
                    body = next(filter(None, map(body.get, keys)), None)
                words = re.findall(r"\w+", body)[:5] if isinstance(body, str) else []
                assert all(word in said for word in words), f"{said!r} hides {body!r}"
                same(400 <= status < 500, True, said)
            else:
                raise Differs(f"{call.__name__[1:]}: answered all the same")
        return said

    def plain(self):
        same(len(self._plain.choices), 1, "number of choices")
        same(bool(self._plain.choices[0].finish_reason), True, f"{self._plain.choices}")
        same(self._create().text, self._plain.text, "the same again at temperature 0")
        return repr(self._plain.text)

    def streamed(self):
        ends = [answer.choices[0] for answer in (self._stream(), self._plain)]
        same(ends[0].text, ends[1].text, "text")
        same(ends[0].finish_reason, ends[1].finish_reason, "finish_reason")
        return f"{self._chunks} chunks"

    def usage(self):
        usage = self._plain.usage
        same(usage is not None and 0 < usage.completion_tokens <= 16, True, f"{usage}")
        same(usage.prompt_tokens + usage.completion_tokens, usage.total_tokens, "sum")
        streamed = self._stream(stream_options={"include_usage": True}).usage
        counts = streamed and (streamed.prompt_tokens, streamed.completion_tokens)
        same(counts, (usage.prompt_tokens, usage.completion_tokens), "usage of the stream")

    def logprobs(self):
        for answer in self._create(logprobs=2), self._stream(logprobs=2):
            found = answer.choices[0].logprobs
            same(bool(found and found.tokens), True, f"{found}")
            same("".join(found.tokens), answer.text, "tokens joined")
            lists = found.token_logprobs, found.top_logprobs, found.text_offset
            same([len(part or ()) for part in lists], [len(found.tokens)] * 3, "lengths")
            same(max(found.token_logprobs) <= 0, True, f"{found.token_logprobs}")

    def list_prompts(self):
        texts = [self._plain.text, self._create(prompt="some other").text]
        for call in self._create, self._stream:
            answer = call(prompt=[PROMPT, "some other"])
            same([choice.text for choice in answer.choices], texts, "texts")

    def stop(self):
        text = self._plain.text
        stop = text[len(text) // 2 :][:4]
        for call in self._create, self._stream:
            for value in stop, ["never", stop]:
                answer = call(stop=value)
                same(answer.text, text[: text.index(stop)], f"text up to {stop!r}")
                same(answer.choices[0].finish_reason, "stop", "finish_reason")

    def echo(self):
        for call in self._create, self._stream:
            same(call(echo=True).text, PROMPT + self._plain.text, "text")

    def kept(self):
        counts = []
        for times, call in (200, self._create), (50, self._stream):
            self._connects.clear()
            for _ in range(times):
                call(max_tokens=2)
            counts.append(len(self._connects))
        same(counts[0] <= 1, True, f"{counts[0]} connections for 200 calls")
        return f"{counts[0]} new connections for 200 calls, {counts[1]} for 50 streams"

    def left_early(self):
        files, counts = Path("/proc/self/fd"), []
        for _ in range(11):
            with self._call("create_stream", {"max_tokens": 400}) as stream:
                next(stream)
            counts.append(len(list(files.iterdir())) if files.exists() else 0)
        assert counts[-1] <= counts[0], f"open files: {counts}"
        same(self._create().text, self._plain.text, "the call after that")

    def threads(self):
        calls = [self._create, self._stream] * 20
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            texts = set(pool.map(lambda call: call().text, calls))
        same(texts, {self._plain.text}, "texts")

    def deadline(self):
        begun, note = time.monotonic(), "answered within it"
        try:
            self._stream(_timeout=0.2, max_tokens=400)
        except self._module.APITimeoutError as error:
            note = str(error)
        assert time.monotonic() - begun < 1, f"took {time.monotonic() - begun:.2f} s"
        return note

    def command_line(self):
        command = [sys.executable, self._module.__file__, "--base-url", self._url, "--model"]
        command += [self._model, "--max-tokens", "16", "--temperature", "0", PROMPT]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=60)
        same(done.stdout.decode().rstrip("\n"), self._plain.text.rstrip("\n"), "printed")

    def _run(self, known):
        """Runs every check; the names of those that failed or newly differ."""
        checks = {name: getattr(self, name) for name in vars(Checks) if not name.startswith("_")}
        checks.update((name, partial(self._answered, *args)) for name, args in ANSWERED.items())
        checks.update((name, partial(self._equal, *args)) for name, args in EQUAL.items())
        checks.update((name, partial(self._refused, args)) for name, args in REFUSED.items())
        counts, bad = dict.fromkeys(("ok", "differs", "unsupported", "FAILED"), 0), []
        for name in sorted(checks, key=lambda name: "prompt" in name):  # mlx-lm dies of lists
            try:
                kind, note = "ok", checks[name]()
            except self._module.APIStatusError as error:
                kind, note = "unsupported", error.message
            except (Differs, self._module.APIError) as error:
                kind, note = "differs", error if isinstance(error, Differs) else repr(error)
            except Exception as error:
                kind, note = "FAILED", repr(error)
            counts[kind] += 1
            bad += [name] * (kind == "FAILED" or (kind == "differs" and name not in known))
            note = re.sub(r"\s+", " ", f": {note}" if note else "")
            print(f"{name:16} {kind}{note:.240}", flush=True)
        print("undocumented fields:", ", ".join(sorted(self._beyond)) or "none")
        print(", ".join(f"{count} {kind}" for kind, count in counts.items()), flush=True)
        return bad


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base-url", help="an OpenAI-compatible server, up to and with its /v1")
    parser.add_argument("--model")
    parser.add_argument("--start", nargs="+", choices=["all", *SERVERS], default=[])
    parser.add_argument("--module", default=Path(__file__).parents[1] / "completions.py")
    args = parser.parse_args()
    sys.path.insert(0, str(Path(args.module).resolve().parent))
    import completions

    if args.base_url:
        return bool(Checks(completions, args.base_url, args.model)._run(vars(Checks)))
    bad = []
    for name in [*EVERY, *args.start[1:]] if args.start[:1] == ["all"] else args.start:
        with running(name) as base_url:
            print(f"\n{name}", flush=True)
            found = Checks(completions, base_url, "tiny")._run(SERVERS[name][2].split())
            bad += [f"{name} {check}" for check in found]
    print("\nto be looked at:", ", ".join(bad) or "nothing")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: 0BSD
"""The tests of completions.py, and the reference server that they, the demo and users run offline.

    python3 test_completions.py                  run the tests
    python3 test_completions.py demo [PROMPT]    complete the prompt on the reference server
    python3 test_completions.py serve [--port N] leave the reference server running

The server speaks for a small language model, an n-gram model with back-off, trained at start on the
prose next to this file. It knows little, but its probabilities are real: every parameter of the
endpoint does its work. The import statement is all that a script needs to have it in its own tests.
"""

from __future__ import annotations

import argparse
import ast
import base64
import codecs
import collections
import contextlib
import copy
import dataclasses
import functools
import gc
import heapq
import http.client
import http.server
import inspect
import io
import itertools
import json
import logging
import math
import os
import pickle
import random
import re
import select
import shlex
import shutil
import signal
import socket
import socketserver
import ssl
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import tokenize
import traceback
import types
import typing
import unittest
import unittest.mock
import urllib.request
import warnings
import weakref

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # which -I leaves out
import completions  # noqa: E402

# ---------------------------------------------------------------------------- the reference server

TRAINING_FILES = ("README.md", "LICENSE", "completions.py", os.path.abspath(__file__))
CODE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)  # of Markdown


class NGramModel:
    """An n-gram language model: interpolated back-off with absolute discounting.

    Ids below 256 are single bytes, `END` is the end of a text, the others are the words,
    punctuation and white space of the training texts. Each paragraph of these is a text.
    """

    END = 256
    DISCOUNT = 0.25  # taken from each count; the sum is what shorter contexts share
    FLOOR = 0.01  # the count of a token that never occurs
    PIECE = re.compile(r" ?\w+| ?[^\w\s]+|\s+(?!\S)|\s+")

    def __init__(self, texts: list[str], order: int = 4) -> None:
        self.order = order
        self.tokens = [bytes([byte]) for byte in range(256)] + [b"<|endoftext|>"]
        self._ids = {chr(byte): byte for byte in range(128)}
        self._corpus = [self.END]
        paragraphs = re.split(r"\n{2,}", "\n\n".join(texts))
        for paragraph in filter(None, map(str.strip, paragraphs)):
            for piece in self.PIECE.findall(paragraph):
                if piece not in self._ids:
                    self._ids[piece] = len(self.tokens)
                    self.tokens.append(piece.encode())
                self._corpus.append(self._ids[piece])
            self._corpus.append(self.END)
        self._after = collections.defaultdict(list)  # token: the places after its occurrences
        for place, token in enumerate(self._corpus[:-1], 1):
            self._after[token].append(place)
        counts = collections.Counter(self._corpus)
        del counts[self.END]  # a text ends where one has ended, not anywhere
        weights = [counts[token] or self.FLOOR for token in range(len(self.tokens))]
        total = sum(weights)
        self._unigrams = [weight / total for weight in weights]
        self._successors = functools.lru_cache(maxsize=1024)(self._count_successors)

    def encode(self, text: str) -> list[int]:
        """Return the tokens of any text; a word the model does not know becomes its bytes."""
        tokens = []
        for piece in self.PIECE.findall(text):
            token = self._ids.get(piece)
            tokens.extend(piece.encode(errors="replace") if token is None else [token])
        return tokens

    def decode(self, tokens: list[int]) -> str:
        return b"".join(self.tokens[token] for token in tokens).decode(errors="replace")

    def name(self, token: int) -> str:
        """Return a token as log-probs show it; no two are the same."""
        data = self.tokens[token]
        return f"bytes:\\x{data.hex()}" if 128 <= token < 256 else data.decode()

    def distribution(self, context: list[int]) -> list[float]:
        """Return the probability of every token after a context; they sum to 1."""
        weight, levels = 1.0, []
        for size in range(min(self.order - 1, len(context)), 0, -1):
            shares, rest = self._successors(tuple(context[-size:]))
            levels.append((weight, shares))
            weight *= rest
        probabilities = [weight * share for share in self._unigrams]
        for weight, shares in levels:
            for token, share in shares:
                probabilities[token] += weight * share
        return probabilities

    def _count_successors(self, context: tuple[int, ...]) -> tuple[list[tuple[int, float]], float]:
        """Return what follows a context, each with its share, and the share that is left."""
        corpus, size, wanted = self._corpus, len(context), list(context)
        places = self._after.get(context[-1], ())
        counts = collections.Counter(corpus[p] for p in places if corpus[p - size : p] == wanted)
        total = sum(counts.values())
        shares = [(token, (count - self.DISCOUNT) / total) for token, count in counts.items()]
        return shares, self.DISCOUNT * len(counts) / total if total else 1.0


@functools.lru_cache(maxsize=None)
def shared_model() -> NGramModel:
    """Return the process's one model, trained when first asked for."""
    texts = []
    for name in TRAINING_FILES:
        path = os.path.join(os.path.dirname(TRAINING_FILES[-1]), name)
        if os.path.exists(path):
            with open(path, encoding="utf-8", errors="replace") as file:
                text = file.read()
            texts += docstrings(ast.parse(text)) if name.endswith(".py") else CODE.split(text)
    return NGramModel([re.sub(r"\n[ \t]+", "\n", text) for text in texts])


def docstrings(tree: ast.Module | ast.ClassDef | ast.FunctionDef) -> list[str]:
    texts = [ast.get_docstring(tree) or ""]
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            texts += docstrings(node)
    return texts


class Refused(Exception):
    """A request that gets an error object for an answer."""

    def __init__(self, status: int, message: str, param: str | None = None, code=None) -> None:
        kind = "invalid_request_error" if status < 500 else "server_error"
        error = {"message": message, "type": kind, "param": param, "code": code}
        self.status, self.body = status, {"error": error}


PARAMETERS = {  # all but prompt and stop: type, default, lowest and highest value
    "model": (str, ""),
    "best_of": (int, None, 1, 128),
    "echo": (bool, False),
    "frequency_penalty": (float, 0, -2, 2),
    "logit_bias": (dict, {}),
    "logprobs": (int, None, 0, 5),
    "max_tokens": (int, 16, 0, math.inf),
    "n": (int, 1, 1, 128),
    "presence_penalty": (float, 0, -2, 2),
    "seed": (int, None, -(2**63), 2**63 - 1),
    "stream": (bool, False),
    "stream_options": (dict, {}),
    "suffix": (str, ""),
    "temperature": (float, 1, 0, 2),
    "top_p": (float, 1, 0, 1),
    "user": (str, ""),
}


def is_a(value: object, kind: type) -> bool:
    """Say whether a JSON value is of a type: an int is a float, a bool is neither."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


class Completion:
    """A request, checked, with a candidate for each text to be made. Raises Refused."""

    def __init__(self, body: object, model: NGramModel) -> None:
        if not isinstance(body, dict):
            raise Refused(400, "The body must be a JSON object.")
        for name, (kind, default, *bounds) in PARAMETERS.items():
            value = default if body.get(name) is None else body[name]
            if value is not default and not is_a(value, kind):
                raise Refused(400, f"{name} must be of type {kind.__name__}.", name)
            if value is not default and bounds and not bounds[0] <= value <= bounds[1]:
                raise Refused(400, f"{name} must be from {bounds[0]} to {bounds[1]}.", name)
            setattr(self, name, value)
        if self.model in ("", "missing"):
            code, message = "model_not_found", f"There is no model {self.model!r}."
            raise Refused(404 if self.model else 400, message, "model", code)
        self.prompts = self.read_prompts(body.get("prompt"), model)
        stop = [] if body.get("stop") is None else body["stop"]
        self.stops = stop if is_a(stop, list) else [stop]
        if len(self.stops) > 4 or not all(is_a(text, str) and text for text in self.stops):
            raise Refused(400, "stop must be text or a list of up to four texts.", "stop")
        ids = {str(token): token for token in range(len(model.tokens) if self.logit_bias else 0)}
        for key, bias in self.logit_bias.items():
            if key not in ids or not is_a(bias, float) or not -100 <= bias <= 100:
                raise Refused(400, "logit_bias is from tokens to -100..100.", "logit_bias")
        self.biases = {ids[key]: bias for key, bias in self.logit_bias.items()}
        self.width = self.n if self.best_of is None else self.best_of
        if self.width < self.n or (self.stream and (self.best_of or 1) > 1):
            raise Refused(400, "best_of must be at least n, and cannot be streamed.", "best_of")
        self.include_usage = self.stream_options.get("include_usage") or False
        if not is_a(self.include_usage, bool) or (self.stream_options and not self.stream):
            raise Refused(400, "stream_options: needs stream; a bool in it.", "stream_options")
        self.head = {"id": f"cmpl-{os.urandom(12).hex()}", "object": "text_completion"}
        self.head.update(created=int(time.time()), model=self.model, system_fingerprint="fp_ngram")
        pairs = itertools.product(self.prompts, range(self.width))
        self.candidates = [Candidate(self, model, *pair, i) for i, pair in enumerate(pairs)]

    def read_prompts(self, prompt: object, model: NGramModel) -> list[list[int]]:
        """Return the prompts, given in any of the four forms, as tokens."""
        prompts = prompt if isinstance(prompt, list) and prompt else [prompt]
        if all(is_a(text, str) for text in prompts):
            return [model.encode(text) for text in prompts]
        if all(is_a(token, int) for token in prompts):
            prompts = [prompt]
        for tokens in prompts:
            if not is_a(tokens, list) or not tokens or not all(is_a(t, int) for t in tokens):
                raise Refused(400, "prompt must be text, tokens, or a list of these.", "prompt")
            if min(tokens) < 0 or max(tokens) >= len(model.tokens):
                raise Refused(400, f"Tokens are from 0 to {len(model.tokens) - 1}.", "prompt")
        return prompts

    def pieces(self):
        """Return the pieces of all candidates, in turns."""
        turns = itertools.zip_longest(*(candidate.pieces() for candidate in self.candidates))
        return filter(None, itertools.chain.from_iterable(turns))

    def chunks(self):
        """Yield the answer as the objects of a stream."""
        usage = {"usage": None} if self.include_usage else {}
        for candidate, *piece in self.pieces():
            yield {**self.head, "choices": [candidate.choice(*piece)], **usage}
        if usage:
            yield {**self.head, "choices": [], "usage": self.usage()}

    def answer(self, pieces):
        """Return the answer in one object: of each prompt's candidates the n best."""
        parts = collections.defaultdict(list)
        for candidate, *piece in pieces:
            parts[candidate].append(piece)
        choices = []
        for start in range(0, len(self.candidates), self.width):
            group = self.candidates[start : start + self.width]
            if self.width > self.n:
                group = sorted(group, key=Candidate.score, reverse=True)
            for candidate in group[: self.n]:
                candidate.index = len(choices)
                texts, rows, reasons = zip(*parts[candidate])
                rows = itertools.chain.from_iterable(rows)
                choices.append(candidate.choice("".join(texts), list(rows), reasons[-1]))
        return {**self.head, "choices": choices, "usage": self.usage()}

    def usage(self) -> dict[str, int]:
        asked = sum(map(len, self.prompts))
        made = sum(len(candidate.log_probabilities) for candidate in self.candidates)
        counts = {"prompt_tokens": asked, "completion_tokens": made}
        return {**counts, "total_tokens": asked + made}


class Candidate:
    """One text in the making, with a random generator of its own."""

    def __init__(self, request: Completion, model: NGramModel, prompt, number: int, index: int):
        self.request, self.model, self.prompt, self.index = request, model, prompt, index
        seed = None if request.seed is None else f"{request.seed}/{number}"
        self.random = random.Random(seed)
        self.log_probabilities = []  # of the tokens made

    def score(self) -> float:
        """Return the mean log-probability of the tokens made."""
        made = self.log_probabilities
        return sum(made) / len(made) if made else -math.inf

    def pieces(self):
        """Yield (self, text, rows of log-probs, finish_reason), the last None but at the end."""
        model, request, stops = self.model, self.request, self.request.stops
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        context, counts, offset = [model.END], collections.Counter(), 0
        if request.echo:
            texts, rows = [], []
            for token in self.prompt:
                known = len(context) > 1 and request.logprobs is not None
                probabilities = model.distribution(context) if known else None
                context.append(token)
                texts.append(decoder.decode(model.tokens[token]))
                start, offset = offset, offset + len(texts[-1])
                rows.append(self.row(token, probabilities, start, offset))
            texts.append(decoder.decode(b"", True))
            offset += len(texts[-1])
            yield self, "".join(texts), rows, None
        context = [model.END, *self.prompt]
        ends = {model.END, *model.encode(request.suffix)[:1]}  # the suffix can follow here
        text, rows = "", []  # what a stop may still claim, from offset on
        for _ in range(request.max_tokens):
            probabilities = model.distribution(context)
            token = self.pick(probabilities, counts)
            if token in ends:
                yield self, text + decoder.decode(b"", True), rows, "stop"
                return
            context.append(token)
            counts[token] += 1
            self.log_probabilities.append(math.log(probabilities[token]))
            start = offset + len(text)
            text += decoder.decode(model.tokens[token])
            rows.append(self.row(token, probabilities, start, offset + len(text)))
            found = [place for place in map(text.find, stops) if place >= 0]
            safe = min(found) if found else len(text) - max([0, *(overlap(text, s) for s in stops)])
            if found or safe:
                offset += safe
                ready = [row for row in rows if row[3] < offset]
                yield self, text[:safe], ready, "stop" if found else None
                text, rows = text[safe:], rows[len(ready) :]
            if found:
                return
        yield self, text + decoder.decode(b"", True), rows, "length"

    def pick(self, probabilities: list[float], counts: collections.Counter) -> int:
        """Return the next token: by biases and penalties, temperature, top_p, chance."""
        request, weights = self.request, probabilities[:]
        logits = collections.Counter(request.biases)
        for token, count in counts.items():
            logits[token] -= request.presence_penalty + request.frequency_penalty * count
        for token, logit in logits.items():
            weights[token] *= math.exp(max(-600, min(600, logit)))
        highest = max(weights)
        if request.temperature == 0:
            return weights.index(highest)
        if request.temperature != 1:
            weights = [(weight / highest) ** (1 / request.temperature) for weight in weights]
        if request.top_p == 1:
            return self.random.choices(range(len(weights)), weights)[0]
        tokens = sorted(range(len(weights)), key=weights.__getitem__, reverse=True)
        sums = list(itertools.accumulate(weights[token] for token in tokens))
        kept = 1 + sum(1 for part in sums[:-1] if part < request.top_p * sums[-1])
        return self.random.choices(tokens[:kept], cum_weights=sums[:kept])[0]

    def row(self, token: int, probabilities: list[float] | None, start: int, end: int) -> tuple:
        """Return a token's name, log-probability, alternatives and place in the text.

        The text from start to end may begin with what earlier bytes have become.
        """
        name, top = self.model.name(token), None
        if probabilities and self.request.logprobs is not None:
            every = range(len(probabilities))
            best = heapq.nlargest(self.request.logprobs, every, key=probabilities.__getitem__)
            top = {self.model.name(t): math.log(probabilities[t]) for t in [*best, token]}
        return name, top and top[name], top, max(start, end - len(name))

    def choice(self, text: str, rows: list, finish_reason: str | None) -> dict:
        names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        logprobs = {name: [row[i] for row in rows] for i, name in enumerate(names)}
        choice = {"text": text, "index": self.index, "finish_reason": finish_reason}
        return {**choice, "logprobs": None if self.request.logprobs is None else logprobs}


def overlap(text: str, stop: str) -> int:
    """Return how much of the end of a text may be the start of a stop."""
    sizes = range(min(len(text), len(stop) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)


FAILURE = {"message": "The model has stopped.", "type": "server_error", "param": None, "code": 500}


def to_json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode(errors="replace")


def to_event(value: object) -> bytes:
    return b"data: " + to_json(value) + b"\n\n"


class Hangup(OSError):
    """The connection ends here."""


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers requests, and misbehaves as an object `knobs` in the body of one says.

    After so many events, where `[DONE]` is an event, and a plain answer is a single one:
        cut         close in an orderly way, but without the end that HTTP asks for
        reset       reset the connection
        stall       send nothing more until the client leaves
        fail        send an error object, and end
        fail_event  send an error object in an event named error, and end
    Anywhere:
        cut_bytes   close after so many bytes of the body
        drip        wait so many seconds before each byte of the body
        comments    [n, seconds]: n comments before each event, each followed by a pause
        newline     what ends the lines of a stream
        done        false: no `[DONE]`
        late_end    wait so many seconds between the last event and the end of the body
    The whole answer:
        close       true: "Connection: close", and a stream is not chunked
        plain       true: one plain answer to a streaming request
        status      answer with this error, with `times` only so many requests of one `key`
        headers     more headers
    """

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            body = json.loads(data.decode()) if data else None
        except (ValueError, RecursionError):
            body = None
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append({"path": self.path, "headers": headers, "body": body})
        self.knobs = body.get("knobs") or {} if isinstance(body, dict) else {}
        self.sending = True
        try:
            self.respond(body)
        except Refused as refused:
            self.send_plain(refused.status, refused.body)

    do_GET = do_PUT = do_PATCH = do_DELETE = do_POST

    def respond(self, body: object) -> None:
        path, key, knobs = self.path.partition("?")[0], self.server.api_key, self.knobs
        if key is not None and self.headers.get("Authorization") != f"Bearer {key}":
            raise Refused(401, "Incorrect API key provided.", code="invalid_api_key")
        if self.command == "GET" and path == "/v1/models":
            model = {"id": "ngram", "object": "model", "created": 0, "owned_by": "reference"}
            self.send_plain(200, {"object": "list", "data": [model]})
            return
        if self.command != "POST" or not path.endswith("/completions"):
            raise Refused(404, f"Unknown request: {self.command} {path}", code="unknown_url")
        if "status" in knobs:
            if next(self.server.tally[knobs.get("key")]) < knobs.get("times", math.inf):
                raise Refused(knobs["status"], f"Status {knobs['status']}, as asked.")
        completion = Completion(body, self.server.model)
        if completion.stream and not knobs.get("plain"):
            done = [b"data: [DONE]\n\n"] if knobs.get("done", True) else []
            events = itertools.chain(map(to_event, completion.chunks()), done)
            self.send(200, "text/event-stream", events)
        else:
            pieces = (self.wait(0) or piece for piece in completion.pieces())
            self.send_plain(200, completion.answer(pieces))

    def send_plain(self, status: int, value: object) -> None:
        data = to_json(value)
        self.send(status, "application/json", [data], len(data))

    def send(self, status: int, content_type: str, events, length: int | None = None) -> None:
        knobs = self.knobs
        close = knobs.get("close") or (length is None and self.request_version == "HTTP/1.0")
        self.chunked = length is None and not close
        framing = ("Transfer-Encoding", "chunked") if self.chunked else ("Content-Length", length)
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("X-Request-Id", f"req_{os.urandom(12).hex()}")
        for name, value in [framing, *knobs.get("headers", {}).items()]:
            if value is not None:
                self.send_header(name, value)
        if close:
            self.send_header("Connection", "close")
        self.end_headers()
        self.room = knobs.get("cut_bytes", math.inf)
        comments, pause = knobs.get("comments", (0, 0))
        for count, event in enumerate(itertools.chain(events, [b""])):  # the empty one: the end
            if count == knobs.get("reset"):
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.rfile.close()
                self.connection.close()
            if count in (knobs.get("reset"), knobs.get("cut")):
                raise Hangup
            if count == knobs.get("stall"):
                self.wait(None)
            if count in (knobs.get("fail"), knobs.get("fail_event")):
                name = b"event: error\n" if count == knobs.get("fail_event") else b""
                self.put(name + to_event({"error": FAILURE}))
                break
            if event:
                self.wait(0)
                for _ in range(comments):
                    self.put(b": keep-alive\n\n")
                    self.wait(pause)
                self.put(event)
        self.sending = False
        if "late_end" in knobs:
            self.wait(knobs["late_end"])
        if self.chunked:
            self.wfile.write(b"0\r\n\r\n")

    def put(self, data: bytes) -> None:
        """Send a part of the body."""
        data = data.replace(b"\n", self.knobs.get("newline", "\n").encode())
        drip = self.knobs.get("drip")
        size = 1 if drip else len(data)
        for start in range(0, len(data), size):
            if drip:
                self.wait(drip)
            part = data[start : start + min(size, self.room)]
            self.room -= len(part)
            frame = b"%x\r\n%s\r\n" % (len(part), part) if self.chunked else part
            try:
                self.wfile.write(frame if part else b"")
            except OSError:
                self.lose_client()
            if not self.room:
                raise Hangup

    def wait(self, seconds: float | None) -> None:
        """Wait, unless the client leaves: one that reads its answer has nothing to send."""
        if self.server.closing or select.select([self.connection], [], [], seconds)[0]:
            self.lose_client()

    def lose_client(self) -> None:
        if self.sending and not self.server.closing:
            self.server.aborted.set()
        raise Hangup

    def log_message(self, format: str, *args: object) -> None:
        pass


class ReferenceServer(http.server.ThreadingHTTPServer):
    """The server on loopback, for as long as its context lasts.

    `requests` has what was asked (path, headers, body), `connections` says how many were
    accepted, `aborted` is set once a client has left before its answer was complete.
    """

    request_queue_size = 128
    server_bind = socketserver.TCPServer.server_bind  # HTTPServer's looks up its own name

    def __init__(self, api_key: str | None = None, ssl_context=None, port: int = 0) -> None:
        self.model = shared_model()
        self.api_key, self.ssl_context = api_key, ssl_context
        self.requests, self.connections, self.clients = [], 0, {}
        self.tally = collections.defaultdict(itertools.count)
        self.aborted, self.closing = threading.Event(), False
        super().__init__(("127.0.0.1", port), Handler)
        if ssl_context:  # each client's thread shakes hands, when it first reads
            self.socket = ssl_context.wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )
        scheme = "https" if ssl_context else "http"
        self.base_url = f"{scheme}://127.0.0.1:{self.server_address[1]}/v1"

    def __enter__(self) -> ReferenceServer:
        self.thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.closing = True
        self.shutdown()
        self.thread.join()
        self.server_close()
        clients = list(self.clients.items())
        for _, connection in clients:
            with contextlib.suppress(OSError):  # not SSLSocket's, which goes on in the clear
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
        for thread, _ in clients:
            thread.join(5)

    def process_request(self, request, client_address) -> None:
        self.connections += 1
        args = (request, client_address)
        thread = threading.Thread(target=self.process_request_thread, args=args, daemon=True)
        self.clients[thread] = request
        thread.start()

    def process_request_thread(self, request, client_address) -> None:
        super().process_request_thread(request, client_address)
        del self.clients[threading.current_thread()]

    def shutdown_request(self, request) -> None:
        if self.ssl_context:
            with contextlib.suppress(OSError, ValueError):
                request.setblocking(False)
                request.unwrap()  # TLS's goodbye; the answer is not waited for
        super().shutdown_request(request)

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def serve(port: int) -> None:
    """Run the server until Ctrl-C."""
    try:
        server = ReferenceServer(port=port)
    except (OSError, OverflowError) as error:
        sys.exit(f"port {port}: {error}")
    with contextlib.suppress(KeyboardInterrupt), server:
        url, prompt = server.base_url, '"The import statement"'
        body = f"""'{{"model": "ngram", "prompt": {prompt}}}'"""
        print(f"The reference server listens at {url}. Ctrl-C ends it. Try:")
        print(f"  curl {url}/completions -H 'Content-Type: application/json' -d {body}")
        print(f"  COMPLETIONS_BASE_URL={url} python3 completions.py --model ngram {prompt}")
        sys.stdout.flush()
        while True:
            time.sleep(60)
            server.requests.clear()  # nobody reads them here


# -------------------------------------------------------------------------- what the tests stand on

KEY = (
    "sk-a-key-that-must-not-leak"  # the last test looks for it in whatever the others brought forth
)
MODEL = "test-model"


def answer(text: str = "This is a test", **fields: object) -> dict:
    """A plain answer as servers send it."""
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": "stop"}
    usage = {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
    body = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": MODEL}
    return {**body, "choices": [choice], "usage": usage, **fields}


def chunk(
    text: str = "", finish_reason: str | None = None, index: int = 0, **fields: object
) -> dict:
    """A chunk of a stream as servers send it."""
    choice = {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}
    body = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": MODEL}
    return {**body, "choices": [choice], **fields}


def event(value: object) -> bytes:
    """A server-sent event whose data is a JSON value, or the text that is given."""
    return f"data: {value if isinstance(value, str) else json.dumps(value)}\n\n".encode()


def reply(body: object = None, status: object = 200, *headers: str, sized: bool = True) -> bytes:
    """The bytes of a whole answer; `body` is bytes, or becomes JSON (by default `answer()`)."""
    data = (
        body if isinstance(body, bytes) else json.dumps(answer() if body is None else body).encode()
    )
    length = [f"Content-Length: {len(data)}"] if sized else []
    head = [f"HTTP/1.1 {status} Reason", *length, *headers, "", ""]
    return "\r\n".join(head).encode("latin-1") + data


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
BARE_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"  # ends with the connection
)
LAST_CHUNK = b"0\r\n\r\n"


def framed(*pieces: bytes) -> bytes:
    """Pieces of a body as chunks of HTTP, without the last, empty one."""
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)


def stream_reply(*events: bytes) -> bytes:
    """The bytes of a whole stream over HTTP, one chunk an event."""
    return STREAM_HEAD + framed(*events) + LAST_CHUNK


class ScriptedServer:
    """A server on loopback that answers with just the bytes and the timing that a test gives it.

    Each request takes the next of `replies`, the last of them again and again. A reply is made of
    steps: bytes are sent, a number of seconds is slept, "close" closes, "reset" resets, "hold"
    waits until the client leaves, and a function is called with the socket. After a reply without
    "close" or "reset" the connection is kept. `requests` has the bytes of each request,
    `connections` counts, and `left` is set when a client has closed a connection. A request is read
    to its end before it is answered, unless `early` is true: then the reply begins after its
    headers.
    """

    def __init__(
        self, *replies: object, tls: ssl.SSLContext | None = None, early: bool = False
    ) -> None:
        self.replies, self.tls, self.early = list(replies) or [reply()], tls, early
        self.requests: list[bytes] = []
        self.connections, self.open, self.most_open = 0, 0, 0
        self.left, self.closing, self.lock = threading.Event(), False, threading.Lock()
        self.sockets: list[socket.socket] = []
        self.threads: list[threading.Thread] = []

    def __enter__(self) -> ScriptedServer:
        self.listener = (
            socket.create_server(("127.0.0.1", 0), backlog=128)
            if sys.version_info >= (3, 8)
            else listen()
        )
        self.port = self.listener.getsockname()[1]
        self.base_url = f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}/v1"
        self.threads.append(threading.Thread(target=self.accept, daemon=True))
        self.threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing = True
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 1).close()  # wakes accept()
        self.threads[0].join(5)
        self.listener.close()
        for sock in self.sockets:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(5)

    def accept(self) -> None:
        while True:
            sock, _ = self.listener.accept()
            if self.closing:
                sock.close()
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections += 1
            thread = threading.Thread(target=self.serve, args=(sock,), daemon=True)
            self.threads.append(thread)
            thread.start()

    def serve(self, sock: socket.socket) -> None:
        try:
            if self.tls:
                sock = self.tls.wrap_socket(sock, server_side=True)
            self.sockets.append(sock)
            with self.lock:
                self.open += 1
                self.most_open = max(self.most_open, self.open)
            try:
                while self.one(sock):
                    pass
            finally:
                with self.lock:
                    self.open -= 1
        except (OSError, ValueError):
            self.left.set()
        finally:
            sock.close()

    def one(self, sock: socket.socket) -> bool:
        """Reads a request and answers it; whether the connection goes on."""
        data = b""
        while b"\r\n\r\n" not in data:
            piece = sock.recv(65536)
            if not piece:
                self.left.set()
                return False
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
        while not self.early and length and len(body) < int(length[1]):
            body += sock.recv(65536)
        with self.lock:
            self.requests.append(head + b"\r\n\r\n" + body)
            steps = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        for step in steps if isinstance(steps, (list, tuple)) else [steps]:
            if isinstance(step, bytes):
                sock.sendall(step)
            elif isinstance(step, (int, float)):
                time.sleep(step)
            elif step == "hold":
                while sock.recv(65536):
                    pass
                self.left.set()
                return False
            elif step in ("close", "reset"):
                if step == "reset":
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                else:
                    with contextlib.suppress(OSError):
                        socket.socket.shutdown(sock, socket.SHUT_WR)
                return False
            else:
                step(sock)
        return True


def listen() -> socket.socket:
    """`socket.create_server` came with 3.8."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(128)
    return sock


class SmallProxy(http.server.ThreadingHTTPServer):
    """An HTTP proxy on loopback: forwards plain requests, tunnels with CONNECT, logs what it got.

    With `credentials` ("user:password") it refuses, with 407, whoever does not give them. `log` has
    the request line and the headers of each request that it got, as text. Every request reaches
    `upstream` (a port of this machine) if that is given, whatever host it names.
    """

    daemon_threads = True
    server_bind = socketserver.TCPServer.server_bind

    def __init__(self, credentials: str = "", upstream: int | None = None) -> None:
        self.wanted = (
            f"Basic {base64.b64encode(credentials.encode()).decode()}" if credentials else None
        )
        self.upstream, self.log, self.connections = upstream, [], 0
        super().__init__(("127.0.0.1", 0), ProxyHandler)
        self.url = (
            f"http://{credentials + '@' if credentials else ''}127.0.0.1:{self.server_address[1]}"
        )

    def __enter__(self) -> SmallProxy:
        self.thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()


class ProxyHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: SmallProxy

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def refused(self) -> bool:
        self.server.log.append(f"{self.requestline}\n{self.headers}")
        if self.server.wanted in (None, self.headers["Proxy-Authorization"]):
            return False
        self.send_response(407)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return True

    def do_CONNECT(self) -> None:
        if self.refused():
            return
        port = self.server.upstream or int(self.path.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), 5) as upstream:
            self.send_response(200)
            self.end_headers()
            pair = [self.connection, upstream]
            while True:
                for ready in select.select(pair, [], [], 10)[0]:
                    data = ready.recv(65536)
                    if not data:
                        self.close_connection = True
                        return
                    pair[ready is self.connection].sendall(data)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.refused():
            return
        host, _, path = self.path.partition("://")[2].partition("/")
        port = self.server.upstream or int(host.rpartition(":")[2])
        headers = {n: v for n, v in self.headers.items() if not n.lower().startswith("proxy-")}
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("POST", "/" + path, body, headers)
        response = connection.getresponse()
        data = response.read()
        self.send_response(response.status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        connection.close()

    def log_message(self, format: str, *args: object) -> None:
        pass


def server_context(name: str = "server") -> ssl.SSLContext:
    """For servers: as `server` (localhost and 127.0.0.1), or `other` (elsewhere.example)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "pem")
        with open(path, "w") as file:
            file.write(PEM[name])
        context.load_cert_chain(path)
    return context


def client_context(authority: bool = True, certificate: bool = False) -> ssl.SSLContext:
    """For clients: trusts the tests' authority, and has a certificate of its own."""
    context = ssl.create_default_context(cadata=PEM["authority"] if authority else None)
    if certificate:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "pem")
            with open(path, "w") as file:
                file.write(PEM["client"])
            context.load_cert_chain(path)
    return context


class Case(unittest.TestCase):
    """What all tests start from: no key, URL or proxy in the environment, and a limit of time."""

    SECONDS = 60

    def setUp(self) -> None:
        for name in [*os.environ]:
            if name.startswith(("COMPLETIONS_", "ATOMASDK_", "OPENAI_")) or name.lower().endswith(
                "_proxy"
            ):
                self.set_environment(name, None)
        completions._default.cache_clear()
        if hasattr(signal, "SIGALRM") and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGALRM, self.too_long)
            signal.alarm(self.SECONDS)
            self.addCleanup(signal.alarm, 0)

    def too_long(self, *_: object) -> None:
        raise AssertionError(f"still running after {self.SECONDS} s")

    def set_environment(self, name: str, value: str | None) -> None:
        """Sets a variable for the rest of the test."""
        before = os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
        self.addCleanup(
            lambda: (
                os.environ.pop(name, None) if before is None else os.environ.update({name: before})
            )
        )

    def serve(self, *replies: object, **options: object) -> ScriptedServer:
        """A scripted server that lasts as long as the test."""
        server = ScriptedServer(*replies, **options)
        server.__enter__()
        self.addCleanup(server.__exit__)
        return server

    def reference(self, **options: object) -> ReferenceServer:
        server = ReferenceServer(**options)
        server.__enter__()
        self.addCleanup(server.__exit__)
        return server

    def client(self, server: object, **options: object) -> completions.Client:
        """A client of a server, without retries, that is closed after the test."""
        options = {"timeout": 10, "max_retries": 0, "api_key": KEY, **options}
        client = completions.Client(base_url=server.base_url, **options)
        self.addCleanup(client.close)
        return client

    def fails(
        self, kind: type, function: typing.Callable, *args: object, **kwargs: object
    ) -> typing.Any:
        """The error that a call raises; just this kind, on one line, and without the key."""
        with self.assertRaises(kind) as caught:
            function(*args, **kwargs)
        error = caught.exception
        self.assertIs(type(error), kind)
        self.assertNotIn("\n", str(error))
        self.assertNotIn(KEY, f"{error!r} {error} {vars(error)!r}")
        return error


PEM = {  # an authority for a hundred years, and what it has signed: certificates with their keys
    "authority": """
-----BEGIN CERTIFICATE-----
MIIBozCCAUmgAwIBAgIUZOv9tbPpkNipbAAMhcFopCBM0FowCgYIKoZIzj0EAwIw
HjEcMBoGA1UEAwwTY29tcGxldGlvbnMgdGVzdCBDQTAgFw0yNjExMjIxOTAxMTZa
GA8yMTI2MTAyOTE5MDExNlowHjEcMBoGA1UEAwwTY29tcGxldGlvbnMgdGVzdCBD
QTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABAMKmt0LsxUSYQvbXuzRqbL9n/zJ
DJx6dWQ7dB+/O+AK6oXnASYoN8ou7EFVVyvSFFuUT/Q9rlYjsyuGBrcA0byjYzBh
MB0GA1UdDgQWBBTyS3ZCdwfuGHux7ONpRYuuMEVQvjAfBgNVHSMEGDAWgBTyS3ZC
dwfuGHux7ONpRYuuMEVQvjAPBgNVHRMBAf8EBTADAQH/MA4GA1UdDwEB/wQEAwIB
BjAKBggqhkjOPQQDAgNIADBFAiBA2d1+yUzO9EtEBRdZlQHX8sUx1Qjfs6gWYgOD
1ylT5wIhAKYuf1bjInTs0qxZyh5QEwk1RWuHWj5o9TvqRQh+EzRS
-----END CERTIFICATE-----
""",
    "server": """
-----BEGIN CERTIFICATE-----
MIIB5TCCAYugAwIBAgIUC/xZANHz2qpievBwbkPvypdwJN0wCgYIKoZIzj0EAwIw
HjEcMBoGA1UEAwwTY29tcGxldGlvbnMgdGVzdCBDQTAgFw0yNjExMjIxOTAxMTZa
GA8yMTI2MTAyOTE5MDExNlowFDESMBAGA1UEAwwJbG9jYWxob3N0MFkwEwYHKoZI
zj0CAQYIKoZIzj0DAQcDQgAEyU+8SKwkB1yNd7fMBwVGDvO/4eqobDlfCR+Jvqft
g4EpbAlBQoI5NbwzbyJYhcHDMXAq8W6LiHlovjGHnQvpr6OBrjCBqzAMBgNVHRMB
Af8EAjAAMA4GA1UdDwEB/wQEAwIHgDAdBgNVHSUEFjAUBggrBgEFBQcDAQYIKwYB
BQUHAwIwLAYDVR0RBCUwI4IJbG9jYWxob3N0hwR/AAABhxAAAAAAAAAAAAAAAAAA
AAABMB0GA1UdDgQWBBSXWN4d93BKGmjlyRYBTQlXl1a5VTAfBgNVHSMEGDAWgBTy
S3ZCdwfuGHux7ONpRYuuMEVQvjAKBggqhkjOPQQDAgNIADBFAiEA0VWTwKENGfaV
3TTqvmDrCSEkSCur3pibJesJolezqUwCIG6eMOKhtlHGwzIQ0zWIR1j0N8yCLZpj
eDlJfSupurn3
-----END CERTIFICATE-----
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgChTrx88wzqJoWqbu
iirYn99XyzvyCF3wdHEQWWda/DihRANCAATJT7xIrCQHXI13t8wHBUYO87/h6qhs
OV8JH4m+p+2DgSlsCUFCgjk1vDNvIliFwcMxcCrxbouIeWi+MYedC+mv
-----END PRIVATE KEY-----
""",
    "other": """
-----BEGIN CERTIFICATE-----
MIIB3TCCAYOgAwIBAgIUC/xZANHz2qpievBwbkPvypdwJN4wCgYIKoZIzj0EAwIw
HjEcMBoGA1UEAwwTY29tcGxldGlvbnMgdGVzdCBDQTAgFw0yNjExMjIxOTAxMTZa
GA8yMTI2MTAyOTE5MDExNlowHDEaMBgGA1UEAwwRZWxzZXdoZXJlLmV4YW1wbGUw
WTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAQuWWa07aJZ7T0WXR2cR8dHze4xP5YW
BqikwItcrBNcZ6LyVOkdci89BMh99rNkAVIMV28CaWT+gM81sovQrh3+o4GeMIGb
MAwGA1UdEwEB/wQCMAAwDgYDVR0PAQH/BAQDAgeAMB0GA1UdJQQWMBQGCCsGAQUF
BwMBBggrBgEFBQcDAjAcBgNVHREEFTATghFlbHNld2hlcmUuZXhhbXBsZTAdBgNV
HQ4EFgQU2iW5JJUmJKM0UainWLcL5POO13EwHwYDVR0jBBgwFoAU8kt2QncH7hh7
sezjaUWLrjBFUL4wCgYIKoZIzj0EAwIDSAAwRQIhAPrVZRIs54vFXbkrK9MGwi+f
hhpG59BlnUHVhLn2w1nHAiBk6m74Sh1eBk3e4CTEctuaKc8aPhlewgMX9Mdw8n7r
Sw==
-----END CERTIFICATE-----
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgMI1EYcgTaJ9Qw/7/
kWljyZGhHtTCYT38/CcIOFpshtihRANCAAQuWWa07aJZ7T0WXR2cR8dHze4xP5YW
BqikwItcrBNcZ6LyVOkdci89BMh99rNkAVIMV28CaWT+gM81sovQrh3+
-----END PRIVATE KEY-----
""",
    "client": """
-----BEGIN CERTIFICATE-----
MIIByDCCAW2gAwIBAgIUC/xZANHz2qpievBwbkPvypdwJN8wCgYIKoZIzj0EAwIw
HjEcMBoGA1UEAwwTY29tcGxldGlvbnMgdGVzdCBDQTAgFw0yNjExMjIxOTAxMTZa
GA8yMTI2MTAyOTE5MDExNlowETEPMA0GA1UEAwwGY2xpZW50MFkwEwYHKoZIzj0C
AQYIKoZIzj0DAQcDQgAEYAMthRdD8Zf0b0zDPoqwvRbQNKWHEpG9SuV6341dPXZB
hB3FKnNW9znp3a+7Fm0pYTD6a0mtjfSKWfUUQFj1sqOBkzCBkDAMBgNVHRMBAf8E
AjAAMA4GA1UdDwEB/wQEAwIHgDAdBgNVHSUEFjAUBggrBgEFBQcDAQYIKwYBBQUH
AwIwEQYDVR0RBAowCIIGY2xpZW50MB0GA1UdDgQWBBTc25QTHEJoe5DlqgnoBQ1q
S4ro+zAfBgNVHSMEGDAWgBTyS3ZCdwfuGHux7ONpRYuuMEVQvjAKBggqhkjOPQQD
AgNJADBGAiEA/iTLTITSk0RfeWIYDsLKP29zXu/DTkt9pnVxPHlCVLACIQCKg5jt
oXG9eQbWj5hF6TNzjIIdx8aYtwLRhD/EbeyjHw==
-----END CERTIFICATE-----
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg14fkx1rGWEDomWwP
VIrgMkk7lE7fqXX0+/0YlKOfwmehRANCAARgAy2FF0Pxl/RvTMM+irC9FtA0pYcS
kb1K5XrfjV09dkGEHcUqc1b3Oendr7sWbSlhMPprSa2N9IpZ9RRAWPWy
-----END PRIVATE KEY-----
""",
}


# ----------------------------------------------------------------------------------------- the data


DESIGNED = """
CompletionsResponse: choices: list[CompletionChoice]; id, model: str = ''; created: int = 0;
object: str = 'text_completion'; system_fingerprint, request_id: str | None; usage: Usage | None

CompletionChoice: text: str = ''; index: int = 0; logprobs: LogProbs | None;
finish_reason: str | None

LogProbs: tokens: list[str] | None; token_logprobs: list[float | None] | None;
top_logprobs: list[dict[str, float] | None] | None; text_offset: list[int] | None

Usage: prompt_tokens, completion_tokens, total_tokens: int = 0;
prompt_tokens_details: PromptTokensDetails | None;
completion_tokens_details: CompletionTokensDetails | None

CompletionTokensDetails: accepted_prediction_tokens, audio_tokens, reasoning_tokens,
rejected_prediction_tokens: int | None

PromptTokensDetails: audio_tokens, cached_tokens: int | None

CompletionsRequest: prompt: str | list[str] | list[int] | list[list[int]]; model: str;
best_of, logprobs, max_tokens, n, seed: int | None; echo: bool | None; suffix, user: str | None;
frequency_penalty, presence_penalty, temperature, top_p: float | None;
logit_bias: dict[str, float] | dict[str, int] | None; stop: str | list[str] | None;
stream_options: dict[str, Any] | None
"""
DESIGN = dict(" ".join(block.split()).split(": ", 1) for block in DESIGNED.split("\n\n"))
DATA = {name: getattr(completions, name) for name in DESIGN}
RECEIVED = [cls for cls in DATA.values() if cls is not completions.CompletionsRequest]
NO_COMPLETION = completions.APIResponseValidationError
JSON_SAMPLES = json.loads(
    """[null, true, false, 0, 7, -1, 1.5, 1e400, "", "x", [], [null], [true], [7], [1.5], ["x"],
    [7, "x"], ["x", null], [1.5, null, 7], [[]], [[7]], [[7], ["x"]], [[true]], {}, {"a": null},
    {"a": 1.5}, {"a": true}, {"a": "x"}, [{}], [{"a": 1}, null], [{"a": true}], [{"a": null}]]"""
)
PUBLISHED = """{
  "choices": [{"text": "This is a test", "index": 0, "logprobs": null, "finish_reason": "stop"}],
  "created": 1609459200, "id": "cmpl-1234567890", "model": "meta-llama/Llama-3.3-70B-Instruct",
  "object": "text_completion", "system_fingerprint": "system-fingerprint",
  "usage": {"completion_tokens": 10, "completion_tokens_details": {
              "accepted_prediction_tokens": 10, "audio_tokens": 0, "reasoning_tokens": 10,
              "rejected_prediction_tokens": 0},
            "prompt_tokens": 10, "prompt_tokens_details": {"audio_tokens": 0, "cached_tokens": 10},
            "total_tokens": 20}}"""


@functools.lru_cache(maxsize=None)
def alternatives(annotation: str) -> list:
    """Those of an annotation, each a name and, for a container, the annotation of its items."""
    options = re.split(r" \| (?![^\[]*\])", annotation)
    matches = [re.fullmatch(r"(list|dict)\[(?:str, )?(.+)\]|\w+", option) for option in options]
    return [(match[1] or match[0], match[2]) for match in matches]


def conforms(value: object, annotation: str, wire: bool = False) -> bool:
    """Whether a value is what an annotation says; on the `wire`, an object is a dict."""
    for name, items in alternatives(annotation):
        if items and type(value).__name__ == name:
            inside = value.values() if name == "dict" else value
            fits = all(conforms(item, items, wire) for item in inside)
        elif name in DATA and not wire:
            fits = type(value) is DATA[name] and is_sound(value)
        else:
            kinds = {"None": ["NoneType"], "float": ["float", "int"]}.get(name, [name])
            kinds = ["dict"] if name in DATA else kinds
            fits = not items and (name == "Any" or type(value).__name__ in kinds)
        if fits:
            return True
    return False


def is_sound(record: object) -> bool:
    """Whether every field of an object is of its type."""
    annotations = type(record).__annotations__.items()
    return all(conforms(getattr(record, name), kind) for name, kind in annotations)


def covers(got: object, given: object) -> bool:
    """Whether all that was `given` is in what was `got` from it, but nulls and the time's form."""
    if isinstance(given, dict) and isinstance(got, dict):
        items = [(n, v) for n, v in given.items() if v is not None and n != "created"]
        return all(name in got and covers(got[name], value) for name, value in items)
    if isinstance(given, list) and isinstance(got, list):
        return len(got) == len(given) and all(map(covers, got, given))
    return type(got) is type(given) and got == given


def least(cls: type) -> dict:
    """The smallest object that `from_dict` of a class takes."""
    return {"choices": []} if cls is completions.CompletionsResponse else {}


def wire_fields(cls: type) -> list:
    return [name for name in cls.__annotations__ if name not in ("extra", "request_id")]


def filled(unknown: dict) -> dict:
    """A response as it comes with every object there is, and `unknown` keys in each."""
    data = json.loads(PUBLISHED)
    row = {"tokens": ["a", "b"], "token_logprobs": [None, -0.5], "text_offset": [0, 1]}
    choice = {**data["choices"][0], **unknown}
    choice["logprobs"] = {**row, "top_logprobs": [None, {"b": -0.5, "c": -2}], **unknown}
    usage = {**data["usage"], **unknown}
    for name in ("prompt_tokens_details", "completion_tokens_details"):
        usage[name] = {**usage[name], **unknown}
    return {**data, "choices": [choice, {**choice, "index": 1}], "usage": usage, **unknown}


class ReceivedDataTest(Case):
    def assert_lossless(self, new: object, given: object) -> None:
        """Types as annotated, all that was given still there, and a round trip changes nothing."""
        self.assertTrue(is_sound(new), new)
        self.assertTrue(covers(new.to_dict(), given), new)
        self.assertEqual({*new.to_dict()}, {*wire_fields(type(new)), *new.extra})
        again = type(new).from_json(new.to_json())
        self.assertEqual((again, again.to_json()), (new, new.to_json()))

    def test_the_fields_are_those_of_the_contract(self):
        for name, fields in DESIGN.items():
            groups = [group.split(": ") for group in fields.split("; ")]
            expected = {n: kind for names, kind in groups for n in names.split(", ")}
            given = {field.name: field.type for field in dataclasses.fields(DATA[name])}
            for field in dataclasses.fields(DATA[name]):
                if field.default not in (None, dataclasses.MISSING):
                    given[field.name] += f" = {field.default!r}"
            self.assertEqual(given.pop("extra"), "dict[str, Any]")
            self.assertEqual(given, expected)

    @unittest.skipIf(sys.version_info < (3, 10), "`str | None` means something from 3.10 on")
    def test_the_annotations_resolve(self):
        names = {**vars(completions), "Any": object}
        for cls in DATA.values():
            expected = {f.name: eval(f.type, names) for f in dataclasses.fields(cls)}
            self.assertEqual(typing.get_type_hints(cls), expected)

    def test_a_wrong_type_raises_where_the_answer_depends_on_it_else_is_kept_in_extra(self):
        cases = [(cls, name) for cls in RECEIVED for name in wire_fields(cls)]
        for (cls, name), value in itertools.product(cases, JSON_SAMPLES):
            data, empty = {**least(cls), name: value}, cls(**least(cls))
            fits = conforms(value, cls.__annotations__[name], wire=True)
            fits = fits or (value is None and name != "choices")
            fits = fits or (value == 1.5 and name == "created")
            with self.subTest(cls=cls.__name__, field=name, value=value):
                if not fits and name in ("choices", "text", "index", "finish_reason"):
                    error = self.fails(NO_COMPLETION, cls.from_dict, data)
                    self.assertRegex(str(error), rf"^{name}(\[\d\])?: expected \w.+, got \w")
                    self.assertIs(error.body, data)
                    continue
                new = cls.from_dict(data)
                self.assertEqual(new.extra, {} if fits else {name: value})
                if value is None or not fits:
                    self.assertEqual(getattr(new, name), getattr(empty, name))
                self.assert_lossless(new, data)

    def test_a_wrong_type_is_named_with_its_place(self):
        for data, message in [
            ({"choices": [{}, {}, {"text": 7}]}, r"choices\[2\]\.text: expected str, got int"),
            ({"choices": [{"text": [""]}]}, r"choices\[0\]\.text: expected str, got list.*"),
            ({"choices": [{"index": True}]}, r"choices\[0\]\.index: expected int, got bool"),
            ({"choices": [{}, {"index": 0.0}]}, r"choices\[1\]\.index: expected int, got float"),
            ({"choices": [{"finish_reason": 7}]}, r"choices\[0\]\.finish_reason: .* str, got int"),
            ({"choices": [{}, "a"]}, r"choices\[1\]: expected dict, got str"),
            ({"choices": [None]}, r"choices\[0\]: expected dict, got NoneType"),
            ({"choices": {"text": "a"}}, r"choices: expected list.*, got dict.*"),
            ({"choices": None}, r"choices: expected list, got NoneType"),
            ({"id": "a"}, r"choices: expected list, got NoneType"),
        ]:
            error = self.fails(NO_COMPLETION, completions.CompletionsResponse.from_dict, data)
            self.assertRegex(str(error), f"^{message}$")
            self.assertIs(error.body, data)

    def test_absent_and_null_are_the_same(self):
        for cls in RECEIVED:
            nulls = dict.fromkeys(wire_fields(cls))
            for data in (least(cls), {**nulls, **least(cls)}):
                self.assertEqual(cls.from_dict(data), cls(**least(cls)))
        data = {"choices": [{}, {"index": None}]}
        choices = completions.CompletionsResponse.from_dict(data).choices
        self.assertEqual([choice.index for choice in choices], [0, 1])

    def test_unknown_keys_at_every_level_survive_the_round_trip(self):
        unknown = {"new": [{"a": None}, True], "none": None, "request_id": "a", "extra": {"b": 7}}
        data = filled(unknown)
        response = completions.CompletionsResponse.from_json(json.dumps(data))
        self.assertEqual((response.to_dict(), json.loads(response.to_json())), (data, data))
        records, usage = [response, *response.choices, response.usage], response.usage
        records += [choice.logprobs for choice in response.choices]
        records += [usage.prompt_tokens_details, usage.completion_tokens_details]
        self.assertEqual({*map(type, records)}, {*RECEIVED})
        for record in records:
            self.assertEqual(record.extra, unknown)
            self.assert_lossless(record, record.to_dict())
        self.assertIsNone(response.request_id)

    def test_extra_wins_over_the_field_of_its_name_and_belongs_to_one_object(self):
        for cls in RECEIVED:
            made = [cls(**least(cls)) for _ in "ab"]
            for one, other in (made, [cls.from_dict(least(cls)) for _ in "ab"]):
                one.extra.update(dict.fromkeys(wire_fields(cls), "mine"))
                self.assertEqual({*one.to_dict().values()}, {"mine"})
                self.assertEqual(other.extra, {})

    def test_the_published_example_goes_in_and_comes_out_equal(self):
        data = json.loads(PUBLISHED)
        usage = completions.Usage(prompt_tokens=10, completion_tokens=10, total_tokens=20)
        usage.prompt_tokens_details = completions.PromptTokensDetails(0, 10)
        usage.completion_tokens_details = completions.CompletionTokensDetails(10, 0, 10, 0)
        choice = completions.CompletionChoice("This is a test", index=0, finish_reason="stop")
        fields = {**data, "choices": [choice], "usage": usage, "extra": {}, "request_id": None}
        for text in (PUBLISHED, "\ufeff" + PUBLISHED):
            for form in (text, text.encode()):
                response = completions.CompletionsResponse.from_json(form)
                self.assertEqual(vars(response), fields)
                self.assertEqual(response, completions.CompletionsResponse(**fields))
                self.assertEqual(response.to_dict(), data)

    def test_created_becomes_whole_unix_seconds_or_is_kept_in_extra(self):
        times = "2021-01-01T00:00:00Z|2021-01-01t00:00:00.9z|2020-12-31T23:30:00-00:30|"
        times += "2021-01-01 00:00:00+00:00|2021-01-01T05:30:00.123456789+05:30"
        garbage = "|soon|1609459200|2021-01-01|2021-01-01T00:00:00|2021-13-01T00:00:00Z|"
        garbage += "2021-01-01T00:00:00Z\n|２０２１-01-01T00:00:00Z|2021-01-01T00:00:00+99:00"
        for came in [1609459200, 1609459200.0, 1609459200.9, *times.split("|")]:
            response = completions.CompletionsResponse.from_dict({"choices": [], "created": came})
            self.assertEqual((response.created, response.extra), (1609459200, {}), came)
            self.assertIs(type(response.created), int)
        for came in [*garbage.split("|"), math.nan, math.inf, -math.inf, True, [1609459200], {}]:
            response = completions.CompletionsResponse.from_dict({"choices": [], "created": came})
            self.assertEqual((response.created, response.extra), (0, {"created": came}))

    def test_what_is_no_completion_raises_with_what_it_is(self):
        texts = ["", "nope", '{"choices": [', "{} {}", "'a'", "[" * 100_000, '{"a":' * 100_000]
        if hasattr(sys, "get_int_max_str_digits"):
            texts.append('{"choices": [], "new": %s}' % ("1" * 5000))
        cases = [(form, text) for text in texts for form in (text, text.encode())]
        cases += [(data, data) for data in (b'\xff{"choices": []}', b'{"id": "\xe9"}')]
        for cls, (given, body) in itertools.product(RECEIVED, cases):
            with self.subTest(cls=cls.__name__, given=given[:20]):
                self.assertEqual(self.fails(NO_COMPLETION, cls.from_json, given).body, body)
        for cls, value in itertools.product(RECEIVED, (None, True, 7, 1.5, "x", [], [{}])):
            for method, given in ((cls.from_dict, value), (cls.from_json, json.dumps(value))):
                error = self.fails(NO_COMPLETION, method, given)
                expected = f"{cls.__name__} as JSON: expected dict, got {type(value).__name__}"
                self.assertEqual(str(error), expected)
                self.assertEqual((error.body, type(error.body)), (value, type(value)))

        for cls, given in itertools.product(RECEIVED, (None, 5, {}, io.StringIO("{}"))):
            self.assertRegex(str(self.fails(TypeError, cls.from_json, given)), "^text: .* bytes, ")

    def test_infinities_and_nan_are_written_as_they_came(self):
        rows = '"token_logprobs": [-Infinity, NaN, Infinity], "top_logprobs": [{"a": -Infinity}]'
        logprobs = completions.LogProbs.from_json(f"{{{rows}}}")
        self.assertEqual((logprobs.token_logprobs[0], logprobs.extra), (-math.inf, {}))
        self.assertIn(rows, logprobs.to_json())
        del logprobs.token_logprobs[1]
        self.assert_lossless(logprobs, {"token_logprobs": [-math.inf, math.inf]})

    def test_text_is_that_of_the_choice_with_the_lowest_index(self):
        for indices, text in [((), ""), ((2, 1, 3), "1"), ((0, 1), "0"), ((None, 0, 1), "None")]:
            choices = [{"index": index, "text": str(index)} for index in indices]
            response = completions.CompletionsResponse.from_dict({"choices": choices})
            self.assertEqual(response.text, text)

    def test_responses_are_values(self):
        response = completions.CompletionsResponse.from_dict(filled({"new": [7]}))
        response.request_id = "req-1"
        protocols = range(pickle.HIGHEST_PROTOCOL + 1)
        copies = [pickle.loads(pickle.dumps(response, protocol)) for protocol in protocols]
        copies += [copy.copy(response), copy.deepcopy(response), dataclasses.replace(response)]
        for other in [*copies, eval(repr(response), {**vars(completions)})]:
            self.assertEqual((type(other), vars(other)), (type(response), vars(response)))
            other.request_id = "req-2"
            self.assertTrue(other == response and not other != response)
        self.assertNotIn("req-1", response.to_json())
        copies[-2].choices[1].logprobs.extra["new"].append(8)  # of the deep copy
        self.assertNotEqual(copies[-2], response)
        self.assertNotEqual(response, vars(response))
        self.assertTrue(response == unittest.mock.ANY)  # which says so itself
        for cls in RECEIVED:
            for name in [*wire_fields(cls), "extra"]:
                other = cls(**{**least(cls), name: "another"})
                self.assertNotEqual(other, cls(**least(cls)))
                self.assertIn(f"{name}='another'", repr(other))

    def test_any_json_is_read_soundly_or_refused(self):
        chance = random.Random(20210101)
        values = {"bool": [True, False], "int": [0, 7, -1, 2**70], "float": [0.5, -3, -math.inf]}
        values["str"] = ["", "a\n\u2028é😀", "\ud800", "2021-01-01T00:00:00Z"]
        fields = [field for cls in DATA.values() for field in dataclasses.fields(cls)]
        kinds, names = [field.type for field in fields], [field.name for field in fields]

        def some(annotation: str) -> object:
            """A JSON value, mostly of a type."""
            if annotation == "Any" or chance.random() < 0.06:
                annotation = chance.choice(kinds)
            name, items = chance.choice(alternatives(annotation))
            if name == "list":
                return [some(items) for _ in range(chance.randrange(3))]
            if name == "dict":
                return {chance.choice(names): some(items) for _ in range(chance.randrange(2))}
            if name in DATA:
                members = DATA[name].__annotations__.items()
                return {n: some(kind) for n, kind in members if chance.random() < 0.7}
            return chance.choice(values.get(name, [None]))

        decisive = r"choices(\[\d\])?|(choices\[\d\]\.)?(text|index|finish_reason)"
        for cls in RECEIVED:
            outcomes = collections.Counter()
            for _ in range(1000):
                data = some(cls.__name__)
                before = json.dumps(data)
                with self.subTest(cls=cls.__name__, data=data):
                    try:
                        new = cls.from_dict(data)
                        self.assert_lossless(new, data)
                    except NO_COMPLETION as error:
                        new = None
                        self.assertIs(error.body, data)
                        self.assertRegex(
                            str(error), rf"^({decisive}|{cls.__name__} as JSON): expected "
                        )
                    self.assertEqual(json.dumps(data), before)  # it is not changed
                    outcomes[type(new)] += 1
            self.assertTrue(outcomes[cls] > 100 and outcomes[type(None)] > 10, outcomes)


class RequestDataTest(Case):
    def request(self, **parameters: object) -> completions.CompletionsRequest:
        return completions.CompletionsRequest(**{"prompt": "p", "model": "m", **parameters})

    def test_a_request_goes_one_way_and_needs_prompt_and_model(self):
        for name in ("from_dict", "from_json"):
            self.assertFalse(hasattr(completions.CompletionsRequest, name))
        for parameters in ({}, {"prompt": "p"}, {"model": "m"}):
            self.assertRaises(TypeError, completions.CompletionsRequest, **parameters)

    def test_what_fits_is_sent_and_a_wrong_type_is_a_type_error_that_names_the_parameter(self):
        parameters = completions.CompletionsRequest.__annotations__.items()
        samples = [*JSON_SAMPLES, b"x", (), ("x",), {"x"}, object(), 1j]
        for (name, kind), value in itertools.product(parameters, samples):
            request = self.request(**{name: value})
            with self.subTest(parameter=name, value=value):
                if not conforms(value, kind):
                    for method in (request.to_dict, request.to_json):
                        self.assertRegex(str(self.fails(TypeError, method)), rf"\b{name}\b")
                    continue
                sent = {} if value is None else value if name == "extra" else {name: value}
                sent = {"stop": [value]} if name == "stop" and isinstance(value, str) else sent
                self.assertEqual(request.to_dict(), {"prompt": "p", "model": "m", **sent})
                if value != math.inf:
                    self.assertEqual(json.loads(request.to_json()), request.to_dict())

    def test_subclasses_of_what_json_has_are_what_they_are_subclasses_of(self):
        class Text(str):
            pass

        class Whole(int):
            pass

        class Real(float):
            pass

        request = self.request(prompt=[Whole(7)], stop=[Text("x")], logit_bias={"7": Real(0.5)})
        body = json.loads(request.to_json())
        self.assertEqual([body[name] for name in ("prompt", "stop")], [[7], ["x"]])
        self.assertEqual(body["logit_bias"], {"7": 0.5})
        server = self.serve(stream_reply(event(chunk("a", "stop"))))  # the one that was asked for
        client = self.client(server)
        self.assertEqual(len(list(client.create_stream([Whole(7), Whole(8)], "m"))), 1)
        self.assertEqual(len(list(client.create_stream([Text("7")], "m"))), 1)

    def test_what_has_no_json_and_what_extra_may_not_hold_is_named_and_nothing_is_sent(self):
        circle, deep = [], []
        circle.append(circle)
        for _ in range(100_000):
            deep = [deep]
        floats = ("frequency_penalty", "presence_penalty", "temperature", "top_p")
        cases = [(ValueError, name, math.nan) for name in floats]
        cases += [(ValueError, "temperature", value) for value in (math.inf, -math.inf)]
        cases += [(ValueError, "logit_bias", {"7": math.nan})]
        cases += [(ValueError, "stream_options", {"a": [-math.inf]})]
        cases += [(TypeError, "stream_options", {"a": b"x"})]
        cases += [(ValueError, "top_k", value) for value in ([{"a": math.inf}], circle, deep)]
        cases += [(TypeError, "top_k", value) for value in (object(), {(): 1}, {7})]
        cases += [(ValueError, "extra", {name: None}) for name in ("stream", *vars(self.request()))]
        if hasattr(sys, "get_int_max_str_digits"):
            cases.append((ValueError, "seed", 10**5000))
        server = self.serve()
        client = self.client(server)
        for kind, name, value in cases:
            parameters = {"extra": {name: value}} if name == "top_k" else {name: value}
            with self.subTest(parameter=name):
                message = str(self.fails(kind, self.request(**parameters).to_json))
                self.assertRegex(message, rf"\b{name}\b")
                for call in (client.create, client.create_stream):
                    self.assertEqual(str(self.fails(kind, call, "p", "m", **parameters)), message)
        self.assertEqual(server.connections, 0)

    def test_a_request_is_replayed_by_its_variables(self):
        many = {"prompt": [[7], [8]], "n": 2, "stop": "x", "logit_bias": {"7": -100}, "echo": False}
        request = self.request(temperature=0, extra={"top_k": 40, "none": None}, **many)
        same = [completions.CompletionsRequest(**vars(request)), copy.deepcopy(request)]
        same += [pickle.loads(pickle.dumps(request)), eval(repr(request), {**vars(completions)})]
        self.assertEqual(same, [request] * 4)
        self.assertNotEqual(dataclasses.replace(request, n=1), request)
        server = self.serve()
        self.client(server).create(**vars(request))
        body = json.loads(server.requests[0].partition(b"\r\n\r\n")[2])
        sent = {**many, "model": "m", "stop": ["x"], "temperature": 0, "top_k": 40, "none": None}
        self.assertEqual((body, request.to_dict()), (sent, sent))


# ------------------------------------------------------------------------ the client and its errors


def sent(server: ScriptedServer, place: int = -1) -> tuple:
    """The request line, the headers by lower-case names and the body of a request."""
    head, _, body = server.requests[place].partition(b"\r\n\r\n")
    line, *fields = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, value in (field.split(": ", 1) for field in fields)}
    assert len(headers) == len(fields), "a header was sent twice"
    return line, headers, json.loads(body.decode())


def run_script(code: str, server: ScriptedServer) -> tuple:
    """What a script, with a server as its default one, prints and writes to standard error."""
    folder = os.path.dirname(os.path.abspath(completions.__file__))
    variables = {**os.environ, "PYTHONPATH": folder, "COMPLETIONS_BASE_URL": server.base_url}
    dev = ["-X", "dev"] if sys.version_info[:2] != (3, 8) else []  # there, any fork in it crashes
    command = [sys.executable, "-W", "error", *dev, "-c", textwrap.dedent(code)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "universal_newlines": True}
    done = subprocess.run(command, env=variables, timeout=50, **pipes)
    return done.stdout, done.stderr


def http_date(seconds: float) -> str:
    """The time in so many seconds, as headers have it."""
    return time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + seconds))


class WatchedCase(Case):
    """Looks for the key in all that a test brings forth: errors and log lines."""

    def setUp(self) -> None:
        super().setUp()
        self.seen, logger, handler = [], logging.getLogger("completions"), logging.Handler()
        handler.emit = lambda record: self.seen.append(record.getMessage())
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
        self.addCleanup(lambda: self.assertNotIn(KEY, "\n".join(self.seen)))
        self.addCleanup(logger.removeHandler, handler)

    def fails(self, kind: type, function: object, *args: object, **kwargs: object) -> Exception:
        """The error that a call raises, of just this kind, or of one below APIError itself."""
        with self.assertRaises(kind) as caught:
            function(*args, **kwargs)
        error, text = caught.exception, str(caught.exception)
        if kind is not completions.APIError:
            self.assertIs(type(error), kind)
        self.assertTrue(text and text.isprintable() and len(text) < 1000, text[:2000])
        self.seen += [text, repr(error)]
        return error

    def failure(self, *replies: object, **options: object) -> tuple:
        """The error of a call to a server that replies like that, and the server."""
        server = self.serve(*replies)
        create = self.client(server, **options).create
        return self.fails(completions.APIError, create, "p", "m"), server


class CallTest(WatchedCase):
    def test_signature_and_help_list_the_parameters_of_the_request(self) -> None:
        fields = [field.name for field in dataclasses.fields(completions.CompletionsRequest)]
        for owner in (completions.Client, completions.Client(), completions):
            for function in (owner.create, owner.create_stream):
                parameters = list(inspect.signature(function).parameters.values())
                if owner is completions.Client:
                    self.assertEqual(parameters.pop(0).name, "self")
                self.assertEqual([parameter.name for parameter in parameters], fields)
                kinds = [parameter.kind.name for parameter in parameters]
                self.assertEqual(kinds[:2], ["POSITIONAL_OR_KEYWORD"] * 2)
                self.assertEqual({*kinds[2:]}, {"KEYWORD_ONLY"})
                with contextlib.redirect_stdout(io.StringIO()) as shown:
                    help(function)
                for name in fields:
                    self.assertIn(f"{name}:", shown.getvalue())

    def test_a_request_as_it_is_sent_and_replayed(self) -> None:
        server = self.serve(stream_reply(event(chunk("a", "stop"))), reply())
        client = self.client(server, headers={"X-Team": "blue"})
        request = completions.CompletionsRequest("Grüße", "m", stop="x", n=1, extra={"top_k": 4})
        self.assertEqual([c.text for c in client.create_stream(**vars(request))], ["a"])
        client.create("Grüße", "m", stop="x", n=1, extra={"top_k": 4})
        client.create(**vars(request))
        for place, more in enumerate(({"stream": True}, {}, {})):
            line, headers, body = sent(server, place)
            self.assertEqual(line, "POST /v1/completions HTTP/1.1")
            self.assertTrue(0 < int(headers.pop("content-length")))
            version = "{}.{}".format(*sys.version_info)
            expected = {
                "host": f"127.0.0.1:{server.port}",
                "content-type": "application/json",
                "user-agent": f"completions/{completions.__version__} Python/{version}",
                "authorization": f"Bearer {KEY}",
                "accept-encoding": "identity",
                "x-team": "blue",
            }
            self.assertEqual(headers, expected)
            asked = {"prompt": "Grüße", "model": "m", "stop": ["x"], "n": 1, "top_k": 4, **more}
            self.assertEqual(body, asked)

    def test_headers_of_the_caller_go_in_place_of_the_clients_own(self) -> None:
        names = "HOST", "User-Agent", "accept-encoding", "Content-Type", "Authorization"
        server = self.serve(reply())
        self.client(server, headers=dict.fromkeys(names, "mine")).create("p", "m")
        headers = sent(server)[1]
        del headers["content-length"]
        self.assertEqual(headers, dict.fromkeys(map(str.lower, names), "mine"))

    def test_the_functions_of_the_module_pickle(self) -> None:
        for function in completions.create, completions.create_stream:
            self.assertIs(pickle.loads(pickle.dumps(function)), function)

    def test_the_request_id_is_on_an_answer_and_on_each_chunk(self) -> None:
        for header, expected in (("X-Request-Id: req-7", "req-7"), ("X-Other: 5", None)):
            head = STREAM_HEAD[:-2] + header.encode() + b"\r\n\r\n"
            events = framed(event(chunk("a")), event(chunk("b", "stop"))) + b"0\r\n\r\n"
            client = self.client(self.serve(reply(answer(), 200, header), head + events))
            self.assertEqual(client.create("p", "m").request_id, expected)
            stream = client.create_stream("p", "m")
            chunks = [*stream, stream, stream.response]
            self.assertEqual([chunk.request_id for chunk in chunks], [expected] * 4)

    def test_wrong_arguments_are_named_and_nothing_is_sent(self) -> None:
        cases = [
            (TypeError, "top_k.*extra", {"top_k": 1}),
            (TypeError, "timeout.*with_options", {"timeout": 1}),
            (TypeError, "create_stream", {"stream": True}),
            (TypeError, "prompt", {"prompt": 1}),
            (TypeError, "model", {"model": None}),
            (TypeError, r"\bn\b", {"n": True}),
            (TypeError, "extra", {"extra": None}),
            (TypeError, "extra", {"extra": []}),
            (TypeError, "thing", {"extra": {"thing": object()}}),
            (ValueError, "temperature", {"temperature": math.nan}),
            (ValueError, "thing", {"extra": {"thing": [math.inf]}}),
            (ValueError, "extra", {"extra": {"n": 1}}),
            (ValueError, "stream", {"extra": {"stream": False}}),
        ]
        server = self.serve()
        client = self.client(server)
        for call in (client.create, client.create_stream):
            for kind, named, wrong in cases:
                with self.subTest(wrong):
                    error = self.fails(kind, call, **{"prompt": "p", "model": "m", **wrong})
                    self.assertRegex(str(error), named)
            for args in ((), ("p",), ("p", "m", 5)):
                self.fails(TypeError, call, *args)
        self.assertEqual(server.connections, 0)

    def test_the_functions_of_the_module_share_one_client(self) -> None:
        server = self.serve(reply(), stream_reply(event(chunk("a", "stop"))))
        self.set_environment("COMPLETIONS_BASE_URL", server.base_url)
        self.set_environment("COMPLETIONS_API_KEY", KEY)
        self.assertEqual(completions.create("p", "m").text, "This is a test")
        self.set_environment("COMPLETIONS_BASE_URL", "http://elsewhere.invalid")
        self.assertEqual([c.text for c in completions.create_stream("p", "m")], ["a"])
        self.assertEqual((server.connections, len(server.requests)), (1, 2))
        self.assertEqual(sent(server)[1]["authorization"], f"Bearer {KEY}")


class OptionsTest(WatchedCase):
    def test_wrong_options_are_named_and_secrets_are_not_shown(self) -> None:
        unsendable = [{KEY + end: "x"} for end in (" ", ":", "\r\n", "é")]
        unsendable += [{"x": KEY + end + "x"} for end in ("\n", "\r\n ", "\x00", "€")]
        cases = [  # the option, values of a wrong type, values that are out of range
            ("timeout", ("1", True, []), [math.nan]),
            ("idle_timeout", ("1", False), [math.nan]),
            ("max_retries", (1.5, None, True, "2"), [-1]),
            ("max_response_bytes", (1e6, None, True), [-1]),
            ("api_key", (KEY.encode(), 5), [KEY + end for end in (" x", "\nx", "\x7f", "é", "€")]),
            ("headers", ([KEY], KEY, {KEY: 1}, {1: KEY}), unsendable),
            ("base_url", (b"http://h", 5), [""]),
            *(("ssl_context", ("x",), []), ("no_such_option", (3,), [])),
        ]
        for make in (completions.Client, completions.Client().with_options):
            for name, mistyped, others in cases:
                for value in (*mistyped, *others):
                    with self.subTest(**{name: value}):
                        kind = ValueError if repr(value) in map(repr, others) else TypeError
                        self.assertIn(name, str(self.fails(kind, make, **{name: value})))
        self.set_environment("ATOMASDK_BEARER_AUTH", f"{KEY} x")
        self.assertIn("ATOMASDK_BEARER_AUTH", str(self.fails(ValueError, completions.Client)))

    def test_the_defaults_are_those_of_the_contract(self) -> None:
        defaults = {"timeout": 600.0, "max_retries": 2, "max_response_bytes": 64 * 1024 * 1024}
        for name, parameter in inspect.signature(completions.Client).parameters.items():
            self.assertEqual(parameter.default, defaults.get(name), name)

    def test_any_number_of_seconds_is_a_timeout(self) -> None:
        client = self.client(self.serve())
        for timeout in (None, 5, 1e300, math.inf, 10**400):
            with self.subTest(timeout=timeout):
                self.assertEqual(client.with_options(timeout=timeout).create("p", "m").id, "cmpl-1")

    def test_the_endpoint_is_added_to_the_path_of_the_base_url(self) -> None:
        proxy = SmallProxy(upstream=self.serve().port).__enter__()
        self.addCleanup(proxy.__exit__)
        self.set_environment("http_proxy", proxy.url)
        cases = {
            "http://h.example/v1": "h.example/v1/completions",
            "http://h.example/v1/": "h.example/v1/completions",
            "http://h.example": "h.example/completions",
            "HTTP://H.EXAMPLE:80/V1": "h.example/V1/completions",
            "http://h.example:81/d%20?v=1&b=": "h.example:81/d%20/completions?v=1&b=",
            "http://h.example/?a=b/c": "h.example/completions?a=b/c",
            "http://[::1]:8080/v1": "[::1]:8080/v1/completions",
            "http://[::1]/v1": "[::1]/v1/completions",
            "http://bücher.example/v1": "xn--bcher-kva.example/v1/completions",
        }
        for given, expected in cases.items():
            for base_url, variable in ((given, None), (None, given)):
                with self.subTest(base_url=base_url, variable=variable):
                    self.set_environment("COMPLETIONS_BASE_URL", variable)
                    with completions.Client(KEY, base_url) as client:
                        client.create("p", "m")
                    line, headers = proxy.log[-1].lower().split("\n", 1)
                    self.assertEqual(line, f"post http://{expected.lower()} http/1.1")
                    self.assertIn(f"host: {expected.partition('/')[0]}\n", headers)

    def test_a_base_url_that_cannot_be_meant_is_refused_without_showing_it(self) -> None:
        cases = "h.example/v1 ftp://h.example file:///etc/passwd http:// http:///v1 //h.example"
        cases += (
            " http://?a=b http://[::1 http://h:port/ http://h:99999 http://h/v1#there http://h\1/"
        )
        cases += (
            f" http://u:{KEY}@h/v1 http://{KEY}@h https://u:{KEY}@[::1 http://u:{KEY}/x@h:port/"
        )
        cases += f" http://h\x7f/ http://h/\x7f http://h/?a=\x1b http://h\u200e http://{'é' * 80}/"
        cases = [
            *cases.split(" "),
            "http://h/a b",
            "http://h/a\nb",
            "http://h\t/",
            "http://h\r\nX: y/",
            *(
                "http://h:0",
                "http://h:65536",
                "http://h:\uff11",
                "http://u\uff20h/v1",
                "https://api.openai.com\uff0f.example/v1",
                "http://api.openai.com\uff0540h/v1",
                "http://\xa0h/v1",
                "http://\uff3bh/v1",
            ),
        ]
        for base_url in cases:
            with self.subTest(base_url.encode()):
                error = self.fails(ValueError, completions.Client, base_url=base_url)
                self.assertRegex(str(error), "^base_url: ")
                self.set_environment("COMPLETIONS_BASE_URL", base_url)
                self.fails(ValueError, completions.Client)


class KeyTest(WatchedCase):
    """With proxies that take every host to servers of ours."""

    def setUp(self) -> None:
        super().setUp()
        self.context, self.reply, self.proxies = client_context(), reply(), []
        self.context.check_hostname = False
        answers, self.requests = lambda sock: sock.sendall(self.reply), []
        for scheme, tls in (("http", None), ("https", server_context())):
            server = self.serve(answers, tls=tls)
            server.requests = self.requests
            self.proxies.append(SmallProxy(upstream=server.port).__enter__())
            self.addCleanup(self.proxies[-1].__exit__)
            self.set_environment(f"{scheme}_proxy", self.proxies[-1].url)

    def keys(self, names: str = "") -> None:
        self.set_environment("ATOMASDK_BEARER_AUTH", " atoma-key\n" if "A" in names else None)
        self.set_environment("OPENAI_API_KEY", "openai-key" if "O" in names else None)
        self.set_environment("COMPLETIONS_API_KEY", "\town-key " if "C" in names else None)

    def authorization(self, base_url: str = "https://api.atoma.network", **options: object):
        options = {"max_retries": 0, "ssl_context": self.context, **options}
        with completions.Client(base_url=base_url, **options) as client:
            client.create("p", "m")
        return sent(self)[1].get("authorization")

    def test_a_key_of_the_environment_goes_to_its_own_origin_only(self) -> None:
        atoma, openai, own = "https://api.atoma.network", "https://api.openai.com", "https://own"
        cases = {  # whose key is sent: base_url, $COMPLETIONS_BASE_URL, the variables that are set
            "atoma": [(None, None), (None, ""), (atoma, own), (atoma + ":443/v2", None)],
            "openai": [(openai, None), (openai, own), (openai, openai, "AO")],
            "own": [(None, own), (own, own + ":443/v1"), (None, "http://own/v1", "C")],
            None: [
                *((atoma, None, "OC"), (atoma + ":8443", None), ("http://api.atoma.network", None)),
                *((atoma + ".evil", None), (openai, None, "AC"), ("http://api.openai.com", None)),
                *((own, None), (own, "http://own"), (own, own, "AO"), (own, own + ":444")),
                *((own, "no url"), ("https://other", own)),
            ],
        }
        cases["own"].append((openai, openai, "AC"))
        for owner, places in cases.items():
            for base_url, variable, *names in places:
                with self.subTest(base_url=base_url, variable=variable, names=names):
                    self.set_environment("COMPLETIONS_BASE_URL", variable)
                    self.keys(*names or ["AOC"])
                    expected = owner and f"Bearer {owner}-key"
                    self.assertEqual(self.authorization(base_url), expected)
        self.assertNotIn("-key", "".join(self.proxies[1].log))

    def test_a_key_that_is_given_wins_and_one_in_the_headers_wins_over_it(self) -> None:
        self.keys("AOC")
        self.assertEqual(self.authorization(api_key=f" {KEY}\n"), f"Bearer {KEY}")
        headers = {"AUTHORIZATION": "Basic abc"}
        self.assertEqual(self.authorization(headers=headers), "Basic abc")
        self.assertEqual(self.authorization(headers=headers, api_key=KEY), "Basic abc")
        self.set_environment("ATOMASDK_BEARER_AUTH", " \n")
        self.assertIsNone(self.authorization())

    def test_a_401_without_a_key_names_the_variable_to_set(self) -> None:
        self.reply = reply({"error": "Who are you?"}, 401)
        names = ("ATOMASDK_BEARER_AUTH", "OPENAI_API_KEY", "COMPLETIONS_API_KEY")
        urls = ("https://api.atoma.network/v1", "https://api.openai.com/v1", "http://own/v1")
        for name, base_url in zip(names, urls):
            for options in ({}, {"api_key": KEY}, {"headers": {"authorization": f"Bearer {KEY}"}}):
                kind, arguments = completions.AuthenticationError, {"base_url": base_url, **options}
                message = str(self.fails(kind, self.authorization, **arguments))
                self.assertIn("Who are you?", message)
                found = [variable for variable in names if variable in message]
                self.assertEqual(found, [] if options else [name])
        for options, hint in [
            ({"headers": {"api-key": KEY}}, False),
            ({"headers": {"X-API-Key": KEY}}, False),
            ({"api_key": "EMPTY"}, False),
            ({"headers": {"x-team": "production"}}, True),
        ]:
            message = str(self.fails(kind, self.authorization, base_url=urls[0], **options))
            self.assertEqual("no key was sent" in message, hint, options)
        message = str(self.fails(kind, self.authorization, base_url="http://elsewhere/v1"))
        self.assertIn("or set COMPLETIONS_BASE_URL and COMPLETIONS_API_KEY at the start)", message)
        self.reply = reply({"odd": "shape"}, 401)
        message = str(self.fails(kind, self.authorization, base_url=urls[0]))
        self.assertRegex(message, '"shape".*no key was sent')


class WithOptionsTest(WatchedCase):
    def test_it_shares_the_connections_and_closing_either_closes_them(self) -> None:
        for closed in (0, 1):
            server = self.serve()
            client = self.client(server, headers={"X-A": "1", "X-B": "1"})
            given = {"timeout": 5, "api_key": "other", "headers": {"x-a": "2", "X-C": "2"}}
            pair = client, client.with_options(**given)
            for place in (0, 1, 0):
                pair[place].create("p", "m")
                headers = sent(server)[1]
                found = [headers.get(name) for name in ("authorization", "x-a", "x-b", "x-c")]
                expected = [f"Bearer {KEY}", "1", "1", None], ["Bearer other", "2", "1", "2"]
                self.assertEqual(found, expected[place])
            self.assertEqual(server.connections, 1)
            pair[closed].close()
            self.assertTrue(server.left.wait(10))

    def test_an_ssl_context_of_its_own_shares_nothing(self) -> None:
        server = self.serve(tls=server_context())
        client = self.client(server, ssl_context=client_context())
        client.create("p", "m")
        with client.with_options(ssl_context=client_context()) as other:
            other.create("p", "m")
            self.assertEqual(server.connections, 2)
        self.assertTrue(server.left.wait(10))
        client.create("p", "m")
        self.assertEqual(server.connections, 2)

    def test_another_origin_gets_neither_the_key_nor_the_headers(self) -> None:
        here, there = self.serve(), self.serve()
        client = self.client(here, headers={"X-Secret": "s"})
        away = client.with_options(base_url=there.base_url)
        self.set_environment("COMPLETIONS_BASE_URL", there.base_url)
        self.set_environment("COMPLETIONS_API_KEY", "own-key")
        localhost = here.base_url.replace("127.0.0.1", "localhost")
        given = {"api_key": "k", "headers": {"X-New": "n"}}
        cases = [  # from whom, to which server, by which URL, with what else, what is sent
            (client, here, f"{here.base_url}/x", {}, [f"Bearer {KEY}", "s", None]),
            (client, here, localhost, {}, [None] * 3),
            (client, there, there.base_url, {}, ["Bearer own-key", None, None]),
            (client, there, None, {}, ["Bearer own-key", None, None]),
            (client, there, there.base_url, given, ["Bearer k", None, "n"]),
            (away, there, there.base_url, {"timeout": 5}, ["Bearer own-key", None, None]),
            (away, here, here.base_url, {}, [None] * 3),
        ]
        for origin, server, base_url, more, expected in cases:
            origin.with_options(base_url=base_url, **more).create("p", "m")
            headers = sent(server)[1]
            found = [headers.get(name) for name in ("authorization", "x-secret", "x-new")]
            self.assertEqual(found, expected)
        self.assertRegex(str(self.fails(TypeError, client.with_options, base_url=5)), "^base_url: ")

    def test_a_subclass_stays_one(self) -> None:
        class Tenant(completions.Client):
            def __init__(self, tenant: str, base_url: str) -> None:
                super().__init__(KEY, base_url)
                self.tenant = tenant

        with Tenant("blue", self.serve().base_url) as client:
            other = client.with_options(timeout=5)
            self.assertEqual((type(other), other.tenant), (Tenant, "blue"))
            self.assertEqual(other.create("p", "m").text, "This is a test")


class LifetimeTest(WatchedCase):
    def test_leaving_the_context_closes_and_a_later_call_connects_anew(self) -> None:
        server = self.serve()
        with self.client(server) as client:
            client.create("p", "m")
        self.assertTrue(server.left.wait(10))
        self.assertEqual(client.create("p", "m").text, "This is a test")

    def test_a_client_is_pickled_and_copied_without_its_connections(self) -> None:
        server = self.serve()
        client = self.client(server, timeout=7, headers={"X-A": "1"})
        client.create("p", "m")
        twins = [pickle.loads(pickle.dumps(client, protocol)) for protocol in range(5)]
        for twin in (*twins, copy.copy(client), copy.deepcopy(client)):
            self.assertEqual(twin._options, client._options)
            with twin:
                twin.create("p", "m")
        self.assertEqual((server.connections, len({*server.requests})), (8, 1))
        client.create("p", "m")
        self.assertEqual(server.connections, 8)
        self.seen.append(repr(client))

    @unittest.skipUnless(hasattr(os, "fork"), "needs fork")
    def test_a_forked_child_connects_anew_and_leaves_its_parent_the_connection(self) -> None:
        script = """
            import completions, os
            client = completions.Client()
            print(client.create("p", "m").text, flush=True)
            child = os.fork()
            if child:
                print(os.waitpid(child, 0)[1], flush=True)
            print(client.create("p", "m").text, flush=True)
        """
        server, text = self.serve(), "This is a test\n"
        self.assertEqual(run_script(script, server), (f"{text}{text}0\n{text}", ""))
        self.assertEqual((server.connections, len(server.requests)), (2, 3))

    def test_an_idle_connection_does_not_keep_its_last_answer(self) -> None:
        server = self.serve(reply({**answer(), "large": "x" * 1_000_000}))
        client = self.client(server)
        client.create("p", "m")
        [connection] = client._connections.idle
        client.create("p", "m")
        self.assertEqual([*client._connections.idle], [connection])
        self.assertEqual(connection.body.getvalue(), b"")

    @unittest.skipUnless(sys.implementation.name == "cpython", "garbage stays for a while")
    def test_an_interrupted_stream_is_gone_with_its_last_reference(self) -> None:
        self.addCleanup(gc.enable)
        gc.disable()
        for end in "close", "hold":
            with self.subTest(end):
                server = self.serve([CHUNKED + framed(event(chunk("Hi"))), end])
                stream = self.client(server, timeout=0.3).create_stream("p", "m")
                kept = weakref.ref(stream)
                with contextlib.suppress(completions.APIError):
                    collections.deque(stream)
                del stream
                self.assertIsNone(kept())

    def test_forgotten_clients_and_the_default_one_close_without_a_warning(self) -> None:
        script = """
            import completions, gc, sys
            completions.Client().create("p", "m")
            for _ in "PyPy":
                gc.collect()
            completions.create("p", "m")
            print("logging" in sys.modules)
            sys.modules["logging"] = type(sys)("logging")  # as while another thread imports it
            completions.create("p", "m")
        """
        server = self.serve(reply(), [lambda _: server.left.wait(10), reply()], reply())
        self.assertEqual(run_script(script, server), ("False\n", ""))
        self.assertEqual(server.connections, 2)


class ErrorTest(WatchedCase):
    STATUSES = {
        400: "BadRequest",
        401: "Authentication",
        403: "PermissionDenied",
        404: "NotFound",
        409: "Conflict",
        422: "UnprocessableEntity",
        429: "RateLimit",
        **dict.fromkeys([500, 501, 502, 503, 504, 520, 529, 599], "InternalServer"),
        **dict.fromkeys([300, 304, 402, 405, 408, 413, 418, 423, 425, 451], "APIStatus"),
    }

    def test_the_tree(self) -> None:
        parents = {f"{name}Error": "APIStatusError" for name in self.STATUSES.values()}
        parents.update(APIStatusError="APIError", APIConnectionError="APIError")
        parents.update(APIResponseValidationError="APIError", APITimeoutError="APIConnectionError")
        parents.update(StreamInterruptedError="APIConnectionError")
        for name, parent in parents.items():
            kind = getattr(completions, name)
            self.assertIs(kind.__bases__[0], getattr(completions, parent))
            error, fields = kind("text"), ("code", "type", "param", "body", "request_id", "partial")
            self.assertEqual({getattr(error, field) for field in fields}, {None})
            self.assertEqual(error.message, "text")
            self.assertEqual(str(kind(message="text")), "text")
        error = completions.APIStatusError("text")
        self.assertEqual((error.status_code, error.headers, error.retry_after), (0, {}, None))
        self.assertTrue(issubclass(completions.APIResponseValidationError, ValueError))

    def test_each_status_has_its_class(self) -> None:
        for status, name in self.STATUSES.items():
            with self.subTest(status):
                error, _ = self.failure(reply(b"", status, "X-Request-Id: req_1", "X-Custom: Yes"))
                self.assertIs(type(error), getattr(completions, f"{name}Error"))
                found = error.status_code, error.request_id, error.retry_after, error.partial
                self.assertEqual(found, (status, "req_1", None, None))
                headers = {"content-length": "0", "x-request-id": "req_1", "x-custom": "Yes"}
                self.assertEqual(error.headers, headers)
                self.assertIn(str(status), str(error))

    def test_the_reason_is_found_in_every_shape_of_body(self) -> None:
        openai = {"message": "No model 'x'", "code": "not_found", "type": "bad", "param": "model"}
        loc = [{"loc": ["body", "prompt", 0], "msg": "too long", "type": "v"}]
        html = b"<!DOCTYPE html><html><head><title>\n 502 Bad\nGateway </title></head><p>x</html>"
        cases = [  # the body, what the message says, code, type, param
            ({"error": openai}, "No model 'x'", "not_found", "bad", "model"),
            ({"object": "error", **openai}, "No model 'x'", "not_found", "bad", "model"),
            ({"error": {"code": "LOCKED", "message": "Too many"}}, "Too many", "LOCKED"),
            ({"error": {"code": 404, "message": "No", "param": None}}, "No", 404),
            ({"error": {"code": {}, "message": "No", "type": 5, "param": []}}, "No"),
            ({"error": {"code": 1.5, "message": "No"}}, "No", 1.5),
            ({"error": {"code": True, "message": "No"}}, "No"),
            ({"error": "Busy", "error_type": "overloaded"}, "Busy", None, "overloaded"),
            *(({"error": "Busy"}, "Busy"), ({"detail": "Not Found"}, "Not Found")),
            ({"detail": loc}, "body.prompt.0: too long"),
            ({"detail": [*loc, {"loc": ["n"], "msg": "too low"}]}, "too long; n: too low"),
            ({"message": "Forbidden"}, "Forbidden"),
            ([{"error": {"message": "In a list", "code": 1}}], "In a list", 1),
            *(({"unknown": "shape"}, '"unknown": "shape"'), ({"error": "\x1b"}, '"error": "')),
            ({"error": {"message": "", "code": "why"}}, "why", "why"),
            *((html, "502 Bad Gateway"), (b"<html><body><h1>Oh</h1> no</body></html>", "Oh no")),
            *((b"upstream connect error", "upstream connect error"), ("Text", "Text"), (5, "5")),
            *((b"", "Reason"), (b" \r\n\x1b", "Reason"), (b"\xff", "1 bytes"), ("é".encode(), "é")),
        ]
        for body, expected, *details in cases:
            with self.subTest(body):
                error, _ = self.failure(reply(body, 400))
                self.assertRegex(str(error), f"HTTP 400: .*{re.escape(expected)}")
                details = (*details, None, None, None)[:3]
                self.assertEqual((error.code, error.type, error.param), details)
                with contextlib.suppress(AttributeError, UnicodeDecodeError):
                    body = body.decode()
                self.assertEqual((error.body, error.message), (body, str(error)))
        page = "<html><title>Bad</title><p>x"
        for body, expected in (
            ({"error": {"message": "<|im_end|> is not allowed"}}, "<|im_end|> is not allowed"),
            *(({"error": "<s> of <p>"}, "<s> of <p>"), ({"error": page}, "Bad")),
            ({"error": f"<!doctype html>{page}"}, "Bad"),
            ({"error": page.upper()}, "BAD"),
            *((b"\xef\xbb\xbf" + page.encode(), "Bad"), (f"\r\n {page}".encode(), "Bad")),
        ):
            self.assertEqual(str(self.failure(reply(body, 400))[0]), f"HTTP 400: {expected}")
        error, _ = self.failure(reply(b" " * 6000 + b'{"unknown": "shape"}', 400))
        self.assertIn('"unknown": "shape"', str(error))
        for body, said in (
            ({"detail": "Not Found"}, "Not Found"),
            ({"odd": 1}, '{"odd": 1}'),
            (b"", "Reason"),
        ):
            error, server = self.failure(reply(body, 404))
            url = f"{server.base_url}/completions"
            self.assertEqual(str(error), f"HTTP 404: {said} (POST {url})")

    def test_whatever_the_body_the_message_is_one_short_line(self) -> None:
        def nested(levels: int) -> bytes:
            return b'{"detail": %s"x"%s}' % (b'[{"loc": ["a"], "msg": ' * levels, b"}]" * levels)

        text = "\x1b[31mred\r\nInjected: line\x00\x85\u2028\u202eright\ud800\x9b end"
        bodies = [
            *(b'{"error":' * n + b"1" + b"}" * n for n in (300, 980, 100000)),
            *(b"[" * n + b"]" * n for n in (980, 100000)),
            *map(nested, (450, 490, 700, 1000, 2500, 4900, 20000)),
            *({"error": {"message": text}}, text.encode("utf-8", "surrogatepass")),
            {"error": {"message": "long " * 400000, "code": "x" * 5000}},
            *(b"<" * 1000000, b"<title>" * 100000, b"9" * 100000, b"\x00" * 1000),
            b'{"error": {"code": %s, "message": "m"}}' % (b"9" * 4000),
            *(b"\xff\xfe\x00", b"NaN", b"-Infinity", b"null", b"[]", b"{}", b'{"error": false}'),
            *({"error": error} for error in ({}, [], [[[]]], 0, "")),
            *({"detail": v} for v in ([{"loc": 5}], [{"loc": [{}]}], [{"loc": []}, 7, None], [5])),
            {"detail": [{"loc": ["a"] * 100000, "msg": "m" * 100000}]},
            *({"message": value} for value in ({}, [None], {"message": {"message": 5}}, True)),
        ]
        for body in bodies:
            for status in (400, 200):
                with self.subTest(repr(body)[:60], length=len(body), status=status):
                    error, _ = self.failure(reply(body, status))
                    self.assertIs(isinstance(error, completions.APIStatusError), status == 400)
        for length, end in (490, ""), (491, "..."):
            error, _ = self.failure(reply({"error": "x" * length}, 400))
            self.assertEqual(str(error), "HTTP 400: " + "x" * 490 + end)

    def test_a_status_whose_body_is_endless_or_breaks_or_drips_is_still_that_status(self) -> None:
        self.assertEqual(self.failure(reply(b"x" * 3000000, 500))[0].body, "x" * 2**20)
        cut = b"HTTP/1.1 429 No\r\nContent-Length: 999\r\nX-Request-Id: r\r\n\r\nBusy"
        drip = [step for _ in range(30) for step in (b"y", 0.1)]
        for steps in ([cut, "close"], [cut, 0.1, "reset"], [cut, "hold"], [cut, *drip, "hold"]):
            error, _ = self.failure(steps, timeout=0.6)
            self.assertEqual((type(error), error.request_id), (completions.RateLimitError, "r"))
            self.assertRegex(str(error), "Busyy+" if repr(drip[0]) in map(repr, steps) else "Busy")
        began = time.monotonic()
        self.assertEqual(self.failure([cut, "hold"], timeout=30)[0].body, "Busy")
        self.assertLess(time.monotonic() - began, 15)  # not all the time there is

    def test_a_page_where_an_answer_should_be_is_named_with_the_url(self) -> None:
        page = f"<html><title>Sign in, {KEY}</title></html>".encode()
        none, one = "0 bytes, no text", "1 bytes, no text"
        for body, said in (page, "Sign in, ***"), (b"", none), (b"\xff", one), (b'"x"', "x"):
            for name in ("create", "create_stream")[: 1 + bool(body)]:
                server = self.serve(reply(body))
                call = getattr(self.client(server, api_key=KEY), name)
                error = self.fails(completions.APIResponseValidationError, call, "p", "m")
                expected = f"POST {server.base_url}/completions: no JSON object: {said}"
                self.assertEqual(str(error), expected)

    def test_a_2xx_that_is_no_completion_is_kept_on_the_error(self) -> None:
        details = {"message": "Overloaded", "code": 503, "type": "busy", "param": None}
        invalid, itself = completions.APIResponseValidationError, completions.APIError
        cases = [
            *((200, b"", "", invalid), (204, b"", "", invalid), (200, ["x"], ["x"], invalid)),
            *((200, b"<p>Login", "<p>Login", invalid), (200, b"\xff\xfe", b"\xff\xfe", invalid)),
            *((202, body, body, invalid) for body in ({"id": "x"}, {"choices": None})),
            *((200, {**b, "error": details}, None, itself) for b in ({"id": "x"}, answer())),
            (200, {"object": "error", **details}, None, itself),
        ]
        for status, body, held, kind in cases:
            with self.subTest(body):
                error, server = self.failure(reply(body, status, "X-Request-Id: r"), max_retries=2)
                found = type(error), error.body, error.request_id, len(server.requests)
                self.assertEqual(found, (kind, body if held is None else held, "r", 1))
                if kind is itself:
                    found = error.message, error.code, error.type
                    self.assertEqual(found, ("Overloaded", 503, "busy"))
        fine = self.client(self.serve(reply(answer(error=None)))).create("p", "m")
        self.assertEqual(fine.text, "This is a test")
        error, _ = self.failure(reply({"choices": [{}, {"text": 5}]}))
        self.assertIn("choices[1].text", str(error))

    def test_a_broken_connection_keeps_its_cause_and_its_request_id(self) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            dead = f"http://127.0.0.1:{sock.getsockname()[1]}"
            nowhere = f"http://{'name.' * 60}invalid"  # too long to ask a server of names
            never = f"http://{'a' * 64}.invalid"
            causes = (ConnectionRefusedError, socket.gaierror, type(None))
            for base_url, cause in zip((dead, nowhere, never), causes):
                create = completions.Client(KEY, base_url, max_retries=0).create
                error = self.fails(completions.APIConnectionError, create, "p", "m")
                self.assertIsInstance(error.__cause__, cause)
        error, _ = self.failure([reply(None, 200, "X-Request-Id: r")[:-5], "close"])
        self.assertEqual((type(error), error.request_id), (completions.APIConnectionError, "r"))

    def test_errors_pickle_with_their_fields(self) -> None:
        events = stream_reply(event(chunk("so far")), event({"error": {"message": "Broken"}}))
        with self.client(self.serve(events)).create_stream("p", "m") as stream:
            broken = self.fails(completions.APIError, list, stream)
        self.assertEqual(broken.partial.text, "so far")
        body = {"error": {"message": "No", "code": 7, "type": "t", "param": "p"}}
        refused, _ = self.failure(reply(body, 429, "Retry-After: 3", "X-Request-Id: r"))
        for error in (broken, refused, self.failure("close")[0], self.failure(reply(b"{"))[0]):
            twins = [pickle.loads(pickle.dumps(error, protocol)) for protocol in range(5)]
            for twin in (*twins, copy.copy(error)):
                self.assertIs(type(twin), type(error))
                self.assertEqual((str(twin), vars(twin)), (str(error), vars(error)))

    def test_redirects_are_not_followed(self) -> None:
        target = self.serve()
        for status in (301, 302, 303, 307, 308):
            for location in (f"{target.base_url}/completions", "/v2/completions"):
                server = self.serve(reply(b"", status, f"Location: {location}"))
                client = self.client(server, max_retries=2)
                for call in (client.create, client.create_stream):
                    error = self.fails(completions.APIStatusError, call, "p", "m")
                    found = error.status_code, error.headers["location"], len(server.requests)
                    self.assertEqual(found, (status, location, 1 + (call == client.create_stream)))
                    self.assertIn(location, str(error))
        self.assertEqual(target.connections, 0)
        error, _ = self.failure(reply({"error": "No."}, 400, f"Location: {target.base_url}"))
        self.assertEqual(str(error), "HTTP 400: No.")  # which is no redirect


class RetryTest(WatchedCase):
    @unittest.skipUnless(hasattr(time, "tzset"), "needs tzset")
    def test_a_date_to_retry_after_is_in_its_own_zone(self) -> None:
        self.addCleanup(time.tzset)
        self.set_environment("TZ", "EST5EDT")
        time.tzset()
        for form in ("%a, %d %b %Y %H:%M:%S GMT", "%a, %d %b %Y %T -0000", "%a %b %d %T %Y"):
            date = time.strftime(form, time.gmtime(time.time() + 60))
            server = self.serve(reply({}, 429, f"Retry-After: {date}"))
            error = self.fails(completions.RateLimitError, self.client(server).create, "p", "m")
            self.assertTrue(50 < error.retry_after < 61, (date, error.retry_after))

    def test_what_may_pass_is_retried_as_often_as_allowed(self) -> None:
        again = (408, 409, 425, 429, 500, 502, 503, 504, 520, 529, 599)
        final = (400, 401, 402, 403, 404, 405, 413, 418, 422, 423, 424, 501, 302, 304)
        cases = [(status, (), 2 * (status in again)) for status in (*again, *final)]
        for status in (400, 404, 429, 500, 501):
            cases += [
                (status, (f"X-Should-Retry: {v}",), n) for v, n in (("true", 2), ("false", 0))
            ]
        for status, headers, retries in cases:
            with self.subTest(status, headers=headers):
                refusals = [{"error": f"Attempt {n}."} for n in range(4)]
                head = status, "Retry-After-Ms: 1", *headers
                error, server = self.failure(*(reply(b, *head) for b in refusals), max_retries=2)
                self.assertEqual(len(server.requests), 1 + retries)
                self.assertEqual(len({*server.requests}), 1)
                if status != 304:
                    self.assertIn(f"Attempt {retries}.", str(error))

    def test_the_waits(self) -> None:
        def asks(*headers: str) -> bytes:
            return reply({}, 503, *headers)

        first, second = (0.25, 0.5), (0.5, 1)
        cases = [  # what comes at first, and the least and the most seconds until the next attempts
            ([asks("Retry-After-Ms: 300", "Retry-After: 9")], (0.3, 0.3)),
            ([asks("Retry-After: 1")], (1, 1)),
            ([asks(f"Retry-After: {http_date(3)}")], (1.5, 3)),
            ([asks("Retry-After: 0")], (0, 0)),
            ([asks("Retry-After: soon", "Retry-After-Ms: nan")], first),
            ([asks("Retry-After: -5", "Retry-After-Ms: -5")], first),
            ([asks("Retry-After: Wed, 99 Foo 2026 25:61:61 GMT")], first),
            ([asks("Retry-After: + Jan +99:99 ,")], first),  # an IndexError up to 3.9
            ([asks(), asks("Retry-After:")], first, second),
            *((["close"], first), (["reset"], first)),  # and what is cut: headers, bodies
            *(([[part, "close"]], first) for part in (b"HTTP/1.1 200 OK\r\nX: y", reply()[:-5])),
            ([[STREAM_HEAD + framed(b"{"), "close"]], first),
        ]
        arrivals, servers = [[] for _ in cases], []

        def call(replies: list, times: list) -> None:
            def note(_: object) -> None:
                times.append(time.monotonic())

            steps = ([note, *(r if isinstance(r, list) else [r])] for r in [*replies, reply()])
            servers.append(self.serve(*steps))
            self.client(servers[-1], max_retries=2).create("p", "m")

        pairs = zip((replies for replies, *_ in cases), arrivals)
        threads = [threading.Thread(target=call, args=pair) for pair in pairs]
        for step in (threading.Thread.start, threading.Thread.join):
            for thread in threads:
                step(thread)
        for (replies, *bounds), times in zip(cases, arrivals):
            with self.subTest(replies):
                gaps = [after - before for before, after in zip(times, times[1:])]
                self.assertEqual(len(gaps), len(bounds))
                for gap, (least, most) in zip(gaps, bounds):
                    self.assertTrue(least <= gap <= most + 1, gap)

    def test_the_back_off_doubles_up_to_eight_seconds_with_jitter(self) -> None:
        waits = []
        clock = types.SimpleNamespace(**{**vars(time), "sleep": waits.append})
        with unittest.mock.patch.object(completions, "time", clock):
            self.failure(*[reply({}, 503)] * 8, max_retries=7)
        shares = [wait / most for wait, most in zip(waits, (0.5, 1, 2, 4, 8, 8, 8))]
        self.assertEqual(len(waits), 7)
        self.assertTrue(0.75 < min(shares) < max(shares) <= 1, shares)
        self.assertGreater(len({*shares}), 3)

    def test_a_wait_that_is_too_long_is_not_begun(self) -> None:
        cases = [  # timeout, header, retry_after
            (5, "Retry-After: 6", 6),
            (0.4, "Retry-After-Ms: 450", 0.45),
            (None, "Retry-After: 120.5", 120.5),
            (600, "Retry-After-Ms: 120500", 120.5),
            (None, f"Retry-After: {http_date(300)}", 300),
            (600, "Retry-After: 99999999999999999999", 1e20),
            (0.2, "X-Nothing: asked", None),
        ]
        for timeout, header, expected in cases:
            with self.subTest(header, timeout=timeout):
                began = time.monotonic()
                error, server = self.failure(reply({}, 429, header), max_retries=2, timeout=timeout)
                self.assertLess(time.monotonic() - began, 3)
                self.assertEqual(len(server.requests), 1)
                delta = 3 if "GMT" in header else 1e-6
                self.assertAlmostEqual(error.retry_after or 0, expected or 0, delta=delta)

    def test_a_certificate_that_fails_is_not_tried_again(self) -> None:
        for name, authority in (("other", True), ("server", False)):
            server = self.serve(tls=server_context(name))
            client = self.client(server, max_retries=2, ssl_context=client_context(authority))
            error = self.fails(completions.APIConnectionError, client.create, "p", "m")
            self.assertIsInstance(error.__cause__, ssl.SSLCertVerificationError)
            self.assertIn("certificate", str(error))
            self.assertEqual((server.connections, server.requests), (1, []))

    def test_a_debug_line_for_each_attempt(self) -> None:
        refused = reply({}, 503, "Retry-After-Ms: 1", "X-Request-Id: req_1", "Connection: close")
        server = self.serve(refused, "close", reply(None, 200, "X-Request-Id: req_2\x1b[1m"))
        client = self.client(server, max_retries=2)
        with self.assertLogs("completions", "DEBUG") as logs:
            client.create("p", "m")
        self.assertEqual([r.levelname for r in logs.records], ["DEBUG"] * 3)
        for record, status, name in zip(logs.records, (503, None, 200), ("req_1", None, "req_2")):
            line = record.getMessage()
            self.assertTrue(line.isprintable(), repr(line))
            url = re.escape(f"{server.base_url}/completions")
            self.assertRegex(line, rf"^POST {url}: {status} in \d\d?\.\d+ s\b.*\b{name}\b")


class LeakTest(WatchedCase):
    """A server that knows the key sends it back in every place there is."""

    def test_a_key_that_the_server_echoes_is_not_shown(self) -> None:
        key, said = KEY.encode(), f"Wrong key {KEY}"
        details = {"message": said, "code": KEY, "type": KEY, "param": KEY}
        places = [
            reply({"error": details}, 401),
            *(reply({"detail": [{"loc": [KEY], "msg": said}]}, 422), reply({KEY: said}, 400)),
            *(reply(b'{"error": "%s' % key, 400), reply(b"x" * 4990 + key, 500)),
            *(reply(b"x" * 490 + key, 500), reply(f"<html><title>{said}</title>".encode(), 403)),
            reply(b"\xff" + key, 500),
            b"HTTP/1.1 500 Wrong key %s\r\nContent-Length: 0\r\n\r\n" % key,
            reply({}, 429, f"Retry-After: {KEY}", f"X-Echo: Bearer {KEY}"),
            reply({}, 500, f"X-Request-Id: {KEY}"),
            reply(b"", 307, f"Location: https://evil.example/{KEY}?key={KEY}"),
            *(reply(b"", 200, f"Content-Encoding: {KEY}"), b"HTTP/1.1 %s\r\n\r\n" % key),
            b"HTTP/9.9 %s\r\nX: %s\r\n\r\n" % (key, key),
            b"HTTP/1.1 200 OK\r\n%s\r\n%s: %s\r\n\r\n" % (key, key, key),
            *(STREAM_HEAD + key + b"\r\n" + key, reply({"error": details}), reply({KEY: KEY})),
            *(reply({"choices": [{"text": {KEY: KEY}}]}), reply(key)),
            stream_reply(event({"error": details})),
            *(stream_reply(b"event: error\ndata: %s\n\n" % key), stream_reply(event(f"{{{KEY}"))),
        ]
        owners = {"api_key": KEY}, {"headers": {"Authorization": f"Bearer {KEY}", "x-key": KEY}}
        for data in places:
            for options in owners:
                client = self.client(self.serve([data, "close"]), **{"api_key": None, **options})
                for call in (client.create, lambda *args: list(client.create_stream(*args))):
                    with self.subTest(data[:99], options=[*options]):
                        self.fails(completions.APIError, call, "p", "m")
                        twins = pickle.loads(pickle.dumps(client)), client.with_options(timeout=1)
                        self.seen += [repr(client), *map(repr, twins)]
                        self.assertNotIn(KEY, "\n".join(self.seen))
                    self.seen.clear()

    def test_no_variable_in_the_frames_of_an_error_holds_the_key(self) -> None:
        for data in ["reset"], ["hold"], [b"HTTP/1.1 200 OK\r\n", "close"], [b"H"], reply({}, 400):
            client = self.client(self.serve(data), api_key=KEY, timeout=0.5, max_retries=0)
            for call in client.create, client.create_stream:
                with self.subTest(data=data, call=call.__name__):
                    try:  # assertRaises() would clear the frames
                        call("the prompt", "m")
                    except completions.APIError as error:
                        shown = traceback.TracebackException(
                            type(error), error, error.__traceback__, capture_locals=True
                        )
                    text = "".join(shown.format())
                    self.assertIn('"the prompt"', text)  # so variables are shown
                    self.assertNotIn(KEY, text)

    def test_a_key_in_the_request_id_of_an_answer_is_masked(self) -> None:
        client = self.client(self.serve(reply(None, 200, f"X-Request-Id: id {KEY}")), api_key=KEY)
        with client.create_stream("p", "m") as stream:
            answers = [client.create("p", "m"), stream, *stream, stream.response]
        self.assertEqual([answer.request_id for answer in answers], ["id ***"] * 4)

    def test_the_query_of_the_base_url_is_not_shown(self) -> None:
        with listen() as sock:
            host, port = sock.getsockname()
        client = completions.Client(base_url=f"http://{host}:{port}/v1?key={KEY}", max_retries=0)
        error = self.fails(completions.APIConnectionError, client.create, "p", "m")
        self.assertIn(f"POST http://{host}:{port}/v1/completions: ", str(error))

    def test_a_key_that_begins_another_leaves_nothing_of_it(self) -> None:
        headers = {"a": "abcdefgh", "b": "abcdefghijklmnop", "c": "abcdefghijkl"}
        said = reply({"error": " ".join(headers.values())}, 400)
        self.assertEqual(str(self.failure(said, headers=headers)[0]), "HTTP 400: *** *** ***")

    def test_a_header_of_short_words_is_masked(self) -> None:
        headers = {"X-Token": "correct horse battery"}
        error, _ = self.failure(reply({"error": "No correct horse battery"}, 401), headers=headers)
        self.assertEqual(str(error).partition(" (")[0], "HTTP 401: No ***")

    def test_a_key_of_eight_letters_is_masked(self) -> None:
        error, _ = self.failure(reply({"error": "Wrong key: 12345678"}, 401), api_key="12345678")
        self.assertEqual(str(error), "HTTP 401: Wrong key: ***")

    def test_a_key_of_one_letter_garbles_no_field_of_an_error(self) -> None:
        details = {"message": "No", "code": "c", "type": "t", "param": "p"}
        error, _ = self.failure(reply({"error": details}, 400), api_key="e")
        self.assertEqual((error.code, error.type, error.param), ("c", "t", "p"))


# --------------------------------------------------------------------------------------- the stream


DONE, REQUEST_ID = event("[DONE]"), "X-Request-Id: req-1"
CHUNKED, BARE = (head[:-2] + f"{REQUEST_ID}\r\n\r\n".encode() for head in (STREAM_HEAD, BARE_HEAD))
KEEP_ALIVE = b": keep-alive\n\n"


def sized(body: bytes, missing: int = 0) -> bytes:
    """A stream with a Content-Length, of which some bytes are missing at the end."""
    return b"%sContent-Length: %d\r\n\r\n%s" % (BARE[:-2], len(body) + missing, body)


def endless(data: bytes, pause: float = 0.0) -> typing.Callable[[socket.socket], None]:
    """A step of a scripted server that sends the same until the client leaves."""

    def step(sock: socket.socket) -> None:
        while True:
            sock.sendall(data)
            time.sleep(pause)

    return step


class StreamCase(Case):
    def setUp(self) -> None:
        super().setUp()
        self.seen = threading.Event()  # the client has the first chunk

    def wait_until_seen(self, _: socket.socket) -> None:
        self.seen.wait(5)

    def stream(self, *replies: object, fields: dict = {}, tls: bool = False, **options: object):
        """A stream from a new server, `self.server`, to a new client, `self.user`."""
        self.seen.clear()
        if tls:
            options["ssl_context"] = client_context()
        self.server = self.serve(*replies, tls=server_context() if tls else None)
        self.user = self.client(self.server, **options)
        stream = self.user.create_stream(**{"prompt": "p", "model": MODEL, **fields})
        self.seen.set()
        return stream

    def whole(self, steps: object, came: str, **options: object) -> completions.CompletionsResponse:
        """Reads a stream that is to be whole and have just this text; the response."""
        stream = self.stream(steps, **options)
        self.assertEqual("".join(choice.text for part in stream for choice in part.choices), came)
        self.assertEqual("".join(choice.text for choice in stream.response.choices), came)
        self.assertEqual(list(stream), [])
        return stream.response

    def broken(self, kind: type, steps: object, came: str, **options: object) -> typing.Any:
        """The error that ends a stream after just this text, and again if it is read further."""
        streams, texts = [], []

        def read() -> None:
            streams.append(self.stream(steps, **{"max_retries": 2, **options}))
            for part in streams[0]:
                texts.extend(choice.text for choice in part.choices)

        error = self.fails(kind, read)
        self.assertEqual("".join(texts), came)
        self.assertEqual("".join(choice.text for choice in error.partial.choices), came)
        self.assertEqual((error.request_id, error.partial.request_id), ("req-1", "req-1"))
        self.assertEqual(len(self.server.requests), 1)
        for stream in streams:
            self.assertEqual(str(self.fails(kind, next, stream)), str(error))
            self.assertEqual(stream.response, error.partial)
        return error

    def interrupted(self, steps: object, came: str, **options: object) -> typing.Any:
        return self.broken(completions.StreamInterruptedError, steps, came, **options)


class EventStreamTest(StreamCase):
    LINES = [
        *('\ufeffdata: {"choices": [{"text": "1"}]}', "", ": comment"),
        *('data:{"choices":[{"text":"2"}],"error":null}', "", "data: null", ""),
        *('data:  {"choices":\t[{"text":"3"}]}', "", ""),
        *('data: {"choices": [', "data", ": between", 'data:{"text":"4"}', "data:]}", ""),
        *("id: 7", "retry: 10", "event: x", "what", 'data: {"choices":[{"text":"5"}]}', ""),
        *("data:", "", "data", "", "event: nothing", "", ":", "::", ""),
        *('data : {"wrong":1}', ' data: {"wrong":2}', 'DATA: {"wrong":3}', ""),
        *('\ufeffdata: {"wrong":4}', ""),
        *(': %sdata: {"wrong":5}' % char for char in "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"),
        *('data: {"choices":[{"text":"é\u2028ü\x85€\u2029\x7f😀"}]}', ""),
        *("data: [DONE]", ""),
    ]
    TEXTS = ["1", "2", "3", "4", "5", "é\u2028ü\x85€\u2029\x7f😀"]

    def test_a_stream_is_the_same_in_every_framing_and_wherever_its_bytes_are_cut(self):
        for endings in (["\n"], ["\r"], ["\r\n"], ["\n", "\r", "\r\n"]):
            body = "".join(map("".join, zip(self.LINES, itertools.cycle(endings)))).encode()
            single = [body[i : i + 1] for i in range(len(body))]
            chunks = [body], single, *((body[:cut], body[cut:]) for cut in range(1, len(body)))
            replies = [[CHUNKED + framed(*pieces) + LAST_CHUNK] for pieces in chunks]
            replies += [[CHUNKED, *map(framed, single), LAST_CHUNK], [sized(body)]]
            replies += [[sized(body)[: -len(body)], *single]]
            replies += [[BARE + body, "close"], [BARE, *single, "close"]]
            client = self.client(self.serve(*replies))
            for number in range(len(replies)):
                texts = [part.text for part in client.create_stream("p", MODEL)]
                if texts != self.TEXTS:
                    self.fail(f"line endings {endings}, reply {number}: {texts}")

    def test_lines_of_megabytes_cost_what_their_bytes_cost(self):
        def seconds(size: int) -> float:
            line = event(json.dumps(chunk("é" * size, "stop"), ensure_ascii=False))
            pieces = [line[i : i + 512] for i in range(0, len(line), 512)]
            stream = self.stream(CHUNKED + framed(event(chunk("a")), *pieces) + LAST_CHUNK)
            start = time.process_time()
            self.assertEqual([part.text for part in stream], ["a", "é" * size])
            return time.process_time() - start

        short = min(seconds(500_000) for _ in range(3))
        self.assertLess(min(seconds(4_000_000) for _ in range(3)), 32 * short)  # 8, not 64


class StreamEndTest(StreamCase):
    def ends(self, events: bytes) -> typing.Iterator[tuple]:
        """Every way for a connection to end after some events: its name, the steps, TLS or not."""
        chunked, bare, lost = CHUNKED + framed(events), BARE + events, event(chunk("x", "stop"))
        ends = {
            "after the last chunk": [chunked + LAST_CHUNK],
            "with the last chunk": [chunked + LAST_CHUNK, "close"],
            "in the last chunk": [chunked + LAST_CHUNK[:-2], "close"],
            "before the last chunk": [chunked, "close"],
            "in a chunk": [chunked + framed(lost)[:-9], "close"],
            "in a chunk's size": [chunked + framed(lost)[:1], "close"],
            "at a chunk's end": [chunked[:-2], "close"],
            "orderly": [bare, "close"],
            "in a comment": [bare + KEEP_ALIVE[:-5], "close"],
            "in a line": [bare + lost[:-9], "close"],
            "before a blank line": [bare + lost[:-1], "close"],
            "before a blank line, chunked": [CHUNKED + framed(events, lost[:-1]) + LAST_CHUNK],
            "at the length": [sized(events)],
            "before the length": [sized(events, 1), "close"],
            "before the length, in a line": [sized(events + lost[:-9], 9), "close"],
            "reset": [bare, self.wait_until_seen, "reset"],
            "reset, chunked": [chunked, self.wait_until_seen, "reset"],
            "reset, sized": [sized(events, 1), self.wait_until_seen, "reset"],
        }
        return ((*end, tls) for tls in (False, True) for end in ends.items())

    def test_a_stream_cut_before_its_finish_reason_raises(self):
        for name, steps, tls in self.ends(event(chunk("a"))):
            with self.subTest(end=name, tls=tls):
                error = self.interrupted(steps, "a", tls=tls)
                self.assertNotIn("bytes read", str(error))  # which tells nobody anything
                if repr(steps[-1]) == "'reset'" and not tls:
                    self.assertIsInstance(error.__cause__, ConnectionResetError)

    def test_a_stream_cut_after_its_finish_reason_is_whole(self):
        for name, steps, tls in self.ends(event(chunk("a", "stop"))):
            with self.subTest(end=name, tls=tls):
                response = self.whole(steps, "a", tls=tls)
                self.assertEqual(response.choices[0].finish_reason, "stop")

    def test_a_stream_cut_after_done_is_whole_and_its_finish_reason_none(self):
        for name, steps, tls in self.ends(event(chunk("a")) + DONE):
            with self.subTest(end=name, tls=tls):
                response = self.whole(steps, "a", fields={"n": 2}, tls=tls)
                self.assertIsNone(response.choices[0].finish_reason)

    def test_a_stream_cut_at_any_byte_raises_until_it_is_whole(self):
        a, b = (event({"choices": [{"text": text}]}) for text in "ab")
        last = event({"choices": [{"text": "b", "finish_reason": "stop"}]})
        for events, end in ([a, last, DONE], last), ([a, b, DONE], DONE):
            for head, body in (BARE, b"".join(events)), (CHUNKED, framed(*events)):
                cuts = [body[:cut] for cut in range(len(body) + 1)]
                client = self.client(self.serve(*([head + came, "close"] for came in cuts)))
                for came in cuts:
                    texts, whole = "", True
                    try:
                        for part in client.create_stream("p", MODEL):
                            texts += part.text
                    except completions.StreamInterruptedError as error:
                        whole = False
                        self.assertEqual(error.partial.text, texts)
                    with self.subTest(came=came):
                        expected = "a" * (a in came) + "b" * (b in came or last in came)
                        self.assertEqual((texts, whole), (expected, end in came))

    def test_every_choice_that_was_asked_for_must_be_finished(self):
        numbers = [
            *((1, {}), (1, {"best_of": 3}), (2, {"n": 2}), (2, {"prompt": ["a", "b"]})),
            *((1, {"prompt": ["a"]}), (4, {"prompt": ["a", "b"], "n": 2}), (1, {"n": -1})),
            *((1, {"prompt": [1, 2]}), (1, {"prompt": [[1, 2]]}), (2, {"prompt": [[1, 2], [3]]})),
        ]
        for asked, fields in numbers:
            done = dict.fromkeys(range(asked), "stop")
            unfinished = {**done, 0: None}, {**done, asked - 1: ""}, {**done, asked: None}
            missing = dict.fromkeys(range(1, asked), "stop"), dict.fromkeys(range(asked - 1), "eos")
            for reasons in ({**done, 0: "length"}, *unfinished, *missing):
                parts = [chunk("a", reason, index) for index, reason in reasons.items()]
                choices = [part["choices"][0] for part in parts]
                later = [{"text": "", "index": index} for index in reasons]  # takes nothing back
                usage, came = chunk(choices=[], usage={}), "a" * len(parts)
                for sent in [*parts, usage], [chunk(choices=choices), chunk(choices=later)]:
                    events = b"".join(map(event, sent))
                    whole = len(reasons) == asked and all(reasons.values())
                    check = self.whole if whole else self.interrupted
                    with self.subTest(fields=fields, sent=sent):
                        check([CHUNKED + framed(events) + LAST_CHUNK], came, fields=fields)
                        check([BARE + events, "close"], came, fields=fields)
                        self.whole(BARE + events + DONE, came, fields=fields)

    def test_no_event_at_all_is_no_answer(self):
        for body in b"", b"\n\n\r\n" + KEEP_ALIVE, b"data:\n\ndata\n\n", b"\xef\xbb\xbf", b"data":
            for steps in [CHUNKED, framed(body) * bool(body) + LAST_CHUNK], [BARE + body, "close"]:
                with self.subTest(steps=steps):
                    self.interrupted(steps, "", max_retries=0)

    def test_an_event_of_any_type_is_a_chunk(self):
        parts = [b"event: %s\n" % kind + event({"id": "x"}) for kind in (b"plain", b"", b"x:y")]
        self.whole(stream_reply(*parts, event(chunk("a", "stop"))), "a")

    def test_done_alone_is_a_stream_without_chunks(self):
        self.assertEqual(self.whole(stream_reply(DONE), "").choices, [])

    def test_an_empty_finish_reason_takes_none_back(self):
        for reasons, last in (("", "stop", ""), "stop"), (("", ""), ""):
            parts = [event(chunk("a", reason)) for reason in reasons] + [DONE] * (not last)
            response = self.whole([BARE + b"".join(parts), "close"], "a" * len(reasons))
            self.assertEqual(response.choices[0].finish_reason, last)

    def test_done_ends_a_stream_at_once_while_the_connection_stays_open(self):
        for done in DONE, b"data:[DONE]\n\n", b"data: [DONE] \r\r", b"data: [DONE]\r\n\r\n":
            body = event(chunk("a")) + done
            for data in CHUNKED + framed(body), BARE + body, sized(body, 9):
                with self.subTest(data=data):
                    self.whole([data, "hold"], "a", timeout=5)


class StreamErrorTest(StreamCase):
    def break_by(self, kind: type, bad: bytes) -> typing.Iterator[completions.APIError]:
        """The errors that an event makes in the first place and in the second."""
        for before, came in (b"", ""), (event(chunk("a")), "a"):
            steps = CHUNKED + framed(before + bad, event(chunk("b", "stop"))) + LAST_CHUNK
            yield self.broken(kind, steps, came)

    def test_an_error_event_is_an_error_even_if_its_data_is_null(self):
        server = self.serve(stream_reply(event(chunk("a")), b"event: error\n" + event("null")))
        stream = self.client(server).create_stream("p", "m")
        self.assertEqual(self.fails(completions.APIError, list, stream).partial.text, "a")
        alike = event(chunk("a"))  # though it would be one more chunk
        steps = CHUNKED + framed(alike, b"event: error\n" + alike)
        error = self.broken(completions.APIError, steps, "a")
        self.assertEqual(error.body, json.loads(alike[6:]))

    def test_an_error_in_a_stream_is_raised_with_what_the_server_says(self):
        error = {"message": "Out of memory", "type": "server_error", "param": "n", "code": "oom"}
        router = chunk("", "error", error={"message": "Out of memory", "code": 502})
        full, plain = ("server_error", "n", "oom"), (None, None, None)
        cases = [
            (event({"error": error}), full),
            (event({**chunk("lost"), "error": error}), full),
            (event({"error": "Out of memory"}), plain),
            (event(router), (None, None, 502)),  # as OpenRouter sends it
            (event({"object": "error", **error}), full),  # vLLM, once
            (event(error).replace(b"data", b"error", 1), full),  # llama.cpp, once
            (b"event: error\n" + event({"error": error}), full),
            (b"event:error\r\n" + event(error), full),
            (event("Out of memory")[:-1] + b"event: error\r\r", plain),
            (b"event: error\ndata: Out of\ndata:memory\n\n", plain),
        ]
        for bad, details in cases:
            with self.subTest(bad=bad):
                for error in self.break_by(completions.APIError, bad):
                    self.assertEqual(error.message, "Out of memory")
                    self.assertEqual((error.type, error.param, error.code), details)
                    self.assertIn("Out of", str(error.body))

    def test_json_of_any_depth_is_read_or_is_an_error_of_ours(self):
        outcomes = set()
        for depth in (10, *range(50, 1200, 50), 5000, 9990, 20_000, 100_000):
            deep = "[" * depth + "]" * depth
            part = event('{"choices": [{"text": "a", "new": %s}], "new": %s}' % (deep, deep))
            with self.subTest(depth=depth):
                try:
                    self.whole(sized(part * 3 + DONE), "aaa")
                    outcomes.add("read")
                except completions.APIResponseValidationError:
                    outcomes.add("refused")
        self.assertEqual(outcomes, {"read", "refused"})

    def test_what_is_nearly_too_deep_to_read_is_merged_and_lost_by_no_error(self):
        for name in "a", "logprobs":
            for depth in 500, 900, 960, 985, 990:
                deep = "%s1%s" % (f'{{"{name}":' * depth, "}" * depth)
                for form in '{"text": "a", "logprobs": %s}', '{"text": "a", "deep": %s}':
                    part = event('{"choices": [%s]}' % (form % deep))
                    with self.subTest(name=name, depth=depth, form=form):
                        steps = stream_reply(part, part, event({"error": "no"}))
                        with self.assertRaises(completions.APIError) as caught:
                            list(self.stream(steps))
                        if type(caught.exception) is completions.APIError:
                            self.assertEqual(caught.exception.partial.text, "aa")
                        else:  # too deep for the interpreter's JSON
                            self.assertIsInstance(caught.exception, ValueError)

    def test_an_error_without_a_reason_is_an_error_all_the_same(self):
        bads = [event({"error": nothing}) for nothing in ({}, "", "\x1b")]
        for bad in [*bads, b"event: error\ndata:\n\n"]:
            with self.subTest(bad=bad):
                for error in self.break_by(completions.APIError, bad):
                    self.assertEqual(str(error), "an unexplained error")
        for error in self.break_by(completions.APIError, event({"error": {"code": "LOCKED"}})):
            self.assertEqual(str(error), "an unexplained error {'code': 'LOCKED'}")

    def test_an_event_that_is_no_chunk_is_an_error_that_holds_it(self):
        cases = [
            *("{", '{"choices": [{"text": "x', "Busy", "<p>Busy</p>", "[]", "5", "true", '"x"'),
            *("[" * 100_000, '{"choices": %s' % ("[" * 100_000), '{"choices": [null]}'),
            *('{"choices": 5}', '{"choices": {}}', '{"choices": [5]}'),
            *('{"choices": [{"text": %s}]}' % wrong for wrong in ("5", "[]", "true", "NaN")),
            *('{"choices": [{"index": %s}]}' % wrong for wrong in ('"0"', "0.5", "true", "{}")),
            *('{"choices": [{"finish_reason": %s}]}' % wrong for wrong in ("5", "[]", "false")),
            '{"choices": [{"index": %s}, 5]}' % ("9" * 5000),  # more digits than int() may take
        ]
        kind = completions.APIResponseValidationError
        bads = [b'data: {"choices": [{"text": "\xff"}]}\n\n', b'data: {\ndata: "\xe2\ndata: "}\n\n']
        for bad in [*map(event, cases), *bads]:
            with self.subTest(bad=bad[:60]):
                for error in self.break_by(kind, bad):
                    self.assertIn(type(error.body), (dict, list, bool, int, bytes, str, type(None)))
                    self.assertIsNotNone(error.body)
        for error in self.break_by(kind, event('{"choices": [')):
            self.assertRegex(
                str(error), r"^POST http.*/completions: no JSON object: {.choices.: \[$"
            )
        wrong = CHUNKED + framed(event(chunk(choices=[{"text": "a"}, {"text": 5}])))
        self.assertIn("choices[1].text: expected str, got int", str(self.broken(kind, wrong, "")))

    def test_an_event_above_max_response_bytes_is_an_error_though_it_never_ends(self):
        kind, limit, a = completions.APIResponseValidationError, 20_000, event(chunk("a"))
        cases = {
            "a line": [CHUNKED + framed(a, event(chunk("b" * limit)))],
            "lines": [CHUNKED + framed(a, b"data: xxx\n" * limit, b"\n")],
            "an endless line": [BARE + a, endless(b"data: " + b"x" * 1000)],
            "an endless comment": [BARE + a, endless(b": " + b"x" * 1000)],
            "endless lines": [BARE + a, endless(b"data: xxx\n" * 100)],
        }
        for name, steps in cases.items():
            with self.subTest(name):
                error = self.broken(kind, steps, "a", max_response_bytes=limit)
                self.assertEqual(str(error), f"an event exceeds max_response_bytes of {limit}")
                self.assertIsNone(error.body)
        self.whole(stream_reply(*[a] * 500, DONE), "a" * 500, max_response_bytes=limit)


class StreamTimeoutTest(StreamCase):
    A = framed(event(chunk("a", "stop")))  # though all is finished, silence is no end
    COMMENTS = staticmethod(endless(framed(KEEP_ALIVE), 0.01))

    def times_out(self, steps: list, came: str, **options: object) -> None:
        name, seconds = min(options.items(), key=lambda option: option[1])
        start = time.monotonic()
        error = self.broken(completions.APITimeoutError, steps, came, **options)
        taken = time.monotonic() - start
        self.assertTrue(seconds - 0.01 <= taken < seconds + 1.5, taken)
        self.assertIn(name, str(error))

    def test_a_timeout_bounds_a_stream_that_is_silent_or_only_has_comments_or_drips(self):
        drip = [step for byte in self.A * 9 for step in (bytes([byte]), 0.01)]
        for before, came in (CHUNKED, ""), (CHUNKED + self.A, "a"):
            for after in ["hold"], [self.COMMENTS], drip, [endless(b"0", 0.01)]:
                with self.subTest(came=came, after=after[:2]):
                    self.times_out([before, *after], came, timeout=0.4)

    def test_an_idle_timeout_bounds_each_wait_for_an_event(self):
        for before, came in (CHUNKED, ""), (CHUNKED + self.A, "a"):
            for after in "hold", self.COMMENTS:
                with self.subTest(came=came, after=after):
                    self.times_out([before, after], came, idle_timeout=0.4, timeout=9)
        self.times_out([CHUNKED + self.A, "hold"], "a", idle_timeout=9, timeout=0.4)

    def test_an_idle_timeout_starts_again_with_each_event(self):
        slow = [step for _ in range(8) for step in (self.A, 0.15)]
        self.whole([CHUNKED, *slow, framed(DONE) + LAST_CHUNK], "a" * 8, idle_timeout=0.9)

    def test_the_callers_own_time_counts_for_the_timeout_alone(self):
        steps = [CHUNKED + self.A * 3 + framed(DONE), "hold"]  # all has come at the first chunk
        stream = self.stream(steps, timeout=0.5)
        next(stream)
        time.sleep(0.55)
        error = self.fails(completions.APITimeoutError, next, stream)
        self.assertEqual(set(error.partial.text), {"a"})
        stream = self.stream(steps, idle_timeout=0.8)
        next(stream)
        time.sleep(0.85)
        self.assertEqual(len(list(stream)), 2)


class StreamBeginningTest(StreamCase):
    def test_what_breaks_before_the_first_event_is_tried_again(self):
        cases = {
            "a reset": [CHUNKED, "reset"],
            "the end after comments": [BARE + KEEP_ALIVE, "close"],
            "the end in an event": CHUNKED + framed(event(chunk("b", "stop"))[:-1]) + LAST_CHUNK,
            "a status": reply({}, 503, "Retry-After-Ms: 1"),
        }
        for name, steps in cases.items():
            with self.subTest(name):
                stream = self.stream(steps, stream_reply(event(chunk("a", "stop"))), max_retries=1)
                self.assertEqual([part.text for part in stream], ["a"])
                first, second = (r.partition(b"\r\n\r\n")[2] for r in self.server.requests)
                self.assertEqual(first, second)
                self.assertIs(json.loads(first.decode())["stream"], True)

    def test_a_plain_answer_is_one_chunk(self):
        body = json.dumps(answer(), indent=1).encode()
        for data in body, b"\r\n \t\n" + body, b"\xef\xbb\xbf" + body:
            chunks = CHUNKED + framed(data[:1], data[1:5], data[5:]) + LAST_CHUNK
            for steps in [reply(data)], [reply(data, sized=False), "close"], [chunks]:
                with self.subTest(steps=steps):
                    response = self.whole(steps, "This is a test", fields={"n": 2})
                    self.assertEqual(response, completions.CompletionsResponse.from_json(body))

    def test_a_plain_answer_that_is_no_completion_is_an_error(self):
        page, kind = b"<html><title>Busy</title></html>", completions.APIResponseValidationError
        self.assertEqual(self.broken(kind, reply(page, 200, REQUEST_ID), "").body, page.decode())
        for body in {}, [], {"choices": None}, {"choices": [{"text": 5}]}, answer("a" * 6000):
            with self.subTest(body=body):
                self.broken(kind, reply(body, 200, REQUEST_ID), "", max_response_bytes=5000)
        body = {"error": {"message": "Overloaded", "code": 529}}
        error = self.broken(completions.APIError, reply(body, 200, REQUEST_ID), "")
        self.assertEqual((error.body, error.code), (body, 529))
        for body, held in (
            (b"No upstream", "No upstream"),
            (b'"over quota"', "over quota"),
            (b"7", 7),
        ):
            error = self.broken(kind, reply(body, 200, REQUEST_ID), "", max_retries=2)
            self.assertEqual(error.body, held)
        cut = [reply(None, 200, REQUEST_ID)[:-5], "close"]
        self.interrupted(cut, "", max_retries=0)

    def test_a_stream_may_begin_with_a_field_that_nobody_knows(self):
        events = b"What: is this\n" + event(chunk("a", "stop")) + DONE
        self.whole(CHUNKED + framed(events) + LAST_CHUNK, "a")

    def test_a_stream_may_begin_with_any_white_space_wherever_it_is_cut(self):
        events = event(chunk("a", "stop")) + DONE
        for lead in b"\v\n\n", b"\f\r\n", b" \v\t\f\n", b"\xef\xbb\xbf\f\n", b"\n" * 9 + b"\v\r":
            for pieces in [lead + events], [lead, events], [bytes([n]) for n in lead + events]:
                with self.subTest(lead=lead, pieces=len(pieces)):
                    self.whole(CHUNKED + framed(*pieces) + LAST_CHUNK, "a")


class StreamResponseTest(StreamCase):
    def test_a_response_has_all_that_has_come_at_any_moment(self):
        def scores(token: str, place: int) -> dict:
            names = "tokens", "token_logprobs", "top_logprobs", "text_offset", "ids"
            return dict(zip(names, ([token], [-0.5], [{token: -0.5}], [place], [place + 7])))

        first = {"index": 1, "text": "b\r\n", "logprobs": scores("b", 0), "notes": ["p"]}
        first.update(said="o", seen={"x": 1}, finish_reason=None)
        second = {"index": 1, "text": "c", "logprobs": scores("c", 3), "notes": ["q"]}
        second.update(said="k", seen={"y": 2}, stop_reason=None, finish_reason="stop")
        last = {"index": 1, "text": "", "finish_reason": "length", "stop_reason": 9, "seen": None}
        head = {"id": "x", "object": "text_completion", "created": 5, "model": "m"}
        late = {"id": "y", "object": "other", "created": 6, "model": "n", "tier": "low"}
        usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3, "cost": 4}
        parts = [
            {"id": "", "object": "", "created": 0, "model": "", "choices": [], "filters": [1]},
            {**head, "system_fingerprint": "f", "usage": None, "choices": [first]},
            {**late, "system_fingerprint": "g", "choices": [second, {"index": 0, "text": "a"}]},
            {"tier": None, "choices": [last, {"index": 0, "text": "", "finish_reason": "stop"}]},
            {"system_fingerprint": None, "usage": usage},
        ]
        both = {name: value + scores("c", 3)[name] for name, value in scores("b", 0).items()}
        merged = {**last, "text": "b\r\nc", "logprobs": both, "notes": ["p", "q"]}
        merged.update(said="ok", seen={"y": 2})
        whole = {**head, "filters": [1], "system_fingerprint": "g", "tier": "low", "usage": usage}
        whole["choices"] = [{"index": 0, "text": "a", "finish_reason": "stop"}, merged]

        from_dict = completions.CompletionsResponse.from_dict
        stream = self.stream(stream_reply(*map(event, parts)), fields={"n": 2})
        moments, given = [], []
        for part, sent in zip(stream, parts):
            self.assertEqual(part, from_dict({"choices": [], **sent}))
            moments.append((stream.response, copy.deepcopy(stream.response)))
            given.append((part, copy.deepcopy(part)))
        self.assertEqual(list(stream), [])
        self.assertEqual(stream.response, from_dict(whole))
        self.assertEqual(moments[1][0], from_dict({"filters": [1], **parts[1]}))
        texts = [[choice.text for choice in now.choices] for now, _ in moments]
        self.assertEqual(texts, [[], ["b\r\n"], *[["a", "b\r\nc"]] * 3])
        for now, then in moments + given:  # what was given out does not change
            self.assertEqual(now, then)

    def test_each_chunk_is_its_own_whatever_is_done_to_those_like_it(self):
        head = {"id": "x", "created": 5, "model": "m", "tier": "low", "usage": None}
        heads = [{}, {}, head, head, head, {**head, "created": []}, {**head, "tier": None}, head]
        heads += [{**head, "usage": {"prompt_tokens": 1, "total_tokens": "1"}}] * 2
        parts = [{**head, "choices": [{"text": f"{i}"}]} for i, head in enumerate(heads)]
        given, body = [], framed(*map(event, parts), DONE)
        for part, sent in zip(self.stream(CHUNKED + body + LAST_CHUNK), parts):
            self.assertEqual(part, completions.CompletionsResponse.from_dict(sent))
            self.assertEqual(part.request_id, "req-1")
            given.append(part)
            part.choices.append(part.choices[0])
            part.extra.update(tier="high", more=1)
            part.id = part.request_id = "mine"
        self.assertEqual(len(given), len(parts))

    def test_cost_does_not_grow_with_keys_that_no_chunk_had_before(self):
        parts = [{f"k{i}": 1, "choices": [{"text": "x"}]} for i in range(16000)]
        stream, costs = self.stream(CHUNKED + framed(*map(event, parts), DONE) + LAST_CHUNK), []
        for _ in range(8):
            began = time.thread_time()
            self.assertEqual(len(list(itertools.islice(stream, 2000))), 2000)
            costs.append(time.thread_time() - began)
        self.assertLess(min(costs[-2:]), 4 * costs[0], costs)  # if it grew, more than 7

    def test_a_stream_is_the_plain_answer_seed_for_seed(self):
        client = self.client(self.reference())
        cases = [
            ({"prompt": "The connection", "max_tokens": 20, "temperature": 0}, {}),
            ({"prompt": ["The ", "It"], "n": 2, "seed": 7, "logprobs": 2}, {"newline": "\r\n"}),
            ({"prompt": [84, 104], "seed": 1, "echo": True, "logprobs": 0}, {"newline": "\r"}),
            ({"prompt": [[84], [65, 32]], "seed": 3, "stop": [" the", "."]}, {"done": False}),
            ({"prompt": "é", "seed": 5, "frequency_penalty": 0.5, "top_p": 0.9}, {"close": True}),
            ({"prompt": "A", "seed": 6, "n": 3, "suffix": "."}, {"close": True, "done": False}),
            ({"prompt": "A", "seed": 8, "logit_bias": {"256": 5}}, {"comments": [3, 0]}),
        ]
        for fields, knobs in cases:
            with self.subTest(fields=fields, knobs=knobs):
                fields = {"model": MODEL, "max_tokens": 30, **fields}
                plain = client.create(**fields)
                more = {"stream_options": {"include_usage": True}, "extra": {"knobs": knobs}}
                stream = client.create_stream(**fields, **more)
                chunks = list(stream)
                self.assertGreater(len(chunks), len(plain.choices))
                self.assertEqual([part.usage for part in chunks if part.usage], [plain.usage])
                same = {"id": plain.id, "created": plain.created}
                self.assertEqual(dataclasses.replace(stream.response, **same), plain)


class StreamConnectionTest(StreamCase):
    HELD = [CHUNKED + framed(event(chunk("a")) * 2), "hold"]

    def noticed(self, left: threading.Event) -> bool:
        """Whether a server sees its client go, at once where references are counted."""
        for _ in range(10):
            if sys.implementation.name != "cpython":
                gc.collect()
            if left.wait(0.2):
                return True
        return False

    def test_whoever_leaves_a_stream_early_closes_its_connection(self):
        def leave_the_block(stream: completions.CompletionsStream) -> None:
            with stream:
                next(stream)

        for way in completions.CompletionsStream.close, leave_the_block:
            with self.subTest(way=way.__name__):
                stream = self.stream(self.HELD)
                way(stream)
                self.assertTrue(self.server.left.wait(5))
                stream.close()
                self.assertEqual((list(stream), stream.response.text[:1]), ([], "a"))

    def test_the_last_reference_gone_closes_the_connection_without_a_warning(self):
        for read in False, True:
            with self.subTest(read=read), warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                stream = self.stream(self.HELD)
                for part in stream if read else ():
                    break
                del stream
                self.assertTrue(self.noticed(self.server.left))
                self.assertEqual(warned, [])

    def test_a_server_that_is_left_stops_generating(self):
        server = self.reference()
        fields = {"max_tokens": 1_000_000, "logit_bias": {"256": -100}}
        for _ in self.client(server).create_stream("p", MODEL, **fields):
            break
        self.assertTrue(self.noticed(server.aborted))

    def test_a_connection_is_kept_if_the_body_has_ended_and_nothing_follows(self):
        a = event(chunk("a", "stop"))
        body, wrong = CHUNKED + framed(a, DONE), reply(answer("wrong"))
        cases = {
            "a last chunk": (body + LAST_CHUNK, True),
            "a last chunk, no [DONE]": (CHUNKED + framed(a) + LAST_CHUNK, True),
            "a trailer": (body + b"0\r\nchecksum: 5\r\n\r\n", True),
            "a length": (sized(a + DONE), True),
            "a length, no [DONE]": (sized(a), True),
            "a plain answer": (reply(), True),
            "no last chunk": (body, False),
            "a bit of a last chunk": (body + b"0", False),
            "half of a last chunk": (body + b"0\r\n", False),
            "half of a trailer": (body + b"0\r\nchecksum: ", False),
            "no chunk": (body + b"zzz\r\n", False),
            "no chunk, no [DONE]": (CHUNKED + framed(a) + b"zzz\r\n", False),
            "one more chunk": (body + framed(KEEP_ALIVE) + LAST_CHUNK, False),
            "stray bytes": (body + LAST_CHUNK + wrong, False),
            "stray bytes after a length": (sized(a + DONE) + wrong, False),
            "missing bytes of a length": (sized(a + DONE, 5), False),
            "close": (b"%s\r\nConnection: close%s" % body.partition(b"\r\n")[::2], False),
        }
        for name, (data, kept) in cases.items():
            with self.subTest(name):
                server = self.serve(data, reply(answer("next")))
                client = self.client(server)
                list(client.create_stream("p", MODEL))
                self.assertEqual(client.create("p", MODEL).text, "next")
                self.assertEqual(server.connections, 1 if kept else 2)

    def test_the_end_of_a_body_may_come_between_done_and_the_next_call(self):
        for in_time, tls in itertools.product((True, False), repeat=2):
            with self.subTest(in_time=in_time, tls=tls):
                go, gone = threading.Event(), threading.Event()
                steps = [CHUNKED + framed(event(chunk("a")), DONE), lambda _, go=go: go.wait(5)]
                steps += [LAST_CHUNK, lambda _, gone=gone: gone.set()]
                stream = self.stream(steps, reply(), tls=tls)
                self.assertEqual([part.text for part in stream], ["a"])
                if in_time:
                    go.set()
                    gone.wait(5)
                self.assertEqual(self.user.create("p", MODEL).text, "This is a test")
                self.assertEqual(self.server.connections, 1 if in_time else 2)
                go.set()


@unittest.skipUnless(os.path.exists("/proc/self/statm"), "needs Linux's /proc")
class StreamCostTest(StreamCase):
    READER = """
import json, sys, time, completions
stream = completions.Client(None, sys.argv[1], timeout=None).create_stream("p", "m")
costs, sizes, start = [], [], time.process_time()
for count, _ in enumerate(stream, 1):
    if count % 5000 == 0:
        costs.append(time.process_time() - start)
        with open("/proc/self/statm") as file:
            sizes.append(int(file.read().split()[1]) * 4096)
        start = time.process_time()
print(json.dumps([costs, sizes, len(stream.response.text)]))
"""

    def test_cost_and_memory_do_not_grow_with_a_stream_and_comments_cost_next_to_nothing(self):
        part, comments = framed(event(chunk("token")) * 1000), framed(KEEP_ALIVE * 4000)
        turn = [part] * 5 + [part, comments] * 2 + [part] * 3  # 5,000 without comments, 5,000 with
        server = self.serve([CHUNKED, *turn * 20, framed(DONE) + LAST_CHUNK])
        path = os.path.dirname(os.path.abspath(completions.__file__))
        command = [sys.executable, "-c", self.READER, server.base_url]
        environment = {**os.environ, "PYTHONPATH": path}
        output = subprocess.check_output(command, env=environment, timeout=50)
        costs, sizes, length = json.loads(output.decode())
        self.assertEqual((len(costs), length), (40, 5 * 200_000))
        self.assertLess(min(costs[-10:]), 3 * min(costs[:10]), costs)  # if it grew, more than 10
        self.assertLess(min(costs[1::2]), 1.3 * min(costs[::2]), costs)
        grown = sizes[37] - sizes[17]  # 100,000 chunks apart: so often StringIO tidies up
        self.assertLess(grown, 4_000_000, sizes)


# ---------------------------------------------------------------------------- the transport


def drip(data: bytes) -> list:
    """The steps of a reply that comes byte by byte."""
    return [step for i in range(len(data)) for step in (data[i : i + 1], 0.05)]


def flood(head: bytes, block: bytes) -> list:
    """The steps of a reply that goes on until the client leaves."""
    return [head, lambda sock: collections.deque(map(sock.sendall, itertools.repeat(block)), 0)]


def ask(client: completions.Client, prompt: str = "Hi", stream: bool = False) -> str:
    if not stream:
        return client.create(prompt=prompt, model=MODEL).text
    with client.create_stream(prompt=prompt, model=MODEL) as chunks:
        return "".join(chunk.text for chunk in chunks)


ask_stream = functools.partial(ask, stream=True)


class EchoServer(ScriptedServer):
    """Answers with the prompt, unless the header x-fault asks for a fault: see `FAULTS`."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(tls=tls)
        self.replies, self.failed = self, set()

    def serve(self, sock: socket.socket) -> None:
        super().serve(sock)
        if not self.closing:  # so that nothing grows
            self.threads.remove(threading.current_thread())
            for closed in [sock for sock in self.sockets if sock.fileno() < 0]:
                with contextlib.suppress(ValueError):
                    self.sockets.remove(closed)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, _: int) -> object:
        """The reply to the last request; the lock is held."""
        head, _, body = self.requests.pop().partition(b"\r\n\r\n")
        request = json.loads(body.decode())
        text, fault = request["prompt"], re.search(rb"(?i)\r\nx-fault: (\w+)", head)
        fault = fault and fault[1].decode()
        if fault == "fails_once":
            self.failed ^= {text}
            if text in self.failed:
                return reply(b"", 503, "retry-after-ms: 1")
        data, size = reply(answer(text)), b""
        if request.get("stream"):
            events = chunk(text[:9]), chunk(text[9:], "stop"), "[DONE]"
            data, size = stream_reply(*map(event, events)), b"fffffffffff\r\n"
        head, _, body = data.partition(b"\r\n\r\n")
        lie = head.replace(b"Content-Length: ", b"Content-Length: 9999999999") + b"\r\n\r\n"
        cut = len(head) + 30
        return {
            "slow": [data[:20], 0.02, data[20:cut], 0.02, data[cut:]],
            "stray": data + reply(answer("stray")),
            "says_close": [data.replace(b"\r\n", b"\r\nConnection: close\r\n", 1), "close"],
            "silent": "hold",
            "stalls": [data[:cut], "hold"],
            "drips": [data[:20], *drip(data[20:])],
            "resets": "reset",
            "closes": "close",
            "cut_in_head": [head[:-9], "close"],
            "cut_in_body": [data[:cut], "close"],
            "reset_in_body": [data[:cut], 0.01, "reset"],
            "lies": [lie + size + body[:40], "close"],
            "garbage": [b"\0\xff\r\n\r\n", "close"],
            "redirects": reply(b"", 307, f"Location: {self.base_url}/elsewhere"),
            "fails": reply({"error": "no"}, 503, "x-should-retry: false"),
        }.get(fault, data)


FAULTS = {  # what a call ends with: the right answer, or an error
    **dict.fromkeys(["no", "slow", "stray", "says_close", "fails_once"]),
    **dict.fromkeys(["silent", "stalls", "drips"], completions.APITimeoutError),
    **dict.fromkeys(["resets", "closes", "cut_in_head", "garbage"], completions.APIConnectionError),
    **dict.fromkeys(["cut_in_body", "reset_in_body", "lies"], completions.APIConnectionError),
    "redirects": completions.APIStatusError,
    "fails": completions.InternalServerError,
}


class TransportCase(Case):
    LOST, LATE = completions.APIConnectionError, completions.APITimeoutError
    HEAD, FIRST, SECOND = b"HTTP/1.1 200 OK\r\n", *map(reply, map(answer, ("first", "second")))

    def ends(self, end: object, call: typing.Callable, *args: object) -> None:
        """A call returns a text, or raises just this kind of error."""
        if isinstance(end, str):
            self.assertEqual(call(*args), end)
        else:
            self.fails(end, call, *args)

    def at_once(self, function: typing.Callable, cases: dict) -> None:
        """Calls a function with the arguments of each case, all at the same time."""
        failures = {}

        def run(name: object) -> None:
            try:
                function(*cases[name])
            except BaseException as error:
                failures[name] = error

        threads = [threading.Thread(target=run, args=(name,), daemon=True) for name in cases]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for name in cases:
            with self.subTest(name):
                if name in failures:
                    raise failures[name]

    def eventually(self, condition: typing.Callable[[], bool]) -> None:
        deadline = time.monotonic() + 5
        while not condition():
            self.assertLess(time.monotonic(), deadline, "it never came to be")
            time.sleep(0.01)

    @contextlib.contextmanager
    def takes(self, least: float, most: float) -> typing.Iterator[None]:
        began = time.monotonic()
        yield
        seconds = time.monotonic() - began
        self.assertTrue(least <= seconds <= most, f"{least} <= {seconds} <= {most}")

    def times_out(self, client: completions.Client, kind: type = LATE, **request: object) -> None:
        with self.takes(0.45, 2):  # the client's timeout is 0.5
            self.fails(kind, ask, client, **request)

    def patch(self, owner: object, name: str, value: object) -> None:
        self.addCleanup(setattr, owner, name, getattr(owner, name))
        setattr(owner, name, value)

    def secure(self, *replies: object, **options: object) -> ScriptedServer:
        return self.serve(*replies, tls=server_context(), **options)

    def trusting(self, server: object, **options: object) -> completions.Client:
        return self.client(server, **{"ssl_context": client_context(), **options})

    def at(self, base_url: str, **options: object) -> completions.Client:
        return self.trusting(types.SimpleNamespace(base_url=base_url), **options)

    def trust_authority(self) -> None:
        """Makes the tests' authority the one that is trusted by default."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = os.path.join(folder.name, "pem")
        with open(path, "w") as file:
            file.write(PEM["authority"])
        self.set_environment("SSL_CERT_FILE", path)

    def in_a_process(self, script: str, *arguments: str) -> list[str]:
        """The words that a script prints, which may not cause a warning."""
        path = os.path.dirname(os.path.abspath(completions.__file__))
        script = f"import sys; sys.path.insert(0, {path!r}); import completions\n{script}"
        mode = [] if sys.version_info[:2] == (3, 8) else ["-X", "dev"]  # 3.8's dies of a fork
        command = [sys.executable, "-W", "error", *mode, "-c", script, *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "universal_newlines": True}
        run = subprocess.run(command, timeout=50, **pipes)
        self.assertEqual((run.returncode, run.stderr), (0, ""))
        return run.stdout.split()

    @staticmethod
    def sockets_to(port: int) -> list[socket.socket]:
        """This process's open sockets that lead to a port."""
        gc.collect()
        found = []
        for thing in gc.get_objects():
            with contextlib.suppress(OSError, ReferenceError):
                if issubclass(type(thing), socket.socket) and thing.getpeername()[1] == port:
                    found.append(thing)
        return found

    @staticmethod
    def forget() -> None:
        """Collects what nothing refers to; CPython has done so, unless it is a cycle."""
        if sys.implementation.name != "cpython":
            for _ in range(4):
                gc.collect()

    @staticmethod
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0


class KeepAliveTest(TransportCase):
    def test_a_thousand_calls_take_one_connection(self):
        def one(number: int) -> object:
            body, last = json.dumps(answer(str(number))).encode(), event(chunk(str(number), "stop"))
            head = STREAM_HEAD.replace(b"text/event-stream", b"application/json")
            return [
                reply(body),
                [reply(body)[:9], reply(body)[9:]],
                head + framed(body[:9], body[9:]) + b"0\r\nA-Trailer: x\r\n\r\n",
                stream_reply(last, event("[DONE]")),
                stream_reply(last),
                reply(last),
                reply({"error": str(number)}, 400),
                head.replace(b"200", b"500") + framed(b"oops") + LAST_CHUNK,
            ][number % 8]

        errors = completions.BadRequestError, completions.InternalServerError
        for tls in (None, server_context()):
            server = self.serve(*map(one, range(1000)), tls=tls)
            client = self.trusting(server)
            with self.subTest(tls=bool(tls)):
                for number in range(1000):
                    end = str(number) if number % 8 < 6 else errors[number % 8 - 6]
                    self.ends(end, ask, client, "Hi", number % 8 in (3, 4, 5))
                self.assertEqual(server.connections, 1)

    def test_no_connection_is_kept_whose_answer_was_not_read_or_said_close(self):
        def leave(client: completions.Client) -> None:
            client.create_stream(prompt="Hi", model=MODEL).close()

        def abandon(client: completions.Client) -> None:
            next(client.create_stream(prompt="Hi", model=MODEL))
            self.forget()

        begun, large = STREAM_HEAD + framed(event(chunk("first"))), bytes(2 << 20)
        done = begun + framed(event("[DONE]"))
        for name, call, first, *options in (
            ("left", leave, begun),
            ("left when all was there", leave, begun + LAST_CHUNK),
            ("abandoned", abandon, begun),
            ("timed out", ask, self.FIRST[:-9], {"timeout": 0.2}),
            ("too large", ask, reply(large), {"max_response_bytes": 9}),
            ("a large error", ask, reply(large, 400)),
            ("an error inside the stream", ask_stream, begun + framed(event({"error": "no"}))),
            ("no last chunk", ask_stream, done),
            ("half a last chunk", ask_stream, done + LAST_CHUNK[:3]),
            ("more than the last chunk", ask_stream, done + LAST_CHUNK + b"x"),
            ("close", ask, reply(None, 200, "Connection: close")),
            ("HTTP/1.0", ask, self.FIRST.replace(b"1.1", b"1.0")),
        ):
            with self.subTest(name):
                server = self.serve([first, "hold"], self.SECOND)
                client = self.client(server)
                with contextlib.suppress(completions.APIError):
                    call(client.with_options(**dict(*options)))
                self.assertEqual(ask(client), "second")
                self.assertEqual((len(server.requests), server.connections), (2, 2))
                self.assertTrue(server.left.wait(5))

    def test_no_connection_is_kept_on_which_an_answer_was_cut(self):
        sized = reply(event(chunk("Hi")), 200, "Content-Type: text/event-stream")[:-1]
        for call, first in (ask, self.FIRST[:-1]), (ask, reply({}, 500)[:-1]), (ask_stream, sized):
            client = self.client(self.serve([first, "close"]), max_retries=0)
            self.assertRaises(completions.APIError, call, client)
            self.assertEqual([*client._connections.idle], [])

    def test_an_idle_connection_that_the_server_closed_is_noticed_before_use(self):
        came = []  # on a connection that has been closed; up to 24 bytes are TLS's own farewell

        def shut(sock: socket.socket) -> None:
            socket.socket.shutdown(sock, socket.SHUT_WR)
            shutting.set()
            came.append(len(socket.socket.recv(sock, 999)))

        def say_goodbye(sock: ssl.SSLSocket) -> None:
            sock.settimeout(0.2)
            with contextlib.suppress(OSError):  # it says it, then waits for the client's
                sock.unwrap()
            shutting.set()
            sock.settimeout(5)

        for tls, close in ((None, shut), (server_context(), shut), (server_context(), say_goodbye)):
            with self.subTest(tls=bool(tls), close=close.__name__):
                shutting = threading.Event()
                server = self.serve([reply(), close, "close"], self.SECOND, tls=tls)
                client = self.trusting(server)
                ask(client)
                self.assertTrue(shutting.wait(5))
                self.assertEqual(ask(client), "second")
                self.assertEqual((len(server.requests), server.connections), (2, 2))
        self.eventually(lambda: len(came) == 2)
        self.assertLess(max(came), 25)

    def test_a_kept_connection_that_dies_before_the_answer_is_replaced_once(self):
        cases = {  # what follows the first answer, how the call ends, requests, connections
            "closed": (["close", self.SECOND], "second", 3, 2),
            "reset": (["reset", self.SECOND], "second", 3, 2),
            "reset twice": (["reset", "reset", self.SECOND], self.LOST, 3, 2),
            "closed after a byte": ([[b"H", "close"], self.SECOND], self.LOST, 2, 1),
            "reset after a byte": ([[b"H", 0.05, "reset"], self.SECOND], self.LOST, 2, 1),
            "closed after more than a second": ([[1.2, "close"], self.SECOND], self.LOST, 2, 1),
        }

        def check(tls, replies, end, requests, connections) -> None:
            server = self.serve(self.FIRST, *replies, tls=tls)
            client = self.trusting(server)
            ask(client)
            self.ends(end, ask, client)
            self.assertEqual((len(server.requests), server.connections), (requests, connections))

        both = None, server_context()
        self.at_once(check, {(n, bool(tls)): (tls, *cases[n]) for n in cases for tls in both})
        server = self.serve("close", self.SECOND)  # and one that is not kept
        self.fails(self.LOST, ask, self.client(server))
        self.assertEqual(len(server.requests), 1)

    def test_idle_connections_are_dropped_in_time_at_close_and_with_their_client(self):
        server = self.serve()
        client = completions.Client(base_url=server.base_url)
        ask(client)
        self.patch(completions, "_IDLE_SECONDS", 0)
        ask(client)
        self.assertTrue(server.left.wait(5))
        self.assertEqual(server.connections, 2)
        server.left.clear()
        client.close()
        self.assertTrue(server.left.wait(5))
        ask(client)
        self.assertEqual(server.connections, 3)
        client.close()
        ask(completions.Client(base_url=server.base_url))
        self.forget()
        self.eventually(lambda: not server.open)

    def test_a_client_that_was_closed_keeps_its_connections_from_the_next_call_on(self):
        server = self.serve()
        client = self.client(server)
        for count in range(1, 4):
            with client.with_options(timeout=9) as other:
                self.assertEqual([ask(other), ask(client)], ["This is a test"] * 2)
            self.assertEqual(server.connections, count)
            self.eventually(lambda: not server.open)

    def test_a_large_request_goes_over_a_kept_connection_to_a_slow_server(self):
        def rest(sock: socket.socket) -> None:
            while not sock.recv(65536).endswith(b"}"):
                pass

        server = self.serve(reply(), [0.3, rest, reply()], early=True)
        client = self.client(server, max_retries=0, timeout=9)
        for prompt in "Hi", "x" * 16_000_000:
            self.assertEqual(client.create(prompt, "m").text, "This is a test")
        self.assertEqual(server.connections, 1)

    def test_a_connection_in_use_when_its_client_is_closed_goes_with_its_answer(self):
        server = self.serve()
        client = self.client(server)
        stream = client.create_stream(prompt="Say", model=MODEL)
        client.close()
        self.assertEqual("".join(chunk.text for chunk in stream), "This is a test")
        self.eventually(lambda: not server.open)

    @unittest.skipUnless(hasattr(ssl.SSLContext, "keylog_filename"), "no such setting")
    @unittest.skipIf(sys.flags.ignore_environment, "it is not read")
    def test_without_settings_for_tls_nothing_is_connected(self):
        server = self.secure()
        self.set_environment("SSLKEYLOGFILE", os.path.join(os.devnull, "none"))
        self.fails(self.LOST, ask, self.client(server, max_retries=0))
        self.assertEqual(server.connections, 0)

    def test_an_ssl_context_of_another_kind_is_given_the_host_as_text(self):
        class Context(ssl.SSLContext):  # as truststore's, which takes no bytes
            def wrap_socket(self, sock, server_side=False, server_hostname=None, **options):
                hosts.append(server_hostname)
                return super().wrap_socket(sock, server_side, server_hostname=server_hostname)

        hosts, context = [], Context(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=PEM["authority"])
        self.assertEqual(ask(self.client(self.secure(), ssl_context=context)), "This is a test")
        self.assertEqual(hosts, ["127.0.0.1"])

    def test_a_tracer_that_wraps_all_openers_gets_the_status(self):
        statuses, plain = [], urllib.request.OpenerDirector.open

        def traced(*args: object, **kwargs: object) -> object:
            answer = plain(*args, **kwargs)
            statuses.append(answer.getcode())
            return answer

        self.patch(urllib.request.OpenerDirector, "open", traced)  # as OpenTelemetry's does
        client = self.client(self.serve(reply(), streamed("a"), reply({}, 400)))
        self.assertEqual([ask(client), ask(client, stream=True)], ["This is a test", "a"])
        self.fails(completions.BadRequestError, ask, client)
        self.assertEqual(statuses, [200, 200, 400])

    def test_a_tracer_of_http_client_is_told_the_host(self):
        hosts, plain = [], http.client.HTTPConnection.putrequest

        def traced(connection: object, *args: object, **kwargs: object) -> object:
            hosts.append(f"{connection.host}:{connection.port}")
            return plain(connection, *args, **kwargs)

        self.patch(http.client.HTTPConnection, "putrequest", traced)  # as Sentry's does
        server = self.serve()
        ask(self.client(server))
        self.assertEqual(hosts, [server.base_url.split("/")[2]])

    def test_old_idle_connections_are_dropped_while_a_newer_one_is_used(self):
        together = threading.Barrier(3, timeout=20)

        def wait(_: socket.socket) -> None:
            if len(server.requests) <= 3:
                together.wait()

        server = self.serve([wait, reply()])
        client = self.client(server, timeout=20)
        self.at_once(ask, dict.fromkeys(range(3), (client,)))
        self.assertEqual(server.connections, 3)
        ask(client)
        self.assertEqual(server.open, 3)
        self.patch(completions, "_IDLE_SECONDS", 0.5)
        for _ in range(8):
            time.sleep(0.1)
            ask(client)
        self.eventually(lambda: server.open == 1)
        self.assertEqual(server.connections, 3)

    @unittest.skipUnless(hasattr(os, "fork"), "no fork here")
    def test_a_forked_child_leaves_the_connections_of_its_parent_alone(self):
        script = """if True:
            import os
            with completions.Client(base_url=sys.argv[1], max_retries=0, timeout=10) as client:
                call = lambda: client.create(prompt="Hi", model="m").text
                texts = [call()]
                receiver, sender = os.pipe()
                child = os.fork()
                if not child:
                    os.write(sender, call().encode())
                    sys.exit()
                assert os.waitpid(child, 0)[1] == 0
                print(*texts, os.read(receiver, 99).decode(), call())
        """
        self.trust_authority()
        for tls in (None, server_context()):
            with self.subTest(tls=bool(tls)):
                server = self.serve(*(reply(answer(text)) for text in "abc"), tls=tls)
                self.assertEqual(self.in_a_process(script, server.base_url), ["a", "b", "c"])
                self.assertEqual(server.connections, 2)

    def test_32_threads_get_each_its_own_answers(self):
        def work(name: str) -> None:
            for number in range(20):
                text = f"{name} asks for {number}"
                self.assertEqual(ask(client, text, stream=number % 2), text)

        for tls in (None, server_context()):
            with self.subTest(tls=bool(tls)), EchoServer(tls) as server:
                client = self.trusting(server)
                self.at_once(work, {name: (name,) for name in range(32)})
                self.assertLessEqual(server.most_open, 32)
                self.assertLessEqual(server.connections, 32)

    def test_a_bounded_number_of_connections_is_kept(self):
        together = threading.Barrier(64, timeout=20)
        server = self.serve([lambda sock: together.wait(), reply()])
        client = self.client(server, timeout=20)
        self.at_once(ask, dict.fromkeys(range(64), (client,)))
        self.assertEqual(server.most_open, 64)
        self.eventually(lambda: server.open < 64)

    def test_tcp_keep_alive_is_on(self):
        for server in (self.serve(), self.secure()):
            ask(self.trusting(server))
            (sock,) = self.sockets_to(server.port)
            self.assertTrue(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
            for name, value in (("KEEPIDLE", 60), ("KEEPINTVL", 60), ("KEEPCNT", 5)):
                option = getattr(socket, f"TCP_{name}", None)
                if option is not None:
                    self.assertEqual(sock.getsockopt(socket.IPPROTO_TCP, option), value, name)

    def test_whatever_is_wrong_no_descriptor_leaks(self):
        before = self.descriptors()
        for tls in (None, server_context()):
            with EchoServer(tls) as server:
                client = self.trusting(server, timeout=0.2)
                for fault, stream in itertools.product(FAULTS, (False, True)):
                    with contextlib.suppress(completions.APIError):
                        ask(client.with_options(headers={"x-fault": fault}), stream=stream)
                self.assertLessEqual(len(self.sockets_to(server.port)), 1)
                client.close()
                self.assertEqual(self.sockets_to(server.port), [])
        self.eventually(lambda: self.descriptors() <= before)

    def test_forgotten_clients_and_streams_close_without_a_warning(self):
        script = """if True:
            import gc
            call = lambda client: client.create(prompt="Hi", model="m").text
            stream = lambda client: client.create_stream(prompt="Hi", model="m")
            call(completions.Client(base_url=sys.argv[1]))
            stream(completions.Client(base_url=sys.argv[1]))
            try:
                call(completions.Client(base_url="http://127.0.0.1:1/v1", max_retries=0))
            except completions.APIConnectionError:
                pass  # refused
            ring = [completions.Client(base_url=sys.argv[1])]
            call(ring[0])
            ring.append(ring)  # whose parts end in any order
            del ring
            gc.collect()
            call(completions)
            at_exit = completions.Client(base_url=sys.argv[1]), stream(completions)
            call(at_exit[0])
        """
        self.trust_authority()
        for tls in (None, server_context()):
            with self.subTest(tls=bool(tls)):
                server = self.serve(reply(), stream_reply(event(chunk("Hi"))), reply(), tls=tls)
                self.set_environment("COMPLETIONS_BASE_URL", server.base_url)
                self.assertEqual(self.in_a_process(script, server.base_url), [])
                self.assertEqual(len(server.requests), 6)

    def test_a_connection_that_another_thread_takes_first_is_neither_used_nor_missed(self):
        class Contended(dict):
            """The idle connections, of which another thread takes each just before this one."""

            def pop(self, *args: object) -> object:
                self.clear()
                return super().pop(*args)

            def popitem(self) -> tuple:
                self.clear()
                return super().popitem()

        server = self.serve()
        client = self.client(server)
        ask(client)
        client._connections.idle = Contended(client._connections.idle)
        ask(client)
        self.assertEqual((len(server.requests), server.connections), (2, 2))
        self.assertEqual(len(client._connections.idle), 1)
        client.close()
        self.assertEqual(len(client._connections.idle), 0)


@unittest.skipUnless(hasattr(signal, "pthread_kill"), "no signals to threads here")
class InterruptTest(TransportCase):
    def handle(self, handler: typing.Callable) -> None:
        self.addCleanup(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, handler))

    @staticmethod
    def interrupt() -> None:
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    def test_a_call_after_an_interrupted_one_gets_its_own_answer(self):
        def interrupt(sock: socket.socket) -> None:
            time.sleep(0.05)
            self.interrupt()
            caught.wait(5)

        self.handle(signal.default_int_handler)
        plain, stream = self.FIRST, stream_reply(event(chunk("first", "stop")))
        places = [(ask, plain, place) for place in (0, 5, 20, len(plain) - 9)]
        for call, data, place in [*places, (ask_stream, stream, 0), (ask_stream, stream, -9)]:
            with self.subTest(call=call, place=place):
                caught = threading.Event()
                steps = [data[:place], interrupt, data[place:]]
                server = self.serve(reply(), steps, self.SECOND)
                client = self.client(server)
                ask(client)
                with self.assertRaises(KeyboardInterrupt):
                    call(client)
                caught.set()
                self.assertEqual(ask(client), "second")
                self.assertEqual((len(server.requests), server.connections), (3, 2))

    def test_an_interrupted_stream_closes_its_connection(self):
        def interrupt(sock: socket.socket) -> None:
            time.sleep(0.05)
            self.interrupt()
            closed.append(sock.recv(1))

        self.handle(signal.default_int_handler)
        closed, steps = [], [BARE_HEAD + event(chunk("a")), interrupt]
        server = self.serve(steps)
        stream = self.client(server, timeout=10).create_stream("p", "m")
        with self.assertRaises(KeyboardInterrupt):
            list(stream)
        self.eventually(lambda: closed == [b""])  # at once, not with the next use of the stream
        with self.assertRaises(completions.StreamInterruptedError) as caught:
            next(stream)
        self.assertEqual(caught.exception.partial.text, "a")

    def test_a_stream_that_a_signal_handler_closes_is_an_interrupted_one(self):
        def interrupt(sock: socket.socket) -> None:
            time.sleep(0.05)
            self.interrupt()

        self.handle(lambda *_: stream.close())
        for serve in self.serve, self.secure:
            with self.subTest(serve.__name__):
                server = serve([BARE_HEAD + event(chunk("a")), interrupt, "hold"])
                stream = self.trusting(server).create_stream("p", "m")
                self.fails(completions.StreamInterruptedError, list, stream)

    @unittest.skipUnless(
        sys.implementation.name == "cpython", "they would end in weakref callbacks"
    )
    def test_interrupts_at_any_moment_never_mix_up_answers(self):
        class Interrupted(Exception):
            pass

        armed, over, caught, swallowed = [], threading.Event(), 0, []

        def handler(_: int, frame: types.FrameType) -> None:
            if armed:
                armed.clear()
                while frame and frame.f_code.co_name != "is_quiet":
                    frame = frame.f_back
                swallowed[:] = [frame] if frame else []  # until it comes out of the call
                raise Interrupted

        def interrupt() -> None:
            chance = random.Random(0)
            while not over.wait(chance.random() / 300):
                self.interrupt()

        self.handle(handler)
        thread = threading.Thread(target=interrupt)
        with EchoServer() as server, warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # of a socket that was just being made
            client = self.client(server)
            ask(client)
            thread.start()
            try:
                for number in range(500):
                    text = f"call number {number}"
                    try:
                        armed.append(True)
                        got = ask(client, text, stream=number % 2)
                        armed.clear()
                        self.assertEqual((got, swallowed), (text, []))
                    except Interrupted:
                        caught += 1
                        swallowed.clear()
            finally:
                armed.clear()
                over.set()
                thread.join()
            self.assertGreater(caught, 9)
            self.assertLessEqual(len(self.sockets_to(server.port)), 1)


class TimeoutTest(TransportCase):
    def test_the_timeout_bounds_the_whole_call_whatever_the_server_does(self):
        def check(kind: type, stream: bool, steps: object) -> None:
            client = self.client(self.serve(steps), timeout=0.5, max_response_bytes=2**40)
            self.times_out(client, kind, stream=stream)

        sized, headers = b"Content-Length: 99\r\n\r\n", b"X: y\r\n" * 99
        interim = b"HTTP/1.1 100 Continue\r\n\r\n" * 9
        marks = STREAM_HEAD + framed(b"\xef" * 2**20)
        cases = {
            "silence": "hold",
            "a status line that drips": drip(b"HTTP/1.1 200 " + b"O" * 99),
            "headers that drip": [self.HEAD, *drip(headers)],
            "interim answers that drip": drip(interim),
            "a sized body that drips": [self.HEAD + sized, *drip(b" " * 99)],
            "a sized body that stalls": [self.HEAD + sized + b" ", "hold"],
            "a chunked body that drips": [STREAM_HEAD, *drip(framed(b" ") * 99)],
            "a chunk size that drips": [STREAM_HEAD, *drip(b"0" * 99)],
            "trailers that drip": [STREAM_HEAD + b"0\r\n", *drip(headers)],
            "a body without length that drips": [BARE_HEAD, *drip(b" " * 99)],
            "comments that drip": [STREAM_HEAD, *drip(framed(b":\n\n") * 99)],
            "a flood of comments": flood(BARE_HEAD, b": keep-alive\n\n" * 999),
            "a flood of bytes that begin a mark": flood(marks, framed(b"\xef") * 999),
        }
        failing = [self.HEAD.replace(b"200", b"503") + sized, *drip(b" " * 99)]
        for stream in (False, True):
            table = {name: (self.LATE, stream, steps) for name, steps in cases.items()}
            failure = completions.InternalServerError, stream, failing
            self.at_once(check, {**table, "an error that drips": failure})

    def test_the_timeout_bounds_connecting_sending_and_tls(self):
        class Hello(ScriptedServer):
            def one(self, sock: socket.socket) -> bool:
                sock.sendall(b"\x16\x03\x03\x3f\xff\x02\x00\x3f\xfb")  # of a record of 16 kB
                for byte, seconds in zip(*[iter(drip(bytes(999)))] * 2):
                    sock.sendall(byte)
                    time.sleep(seconds)

        def check(base_url: str, prompt: str = "Hi") -> None:
            self.times_out(self.at(base_url, timeout=0.5), prompt=prompt)

        over, prompt = threading.Event(), "x" * 2**23
        deaf = [lambda sock: over.wait(20)]
        with Hello() as hello:
            cases = {
                "a silent TLS handshake": (self.serve().base_url.replace("http:", "https:"),),
                "a TLS handshake that drips": (hello.base_url.replace("http:", "https:"),),
                "nothing is read": (self.serve(deaf, early=True).base_url, prompt),
                "nothing is read over TLS": (self.secure(deaf, early=True).base_url, prompt),
            }
            if sys.platform == "linux":
                cases["a full backlog"] = (f"http://127.0.0.1:{self.full_listener()}",)
            self.at_once(check, cases)
            over.set()

    def full_listener(self) -> int:
        """The port of a listener that lets nobody in."""
        listener, *others = [socket.socket() for _ in range(5)]
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for sock in others:
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        for sock in (listener, *others):
            self.addCleanup(sock.close)
        return listener.getsockname()[1]

    @unittest.skipUnless(sys.platform == "linux", "a full backlog is different elsewhere")
    def test_a_port_that_is_not_named_is_that_of_the_scheme(self):
        def addresses(*args):  # as recipes do that replace it, with a text, and all by position
            asked.append(args[:2])
            raise socket.gaierror("no names here")

        self.patch(socket, "getaddrinfo", addresses)
        asked = []
        for url, proxy, expected in [
            ("http://api.example/v1", "", ("api.example", 80)),
            ("https://api.example/v1", "", ("api.example", 443)),
            ("http://api.example/v1", "http://proxy.example", ("proxy.example", 80)),
            ("https://api.example/v1", "http://proxy.example", ("proxy.example", 80)),
        ]:
            for name in "http_proxy", "https_proxy":
                self.set_environment(name, proxy)
            self.fails(self.LOST, ask, self.at(url, max_retries=0))
            self.assertEqual(asked.pop(), expected)

    def test_connecting_has_a_limit_that_all_addresses_share_and_is_retried(self):
        def addresses(host, port, *args, **kwargs):
            return [info for p in (full, full, port) for info in lookup(host, p, *args, **kwargs)]

        full, server, lookup = self.full_listener(), self.serve(), socket.getaddrinfo
        with self.takes(0.6 + 0.3, 3):  # two tries and a wait
            self.patch(completions, "_CONNECT_SECONDS", 0.3)
            error = self.fails(self.LOST, ask, self.at(f"http://127.0.0.1:{full}", max_retries=1))
        self.assertIn("no connection within 0.3 s", str(error))
        self.patch(socket, "getaddrinfo", addresses)
        completions._CONNECT_SECONDS = 3
        with self.takes(1.9, 3):
            self.assertEqual(ask(self.client(server)), "This is a test")

    @unittest.skipUnless(sys.platform == "linux", "a full backlog is different elsewhere")
    def test_an_interrupt_while_connecting_does_not_go_on_to_the_next_address(self):
        def addresses(host, port, *args):
            return [info for p in (full, port) for info in lookup(host, p, *args)]

        full, server, lookup = self.full_listener(), self.serve(), socket.getaddrinfo
        self.patch(socket, "getaddrinfo", addresses)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.addCleanup(signal.signal, signal.SIGINT, before)
        threading.Timer(0.3, InterruptTest.interrupt).start()
        with self.assertRaises(KeyboardInterrupt):
            ask(self.client(server))
        self.assertEqual(server.connections, 0)

    def test_retries_and_waits_are_part_of_the_time(self):
        fails = reply(b"", 503, "retry-after-ms: 400")
        for replies, kind, least in (
            ([fails], completions.InternalServerError, 0.8),  # a wait that does not fit
            ([fails, fails, fails, "hold"], self.LATE, 1.55),
        ):
            with self.subTest(kind), self.takes(least, 3):
                server = self.serve(*replies)
                self.fails(kind, ask, self.client(server, timeout=1.6, max_retries=99))
                self.assertGreater(len(server.requests), 2)

    def test_a_timeout_of_nothing_sends_nothing(self):
        server = self.serve()
        for timeout in (0, 0.0, -1, -math.inf, -(10**400)):
            with self.subTest(timeout=str(timeout)[:9]):
                client = self.client(server, timeout=timeout, max_retries=2)
                self.fails(self.LATE, ask, client)
                self.fails(self.LATE, ask_stream, client)
        self.assertEqual(server.connections, 0)
        for name in ("timeout", "idle_timeout"):
            with self.assertRaises(ValueError):
                self.client(server, **{name: math.nan})

    def test_a_timeout_beyond_counting_is_none(self):
        with EchoServer(server_context()) as server:
            values = None, 3e6, 2**31, 2**63, 1e18, 1e308, math.inf, 10**400
            for name, value in itertools.product(("timeout", "idle_timeout"), values):
                with self.subTest(name, value=str(value)[:9]):
                    options = {name: value, "max_retries": 1, "headers": {"x-fault": "fails_once"}}
                    client = self.trusting(server, **options)
                    self.assertEqual((ask(client), ask_stream(client)), ("Hi", "Hi"))

    def test_a_timeout_for_one_call_shares_the_connections(self):
        server = self.serve(reply(), reply(), "hold", reply())
        client = self.client(server)
        ask(client)
        ask(client.with_options(timeout=5))
        self.assertEqual(server.connections, 1)
        self.times_out(client.with_options(timeout=0.5))
        ask(client)
        self.assertEqual(server.connections, 2)


class TLSTest(TransportCase):
    def test_an_untrusted_or_wrong_certificate_fails_before_anything_is_sent(self):
        for name, context, words in (
            ("server", None, "certificate verify failed"),
            ("server", client_context(authority=False), "certificate verify failed"),
            ("other", client_context(), "'127.0.0.1'"),
        ):
            with self.subTest(name, context=context):
                server = self.serve(tls=server_context(name))
                client = self.client(server, ssl_context=context, max_retries=2)
                error = self.fails(self.LOST, ask, client)
                self.assertIn(words, str(error))
                self.assertIn("certificate", str(error))
                self.assertIsInstance(error.__cause__, ssl.SSLError)
                self.assertEqual((server.requests, server.connections), ([], 1))

    def test_client_certificates_and_private_authorities_come_with_ssl_context(self):
        context = server_context()
        context.load_verify_locations(cadata=PEM["authority"])
        context.verify_mode = ssl.CERT_REQUIRED
        server = self.serve(tls=context)
        ask(self.client(server, ssl_context=client_context(certificate=True)))
        self.fails(self.LOST, ask, self.trusting(server))
        self.assertEqual(len(server.requests), 1)

    def test_ssl_cert_file_is_honoured_and_the_context_is_made_once_a_client(self):
        made, make = [], ssl.create_default_context
        self.patch(ssl, "create_default_context", lambda *args: made.append(args) or make(*args))
        self.trust_authority()
        context, agreed = server_context(), []
        context.set_alpn_protocols(["http/1.1"])
        steps = (
            lambda sock: agreed.append(sock.selected_alpn_protocol()),
            *(reply(None, 200, "Connection: close"), "close"),
        )
        server = self.serve(steps, tls=context)
        client = self.client(server)
        for _ in range(3):
            ask(client.with_options(timeout=9))
        self.assertEqual((server.connections, len(made)), (3, 1))
        self.assertEqual(agreed, ["http/1.1"] * 3)  # as those expect who also speak HTTP/2

    @unittest.skipUnless(getattr(ssl, "HAS_TLSv1_3", False), "needs TLS 1.3")
    def test_an_idle_connection_may_select_as_readable_though_it_is_alive(self):
        def ask_for_certificate(sock: ssl.SSLSocket) -> None:  # as a session ticket, it is no data
            sock.verify_client_post_handshake()
            sock.do_handshake()
            asked.set()

        asked, context, own = threading.Event(), server_context(), client_context(certificate=True)
        context.load_verify_locations(cadata=PEM["authority"])
        context.verify_mode = ssl.CERT_REQUIRED
        context.post_handshake_auth = own.post_handshake_auth = True
        server = self.serve([reply(), ask_for_certificate], self.SECOND, tls=context)
        client = self.client(server, ssl_context=own)
        ask(client)
        self.assertTrue(asked.wait(5))
        self.assertTrue(select.select(self.sockets_to(server.port), [], [], 5)[0])
        self.assertEqual(ask(client), "second")
        self.assertEqual(server.connections, 1)

    def test_an_end_of_the_connection_without_the_goodbye_of_tls_is_an_end(self):
        last = event(chunk("first", "stop"))
        for name, call, data, end in (
            ("a whole body", ask, self.FIRST, "first"),
            ("a cut body", ask, self.FIRST[:-9], self.LOST),
            ("a finished stream", ask_stream, BARE_HEAD + last, "first"),
            ("a cut one", ask_stream, BARE_HEAD + last[:-9], completions.StreamInterruptedError),
        ):
            with self.subTest(name):
                self.ends(end, call, self.trusting(self.secure([data, "close"])))


class ProxyTest(TransportCase):
    SECRET = "a-password-to-hide"
    ENCODED = base64.b64encode(f"user:{SECRET}".encode()).decode()

    def proxy(self, credentials: str = "", **options: object) -> SmallProxy:
        """A proxy that the environment names."""
        proxy = SmallProxy(credentials, **options)
        proxy.handle_error = lambda *args: None
        proxy.__enter__()
        self.addCleanup(proxy.__exit__)
        for name in ("http_proxy", "https_proxy"):
            self.set_environment(name, proxy.url)
        return proxy

    def test_a_proxy_that_does_not_speak_http_is_sent_nothing(self):
        client, server = self.at("http://plain.example/v1", max_retries=0), self.serve()
        for scheme in ("socks5", "ftp"):
            with self.subTest(scheme):
                self.set_environment("http_proxy", f"{scheme}://127.0.0.1:{server.port}")
                error = self.fails(
                    self.LOST, ask, client.with_options(ssl_context=client_context())
                )
                self.assertIn(f"unknown url type: {scheme}", str(error))
        self.assertEqual(server.connections, 0)

    def test_each_party_gets_its_own_credentials_over_one_connection(self):
        for url, tls, first, logged in (
            ("http://plain.example:81/v1", None, "POST http://plain.example:81/v1/compl", 3),
            ("https://localhost/v1", server_context(), "CONNECT localhost:443 HTTP/1.1\n", 1),
        ):
            with self.subTest(url):
                server = self.serve(tls=tls)
                proxy = self.proxy(f"user:{self.SECRET}", upstream=server.port)
                client = self.at(url)
                for stream in (False, True, False):
                    ask(client, stream=stream)
                log, sent = "".join(proxy.log), b"".join(server.requests).lower()
                self.assertEqual((len(server.requests), proxy.connections), (3, 1))
                self.assertTrue(log.startswith(first), log)
                self.assertEqual((len(proxy.log), log.count(self.ENCODED)), (logged, logged))
                self.assertEqual(sent.count(KEY.encode()), 3)
                self.assertNotIn(b"proxy-authorization", sent)
                self.assertIn(f"\r\nhost: {url.split('/')[2]}\r\n".encode(), sent)
                self.assertFalse(tls and (KEY in log or "User-Agent" in log))
                self.assertEqual("\nHost: localhost:443\n" in log, bool(tls))

    def test_no_proxy_is_honoured(self):
        for server in (self.serve(), self.secure()):
            proxy = self.proxy()
            self.set_environment("no_proxy", "elsewhere.example,127.0.0.1")
            ask(self.trusting(server))
            self.assertEqual(proxy.connections, 0)

    def test_a_proxy_that_refuses_is_an_error_that_shows_no_credentials(self):
        for tls, kind in ((None, completions.APIStatusError), (server_context(), self.LOST)):
            with self.subTest(kind):
                server = self.serve(tls=tls)
                proxy = self.proxy("user:another", upstream=server.port)
                url = proxy.url.replace("another", self.SECRET)
                for name in ("http_proxy", "https_proxy"):
                    self.set_environment(name, url)
                error = self.fails(kind, ask, self.trusting(server))
                self.assertIn("407", str(error))
                shown = f"{error!r} {vars(error)} {error.__cause__!r}"
                self.assertNotIn(self.SECRET, shown)
                self.assertNotIn(self.ENCODED, shown)
                self.assertEqual((len(proxy.log), server.requests), (1, []))
                if tls:
                    self.assertEqual(self.sockets_to(proxy.server_address[1]), [])

    def test_a_proxy_url_that_makes_no_sense_is_an_error_that_does_not_show_it(self):
        word = self.SECRET
        hosts = (
            "127.0.0.1:no-port|127.0.0.1:99999||[::1|no host|bad\x01host\r\nX: y|ünknown.invalid"
        )
        urls = [f"http://user:{word}@{host}" for host in hosts.split("|")]
        urls += [f"{start}{word}@127.0.0.1:1" for start in ("http://ü:", "http:u:", "socks5://u:")]
        for url, scheme in itertools.product([*urls, f"://{word}", word], ("http", "https")):
            with self.subTest(url, scheme=scheme):
                self.set_environment(f"{scheme}_proxy", url)
                with self.assertRaises(self.LOST) as caught:
                    ask(self.at(f"{scheme}://127.0.0.1:1/"))
                error = caught.exception
                self.assertNotIn(word, f"{error} {error!r} {error.__cause__} {vars(error)}")

    def test_a_silent_proxy_is_within_the_timeout(self):
        for steps in (["hold"], drip(self.HEAD + b"X: y\r\n" * 9)):
            server = self.serve(steps)
            self.set_environment("https_proxy", server.base_url)
            self.times_out(self.at("https://localhost/", timeout=0.5))
            self.assertTrue(server.requests[0].startswith(b"CONNECT localhost:443 HTTP/1.1\r\n"))
            self.assertTrue(server.left.wait(5))

    def test_what_a_proxy_says_in_the_clear_is_never_the_answer_of_a_tls_server(self):
        class Forger(ProxyHandler):
            def flush_headers(self) -> None:
                self._headers_buffer.append(reply(answer("forged")))
                super().flush_headers()

        server = self.secure(reply(answer("true")))
        self.proxy().RequestHandlerClass = Forger
        with contextlib.suppress(self.LOST):
            self.assertEqual(ask(self.trusting(server)), "true")

    def test_urllib_names_the_server_behind_a_tunnel_as_it_always_has(self):
        request = urllib.request.Request("https://host.example:444/path?query", b"")
        handler = urllib.request.ProxyHandler({"https": "http://user:word@proxy.example:1"})
        handler.proxy_open(request, "http://user:word@proxy.example:1", "https")
        seen = request._tunnel_host, request.host, request.selector, request.type
        self.assertEqual(seen, ("host.example:444", "proxy.example:1", "/path?query", "https"))
        self.assertEqual(request.get_header("Proxy-authorization"), "Basic dXNlcjp3b3Jk")


class BoundsTest(TransportCase):
    def test_an_answer_larger_than_max_response_bytes_raises(self):
        size, kind = len(json.dumps(answer())), completions.APIResponseValidationError
        chunked = STREAM_HEAD + framed(json.dumps(answer()).encode()) + LAST_CHUNK
        replies = reply(), chunked, [reply(sized=False), "close"]
        for data, call in itertools.product(replies, (ask, ask_stream)):
            with self.subTest(data=data, call=call):
                client = self.client(self.serve(data), max_response_bytes=size)
                self.assertEqual(call(client), "This is a test")
                error = self.fails(kind, call, client.with_options(max_response_bytes=size - 1))
                expected = f"the answer exceeds max_response_bytes of {size - 1}"
                self.assertEqual(str(error), expected)

    @unittest.skipUnless(os.path.exists("/proc/self/status"), "the kernel does not say")
    @unittest.skipUnless(sys.implementation.name == "cpython", "garbage stays for a while")
    def test_memory_stays_near_max_response_bytes(self):
        script = """if True:
            def peak():
                with open("/proc/self/status") as file:
                    return next(int(line.split()[1]) for line in file if "VmHWM" in line) >> 10
            client = completions.Client(base_url=sys.argv[1], max_retries=0)
            with client.create_stream(prompt="Hi", model="m") as stream: list(stream)
            client, before = client.with_options(max_response_bytes=16 << 20), peak()
            for call in client.create, client.create, client.create_stream:
                try:
                    call(prompt="Hi", model="m")
                except completions.APIResponseValidationError:
                    print(peak() - before)
        """
        self.set_environment("MALLOC_MMAP_THRESHOLD_", "65536")  # growing large is no copying
        head = STREAM_HEAD.replace(b"text/event-stream", b"application/json")
        for name, endless in {
            "sized": flood(self.HEAD + b"Content-Length: 9999999999\r\n\r\n", b"x" * 65536),
            "chunked": flood(head, framed(b"x" * 65536)),
            "lines": flood(STREAM_HEAD, framed(b"data: %s\n" % (b"x" * 65536))),
        }.items():
            with self.subTest(name):
                server = self.serve(stream_reply(event(chunk("Hi")), event("[DONE]")), endless)
                peaks = self.in_a_process(script, server.base_url)
                self.assertEqual(len(peaks), 3)
                self.assertLess(max(map(int, peaks)), 16 + 6)

    def test_trailers_without_end_do_not_hold_up_the_next_call(self):
        def trailers(sock: socket.socket) -> None:
            end = time.monotonic() + 8  # by then a call that read them has timed out
            time.sleep(0.2)  # so that the stream does not meet them
            sock.sendall(b"0\r\n")
            with contextlib.suppress(OSError):
                while time.monotonic() < end:
                    sock.sendall(b"X: y\r\n" * 10_000)

        script = """if True:
            import time
            client = completions.Client(timeout=4, max_retries=0)
            print(*(chunk.text for chunk in client.create_stream("p", "m")))
            time.sleep(0.5)
            print(client.create("p", "m").text)
        """
        begun = STREAM_HEAD + framed(event(chunk("Hi")), event("[DONE]"))
        server = self.serve([begun, trailers], reply())
        self.set_environment("COMPLETIONS_BASE_URL", server.base_url)
        self.assertEqual(self.in_a_process(script), "Hi This is a test".split())

    @unittest.skipUnless(os.path.exists("/proc/self/status"), "the kernel does not say")
    @unittest.skipUnless(sys.implementation.name == "cpython", "garbage stays for a while")
    def test_blank_lines_before_a_stream_take_no_memory(self):
        script = """if True:
            for _ in "ab":
                with completions.create_stream(prompt="Hi", model="m") as stream:
                    print(stream.response.text)
                with open("/proc/self/status") as file:
                    print(file.read().split("VmHWM:")[1].split()[0])
        """
        a = framed(event(chunk("Hi", "stop"))) + LAST_CHUNK
        for blank in b"\n", b"\r\n", b" \n", b"\xef\n", b" ":
            with self.subTest(blank):
                many = [framed(blank * (65536 // len(blank)))] * 320
                server = self.serve(STREAM_HEAD + a, [STREAM_HEAD, *many, framed(b"\n") + a])
                self.set_environment("COMPLETIONS_BASE_URL", server.base_url)
                _, before, text, after = self.in_a_process(script)
                self.assertEqual(text, "Hi")
                self.assertLess(int(after) - int(before), 6 << 10)
        server = self.serve([STREAM_HEAD + framed(b"\xef" * 5000), "hold"])
        kind = completions.APIResponseValidationError
        self.fails(kind, ask_stream, self.client(server, timeout=9, max_response_bytes=999))

    def test_lengths_that_lie_are_an_error(self):
        sizes = b"1" + b"0" * 13, b"1" + b"0" * 30, b"9" * 4000
        chunks = b"fffffffffff", b"f" * 99, b"f" * 999999, b"-5", b"z", b"", b"5" + b";x" * 99999
        heads = [self.HEAD + b"Content-Length: %s\r\n\r\n" % size for size in sizes]
        heads += [STREAM_HEAD + size + b"\r\n" for size in chunks]
        for head, call in itertools.product(heads, (ask, ask_stream)):
            with self.subTest(head[:80], call=call):
                server = self.serve([head + b'{"choices": []}\r\n0\r\n\r\n', "close"])
                with self.assertRaises(self.LOST):
                    call(self.client(server))

    def test_an_answer_that_is_no_http_is_a_connection_error(self):
        multipart = "Content-Type: multipart/mixed; boundary*"
        cases = {
            "nothing": b"",
            "garbage": b"\0\xff\xfe\r\n\r\n",
            "another protocol": b"SSH-2.0-OpenSSH_9.6\r\n",
            "HTTP/0.9": json.dumps(answer()).encode(),
            "no number": b"HTTP/1.1 OK\r\n\r\n{}",
            "a long number": b"HTTP/1.1 2000 OK\r\n\r\n{}",
            "a negative number": b"HTTP/1.1 -200 OK\r\n\r\n{}",
            "HTTP/2": b"HTTP/2.0 200 OK\r\n\r\n{}",
            "101 headers": self.HEAD + b"X: y\r\n" * 101 + b"\r\n{}",
            "a charset beyond email": reply(None, 200, f"{multipart}=undefined''x"),
        }
        floods = {
            "an endless status line": flood(b"HTTP/1.1 200 ", b"O" * 65536),
            "an endless header line": flood(self.HEAD, b"x" * 65536),
            "endless headers": flood(self.HEAD, b"X: y\r\n" * 999),
            "endless interim answers": flood(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 9),
        }
        for name, steps in {**{n: [data, "close"] for n, data in cases.items()}, **floods}.items():
            with self.subTest(name):
                self.fails(self.LOST, ask, self.client(self.serve(steps)))
        beyond = reply(None, 200, f"{multipart}=a; boundary*1=b")
        digits = reply(None, 200, f"{multipart}{'9' * 5000}=x")
        for broken in beyond, digits:
            try:
                self.assertEqual(ask(self.client(self.serve(broken))), "This is a test")
            except self.LOST as error:  # email breaks on some before Python 3.14
                self.assertIn("invalid headers", str(error))

    def test_headers_are_read_whatever_they_say(self):
        lines = {
            b"X-Plain: a:b;  c": ("x-plain", "a:b;  c"),
            b"X-TIGHT:\t5 \t": ("x-tight", "5"),
            b"X-Latin: \xe9\xe8 ": ("x-latin", "\xe9\xe8"),
            b"X-Empty:": ("x-empty", ""),
            b"X-Twice: 1": ("x-twice", "2"),
            b"x-twice: 2": ("x-twice", "2"),
            b"X-Late:\r\n a": ("x-late", "a"),
        }
        for end in b"\r\n", b"\n":
            data = end.join([b"HTTP/1.1 400 No", *lines, b"Content-LENGTH: 2", b"", b"{}"])
            error = self.fails(completions.BadRequestError, ask, self.client(self.serve(data)))
            self.assertEqual(error.headers, {**dict(lines.values()), "content-length": "2"})

    def test_headers_are_bounded_and_nothing_else_is(self):
        body = json.dumps({**answer(), "large": "x" * 99999}).encode()
        for size, end in (16384, "This is a test"), (16385, self.LOST):
            head = b"%sContent-Length: %d\r\nX: " % (self.HEAD, len(body))
            head += b"y" * (size - len(head) - 4) + b"\r\n\r\n"
            self.ends(end, ask, self.client(self.serve(head + body)))

    def test_an_answer_cut_anywhere_is_a_connection_error(self):
        data = reply(answer(), 200, "X-A: b")
        client = self.client(self.serve(*([data[:size], "close"] for size in range(len(data)))))
        for size in range(len(data)):
            with self.subTest(data[:size]):
                self.fails(self.LOST, ask, client)

    def test_an_upload_goes_on_after_an_interim_answer_or_the_beginning_of_the_answer(self):
        def rest(sock: socket.socket) -> None:
            while not sock.recv(65536).endswith(b"}"):
                pass

        for steps in (
            [b"HTTP/1.1 100 Continue\r\n\r\n", rest, reply()],
            [b"HTTP/1.1 ", 0.3, b"100 OK\r\n\r\n", rest, reply()],
            [reply()[:-9], 0.3, rest, reply()[-9:]],
        ):
            with self.subTest(steps):
                server = self.serve(steps, early=True)
                client = self.client(server, timeout=20, max_retries=0)
                self.assertEqual(client.create("x" * 4_000_000, "m").text, "This is a test")

    def test_interim_answers_are_passed_over(self):
        interim = b"HTTP/1.1 100 Continue\r\nX: y\r\n\r\n"
        server = self.serve(interim * 3 + self.FIRST, self.SECOND)
        client = self.client(server)
        self.assertEqual((ask(client), ask(client)), ("first", "second"))
        self.assertEqual(server.connections, 1)
        for status in (b"101", b"102", b"103"):  # rare ones, on which http.client may end
            with self.subTest(status):
                rare = interim.replace(b"100", status)
                for first in [rare + self.FIRST], [rare, 0.2, self.FIRST]:
                    client = self.client(self.serve(first, self.SECOND))
                    with contextlib.suppress(completions.APIStatusError):
                        self.assertEqual(ask(client), "first")
                    self.assertEqual(ask(client), "second")

    def test_a_compressed_answer_names_its_encoding(self):
        for encoding, call in itertools.product(("gzip", "br"), (ask, ask_stream)):
            server = self.serve(reply(b"\x1f\x8b\x08\0", 200, f"Content-Encoding: {encoding}"))
            kind = completions.APIResponseValidationError
            error = self.fails(kind, call, self.client(server))
            self.assertIn(f"Content-Encoding: {encoding}", str(error))
            self.assertEqual(error.body, b"\x1f\x8b\x08\0")
            self.assertNotIn(encoding.encode(), server.requests[0].lower())
            server = self.serve(reply(b"\x1f\x8b\x08\0", 400, f"Content-Encoding: {encoding}"))
            error = self.fails(completions.BadRequestError, call, self.client(server))
            self.assertIn(encoding, str(error))
        error = self.fails(
            kind, ask, self.client(self.serve(reply(b"{}", 200, "Content-Encoding: x")))
        )
        self.assertEqual(error.body, {})
        plain = reply(None, 200, "Content-Encoding: ")
        self.assertEqual(ask(self.client(self.serve(plain))), "This is a test")
        held = STREAM_HEAD.replace(b"\r\n", b"\r\nContent-Encoding: gzip\r\n", 1)
        for steps in [held, "hold"], [held, "close"]:
            server = self.serve(steps)
            self.fails(kind, ask_stream, self.client(server, timeout=0.5))
            self.assertEqual(len(server.requests), 1)
        ask(self.client(self.serve(reply(None, 200, "Content-Encoding: Identity"))))

    def test_an_answer_before_the_request_was_sent_is_what_counts(self):
        refusal = reply({"error": "too much"}, 413)
        for tls in (None, server_context()):
            for end in (lambda sock: over.wait(20), "close", "reset"):
                over = threading.Event()
                with self.subTest(tls=bool(tls), end=end):
                    server = self.serve([refusal, end, "close"], tls=tls, early=True)
                    client = self.trusting(server)
                    error = self.fails(completions.APIStatusError, ask, client, "x" * 2**24)
                    self.assertEqual((error.status_code, error.body), (413, {"error": "too much"}))
                    server.replies = [self.SECOND]
                    self.assertEqual(ask(client), "second")
                over.set()

    def test_the_answer_to_an_upload_that_was_reset_is_read_all_the_same(self):
        refusal = reply({"error": "too much"}, 413)
        steps = [refusal[:9], 0.3, refusal[9:], "reset"]
        for reply_of_server, kind in (steps, completions.APIStatusError), ("reset", self.LOST):
            server = self.serve(reply_of_server, self.SECOND, early=True)
            client = self.client(server, max_retries=0)
            self.fails(kind, ask, client, "x" * 2**24)
            self.assertEqual(ask(client), "second")

    def test_an_answer_that_nobody_asked_for_reaches_no_call(self):
        first, stray = self.FIRST, reply(answer("stray"))
        stream = stream_reply(event(chunk("first", "stop")), event("[DONE]"))
        both = None, server_context()
        for tls, (call, *steps) in itertools.product(
            both,
            (
                (ask, first + stray),
                (ask, first + b"\r\n"),
                (ask, first, stray),
                (ask, first, reply(b"", 408, "Connection: close")),
                (ask_stream, stream + stray),
                (ask_stream, stream, stray[:20]),
            ),
        ):
            with self.subTest(call=call, steps=steps, tls=bool(tls)):
                answered, sent = threading.Event(), threading.Event()
                later = [lambda sock: answered.wait(5), *steps[1:], lambda sock: sent.set()]
                server = self.serve([steps[0], *later], self.SECOND, tls=tls)
                client = self.trusting(server)
                self.assertEqual(call(client), "first")
                answered.set()
                self.assertTrue(sent.wait(5))
                self.assertEqual(ask(client), "second")
                self.assertEqual((len(server.requests), server.connections), (2, 2))


class SoakTest(TransportCase):
    """For longer, say SOAK_SECONDS=60; to do the same again, SOAK_SEED=its seed."""

    seconds = float(os.environ.get("SOAK_SECONDS", 3))
    SECONDS = 60 + int(seconds)

    def test_whatever_32_threads_meet_they_are_answered_rightly_or_told_rightly(self):
        seed = int(os.environ.get("SOAK_SEED", time.time()))
        if "SOAK_SECONDS" in os.environ:
            print(f"SOAK_SEED={seed}", file=sys.stderr)
        with self.subTest(SOAK_SEED=seed), EchoServer() as plain:
            with EchoServer(server_context()) as secure:
                self.soak(seed, plain, secure)

    def soak(self, seed: int, *servers: EchoServer) -> None:
        def work(name: str, until: float) -> None:
            chance = random.Random(f"{seed} {name}")
            while time.monotonic() < until:
                fault, stream = chance.choice(sorted(FAULTS)), chance.random() < 0.5
                wanted, server = FAULTS[fault], chance.choice(servers)
                timeout, retries = 0.3 if wanted is self.LATE else 10, fault == "fails_once"
                options = {"timeout": timeout, "max_retries": int(retries), "api_key": KEY}
                options.update(base_url=server.base_url, headers={"x-fault": fault})
                text, began = f"call {name}/{tally[name]}", time.monotonic()
                tally[name] += 1
                try:
                    got = ask(client.with_options(**options), text, stream)
                except BaseException as error:
                    got = error
                late = time.monotonic() - began - timeout
                right = isinstance(got, wanted) if wanted else got == text
                if not right or late > 1 or (isinstance(got, self.LATE) and late < -0.05):
                    wrong.append((text, fault, stream, server.base_url, got, late))

        wrong, tally, sizes = [], collections.Counter(), []
        client = self.trusting(servers[0])
        for part in (0.25, 0.75):
            until = time.monotonic() + part * self.seconds
            self.at_once(work, {number: (f"{part}/{number}", until) for number in range(32)})
            self.assertEqual(wrong, [])
            self.assertLessEqual(sum(server.open for server in servers), 2 * 32)
            gc.collect()
            sizes.append((len(gc.get_objects()), self.resident()))
        self.assertGreater(sum(tally.values()), 32 * self.seconds)
        calls = sum(tally.values())
        if not sys.gettrace():  # a tracer keeps objects for each thread
            self.assertLess(sizes[1][0], sizes[0][0] + 10_000 + calls // 4)  # not one for each call
        self.assertLess(sizes[1][1], sizes[0][1] + (16 << 20))
        client.close()
        for server in servers:
            self.assertEqual(self.sockets_to(server.port), [])
            self.eventually(lambda server=server: not server.open)

    @staticmethod
    def resident() -> int:
        """The bytes of memory that this process has, if that can be told and means something."""
        if sys.implementation.name != "cpython" or not os.path.exists("/proc/self/statm"):
            return 0
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ---------------------------------------------------------- the command line, the model, the README


# -------------------------------------------------------------------------------- the command line

HERE, PYTHON = os.path.dirname(TRAINING_FILES[-1]), [sys.executable, "-X", "dev", "-W", "error"]
FIRST, LAST = event(chunk("first")), event("[DONE]")
REASON = event({"error": {"message": "No ☃\nleft\x1b]0;t\x07\x9b", "type": "t", "code": None}})


def streamed(*texts: str) -> bytes:
    """The bytes of a whole stream of one choice."""
    return stream_reply(*(event(chunk(text)) for text in texts), event(chunk("", "stop")), LAST)


def controls(text: str) -> list[str]:
    """All control characters but newline and tab."""
    return re.findall(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text)


def has_terminals() -> bool:
    try:
        return not any(map(os.close, os.openpty()))
    except (AttributeError, OSError):
        return False


def sent_body(server: ScriptedServer) -> dict:
    """The body of a server's first request."""
    return json.loads(server.requests[0].partition(b"\r\n\r\n")[2].decode())


class ProcessCase(Case):
    """For tests of real processes, whose standard error shows any resource left open."""

    def setUp(self) -> None:
        super().setUp()
        self.set_environment("COMPLETIONS_API_KEY", KEY)
        self.set_environment("PYTHONIOENCODING", "utf-8")
        self.set_environment("PYTHONUNBUFFERED", None)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # not ignored in children
        self.addCleanup(signal.signal, signal.SIGINT, before)

    def start(self, *command: str, **options: object) -> subprocess.Popen:
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen(command, **{"bufsize": 0, **pipes, **options})
        self.addCleanup(process.__exit__, None, None, None)
        self.addCleanup(process.kill)
        return process

    def start_main(self, server: object, *argv: str, **options: object) -> subprocess.Popen:
        """The command line, in the middle of its work."""
        self.set_environment("COMPLETIONS_BASE_URL", server.base_url)
        return self.start(*PYTHON, completions.__file__, "--model", MODEL, *argv, **options)

    def run_main(self, server: object, *argv: str, stdin: bytes = b"") -> tuple[int, str, str]:
        """The exit code, standard output and standard error of the command line."""
        process = self.start_main(server, *argv)
        out, err = (data.decode() for data in process.communicate(stdin))
        self.assertNotIn(KEY, out + err)
        self.assertNotIn("Traceback", err)
        return process.returncode, out, err


class CommandLineTest(ProcessCase):
    def test_a_choice_is_shown_whatever_its_index_and_wherever_standard_output_goes(self):
        one = event(chunk("one", "stop", index=1))
        server, output = self.serve(stream_reply(one, event("[DONE]"))), io.StringIO()
        with contextlib.redirect_stdout(output):
            code = completions.main([f"--base-url={server.base_url}", "--model=m", "p"])
        self.assertEqual((code, output.getvalue().strip()), (0, "one"))

    def test_text_goes_out_as_it_comes(self):
        gate = threading.Event()
        self.addCleanup(gate.set)
        last = framed(event(chunk(" last", "stop")), LAST) + LAST_CHUNK
        server = self.serve([STREAM_HEAD + framed(FIRST), lambda _: gate.wait(30), last])
        process = self.start_main(server, "prompt")
        self.assertEqual((process.stdout.read(5), process.poll()), (b"first", None))
        gate.set()
        self.assertEqual((process.communicate(), process.returncode), ((b" last", b""), 0))

    def test_every_choice_is_written_also_when_the_stream_breaks(self):
        parts = [chunk("A"), chunk("a", None, 1), chunk("B", "stop"), chunk("b", "stop", 1)]
        events = [*map(event, parts), LAST]
        cut = [STREAM_HEAD + framed(*events[:3]), "close"]
        for steps, expected in ((stream_reply(*events), (0, "AB\nab")), (cut, (1, "AB\na"))):
            with self.subTest(expected=expected):
                self.assertEqual(self.run_main(self.serve(steps), "--n=2", "p")[:2], expected)

    def test_json_is_the_whole_response(self):
        body = answer("é\x1b\n", service_tier="unknown to us")
        code, out, err = self.run_main(self.serve(reply(body)), "--json", "prompt")
        expected = completions.CompletionsResponse.from_dict(body)
        self.assertEqual(completions.CompletionsResponse.from_json(out), expected)
        self.assertEqual((code, err), (0, ""))

    def test_every_parameter_has_an_option(self):
        samples = {"int": 7, "float": 0.25, "bool": True, "str": "text", "dict[str,": {"1": 2}}
        extra = {"top_k": [1, None], "rule": "a=b"}
        argv = [*(f"--extra={name}={json.dumps(value)}" for name, value in extra.items())]
        expected = {"prompt": "p", "model": MODEL, "stop": ["text", "second"], **extra}
        for item in dataclasses.fields(completions.CompletionsRequest)[2:-1]:
            value = samples[item.type.split(" ")[0]]
            shown = value if isinstance(value, str) else json.dumps(value)
            option = f"--{item.name.replace('_', '-')}"
            argv.append(option if value is True else f"{option}={shown}")
            expected.setdefault(item.name, value)
        server = self.serve()
        code, _, err = self.run_main(server, "--json", *argv, "--stop=second", "p")
        self.assertEqual((code, err, sent_body(server)), (0, "", expected))

    def test_what_python_cannot_count_or_nest_is_one_line(self):
        deep = f"--logit-bias={'[' * 50_000}"
        code, out, err = self.run_main(self.serve(), deep, "p")
        self.assertEqual((code, out), (2, ""))  # from 3.14 on it is but wrong JSON to argparse
        self.assertTrue(err.count("\n") == 1 or err.startswith("usage: "), err[-300:])
        usage = chunk(choices=[], usage={"completion_tokens": 10**400})
        server = self.serve(stream_reply(event(chunk("a", "stop")), event(usage), LAST))
        code, out, err = self.run_main(server, "-v", "p")
        self.assertEqual((code, out, err.count("\n")), (1, "a", 1), err[-300:])

    def test_help_says_what_each_option_is_for(self):
        self.set_environment("COLUMNS", "200")
        code, out, err = self.run_main(self.serve(), "--help")
        self.assertEqual((code, err), (0, ""))
        out = " ".join(out.split())
        self.assertIn("--extra KEY=JSON", out)
        if completions.__doc__:  # not with -OO
            self.assertIn("--temperature TEMPERATURE 0 to 2: how random sampling is", out)

    def test_the_prompt_is_standard_input_by_default(self):
        server, prompt = self.serve(streamed("text")), "é ☃\n"
        self.assertEqual(self.run_main(server, stdin=prompt.encode()), (0, "text", ""))
        self.assertEqual(sent_body(server), {"prompt": prompt, "model": MODEL, "stream": True})

    def test_verbose_writes_usage_and_speed_to_standard_error(self):
        server = self.reference()
        argv = ["-v", "--max-tokens=5", f'--logit-bias={{"{server.model.END}": -100}}', "a a a"]
        asked = len(server.model.encode("a a a"))
        for option in ([], ["--json"]):
            with self.subTest(option=option):
                began = time.monotonic()
                code, out, err = self.run_main(server, *argv, *option)
                match = re.fullmatch(rf"{asked} \+ 5 tokens, (\S+) s, (\S+) tokens/s\n", err)
                seconds, speed = map(float, match.groups())
                self.assertLess(seconds - 0.006, time.monotonic() - began)
                self.assertAlmostEqual(seconds, 5 / speed, delta=0.01 + seconds**2 / 50)
                self.assertEqual((code, "tokens/s" in out), (0, False))
        server = self.serve(streamed("a"))
        self.run_main(server, "-v", '--stream-options={"x": 1}', "p")
        self.assertEqual(sent_body(server)["stream_options"], {"x": 1})

    def test_keys_come_from_the_environment_only(self):
        server, other = self.serve(), self.serve()
        for target, has_key in ((server, True), (other, False)):
            self.run_main(server, "--json", "--base-url", target.base_url, "prompt")
            self.assertEqual(f"Bearer {KEY}".encode() in target.requests[0], has_key)
        self.assertEqual(self.run_main(server, "--api-key=k", "prompt")[0], 2)

    def test_a_failed_request_is_one_line_after_the_text_that_had_come(self):
        begun, failed = STREAM_HEAD + framed(FIRST), framed(REASON) + LAST_CHUNK
        refused = reply(REASON[6:], 400)
        for name, argv, steps, text, message in (
            ("refused", [], refused, "", "No ☃ left"),
            ("refused", ["--json"], refused, "", "No ☃ left"),
            ("no JSON", ["--json"], reply(b"<html>"), "", "JSON"),
            ("silent", ["--json", "--timeout=1"], "hold", "", "timeout"),
            ("cut", [], [begun, "close"], "first", ""),
            ("reset", [], [begun, "reset"], "first", "reset"),
            ("error inside", [], [begun, failed], "first", "No ☃ left"),
            ("silent inside", ["--timeout=1"], [begun, "hold"], "first", "timeout"),
        ):
            with self.subTest(name, argv=argv):
                code, out, err = self.run_main(self.serve(steps), *argv, "prompt")
                self.assertEqual((code, out), (1, text))
                self.assertRegex(err, rf"\A[^\n]*{message}[^\n]*\n\Z")
                self.assertEqual(controls(err), [])

    def test_wrong_usage_exits_with_2_and_sends_nothing(self):
        server = self.serve()
        wrong = "--no-such two-prompts --n=many --logit-bias={ --logit-bias=[] --temperature=nan "
        wrong += "--timeout=nan --extra=k --extra=k=many --extra=stream=true --base-url=ftp://a"
        for word in wrong.split(" "):
            with self.subTest(word):
                code, out, err = self.run_main(server, word, "prompt")
                self.assertEqual((code, out, bool(err), server.requests), (2, "", True, []))
                name, given, value = word.lstrip("-").partition("=")
                if given:  # argparse names the option, the request its parameter
                    self.assertRegex(err.splitlines()[-1], name.replace("-", "[-_]") + ": ")
                if value == "many":
                    self.assertIn("invalid int value: 'many'", err)
        for argv, expected, said in (["p"], 2, "required: --model"), (["--help"], 0, ""):
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                self.assertEqual(completions.main(argv), expected)
            self.assertIn(said, err.getvalue())

    @unittest.skipIf(os.name == "nt", "no such signal there")
    def test_ctrl_c_exits_with_130(self):
        process = self.start_main(self.serve([STREAM_HEAD + framed(FIRST), "hold"]), "prompt")
        self.assertEqual(process.stdout.read(5), b"first")
        process.send_signal(signal.SIGINT)
        self.assertEqual((process.communicate(), process.returncode), ((b"", b""), 130))

    def test_a_closed_pipe_is_no_error(self):
        for steps, option in ((streamed("x" * 100_000), "--n=1"), (reply(), "--json")):
            process = self.start_main(self.serve(steps), option)
            process.stdout.close()
            process.stdin.close()  # only now does it ask
            self.assertEqual((process.stderr.read(), process.wait()), (b"", 0))

    @unittest.skipUnless(os.name == "posix", "needs a shell")
    def test_a_standard_stream_that_is_not_there_is_one_line(self):
        for closed, argv in ((">&-", ["p"]), (">&-", ["--json", "p"]), ("<&-", [])):
            command = ["sh", "-c", f'"$@" {closed}', "sh", *PYTHON, completions.__file__, *argv]
            self.set_environment("COMPLETIONS_BASE_URL", self.serve(reply()).base_url)
            process = self.start(*command, "--model=m")
            out, err = process.communicate()
            self.assertEqual((process.returncode, out, err.count(b"\n")), (2, b"", 1), err)
        for number, steps, text in ((1, reply({}, 400), b""), (0, streamed("a"), b"a")):
            command = ["sh", "-c", '"$@" 2>&-', "sh", *PYTHON, completions.__file__, "-v", "p"]
            self.set_environment("COMPLETIONS_BASE_URL", self.serve(steps).base_url)
            process = self.start(*command, "--model=m")
            self.assertEqual((process.communicate()[0], process.returncode), (text, number))

    def test_standard_input_that_cannot_be_read_is_one_line(self):
        with open(os.devnull, "wb") as unreadable:
            process = self.start_main(self.serve(), stdin=unreadable)
            out, err = process.communicate()
        self.assertEqual((process.returncode, out, err.count(b"\n")), (1, b"", 1), err)

    def test_a_clock_that_stands_still_is_no_error(self):
        still = types.SimpleNamespace(**{**vars(time), "monotonic": lambda: 1e6})
        argv = ["-v", f"--base-url={self.serve(streamed('a')).base_url}", "--model=m", "p"]
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            with unittest.mock.patch.object(completions, "time", still):
                self.assertEqual(completions.main(argv), 0)
        self.assertEqual((out.getvalue(), err.getvalue().count("\n")), ("a", 1))

    def test_text_that_the_encoding_lacks_is_escaped(self):
        text = "é ☃ 𝄞 \ud800 end"
        self.set_environment("LC_ALL", "C")
        for encoding in ("ascii", "latin-1", "utf-8", None):
            with self.subTest(encoding=encoding):
                self.set_environment("PYTHONIOENCODING", encoding)
                process = self.start_main(self.serve(streamed(text)), "prompt")
                expected = text.encode(encoding or "utf-8", "backslashreplace")
                self.assertEqual(process.communicate(), (expected, b""))
                self.assertEqual(process.returncode, 0)

    def test_control_characters_go_into_a_pipe_as_they_are(self):
        text = "\x1b[31m\x00\x07\x7f\x9b\r\n"
        self.assertEqual(self.run_main(self.serve(streamed(text)), "p"), (0, text, ""))

    @unittest.skipUnless(has_terminals(), "no pseudo-terminals here")
    def test_control_characters_are_shown_on_a_terminal(self):
        text, shown = "\x1b[31m\x00\x07\x7f\x9b\r\t\n☃", r"\x1b[31m\x00\x07\x7f\x9b\r" + "\t\n☃"
        other = {"index": 1, "text": "x", "finish_reason": "stop"}
        ends = chunk("a\n", "stop"), {"choices": [other]}
        for name, steps, expected in (
            ("--n=1", streamed(text[:1], text[1:]), shown),
            ("--json", reply(answer("\x1b\x7f\x9b")), r'"\u001b\u007f\u009b"'),
            ("--json", reply(REASON[6:], 400), "No ☃ left"),
            ("--n=1", stream_reply(FIRST, REASON), "first\ncompletions: No ☃ left"),
            ("--n=2", stream_reply(*map(event, ends)), "a\n\nx\n"),
            ("--n=1", streamed("b\n"), "b\n"),
        ):
            with self.subTest(expected):
                ours, theirs = os.openpty()
                both = {"stdout": theirs, "stderr": theirs}
                data = []
                self.start_main(self.serve(steps), name, "prompt", **both)
                os.close(theirs)
                with open(ours, "rb", 0) as terminal, contextlib.suppress(OSError):
                    data.extend(iter(lambda: terminal.read(65536), b""))
                output = b"".join(data).decode().replace("\r\n", "\n")
                self.assertIn(expected, output)
                self.assertEqual(output.count("\n\n"), expected.count("\n\n"))
                self.assertEqual(controls(output), [])


# ------------------------------------------------------------------ what the reference server means


class ReferenceServerTest(Case):
    PROMPT = "The import statement"

    def setUp(self) -> None:
        super().setUp()
        self.server = self.reference()
        self.model = self.server.model
        self.no_end = {str(self.model.END): -100}
        self.ask = functools.partial(self.client(self.server).create, model="ngram")

    def two(self, **options: object) -> str:
        """A text of 1s, and of 2s that are e times less probable, whatever came before."""
        options = {"max_tokens": 64, "seed": 1, "logit_bias": {"1": 100, "2": 99}, **options}
        return self.ask(self.PROMPT, **options).text.replace("\1", "1").replace("\2", "2")

    def refusal(self, body: object) -> tuple[int, str | None]:
        """The status and the parameter named in the answer to what the client would not send."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_address[1])
        with contextlib.closing(connection):
            connection.request("POST", "/v1/completions", json.dumps(body))
            response = connection.getresponse()
            return response.status, json.loads(response.read().decode()).get("error", {})["param"]

    def test_log_probabilities_are_those_of_the_model(self):
        choice = self.ask(self.PROMPT, logprobs=5, echo=True, temperature=0.7, seed=1).choices[0]
        self.assertEqual(choice.text[: len(self.PROMPT)], self.PROMPT)
        tokens = self.model.encode(self.PROMPT)
        tokens += self.model.encode(choice.text[len(self.PROMPT) :])
        got = choice.logprobs
        self.assertEqual(got.tokens, [self.model.name(token) for token in tokens])
        places = itertools.accumulate([0, *map(len, got.tokens[:-1])])
        self.assertEqual(("".join(got.tokens), got.text_offset), (choice.text, [*places]))
        self.assertEqual((got.token_logprobs[0], got.top_logprobs[0]), (None, None))
        for i in range(1, len(tokens)):
            every = self.model.distribution([self.model.END, *tokens[:i]])
            self.assertAlmostEqual(sum(every), 1)
            self.assertAlmostEqual(got.token_logprobs[i], math.log(every[tokens[i]]))
            top = {self.model.name(t): math.log(p) for t, p in enumerate(every)}
            self.assertEqual(got.top_logprobs[i].items() - top.items(), set())
            self.assertEqual(max(got.top_logprobs[i].values()), max(top.values()))
            self.assertLessEqual(sum(map(math.exp, got.top_logprobs[i].values())), 1 + 1e-9)

    def test_greedy_equals_greedy_in_all_forms_of_a_prompt_and_is_the_most_probable(self):
        tokens, texts = self.model.encode(self.PROMPT), set()
        prompts = self.PROMPT, [self.PROMPT] * 2, tokens, [tokens] * 2
        for prompt, seed, top_p in zip(prompts, (None, 1, 2, 3), (1, None, 0.5, 0.1)):
            greedy = {"temperature": 0, "seed": seed, "top_p": top_p, "logit_bias": self.no_end}
            choices = self.ask(prompt, logprobs=2, **greedy).choices
            texts.update(choice.text for choice in choices)
        self.assertEqual(len(texts), 1, texts)
        got, end = choices[0].logprobs, self.model.name(self.model.END)
        for logprob, top in zip(got.token_logprobs, got.top_logprobs):
            self.assertEqual(logprob, max(top[name] for name in top if name != end))

    def test_streamed_equals_plain_seed_for_seed(self):
        client = self.client(self.server)
        prompts = "A", self.model.encode(self.PROMPT), ["The client", "é"], [[1, 2], [300]]
        rows = {}, {"n": 3}, {"logprobs": 2, "echo": True}, {"stop": [" the", ","]}
        for seed, (prompt, row) in enumerate(itertools.product(prompts, rows)):
            with self.subTest(prompt=prompt, **row):
                request = {"prompt": prompt, "model": "ngram", "seed": seed, **row}
                plain = client.create(**request)
                request["stream_options"] = {"include_usage": True}
                with client.create_stream(**request) as stream:
                    self.assertGreater(len([*stream]), len(plain.choices))
                plain.id, plain.created = stream.response.id, stream.response.created
                self.assertEqual(stream.response, plain)

    def test_sampling_obeys_its_parameters(self):
        rows = [({}, "12"), ({"temperature": 0.05}, "1"), ({"top_p": 0.7}, "1")]
        rows += [({"top_p": 0.8}, "12"), ({"logit_bias": {"1": -100, "2": 100}}, "2")]
        for options, digits in rows:
            self.assertEqual({*self.two(**options)}, {*digits}, options)
        self.assertGreater(self.two(temperature=2).count("2"), self.two().count("2"))
        self.assertEqual(self.two(seed=5), self.two(seed=5))
        for other in (None, 6):
            self.assertNotEqual(self.two(seed=None), self.two(seed=other))
        rows = [("presence_penalty", 2, "121111"), ("frequency_penalty", 0.75, "112121")]
        for name, value, digits in [*rows, ("frequency_penalty", -2, "111111")]:
            got = self.two(temperature=0, max_tokens=6, **{name: value})
            self.assertEqual(got, digits, name)

    def test_a_text_ends_at_max_tokens_a_stop_the_suffix_or_its_end(self):
        ask = functools.partial(self.ask, self.PROMPT, temperature=0, max_tokens=12, logprobs=0)
        whole = ask(logit_bias=self.no_end).choices[0]
        text, tokens = whole.text, whole.logprobs.tokens
        self.assertEqual((len(tokens), whole.finish_reason), (12, "length"))
        part = text[len(tokens[0]) - 1 :][:4]  # over the border of two tokens
        upto = "".join(tokens[: tokens.index(tokens[-1])])
        for options, expected in (
            ({"stop": part}, text[: text.index(part)]),
            ({"stop": ["absent", part]}, text[: text.index(part)]),
            ({"suffix": tokens[-1]}, upto),
            ({"logit_bias": {str(self.model.END): 100}}, ""),
        ):
            choice = ask(**{"logit_bias": self.no_end, **options}).choices[0]
            self.assertEqual((choice.text, choice.finish_reason), (expected, "stop"), options)

    def test_best_of_returns_the_n_best(self):
        options = {"seed": 3, "logprobs": 0, "max_tokens": 6, "logit_bias": self.no_end}
        every = self.ask(self.PROMPT, n=5, **options).choices
        best = self.ask(self.PROMPT, n=2, best_of=5, **options).choices
        every.sort(key=lambda choice: sum(choice.logprobs.token_logprobs), reverse=True)
        self.assertGreater(len({choice.text for choice in every}), 1)
        self.assertEqual([choice.text for choice in best], [c.text for c in every[:2]])

    def test_usage_adds_up(self):
        prompts = [self.PROMPT, "A", "\U0001d11e"]
        asked = sum(len(self.model.encode(prompt)) for prompt in prompts)
        for options, made in ({"n": 2}, 30), ({"best_of": 3}, 45), ({"echo": True}, 15):
            usage = self.ask(prompts, max_tokens=5, logit_bias=self.no_end, **options).usage
            expected = completions.Usage(asked, made, asked + made)
            self.assertEqual(usage, expected, options)

    def test_what_is_wrong_is_refused_by_its_name(self):
        rows = {name: [[]] for name in PARAMETERS}
        for name, (_, _, *bounds) in PARAMETERS.items():
            rows[name] += [b + s for b, s in zip(bounds, (-1, 1)) if b != math.inf]
        rows["prompt"] = None, [], 5, [[]], [1, "a"], [10**9], [-1]
        rows["stop"] = 5, ["a"] * 5, [""], [5]
        rows["model"] += [None, "", 5]
        rows["n"] += [True, 1.0]
        rows["logit_bias"] += [{"x": 1}, {"1": 101}, {"1": None}]
        rows["stream_options"] += [{"include_usage": True}]
        good = {"model": "ngram", "prompt": "p", "max_tokens": 1}
        for name, values in rows.items():
            for value in values:
                with self.subTest(name, value=value):
                    self.assertEqual(self.refusal({**good, name: value}), (400, name))
        self.assertEqual(self.refusal({**good, "n": 2, "best_of": 1}), (400, "best_of"))
        self.assertEqual(self.refusal({**good, "model": "missing"}), (404, "model"))
        self.assertEqual(self.refusal([]), (400, None))

    def test_start_up_is_quick(self):
        began = time.process_time()
        shared_model.__wrapped__()
        self.assertLess(time.process_time() - began, 1)


# --------------------------------------------------------------- the main program and the README


class MainProgramTest(ProcessCase):
    def test_demo_completes_the_prompt_by_a_call_and_by_a_command(self):
        self.set_environment("http_proxy", "http://127.0.0.1:9")  # is not asked
        for argv in ([], ["Ein Wörtchen --"]):
            process = self.start(*PYTHON, TRAINING_FILES[-1], "demo", *argv)
            out, err = (data.decode() for data in process.communicate())
            self.assertEqual((process.returncode, err), (0, ""))
            prompt = (argv or ["The import statement"])[0]
            call, command = out.split("by a command: ")
            command, _, rest = command.partition("\n")
            text, note, _ = rest.partition("\n\nBoth went over real connections")
            self.assertTrue(note and len(text) > 20, out)
            self.assertIn(prompt, command)
            self.assertIn(prompt, call)
            self.assertIn(f"\n{text!r}\n", call)

    def test_serve_leaves_the_server_running(self):
        with listen() as sock:
            port = str(sock.getsockname()[1])
        process = self.start(*PYTHON, TRAINING_FILES[-1], "serve", "--port", port)
        url = f"http://127.0.0.1:{port}/v1"
        self.assertIn(url.encode(), process.stdout.readline())
        with completions.Client(base_url=url) as client:
            self.assertEqual(client.create("p", "ngram", max_tokens=2).model, "ngram")
        second = self.start(*PYTHON, TRAINING_FILES[-1], "serve", "--port", port)
        out, err = second.communicate()
        self.assertEqual((out, second.returncode, err.count(b"\n")), (b"", 1, 1), err)
        if os.name != "nt":
            process.send_signal(signal.SIGINT)
            self.assertEqual((process.communicate()[1], process.returncode), (b"", 0))


@unittest.skipUnless(os.path.exists(os.path.join(HERE, "README.md")), "no README.md here")
class ReadmeTest(ProcessCase):
    BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    COMMAND = re.compile(
        r"(?:\$ )?((?:(?:echo|printf) [^|&;]*\| *)?(?:\w+=\S* +)*)"
        r"python3 ((?:completions\.py|test_completions\.py demo)\b.*)"
    )
    CALL = """
if "handler" in globals():
    context = type("Context", (), {"get_remaining_time_in_millis": lambda self: 20_000})()
    handler({"prompt": "p", "model": "m"}, context)"""
    ABSENT = r"No module named '(?!completions)|module 'asyncio' has no attribute 'to_thread'"

    def test_every_block_works_on_the_reference_server(self):
        """Python blocks run each by itself, and a `handler` in one is called as by a serverless
        platform; in a shell's blocks, commands that start one of our files and come to an end."""
        server, folder = self.reference(), tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        for path in {*map(os.path.abspath, (completions.__file__, TRAINING_FILES[-1]))}:
            shutil.copy(path, folder)
        with open(os.path.join(HERE, "README.md"), encoding="utf-8") as file:
            text = re.sub(r"https?://[^/\s\"'`]+", server.base_url[:-3], file.read())
        self.set_environment("COMPLETIONS_BASE_URL", server.base_url)
        for name in re.findall(r"\b[A-Z_]+_(?:KEY|AUTH)\b", text):
            self.set_environment(name, KEY)
        processes = {}
        for number, (language, code) in enumerate(self.BLOCK.findall(text)):
            if language == "python":
                path = os.path.join(folder, f"block_{number}.py")
                with open(path, "w", encoding="utf-8") as file:
                    file.write(code + self.CALL)
                processes[code] = [*PYTHON, path]
            elif language in ("sh", "bash", "shell", "console") and os.name != "nt":
                python = " ".join(map(shlex.quote, PYTHON))
                for found in map(self.COMMAND.match, code.replace("\\\n", "").split("\n")):
                    if found:
                        processes[found[0]] = ["sh", "-c", f"{found[1]}{python} {found[2]}"]
        self.assertTrue(processes)
        options = {"cwd": folder, "stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
        for name, command in processes.items():
            processes[name] = self.start(*command, **options)
        for name, process in processes.items():
            with self.subTest(name):
                output = process.communicate()[0].decode()
                if not re.search(self.ABSENT, output):
                    self.assertEqual(process.returncode, 0, output)


# ----------------------------------------------------------------- wherever it lands, and the audit


MODULE_PATH = os.path.abspath(completions.__file__)
ASKS_TWICE = """
assert c.create("Say", "m", max_tokens=4).text == "This is a test", "plain"
with c.create_stream("Say", "m") as stream:
    assert [chunk.text for chunk in stream] == ["This is a test"], "streamed"
assert c.Client().create("Say", "m") == stream.response
try:
    c.CompletionChoice.from_json('{"text": 1}')
except c.APIError as error:
    assert type(error) is c.APIResponseValidationError and isinstance(error, ValueError)
    assert str(error) == "text: expected str, got int", error
import dataclasses, sys
assert dataclasses.replace(c.Usage(), total_tokens=3) == c.Usage(total_tokens=3)
assert c.Usage.__module__ == c.Client.__module__
print("done", *sorted({"elsewhere", "pasted"} & {*sys.modules}))
"""
READ = "with open('completions.py', encoding='utf-8') as f: text = f.read()\nimport types\n"
WAYS_TO_EMBED = {  # each leaves the module, or what it defines, as `c`
    "next to a script": "import completions as c",
    "renamed": "import llm as c",
    "in a package, by a relative import": "from app.user import completions as c",
    "in a zip": "import sys; sys.path.insert(0, 'all.zip'); import zipped as c",
    "as bytecode alone": "import bare as c; assert c.__file__.endswith('.pyc')",
    "loaded again": (
        "import importlib, completions as c\n"
        """old = c.CompletionsResponse.from_json('{"choices": [{}], "usage": {}}')\n"""
        "text = old.to_json(); c = importlib.reload(c); assert old.to_json() == text"
    ),
    "by importlib, not in sys.modules": (
        "import importlib.util as util\n"
        f"spec = util.spec_from_file_location('elsewhere', {MODULE_PATH!r})\n"
        "c = util.module_from_spec(spec)\nspec.loader.exec_module(c)"
    ),
    "by exec, with a name": (
        f"{READ}d = dict(__name__='pasted')\nexec(text, d)\nc = types.SimpleNamespace(**d)"
    ),
    "by exec, without a name": f"{READ}d = {{}}\nexec(text, d)\nc = types.SimpleNamespace(**d)",
    "by exec, compiled without a name": (
        f"{READ}exec(compile(text, '', 'exec'))\nc = types.SimpleNamespace(**globals())"
    ),
    "in a notebook's cell": f"{READ}exec(text)\nc = types.SimpleNamespace(**globals())",
    "in a notebook's cell that has a file name": (
        f"{READ}exec(compile(text, '/tmp/ipykernel_1/2.py', 'exec'))\n"
        "c = types.SimpleNamespace(**globals())"
    ),
    "by exec in a script": (
        f"{READ}__file__ = 'script.py'\nexec(text)\nc = types.SimpleNamespace(**globals())"
    ),
    "where no bytecode can be kept": "import sys; sys.path[0] = 'sealed'; import completions as c",
    "imported where there are no standard streams": (
        "import sys; streams = sys.stdin, sys.stdout, sys.stderr\n"
        "sys.stdin = sys.stdout = sys.stderr = None; import completions as c\n"
        "sys.stdin, sys.stdout, sys.stderr = streams"
    ),
}
TWO_VERSIONS = """
import one.completions, two.completions
ours, theirs = one.completions, two.completions
assert theirs.__version__ == "9.9.9" != ours.__version__
assert ours.create("Say", "m") != theirs.create("Say", "m")
for raising, other in ((ours, theirs), (theirs, ours)):
    try:
        raising.Usage.from_json("no JSON")
    except other.APIError:
        raise AssertionError("it caught the error of the other")
    except raising.APIError:
        pass
assert ours.Client.create is not theirs.Client.create
"""
POOLS = """
import concurrent.futures as futures, functools, multiprocessing, sys
import completions as c

client = c.Client(max_retries=0, api_key="k")
ask = functools.partial(client.create, model="m", max_tokens=4, temperature=0)

def refused(client):
    client.create("The", "m", extra={"knobs": {"status": 429, "headers": {"retry-after": "7"}}})

def cut(client):
    endless = {"max_tokens": 9, "logit_bias": {"256": -100}}
    with client.create_stream("The", "m", extra={"knobs": {"cut": 3}}, **endless) as stream:
        list(stream)

def echo(value):
    return value

def checked(method, pool, run):
    assert [answer.text for answer in pool.map(ask, ["The"] * 4)] == [first.text] * 4, method
    back = run(echo, first)
    assert back == first and back.request_id == first.request_id, (method, back)
    for failing, kind in ((refused, c.RateLimitError), (cut, c.StreamInterruptedError)):
        try:
            run(failing, client)
        except c.APIError as error:
            assert type(error) is kind and error.request_id, (method, error)
            if failing is cut:
                assert error.partial.text, (method, error.partial)
            else:
                assert (error.status_code, error.retry_after) == (429, 7), (method, vars(error))
                assert error.type == "invalid_request_error" and error.headers["retry-after"] == "7"
                assert error.body["error"]["message"] in error.message, (method, error)
        else:
            raise AssertionError(f"{method}: no error")
    assert ask("The").text == first.text, method

if __name__ == "__main__":
    first = ask("The")
    with futures.ThreadPoolExecutor(2) as pool:
        checked("threads", pool, lambda *call: pool.submit(*call).result())
    if sys.implementation.name != "pypy":  # Debian's lacks a method
        with futures.ProcessPoolExecutor(2) as pool:
            checked("processes", pool, lambda *call: pool.submit(*call).result())
    for method in multiprocessing.get_all_start_methods():
        with multiprocessing.get_context(method).Pool(2) as pool:
            checked(method, pool, lambda *call: pool.apply(call[0], call[1:]))
    print("done")
"""
HANDLER = """
import completions
client = completions.Client(max_retries=0)
def handler(event, context):
    left = context["milliseconds"] / 1000 - 0.5
    return client.with_options(timeout=left).create(event["prompt"], "m").to_dict()
"""
UNLOADED = """
import sys, completions
stream = completions.create_stream("p", "m")
del sys.modules["http.client"]
try:
    list(stream)
except completions.StreamInterruptedError:
    sys.exit()
raise AssertionError("no error")
"""
OPENERS = """
import io, os, socket, urllib.request, urllib.response
import completions
calls = []
class Theirs(urllib.request.BaseHandler):
    handler_order = 1
    def http_request(self, request):
        calls.append(request.host)
        return request
    def http_open(self, request):
        if request.host == "192.0.2.1":
            answer = urllib.response.addinfourl(io.BytesIO(b"theirs"), {}, request.full_url, 200)
            answer.msg = "OK"
            return answer
urllib.request.install_opener(urllib.request.build_opener(Theirs))
socket.setdefaulttimeout(1e-9)
assert completions.create("Say", "m").text == "This is a test"
with completions.create_stream("Say", "m") as stream:
    assert "".join(chunk.text for chunk in stream) == "This is a test"
try:
    completions.create("Say", "m")
except completions.APIStatusError as error:
    assert error.status_code == 302 and not calls, calls
assert socket.getdefaulttimeout() == 1e-9
socket.setdefaulttimeout(9)
for url in ("http://192.0.2.1/1", os.environ["COMPLETIONS_BASE_URL"]):  # and theirs, redirects
    with urllib.request.urlopen(url) as answer:
        assert answer.read() == b"theirs"
assert calls[0] == calls[-1] == "192.0.2.1" and len(calls) == 3, calls
"""
NEVER_AT_IMPORT = (
    "urllib.request http.client ssl json email logging argparse datetime socket typing asyncio"
).split()
IMPORTED_AT_ONCE = {"__future__", "dataclasses", "functools", "inspect", "io"}
IMPORTED_AT_ONCE |= {"collections", "copy", "os", "re", "sys", "time", "weakref"}
IMPORTED_WHEN_USED = {"argparse", "datetime", "email.utils", "http.client", "json"}
IMPORTED_WHEN_USED |= {"socket", "ssl", "urllib.parse", "urllib.request"}
ATTRIBUTES = {  # all that is used of the modules by which a program reaches the machine
    "os": {"O_WRONLY", "devnull", "dup2", "environ", "getpid", "open"},
    "io": {"BufferedReader", "BytesIO", "RawIOBase", "StringIO"},
    "sys": {"exit", "modules", "stderr", "stdin", "stdout", "version", "version_info"},
}
NEVER_NAMED = {*"eval exec compile __import__ open input breakpoint setattr delattr".split()}
AUDITED = """
import json, os, sys
import completions
seen = {"writes": [], "spawned": [], "sockets": {}, "reads": 0}
writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
def hook(event, args):
    if event == "open":
        seen["reads"] += 1
        if set(args[1]) & set("wax+") if isinstance(args[1], str) else args[2] & writing:
            seen["writes"].append(repr(args))
    elif event.startswith("socket."):
        target = [str(args[0]), args[1]] if event.endswith("info") else args[1:2]
        if target not in seen["sockets"].setdefault(event, []):
            seen["sockets"][event].append(target)
    elif event.startswith(("os.", "subprocess.", "shutil.", "ctypes.", "ftplib.", "tempfile.")):
        if event not in ("os.listdir", "os.scandir"):  # these are import's
            seen["spawned"].append(event)
sys.addaudithook(hook)
completions.create("Say", "m")
with completions.create_stream("Say", "m") as stream:
    list(stream)
print(json.dumps(seen))
"""


class EmbedCase(Case):
    """Each test has a folder of its own, to put the module in and run programs in."""

    def setUp(self) -> None:
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        with open(MODULE_PATH, encoding="utf-8") as file:
            self.text = file.read()
        self.put("completions.py", self.text)

    def put(self, name: str, text: str) -> None:
        path = os.path.join(self.folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)

    def python(self, *arguments: str, server: object = None, **environment: str) -> str:
        """What a Python program writes, that must do without errors and warnings."""
        environment = {**os.environ, **environment}
        if server:
            environment["COMPLETIONS_BASE_URL"] = server.base_url
        command = [sys.executable, *arguments]
        done = subprocess.run(
            command, cwd=self.folder, env=environment, stdout=-1, stderr=-1, stdin=-3, timeout=50
        )
        self.assertEqual(done.stderr.decode(), "")
        self.assertEqual(done.returncode, 0)
        return done.stdout.decode()


class EmbeddingTest(EmbedCase):
    def test_it_works_wherever_it_lands(self):
        self.put("llm.py", self.text)
        self.put("zipped.py", self.text)
        self.put("bare.py", self.text)
        self.put("app/__init__.py", "")
        self.put("app/user.py", "from .vendored import completions")
        self.put("app/vendored/completions.py", self.text)
        self.put("sealed/completions.py", self.text)
        self.put("sealed/__pycache__", "a file, so that not even root can write into it")
        self.python("-m", "zipfile", "-c", "all.zip", "zipped.py")
        self.python("-m", "compileall", "-q", "-b", "bare.py")
        for name in ("zipped.py", "bare.py"):
            os.remove(os.path.join(self.folder, name))
        server = self.serve()
        for way, code in WAYS_TO_EMBED.items():
            with self.subTest(way):
                code = f"{code}\n{ASKS_TWICE}"
                flags = ("-W", "error", "-X", "dev")
                self.assertEqual(self.python(*flags, "-c", code, server=server).strip(), "done")

    def test_two_versions_in_one_process_keep_apart(self):
        self.put("one/completions.py", self.text)
        theirs = re.sub('(?m)^__version__ = ".*"', '__version__ = "9.9.9"', self.text)
        self.put("two/completions.py", theirs)
        server = self.serve()
        self.python("-W", "error", "-c", TWO_VERSIONS, server=server)
        agents = re.findall(rb"(?i)user-agent: completions/(\S+)", b"".join(server.requests))
        self.assertEqual(agents, [completions.__version__.encode(), b"9.9.9"])
        self.assertEqual(server.connections, 2)

    def test_the_command_line_runs_as_a_script_as_a_module_and_from_a_zip(self):
        self.put("llm", self.text)
        self.put("__main__.py", self.text)
        self.put("app/llm.py", self.text)
        self.python("-m", "zipfile", "-c", "all.zip", "completions.py", "__main__.py")
        self.python("-m", "compileall", "-q", "-b", "completions.py")
        bare = os.path.join("app", "completions.pyc")
        os.rename(*(os.path.join(self.folder, name) for name in ("completions.pyc", bare)))
        server = self.serve()
        commands = ("completions.py", "./llm", os.path.join(self.folder, "llm"), ".", "all.zip")
        commands += ("-m completions", "-m app.llm", "-m cProfile -o profile completions.py")
        for command in (*commands, "-I completions.py", bare):
            with self.subTest(command):
                written = self.python(*command.split(), "--model", "m", "Say", server=server)
                self.assertEqual(written, "This is a test")
        written = self.python(
            "-m", "completions", "--model=m", "", server=server, PYTHONPATH="all.zip"
        )
        self.assertEqual(written, "This is a test")

    def test_every_flag_and_environment_is_borne(self):
        text = "Gr\xfc\xdfe \u2713"
        server = self.serve(reply(answer(text)))
        code = (
            "import sys; sys.path.insert(0, '.'); import completions as c\n"
            f"print(ascii(c.create(prompt={text!a}, model='m').text))\n"
        )
        flags = "-O|-OO|-X dev|-bb|-W error|-I|-B|-S|-E|-X utf8|-W error -X dev -bb -OO"
        rows = [(row.split(), {}) for row in flags.split("|")]
        variables = "PYTHONHASHSEED=0|PYTHONHASHSEED=4294967295|PYTHONDONTWRITEBYTECODE=1"
        variables += "|LC_ALL=C|LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0|PYTHONASYNCIODEBUG=1"
        rows += [
            ([], dict(pair.split("=") for pair in row.split())) for row in variables.split("|")
        ]
        for flags, environment in rows:
            with self.subTest(flags=flags, environment=environment):
                written = self.python(*flags, "-c", code, server=server, **environment)
                self.assertEqual(written.strip(), ascii(text))
        for request in server.requests:
            self.assertIn(json.dumps(text).encode(), request)

    def test_a_serverless_handler_outlives_connections_that_close_while_it_is_frozen(self):
        for how in ("closed", "reset"):
            gone = threading.Event()

            def leave(sock: socket.socket) -> None:
                if how == "reset":
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    sock.close()
                else:
                    sock.shutdown(socket.SHUT_RDWR)
                gone.set()

            with self.subTest(how):
                server = self.serve([reply(), leave])
                self.set_environment("COMPLETIONS_BASE_URL", server.base_url)
                module = types.ModuleType("function")
                exec(HANDLER, vars(module))
                self.addCleanup(module.client.close)
                for call in range(1, 4):
                    answered = module.handler({"prompt": "Say"}, {"milliseconds": 9000})
                    self.assertEqual(answered["choices"][0]["text"], "This is a test")
                    self.assertTrue(gone.wait(5))
                    gone.clear()
                    self.assertEqual(server.connections, call)
                self.assertEqual(len(server.requests), 3)

    def test_a_module_that_is_unloaded_meanwhile_changes_no_error(self):
        server = self.serve([stream_reply(event(chunk("a"))), "close"])
        self.python("-W", "error", "-c", UNLOADED, server=server)

    def test_the_openers_of_urllib_and_ours_do_not_meet(self):
        moved = reply(b"", 302, "Location: http://192.0.2.1/")
        server = self.serve(reply(), reply(), moved, moved)
        self.python("-W", "error", "-c", OPENERS, server=server)
        self.assertEqual(len(server.requests), 4)

    def test_threads_and_processes_exchange_answers_errors_and_clients(self):
        self.put("pools.py", POOLS)
        mute = "-Wignore:Module globals is missing"  # what 3.15 says of a script in a fork server
        written = self.python("-Werror", mute, "pools.py", server=self.reference())
        self.assertEqual(written.strip(), "done")


class AuditTest(EmbedCase):
    def test_import_loads_nothing_that_a_call_needs(self):
        code = "import sys; old = {*sys.modules}; sys.path.append('.'); import completions\n"
        loaded = self.python("-I", "-S", "-c", f"{code}print(*sorted({{*sys.modules}} - old))")
        self.assertIn("completions", loaded.split())
        self.assertEqual([name for name in NEVER_AT_IMPORT if name in loaded.split()], [])

    def test_the_source_imports_and_names_only_what_the_audit_lists(self):
        tree = ast.parse(self.text)
        at_once, whenever, names, used = set(), set(), set(), collections.defaultdict(set)
        tree.body = [node for node in tree.body if not isinstance(node, ast.If)]  # TYPE_CHECKING
        for node in ast.walk(tree):
            found = set()
            if isinstance(node, ast.ImportFrom):
                found = {node.module}
            elif isinstance(node, ast.Import):
                found = {alias.name for alias in node.names}
            elif isinstance(node, ast.Name):
                names.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                used[node.value.id].add(node.attr)
            (at_once if node in tree.body else whenever).update(found)
        self.assertEqual(at_once, IMPORTED_AT_ONCE)
        self.assertEqual(whenever - at_once, IMPORTED_WHEN_USED)
        self.assertEqual(names & NEVER_NAMED, set())
        for module, attributes in ATTRIBUTES.items():
            self.assertEqual(used[module] - attributes, set(), module)
        self.assertEqual(re.findall(r"\bos\.open\((.*?)\)", self.text), ["os.devnull, os.O_WRONLY"])

    @unittest.skipUnless(sys.version_info >= (3, 11), "3.10 refuses to resolve KW_ONLY")
    def test_what_only_type_checkers_see_is_true_at_run_time_too(self):
        text = self.text.replace("TYPE_CHECKING = False", "TYPE_CHECKING = True")
        checked = types.ModuleType("checked")
        exec(compile(text, MODULE_PATH, "exec"), vars(checked))
        values = [*vars(checked).values()]
        for cls in [value for value in values if isinstance(value, type)]:
            if cls.__module__ == "checked":
                typing.get_type_hints(cls, vars(checked))
                values += vars(cls).values()
        for function in filter(inspect.isfunction, values):
            typing.get_type_hints(function, vars(checked))

    def test_it_reads_four_environment_variables_one_by_one_and_writes_none(self):
        server, read = self.serve(), set()
        values = dict.fromkeys(
            ("ATOMASDK_BEARER_AUTH", "OPENAI_API_KEY", "COMPLETIONS_API_KEY"), KEY
        )
        values["COMPLETIONS_BASE_URL"] = server.base_url

        class Environment:  # without anything else that os.environ has
            def get(self, name: str, default: object = None) -> object:
                read.add(name)
                return values.get(name, default)

            __getitem__ = get

        stand_in = types.SimpleNamespace(**{**vars(os), "environ": Environment()})
        self.addCleanup(setattr, completions, "os", os)
        self.addCleanup(completions._default.cache_clear)
        completions.os = stand_in
        completions.create("Say", MODEL)
        completions.create_stream("Say", MODEL).close()
        for base_url in ("https://api.atoma.network/v1", "https://api.openai.com/v1"):
            completions.Client(base_url=base_url)
        self.assertEqual(read, {*values})

    @unittest.skipUnless(hasattr(sys, "addaudithook"), "audit hooks came with 3.8")
    def test_a_call_writes_no_file_spawns_nothing_and_reaches_only_its_server(self):
        self.put("authority.pem", PEM["authority"])
        self.put("audited.py", AUDITED)
        trusted = os.path.join(self.folder, "authority.pem")
        for server in (self.serve(), self.serve(tls=server_context())):
            with self.subTest(server.base_url):
                written = self.python(
                    "-S", "-B", "audited.py", server=server, SSL_CERT_FILE=trusted
                )
                seen = json.loads(written)
                self.assertEqual((seen["writes"], seen["spawned"]), ([], []))
                sockets = seen["sockets"]
                self.assertEqual(sockets["socket.connect"], [[["127.0.0.1", server.port]]])
                known = {"socket.__new__", "socket.connect", "socket.getaddrinfo"}
                self.assertEqual({*sockets} - known, set())
                for host, port in sockets.get("socket.getaddrinfo", []):
                    self.assertIn("127.0.0.1", host)
                    self.assertEqual(port, server.port)
                self.assertGreater(seen["reads"], 0)

    def test_it_is_as_small_as_promised_and_says_what_it_is(self):
        self.assertTrue(self.text.startswith('# SPDX-License-Identifier: 0BSD\n"""'))
        self.assertRegex(completions.__version__, r"^\d+\.\d+\.\d+$")
        blank = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
        code, before = set(), tokenize.NEWLINE
        for token in tokenize.generate_tokens(io.StringIO(self.text).readline):
            docstring = token.type == tokenize.STRING and before in blank[2:]
            if token.type not in (*blank, tokenize.ENDMARKER) and not docstring:
                code.update(range(token.start[0], token.end[0] + 1))
            before = before if token.type in blank[:2] else token.type
        self.assertLessEqual(len(code), 900)
        self.assertLessEqual(self.text.count("\n"), 1300)
        self.assertLessEqual(max(map(len, self.text.splitlines())), 100)


# -------------------------------------------------------------------------------------- the program


# -------------------------------------------------------------------------------- the main program


def demo(prompt: str) -> int:
    """Complete a prompt on the reference server, by a call and on the command line."""
    os.environ["no_proxy"] = "127.0.0.1"  # a proxy of the machine's could not reach the server
    print("A server with a small language model, trained on the prose of these files, is asked\n")
    with ReferenceServer() as server:
        options = {"model": "ngram", "max_tokens": 24, "temperature": 0.3, "seed": 1}
        options["logit_bias"] = {str(server.model.END): -100}  # no end before max_tokens
        words = [repr(prompt), *(f"{name}={value!r}" for name, value in options.items())]
        print(f"by a call: completions.Client(base_url=...).create({', '.join(words)}).text")
        with completions.Client(base_url=server.base_url) as client:
            print(f"{client.create(prompt, **options).text!r}\n")
        argv = [f"--base-url={server.base_url}"]
        for name, value in options.items():
            shown = value if isinstance(value, str) else json.dumps(value)
            argv.append(f"--{name.replace('_', '-')}={shown}")
        shown = " ".join(map(shlex.quote, [*argv, "--", prompt]))
        print(f"by a command: python3 completions.py {shown}", flush=True)
        code = completions.main([*argv, "--", prompt])
    print("\n\nBoth went over real connections; the server has ended with this demo.")
    print("Next: `serve` leaves it running; with a key in $ATOMASDK_BEARER_AUTH, ask Atoma itself.")
    return code


def main_program() -> int:
    """Obey `demo` and `serve`; run the tests otherwise."""
    if sys.argv[1:2] not in (["demo"], ["serve"]):
        if {"-h", "--help"} & {*sys.argv}:
            print(__doc__)
        unittest.main()
    parser = argparse.ArgumentParser(description="Without a command, the tests run.")
    commands = parser.add_subparsers(dest="command")
    command = commands.add_parser("demo", help="complete a prompt on the reference server")
    command.add_argument("prompt", nargs="?", default="The import statement")
    command = commands.add_parser("serve", help="leave the reference server running")
    command.add_argument("--port", type=int, default=0, help="by default any that is free")
    options = parser.parse_args()
    return demo(options.prompt) if options.command == "demo" else serve(options.port) or 0


if __name__ == "__main__":
    sys.exit(main_program())

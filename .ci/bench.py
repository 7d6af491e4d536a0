#!/usr/bin/env python3
"""Measure completions.py against what one would write by hand, and against the openai package.

    .ci/bench.py            the rows, how cost grows, memory; exit status 1 if one is over its bound
    .ci/bench.py --short    the rows, against code by hand alone, in half a minute; judges nothing

What counts is CPU time, user and system, in fresh processes with bytecode cached. All contestants
take turns, and the least of all rounds stands, since other work on the machine can only add. They
talk to a server in a process of its own that sends bytes made beforehand, so that the client is
what is measured. "By hand" is FLOOR where a process counts from its start, and ByHand where it is
warm. Each runs in an environment without other packages: some hook into every start of Python.

The long form installs openai, and matplotlib to draw with, by pip in environments in the user's
cache directory. It prints Markdown tables for the README and draws bench.svg.
"""

import argparse
import collections
import functools
import http.client
import http.server
import itertools
import json
import math
import os
import pathlib
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve()
OURS, BY_HAND, OPENAI = "completions", "by hand", "openai"
TOKENS, TOKEN = 16, 5  # in a plain answer; characters in each
ASK = {"prompt": "Say this is a test", "model": "meta-llama/Llama-3.3-70B-Instruct"}

FLOOR = """
import dataclasses, json, urllib.request

@dataclasses.dataclass
class Choice:
    text: str
    index: int
    finish_reason: str

@dataclasses.dataclass
class Completion:
    id: str
    model: str
    created: int
    choices: list

def create(base_url, **fields):
    url, body = base_url + "/completions", json.dumps(fields).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        data = json.loads(answer.read())
    choices = [Choice(c["text"], c["index"], c["finish_reason"]) for c in data["choices"]]
    return Completion(data["id"], data["model"], data["created"], choices)
"""
IMPORT = {OURS: "import completions", BY_HAND: "import dataclasses", OPENAI: "import openai"}
# With -B, a directory where no bytecode is kept.
SOURCE = "import sys; sys.path[0] = 'bare'; "
# ru_maxrss alone would include what the process that started this one had.
PEAK = """
try:
    print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
except OSError:
    import resource
    print(resource.getrusage(0).ru_maxrss // (1024 if sys.platform == "darwin" else 1))
"""
COLD = f"""
import sys, {{0}}
response = {{1}}(prompt={ASK["prompt"]!r}, model={ASK["model"]!r}, max_tokens={TOKENS})
assert len(response.choices[0].text) == {TOKENS * TOKEN}{PEAK}"""
COLD = {
    OURS: COLD.format(OURS, "completions.Client(base_url=sys.argv[1]).create"),
    BY_HAND: COLD.format("functools, floor", "functools.partial(floor.create, sys.argv[1])"),
    OPENAI: COLD.format(
        OPENAI, "openai.Client(base_url=sys.argv[1], api_key='x').completions.create"
    ),
}
DRAIN = f"""
import sys, completions
client, tokens = completions.Client(base_url=sys.argv[1]), int(sys.argv[2])
with client.create_stream(prompt="Say this is a test", model="m", max_tokens=tokens) as stream:
    for chunk in stream:
        pass
assert len(stream.response.text) == tokens * {TOKEN}{PEAK}"""


# The server

ANSWER = (
    '{"id":"cmpl-5f0c2a9be1d34c7f8a6b","object":"text_completion","created":1733000000,'
    f'"model":"{ASK["model"]}","choices":[%s],"usage":%s}}'
)
CHOICE = '{"index":%d,"text":"%s","logprobs":%s,"finish_reason":%s}'
HEAD = b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: %s\r\n%s\r\n\r\n"
BLOCK = 1000  # a long stream is so many chunks again and again
compact = functools.partial(json.dumps, separators=(",", ":"), ensure_ascii=False)


def words(count):
    dice, letters = random.Random(count), 4 * "etaoinshrdlu" + "é"
    return [" " + "".join(dice.choices(letters, k=TOKEN - 1)) for _ in range(count)]


@functools.lru_cache(maxsize=64)
def whole(choices, tokens, logprobs=False):
    """A plain answer, as vLLM writes it; logprobs make a choice of 11 tokens some 2,000 bytes."""
    dice, lists, made = random.Random(choices), None, []
    for index in range(choices):
        texts = words(tokens)
        if logprobs:
            lists = {"tokens": texts, "token_logprobs": [-dice.random() for _ in texts]}
            lists["top_logprobs"] = [{w: -9 * dice.random() for w in words(5)} for _ in texts]
            lists["text_offset"] = list(range(0, tokens * TOKEN, TOKEN))
        made.append(CHOICE % (index, "".join(texts), compact(lists), '"length"'))
    usage = {"prompt_tokens": 6, "completion_tokens": tokens, "total_tokens": 6 + tokens}
    return (ANSWER % (",".join(made), compact(usage))).encode()


@functools.lru_cache(maxsize=64)
def chunks(tokens, last):
    """Server-sent events as vLLM writes them, each a chunk of the chunked encoding."""
    reasons = ["null"] * (tokens - last) + ['"length"'] * last
    made = [CHOICE % (0, word, "null", reason) for word, reason in zip(words(tokens), reasons)]
    events = [ANSWER % (choice, "null") for choice in made] + ["[DONE]"] * last
    data = [b"data: %s\n\n" % event.encode() for event in events]
    return b"".join(b"%x\r\n%s\r\n" % (len(d), d) for d in data) + b"0\r\n\r\n" * last


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, request, client_address):
        pass  # a client that left; whatever else breaks, the client says


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

    def do_POST(self):
        fields = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if fields.get("stream"):
            blocks, rest = divmod(fields["max_tokens"] - 1, BLOCK)
            self.wfile.write(HEAD % (b"text/event-stream", b"transfer-encoding: chunked"))
            for _ in range(blocks):
                self.wfile.write(chunks(BLOCK, False))
            self.wfile.write(chunks(rest + 1, True))
        else:
            body = whole(1, fields["max_tokens"])
            head = HEAD % (b"application/json", b"content-length: %d" % len(body))
            self.wfile.write(head + body)


def serve(*certificate):
    """Print the URLs, one of https too if there is a certificate; end when standard input does."""
    for scheme in ["http", "https"][: 1 + bool(certificate)]:
        server = Server(("127.0.0.1", 0), Handler)
        if scheme == "https":
            import ssl

            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(f"{scheme}://127.0.0.1:{server.server_port}/v1", end=" ")
    print(flush=True)
    sys.stdin.read()


# The contestants when warm, each in a process of its own; this much must run on Python 3.7


class Ours:
    def __init__(self, url):
        import completions

        self.response, self.client = (
            completions.CompletionsResponse,
            completions.Client(base_url=url),
        )

    def call(self):
        return self.client.create(max_tokens=TOKENS, **ASK).text

    def stream(self, tokens):
        with self.client.create_stream(max_tokens=tokens, **ASK) as stream:
            for chunk in stream:
                yield chunk.text

    def parse(self, data):
        return len(self.response.from_json(data).choices)


class ByHand:
    def __init__(self, url):
        tls = url.startswith("https:")
        connect = http.client.HTTPSConnection if tls else http.client.HTTPConnection
        self.connection = connect(url.split("/")[2], timeout=60)

    def send(self, **fields):
        body, headers = json.dumps(fields).encode(), {"Content-Type": "application/json"}
        self.connection.request("POST", "/v1/completions", body, headers)
        return self.connection.getresponse()

    def call(self):
        return json.loads(self.send(max_tokens=TOKENS, **ASK).read())["choices"][0]["text"]

    def stream(self, tokens):
        answer = self.send(max_tokens=tokens, stream=True, **ASK)
        for line in iter(answer.readline, b"data: [DONE]\n"):
            if line.startswith(b"data: "):
                yield json.loads(line[6:])["choices"][0]["text"]
        answer.read()

    def parse(self, data):
        return len(json.loads(data)["choices"])


class OpenAI:
    def __init__(self, url):
        import openai

        self.create = openai.OpenAI(base_url=url, api_key="none").completions.create

    def call(self):
        return self.create(max_tokens=TOKENS, **ASK).choices[0].text

    def stream(self, tokens):
        with self.create(max_tokens=tokens, stream=True, **ASK) as stream:
            for chunk in stream:
                yield chunk.choices[0].text


def child(who, kind, url, size):
    """Print the CPU seconds of one call, choice or chunk; of a stream's chunk also in each half."""
    make, size = {OURS: Ours, BY_HAND: ByHand, OPENAI: OpenAI}[who], int(size)
    client = make(url)

    def call(client=client, times=1):
        for _ in range(times):
            assert len(client.call()) == TOKENS * TOKEN

    def parse():
        assert client.parse(whole(size, 11, True)) == size

    def threads():
        threads = [threading.Thread(target=call, args=(client, 100)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def stream(tokens):
        texts, half, halves = client.stream(tokens), tokens // 2, []
        for part in (itertools.islice(texts, half), texts):
            start = time.process_time()
            assert sum(map(len, part)) == half * TOKEN
            halves.append((time.process_time() - start) / half)
        return halves

    if kind == "stream":
        stream(min(size, 5000))  # to be warm
        halves = stream(size)
        print(sum(halves) / 2, *halves)
    else:
        if kind == "threads":  # one client for all, but by hand a connection for each
            clients = [client if who == OURS else make(url) for _ in range(size)]
        actions = {"warm": (call, 300, 1), "threads": (threads, 1, 100 * size)}
        # of parsing so much that the garbage collector comes round as often in each contestant
        action, times, each = actions.get(kind, (parse, max(5, 7680 // size), size))
        for _ in range(2):  # the first round warms up
            start = time.process_time()
            for _ in range(times):
                action()
        print((time.process_time() - start) / times / each)


# Measuring

CPU, FIRST, SECOND, THIRD = range(4)  # of a process: its CPU time, then the numbers that it printed
ROWS = [  # what; the task, which number of it, the factor to the unit; at most; aim
    ("import, process, ms", "import", CPU, 1e3, 1.35, 1.15),
    ("import, no bytecode kept, ms", "source", CPU, 1e3, None, None),
    ("cold call, http, process, ms", "cold http", CPU, 1e3, 1.25, 1.05),
    ("cold call, https, process, ms", "cold https", CPU, 1e3, 1.25, 1.05),
    ("cold call, http, memory, MB", "cold http", FIRST, 1024e-6, 1.10, 1.00),
    ("cold call, https, memory, MB", "cold https", FIRST, 1024e-6, 1.10, 1.00),
    ("warm call, http, µs", "warm http", FIRST, 1e6, 1.70, 1.40),
    ("warm call, https, µs", "warm https", FIRST, 1e6, 1.70, 1.40),
    ("chunk of a stream of 5,000, µs", "stream 5000", FIRST, 1e6, 1.00, 0.70),
    ("choice in from_json of 128, µs", "parse 128", FIRST, 1e6, 1.35, 1.15),
]
GROWTH = {
    "stream": ("chunks", (1000, 10000, 100000, 1000000)),
    "parse": ("choices with logprobs", (1, 10, 100, 1000)),
    "threads": ("threads on one client", (1, 2, 4, 8, 16, 32)),
}
SHORT, GROWN, LONG = 12, 6, 20  # rounds
ENOUGH = 25  # seconds after which the short form begins no further round
NOISE = 0.05  # of an exponent, and of a late chunk's cost
COPIES = 4  # bytes of memory for each byte of a stream's text: it is built, joined and handed out


class Bench:
    def __init__(self, folder, pythons, urls, trusted):
        private = ("PYTHON", "COMPLETIONS_", "OPENAI_", "ATOMASDK_")
        self.env = {k: v for k, v in os.environ.items() if not k.upper().startswith(private)}
        self.env = {k: v for k, v in self.env.items() if not k.lower().endswith("_proxy")}
        self.env.update(PYTHONPATH=str(folder), **trusted)
        self.folder, self.pythons, self.urls = folder, pythons, urls
        self.samples, self.out = (
            collections.defaultdict(list),
            {("source", OPENAI), ("parse 128", OPENAI)},
        )

    def command(self, task, who):
        kind, _, what = task.partition(" ")
        url, size = self.urls.get(what, self.urls["http"]), what if what.isdigit() else "1"
        return {
            "import": ["-c", IMPORT[who]],
            "source": ["-B", "-c", SOURCE + IMPORT[who]],
            "cold": ["-c", COLD[who], url],
            "drain": ["-c", DRAIN, url, size],
        }.get(kind, [HERE, "--child", who, kind, url, size])

    def run(self, task, who):
        command = [self.pythons[who], *self.command(task, who)]
        process = subprocess.Popen(command, stdout=-1, env=self.env, cwd=self.folder)
        guard = threading.Timer(300, process.kill)
        guard.start()
        with process.stdout:
            said = process.stdout.read().split()
        _, status, usage = os.wait4(process.pid, 0)
        guard.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            self.out.add((task, who))
            note(f"{task}: {who} failed")
        self.samples[task, who].append([usage.ru_utime + usage.ru_stime, *map(float, said)])

    def rounds(self, tasks, contestants, count, enough=math.inf):
        """Run all in turns; whoever fails, and has said why, leaves that task. The rounds done."""
        start = time.monotonic()
        for done in range(1, count + 1):
            for task, who in itertools.product(tasks, contestants):
                if who in self.pythons and (task, who) not in self.out:
                    self.run(task, who)
            if time.monotonic() - start > enough:
                break
            if enough == math.inf:
                note(f"{tasks[0]} ...: round {done} of {count}, {time.monotonic() - start:.0f} s")
        return done

    def least(self, task, who, which):
        """The least of a number over all rounds; NaN if there is none."""
        samples = self.samples[task, who]
        if not samples or (task, who) in self.out:
            return math.nan
        return min(sample[which] for sample in samples)


def report_rows(bench, rows, openai):
    """The table, and the ratios for the drawing."""
    lines, ratios = [["", "completions", "by hand", "ratio", "at most", "aim", ""]], []
    lines[0] += [openai + " (ratio)"] * bool(openai)
    for name, task, which, factor, *bounds in rows:
        each = [factor * bench.least(task, who, which) for who in (OURS, BY_HAND, OPENAI)]
        ratio, other = each[0] / each[1], each[2] / each[1]
        line = [name, *map(digits, [*each[:2], ratio, *bounds]), verdict(ratio, bounds[0])]
        line += [f"{digits(each[2])} ({digits(other)})" if other > 0 else ""] * bool(openai)
        lines.append(line)
        if bounds[0]:
            ratios.append([name.rpartition(",")[0], ratio, other])
    return lines, ratios


def report_growth(bench):
    lines = [["", "completions", "by hand", "at most", ""]]

    def add(name, ours, floor=None, at_most=None):
        lines.append([name, *map(digits, [ours, floor, at_most]), verdict(ours, at_most)])

    for kind, (name, sizes) in GROWTH.items():
        tasks = [f"{kind} {size}" for size in sizes]
        ours, floor = ([1e6 * bench.least(t, w, FIRST) for t in tasks] for w in (OURS, BY_HAND))
        exponents = exponent(sizes, ours), exponent(sizes, floor)
        add(f"{name}: exponent of the CPU time", *exponents, max(1, exponents[1]) + NOISE)
        for size, *each in zip(sizes, ours, floor):
            add(f"{name}: {size:,}, µs each", *each)
    early, late = (bench.least("stream 1000000", OURS, which) for which in (SECOND, THIRD))
    add("1,000,000 chunks: CPU time of the second half / first", late / early, None, 1 + NOISE)
    tasks = ["cold http", "drain 1000", "drain 1000000"]
    peaks = [1024e-6 * bench.least(task, OURS, FIRST) for task in tasks]
    for name, peak in zip(["one call", "a stream of 1,000", "a stream of 1,000,000"], peaks):
        add(f"peak of a process with {name}, MB", peak)
    add("growth of that peak / the text's", (peaks[2] - peaks[1]) / TOKEN, None, COPIES)
    return lines


def exponent(sizes, each):
    """The slope of the logarithm of the whole cost over that of the size; 1 is proportional."""
    points = [(math.log(size), math.log(size * cost)) for size, cost in zip(sizes, each)]
    x, y = (sum(part) / len(points) for part in zip(*points))
    return sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)


def verdict(number, at_most):
    if math.isnan(number):
        return "**failed**"
    return "" if at_most is None else "ok" if round(number, 2) <= at_most else "**over**"


def digits(number):
    if number is None:
        return ""
    return f"{number:,.{0 if number >= 100 else 1 if number >= 10 else 2}f}"


def table(lines):
    """Markdown, aligned for a terminal."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    lines = [[cell.ljust(width) for cell, width in zip(line, widths)] for line in lines]
    lines.insert(1, ["-" * width for width in widths])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def draw(path):
    """Bars for the ratios on stdin, in colours that can be read on light and on dark ground."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "bench", "svg.fonttype": "none"})
    for part in ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"):
        matplotlib.rcParams[part] = "#7a828e"
    from matplotlib import pyplot

    ratios, openai = json.load(sys.stdin)
    names, ours, others = zip(*ratios)
    figure, axes = pyplot.subplots(figsize=(8, 0.6 * len(names) + 1))
    bars = [("completions.py", ours, "#2f81f7"), (BY_HAND, [1] * len(names), "#8b949e")]
    bars += [(openai, others, "#d9822b")] * bool(openai)
    for place, (who, values, colour) in enumerate(bars):
        rows = [row + 0.27 * (place - 1) for row in range(len(names))]
        drawn = axes.barh(rows, values, 0.25, color=colour, label=who)
        axes.bar_label(
            drawn, ["" if math.isnan(v) else digits(v) for v in values], padding=3, fontsize=8
        )
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("what it costs; by hand is 1, less is better")
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, transparent=True, bbox_inches="tight", metadata={"Date": None})


# Setting up


def note(text):
    print(text, file=sys.stderr, flush=True)


def output(*command, **options):
    return subprocess.run(command, check=True, stdout=-1, text=True, **options).stdout.strip()


def environment(python, package):
    """The Python of an environment with the newest version of a package, or None and a line why."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    version = output(python, "-c", "import platform; print(platform.python_version())")
    folder = cache / "completions-bench" / f"{package}-{version}"
    made = folder / "bin" / "python"
    try:
        if not made.exists():
            output(python, "-m", "venv", folder)
        output(made, "-m", "pip", "install", "--quiet", "--upgrade", package)
        return made
    except (OSError, subprocess.CalledProcessError) as error:
        note(f"left out, {package} cannot be installed: {error}")


def certify(folder, install):
    """Make server.pem, server.key, and client.pem to trust; return whether that could be done."""
    if shutil.which("openssl"):
        command = "openssl req -x509 -newkey rsa:2048 -nodes -days 9 -subj /CN=bench"
        command += " -addext subjectAltName=IP:127.0.0.1 -keyout server.key -out server.pem"
        command += " -addext keyUsage=critical,digitalSignature,keyCertSign"
        output(*command.split(), cwd=folder, stderr=subprocess.DEVNULL)
        shutil.copy(folder / "server.pem", folder / "client.pem")
        return True
    python = environment(sys.executable, "trustme") if install else None
    if python:
        output(python, "-m", "trustme", "-q", "-i", "127.0.0.1", "-d", folder)
    else:
        note("left out, https: there is no openssl command")
    return bool(python)


def measure(folder, options):
    output(options.python, "-m", "venv", "--without-pip", folder / "empty")
    python = folder / "empty" / "bin" / "python"
    about = "import platform as p; print(p.python_implementation(), p.python_version())"
    version = output(python, "-c", about)
    (folder / "bare").mkdir()
    for place in (folder, folder / "bare"):
        shutil.copy(options.module, place / "completions.py")
    (folder / "floor.py").write_text(FLOOR)
    output(python, "-m", "py_compile", folder / "completions.py", folder / "floor.py")
    tls = certify(folder, not options.short)
    pythons, openai = {OURS: python, BY_HAND: python}, ""
    other = None if options.short else environment(options.python, "openai")
    if other:
        pythons[OPENAI] = other
        openai = "openai " + output(other, "-c", "import openai; print(openai.__version__)")
    server = [sys.executable, HERE, "--server"]
    server += [folder / "server.pem", folder / "server.key"] * tls
    rows = [row for row in ROWS if tls or "https" not in row[1]]
    if list(map(int, version.split()[1].split(".")[:2])) < [3, 11]:  # no promise about from_json
        rows[-1] = (*rows[-1][:4], None, None)
    tasks = list(dict.fromkeys(row[1] for row in rows))
    with subprocess.Popen(server, stdin=-1, stdout=-1, text=True) as process:
        urls = {url.split(":")[0]: url for url in process.stdout.readline().split()}
        trusted = {"SSL_CERT_FILE": str(folder / "client.pem")} if tls else {}
        bench = Bench(folder, pythons, urls, trusted)
        if options.short:
            done = bench.rounds(tasks, pythons, SHORT, ENOUGH)
        else:
            done = bench.rounds(tasks, pythons, LONG)
            sizes = [f"{kind} {size}" for kind, (_, sizes) in GROWTH.items() for size in sizes]
            bench.rounds(sizes, (OURS, BY_HAND), GROWN)
            bench.rounds(["drain 1000", "drain 1000000"], [OURS], 1)
        process.stdin.close()
    lines, ratios = report_rows(bench, rows, openai)
    print(f"{version}, {platform.system()}, the least of {done} rounds:\n\n{table(lines)}")
    if options.short:
        return False
    growth = report_growth(bench)
    print(table(growth))
    drawer = environment(sys.executable, "matplotlib")
    if drawer:
        output(drawer, HERE, "--draw", options.svg, input=json.dumps([ratios, openai]))
    return any("**" in cell for line in lines + growth for cell in line)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--short", action="store_true", help="few rounds, no judgement")
    parser.add_argument("--python", default=sys.executable, help="the Python to measure with")
    parser.add_argument("--module", default=HERE.parents[1] / "completions.py", help="the file")
    parser.add_argument("--svg", default=HERE.with_suffix(".svg"), help="where to draw")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return measure(pathlib.Path(folder), options)


if __name__ == "__main__":
    modes = {"--server": serve, "--child": child, "--draw": draw}
    if sys.argv[1:] and sys.argv[1] in modes:
        modes[sys.argv[1]](*sys.argv[2:])
    else:
        sys.exit(main())

#!/usr/bin/env python3
"""Check completions.py inside pydantic, FastAPI and Dask, by hand.

    .ci/embed.py [pydantic] [fastapi] [dask]

Each gets an environment of its own, by pip, in a temporary folder, and the reference server to ask.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import venv

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import test_completions as t  # noqa: E402

ANSWER = """
import completions
client = completions.Client()
answer = client.create("The", "m", n=2, logprobs=2, max_tokens=4, extra={"knobs": {}})
answer.extra["service_tier"] = "default"
CLASSES = (completions.CompletionsResponse, completions.CompletionChoice, completions.LogProbs,
           completions.Usage, completions.CompletionTokensDetails, completions.PromptTokensDetails,
           completions.CompletionsRequest)
"""

CHECKS = {
    "pydantic": (
        ["pydantic==2.14.3"],
        """
import pydantic
for cls in CLASSES:
    adapter = pydantic.TypeAdapter(cls)
    assert adapter.json_schema()["type"] == "object", cls
adapter = pydantic.TypeAdapter(completions.CompletionsResponse)
assert adapter.validate_python(answer) == answer
assert adapter.validate_json(adapter.dump_json(answer)) == answer
assert adapter.validate_python(answer.to_dict()).text == answer.text

class Job(pydantic.BaseModel):
    name: str
    answer: completions.CompletionsResponse
    request: completions.CompletionsRequest
    usage: completions.Usage | None = None

request = completions.CompletionsRequest(prompt=["a"], model="m", stop="x", temperature=0.5)
job = Job(name="j", answer=answer, request=request, usage=answer.usage)
again = Job.model_validate_json(job.model_dump_json())
assert again == job and type(again.answer) is completions.CompletionsResponse, again
assert client.create(**vars(again.request)).choices
usage = {"choices": [], "usage": {"total_tokens": "x"}}
for wrong in ({"choices": 1}, {"choices": [{"text": []}]}, usage):
    try:
        adapter.validate_python(wrong)
    except pydantic.ValidationError:
        continue
    raise AssertionError(wrong)
Job.model_json_schema()
""",
    ),
    "fastapi": (
        ["fastapi==0.165.0", "httpx==0.28.1"],
        """
import fastapi, fastapi.testclient
app = fastapi.FastAPI()

@app.post("/relay", response_model=completions.CompletionsResponse)
def relay(request: completions.CompletionsRequest):
    return client.create(**vars(request))

@app.get("/bare")
def bare() -> completions.CompletionsResponse:
    return answer

with fastapi.testclient.TestClient(app) as browser:
    body = {"prompt": "The", "model": "m", "max_tokens": 4, "temperature": 0, "logprobs": 1}
    relayed = browser.post("/relay", json=body)
    assert relayed.status_code == 200, relayed.text
    direct = client.create(**body)
    assert completions.CompletionsResponse.from_json(relayed.content).text == direct.text
    assert relayed.json()["usage"]["total_tokens"] == direct.usage.total_tokens
    assert completions.CompletionsResponse(**{**browser.get("/bare").json()}).model == "m"
    assert browser.post("/relay", json={"prompt": 1}).status_code == 422
    names = browser.get("/openapi.json").json()["components"]["schemas"]
    assert {"CompletionsResponse", "Usage", "CompletionsRequest"} <= names.keys()
""",
    ),
    "dask": (
        ["dask==2026.8.0", "distributed==2026.8.0"],
        """
import functools
import dask.bag, distributed

def ask(prompt, client):
    return client.create(prompt, "m", max_tokens=4, temperature=0)

def refused(prompt, client):
    knobs = {"status": 429, "headers": {"retry-after": "7"}}
    return client.create(prompt, "m", extra={"knobs": knobs})

if __name__ == "__main__":
    prompts = ["The", "The import", "A", "client"] * 5
    want = [ask(prompt, client).text for prompt in prompts]
    bag = dask.bag.from_sequence(prompts, npartitions=4)
    assert [a.text for a in bag.map(ask, client=client).compute(scheduler="threads")] == want
    assert [a.text for a in bag.map(ask, client=client).compute(scheduler="processes")] == want
    sizes = {"n_workers": 2, "threads_per_worker": 2}
    with distributed.LocalCluster(dashboard_address=None, **sizes) as cluster:
        with distributed.Client(cluster) as session:
            assert [a.text for a in bag.map(ask, client=client).compute()] == want
            answers = session.gather(session.map(functools.partial(ask, client=client), prompts))
            assert [a.text for a in answers] == want
            once = completions.Client(max_retries=0)
            error = session.submit(refused, "The", once).exception()
            assert type(error) is completions.RateLimitError, error
            assert (error.status_code, error.retry_after) == (429, 7), vars(error)
""",
    ),
}


def check(name: str, base_url: str) -> bool:
    packages, code = CHECKS[name]
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = os.path.join(folder, "bin", "python")
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
        script = pathlib.Path(folder, "check.py")
        script.write_text(ANSWER + code)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "COMPLETIONS_BASE_URL": base_url}
        done = subprocess.run([python, str(script)], env=environment, timeout=300)
    print(f"{name}: {'passed' if done.returncode == 0 else 'FAILED'}", flush=True)
    return done.returncode == 0


def main() -> int:
    with t.ReferenceServer() as server:
        passed = [check(name, server.base_url) for name in sys.argv[1:] or CHECKS]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())

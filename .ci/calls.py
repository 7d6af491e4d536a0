# pyright: strict, reportUnusedExpression=false
"""Calls as users write them. A type checker must report each line marked `# wrong`, and no other.

`check_calls.py` runs mypy and pyright, both strict, over this file; nothing here is ever executed.
"""

import ssl
from typing import Any, Dict, List, Optional, Union

import completions
from completions import Client, CompletionsRequest, CompletionsResponse, Usage

client = Client()
MODEL = "meta-llama/Llama-3.3-70B-Instruct"

# ------------------------------------------------------------------------------- what is right
response: CompletionsResponse = client.create("Say this is a test", MODEL)
response = client.create(prompt="Say", model=MODEL, max_tokens=16, temperature=0, stop="\n")
response = client.create(["a", "b"], MODEL, n=2, best_of=2, echo=True, logprobs=5, seed=1)
bias = {"50256": -100}
response = client.create([1, 2, 3], MODEL, logit_bias=bias, stop=["a", "b"])
response = client.create([[1, 2], [3]], MODEL, presence_penalty=0.5, frequency_penalty=1, user="u")
response = client.create("a", MODEL, top_p=0.5, suffix="b", extra={"top_k": 40})
response = client.create("a", MODEL, max_tokens=None, temperature=None, stop=None)
response = client.create(**vars(CompletionsRequest("a", MODEL, max_tokens=1)))
response = completions.create("a", MODEL, max_tokens=16)
text: str = response.text
finish_reason: Optional[str] = response.choices[0].finish_reason
tokens: Optional[List[str]] = None
if response.choices[0].logprobs is not None:
    tokens = response.choices[0].logprobs.tokens
usage: Optional[Usage] = response.usage
data: Dict[str, Any] = response.to_dict()
response = CompletionsResponse.from_dict(data)
response = CompletionsResponse.from_json(b"{}")
usage = Usage.from_json("{}")
prompt: Union[str, List[str], List[int], List[List[int]]] = CompletionsRequest("a", "b").prompt
with client.create_stream("a", MODEL, stream_options={"include_usage": True}) as stream:
    for chunk in stream:
        text = chunk.text
    response = stream.response
    request_id: Optional[str] = stream.request_id
with completions.create_stream(prompt="a", model=MODEL) as stream:
    texts: List[str] = [chunk.text for chunk in stream]
context = ssl.create_default_context()
with Client("key", "https://example.com/v1", timeout=None, idle_timeout=5, headers={"a": "b"}) as c:
    c = c.with_options(timeout=2.5, max_retries=0, headers={"x": "y"}, ssl_context=context)
    c = c.with_options(api_key="k", base_url=None, idle_timeout=None, max_response_bytes=1)
    c.close()
try:
    client.create("a", MODEL)
except completions.RateLimitError as error:
    wait: Optional[float] = error.retry_after
    status: int = error.status_code
    headers: Dict[str, str] = error.headers
except completions.APIError as error:
    partial: Optional[CompletionsResponse] = error.partial
    message: str = error.message
code: int = completions.main(["--help"])

# -------------------------------------------------------------------------------- a wrong name
client.create("a", MODEL, max_token=16)  # wrong
client.create("a", MODEL, stream=True)  # wrong
client.create("a", MODEL, top_k=40)  # wrong
client.create_stream("a", MODEL, temprature=1)  # wrong
completions.create("a", MODEL, maxTokens=1)  # wrong
completions.create_stream("a", MODEL, timeout=1)  # wrong
client.with_options(time_out=1)  # wrong
client.with_options(max_tokens=1)  # wrong
Client(key="a")  # wrong
CompletionsRequest("a", MODEL, stream=True)  # wrong
response.choice  # wrong
response.choices[0].finish  # wrong
stream.text  # wrong
completions.complete("a", MODEL)  # wrong

# -------------------------------------------------------------------------------- a wrong type
client.create(1, MODEL)  # wrong
client.create(None, MODEL)  # wrong
client.create([1, "a"], MODEL)  # wrong
client.create("a", 1)  # wrong
client.create("a", MODEL, max_tokens="16")  # wrong
client.create("a", MODEL, max_tokens=1.5)  # wrong
client.create("a", MODEL, echo="yes")  # wrong
client.create("a", MODEL, temperature="hot")  # wrong
client.create("a", MODEL, stop=1)  # wrong
client.create("a", MODEL, stop=[1])  # wrong
client.create("a", MODEL, logit_bias=[1])  # wrong
client.create("a", MODEL, logit_bias={"1": "a"})  # wrong
client.create("a", MODEL, stream_options=True)  # wrong
client.create("a", MODEL, extra=None)  # wrong
client.create("a", MODEL, extra=[1])  # wrong
client.create_stream("a", MODEL, n="2")  # wrong
completions.create("a", MODEL, seed=0.5)  # wrong
client.with_options(timeout="1")  # wrong
client.with_options(headers=[("a", "b")])  # wrong
client.with_options(ssl_context=True)  # wrong
Client(1)  # wrong
Client(max_retries=None)  # wrong
Client(headers={"a": 1})  # wrong
CompletionsResponse.from_json(1)  # wrong
CompletionsResponse.from_dict("{}")  # wrong

# ------------------------------------------------------------------------------------- misuse
client.create()  # wrong
client.create("a")  # wrong
client.create(model=MODEL)  # wrong
client.create("a", MODEL, 1)  # wrong
completions.create("a", MODEL, 1)  # wrong
CompletionsRequest("a", MODEL, 1)  # wrong
Client("key", "https://example.com", 5)  # wrong
client.with_options("key", "https://example.com", 5)  # wrong
for chunk in client.create("a", MODEL):  # wrong
    pass
client.create_stream("a", MODEL).choices  # wrong
number: int = client.create("a", MODEL).text  # wrong
reason: str = response.choices[0].finish_reason  # wrong
response.usage.total_tokens  # wrong
response.choices[0].logprobs.tokens  # wrong
CompletionsResponse()  # wrong
CompletionsRequest.from_dict({})  # wrong
CompletionsRequest.from_json("{}")  # wrong
completions.APIError().status_code  # wrong

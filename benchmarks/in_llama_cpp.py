"""Greedy answers of llama.cpp, for `export_check.py`, `ways_home.py` and the tests.

llama.cpp comes in the package xllamacpp, in an environment of its own (`make .venv/home/ready`), so this file is two
things: `answer` asks from the package's environment, and run there as a script it answers. It imports nothing else.

    python in_llama_cpp.py < question.json > answers.json
"""

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def find_python() -> Path | None:
    """The Python that has xllamacpp: $QLORA_LAB_LLAMA_CPP, or that of `make .venv/home/ready`; None: there is none."""
    given = os.environ.get("QLORA_LAB_LLAMA_CPP")
    found = Path(given) if given else ROOT / ".venv" / "home" / "bin" / "python"
    return found if found.exists() else None


def answer(
    model: str | os.PathLike,
    prompts: Sequence[str | list[int]],
    max_new_tokens: int = 96,
    lora: str | os.PathLike | None = None,
    threads: int = 1,
    **more,
) -> tuple[list[dict], str]:
    """Greedy answers of a GGUF file, with a LoRA beside it or without, and the version of xllamacpp.

    An answer is {"text": it, "first": {token: log-probability} of the likeliest first tokens}; nothing under "first"
    where the answer is empty, or its first token only a part of a character.

    Args:
        prompts: texts, or token ids.
        threads: with more than one, each product waits for all of them, which takes long where cores are busy.
        more: for llama.cpp's completions as they are, such as logit_bias.

    Raises:
        RuntimeError: llama.cpp could not; with its last words.
    """
    question = {
        "model": os.fspath(model),
        "lora": None if lora is None else os.fspath(lora),
        "prompts": list(prompts),
        "max_new_tokens": max_new_tokens,
        "threads": threads,
        "more": more,
    }
    command = [os.fspath(find_python()), os.fspath(Path(__file__).resolve())]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, input=json.dumps(question), capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"llama.cpp could not answer with {model}:\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout)
    for each in found["answers"]:
        each["first"] = {int(token): value for token, value in each["first"].items()}
    return found["answers"], found["version"]


def main() -> None:
    question = json.load(sys.stdin)
    result = os.fdopen(os.dup(1), "w")  # llama.cpp writes its log wherever it likes
    os.dup2(2, 1)
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = question["model"]
    params.n_ctx = 1024
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.warmup = False
    params.cpuparams.n_threads = question["threads"]
    if question["lora"]:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(question["lora"], 1.0)]
    server = xllamacpp.Server(params)
    settings = {"n_predict": question["max_new_tokens"], "temperature": 0, "cache_prompt": False, "logprobs": 20}
    settings |= question["more"]
    found = [server.handle_completions({"prompt": prompt} | settings) for prompt in question["prompts"]]
    answers = [
        {
            "text": choice["text"],
            "first": {token["id"]: token["logprob"] for token in first},
        }
        for choice in (each["choices"][0] for each in found)
        for first in [choice["logprobs"]["content"][0]["top_logprobs"] if choice["logprobs"] else []]
    ]
    json.dump({"answers": answers, "version": importlib.metadata.version("xllamacpp")}, result)
    result.flush()
    os._exit(0)  # without waiting for threads that serve nobody


if __name__ == "__main__":
    main()

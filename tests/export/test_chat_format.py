"""A chat template taken apart: put together again it is the template, and Ollama's version says the same."""

import json
import re

import pytest
from tiny import tiny_tokenizer

from qlora_lab.export.chat_format import find_stop, take_apart
from qlora_lab.export.ollama import go_template, modelfile
from qlora_lab.export.trained_run import CHATML
from qlora_lab.tasks.function_calls import prompt_text

TEMPLATES = {
    "chatml": CHATML,
    "chatml with a default": (
        "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
        "{{ '<|im_start|>system\nBe nice<|im_end|>\n' }}{% endif %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "llama 3": (
        "{% for m in messages %}{% if loop.index0 == 0 %}{{ bos_token }}{% endif %}"
        "{{ '<|head|>' + m['role'] + '<|tail|>\n\n' + m['content'] | trim + '<|eot|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|head|>assistant<|tail|>\n\n' }}{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{% if m['role'] == 'user' %}"
        "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
    ),
    "gemma": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
        "{{ '<turn>' + role + '\n' + m['content'] | trim + '<end>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"
    ),
    "zephyr": (
        "{% for m in messages %}\n{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token }}\n"
        "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
    ),
    "quotes": "{% for m in messages %}{{ '\"\\\\' + m['role'] + '{{\"' + m['content'] + '}}\n' }}{% endfor %}",
}
STOPS = {
    "chatml": "<|im_end|>",
    "chatml with a default": "<|im_end|>",
    "llama 3": "<|eot|>",
    "mistral": "<|im_end|>",
    "gemma": "<end>",
    "zephyr": "<|im_end|>",
}
TURNS = [
    ["user"],
    ["user", "assistant", "user"],
    ["user", "assistant", "user", "assistant", "user"],
]


def tokenizer_with(template: str):
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.chat_template = template
    return tokenizer


def conversations(chat):
    for roles in TURNS:
        for first in ([], ["system"]) if "system" in chat.before else ([],):
            yield [{"role": role, "content": f"{role} says {i}"} for i, role in enumerate([*first, *roles])]


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_pieces_put_together_are_the_template(name):
    tokenizer = tokenizer_with(TEMPLATES[name])
    chat = take_apart(tokenizer)
    for messages in conversations(chat):
        wanted = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert chat.render(messages) == wanted
    assert chat.bos == (tokenizer.bos_token if name in ("llama 3", "mistral", "gemma") else "")


@pytest.mark.parametrize("name", STOPS)
def test_an_answer_stops_where_its_turn_ends(name):
    tokenizer = tokenizer_with(TEMPLATES[name])
    stop = find_stop(tokenizer, take_apart(tokenizer))
    assert stop.text == STOPS[name]
    assert stop.token == (2 if stop.text == "<|im_end|>" else None)


def test_the_run_s_own_template_is_the_prompt_that_it_was_trained_with():
    tokenizer = tokenizer_with(CHATML)
    asked = [{"role": "user", "content": "five minutes"}]
    assert tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True) == prompt_text(
        "five minutes"
    )


@pytest.mark.parametrize(
    "template",
    [
        None,
        "{{ raise_exception('never') }}",
        "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",
        "{% for m in messages %}{{ m['content'] }}{{ m['content'] }}{% endfor %}",
        "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}",
        "{{ messages[-1]['content'] }}",
    ],
)
def test_what_is_no_frame_is_not_taken_apart(template):
    tokenizer = tokenizer_with(template)
    assert take_apart(tokenizer) is None
    text = modelfile("./m.gguf", None, None, find_stop(tokenizer, None), "base")
    assert 'TEMPLATE "' not in text and 'stop "<|im_end|>"' in text


def filled_in(template: str, messages: list[dict]) -> str:
    """What Go makes of a template of `go_template`: literals, conditions, one loop."""
    text, last = "", len(messages) - 1
    system = any(message["role"] == "system" for message in messages)
    head, body = re.fullmatch(r"(.*?)\{\{ range \$i, \$_ := \.Messages \}\}(.*)\{\{ end \}\}", template, re.S).groups()

    def run(part: str, message: dict, at_end: bool) -> str:
        truth = {
            "not $last": not at_end,
            "not .System": not system,
            'and $last (ne .Role "assistant")': at_end and message.get("role") != "assistant",
        }
        said, stack = "", []  # of [this branch runs, one has run]
        for action in re.findall(r'\{\{ ((?:"(?:[^"\\]|\\.)*"|.)*?) \}\}', part, re.S):
            runs = all(branch for branch, _ in stack)
            if action.startswith(("if ", "else if ")):
                condition = action.split("if ", 1)[1]
                found = re.fullmatch(r'eq \.Role "(\w+)"', condition)
                true = message.get("role") == found[1] if found else truth[condition]
                if action.startswith("else"):
                    _, done = stack.pop()
                    stack.append((true and not done, done or true))
                else:
                    stack.append((true, true))
            elif action == "end":
                stack.pop()
            elif action.startswith('"') and runs:
                said += json.loads(action)
            elif action == ".Content" and runs:
                said += message["content"]
        assert not stack
        return said

    text += run(head, {}, False)
    for i, message in enumerate(messages):
        text += run(body, message, i == last)
    return text


@pytest.mark.parametrize("name", TEMPLATES)
def test_ollama_fills_in_the_same(name):
    tokenizer = tokenizer_with(TEMPLATES[name])
    chat = take_apart(tokenizer)
    for messages in conversations(chat):
        wanted = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert chat.bos + filled_in(go_template(chat), messages) == wanted

"""Small tokenizers with chat templates in the styles of six families, and of templates that make masks hard."""

from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
ALTERNATES = (
    "{% for m in talk %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}{% endfor %}"
)
INST = (
    "{% set first = messages[0].role == 'system' %}{% set talk = messages[1:] if first else messages %}"
    + ALTERNATES
    + "{{ bos_token }}"
    "{% for m in talk %}{% if m.role == 'user' %}[INST] "
    "{% if first and loop.first %}<<SYS>>\n{{ messages[0].content }}\n<</SYS>>\n\n{% endif %}"
    "{{ m.content }} [/INST]{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% set talk = messages %}" + ALTERNATES + "{% for m in messages %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# thinking is shown in the last answer only; the generation prompt leaves it to the model
THINKING = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% set content = m.content %}{% set thought = '' %}{% if m.role == 'assistant' and '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip() %}"
    "{% set content = content.split('</think>')[-1].strip() %}{% endif %}"
    "{% if m.role == 'assistant' and loop.index0 > ns.last %}<think>\n{{ thought }}\n</think>\n\n{% endif %}"
    "{{ content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# the generation prompt opens the thinking itself, and answers in the data are shown without any
OPENED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED_WITHOUT_END = MARKED.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")
# a header at the end, asked for or not
APPENDS = CHATML.replace("{% if add_generation_prompt %}", "").replace("assistant\n{% endif %}", "assistant{{ '\n' }}")
# no special token anywhere
HEADINGS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}### Response:\n{{ m.content }}\n\n"
    "{% else %}### Instruction:\n{{ m.content }}\n\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}### Response:\n{% endif %}"
)
TOOLS = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% if m.tool_calls %}{% for c in m.tool_calls %}<tool_call>\n{{ c.function | tojson }}\n</tool_call>{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """How a family writes conversations.

    Attributes:
        markers: its special tokens; the first begins a text, the second ends it.
        end: what ends an assistant's turn.
        trims: whether white space round a text is taken away.
        spaced: what stands before and after an answer.
    """

    template: str
    markers: tuple[str, ...]
    end: str
    trims: bool = False
    system: bool = True
    spaced: tuple[str, str] = ("", "")


FAMILIES = {
    "chatml": Family(CHATML, ("<|endoftext|>", "<|im_end|>", "<|im_start|>"), "<|im_end|>"),
    "chatml-late": Family(CHATML, ("<|begin|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|im_end|>"),
    "llama3": Family(
        LLAMA3,
        ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
        "<|eot_id|>",
        trims=True,
    ),
    "inst": Family(INST, ("<s>", "</s>"), "</s>", spaced=(" ", " ")),
    "gemma": Family(
        GEMMA, ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "<end_of_turn>", trims=True, system=False
    ),
    "phi3": Family(PHI3, ("<s>", "<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"), "<|end|>"),
    "zephyr": Family(ZEPHYR, ("<s>", "</s>"), "</s>"),
    "appends": Family(APPENDS, ("<|endoftext|>", "<|im_end|>", "<|im_start|>"), "<|im_end|>"),
    "marked": Family(MARKED, ("<|endoftext|>", "<|im_end|>", "<|im_start|>"), "<|im_end|>"),
    "marked-without-end": Family(MARKED_WITHOUT_END, ("<|endoftext|>", "<|im_end|>", "<|im_start|>"), "<|im_end|>"),
    "opened": Family(OPENED, ("<|endoftext|>", "<|im_end|>", "<|im_start|>"), "<|im_end|>"),
}
CORPUS = ["the answer is\n\n", "hello there", " \n \n\n  and so on.\n", "user\nassistant\nsystem\n", "été ♥ 日本"] * 20


def byte_level(merged: bool = False, trimmed: bool = False) -> Tokenizer:
    """One token per byte, or with merges learned from a few words; `trimmed`: offsets leave white space out."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if merged:
        tokenizer.train_from_iterator(
            CORPUS, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
        )
    if trimmed:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def pieces() -> Tokenizer:
    """As sentencepiece has it: a space is ▁, one stands before every text, and bytes for what is unknown."""
    vocabulary = {"<unk>": 0, **{f"<0x{i:02X}>": i + 1 for i in range(256)}}
    for character in "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?<>/|[]:#\n":
        vocabulary.setdefault(character, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def chat_tokenizer(
    family: Family | str = "chatml", backend: Tokenizer | None = None, swallows: bool = False
) -> PreTrainedTokenizerFast:
    """A tokenizer with the family's markers and template; `swallows`: markers take the white space behind them."""
    family = FAMILIES[family] if isinstance(family, str) else family
    backend = byte_level() if backend is None else backend
    backend.add_special_tokens([AddedToken(m, special=True, normalized=False, rstrip=swallows) for m in family.markers])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=family.markers[0],
        eos_token=family.markers[1],
        pad_token=family.markers[0],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = family.template
    return tokenizer

"""Ollama's `Modelfile`: which weights, the chat template in Ollama's own language, and where an answer stops."""

import json

from qlora_lab.export.chat_format import ChatFormat, Stop


def modelfile(
    source: str, adapter: str | None, chat: ChatFormat | None, stop: Stop, base: str, plain: bool = False
) -> str:
    """The text of a Modelfile.

    Args:
        source: what to start from: a GGUF file beside it, or a folder of safetensors.
        adapter: a LoRA in GGUF, or None.
        base: what the base model is called, for a comment.
        plain: it was trained on plain texts, without turns.
    """
    lines = [f"# ollama create NAME -f Modelfile   (a fine-tune of {base})", f"FROM {source}"]
    if adapter is not None:
        lines.append(f"ADAPTER {adapter}")
    if chat is not None:
        lines += ["# the prompt that it was trained with", f'TEMPLATE """{go_template(chat)}"""']
    elif plain:
        lines += ["# it was trained on plain texts, without turns", 'TEMPLATE """{{ .Prompt }}"""']
    else:
        lines.append("# no TEMPLATE: there is no chat template, or one that Ollama's language cannot be given")
    if stop.text:
        lines.append(f"PARAMETER stop {json.dumps(stop.text, ensure_ascii=False)}")
    lines += ["# greedy, as it was measured", "PARAMETER temperature 0"]
    return "\n".join(lines) + "\n"


def go_template(chat: ChatFormat) -> str:
    """A chat format in the language of Go's templates, as Ollama fills it in.

    Every text stands in a string literal: nothing depends on the blanks and line breaks between the actions. The token
    that begins a text is left out, because Ollama adds it where the GGUF file says so.
    """

    def put(text: str) -> str:
        return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""

    def turn(role: str) -> str:
        last = role == "assistant"  # an answer that is to be gone on with is left open
        closing = f"{{{{ if not $last }}}}{put(chat.after[role])}{{{{ end }}}}" if last else put(chat.after[role])
        return f"{put(chat.before[role])}{{{{ .Content }}}}{closing}"

    opening = f"{{{{ if not .System }}}}{put(chat.opening)}{{{{ end }}}}" if chat.opening else ""
    roles = [role for role in ("system", "user", "assistant") if role in chat.before]
    branches = "".join(
        f"{{{{ {'if' if i == 0 else 'else if'} eq .Role {json.dumps(role)} }}}}{turn(role)}"
        for i, role in enumerate(roles)
    )
    return (
        f"{opening}{{{{ range $i, $_ := .Messages }}}}{{{{ $last := eq (len (slice $.Messages $i)) 1 }}}}{branches}"
        f'{{{{ end }}}}{{{{ if and $last (ne .Role "assistant") }}}}{put(chat.start)}{{{{ end }}}}{{{{ end }}}}'
    )

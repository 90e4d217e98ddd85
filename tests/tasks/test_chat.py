"""Conversations in six families' templates: the ids are the template's own, the learned tokens the assistant's."""

import pytest
from chat_families import FAMILIES, HEADINGS, THINKING, TOOLS, Family, byte_level, chat_tokenizer, pieces
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import adapted, tiny_model

from qlora_lab import finetune, load_dataset
from qlora_lab.tasks import chat
from qlora_lab.tasks.chat import Conversation, generation_prompt, set_template, stop_tokens, tokenize_conversations

BACKENDS = {
    "bytes": byte_level,
    "merged": lambda: byte_level(merged=True),
    "trimmed": lambda: byte_level(merged=True, trimmed=True),
    "pieces": pieces,
}
CHATML = FAMILIES["chatml"].markers
some = settings(deadline=None, max_examples=20)  # for each of eleven templates
texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.sampled_from(
        ["", " ", "\n", "\n\nanswer", "answer\n", "  the answer is", "été ♥ 日本", "assistant\nhello", "a b"]
    ),
)


def user(content: str) -> dict:
    return {"role": "user", "content": content}


def said(content: str, **more) -> dict:
    return {"role": "assistant", "content": content, **more}


def segments(tokens, tokenizer) -> list[str]:
    """The learned tokens as texts, one for each run of them."""
    found, run = [], []
    for token, learned in [*zip(tokens.ids.tolist(), tokens.learned.tolist(), strict=True), (0, False)]:
        if learned:
            run.append(token)
        elif run:
            found.append(tokenizer.decode(run))
            run = []
    return found


def one(messages, tokenizer, **more):
    [tokens] = tokenize_conversations([Conversation(messages, **more)], tokenizer)
    return tokens


def own_ids(messages, tokenizer, **more) -> list[int]:
    return tokenizer.apply_chat_template(messages, return_dict=False, **more)


@st.composite
def conversations(draw, system: bool = True):
    messages = [{"role": "system", "content": draw(texts)}] if system and draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages += [user(draw(texts)), said(draw(texts))]
    if draw(st.integers(0, 4)) == 0:
        messages.append(user(draw(texts)))
    return messages


@pytest.mark.parametrize("name", FAMILIES)
@some
@given(data=st.data())
def test_learned_are_the_answers_and_their_ends(name, data):
    family = FAMILIES[name]
    tokenizer = chat_tokenizer(family)
    messages = data.draw(conversations(family.system))
    tokens = one(messages, tokenizer)
    assert tokens.ids.tolist() == own_ids(messages, tokenizer)
    before, after = family.spaced
    shown = [m["content"].strip() if family.trims else m["content"] for m in messages if m["role"] == "assistant"]
    assert segments(tokens, tokenizer) == [before + text + after + family.end for text in shown]


@pytest.mark.parametrize("backend", ["merged", "trimmed", "pieces"])
@pytest.mark.parametrize("name", FAMILIES)
@some
@given(data=st.data())
def test_so_they_are_where_tokens_hold_several_characters(name, backend, data):
    """Where a token holds the end of the prompt and the beginning of the answer, it is learned, and that is noted."""
    family = FAMILIES[name]
    tokenizer = chat_tokenizer(family, BACKENDS[backend](), swallows=name == "phi3")
    messages = data.draw(conversations(family.system))
    tokens = one(messages, tokenizer)
    assert tokens.ids.tolist() == own_ids(messages, tokenizer)
    found = segments(tokens, tokenizer)
    assert len(found) == sum(m["role"] == "assistant" for m in messages)
    for segment, message in zip(found, (m for m in messages if m["role"] == "assistant"), strict=True):
        assert segment.endswith(family.end) and segment.count(family.end) == 1
        content = segment.removesuffix(family.end).strip()
        if chat.STRADDLED in tokens.notes:
            assert content.endswith(message["content"].strip())
        else:
            assert content == message["content"].strip()


@pytest.mark.parametrize("backend", ["bytes", "merged", "pieces"])  # white space without offsets is not theirs
@some
@given(messages=conversations())
def test_where_a_template_marks_the_answers_the_mask_is_that_of_transformers(backend, messages):
    tokenizer = chat_tokenizer("marked", BACKENDS[backend]())
    tokens = one(messages, tokenizer)
    theirs = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True)
    if chat.STRADDLED not in tokens.notes:
        assert tokens.learned.tolist() == [bool(mask) for mask in theirs["assistant_masks"]]


# Templates that look at what is said


def chatml(template: str, **more):
    return chat_tokenizer(Family(template, CHATML, "<|im_end|>"), **more)


def test_thinking_that_a_template_hides_is_not_looked_for():
    tokenizer = chatml(THINKING)
    talk = [user("a"), said("<think>t</think>x"), user("b"), said("<think>u</think>y")]
    tokens = one(talk, tokenizer)
    assert tokens.ids.tolist() == own_ids(talk, tokenizer)
    assert segments(tokens, tokenizer) == ["x<|im_end|>", "<think>\nu\n</think>\n\ny<|im_end|>"]
    assert tokens.notes == (chat.SHOWN_OTHERWISE,)


def test_what_a_template_writes_before_an_answer_is_learned_where_the_model_has_to_write_it():
    tokenizer = chatml(THINKING)
    talk = [user("a"), said("x"), user("b"), said("y")]
    assert segments(one(talk, tokenizer), tokenizer) == ["x<|im_end|>", "<think>\n\n</think>\n\ny<|im_end|>"]


def test_a_generation_prompt_that_the_answer_does_not_follow_is_told():
    tokenizer = chat_tokenizer("opened")
    assert one([user("a"), said("b")], tokenizer).notes == (chat.PROMPT_DIFFERS,)
    assert one([user("a"), said("<think>\nx</think>b")], tokenizer).notes == (chat.PROMPT_DIFFERS, chat.SHOWN_OTHERWISE)


def test_a_message_that_a_template_leaves_out_is_told():
    tokenizer = chatml(
        "{% for m in messages %}{% if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokens = one([{"role": "system", "content": "Be brief."}, user("a"), said("b")], tokenizer)
    assert tokens.notes == (chat.NOT_SHOWN,) and segments(tokens, tokenizer) == ["b<|im_end|>"]


CALL = {"type": "function", "function": {"name": "timer", "arguments": {"minutes": 5}}}
TOOL = {"type": "function", "function": {"name": "timer", "parameters": {}}}


def test_calls_and_tools():
    tokenizer = chatml(TOOLS)
    talk = [user("a"), said("", tool_calls=[CALL]), {"role": "tool", "content": "done"}, said("It is.")]
    tokens = one(talk, tokenizer, tools=[TOOL])
    assert tokens.ids.tolist() == own_ids(talk, tokenizer, tools=[TOOL])
    call = '<tool_call>\n{"name": "timer", "arguments": {"minutes": 5}}\n</tool_call><|im_end|>'
    assert segments(tokens, tokenizer) == [call, "It is.<|im_end|>"]
    assert segments(one(talk[:2], tokenizer), tokenizer) == [call]
    assert segments(one([user("a"), said("So:", tool_calls=[CALL])], tokenizer), tokenizer) == ["So:" + call]


@pytest.mark.parametrize("name", ["chatml", "phi3", "appends", "llama3"])
def test_tools_and_calls_that_a_template_leaves_out_are_refused(name):
    tokenizer = chat_tokenizer(name)
    with pytest.raises(ValueError, match=r"a\.jsonl, line 3: it has tools, of which the chat template says nothing"):
        one([user("a"), said("b")], tokenizer, tools=[TOOL], origin="a.jsonl, line 3")
    with pytest.raises(ValueError, match=r"a\.jsonl, line 3: message 2 has tool_calls, of which"):
        one([user("a"), said("", tool_calls=[CALL])], tokenizer, origin="a.jsonl, line 3")


@pytest.mark.parametrize("ending", ["<|endoftext|>", "\n<|im_start|>assistant\n"])
def test_calls_where_something_is_appended_at_the_end(ending):
    tokenizer = chatml(
        TOOLS.replace(
            "{% if add_gen", f"{{% if not add_generation_prompt %}}{{{{ {ending!r} }}}}{{% endif %}}{{% if add_gen"
        )
    )
    talk = [user("a"), said("", tool_calls=[CALL]), {"role": "tool", "content": "done"}, said("It is.")]
    call = '<tool_call>\n{"name": "timer", "arguments": {"minutes": 5}}\n</tool_call><|im_end|>'
    assert segments(one(talk, tokenizer), tokenizer) == [call, "It is.<|im_end|>"]
    assert segments(one(talk[:2], tokenizer), tokenizer) == [call]


def test_calls_where_a_later_question_changes_how_they_are_shown():
    """Thinking is shown after the last question only, so what is rendered up to a call is no prefix of the whole."""
    template = TOOLS.replace(
        "{% for m in messages %}",
        "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
        "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}",
    ).replace(
        "{{ m.content }}{% if m.tool_calls %}",
        "{% if m.role == 'assistant' and loop.index0 > ns.last %}<think></think>{% endif %}{{ m.content }}"
        "{% if m.tool_calls %}{% if m.content %}\n{% endif %}",
    )
    tokenizer = chatml(template)
    talk = [
        user("a"),
        said("", tool_calls=[CALL]),
        {"role": "tool", "content": "done"},
        said("b"),
        user("c"),
        said("d"),
    ]
    call = '<tool_call>\n{"name": "timer", "arguments": {"minutes": 5}}\n</tool_call><|im_end|>'
    assert segments(one(talk, tokenizer), tokenizer) == [call, "b<|im_end|>", "<think></think>d<|im_end|>"]


def test_a_call_may_be_ended_by_another_token_than_an_answer():
    family = Family(
        TOOLS.replace(
            "<|im_end|>\n{% endfor %}{% if add",
            "{{ '<|call|>' if m.tool_calls else '<|im_end|>' }}\n{% endfor %}{% if add",
        ),
        (*CHATML, "<|call|>"),
        "<|im_end|>",
    )
    tokenizer = chat_tokenizer(family)
    tokens = one([user("a"), said("", tool_calls=[CALL])], tokenizer)
    call = '<tool_call>\n{"name": "timer", "arguments": {"minutes": 5}}\n</tool_call><|call|>'
    assert segments(tokens, tokenizer) == [call] and tokens.notes == ()


@pytest.mark.parametrize(("own", "wanted"), [("<|stop|>", "<|done|><|stop|>"), ("<|endoftext|>", "<|done|>")])
def test_of_two_ends_that_stand_together_the_tokenizers_own_is_the_end(own, wanted):
    markers = ("<|begin|>", own, "<|im_start|>", "<|done|>", "<|stop|>")
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|done|><|stop|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = chat_tokenizer(Family(template, tuple(dict.fromkeys(markers)), wanted))
    assert segments(one([user("a"), said("b"), user("c"), said("d")], tokenizer), tokenizer) == [
        "b" + wanted,
        "d" + wanted,
    ]


@pytest.mark.parametrize("name", ["chatml", "zephyr", "llama3", "appends", "marked"])
def test_an_assistant_who_begins_or_goes_on(name):
    tokenizer, end = chat_tokenizer(name), FAMILIES[name].end
    talk = [said("Hello."), user("a"), said("b"), said("c")]
    tokens = one(talk, tokenizer)
    assert tokens.ids.tolist() == own_ids(talk, tokenizer)
    assert segments(tokens, tokenizer) == [f"Hello.{end}", f"b{end}", f"c{end}"]


@pytest.mark.parametrize("name", FAMILIES)
def test_only_the_turns_that_are_wanted(name):
    tokenizer, family = chat_tokenizer(name), FAMILIES[name]
    talk = [user("a"), said("first"), user("b"), said("second")]
    [segment] = segments(one(talk, tokenizer, learned=(3,)), tokenizer)
    assert segment.strip() == "second" + family.spaced[1] + family.end


@pytest.mark.parametrize("name", FAMILIES)
def test_a_user_who_writes_the_template_is_no_assistant(name):
    """The same words in the user's turn, as far as they are text: the first place that has them is not the answer."""
    tokenizer, family = chat_tokenizer(name), FAMILIES[name]
    for template in ("assistant\nyes", "<|assistant|>\nyes", "[INST] [/INST] yes", "model\nyes", "yes"):
        if any(marker in template for marker in family.markers):
            continue
        tokens = one([user(template), said("yes"), user(template), said("yes")], tokenizer)
        before, after = family.spaced
        assert segments(tokens, tokenizer) == [f"{before}yes{after}{family.end}"] * 2


# Where a turn ends, and generation stops


def test_where_nothing_ends_the_answer_an_end_is_added():
    tokenizer = chatml(HEADINGS)
    talk = [user("a"), said("b"), user("c"), said("d")]
    tokens = one(talk, tokenizer)
    assert segments(tokens, tokenizer) == ["b", "d<|im_end|>"]
    assert tokens.ids.tolist() == [*own_ids(talk, tokenizer)[:-2], tokenizer.eos_token_id]
    assert tokens.notes == tuple(sorted([chat.NO_END_INSIDE, chat.added_end(tokenizer)]))
    assert chat.turn_end(tokenizer) is None and stop_tokens(tokenizer) == {tokenizer.eos_token_id}


def test_a_question_at_the_end_gets_no_end_token():
    tokenizer = chatml(HEADINGS)
    talk = [user("a"), said("b"), user("c")]
    assert one(talk, tokenizer).ids.tolist() == own_ids(talk, tokenizer)


def test_a_tokenizer_without_an_end():
    tokenizer = chatml(HEADINGS)
    tokenizer.eos_token = None
    assert one([user("a"), said("b")], tokenizer).notes == (chat.NO_END,)


@pytest.mark.parametrize("name", FAMILIES)
def test_generation_stops_where_a_turn_ends(name):
    tokenizer, family = chat_tokenizer(name), FAMILIES[name]
    end = tokenizer.convert_tokens_to_ids(family.end)
    assert chat.turn_end(tokenizer) == end
    assert stop_tokens(tokenizer) == {end, tokenizer.eos_token_id}


class Configured:
    class generation_config:
        eos_token_id = None


@pytest.mark.parametrize(("more", "wanted"), [(None, set()), (7, {7}), ([7, 9], {7, 9})])
def test_and_where_the_models_settings_say(more, wanted):
    tokenizer, model = chat_tokenizer("gemma"), Configured()
    model.generation_config.eos_token_id = more
    assert stop_tokens(tokenizer, model) == stop_tokens(tokenizer) | wanted
    tokenizer.chat_template = "{{ raise_exception('only pictures') }}"
    assert stop_tokens(tokenizer, model) == {tokenizer.eos_token_id} | wanted
    tokenizer.chat_template = None
    assert stop_tokens(tokenizer, model) == {tokenizer.eos_token_id} | wanted
    tokenizer.eos_token = None
    assert stop_tokens(tokenizer, model) == wanted


# Refused, and by which line

REFUSED = [
    ("gemma", [{"role": "system", "content": "s"}, user("a"), said("b")], "no place for a system message"),
    ("gemma", [user("a"), user("b"), said("c")], "messages 1 and 2 are both the user's: join them"),
    ("inst", [user("a"), said("b"), said("c")], "messages 2 and 3 are both the assistant's: join them"),
    ("inst", [said("a"), user("b"), said("c")], "the assistant speaks first"),
    ("chatml", [user("a<|im_end|>"), said("b")], "message 1 holds <|im_end|>, which the tokenizer reads as the end"),
    ("chatml", [user("a"), said("b<|im_end|>")], "message 2 holds <|im_end|>"),
    ("chatml", [user("<|im_start|>system"), said("b")], "message 1 holds <|im_start|>"),
    ("inst", [user("it is <s>struck</s>"), said("b")], "message 1 holds </s>"),
]


@pytest.mark.parametrize(("name", "messages", "said_so"), REFUSED)
def test_what_a_template_does_not_take_is_told_by_its_line(name, messages, said_so):
    tokenizer = chat_tokenizer(name)
    good = Conversation([user("a"), said("b")], origin="own.jsonl, line 1")
    with pytest.raises(ValueError, match=r"^own\.jsonl, line 2: ") as caught:
        tokenize_conversations([good, Conversation(messages, origin="own.jsonl, line 2"), good], tokenizer)
    assert said_so in str(caught.value)


def test_a_token_that_begins_a_text_inside_a_message_is_noted():
    tokenizer = chat_tokenizer("zephyr")
    assert one([user("it is <s>struck"), said("b")], tokenizer).notes == (chat.MARKER_INSIDE,)


def test_without_a_template_the_way_out_is_told():
    tokenizer = chat_tokenizer("chatml")
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match=r"no chat template.*--template FILE"):
        one([user("a"), said("b")], tokenizer)


BROKEN = [
    ("{% for m in messages %}{{ m.content }}", "endfor"),
    ("{{ messages[0].content }}", "shows an answer 0 times"),
    ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "shows an answer 2 times"),
    ("{{ raise_exception('no') }}", "no"),
]


@pytest.mark.parametrize(("template", "said_so"), BROKEN)
def test_a_template_that_cannot_be_used_leaves_the_tokenizer_as_it_was(template, said_so):
    tokenizer = chat_tokenizer("chatml")
    before = tokenizer.chat_template
    with pytest.raises(ValueError, match="no chat template to train with") as caught:
        set_template(tokenizer, template)
    assert said_so in str(caught.value) and tokenizer.chat_template == before


def test_a_template_from_a_file_is_saved_with_the_tokenizer(tmp_path):
    tokenizer = chat_tokenizer("chatml")
    tokenizer.chat_template = None
    (tmp_path / "own.jinja").write_text(HEADINGS, encoding="utf-8-sig")
    set_template(tokenizer, tmp_path / "own.jinja")
    assert tokenizer.chat_template == HEADINGS
    with pytest.raises(FileNotFoundError, match="no file"):
        set_template(tokenizer, str(tmp_path / "none.jinja"))
    tokenizer.save_pretrained(tmp_path / "saved")
    assert type(tokenizer).from_pretrained(tmp_path / "saved").chat_template == HEADINGS


@pytest.mark.parametrize("name", FAMILIES)
def test_the_generation_prompt_is_the_templates_own(name):
    tokenizer = chat_tokenizer(name)
    talk = [user("a"), said("b"), user("c")]
    prompt = generation_prompt(talk, tokenizer)
    assert prompt == tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_tokenizer_that_does_not_say_where_its_tokens_stand(name, monkeypatch):
    """The same masks, from prefixes, for a tokenizer without offsets."""
    tokenizer = chat_tokenizer(name, byte_level(merged=True))
    talk = [user("the answer"), said("is\n\nhello there"), user("and so on"), said("été ♥ 日本")]
    fast = one(talk, tokenizer)
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    slow = one(talk, tokenizer)
    assert fast.ids.tolist() == slow.ids.tolist()
    if name == "llama3":  # a prompt's last line breaks are one token alone, and two before a word
        assert chat.STRADDLED in slow.notes
        assert [text.strip() for text in segments(slow, tokenizer)] == segments(fast, tokenizer)
    else:
        assert fast.learned.tolist() == slow.learned.tolist()


@pytest.mark.parametrize("name", ["chatml-late", "llama3", "inst", "gemma", "phi3", "zephyr"])
def test_a_model_of_each_family_learns_to_end_its_turn(name):
    """Trained on two answers, it gives them and stops by itself, where `stop_tokens` says."""
    tokenizer = chat_tokenizer(name)
    rows = [{"prompt": "a", "completion": "yes"}, {"prompt": "b", "completion": "no, no"}]
    records = load_dataset(rows)
    model = adapted(tiny_model(vocab_size=len(tokenizer)), "full")
    finetune(model, tokenizer, records, steps=40, batch_size=2, learning_rate=1e-2, warmup=0.0)
    for record in records:
        question, answer = record.question_and_answer(tokenizer)
        ids = tokenizer(question, add_special_tokens=False, return_tensors="pt")["input_ids"]
        ends = sorted(stop_tokens(tokenizer))
        given = model.generate(ids, max_new_tokens=20, do_sample=False, eos_token_id=ends, pad_token_id=0)
        new = given[0, ids.shape[1] :].tolist()
        assert new[-1] in ends and tokenizer.decode(new[:-1]).strip() == answer

"""What the model reads of a prompt: chat templates, and all that a row may hold for them."""

import json

import pytest

from common.errors import UserError
from prompts.chat import render
from testbed.arithmetic import tokenizer

PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
TOOLS = "{% if tools %}<tools>{{ tools | tojson }}</>{% endif %}" + PLAIN
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + PLAIN
TURNS = "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}"
TURNS += "{% endif %}{% endfor %}" + PLAIN

SYSTEM, USER = {"role": "system", "content": "S"}, {"role": "user", "content": "U"}
OPEN, PART = {"role": "assistant", "content": "<think>\n"}, {"type": "text", "text": "P"}
SEARCH = [{"type": "function", "function": {"name": "search"}}]


def read(prompt, template="", suffix="", tools=None):
    tok = tokenizer()
    tok.chat_template = template
    return render(prompt, suffix, tok, "--prompt-column p: in train, a prompt (row 3)", tools)


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("U", "<user>U!</><assistant>"),
        (7, "<user>7!</><assistant>"),
        (0.5, "<user>0.5!</><assistant>"),
        ([SYSTEM, USER], "<system>S</><user>U!</><assistant>"),
        ([USER, OPEN], "<user>U!</><assistant><think>\n"),  # a prefill: the turn stays open, the suffix is the user's
        ([SYSTEM, USER, {"role": "assistant", "content": "A"}, USER, OPEN],
         "<system>S</><user>U</><assistant>A</><user>U!</><assistant><think>\n"),
        ([USER, {"role": "assistant", "content": "A"}, USER], "<user>U</><assistant>A</><user>U!</><assistant>"),
        ([{"role": "user", "content": [PART, {"text": "Q"}]}], "<user>PQ!</><assistant>"),
        ([{"role": "user", "content": []}], "<user>!</><assistant>"),
        ([USER, {"role": "assistant", "content": None, "tool_calls": SEARCH}, {"role": "tool", "content": "T"}],
         "<user>U!</><assistant></><tool>T</><assistant>"),
    ],
)  # fmt: skip
def test_a_prompt_through_a_template(prompt, text):
    before = json.dumps(prompt)
    assert read(prompt, PLAIN, suffix="!") == text
    assert json.dumps(prompt) == before


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("U", "U!"),
        (7, "7!"),
        ([SYSTEM, USER], "S\nU!"),
        ([USER, OPEN], "U!\n<think>\n"),
        ([{"role": "user", "content": [PART, PART]}], "PP!"),
    ],
)
def test_a_prompt_without_a_template(prompt, text):
    assert read(prompt, suffix="!") == text


@pytest.mark.parametrize(
    ("prompt", "template", "told"),
    [
        ([SYSTEM, USER], NO_SYSTEM, "TemplateError: System role not supported"),
        ([USER, USER], TURNS, "TemplateError: Roles must alternate"),
        ([USER], "{% for m in messages %}{{ m.content }", "TemplateSyntaxError: "),
        ([USER], "{{ messages[0].content | nosuchfilter }}", "TemplateAssertionError: No filter named 'nosuchfilter'"),
        ([USER], "{{ messages[7].content.x }}", "UndefinedError: "),
        ([USER], "{{ messages[0].content + 1 }}", "TypeError: "),
    ],
)
def test_what_a_template_refuses_is_one_line(prompt, template, told):
    with pytest.raises(UserError) as caught:
        read(prompt, template)
    message = str(caught.value)
    assert message.startswith(f"--prompt-column p: in train, a prompt (row 3) is refused by the chat template of --model ({told}")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        (None, "is 'None': it must be a text or a list of chat messages"),
        (float("nan"), "is 'nan'"),
        (True, "is 'True'"),
        ({"text": "U"}, "is \"{'text': 'U'}\""),
        ([], "is '[]'"),
        (["U"], "is \"['U']\""),
        ([USER, {"role": "user", "content": None}], "it must be a text or a list of chat messages"),
        ([{"role": 3, "content": "U"}], "has the role '3': it must be one of system, developer, user"),
        ([{"role": "human", "content": "U"}], "has the role 'human'"),
        ("half \ud83d", "half ': no tokenizer can read it"),
        ([{"role": "user", "content": "\udc00"}], "has half a character"),
        ([{"role": "user", "content": [PART, {"type": "image_url", "image_url": {"url": "x"}}]}], "has content of the kind 'image_url'"),
        ([{"role": "user", "content": ["U"]}], "has content of the kind 'U'"),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], "has content of the kind 'text'"),
    ],
)
@pytest.mark.parametrize("template", ["", PLAIN])
def test_what_is_no_prompt_is_told(prompt, told, template):
    with pytest.raises(UserError) as caught:
        read(prompt, template)
    assert told in str(caught.value)
    assert "(row 3)" in str(caught.value)


ONLY_USERS = "{% for m in messages %}{% if m.role == 'user' %}<user>{{ m.content | trim }}</>{% endif %}{% endfor %}"


def test_a_message_that_the_template_leaves_out_is_told():
    assert read([USER], ONLY_USERS) == "<user>U</>"
    with pytest.raises(
        UserError, match=r"a prompt \(row 3\) has a message of the role 'system' that the chat template of --model leaves out: 'S'"
    ):
        read([SYSTEM, USER], ONLY_USERS)


def test_a_message_without_a_role_is_the_users():
    assert read([{"content": "U"}], PLAIN, suffix="!") == "<user>U!</><assistant>"
    assert read([SYSTEM, {"role": None, "content": "U"}], PLAIN) == "<system>S</><user>U</><assistant>"


@pytest.mark.parametrize("template", ["", PLAIN])
def test_messages_as_json_are_messages(template):
    assert read(json.dumps([SYSTEM, USER]), template) == read([SYSTEM, USER], template)
    for text in ('[{"a": 1}]', '[{"role": "user", "content": "U"', "[1, 2]"):
        assert text in read(text, template)


def test_a_small_number_is_written_out():
    assert read(0.00001) == "0.00001"


@pytest.mark.parametrize("tools", [SEARCH, json.dumps(SEARCH)])
def test_tools_reach_a_template_that_shows_them(tools):
    assert read([USER], TOOLS, tools=tools).startswith('<tools>[{"type": "function", "function": {"name": "search"}}]</><user>U')


@pytest.mark.parametrize("tools", [None, [], "", " ", "[]", "null"])
def test_a_row_without_tools(tools):
    for template in ("", PLAIN, TOOLS):
        assert read([USER], template, tools=tools) == read([USER], template)


@pytest.mark.parametrize(
    ("tools", "template", "told"),
    [
        (SEARCH, "", "has tools, and --model has no chat template to show them"),
        (SEARCH, PLAIN, "has tools, which the chat template of --model leaves out"),
        (json.dumps(SEARCH), PLAIN, "has tools, which the chat template of --model leaves out"),
        ("search", TOOLS, "has tools 'search': they must be a list of objects"),
        (["search"], TOOLS, "they must be a list of objects"),
        ({"name": "search"}, TOOLS, "they must be a list of objects"),
    ],
)
def test_tools_are_never_left_out_in_silence(tools, template, told):
    with pytest.raises(UserError, match="drop or rename the column tools") as caught:
        read([USER], template, tools=tools)
    assert told in str(caught.value)

"""A prompt as the model reads it: through its chat template, with all that a row holds."""

import json
from decimal import Decimal
from numbers import Number

from common.errors import UserError

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")


def render(prompt: object, suffix: str, tokenizer, where: str, tools: object = None) -> str:
    """The text of a prompt: a text, a number, or chat messages whose content is text or parts of text.

    The tokenizer's chat template is used where there is one; else the messages' texts, a line each. suffix ends the last turn of the user.
    A last turn of the assistant is a prefill: it stays open, and completions continue it. tools: the row's, a list or JSON, for the
    template to show. where: what the prompt is, for errors. Raises UserError for what is no prompt, and for all that the template refuses
    or leaves out.
    """
    if isinstance(prompt, str) and prompt.lstrip().startswith('[{"'):  # chat messages as JSON, as a cell of csv has them
        prompt = _from_json(prompt)
    messages = [{"role": "user", "content": said(prompt, where)}] if not isinstance(prompt, list) else read_messages(prompt, where)
    users = [place for place, message in enumerate(messages) if message["role"] == "user"]
    messages[users[-1] if users else -1]["content"] += suffix
    tools, open_turn = _tools(tools, where), messages[-1]["role"] == "assistant"
    if not tokenizer.chat_template:
        if tools:
            raise UserError(f"{where} has tools, and --model has no chat template to show them: drop or rename the column tools")
        return whole("\n".join(message["content"] for message in messages), where)

    def through_template(tools: list | None) -> str:
        try:
            return tokenizer.apply_chat_template(
                messages, tools=tools, tokenize=False, add_generation_prompt=not open_turn, continue_final_message=open_turn
            )
        except Exception as error:  # Jinja's, and whatever a template raises
            told = " ".join(str(error).split())[:200]
            fix = "write the prompts as this model wants them (a system text into the user's turn), or mend its chat template"
            raise UserError(f"{where} is refused by the chat template of --model ({type(error).__name__}: {told}); {fix}") from error

    text = whole(through_template(tools), where)
    for message in messages:
        if message["role"] in ("user", "system") and message["content"].strip() not in text:
            told = f"{where} has a message of the role {message['role']!r} that the chat template of --model leaves out"
            raise UserError(f"{told}: {message['content'][:40]!r}; write the prompts as this model wants them")
    if tools and text == through_template(None):
        raise UserError(f"{where} has tools, which the chat template of --model leaves out: drop or rename the column tools")
    return text


def whole(text: str, where: str) -> str:
    """The text, unless it has half a character: a lone surrogate, as JSON that was cut in an emoji has."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        told = f"{where} has half a character, {text[error.start]!a}, behind {text[max(0, error.start - 30) : error.start]!r}"
        raise UserError(f"{told}: no tokenizer can read it; mend or drop the row") from error
    return text


def _from_json(prompt: str) -> object:
    try:
        found = json.loads(prompt)
    except ValueError:
        return prompt
    return found if all(isinstance(message, dict) and "content" in message for message in found) else prompt


def read_messages(prompt: list, where: str) -> list[dict]:
    """Chat messages with their content as text, a role for each: the user's where none is given. Raises UserError for anything else."""
    found = []
    for message in prompt:
        if not isinstance(message, dict):
            break
        message = message | {"role": "user" if message.get("role") is None else message["role"]}
        if message["role"] not in ROLES:
            raise UserError(f"{where} has the role {str(message['role'])[:30]!r}: it must be one of {', '.join(ROLES)}")
        content = message.get("content")
        if isinstance(content, list):
            content = "".join(_part(part, where) for part in content)
        elif content is None and message.get("tool_calls"):
            content = ""
        if not isinstance(content, str):
            break
        found.append(message | {"content": content})
    if not prompt or len(found) < len(prompt):
        raise _no_prompt(prompt, where)
    return found


def _part(part: object, where: str) -> str:
    """The text of one part of a content."""
    if isinstance(part, dict) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    kind = part.get("type") if isinstance(part, dict) else part
    raise UserError(f"{where} has content of the kind {str(kind)[:30]!r}: only text can be read; drop the row, or name another column")


def said(prompt: object, where: str) -> str:
    """A text, or a number as text. Raises UserError for anything else."""
    if isinstance(prompt, Number) and not isinstance(prompt, bool) and prompt == prompt:
        prompt = format(Decimal(repr(prompt)), "f") if isinstance(prompt, float) else str(prompt)
    if not isinstance(prompt, str):
        raise _no_prompt(prompt, where)
    return prompt


def _no_prompt(prompt: object, where: str) -> UserError:
    told = f"{where} is {str(prompt)[:60]!r}"
    return UserError(f"{told}: it must be a text or a list of chat messages; drop the row, or name another column")


def _tools(cell: object, where: str) -> list | None:
    """The tools in a cell, None for none: a list, or one as JSON, as tables keep it."""
    found = cell.strip() if isinstance(cell, str) else cell
    if isinstance(found, str) and found:
        try:
            found = json.loads(found)
        except ValueError:
            found = cell
    if found and not (isinstance(found, list) and all(isinstance(tool, dict) for tool in found)):
        told = f"{where} has tools {str(cell)[:60]!r}"
        raise UserError(f"{told}: they must be a list of objects, or one as JSON; drop or rename the column tools")
    return found or None

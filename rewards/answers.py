r"""Answers as texts: the box of a completion, the reference answer in a cell of a data set, and one way of writing for many."""

import re
import unicodedata
from numbers import Number

MAX_ANSWER_LENGTH = 300  # characters; the longest answer of MATH-500 has 53, and parsing time grows fast with length

_BOX = re.compile(r"\\(?:boxed|fbox)\s*+\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace, as in \left\{, is ink and opens nothing
_TIE = re.compile(r"[\s$*.]*+(?:[,;]\s*+)?(?:(?:and|or)\b|\\text\{[\s,]*+(?:and|or)\s*+\})?[\s$*]*+")  # between the boxes of one answer

# One macro argument without its braces, as in \frac12 or \sqrt\pi.
_BARE = r"(\\[a-zA-Z]+|[0-9a-zA-Z])"
_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\n|\\!|\\\$|\\?%|\^\{?\\circ\}?|\\(?:left|right)(?![a-zA-Z])", ""),  # how it looks, not what it is
        (r"\\\\", r"\\"),
        (r"\\[dt]frac", r"\\frac"),
        (r"(?<=\S)\s*+\\text\{ .*", ""),  # a unit behind the value
        (r"(^|[ {])\.", r"\g<1>0."),
        (r"^[^=]{0,2}=([^=]*)$", r"\1"),  # x=5
        (rf"\\(frac|sqrt)\s*+{_BARE}", r"\\\1{\2}"),
        (rf"(\\frac\{{[^{{}}]*+\}})\s*+{_BARE}", r"\1{\2}"),
        (r"\s", ""),
        (r"^0\.5$", r"\\frac{1}{2}"),
        (r"^(-?)([0-9]+)/([0-9]+)$", r"\1\\frac{\2}{\3}"),
    )
]

# Signs that people and models write where LaTeX has a command. Full-width and Arabic digits are not among them.
_SIGNS = {"−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": r"\div ", "±": r"\pm ", "∞": r"\infty ", "°": r"^\circ ", "⁄": "/"}
_SIGNS |= {"≤": r"\leq ", "≥": r"\geq ", "≠": r"\neq ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "π": r"\pi "}
_SIGNS |= {"θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "λ": r"\lambda ", "φ": r"\phi ", "ω": r"\omega "}
_SIGNS |= dict.fromkeys("€£¥₹", "") | dict.fromkeys("\u00a0\u2009\u202f", " ")
_SIGNS |= {sign: re.sub("(.*)⁄(.*)", r"\\frac{\1}{\2}", unicodedata.normalize("NFKC", sign)) for sign in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"}
_SIGNS = str.maketrans(_SIGNS)
_RAISED, _LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "₀₁₂₃₄₅₆₇₈₉"
_SPACE = r"(?:\s|\\[,;: ]|~)"
_TIDY = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (rf"[{_RAISED}]+", lambda found: f"^{{{_plain_digits(found[0])}}}"),
        (rf"[{_LOWERED}]+", lambda found: f"_{{{_plain_digits(found[0])}}}"),
        (r"√\s*([0-9]+|[a-zA-Z])", r"\\sqrt{\1}"),
        (r"√\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"^\s*(\*\*|__|\$)(.*)\1\.?\s*$", r"\2"),  # Markdown's bold, or dollars, around it all
        (r"(?<=[^.])\.\s*$", ""),  # the end of the sentence
        (r"\\mathrm(?:\s*\{\s*([a-zA-Z])\s*\}|\s+([a-zA-Z])(?![a-zA-Z]))", r"\1\2"),  # e and i upright
        (rf"(?<![0-9.,])([0-9]{{1,3}})((?:{_SPACE}[0-9]{{3}})+)(?![0-9])", lambda found: found[1] + re.sub(r"[^0-9]", "", found[2])),
        (rf"(?<![0-9./])([0-9]+){_SPACE}+([0-9]+)/([0-9]+)(?![0-9./])", r"\1\\frac{\2}{\3}"),  # 2 2/3 is a mixed number
        (r"([0-9]*)\.([0-9]*)\\overline\s*(?:\{([0-9]+)\}|([0-9]))", lambda found: _periodic(found)),
    )
]
_WRAP = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_NUMBER = r"-?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?"
_THOUSANDS = re.compile(r"-?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_UNIT = re.compile(rf"({_NUMBER})\s*(?!(?:am|pm)\b)[a-zA-Z]{{2,}}(?: [a-zA-Z]{{2,}})?")  # 18 dollars
_WORD = re.compile(r"(?<=[\s(\"'])[^\W\d_]{2,}(?=[\s.,;:!?)\"'])")
_OPERATOR = re.compile(r"\s[-+*/=<>]\s|[\^+=]")
_FINAL = re.compile(r"####[ \t]*(\S[^\n]*?)\s*\Z")  # how GSM8K ends a worked solution
_BARE_BOX = re.compile(r"\\(?:boxed|fbox)\s+([^\s{}$\\]+|\\[a-zA-Z]+)")
_LIST_OF_ONE = re.compile(r"""\[\s*(["'])((?:(?!\1).)*)\1\s*\]""", re.DOTALL)
_LIST_OF_MORE = re.compile(r"""\[\s*(["'])(?:(?!\1).)*\1\s*,.*\]""", re.DOTALL)


def last_boxed(text: str) -> str | None:
    r"""Return what stands inside the box that opens last, in time linear in the text.

    A box is `\boxed{...}` or `\fbox{...}`. Nested braces belong to it, escaped ones (`\{`) are not counted, and of nested boxes the
    inner one opens last. `None` if there is no box or the last one never closes: a completion cut off in its answer has not
    answered, whatever it boxed before. `\boxed 5`, without braces, is no box.
    """
    start = None
    for opening in _BOX.finditer(text):
        start = opening.end()
    return None if start is None else _inside(text, start)


def answer_box(completion: str, prompt: str = "") -> str | None:
    """`last_boxed` of a completion, and `None` where it still thinks at its end: where the last `<think>`, which a chat template may have
    written at the end of the prompt, has no `</think>`."""
    opened = completion.rfind("<think>") if "<think>" in completion else 0 if prompt.rstrip().endswith("<think>") else -1
    return None if opened >= 0 and completion.rfind("</think>") < opened else last_boxed(completion)


def answer_boxes(completion: str, prompt: str = "") -> str | None:
    r"""`answer_box`, with the boxes that only a comma, `and` or `or` ties to the last one: `\boxed{3} and \boxed{5}` answers 3,5."""
    last, openings = answer_box(completion, prompt), list(_BOX.finditer(completion))
    if last is None or len(openings) == 1:
        return last
    found, end = [], None
    for opening in openings:
        content = _inside(completion, opening.end())
        if content is None or (end is not None and opening.start() < end):  # within the box before
            return last
        tie = "" if end is None else completion[end : opening.start()]
        if not (tie.strip(" \n\t$*.") and _TIE.fullmatch(tie)):
            found = []
        found.append(content.strip())
        end = opening.end() + len(content) + 1
    return ",".join(dict.fromkeys(found)) if len(found) > 1 else last


def _inside(text: str, start: int) -> str | None:
    depth = 1
    for brace in _BRACE.finditer(text, start):
        sign = brace[0]
        if sign == "{":
            depth += 1
        elif sign == "}":
            depth -= 1
            if depth == 0:
                return text[start : brace.start()]
    return None


def reference(cell: object) -> str | None:
    r"""The reference answer in a cell of a data set, or `None` where no completion could be right: where the cell is empty, or holds
    several answers, or is a floating-point number too large to have all its digits. One that is whole is that integer: tables turn a
    column of integers into 7.0 where a cell is empty.

    A worked solution gives what follows its final `####` (GSM8K), without commas of thousands, or what its last box holds (MATH), one
    without braces too (`\boxed 5`). A list of one, also written as text, gives its one: `["34"]`.
    """
    if isinstance(cell, list | tuple) and len(cell) == 1:
        return reference(cell[0])
    if not isinstance(cell, str | Number) or cell != cell or cell == "":  # None, a list or NaN would be compared as a word
        return None
    if isinstance(cell, float):
        if abs(cell) >= 2**53:
            return None
        cell = int(cell) if cell.is_integer() else cell
    text = str(cell)
    if one := _LIST_OF_ONE.fullmatch(text.strip()):
        return reference(one[2])
    if _LIST_OF_MORE.fullmatch(text.strip()):
        return None
    if final := _FINAL.search(text):
        text = final[1].replace(",", "") if _THOUSANDS.fullmatch(final[1]) else final[1]
    bare = _BARE_BOX.findall(text)
    return last_boxed(text) or (bare[-1].rstrip(".,;") if bare else text)


def normalize_answer(answer: str) -> str:
    r"""Write an answer in one of the ways it can be written: `\dfrac12`, `1/2`, `0.5` and `x = .5` all become `\frac{1}{2}`.

    Drops white space, `\left` and `\right`, degree, dollar and percent signs and a unit in `\text{ ...}` behind the value. After
    the rules of Hendrycks et al., "Measuring Mathematical Problem Solving With the MATH Dataset" (2021), which the paper uses.
    """
    for pattern, replacement in _REWRITES:
        answer = pattern.sub(replacement, answer)
    return answer


def tidy(answer: str) -> str:
    r"""LaTeX for what is no LaTeX: `½`, `x²`, `45°`, `2 2/3`, `12\,345`, `0.\overline{3}`, `**73**`, `42.`, `18 dollars`; without currency
    signs."""
    for pattern, replacement in _TIDY[:2]:
        answer = pattern.sub(replacement, answer)
    answer = answer.translate(_SIGNS)
    for pattern, replacement in _TIDY[2:]:
        answer = pattern.sub(replacement, answer)
    unit = _UNIT.fullmatch(answer.strip())
    return unit[1] if unit else answer.strip()


def plain(answer: str) -> str:
    r"""The bare text, for words, times of day and what no parser knows: without `\text`, Markdown, spaces and the case of letters."""
    before = None
    while before != answer:
        before, answer = answer, _WRAP.sub(r" \1 ", answer)
    answer = unicodedata.normalize("NFKC", answer).casefold()
    answer = re.sub(r"\\[,;:! ]|~|[\s$*\"'`]|\\(?:left|right)(?![a-z])", "", answer)
    return answer[1:-1] if re.fullmatch(r"\([^\W\d_]\)", answer) else answer.rstrip(".") or answer


def words(answer: str) -> list[str]:
    r"""The parts of an answer, sorted, if there are words among them, two letters or more and nothing else (`\text{Tuesday}`); else []."""
    parts = [plain(part) for part in re.split(r"[,;]|(?<!\w)(?:and|or)(?!\w)", answer)]
    return sorted(parts) if any(re.fullmatch(r"[^\W\d_](?:[^\W\d_]|-)+", part) for part in parts) else []


def is_prose(answer: str) -> bool:
    """Three words or more, and no sum or equation: a parser would take a number out of them, or multiply their letters."""
    spaced = " " + _WRAP.sub(r" \1 ", answer) + " "
    return len(_WORD.findall(spaced)) >= 3 and not _OPERATOR.search(spaced)


def is_readable(answer: str) -> bool:
    """Could a completion say this? Letters or digits, every bracket closed, and no longer than a sentence."""
    opened, closed = (sum(map(answer.count, signs)) for signs in ("([{", ")]}"))
    return opened == closed and any(map(str.isalnum, answer)) and len(answer.split()) <= 12


def _plain_digits(signs: str) -> str:
    return unicodedata.normalize("NFKC", signs).replace("−", "-")


def _periodic(found: re.Match[str]) -> str:
    whole, fixed, period = found[1], found[2], found[3] or found[4]
    above = int(whole + fixed + period) - int((whole + fixed) or 0)
    return rf"\frac{{{above}}}{{{10 ** len(fixed) * (10 ** len(period) - 1)}}}"

"""One way to write a mathematical answer: what reference and answer go through before they are
compared. Works on text alone, in time about proportional to its length."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

from retrain.rewards.math_sets import sets_and_bases
from retrain.rewards.math_words import without_unit, words_as_text

LONGEST = 2000
"""Characters of an answer or a reference; longer ones are not read."""

_GREEK = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho"
_SIGNS = {
    **dict.fromkeys("−–—‐‑﹣－", "-"),
    **dict.fromkeys("·⋅∙•", r"\cdot "),
    **dict.fromkeys("“”„″", '"'),
    **dict.fromkeys("‘’′", "'"),
    **dict.fromkeys("ℝℤℕℚℂ", ""),
    "×": r"\times ", "÷": "/", "∕": "/", "⁄": "/", "±": r"\pm ", "√": r"\sqrt ", "∞": r"\infty ",
    "°": r"^\circ ", "º": r"^\circ ", "˚": r"^\circ ", "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ",
    "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ",
    "∅": r"\emptyset ", "∖": r"\setminus ", "∣": r"\mid ", "∠": r"\angle ", "…": r"\ldots ",
    "，": ",", "；": ";", "：": ":", "（": "(", "）": ")", "¼": r"\frac{1}{4}", "½": r"\frac{1}{2}",
    "¾": r"\frac{3}{4}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "€": "", "£": "", "¥": "",
    "₹": "", "ϕ": r"\phi ", "Δ": r"\Delta ", "Σ": r"\Sigma ", "Ω": r"\Omega ", "τ": r"\tau ",
    "σ": r"\sigma ", "φ": r"\varphi ", "χ": r"\chi ", "ψ": r"\psi ", "ω": r"\omega ", "∴": "",
}  # fmt: skip
_SIGNS.update(
    {sign: f"\\mathbb{{{letter}}}" for sign, letter in zip("ℝℤℕℚℂ", "RZNQC", strict=True)}
)
_SIGNS.update(zip("αβγδεζηθικλμνξοπρ", (f"\\{name} " for name in _GREEK.split()), strict=True))
_CHARACTERS = str.maketrans(_SIGNS)
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")

_FUNCTIONS = {
    "tg": "tan", "ctg": "cot", "cotg": "cot", "cotan": "cot", "cosec": "csc", "sen": "sin",
    "arctg": "arctan", "arcctg": "arccot", "arcsen": "arcsin", "atan": "arctan", "asin": "arcsin",
    "acos": "arccos", "sh": "sinh", "ch": "cosh", "th": "tanh", "arsh": "arsinh", "arch": "arcosh",
    "arth": "artanh", "lg": "log_{10}", "lb": "log_{2}",
}  # fmt: skip
_SAME_NAME = (
    "sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh arsinh "
    "arcosh artanh arcsinh arccosh arctanh log ln exp sqrt max min gcd lcm det"
)
_FUNCTIONS.update((name, name) for name in _SAME_NAME.split())
# Without a backslash, a name of two letters is as well a product. Longer ones first.
_BARE = "|".join(
    sorted((name for name in _FUNCTIONS if len(name) > 2 or name in ("ln", "lg", "tg")), key=len)[
        ::-1
    ]
)
_TIMES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}


@lru_cache(maxsize=2**14)
def plain(text: str) -> str:
    """The same answer in one way of writing: LaTeX without the marks around it, layout, fonts,
    units, separators of thousands and other names of the same thing. Doing it again changes
    nothing that matters. A text longer than LONGEST comes back as it is."""
    if len(text) > LONGEST:
        return text
    for step in (
        _without_layout,
        _texts,
        _functions,
        _numbers,
        sets_and_bases,
        without_unit,
        words_as_text,
    ):
        # Runs of spaces cost the patterns quadratic time and more.
        text = step(_one_space(text))
    return _one_space(text)


def _one_space(text: str) -> str:
    return " ".join(text.split())


@lru_cache(maxsize=2**14)
def choice(text: str) -> tuple[str, str] | None:
    """(letter, what is said after it) when `text` is an answer to multiple choice: `C`, `(C)`,
    `\\text{C}`, `C. because`, `Answer: C`; None when it is not."""
    if len(text) > LONGEST:
        return None
    text = _without_layout(re.sub(r"\\(?:text|math)[a-z]*\s*\{([^{}]*)\}", r" \1 ", text))
    found = re.fullmatch(
        r"(?:(?i:option|choice)\s*)?(?:[(\[]\s*([A-Z])\s*[)\]](?![^\s.:]|\s*[-+*/=<>^_,|])|([A-Z])(?=[.:)]|$))"
        r"[.:)]*(.*)",
        _one_space(text),
    )
    return (found[1] or found[2], found[3].strip()) if found else None


def _without_layout(text: str) -> str:
    """Without delimiters, fonts, spaces and other marks that say how it looks."""
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+", lambda found: f"^{{{found[0].translate(_RAISED)}}}", text)
    text = re.sub("[₀₁₂₃₄₅₆₇₈₉]+", lambda found: f"_{{{found[0].translate(_LOWERED)}}}", text)
    text = _one_space(text.translate(_CHARACTERS))
    text = re.sub(r"(?<!\\)\\[()\[\]]|\\\$|\$|`|(?<!\\)\"", " ", text)
    text = re.sub(r"\\!", "", text)
    text = re.sub(
        r"(?<=\\in)\s*\\(?:mathbf|bm|boldsymbol|mathrm)\{([RZNQC])\}", r" \\mathbb{\1}", text
    )
    text = re.sub(r"(\d)\{,\}(?=\d{3}(?!\d))", r"\1", text)
    text = re.sub(r"(\d)\{,\}(?=\d)", r"\1.", text)
    text = re.sub(r"(?<=\d)(?:(?<!\\)\\[, ]|~)(?=\d{3}(?:\D|$))", "", text)
    text = re.sub(
        r"(?<!\\)\\(?:[,;:>]|\s|(?:quad|qquad|enspace|thinspace|displaystyle|textstyle|limits|nolimits"
        r"|hfill|allowbreak|[bB]ig+[lrm]?)(?![A-Za-z])|hspace\*?\{[^{}]*\})|~",
        " ",
        text,
    )
    text = _one_space(text)
    text = re.sub(r"\\(?:left|right|middle)(?![A-Za-z])\s*\.?", "", text)
    text = re.sub(r"\\(?:textcolor|color)\{[^{}]*\}\s*(?=\{)", r"\\boldsymbol", text)
    for _ in range(3):
        text = re.sub(r"\{\\(rm|bf|it)\s+([^{}]*)\}", r"\\text{\2}", text)
        text = _each(
            text,
            r"\\(?:boxed|fbox|boldsymbol|mathbf|bm|pmb|mathit|mathsf|mathnormal|underline"
            r"|ensuremath)\s*",
            lambda inside, before: (
                f"{{{inside}}}" if re.search(r"[\^_]$|\\(?:frac|sqrt)$", before) else inside
            ),
        )
    text = _ends(text)
    text = re.sub(r"^(?:the\s+)?(?:final\s+)?answer\s*(?:is\b|[:=])\s*:?", "", text, flags=re.I)
    text = re.sub(
        r"^\\text[a-z]*\s*\{\s*(?:the\s+)?(?:final\s+)?answer\s*(?:is\b|:)?\s*:?\s*\}:?",
        "",
        text,
        flags=re.I,
    )
    return _ends(text)


def _ends(text: str) -> str:
    """Without what may stand before and after the whole of an answer."""
    for _ in range(4):
        text = re.sub(
            r"^(?:=|:|\\(?:approx|sim|simeq|therefore|implies)(?![a-z])|(?:about|approximately)(?=\s)"
            r"|\\text\{\s*(?:about|approximately)\s*\})",
            "",
            text.strip(),
        )
        text = re.sub(r"(?:\\\\|(?<!\\)\\|[,;]|(?<!\.)\.)$", "", text.strip()).strip()
        for mark in ("**", "__", "*"):
            if len(text) > 2 * len(mark) and text.startswith(mark) and text.endswith(mark):
                text = text[len(mark) : -len(mark)].strip()
        if text.startswith("{") and _groups(text).get(0) == len(text):
            text = text[1:-1].strip()
    return text


def _texts(text: str) -> str:
    """Upright text as `\\text{…}` where it is words, and as what it says where it is not."""

    def one(inside: str, _: str) -> str:
        inside = _one_space(inside)
        lower = inside.lower()
        if not inside:
            return " "
        if (word := lower.strip(", ")) in ("or", "and"):
            return "\\lor " if word == "or" else ","
        if inside in ("i", "e", "d", "\\imath"):
            return inside
        if re.fullmatch("[A-Za-z]+", inside) and inside in _FUNCTIONS:
            return f"\\{inside} "
        if re.search(r"[\d\\^_=<>+]", inside):
            return f" {inside} "
        parts = re.split(r",|\b(?:and|or)\b", inside)
        return ",".join(f" \\text{{ {part.strip()} }}" if part.strip() else "" for part in parts)

    text = re.sub(r"\\math(?:bb|cal|frak|scr)\s+(?=\{)", lambda found: found[0].strip(), text)
    text = _each(
        text,
        r"\\(?:text|textbf|textit|textrm|textnormal|textsf|texttt|textup|mathrm|mbox|hbox)\s*",
        one,
    )
    text = _each(
        text,
        r"\\operatorname\*?\s*",
        lambda inside, _: (
            f"\\{name} " if (name := inside.strip()) in _FUNCTIONS else f"\\operatorname{{{name}}}"
        ),
    )
    text = _one_space(text)
    text = re.sub(
        r"(?<![A-Za-z\\])\s*,?\s*\b(or|and)\b(?![A-Za-z])",
        lambda found: "\\lor " if found[1] == "or" else ",",
        text,
    )
    text = re.sub(r"\\(?:degree|deg)(?![A-Za-z])|\^\s*\{\s*\\circ\s*\}", r"^\\circ ", text)
    text = re.sub(r"(?<=\d)\s*\^\s*(?:o(?![A-Za-z])|\{\s*o\s*\})", r"^\\circ ", text)
    text = re.sub(
        r"(?<=[\d})])\s*(?:\\text\{\s*)?degrees?\b(?:\s*\})?", r"^\\circ ", text, flags=re.I
    )
    text = re.sub(r"\s*\\?%|\s*(?:\\text\{\s*)?\b(?:percent|pct)\b(?:\s*\})?", r"\\%", text)
    text = re.sub(r"(?<=[})])\\%$", "", text)
    for name, power in _TIMES.items():
        if name in text:
            text = re.sub(
                rf"(\d)\s*(\\text\{{)?\s*{name}s?\b", rf"\1 \\times 10^{{{power}}} \2", text
            )
    return re.sub(r"\\text\{\s*\}", " ", text)


def _functions(text: str) -> str:
    """One name for each function, sign and constant, and arguments in braces."""
    text = re.sub(r"\\([A-Za-z]+)", lambda found: "\\" + _FUNCTIONS.get(found[1], found[1]), text)
    text = re.sub(
        rf"(?<![A-Za-z\\{{])({_BARE})(?=\s*[({{\[\\\d^_]|\s+[A-Za-z]\b)",
        lambda found: f"\\{_FUNCTIONS[found[1]]} ",
        text,
    )
    text = re.sub(r"(?<![A-Za-z\\{])pi(?![A-Za-z])", r"\\pi ", text)
    text = re.sub(r"(?<![A-Za-z\\])(?:infinity|inf)(?![A-Za-z])", r"\\infty ", text, flags=re.I)
    for name, others in (
        ("frac", "dfrac|tfrac|cfrac"),
        ("le", "leq|leqslant|leqq"),
        ("ge", "geq|geqslant|geqq"),
        ("ne", "neq"),
        ("{", "lbrace"),
        ("}", "rbrace"),
        ("emptyset", "varnothing"),
        ("binom", "dbinom|tbinom"),
        ("mod", "bmod"),
        ("lor", "vee"),
        ("setminus", "backslash"),
        ("cdot", "ast"),
        ("ldots", "dots|cdots"),
        ("%", "percent"),
    ):
        text = re.sub(rf"\\(?:{others})(?![A-Za-z])", lambda _, name=name: f"\\{name} ", text)  # type: ignore[misc]
    text = re.sub(
        r"(?:\{|^)([^{}]*)\\choose(?![A-Za-z])([^{}]*)(?:\}|$)", r"{\\binom{\1}{\2}}", text
    )
    text = re.sub(r"\\[lr]?[vV]ert(?![A-Za-z])", "|", text)
    text = re.sub(r"\\langle(.*)\\rangle", r"(\1)", text)
    text = re.sub(r"\\(max|min|gcd|lcm) *\\\{([^{}]*)\\\}", r"\\\1(\2)", text)
    text = re.sub(r"\\(?:imath|mathbf\{i\})(?![A-Za-z])", "i", text)
    text = re.sub(r"<=|=<|≦", r"\\le ", text)
    text = re.sub(r">=|≧", r"\\ge ", text)
    text = re.sub(r"!=", r"\\ne ", text).replace("**", "^")
    text = re.sub(r",?\s*(?:\\ldots|\.\.\.)\s*(?!\d)", lambda found: _dots(found), text)
    text = re.sub(r"\\frac\s*(\d)\s*(?=[\d{\\])", r"\\frac{\1}", text)
    text = re.sub(r"\\frac(\s*\{[^{}]*\})\s*(\d)", r"\\frac\1{\2}", text)
    text = re.sub(r"\\sqrt\s*(\d|[a-zA-Z](?![a-zA-Z]))", r"\\sqrt{\1}", text)
    text = _in_braces(_in_braces(text, r"\\sqrt\s*"), r"\^\s*")
    text = re.sub(r"\\log\s*_\s*(\d)\s*(?=\d)", r"\\log_{\1}", text)
    text = re.sub(r"([_^])\s*([+-]?\s*\d+|[A-Za-z])", r"\1{\2}", text)
    # Side by side they would be read as mixed numbers, as 3 1/2 is.
    text = re.sub(
        r"(\\binom *\{[^{}]*\} *\{[^{}]*\}) *(?=\\(?:frac|binom)|\d)", r"\1 \\cdot ", text
    )
    text = re.sub(r"(?<=\d) *(?=\{?\\binom|\((?:\\frac|\d+ */))", r" \\cdot ", text)
    return re.sub(r"(?<=[A-Za-z})])'+", lambda found: f"^{{{len(found[0])}\\prime}}", text).replace(
        "'", ""
    )


def _dots(found: re.Match[str]) -> str:
    """Dots after a decimal are kept for `_numbers`, others are left out."""
    return "..." if re.search(r"\.\d+$", found.string[: found.start()]) else " "


def _numbers(text: str) -> str:
    """Repeating decimals as fractions, 1.2e-4 as a power of ten, 2 1/3 as one number, 58,500
    without its comma."""
    text = re.sub(
        r"(?<![\d.])(\d{0,20})\.(\d{0,20})\\(?:overline|bar|dot)\s*(?:\{(\d{1,40})\}|(\d))",
        lambda found: _repeating(found[1], found[2], found[3] or found[4]),
        text,
    )
    text = re.sub(
        r"(?<![\d.])(\d{0,20})\.(\d{0,8}?)(\d{1,8}?)\3{2,20}\.\.\.",
        lambda found: _repeating(found[1], found[2], found[3]),
        text,
    ).replace("...", "")
    text = re.sub(
        r"(?<![\dA-Za-z\\_.])(\d+\.?\d*|\.\d+)[eE]([+-]?\d{1,5})(?![\d.A-Za-z_^])",
        lambda found: f"{found[1]} \\times 10^{{{int(found[2])}}}",
        text,
    )
    text = re.sub(r"(?<=\d)\s*[xX*]\s*10\s*\^", r" \\times 10^", text)
    text = re.sub(r"(?<![\d.A-Za-z])\.(?=\d)", "0.", text)
    text = re.sub(r"(?<=\d)\.(?![\d.])", "", text)
    text = re.sub(
        r"(?<![\d.,/^_A-Za-z}])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d./])",
        r"\1\\frac{\2}{\3}",
        text,
    )
    text = _outside(text, r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])", lambda t: t.replace(",", ""))
    return re.sub(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d,./ ])", _joined, text)


def _joined(found: re.Match[str]) -> str:
    return found[0].replace(" ", "")


def _repeating(whole: str, first: str, again: str) -> str:
    over = (10 ** len(again) - 1) * 10 ** len(first)
    return f"\\frac{{{int(whole + first + again) - int((whole + first) or '0')}}}{{{over}}}"


def _in_braces(text: str, command: str) -> str:
    """`command(…)` as `command{…}`, where the parentheses match."""
    parts, position, ends = [], 0, _groups(text, "()")
    for found in re.finditer(rf"{command}(?=\()", text):
        end = ends.get(found.end())
        if found.start() < position or end is None:
            continue
        inside = _in_braces(text[found.end() + 1 : end - 1], command)
        parts += [text[position : found.end()], "{", inside, "}"]
        position = end
    return "".join(parts) + text[position:]


def _each(text: str, command: str, replaced: Callable[[str, str], str]) -> str:
    """Every `command{…}` of `text` replaced by a function of what is inside and what is before."""
    parts: list[str] = []
    position, ends = 0, _groups(text)
    for found in re.finditer(rf"{command}(?=\{{)", text):
        end = ends.get(found.end())
        if found.start() < position or end is None:
            continue
        before = text[position : found.start()]
        parts += [before, replaced(text[found.end() + 1 : end - 1], before.rstrip())]
        position = end
    return "".join(parts) + text[position:]


def _outside(text: str, pattern: str, replaced: Callable[[str], str]) -> str:
    """What matches `pattern` outside all brackets, replaced."""
    parts, position, depth = [], 0, 0
    for found in re.finditer(r"[(\[{]|[)\]}]", text):
        if depth == 0:
            parts.append(
                re.sub(pattern, lambda hit: replaced(hit[0]), text[position : found.end()])
            )
        else:
            parts.append(text[position : found.end()])
        position = found.end()
        depth = max(0, depth + (1 if found[0] in "([{" else -1))
    rest = text[position:]
    return "".join(parts) + (
        re.sub(pattern, lambda hit: replaced(hit[0]), rest) if not depth else rest
    )


def _groups(text: str, brackets: str = "{}") -> dict[int, int]:
    """Where each group opens: where it has ended. Groups that never close are left out."""
    ends: dict[int, int] = {}
    waiting: list[int] = []
    for found in re.finditer(rf"\\\\.|[{re.escape(brackets)}]", text):
        if found[0] == brackets[0]:
            waiting.append(found.start())
        elif found[0] == brackets[1] and waiting:
            ends[waiting.pop()] = found.end()
    return ends

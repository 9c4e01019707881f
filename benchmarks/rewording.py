"""Right answers in other words, and wrong ones: what the `math` reward says of each.

python benchmarks/rewording.py [--references 1000] [--seed 0] [--show 3]

References of many kinds are made up, each with a wrong answer close to it. Both are worded in every
way that fits, and judged. Printed: the share of the right answers that is judged correct by way,
and the share of the wrong ones that is judged correct by kind; `--show` examples of each failure.
"""

from __future__ import annotations

import argparse
import logging
import random
import re
from collections import defaultdict
from collections.abc import Callable
from fractions import Fraction

import numpy as np

from retrain.rewards.mathematics import MathReward
from retrain.types import Completion, Problem

Made = tuple[str, str]
"""(a reference, a wrong answer)"""


def integer(draw: random.Random) -> Made:
    number = draw.choice([draw.randint(-99, 99), draw.randint(1000, 10**7)])
    return str(number), str(number + draw.choice([-1, 1, 10]))


def decimal(draw: random.Random) -> Made:
    number = draw.randint(1, 99999)
    return f"{number / 1000:g}", f"{(number + draw.choice([-10, 10])) / 1000:g}"


def fraction(draw: random.Random) -> Made:
    number = Fraction(draw.randint(-60, 60) * 7 + 1, 7 * draw.randint(1, 12))
    sign = "-" if number < 0 else ""

    def tex(value: Fraction) -> str:
        return f"{sign}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"

    return tex(number), tex(Fraction(number.numerator + number.denominator, number.denominator))


def power(draw: random.Random) -> Made:
    digits, exponent = draw.randint(11, 99) / 10, draw.randint(4, 30) * draw.choice([-1, 1])
    form = "{} \\times 10^{{{}}}"
    return form.format(digits, exponent), form.format(digits, exponent + draw.choice([-1, 1]))


def root(draw: random.Random) -> Made:
    a, b = draw.randint(2, 30), draw.choice([2, 3, 5, 7, 11])
    return f"{a}\\sqrt{{{b}}}", f"{a + 1}\\sqrt{{{b}}}"


def with_pi(draw: random.Random) -> Made:
    a, b = draw.randint(2, 40), draw.choice([3, 7, 11])
    return f"\\frac{{{a}\\pi}}{{{b}}}", f"\\frac{{{a}\\pi}}{{{b + 2}}}"


def angle(draw: random.Random) -> Made:
    a = draw.randint(1, 179)
    return f"{a}^\\circ", f"{180 - a + (a == 90)}^\\circ"


def percent(draw: random.Random) -> Made:
    a = draw.randint(1, 99)
    return f"{a}\\%", f"{a + 1}\\%"


def measured(draw: random.Random) -> Made:
    a = draw.randint(2, 999)
    unit = draw.choice([r"\text{ cm}", r"\mathrm{~cm}^{2}", r"\text { days }", r"\ \text{km/h}"])
    return f"{a}{unit}", f"{a + 1}{unit}"


def polynomial(draw: random.Random) -> Made:
    a, b = draw.randint(2, 9), draw.randint(2, 30)
    return f"x^2+{a}x-{b}", f"x^2-{a}x-{b}"


def letters(draw: random.Random) -> Made:
    big, small = draw.choice([("R", "r"), ("M", "m"), ("V", "v"), ("A", "a")])
    return f"\\frac{{{big}+{small}}}{{{big}}}", f"\\frac{{{small}+{big}}}{{{small}}}"


def interval(draw: random.Random) -> Made:
    a, b = draw.randint(-50, 0), draw.randint(1, 50)
    return f"[{a},{b})", draw.choice([f"[{a},{b}]", f"({a},{b})", f"[{a},{b + 1})"])


def pair(draw: random.Random) -> Made:
    a, b = draw.sample(range(-30, 30), 2)
    return f"({a},{b})", f"({b},{a})"


def a_set(draw: random.Random) -> Made:
    items = draw.sample(range(-99, 99), 3)
    other = [*items[1:], 100]
    return "\\{" + ",".join(map(str, items)) + "\\}", "\\{" + ",".join(map(str, other)) + "\\}"


def two(draw: random.Random) -> Made:
    a, b = draw.sample(range(-30, 30), 2)
    return f"x={a} \\text{{ or }} x={b}", f"x={a} \\text{{ or }} x={b + 31}"


def bound(draw: random.Random) -> Made:
    a = draw.randint(-30, 30)
    return f"x \\le {a}", draw.choice([f"x \\ge {a}", f"x < {a}"])


def equation(draw: random.Random) -> Made:
    a, b = draw.randint(2, 9), draw.randint(1, 9)
    return f"y={a}x+{b}", f"y={a}x-{b}"


def matrix(draw: random.Random) -> Made:
    a, b, c, d = draw.sample(range(-20, 20), 4)
    form = "\\begin{{pmatrix}}{}&{}\\\\{}&{}\\end{{pmatrix}}"
    return form.format(a, b, c, d), form.format(a, c, b, d)


def complex_number(draw: random.Random) -> Made:
    a, b = draw.randint(1, 20), draw.randint(2, 20)
    return f"{a}+{b}i", f"{a}-{b}i"


def trigonometric(draw: random.Random) -> Made:
    a = draw.randint(2, 9)
    return f"\\sin({a}x)+{a}", f"\\cos({a}x)+{a}"


def in_base(draw: random.Random) -> Made:
    digits, base = draw.randint(100, 444), draw.choice([6, 7, 8])
    return f"{digits}_{base}", draw.choice([f"{digits}_{base + 1}", str(digits)])


def words(draw: random.Random) -> Made:
    name, other = draw.sample(["Ada", "Benjamin", "Chloe", "no solution", "odd", "Friday"], 2)
    return f"\\text{{{name}}}", f"\\text{{{other}}}"


def tosses(draw: random.Random) -> Made:
    made = [draw.choice("HT") for _ in range(5)]
    other = draw.sample(made, 5)
    return "".join(made), "".join(other) if other != made else "".join(made) + "H"


KINDS: tuple[Callable[[random.Random], Made], ...] = (
    integer, decimal, fraction, power, root, with_pi, angle, percent, measured, polynomial, letters,
    interval, pair, a_set, two, bound, equation, matrix, complex_number, trigonometric, in_base,
    words, tosses,
)  # fmt: skip

_IS_VALUE = re.compile(r"[-\d./]+|-?\\frac\{\d+\}\{\d+\}|.*\\(?:sqrt|pi|times).*")
_UNICODE = (
    ("-", "−"), ("\\pi", "π"), ("\\infty", "∞"), ("^\\circ", "°"), ("\\le", "≤"), ("\\ge", "≥"),
    ("\\times", "×"), ("^2", "²"),
)  # fmt: skip


def in_unicode(text: str) -> str:
    for command, sign in _UNICODE:
        text = text.replace(command, sign)
    return text


def with_commas(text: str) -> str:
    return f"{int(text):,}" if re.fullmatch(r"-?\d{4,}", text) else text


def mixed(text: str) -> str:
    found = re.fullmatch(r"(-?)\\frac\{(\d+)\}\{(\d+)\}", text)
    if not found or int(found[2]) < int(found[3]) or found[3] == "1":
        return text
    whole, rest = divmod(int(found[2]), int(found[3]))
    return f"{found[1]}{whole} {rest}/{found[3]}"


def on_value(form: str) -> Callable[[str], str]:
    return lambda text: form.format(text) if _IS_VALUE.fullmatch(text) else text


def each(form: str) -> Callable[[str], str]:
    return lambda text: form.format(text)


WAYS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "trailing period": each("{}."),
    "trailing ~": each("{}~"),
    "trailing \\ ": each("{}\\ "),
    "\\[ \\]": each("\\[ {} \\]"),
    "\\( \\)": each("\\( {} \\)"),
    "$ $": each("${}$"),
    "** **": each("**{}**"),
    "\\boldsymbol": each("\\boldsymbol{{{}}}"),
    "\\displaystyle": each("\\displaystyle {}"),
    "\\boxed in it": each("\\boxed{{{}}}"),
    "= before": each("= {}"),
    "Answer: before": each("\\text{{Answer: }}{}"),
    "\\approx before": on_value("\\approx {}"),
    "x = before": on_value("x = {}"),
    "\\text{7 units}": on_value("\\text{{{} units}}"),
    "7 dollars": on_value("{} dollars"),
    "7 cm^2": on_value("{} cm^2"),
    "7 \\text { days }": on_value("{} \\text {{ days }}"),
    "7(\\mathrm{~cm}^{2})": on_value("{}\\left(\\mathrm{{~cm}}^{{2}}\\right)"),
    "\\$7": on_value("\\${}"),
    "unicode": in_unicode,
    "58,500": with_commas,
    "2 1/3": mixed,
    "\\dfrac": lambda text: text.replace("\\frac", "\\dfrac"),
    "a/b": lambda text: re.sub(r"\\frac\{(\d+)\}\{(\d+)\}", r"\1/\2", text),
    "spaces": lambda text: re.sub(r"(?<!\\)([,+=)])", r" \1 ", text),
    "\\left \\right": lambda text: re.sub(
        r"(\\[{}]|[\[\]()])", lambda b: ("\\left" if b[0][-1] in "{[(" else "\\right") + b[0], text
    ),
    "\\mathrm{i}": lambda text: re.sub(r"i$", r"\\mathrm{i}", text),
    "[1 ; 2]": lambda text: re.sub(r"^([\[(].*),(.*)$", r"\1 ; \2", text),
    "1.2e-4": lambda text: re.sub(r" \\times 10\^\{(-?\d+)\}", r"e\1", text),
    "without \\text": lambda text: re.sub(r"\\text\{([A-Za-z ]+)\}$", r"\1", text),
    "in \\text": lambda text: f"\\text{{{text}}}" if re.fullmatch("[A-Za-z]+", text) else text,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--references", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=3)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    draw = random.Random(arguments.seed)
    asked: list[tuple[bool, str, str, str, str]] = []
    for number in range(arguments.references):
        kind = KINDS[number % len(KINDS)]
        reference, wrong = kind(draw)
        for name, way in WAYS.items():
            for right, text in ((True, reference), (False, wrong)):
                if name == "as it is" or way(text) != text:
                    asked.append((right, kind.__name__, name, reference, way(text)))
    with MathReward() as reward:
        waiting = [
            reward.begin(
                Problem("p", "?", reference),
                Completion(np.zeros(1, np.int64), np.zeros(1), f"So \\boxed{{{answer}}}", "stop"),
            )
            for *_, reference, answer in asked
        ]
        outcomes = [score.outcome if (score := wait()) else "" for wait in waiting]
    tables: dict[tuple[bool, str], list[int]] = defaultdict(lambda: [0, 0])
    failures: dict[tuple[bool, str], list[str]] = defaultdict(list)
    for (right, kind_name, way_name, reference, answer), outcome in zip(
        asked, outcomes, strict=True
    ):
        row = (right, way_name if right else kind_name)
        tables[row][0] += outcome == "correct"
        tables[row][1] += 1
        if (outcome == "correct") != right:
            failures[row].append(f"{reference}  <-  {answer}  ({outcome})")
    for wanted, title in ((True, "right answers judged correct"), (False, "wrong ones so judged")):
        print(f"{title}, of {sum(table[1] for row, table in tables.items() if row[0] == wanted)}")
        for row, (correct, count) in tables.items():
            if row[0] == wanted:
                print(f"  {row[1]:<24}{correct:>6} of {count:<6}{correct / count:>8.1%}")
                for line in failures[row][: arguments.show]:
                    print(f"      {line}")


if __name__ == "__main__":
    main()

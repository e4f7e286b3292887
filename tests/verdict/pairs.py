"""Pairs of answers whose equality is known from how they are made: every class, half of them unequal, by seed.

    python tests/verdict/pairs.py --count 20000 --seed 1 > pairs.jsonl
"""

import argparse
import json
import math
import random
from fractions import Fraction


def frac(r, value, style=None):
    """A fraction as LaTeX or plain text."""
    value = Fraction(value)
    n, d = value.numerator, value.denominator
    if d == 1:
        return str(n)
    sign, n = ("-", -n) if n < 0 else ("", n)
    style = style or r.choice(["frac", "dfrac", "plain", "inside"])
    if style == "plain":
        return f"{sign}{n}/{d}"
    if style == "inside" and sign:
        return f"\\frac{{-{n}}}{{{d}}}"
    name = "dfrac" if style == "dfrac" else "frac"
    return f"{sign}\\{name}{{{n}}}{{{d}}}"


def rational(r):
    return Fraction(r.randint(-30, 30) or 1, r.randint(2, 12))


def decimal(value, digits):
    whole = abs(value) * 10**digits
    assert whole.denominator == 1
    text = str(whole.numerator).rjust(digits + 1, "0")
    sign = "-" if value < 0 else ""
    return f"{sign}{text[:-digits]}.{text[-digits:]}"


def integers(r, equal):
    digits = r.choice([1, 2, 3, 5, 12, 30])
    n = r.randint(-(10**digits), 10**digits)
    other = n if equal else n + r.choice([-10, -1, 1, 2, 10**(digits - 1)])
    forms = [str(other), f"+{other}" if other > 0 else str(other), f"{other}.0", f"{{{other}}}", f" {other} "]
    return str(n), r.choice(forms)


def decimals(r, equal):
    digits = r.randint(1, 6)
    value = Fraction(r.randint(-10**(digits + 2), 10**(digits + 2)), 10**digits)
    other = value if equal else value + Fraction(r.choice([-1, 1, 5]), 10**digits)
    text = decimal(other, digits)
    return frac(r, value), r.choice([text, text + "0", decimal(other, digits + 2)])


def fractions(r, equal):
    value = rational(r)
    other = value if equal else r.choice([value + 1, -value, 1 / value if abs(value) != 1 else value + 2, value + Fraction(1, 7)])
    k = r.randint(2, 5)
    n, d = other.numerator, other.denominator
    forms = [frac(r, other), f"\\frac{{{n * k}}}{{{d * k}}}", f"{n * k}/{d * k}"]
    return frac(r, value), r.choice(forms)


def mixed(r, equal):
    whole, d = r.randint(1, 20), r.randint(2, 9)
    n = r.randint(1, d - 1)
    value = whole + Fraction(n, d)
    other = value if equal else value + r.choice([1, Fraction(1, d), -whole])
    form = r.choice([f"{whole}\\frac{{{n}}}{{{d}}}", f"{whole} \\frac{{{n}}}{{{d}}}"])
    return (form, frac(r, other, "frac")) if r.random() < 0.5 else (frac(r, other, "frac"), form)


def percent(r, equal):
    p = r.randint(1, 400)
    q = p if equal else p + r.choice([1, 10, 100])
    gold = f"{p}\\%"
    return gold, r.choice([f"{q}\\%", f"{q} \\%", frac(r, Fraction(q, 100)), decimal(Fraction(q, 100), 2), f"{q}.0\\%"])


def scientific(r, equal):
    m, e = r.randint(11, 99), r.randint(-6, 9)
    value = Fraction(m, 10) * Fraction(10) ** e
    f = e if equal else e + r.choice([1, -1])
    forms = [f"{m / 10} \\times 10^{{{f}}}", f"{m / 10}\\cdot 10^{{{f}}}", f"{m / 10} \\times 10^{{{f}}}"]
    gold = str(value) if value.denominator == 1 else frac(r, value)
    return gold, r.choice(forms)


def thousands(r, equal):
    n = r.randint(1000, 10**9)
    m = n if equal else n + r.choice([1, 1000, 100000])
    text = f"{m:,}"
    return str(n), r.choice([text, text.replace(",", "{,}"), text.replace(",", "\\,"), text.replace(",", ",\\!")])


def currency(r, equal):
    n = Fraction(r.randint(1, 99999), 100)
    m = n if equal else n + r.choice([1, Fraction(1, 100), 10])
    return decimal(n, 2), r.choice([f"\\${decimal(m, 2)}", f"{decimal(m, 2)} \\text{{ dollars}}", f"\\$ {decimal(m, 2)}"])


UNITS = ["cm", "m", "km", "kg", "g", "miles", "hours", "minutes", "feet", "inches", "liters", "points", "students", "cm^2", "m^3"]


def units(r, equal):
    n, unit = r.randint(1, 500), r.choice(UNITS)
    name, power = (unit.split("^") + [""])[:2]
    power = f"^{power}" if power else ""
    if equal:
        return str(n), r.choice([f"{n}\\text{{ {name}}}{power}", f"{n} \\text{{{name}}}{power}", f"{n}\\mathrm{{ {name}}}{power}"])
    return str(n), f"{n + r.randint(1, 9)}\\text{{ {name}}}{power}"


def roots(r, equal):
    k, n = r.randint(2, 9), r.choice([2, 3, 5, 6, 7, 10, 11])
    other = k if equal else k + 1
    gold = f"\\sqrt{{{k * k * n}}}"
    forms = [f"{other}\\sqrt{{{n}}}", f"{other} \\sqrt{n if n < 10 else '{' + str(n) + '}'}", f"{other * n}/\\sqrt{{{n}}}",
             f"\\frac{{{other * n}}}{{\\sqrt{{{n}}}}}", f"{other}\\cdot {n}^{{1/2}}"]
    return (gold, r.choice(forms))


def nested(r, equal):
    a, b = r.randint(1, 6), r.choice([2, 3, 5, 7])
    # (a + sqrt b)^2 = a^2 + b + 2a sqrt b
    c = a * a + b + (0 if equal else r.choice([1, -1]))
    forms = [(f"\\sqrt{{{c}+{2 * a}\\sqrt{{{b}}}}}", f"{a}+\\sqrt{{{b}}}"), (f"\\frac{{1}}{{\\sqrt{{{b}}}+{a}}}", f"\\frac{{{a}-\\sqrt{{{b}}}}}{{{a * a - b + (0 if equal else 1)}}}")]
    if a * a - b + (0 if equal else 1) == 0 or a * a == b:
        return forms[0]
    return r.choice(forms)


def powers(r, equal):
    b, e = r.randint(2, 9), r.randint(2, 12)
    f = e if equal else e + 1
    return r.choice([(str(b**e), f"{b}^{{{f}}}"), (f"{b}^{{{2 * e}}}", f"{b * b}^{{{f}}}"), (f"{b}^{{-{e}}}", f"\\frac{{1}}{{{b**f}}}")])


def trigonometry(r, equal):
    table = [("\\sin\\frac{\\pi}{6}", "\\frac{1}{2}"), ("\\cos\\frac{\\pi}{4}", "\\frac{\\sqrt{2}}{2}"), ("\\tan\\frac{\\pi}{3}", "\\sqrt{3}"),
             ("\\cos\\frac{\\pi}{12}", "\\frac{\\sqrt{6}+\\sqrt{2}}{4}"), ("\\sin^2 x", "1-\\cos^2 x"), ("\\sin 2x", "2\\sin x\\cos x"),
             ("\\cos 2x", "1-2\\sin^2 x"), ("\\tan^2 x+1", "\\frac{1}{\\cos^2 x}"), ("\\arctan 1", "\\frac{\\pi}{4}"), ("\\arcsin\\frac{1}{2}", "\\frac{\\pi}{6}"),
             ("\\sin(a+b)", "\\sin a\\cos b+\\cos a\\sin b"), ("\\cos\\frac{2\\pi}{5}", "\\frac{\\sqrt{5}-1}{4}")]
    left, right = r.choice(table)
    if not equal:
        right = r.choice([f"{right}+{r.randint(1, 9)}", f"-\\left({right}\\right)", f"{r.randint(2, 5)}\\left({right}\\right)"])
    k = r.randint(2, 9)
    return (f"{k}{left}", f"{k}\\left({right}\\right)") if r.random() < 0.5 and left[0] == "\\" and "+" not in left else (left, right)


def logarithms(r, equal):
    b, e = r.choice([2, 3, 5, 7]), r.randint(2, 6)
    other = e if equal else e + 1
    return r.choice([(f"\\log_{b} {{{b**e}}}", str(other)), (f"\\log_{{{b}}}{{{b**e}}}", str(other)), (f"\\ln {b**e}", f"{other}\\ln {b}"),
                     (f"\\ln({b * 11})", f"\\ln {b}+\\ln {11 if equal else 13}"), (f"e^{{{e}}}", f"e^{{{other}}}"), (f"\\log_{b} 11", f"\\frac{{\\ln {11 if equal else 12}}}{{\\ln {b}}}")])


def constants(r, equal):
    k, d = r.randint(1, 12), r.randint(2, 9)
    other = k if equal else k + 1
    return r.choice([(f"\\frac{{{k}\\pi}}{{{d}}}", f"\\frac{{{other}}}{{{d}}}\\pi"), (f"{k}\\pi", f"{other}\\pi"), (f"\\frac{{{k}e}}{{{d}}}", f"\\frac{{{other}}}{{{d}}}e"),
                     (f"{k}\\pi+{d}", f"{d}+{other}\\pi")])


def absolute(r, equal):
    n = r.randint(1, 50)
    other = n if equal else n + 1
    return r.choice([(f"\\left|-{n}\\right|", str(other)), (str(n), f"|{-other}|"), ("\\sqrt{x^2}", "|x|" if equal else "x"), (f"|x-{n}|", f"|{other}-x|")])


def counting(r, equal):
    n, k = r.randint(4, 12), r.randint(2, 4)
    add = 0 if equal else 1
    return r.choice([(str(math.factorial(n) + add), f"{n}!"), (str(math.comb(n, k) + add), f"\\binom{{{n}}}{{{k}}}"),
                     (str(n * (n - 1) + add), f"\\frac{{{n}!}}{{{n - 2}!}}")])


def monomial(c, powers, names):
    text = "".join(f"{v}^{{{p}}}" if p > 1 else v for v, p in zip(names, powers) if p)
    if not text:
        return str(c)
    return {1: text, -1: "-" + text}.get(c, f"{c}{text}")


def spelled(terms, names):
    text = ""
    for powers, c in terms:
        if c:
            t = monomial(c, powers, names)
            text += t if not text or t.startswith("-") else "+" + t
    return text or "0"


def multiply(a, b):
    out = {}
    for p, c in a.items():
        for q, d in b.items():
            key = tuple(x + y for x, y in zip(p, q))
            out[key] = out.get(key, 0) + c * d
    return out


def polynomials(r, equal):
    names = r.choice([["x"], ["x"], ["a", "b"], ["x", "y", "z"], ["t"], ["n"]])
    def factor():
        out = {}
        for _ in range(2):
            powers = tuple(r.randint(0, 2) for _ in names)
            out[powers] = out.get(powers, 0) + (r.randint(-6, 6) or 1)
        return out
    parts = [factor() for _ in range(r.randint(1, 3))]
    product = {tuple(0 for _ in names): 1}
    for part in parts:
        product = multiply(product, part)
    terms = list(product.items())
    if not equal:
        i = r.randrange(len(terms))
        terms[i] = (terms[i][0], terms[i][1] + r.choice([-1, 1]))
    r.shuffle(terms)
    shown = "".join(f"({spelled(list(p.items()), names)})" for p in parts)
    return shown, spelled(terms, names)


def quotients(r, equal):
    a, b, c = r.randint(1, 6), r.randint(-6, 6), r.randint(1, 5)
    other = c if equal else c + 1
    forms = [(f"\\frac{{x^2-{a * a}}}{{x-{a}}}", f"x+{a if equal else a + 1}"), (f"\\frac{{1}}{{x}}+\\frac{{{c}}}{{y}}", f"\\frac{{y+{other}x}}{{xy}}"),
             (f"\\frac{{x+{c}}}{{{a + 1}}}", f"\\frac{{x}}{{{a + 1}}}+\\frac{{{other}}}{{{a + 1}}}"), (f"\\frac{{n(n+1)}}{{2}}", "\\frac{n^2+n}{2}" if equal else "\\frac{n^2-n}{2}")]
    return r.choice(forms)


def assignments(r, equal):
    value = rational(r)
    other = value if equal else value + 1
    name = r.choice("xyzkn")
    gold = r.choice([f"{name}={frac(r, value)}", frac(r, value)])
    return gold, r.choice([f"{name} = {frac(r, other)}", f"{name}={frac(r, other)}"])


def equations(r, equal):
    a, b, c = r.randint(1, 9), r.randint(1, 9), r.randint(-20, 20)
    k = r.choice([2, 3, -1, -2])
    d = c if equal else c + 1
    other = r.choice([f"{a * k}x{b * k:+d}y={d * k}", f"y=-\\frac{{{a}}}{{{b}}}x{Fraction(d, b) if d < 0 else '+' + str(Fraction(d, b))}", f"{b}y={d}-{a}x"])
    return f"{a}x+{b}y={c}", other


def interval(r):
    a = r.randint(-20, 20)
    return a, a + r.randint(1, 20), r.choice("(["), r.choice(")]")


def intervals(r, equal):
    a, b, left, right = interval(r)
    gold = f"{left}{a},{b}{right}"
    if equal:
        return gold, f"\\left{left}{r.choice([str(a), f'{a}.0'])}, {b}\\right{right}"
    return gold, r.choice([f"{left}{a}, {b + 1}{right}", f"{'[' if left == '(' else '('}{a},{b}{right}"])


def unions(r, equal):
    a, b, left, right = interval(r)
    gold = f"(-\\infty,{a}{']' if left == '[' else ')'}\\cup {left if left == '[' else '('}{b},\\infty)"
    c = b if equal else b + 1
    return gold, f"{'[' if left == '[' else '('}{c},\\infty)\\cup(-\\infty,{a}{']' if left == '[' else ')'}"


def inequalities(r, equal):
    a, b, left, right = interval(r)
    lower, upper = ("<" if left == "(" else "\\le"), ("<" if right == ")" else "\\leq")
    c = b if equal else b + 1
    return r.choice([(f"{left}{a},{b}{right}", f"{a}{lower} x{upper} {c}"), (f"x>{a}", f"{a if equal else a + 1}<x"), (f"x\\ge {a}", f"[{a if equal else a + 1},\\infty)"),
                     (f"x < {a}", f"-x > {-a if equal else -a + 1}")])


def sets(r, equal):
    items = r.sample(range(-20, 40), r.randint(2, 5))
    other = items[:]
    r.shuffle(other)
    if not equal:
        other[0] += 100
    return "\\{" + ",".join(map(str, items)) + "\\}", r.choice(["\\{" + ", ".join(map(str, other)) + "\\}", ", ".join(map(str, other))])


def tuples(r, equal):
    items = [rational(r) for _ in range(r.randint(2, 4))]
    other = items[:]
    if not equal:
        if r.random() < 0.5 and items[0] != items[1]:
            other[0], other[1] = other[1], other[0]
        else:
            other[-1] += 1
    return "(" + ",".join(frac(r, i) for i in items) + ")", "\\left(" + ", ".join(frac(r, i) for i in other) + "\\right)"


def matrices(r, equal):
    rows, columns = r.randint(1, 3), r.randint(1, 3)
    if rows * columns == 1:
        rows = 2
    cells = [[r.randint(-9, 9) for _ in range(columns)] for _ in range(rows)]
    other = [row[:] for row in cells]
    if not equal:
        other[r.randrange(rows)][r.randrange(columns)] += 1
    def spell(cells, kind):
        return f"\\begin{{{kind}}}" + "\\\\".join(" & ".join(map(str, row)) for row in cells) + f"\\end{{{kind}}}"
    return spell(cells, "pmatrix"), spell(other, r.choice(["pmatrix", "bmatrix"]))


def plus_minus(r, equal):
    a, n = r.randint(1, 9), r.choice([2, 3, 5, 7, 19])
    b = n if equal else n + 1
    gold = f"{a}\\pm\\sqrt{{{n}}}"
    return gold, r.choice([f"{a}+\\sqrt{{{b}}},{a}-\\sqrt{{{b}}}", f"{a} \\pm \\sqrt{{{b}}}", f"\\{{{a}-\\sqrt{{{b}}},{a}+\\sqrt{{{b}}}\\}}"])


def infinity(r, equal):
    gold = r.choice(["\\infty", "-\\infty"])
    if equal:
        return gold, gold.replace("\\infty", " \\infty") if gold[0] == "-" else r.choice(["+\\infty", "\\infty"])
    return gold, r.choice(["-\\infty" if gold[0] != "-" else "\\infty", "0", "1000"])


def complexes(r, equal):
    a, b = r.randint(-9, 9) or 1, r.randint(1, 9)
    c = b if equal else b + 1
    return r.choice([(f"{a}+{b}i", f"{c}i{a:+d}"), (f"({a}+i)^2", f"{a * a - 1}{2 * a + (0 if equal else 1):+d}i"), (f"\\frac{{1}}{{{b}i}}", f"-\\frac{{i}}{{{c}}}"),
                     ("\\sqrt{-%d}" % (b * b), f"{c}i"), (f"e^{{i\\pi}}", "-1" if equal else "1")])


WORDS = ["red", "blue", "circle", "triangle", "Evelyn", "Monday", "even", "odd", "ellipse", "light blue", "not possible", "acute angle"]


def texts(r, equal):
    word = r.choice(WORDS)
    other = word if equal else r.choice([w for w in WORDS if w != word])
    return f"\\text{{{word}}}", r.choice([f"\\text{{{other}}}", f"\\text{{{other.capitalize()}}}", f"\\textbf{{{other}}}"])


def choices(r, equal):
    letter = r.choice("ABCDE")
    other = letter if equal else r.choice([c for c in "ABCDE" if c != letter])
    return r.choice([letter, f"\\text{{{letter}}}"]), r.choice([f"\\text{{({other})}}", other, f"\\textbf{{{other}}}", f"({other})"])


CLASSES = [integers, decimals, fractions, mixed, percent, scientific, thousands, currency, units, roots, nested, powers, trigonometry, logarithms,
           constants, absolute, counting, polynomials, quotients, assignments, equations, intervals, unions, inequalities, sets, tuples, matrices,
           plus_minus, infinity, complexes, texts, choices]


def pairs(count, seed):
    """As many pairs, evenly over the classes, half of them unequal."""
    r = random.Random(seed)
    for index in range(count):
        make = CLASSES[index % len(CLASSES)]
        equal = (index // len(CLASSES)) % 2 == 0
        gold, answer = make(r, equal)
        yield {"class": make.__name__, "gold": gold, "answer": answer, "equal": equal}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    for pair in pairs(arguments.count, arguments.seed):
        print(json.dumps(pair, ensure_ascii=False))


if __name__ == "__main__":
    main()

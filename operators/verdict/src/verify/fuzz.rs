//! Random inputs: none may panic, equality is reflexive and symmetric. The generator is seeded, so that a failure comes
//! back; `cargo test --release -p operators-verdict -- --ignored` tries ten million.

use super::super::*;

/// What inputs are made of.
const PIECES: &[&str] = &[
    "0",
    "1",
    "2",
    "7",
    "10",
    "123",
    "0.5",
    ".",
    ",",
    "1,000",
    "1e3",
    "%",
    "\\%",
    "$",
    "\\$",
    "x",
    "y",
    "n",
    "e",
    "i",
    "f(",
    "\\pi",
    "xy",
    "cm",
    " m",
    "\\text{",
    "\\text{ cm}",
    "\\mathrm{d}",
    "apples",
    "and",
    " or ",
    "A",
    "(B)",
    "+",
    "-",
    "*",
    "/",
    "^",
    "^{",
    "^2",
    "_",
    "_{1}",
    "_2",
    "!",
    "!!",
    "'",
    "=",
    "<",
    ">",
    "\\le",
    "\\neq",
    "\\approx",
    "\\in",
    "\\mathbb{R}",
    "\\cup",
    "\\cap",
    "\\setminus",
    "\\emptyset",
    "\\infty",
    "\\pm",
    "\\mp",
    "\\frac",
    "\\frac{1}{2}",
    "\\dfrac12",
    "\\sqrt",
    "\\sqrt{2}",
    "\\sqrt[3]{",
    "\\binom{5}{2}",
    "{",
    "}",
    "(",
    ")",
    "[",
    "]",
    "\\{",
    "\\}",
    "|",
    "\\left(",
    "\\right)",
    "\\left|",
    "\\langle",
    "\\rangle",
    "\\lfloor",
    "\\rfloor",
    "\\begin{pmatrix}",
    "\\begin{cases}",
    "\\end{pmatrix}",
    "&",
    "\\\\",
    ":",
    ";",
    " ",
    "\\,",
    "\\sin",
    "\\cos^{-1}",
    "\\log_2",
    "\\ln",
    "\\arctan",
    "|x|",
    "\\gcd",
    "\\max\\{",
    "^\\circ",
    "\u{b0}",
    "\u{221a}",
    "\u{e9}",
    "\u{2212}",
    "\u{202e}",
    "\u{1d7d9}",
    "\\",
    "\0",
    "\\overline{3}",
    "\\boxed{",
    "<answer>",
    "</answer>",
    "9^9^9",
    "10^{100}",
    "99999999999999999999",
    "NaN",
    "inf",
    "0^0",
    "1/0",
];

/// A small generator of random numbers (xorshift).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit
    }
}

fn text(random: &mut Random) -> String {
    let most = if random.below(20) == 0 { 60 } else { 9 };
    let count = 1 + random.below(most);
    let mut text = String::new();
    for _ in 0..count {
        text.push_str(PIECES[random.below(PIECES.len())]);
    }
    // Half of them have their brackets closed, so that more of them are read.
    if random.below(2) == 0 {
        let mut open = Vec::new();
        for letter in text.chars() {
            match letter {
                '{' => open.push('}'),
                '(' => open.push(')'),
                '[' => open.push(']'),
                '}' | ')' | ']' => {
                    open.pop();
                }
                _ => {}
            }
        }
        text.extend(open.into_iter().rev());
    }
    text
}

/// Tries so many inputs; gives how many were judged, and how many of those were `timed-out`.
fn try_inputs(count: u64, seed: u64) -> (u64, u64) {
    let math: VerifyConfig = VerifyConfig::Math(MathOptions::default());
    let mut random = Random(seed);
    let (mut judged, mut timed_out) = (0, 0);
    let mut other = String::from("1");
    for _ in 0..count {
        let text = text(&mut random);
        let Ok(gold) = math.prepare(&text) else {
            continue;
        };
        judged += 1;
        let same = math.compared(&gold, &text).0;
        assert!(
            matches!(same, Outcome::Correct | Outcome::TimedOut),
            "{text:?} is not itself"
        );
        let forth = math.compared(&gold, &other).0;
        timed_out += u64::from(forth == Outcome::TimedOut);
        if let Ok(gold) = math.prepare(&other) {
            let back = math.compared(&gold, &text).0;
            assert!(
                forth == back || forth == Outcome::TimedOut || back == Outcome::TimedOut,
                "{text:?} and {other:?}: {forth:?}, the other way {back:?}"
            );
        }
        if random.below(4) == 0 {
            other = text;
        }
    }
    (judged, timed_out)
}

#[test]
fn random_inputs_do_no_harm() {
    let (judged, timed_out) = try_inputs(20_000, 0x9e37_79b9_7f4a_7c15);
    assert!(judged > 2_000, "{judged}");
    assert!(timed_out < judged / 10, "{timed_out} of {judged}");
}

#[test]
#[ignore = "takes many minutes"]
fn ten_million_inputs_do_no_harm() {
    let (mut judged, mut timed_out) = (0, 0);
    for round in 0..100 {
        let (more, late) = try_inputs(100_000, 0xd1b5_4a32_d192_ed03 + round);
        judged += more;
        timed_out += late;
        println!(
            "{} inputs, {judged} judged, {timed_out} timed out",
            (round + 1) * 100_000
        );
    }
}

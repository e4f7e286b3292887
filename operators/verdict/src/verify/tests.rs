//! Cases with their origin: what a checker must get right before a training run may lean on it.

use super::*;

#[path = "fuzz.rs"]
mod fuzz;

fn math() -> VerifyConfig {
    VerifyConfig::Math(MathOptions::default())
}

fn outcome(gold: &str, answer: &str) -> Outcome {
    math()
        .verdict(
            gold,
            &format!("<think>t</think><answer>\\boxed{{{answer}}}</answer>"),
        )
        .outcome
}

/// The judgement of an answer that stands alone.
fn bare(gold: &str, answer: &str) -> Outcome {
    let gold = math().prepare(gold).unwrap();
    math().judge_answer(&gold, answer).0
}

/// Equal pairs: gold, answer, where such a pair comes from.
const EQUAL: &[(&str, &str, &str)] = &[
    ("12", "12", "arithmetic pictures"),
    ("12", " 12 ", "spaces of a sampler"),
    ("007", "7", "read digits: leading zeros"),
    ("-3", "- 3", "sign with a space"),
    ("-3", "\u{2212}3", "Unicode minus"),
    ("5", "+5", "explicit sign"),
    ("0", "-0", "signed zero"),
    ("0.5", "1/2", "decimal and fraction"),
    (".5", "0.50", "bare point, trailing zeros"),
    ("5", "5.", "full stop after an integer"),
    ("\\frac{3}{4}", "0.75", "LaTeX fraction"),
    ("\\dfrac{3}{4}", "\\tfrac34", "spelling of fractions"),
    ("-\\frac{1}{2}", "\\frac{-1}{2}", "where the sign stands"),
    ("\\frac{6}{8}", "3/4", "not in lowest terms"),
    ("2\\frac{1}{2}", "2.5", "mixed number in LaTeX"),
    ("2 1/2", "5/2", "mixed number in plain text"),
    (
        "-1\\frac{1}{2}",
        "-1.5",
        "the sign covers the whole mixed number",
    ),
    ("1234567", "1,234,567", "thousands with commas"),
    ("1234567", "1{,}234{,}567", "thousands in LaTeX"),
    ("12345.6", "12\\,345.6", "thousands with thin spaces"),
    ("50%", "0.5", "percent"),
    ("50\\%", "\\frac12", "percent in LaTeX"),
    ("12 percent", "12%", "percent in words"),
    ("1e3", "1000", "exponent"),
    ("1.5\\times 10^{3}", "1500", "scientific in LaTeX"),
    ("1.5 \\cdot 10^3", "1500", "scientific without braces"),
    ("2\\times10^{-2}", "0.02", "negative exponent"),
    ("$12$", "12", "math delimiters around the gold answer"),
    ("12", "\\(12\\)", "LaTeX delimiters"),
    ("$5", "5", "currency"),
    ("\\$1,250.50", "1250.5", "currency in LaTeX"),
    ("12", "12\\text{ cm}", "unit in a text command"),
    ("12", "12 cm", "plain unit"),
    ("12", "12cm", "plain unit without a space"),
    ("12 apples", "12", "unit in the gold answer"),
    ("12 apples", "12 apple", "plural"),
    ("12 cm^2", "12\\text{cm}^{2}", "squared unit"),
    ("90", "90^\\circ", "degrees in LaTeX"),
    ("90", "90\u{b0}", "degree sign"),
    ("5", "x = 5", "assignment"),
    ("x=5", "5", "assignment in the gold answer"),
    (
        "\\left(1, 2\\right)",
        "(1,2)",
        "brackets that size themselves",
    ),
    ("circle", "Circle", "text answers: case"),
    ("light blue", "\\text{light  blue}", "text answers: spacing"),
    ("B", "(B)", "multiple choice with brackets"),
    ("B", "\\text{(b)}", "multiple choice in LaTeX"),
    ("B", "B.", "multiple choice with a full stop"),
    ("\\sqrt{2}", "\\sqrt{ 2 }", "spacing inside braces"),
    ("x+1", "x + 1", "spacing around an operator"),
    ("1, 2", "1,2", "list"),
    ("12", "\\text{12}", "number in a text command"),
    ("12", "\\mathbf{12}", "number in bold"),
    ("12", "\\text{x = 12}", "assignment in a text command"),
    ("circle", "\"circle.\"", "quotation marks"),
    ("5 m/s", "5\\text{ m / s}", "unit with a stroke"),
    ("5", "5\\text{ V}", "unit of one letter"),
];

/// Unequal pairs: gold, answer, where such a pair comes from.
const UNEQUAL: &[(&str, &str, &str)] = &[
    ("12", "21", "digits swapped"),
    ("12", "12.0001", "close is not equal"),
    ("1/3", "0.333", "rounded"),
    ("0.5", "0.5%", "percent is not left out"),
    ("5", "-5", "sign"),
    ("5", "5x", "a variable is no unit"),
    ("5", "5 x", "a variable is no unit, apart"),
    ("5", "5\\pi", "a constant is no unit"),
    ("5", "5 pi", "a constant in words"),
    ("5", "5i", "imaginary"),
    ("5", "5 million", "a multiplier is no unit"),
    ("5", "5\\text{ million}", "a multiplier in a text command"),
    ("5", "5 or 6", "hedging"),
    ("5", "5 and 6", "hedging"),
    ("5", "5, 6", "two answers"),
    ("5", "5!", "factorial"),
    ("5", "5^2", "power"),
    ("5", "5+1", "sum"),
    ("5", "5/0", "division by zero"),
    ("5 cm", "5 m", "other unit"),
    ("20\u{b0}C", "20\u{b0}F", "other temperature scale"),
    ("101", "101_2", "other base"),
    ("1234", "1,23,4", "no thousands"),
    ("123", "0,123", "decimal comma"),
    ("12", "1 2", "spaces are not thousands"),
    ("(1,2)", "(2,1)", "ordered pair"),
    ("1,2", "12", "a list is not a number"),
    ("circle", "rectangle", "text answers"),
    ("A", "B", "multiple choice"),
    ("A", "A and B", "multiple choice: hedging"),
    ("5", "the answer is 5", "prose in the box"),
    ("2\\frac{1}{2}", "21/2", "mixed number run together"),
    ("8.5", "5\\frac{7}{2}", "a product, not a mixed number"),
    (
        "1.5",
        "2\\frac{-1}{2}",
        "a negative part is no mixed number",
    ),
    ("y=5", "x=5", "another line"),
    ("5", "5\\mathrm{i}", "imaginary, upright"),
    ("5", "5\\text{x}", "a variable in a text command"),
    ("5", "5 point five", "a decimal in words"),
    ("5", "5 tenths", "a fraction in words"),
    ("5", "5 millions", "a multiplier in the plural"),
    ("5", "5 choose two", "an operation in words"),
    ("5", "5 percent points", "percent with more words"),
    ("5 m/s", "5 m s", "a quotient of units is no product"),
    ("5", "5/cm", "a reciprocal unit"),
    ("A", "A'", "another point: prime"),
    ("5'", "5''", "feet and inches"),
];

#[test]
fn equal_answers_are_correct_both_ways() {
    for (gold, answer, origin) in EQUAL {
        assert_eq!(
            outcome(gold, answer),
            Outcome::Correct,
            "{origin}: gold {gold}, answer {answer}"
        );
        assert_eq!(
            outcome(answer, gold),
            Outcome::Correct,
            "{origin}, the other way: gold {answer}, answer {gold}"
        );
    }
}

#[test]
fn unequal_answers_are_wrong() {
    for (gold, answer, origin) in UNEQUAL {
        assert_eq!(
            outcome(gold, answer),
            Outcome::Wrong,
            "{origin}: gold {gold}, answer {answer}"
        );
        let back = outcome(answer, gold);
        assert!(
            matches!(back, Outcome::Wrong | Outcome::Failed),
            "{origin}, the other way: gold {answer}, answer {gold}: {back:?}"
        );
    }
}

#[test]
fn an_answer_equals_itself() {
    for (gold, answer, origin) in EQUAL.iter().chain(UNEQUAL) {
        for text in [gold, answer] {
            if math().check_gold(text).is_ok() {
                assert_eq!(outcome(text, text), Outcome::Correct, "{origin}: {text}");
            }
        }
    }
}

#[test]
fn a_gold_answer_that_cannot_be_parsed_is_never_rewarded() {
    let long = "x".repeat(5000);
    for gold in [
        "",
        "  ",
        "$$",
        "\\text{}",
        "1/0",
        "\\frac{1}{0}",
        "{1",
        "1}",
        "\\frac{1}{2",
        "1e5000",
        &long,
    ] {
        assert!(math().check_gold(gold).is_err(), "{gold}");
        for answer in [gold, "0", "1", ""] {
            let outcome = outcome(gold, answer);
            assert_eq!(outcome, Outcome::Failed, "gold {gold}, answer {answer}");
            assert!(!outcome.is_usable());
        }
    }
}

#[test]
fn completions_without_an_answer_are_unparsed() {
    for text in ["", "12", "<think>12</think>", "<answer>12", "\\boxed{12"] {
        let verdict = math().verdict("12", text);
        assert_eq!(
            (verdict.outcome, verdict.extracted),
            (Outcome::Unparsed, None),
            "{text}"
        );
    }
}

#[test]
fn hostile_answers_are_bounded_and_masked() {
    let million = 1_000_000;
    let nested = format!("\\boxed{{{}1{}}}", "{".repeat(million), "}".repeat(million));
    let open = format!("\\boxed{{{}", "{".repeat(million));
    let boxes = "\\boxed{".repeat(million);
    let digits = format!("\\boxed{{{}}}", "7".repeat(4000));
    let tower = "\\boxed{9^{9^{9^{9}}}}".to_owned();
    let power = "\\boxed{10e999999999999999999999}".to_owned();
    let zeros = format!("\\boxed{{0.{}1}}", "0".repeat(3000));
    let commands = format!("\\boxed{{{}}}", "\\text{".repeat(500) + &"}".repeat(500));
    let cases = [
        (nested, Outcome::TimedOut),
        (open, Outcome::Unparsed),
        (boxes, Outcome::Unparsed),
        (digits, Outcome::Wrong),
        (tower, Outcome::TimedOut),
        (power, Outcome::TimedOut),
        (zeros, Outcome::Wrong),
        (commands, Outcome::Wrong),
        ("\\boxed{NaN}".to_owned(), Outcome::Wrong),
        ("\\boxed{\\infty}".to_owned(), Outcome::Wrong),
        ("\\boxed{\u{202e}5}".to_owned(), Outcome::Wrong),
        ("\\boxed{\\}}".to_owned(), Outcome::Wrong),
    ];
    for (text, expected) in cases {
        let verdict = math().verdict("5", &text);
        assert_eq!(verdict.outcome, expected, "{}", &text[..text.len().min(40)]);
        assert!(verdict.extracted.is_none_or(|answer| answer.len() <= 4096));
    }
}

#[test]
fn exact_compares_text_apart_from_white_space() {
    let exact = VerifyConfig::Exact(ExactOptions::default());
    let outcome = |gold: &str, answer: &str| {
        exact
            .verdict(gold, &format!("<answer>{answer}</answer>"))
            .outcome
    };
    assert_eq!(outcome("a  b", " a b\n"), Outcome::Correct);
    assert_eq!(outcome("a", "A"), Outcome::Wrong);
    assert_eq!(outcome("0.5", "1/2"), Outcome::Wrong);
    assert_eq!(outcome("", ""), Outcome::Failed);
}

#[test]
fn other_verifiers_judge_completions_and_answers_that_stand_alone() {
    let cases = [
        (r#"{"choice": {}}"#, "A, C", "(C) and (A)", Outcome::Correct),
        (r#"{"choice": {}}"#, "A", "A or B", Outcome::Wrong),
        (
            r#"{"choice": {"letters": "ABCD"}}"#,
            "E",
            "E",
            Outcome::Failed,
        ),
        (
            r#"{"numeric": {"relative": 0.01}}"#,
            "200",
            "201.9",
            Outcome::Correct,
        ),
        (
            r#"{"numeric": {"relative": 0.01}}"#,
            "200",
            "202.1",
            Outcome::Wrong,
        ),
        (
            r#"{"numeric": {"absolute": 0.001}}"#,
            "\\sqrt{2}",
            "1.4142",
            Outcome::Correct,
        ),
        (r#"{"numeric": {}}"#, "red", "1", Outcome::Failed),
        (
            r#"{"regex": {"pattern": "^{gold}!?$"}}"#,
            "a.b",
            "a.b!",
            Outcome::Correct,
        ),
        (
            r#"{"regex": {"pattern": "^{gold}!?$"}}"#,
            "a.b",
            "axb",
            Outcome::Wrong,
        ),
        (r#"{"regex": {"pattern": "("}}"#, "1", "1", Outcome::Failed),
        (
            r#"{"any": {"of": [{"exact": {}}, {"math": {}}]}}"#,
            "1/2",
            "0.5",
            Outcome::Correct,
        ),
        (
            r#"{"all": {"of": [{"exact": {}}, {"math": {}}]}}"#,
            "1/2",
            "0.5",
            Outcome::Wrong,
        ),
        (r#"{"all": {"of": []}}"#, "1", "1", Outcome::Failed),
    ];
    for (config, gold, answer, expected) in cases {
        let config: VerifyConfig = serde_json::from_str(config).unwrap();
        let completion = format!("<answer>{answer}</answer>");
        assert_eq!(
            config.verdict(gold, &completion).outcome,
            expected,
            "{gold}, {answer}"
        );
        let told = config.explain_answer(gold, answer);
        assert_eq!(told.verdict.outcome, expected, "{gold}, {answer} alone");
    }
    let hostile: VerifyConfig =
        serde_json::from_str(r#"{"regex": {"pattern": "^(a+)+$"}}"#).unwrap();
    let text = "a".repeat(4000) + "!";
    assert_eq!(
        hostile.explain_answer("x", &text).verdict.outcome,
        Outcome::Wrong
    );
}

#[test]
fn every_short_text_gets_some_verdict() {
    // All texts of three of these pieces: nothing may panic, and equality must be symmetric.
    let pieces = [
        "1", ",", "\\frac", "{", "}", "/", "-", ".", "%", "\\text", "$", "e", " ", "\\", "\u{e9}",
        "=",
    ];
    let mut texts: Vec<String> = vec![String::new()];
    for _ in 0..3 {
        texts = texts
            .iter()
            .flat_map(|text| pieces.iter().map(move |piece| format!("{text}{piece}")))
            .collect();
    }
    for (index, text) in texts.iter().enumerate() {
        let other = &texts[(index * 31 + 7) % texts.len()];
        for (gold, answer) in [(text, text), (text, other)] {
            if math().check_gold(gold).is_ok() && math().check_gold(answer).is_ok() {
                let forth = bare(gold, answer);
                assert_eq!(forth, bare(answer, gold), "{gold} and {answer}");
                if gold == answer {
                    assert_eq!(forth, Outcome::Correct, "{gold}");
                }
            }
        }
    }
}

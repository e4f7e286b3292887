//! The table of cases in `tests/verdict`, and what must not change a verdict.

use std::time::Instant;

use serde_json::Value;

use super::*;

struct Case {
    gold: String,
    answer: String,
    expected: String,
    origin: String,
}

fn cases() -> Vec<Case> {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/verdict/cases.jsonl"
    );
    let text = std::fs::read_to_string(path).unwrap();
    let field = |value: &Value, name: &str| value[name].as_str().unwrap().to_owned();
    let lines = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .map(|value| Case {
            gold: field(&value, "gold"),
            answer: field(&value, "answer"),
            expected: field(&value, "expected"),
            origin: field(&value, "origin"),
        })
        .collect()
}

fn judge(gold: &str, answer: &str) -> &'static str {
    match read_gold(gold.trim()) {
        Ok(gold) => compare(&gold, answer).outcome.as_str(),
        Err(_) => "failed",
    }
}

/// Every case where something else comes out than should.
fn differing(change: impl Fn(&Case) -> (String, String)) -> Vec<String> {
    let mut wrong = Vec::new();
    for case in cases() {
        let (gold, answer) = change(&case);
        let found = judge(&gold, &answer);
        if found != case.expected {
            wrong.push(format!(
                "gold {gold}, answer {answer}: {found}, not {} ({})",
                case.expected, case.origin
            ));
        }
    }
    wrong
}

#[test]
fn the_table_of_cases_holds() {
    assert!(cases().len() >= 1500);
    let wrong = differing(|case| (case.gold.clone(), case.answer.clone()));
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn equality_goes_both_ways() {
    let wrong: Vec<String> = cases()
        .iter()
        .filter(|case| read_gold(&case.answer).is_ok())
        .filter(|case| judge(&case.answer, &case.gold) != case.expected)
        .map(|case| format!("{} and {}", case.answer, case.gold))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_answer_is_equal_to_itself() {
    for case in cases() {
        for text in [&case.gold, &case.answer] {
            if read_gold(text).is_ok() {
                assert_eq!(judge(text, text), "correct", "{text}");
                // With other spacing at the end it is no longer the same text.
                let other = format!("{{{text}}}\\;");
                if parse::parse(text, &Budget::new()).is_ok()
                    && !text.contains(['$', ']', '[', ','])
                    && !text.contains(" or ")
                    && !text.contains("and")
                {
                    assert_eq!(judge(text, &other), "correct", "{text}");
                }
            }
        }
    }
}

/// A change of looks, by name.
type Change<'a> = (&'a str, &'a dyn Fn(&str) -> String);

#[test]
fn looks_change_nothing() {
    // What is text, or has spaces between digits, is left as it is.
    let is_plain = |text: &str| {
        !text.contains("text")
            && !text.contains("1 000")
            && !text.contains("\\text")
            && text.is_ascii()
    };
    let respaced = |text: &str| {
        if is_plain(text) {
            let text = text.replace('+', " + ").replace("\\le ", "\\le  ");
            if text.contains(['<', '>', '!']) {
                text
            } else {
                text.replace('=', " = ")
            }
        } else {
            text.to_owned()
        }
    };
    let changes: [Change<'_>; 6] = [
        ("boxed", &|text| format!("\\boxed{{{text}}}")),
        ("dollars", &|text| {
            if text.contains('$') {
                text.to_owned()
            } else {
                format!("${text}$")
            }
        }),
        ("fractions", &|text| {
            text.replace("\\dfrac", "\\frac")
                .replace("\\frac", "\\dfrac")
        }),
        ("brackets", &|text| {
            let plain = text.replace("\\left", "").replace("\\right", "");
            if plain.contains(['[', ']', '|']) || plain.contains("\\lfloor") || plain != text {
                return text.to_owned();
            }
            plain.replace('(', "\\left(").replace(')', "\\right)")
        }),
        ("spaces", &respaced),
        ("outer spaces", &|text| format!("  {text} \n")),
    ];
    for (name, change) in changes {
        let wrong = differing(|case| (case.gold.clone(), change(&case.answer)));
        assert!(wrong.is_empty(), "{name}: {wrong:#?}");
        let wrong = differing(|case| (change(&case.gold), case.answer.clone()));
        assert!(wrong.is_empty(), "{name} of gold answers: {wrong:#?}");
    }
}

#[test]
fn numbers_are_the_same_with_and_without_a_tree() {
    for text in [
        "0",
        "-0",
        "12",
        "-12",
        "007",
        "3.50",
        "0.125",
        "7/8",
        "-7/8",
        "14/4",
        "999999999999999999",
        "-0.00000000000000001",
        "123456789.123456789",
    ] {
        let quick = fast::number(text).unwrap();
        let tree = parse::parse(text, &Budget::new()).unwrap();
        let comparer_budget = Budget::new();
        let comparer = Comparer::new(&comparer_budget);
        assert_eq!(
            comparer.measure(At::root(&tree)),
            Some(quick.to_big()),
            "{text}"
        );
    }
    for text in [
        "",
        "-",
        ".",
        "5.",
        ".5",
        "1,000",
        "1/0",
        "1 2",
        "--1",
        "1e3",
        "1/2/3",
        "1234567890123456789",
    ] {
        assert_eq!(fast::number(text), None, "{text}");
    }
}

#[test]
fn forms_are_shown() {
    for (text, form) in [
        ("\\frac{6}{8}", "3/4"),
        ("(x+1)^2", "x^2 + 2*x + 1"),
        ("\\sqrt{8}", "2*sqrt(2)"),
        ("\\{3, 1\\}", "{3, 1}"),
        ("1/(x+1)", "(1)/(x + 1)"),
        ("x \\ge 2", "x >= 2"),
        ("circle", "text \"circle\""),
        ("1/0", "undefined"),
    ] {
        assert_eq!(shown(text), form, "{text}");
    }
}

#[test]
fn hostile_answers_stay_within_the_budget() {
    let deep = |open: &str, close: &str, count: usize| {
        format!("{}1{}", open.repeat(count), close.repeat(count))
    };
    let hostile = [
        deep("(", ")", 1500),
        deep("{", "}", 2000),
        deep("\\sqrt{", "}", 500),
        deep("\\frac{1}{", "}", 400),
        deep("\\text{", "}", 500),
        deep("2^{", "}", 900),
        deep("|", "|", 1500),
        deep("\\sin(", ")", 500),
        "-".repeat(4000),
        "9!".to_owned() + &"!".repeat(3000),
        "(a+b+c+d+e+f+g+h)".repeat(200),
        "(x+y+z+1)^{60}".repeat(20),
        "(1+x)^{999999999999}".to_owned(),
        "1000000!".to_owned(),
        "\\binom{1000000}{500000}".to_owned(),
        "99999999999^{99999999999}".to_owned(),
        "\\sin(10^{1000})".to_owned(),
        "e^{e^{e^{e^{e}}}}".to_owned(),
        "\\ln\\ln\\ln\\ln 5".to_owned(),
        "1+".repeat(1900) + "1",
        "x_1+".repeat(900) + "1",
        "1,".repeat(2000) + "1",
        "\\pm 1+".repeat(400) + "1",
        "\\{1,2\\}\\cup".repeat(300) + "\\{1\\}",
        "(0,1)\\cup".repeat(400) + "(0,1)",
        "\\sqrt{2}+".repeat(400) + "1",
        (1..600)
            .map(|n| format!("\\sqrt{{{n}}}"))
            .collect::<Vec<_>>()
            .join("+"),
        (1..400)
            .map(|n| format!("\\sin({n}x)"))
            .collect::<Vec<_>>()
            .join("+"),
        "x^{y^{z^{x^{y^{z}}}}}".to_owned(),
        "\\begin{pmatrix}".repeat(200),
        "&".repeat(4000),
        "0.".to_owned() + &"3".repeat(4000),
        "1e4000".to_owned(),
        "7".repeat(4090) + "!",
    ];
    for gold in [
        "5",
        "x+1",
        "\\sin x",
        "(x+1)^{50}",
        "1,2",
        "[0,1]",
        "2^{100}",
    ] {
        let gold = read_gold(gold).unwrap();
        for text in &hostile {
            // Whatever comes out comes out soon. A test has no clock: the budget is what bounds it.
            let _ = compare(&gold, text);
            if let Ok(hostile) = read_gold(text) {
                let _ = compare(&hostile, text);
                let _ = compare(&hostile, &format!("{text}+0"));
            }
        }
    }
}

/// `cargo test --release -p operators-verdict -- --ignored slowest`
#[test]
#[ignore = "measures time"]
fn the_slowest_of_all_cases() {
    let mut times: Vec<(u128, String)> = Vec::new();
    let cases = cases();
    for (index, case) in cases.iter().enumerate() {
        for other in [&case.answer, &cases[(index * 7 + 13) % cases.len()].answer] {
            let start = Instant::now();
            judge(&case.gold, other);
            times.push((
                start.elapsed().as_micros(),
                format!("{} / {other}", case.gold),
            ));
        }
    }
    times.sort();
    for (micros, text) in times.iter().rev().take(10) {
        println!("{micros} us: {text}");
    }
}

//! Reports of small tables.

use std::collections::BTreeMap;

use super::findings::{Accuracy, Curve};
use super::*;

fn accuracy(category: &str, accuracy: f64) -> Accuracy {
    Accuracy {
        category: category.to_owned(),
        samples: 100,
        accuracy,
        low: accuracy - 0.05,
        high: accuracy + 0.05,
    }
}

fn findings() -> Findings {
    let mut histogram = findings::Histogram::default();
    // 0/4, 1/8, 1/4, 3/8, 1/2, 7/8, 3000/3001, 4/4.
    for (correct, samples) in [
        (0, 4),
        (1, 8),
        (1, 4),
        (3, 8),
        (1, 2),
        (7, 8),
        (3000, 3001),
        (4, 4),
    ] {
        histogram.add(correct, samples);
    }
    let points = (0..30)
        .map(|step| (step, f64::from(step as u32) / 30.0))
        .collect();
    Findings {
        pipeline: "demo".to_owned(),
        evaluations: vec![
            (
                "base-eval".to_owned(),
                vec![accuracy("sum", 0.25), accuracy("all", 0.3)],
            ),
            (
                "final-eval".to_owned(),
                vec![
                    accuracy("read", 0.9),
                    accuracy("sum", 0.75),
                    accuracy("all", 0.8),
                ],
            ),
        ],
        pass_rates: vec![("split".to_owned(), histogram)],
        examples: vec![
            (
                "self".to_owned(),
                BTreeMap::from([("self".to_owned(), 1200)]),
            ),
            ("none".to_owned(), BTreeMap::new()),
        ],
        curves: vec![Curve {
            stage: "rl".to_owned(),
            name: "reward",
            label: "mean reward",
            points,
        }],
    }
}

#[test]
fn the_terminal_shows_every_table() {
    let expected = "\
accuracy (95 % interval)             base-eval            final-eval
sum                         25.0 % (20.0-30.0)    75.0 % (70.0-80.0)
read                                              90.0 % (85.0-95.0)
all                         30.0 % (25.0-35.0)    80.0 % (75.0-85.0)

pass rate (split)    prompts
0                          1   ####################
(0, 1/4)                   1   ####################
[1/4, 1/2)                 2   ########################################
[1/2, 3/4)                 1   ####################
[3/4, 1)                   2   ########################################
1                          1   ####################
never right: 1, sometimes: 6, always: 1

training examples    origin    number
self                 self       1,200
none                                0";
    let strip = |text: &str| {
        text.lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect::<Vec<_>>()
    };
    assert_eq!(strip(&terminal::summary(&findings())), strip(expected));
}

#[test]
fn the_report_links_plots_that_are_there() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("reports/demo-1");
    write(&folder, &findings()).unwrap();
    let text = fs::read_to_string(folder.join(REPORT)).unwrap();
    for expected in [
        "| category | `base-eval` | `final-eval` |",
        "| sum | 25.0 % (20.0-30.0) | 75.0 % (70.0-80.0) |",
        "| self | self | 1200 |",
        "![pass rates of split](split-pass-rates.svg)",
        "![mean reward of rl](rl-reward.svg)",
    ] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
    for file in ["split-pass-rates.svg", "rl-reward.svg"] {
        let svg = fs::read_to_string(folder.join(file)).unwrap();
        assert!(
            svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"),
            "{file}"
        );
    }
    assert!(
        write(&folder, &findings()).is_ok(),
        "a report that is there already is no failure"
    );
    assert_eq!(
        fs::read_dir(folder.parent().unwrap()).unwrap().count(),
        1,
        "no drafts are left"
    );
}

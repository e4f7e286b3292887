//! How much memory a verdict can take at most, however hostile the answers are: an allocator counts.
//!
//! A test binary of its own, with one test, so that nobody else allocates meanwhile.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use operators_verdict::{MathOptions, Prepared, RegexOptions, Searched, VerifyConfig};

/// The promise.
const MOST: usize = 64 << 20;

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn grow(bytes: usize) {
    let now = NOW.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(now, Ordering::Relaxed);
}

#[expect(
    unsafe_code,
    reason = "an allocator is unsafe by its trait; this one hands everything to the system's"
)]
// SAFETY: every call goes to the system's allocator with the arguments unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both may be there while the content is copied.
        grow(size);
        // SAFETY: as the caller promised.
        let moved = unsafe { System.realloc(place, layout, size) };
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        moved
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Most bytes that are held at the same time beyond those held before.
fn peak_of<T>(work: impl FnOnce() -> T) -> usize {
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let result = work();
    let peak = PEAK.load(Ordering::Relaxed);
    drop(result);
    peak.saturating_sub(before)
}

fn nested(open: &str, close: &str, depth: usize) -> String {
    format!("{}1{}", open.repeat(depth), close.repeat(depth))
}

fn sum(count: usize, term: impl Fn(usize) -> String) -> String {
    (1..count).map(term).collect::<Vec<_>>().join("+")
}

/// Answers that are small to write and large to think about.
fn hostile() -> Vec<String> {
    let mut answers: Vec<String> = [
        "(x+y+z+w+1)^{60}",
        "(1+x)^{999999999999}",
        "1000000!",
        "1500!+1500!/x",
        "\\binom{1000000}{500000}",
        "99999999999^{99999999999}",
        "9^{9^{9^{9}}}",
        "2^{2^{2^{2^{x}}}}",
        "2^{1000000}-2^{1000000}+1",
        "1.1^{1000000}",
        "1.0000001^{1000000000000}",
        "\\sin(10^{1000})",
        "e^{e^{e^{e^{e}}}}",
        "x^{y^{z^{x^{y^{z}}}}}",
        "1e999999999",
        "0.5e-999999999",
        "\\infty-\\infty",
        "NaN",
    ]
    .map(str::to_owned)
    .to_vec();
    for (open, close, depth) in [
        ("(", ")", 1500),
        ("{", "}", 2000),
        ("|", "|", 1500),
        ("\\sqrt{", "}", 500),
        ("\\frac{1}{", "}", 400),
        ("2^{", "}", 900),
        ("\\sqrt{1+", "}", 300),
        ("\\arctan(", ")", 300),
        ("-(-(", "))", 500),
    ] {
        answers.push(nested(open, close, depth));
    }
    let digits = "7".repeat(4000);
    answers.extend([
        digits.clone(),
        format!("{digits}!"),
        format!("({digits})^{{4}}"),
        format!("\\sqrt{{{digits}}}"),
        format!("\\sqrt[7]{{{digits}}}"),
        format!("0.{digits}"),
        format!("0.\\overline{{{}}}", "142857".repeat(600)),
        "(a+b+c+d+e+f+g+h)".repeat(200),
        "(x+y+z+1)^{60}".repeat(20),
        "(x+1)(x-1)".repeat(300),
        "1+".repeat(1900) + "1",
        "1,".repeat(2000) + "1",
        "x,".repeat(2000) + "1",
        "\\pm 1+".repeat(400) + "1",
        "\\{1,2\\}\\cup".repeat(300) + "\\{1\\}",
        "(0,1)\\cup".repeat(400) + "(0,1)",
        "\\frac12".repeat(500),
        format!("({})^{{60}}", sum(12, |n| format!("\\sqrt{{{n}}}"))),
        sum(450, |n| format!("\\sqrt{{{n}}}")),
        sum(350, |n| format!("\\sin({n}x)")),
        sum(500, |n| format!("x_{{{n}}}")),
        sum(250, |n| format!("\\frac{{1}}{{x+{n}}}")),
        (1..200).fold(String::new(), |product, n| {
            product + &format!("(x_{{{n}}}+1)")
        }),
    ]);
    let row = ["\\sin(x)^{50}"; 10].join("&");
    answers.push(format!(
        "\\begin{{pmatrix}}{}\\end{{pmatrix}}",
        vec![row; 10].join("\\\\")
    ));
    answers.extend(drawn(500));
    answers
}

/// Random nests of operators, the same ones each time.
fn drawn(count: u64) -> Vec<String> {
    const PIECES: [&str; 16] = [
        "\\sqrt{", "}", "(", "x", ")", "+", "^{", "2", "\\sin", "\\frac{", "}{", "9", "!", "\\pi",
        "y", ",",
    ];
    let mut state = 5_u64;
    let mut draw = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) as usize
    };
    (0..count)
        .map(|_| {
            (0..40 + draw() % 300)
                .map(|_| PIECES[draw() % PIECES.len()])
                .collect()
        })
        .collect()
}

#[test]
fn no_verdict_takes_more_than_64_mebibytes() {
    let math = VerifyConfig::Math(MathOptions::default());
    let golds = [
        "5",
        "x+1",
        "(x+1)^{50}",
        "1,2",
        "[0,1]",
        "\\sqrt2",
        "\\{1,2,3\\}",
        "x>3",
    ];
    let ready: Vec<Prepared> = golds
        .iter()
        .map(|gold| math.prepare(gold).unwrap())
        .collect();
    let (mut most, mut worst) = (0, String::new());
    let mut note = |peak: usize, what: &str| {
        if peak > most {
            most = peak;
            worst = what.chars().take(60).collect();
        }
    };
    for answer in hostile() {
        let boxed = format!("\\boxed{{{answer}}}");
        for gold in &ready {
            note(peak_of(|| math.judge(gold, &boxed)), &answer);
            note(peak_of(|| math.judge_answer(gold, &answer).0), &answer);
        }
        // As the gold answer, against itself in another form.
        let other = format!("{answer}+0");
        note(peak_of(|| math.verdict(&answer, &other)), &answer);
    }
    // Completions that are long as a whole: what is looked at is a copy of the answer at most.
    let million = "{".repeat(1_000_000);
    let tags = "<answer>\\boxed{1}".repeat(500_000);
    let long = format!("<answer>{}</answer>", "9".repeat(10 << 20));
    for completion in [&million, &tags, &long] {
        note(peak_of(|| math.judge(&ready[0], completion)), completion);
        note(
            peak_of(|| math.judge_answer(&ready[0], completion).0),
            completion,
        );
    }
    let text = "ab".repeat(500_000);
    for pattern in [
        "(a|b|ab)*c",
        "(a*)*(b*)*c",
        "(.{1,200}){1,20}x",
        "{gold}.*.*.*.*z",
    ] {
        let regex = VerifyConfig::Regex(RegexOptions {
            pattern: pattern.to_owned(),
            of: Searched::Completion,
            ..serde_json::from_str(r#"{"pattern": ""}"#).unwrap()
        });
        note(peak_of(|| regex.verdict("5", &text)), pattern);
    }
    println!(
        "most: {:.1} MiB, for {worst}",
        most as f64 / f64::from(1 << 20)
    );
    assert!(most < MOST, "{most} bytes for {worst}");
}

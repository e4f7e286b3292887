//! Problems of a pipeline file on the terminal and as JSON. The only place that knows how diagnostics are drawn.

use std::fmt;
use std::io::IsTerminal as _;

use miette::{
    Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteError,
    MietteSpanContents, SourceCode, SourceSpan, SpanContents,
};
use schemas::yaml::Document;
use schemas::{Problem, Span};
use serde_json::{Value, json};

/// Columns after which messages wrap.
const WIDTH: usize = 100;

/// Draws the problems with their places in the text, and a last line with their number. Without a terminal, and with
/// `NO_COLOR`, there are no colours; without a terminal it is ASCII.
pub(crate) fn problems(document: &Document, problems: &[Problem]) -> String {
    draw(document, problems, theme())
}

/// The problems as data. Lines and columns count from 1.
pub(crate) fn problems_json(document: &Document, problems: &[Problem]) -> Value {
    let place = |span: Span| {
        let at = document.locate(span);
        json!({
            "file": at.name,
            "line": at.line,
            "column": at.column,
            "start": at.span.start,
            "length": at.span.len,
        })
    };
    let list: Vec<Value> = problems
        .iter()
        .map(|problem| {
            let others: Vec<Value> = problem
                .others
                .iter()
                .map(|other| json!({ "place": place(other.span), "message": other.message }))
                .collect();
            json!({
                "code": problem.code,
                "message": problem.message,
                "file": document.locate(problem.span).name,
                "place": place(problem.span),
                "label": problem.label,
                "others": others,
                "help": problem.help,
            })
        })
        .collect();
    json!({ "problems": list })
}

fn draw(document: &Document, problems: &[Problem], theme: GraphicalTheme) -> String {
    let source = Files { document };
    let handler = GraphicalReportHandler::new_themed(theme)
        .with_width(WIDTH)
        .with_links(false)
        .with_context_lines(1);
    let mut text = String::new();
    for problem in problems {
        let drawing = Drawing {
            problem,
            source: &source,
        };
        if handler.render_report(&mut text, &drawing).is_err() {
            // A place outside the text cannot be drawn; the message still can.
            text.push_str(&format!("error[{}]: {}\n", problem.code, problem.message));
        }
        text.push('\n');
    }
    let noun = if problems.len() == 1 {
        "problem"
    } else {
        "problems"
    };
    text.push_str(&format!("{} {noun} in {}\n", problems.len(), document.name));
    text
}

#[expect(
    clippy::disallowed_methods,
    reason = "the convention for colours is a variable, and no result depends on it"
)]
fn theme() -> GraphicalTheme {
    let has_colors = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    match (std::io::stderr().is_terminal(), has_colors) {
        (true, true) => GraphicalTheme::unicode(),
        (true, false) => GraphicalTheme::unicode_nocolor(),
        (false, _) => GraphicalTheme::none(),
    }
}

/// A problem as the library that draws wants it.
#[derive(Debug)]
struct Drawing<'a> {
    problem: &'a Problem,
    source: &'a Files<'a>,
}

/// The files of a pipeline as one text, in which every place is shown with its own file and line.
#[derive(Debug)]
struct Files<'a> {
    document: &'a Document,
}

impl SourceCode for Files<'_> {
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        lines_before: usize,
        lines_after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        let place = Span {
            start: span.offset(),
            len: span.len(),
        };
        let at = self.document.locate(place);
        let inside = SourceSpan::from((at.span.start, at.span.len));
        // Two places in different files are not one snippet: the text of the first ends before.
        let contents = at.text.read_span(&inside, lines_before, lines_after)?;
        let (start, len) = (contents.span().offset(), contents.span().len());
        Ok(Box::new(MietteSpanContents::new_named(
            at.name.to_owned(),
            contents.data(),
            SourceSpan::from((start + at.base, len)),
            contents.line(),
            contents.column(),
            contents.line_count(),
        )))
    }
}

impl fmt::Display for Drawing<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.problem.message)
    }
}

impl std::error::Error for Drawing<'_> {}

impl Diagnostic for Drawing<'_> {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(self.problem.code))
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.problem
            .help
            .as_ref()
            .map(|help| -> Box<dyn fmt::Display + 'a> { Box::new(help) })
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(self.source)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let label = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let own = LabeledSpan::new_primary_with_span(
            label(&self.problem.label),
            (self.problem.span.start, self.problem.span.len),
        );
        let others = self.problem.others.iter().map(move |other| {
            LabeledSpan::new(label(&other.message), other.span.start, other.span.len)
        });
        Some(Box::new(std::iter::once(own).chain(others)))
    }
}

#[cfg(test)]
mod tests {
    use schemas::pipeline::{SourceText, compose};

    use super::*;

    #[test]
    fn a_problem_shows_its_lines_and_the_help() {
        let text = "a: 1\nstages:\n  x: { mix: {} }\n  y: { inputs: { from: z } }\n";
        let document = Document::new("p.yaml", text);
        let span = |word: &str| Span {
            start: text.find(word).expect("it is there"),
            len: word.len(),
        };
        let problem = Problem::new("unknown-stage", "there is no stage `z`", span("z"))
            .with_label("unknown stage")
            .with_other(span("x"), "a stage")
            .with_help("did you mean `x`?");
        insta::assert_snapshot!(draw(
            &document,
            std::slice::from_ref(&problem),
            GraphicalTheme::none()
        ));
        let json = problems_json(&document, &[problem]);
        assert_eq!(
            json["problems"][0]["place"],
            json!({ "file": "p.yaml", "line": 4, "column": 24, "start": span("z").start, "length": 1 })
        );
    }

    #[test]
    fn places_in_several_files_are_shown_with_their_files() {
        let file = |name: &str, text: &str| SourceText {
            name: name.to_owned(),
            id: name.to_owned(),
            text: text.to_owned(),
        };
        let main = file(
            "p.yaml",
            "version: 1\ninclude: [q.yaml]\nstages:\n  a: { mix: {} }\n",
        );
        let mut load = |_: &str, _: &str| Ok(file("q.yaml", "stages:\n  a: { sql: {} }\n"));
        let document = compose(main, Vec::new(), &["a.x=1".to_owned()], &mut load);
        let mut problems = document.problems().to_vec();
        let argument = document.problems()[0].others[0].span;
        problems.push(
            Problem::new("wrong-value", "both", problems[0].span).with_other(argument, "there"),
        );
        insta::assert_snapshot!(draw(&document, &problems, GraphicalTheme::none()));
        let json = problems_json(&document, &problems);
        assert_eq!(json["problems"][0]["file"], "p.yaml");
        assert_eq!(json["problems"][0]["others"][0]["place"]["file"], "q.yaml");
        assert_eq!(json["problems"][0]["others"][0]["place"]["line"], 2);
    }

    #[test]
    fn a_place_outside_the_text_still_gives_the_message() {
        let document = Document::new("p.yaml", "a: 1\n");
        let problem = Problem::new("syntax", "too short", Span { start: 100, len: 5 });
        assert!(draw(&document, &[problem], GraphicalTheme::none()).contains("too short"));
    }
}

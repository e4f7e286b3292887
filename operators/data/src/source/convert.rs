//! A record of a file as a prompt: what the layouts mean by their columns.

use std::path::Path;

use super::PLACEHOLDER;
use super::Source;
use super::cell::Cell;
use super::layout::{Layout, REFUSED, Reading};
use super::media::Media;
use super::turns::{Images, Turn, TurnPart, read_turn};

/// A row that can become a prompt, an example or a worked solution.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) id: Option<String>,
    /// The question, of layouts without turns.
    pub(super) problem: Option<String>,
    pub(super) turns: Vec<Turn>,
    pub(super) answer: Option<String>,
    pub(super) solution: Option<String>,
    pub(super) category: Option<String>,
    pub(super) source: Option<String>,
    pub(super) images: Vec<Vec<u8>>,
}

/// What a row is converted with.
pub(super) struct Converter<'a> {
    pub(super) config: &'a Source,
    pub(super) reading: &'a Reading,
    pub(super) media: &'a Media,
    /// The folder of the file.
    pub(super) beside: &'a Path,
}

impl Converter<'_> {
    /// The row of a record, or what is wrong with it.
    pub(super) fn row(&self, record: &Cell) -> Result<Row, String> {
        for name in REFUSED {
            if record
                .at(name)
                .is_some_and(|cell| !cell.is_blank() && !spells_nothing(cell))
            {
                return Err(format!(
                    "column `{name}` is filled, and prompts have text and images only; remove the row or the column"
                ));
            }
        }
        let mut row = Row {
            id: text_at(record, self.reading.id.as_deref())?,
            answer: text_at(record, self.reading.answer.as_deref())?,
            solution: text_at(record, self.reading.solution.as_deref())?,
            category: text_at(record, self.reading.category.as_deref())?,
            source: text_at(record, self.reading.source.as_deref())?,
            ..Row::default()
        };
        let images = self.images(record)?;
        match self.reading.layout {
            Layout::Problem | Layout::ImageFolder => {
                row.problem = match &self.reading.problem {
                    Some(path) => text_at(record, Some(path))?,
                    None => self.config.question.clone(),
                };
                row.images = self.load(&images)?;
            }
            Layout::Solutions => {}
            Layout::Alpaca => {
                row.turns = self.alpaca(record)?;
                self.place(&mut row, Images::of_column(images))?;
            }
            Layout::Verl | Layout::Sharegpt | Layout::Openai => {
                self.conversation(record, &mut row, images)?;
            }
        }
        self.check(&row)?;
        Ok(row)
    }

    /// What every row needs.
    fn check(&self, row: &Row) -> Result<(), String> {
        let name =
            |path: &Option<String>, usual: &str| path.clone().unwrap_or_else(|| usual.to_owned());
        if self.reading.layout == Layout::Solutions {
            if row.id.is_none() || row.solution.is_none() {
                return Err(format!(
                    "column `{}` or `{}` is empty; both are needed",
                    name(&self.reading.id, "prompt_id"),
                    name(&self.reading.solution, "text")
                ));
            }
            return Ok(());
        }
        if self.reading.id.is_some() && row.id.is_none() {
            return Err(format!(
                "column `{}` is empty; every row needs an id",
                name(&self.reading.id, "id")
            ));
        }
        if row.turns.is_empty() && row.problem.is_none() {
            return Err(format!(
                "column `{}` is empty: there is no question",
                name(&self.reading.problem, "problem")
            ));
        }
        if self.config.requires_answers() && row.answer.is_none() {
            return Err(format!(
                "column `{}` is empty: there is no answer, and every prompt needs one that can be checked",
                name(&self.reading.answer, "answer")
            ));
        }
        if self.config.examples && row.solution.is_none() {
            return Err(match &self.reading.conversation {
                Some(_) if self.reading.solution.is_none() => {
                    "the conversation has no turn of the assistant, so that there is nothing to learn".to_owned()
                }
                _ => format!(
                    "column `{}` is empty: there is nothing to learn",
                    name(&self.reading.solution, "solution")
                ),
            });
        }
        Ok(())
    }

    /// What the column of images has.
    fn images(&self, record: &Cell) -> Result<Vec<Cell>, String> {
        let Some(path) = &self.reading.images else {
            return Ok(Vec::new());
        };
        let Some(cell) = look_up(record, path) else {
            return Ok(Vec::new());
        };
        Ok(match cell {
            cell if cell.is_blank() => Vec::new(),
            Cell::List(items) => items,
            one @ (Cell::Bytes(_) | Cell::Struct(_)) => vec![one],
            Cell::Text(text) => match Cell::Text(text.clone()).opened() {
                Some(Cell::List(items)) => items,
                Some(one) => vec![one],
                None => vec![Cell::Text(text)],
            },
            other => return Err(format!("column `{path}` is {} and no image", other.kind())),
        })
    }

    fn load(&self, images: &[Cell]) -> Result<Vec<Vec<u8>>, String> {
        let load = |(index, image): (usize, &Cell)| {
            self.media
                .load(image, self.beside)
                .map_err(|error| format!("image {index}: {error}"))
        };
        images.iter().enumerate().map(load).collect()
    }

    fn alpaca(&self, record: &Cell) -> Result<Vec<Turn>, String> {
        let text = |path: &Option<String>| text_at(record, path.as_deref());
        let mut turns = Vec::new();
        if let Some(system) = text(&self.reading.system)? {
            turns.push(Turn::of_text("system", system));
        }
        let history = self
            .reading
            .history
            .as_ref()
            .and_then(|path| look_up(record, path));
        if let Some(Cell::List(pairs)) = &history {
            for pair in pairs {
                let Cell::List(pair) = pair else {
                    return Err("column `history` is no list of pairs".to_owned());
                };
                let [Some(asked), Some(said)] =
                    [0, 1].map(|index| pair.get(index).and_then(Cell::text))
                else {
                    return Err("column `history` has a pair that is not two texts".to_owned());
                };
                turns.push(Turn::of_text("user", asked.to_owned()));
                turns.push(Turn::of_text("assistant", said.to_owned()));
            }
        }
        let question = [text(&self.reading.problem)?, text(&self.reading.input)?];
        let question: Vec<String> = question.into_iter().flatten().collect();
        if question.is_empty() {
            return Err("the columns of the question are empty".to_owned());
        }
        turns.push(Turn::of_text("user", question.join("\n")));
        Ok(turns)
    }

    fn conversation(&self, record: &Cell, row: &mut Row, column: Vec<Cell>) -> Result<(), String> {
        let path = self.reading.conversation.as_deref().unwrap_or_default();
        let turns = match look_up(record, path) {
            Some(Cell::List(turns)) => turns,
            Some(text @ Cell::Text(_)) => match text.opened() {
                Some(Cell::List(turns)) => turns,
                // A prompt that is plain text is one turn.
                _ => vec![one_turn(text)],
            },
            Some(other) if !other.is_blank() => {
                return Err(format!(
                    "column `{path}` is {} and no list of turns",
                    other.kind()
                ));
            }
            _ => Vec::new(),
        };
        if turns.is_empty() {
            return Err(format!(
                "column `{path}` is empty: there is no conversation"
            ));
        }
        let mut images = Images::of_column(column);
        for (index, turn) in turns.iter().enumerate() {
            let turn = read_turn(turn, &mut images)
                .map_err(|error| format!("column `{path}`, turn {index}: {error}"))?;
            // An empty system message is none.
            if !turn.is_silent() {
                row.turns.push(turn);
            }
        }
        if let Some(system) = text_at(record, self.reading.system.as_deref())?
            && row.turns.first().is_none_or(|turn| turn.role != "system")
        {
            row.turns.insert(0, Turn::of_text("system", system));
        }
        if self.config.examples && row.turns.iter().any(|turn| turn.role == "assistant") {
            // A question that was never answered teaches nothing.
            while row
                .turns
                .last()
                .is_some_and(|turn| turn.role != "assistant")
            {
                row.turns.pop();
            }
        }
        if row
            .turns
            .last()
            .is_some_and(|turn| turn.role == "assistant")
        {
            let last = row.turns.pop().expect("there is a last turn");
            let text = last
                .plain()
                .ok_or("the last turn, the assistant's, has images, which no model here writes")?;
            row.solution.get_or_insert(text);
        }
        if row.turns.iter().all(|turn| turn.role == "system") {
            return Err(format!("column `{path}` has no turn before the answer"));
        }
        self.place(row, images)
    }

    /// Puts the images of the column where the text has their marks, or in front of the first question.
    fn place(&self, row: &mut Row, mut images: Images) -> Result<(), String> {
        let waiting = images.waiting.len() - images.taken;
        let marks: usize = row.turns.iter().map(Turn::marks).sum();
        if let Some(solution) = &row.solution
            && waiting > 0
            && solution.contains(PLACEHOLDER)
        {
            return Err(format!(
                "the answer has `{PLACEHOLDER}`, which no model here writes"
            ));
        }
        let is_inline = !images.inline.is_empty();
        if marks > 0 && !(is_inline && waiting == 0) {
            if marks != waiting {
                return Err(format!(
                    "the text has {marks} `{PLACEHOLDER}` and the row has {waiting} images"
                ));
            }
            for turn in &mut row.turns {
                turn.fill(&mut images);
            }
        } else if waiting > 0 {
            let Some(turn) = row.turns.iter_mut().find(|turn| turn.role == "user") else {
                return Err(format!(
                    "the row has {waiting} images and no turn of the user"
                ));
            };
            let mut parts: Vec<TurnPart> = (0..waiting)
                .map(|_| TurnPart::Image(images.take()))
                .collect();
            parts.append(&mut turn.parts);
            turn.parts = parts;
        }
        row.images = self.load(&images.order)?;
        Ok(())
    }
}

/// The text at a path; none where it is absent or blank.
fn text_at(record: &Cell, path: Option<&str>) -> Result<Option<String>, String> {
    let Some(path) = path else { return Ok(None) };
    let found = look_up(record, path);
    let cell = match &found {
        Some(Cell::List(items)) if items.len() == 1 => items.first(),
        other => other.as_ref(),
    };
    match cell {
        None => Ok(None),
        Some(cell) if cell.is_blank() => Ok(None),
        Some(cell) => match cell.text() {
            Some(text) => Ok(Some(text.to_owned())),
            None => Err(format!(
                "column `{path}` is {}, and text or a number belongs there",
                cell.kind()
            )),
        },
    }
}

/// Some tables spell an empty list as text.
fn spells_nothing(cell: &Cell) -> bool {
    cell.text()
        .is_some_and(|text| matches!(text.trim(), "[]" | "{}" | "null"))
}

fn one_turn(text: Cell) -> Cell {
    let role = Cell::Text("user".to_owned());
    Cell::Struct(vec![
        ("role".to_owned(), role),
        ("content".to_owned(), text),
    ])
}

/// The value at a path, through text that spells an object.
fn look_up(record: &Cell, path: &str) -> Option<Cell> {
    if let Some(cell) = record.at(path) {
        return Some(cell.clone());
    }
    let (first, rest) = path.split_once('.')?;
    let inner = record.at(first)?;
    look_up(inner.opened().as_ref().unwrap_or(inner), rest)
}

//! The turns of a conversation and the images in them.

use super::PLACEHOLDER;
use super::cell::Cell;

/// A part of a turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TurnPart {
    Text(String),
    /// The number of an image of the row.
    Image(usize),
}

/// A turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) role: &'static str,
    pub(super) parts: Vec<TurnPart>,
}

/// The images of a row in the order in which they are met.
pub(super) struct Images {
    /// Those of the column.
    pub(super) waiting: Vec<Cell>,
    /// How many of them have their place.
    pub(super) taken: usize,
    /// Numbers of those that turns bring along.
    pub(super) inline: Vec<usize>,
    pub(super) order: Vec<Cell>,
}

impl Images {
    pub(super) fn of_column(waiting: Vec<Cell>) -> Self {
        Self {
            waiting,
            taken: 0,
            inline: Vec::new(),
            order: Vec::new(),
        }
    }

    /// The number of the next image of the column, which is there.
    pub(super) fn take(&mut self) -> usize {
        self.order.push(self.waiting[self.taken].clone());
        self.taken += 1;
        self.order.len() - 1
    }

    pub(super) fn bring(&mut self, image: Cell) -> usize {
        self.order.push(image);
        self.inline.push(self.order.len() - 1);
        self.order.len() - 1
    }
}

impl Turn {
    pub(super) fn of_text(role: &'static str, text: String) -> Self {
        Self {
            role,
            parts: vec![TurnPart::Text(text)],
        }
    }

    /// Its text, if it has no images.
    pub(super) fn plain(&self) -> Option<String> {
        let mut whole = String::new();
        for part in &self.parts {
            match part {
                TurnPart::Text(text) => whole.push_str(text),
                TurnPart::Image(_) => return None,
            }
        }
        Some(whole)
    }

    pub(super) fn is_silent(&self) -> bool {
        self.plain().is_some_and(|text| text.trim().is_empty())
    }

    pub(super) fn marks(&self) -> usize {
        let texts = self.parts.iter().filter_map(|part| match part {
            TurnPart::Text(text) => Some(text.matches(PLACEHOLDER).count()),
            TurnPart::Image(_) => None,
        });
        texts.sum()
    }

    /// Puts images in the place of their marks.
    pub(super) fn fill(&mut self, images: &mut Images) {
        let mut parts = Vec::new();
        for part in std::mem::take(&mut self.parts) {
            let TurnPart::Text(text) = part else {
                parts.push(part);
                continue;
            };
            for (index, piece) in text.split(PLACEHOLDER).enumerate() {
                if index > 0 {
                    parts.push(TurnPart::Image(images.take()));
                }
                if !piece.is_empty() {
                    parts.push(TurnPart::Text(piece.to_owned()));
                }
            }
        }
        self.parts = parts;
    }
}

fn role(name: &str) -> Result<&'static str, String> {
    Ok(match name.to_ascii_lowercase().as_str() {
        "user" | "human" => "user",
        "assistant" | "gpt" | "model" | "bot" | "chatgpt" => "assistant",
        "system" | "developer" => "system",
        "tool" | "observation" | "function" => "tool",
        "function_call" => {
            return Err("calls of tools cannot be learnt here; remove the row".to_owned());
        }
        _ => {
            return Err(format!(
                "`{name}` is no role that is known: system, user (human), assistant (gpt), tool (observation)"
            ));
        }
    })
}

/// Reads a turn, under the names of either spelling.
pub(super) fn read_turn(turn: &Cell, images: &mut Images) -> Result<Turn, String> {
    let first = |names: [&str; 2]| names.into_iter().find_map(|name| turn.at(name));
    let name = first(["role", "from"])
        .and_then(Cell::text)
        .ok_or("it has no `role` or `from`")?;
    let role = role(name)?;
    let is_filled = |name: &str| turn.at(name).is_some_and(|cell| !cell.is_blank());
    if is_filled("tool_calls") || is_filled("function_call") {
        return Err("calls of tools cannot be learnt here; remove the row".to_owned());
    }
    if turn
        .at("weight")
        .and_then(Cell::text)
        .is_some_and(|weight| weight.parse() == Ok(0.0))
        && role == "assistant"
    {
        return Err(
            "it has the weight 0, which cannot be kept apart here; remove it or the row".to_owned(),
        );
    }
    let parts = match first(["content", "value"]) {
        Some(Cell::List(parts)) => parts
            .iter()
            .map(|part| read_part(part, images))
            .collect::<Result<_, _>>()?,
        Some(cell) => vec![TurnPart::Text(cell.text().unwrap_or_default().to_owned())],
        None => return Err("it has no `content` or `value`".to_owned()),
    };
    let turn = Turn { role, parts };
    if turn.is_silent() && role != "system" {
        return Err(format!("the {role} says nothing"));
    }
    Ok(turn)
}

fn read_part(part: &Cell, images: &mut Images) -> Result<TurnPart, String> {
    if let Some(text) = part.text() {
        return Ok(TurnPart::Text(text.to_owned()));
    }
    let filled = |name: &str| part.at(name).filter(|cell| !cell.is_blank());
    let kind = filled("type").and_then(Cell::text);
    match kind {
        Some("text" | "input_text" | "output_text") => {
            let text = filled("text").and_then(Cell::text);
            Ok(TurnPart::Text(text.unwrap_or_default().to_owned()))
        }
        Some("image" | "image_url" | "input_image") => {
            let names = [
                "image_url.url",
                "image_url",
                "image",
                "url",
                "path",
                "bytes",
                "data",
            ];
            if let Some(image) = names.into_iter().find_map(filled) {
                return Ok(TurnPart::Image(images.bring(image.clone())));
            }
            if images.taken < images.waiting.len() {
                return Ok(TurnPart::Image(images.take()));
            }
            Err("it has a part for an image, and the row has no image left for it".to_owned())
        }
        Some(other) => Err(format!(
            "it has a part of the type `{other}`; text and images are read"
        )),
        None => Err("it has a part without `type`".to_owned()),
    }
}

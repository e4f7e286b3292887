"""Makes greedy.json: what transformers generates greedily in float32 from the folder that convert.py makes.

    python greedy.py FOLDER        # transformers 5.17, torch 2.11; about ten minutes on two cores

50 prompts, half of them chats and half openings of texts, 200 tokens each; end tokens do not end them. `close` has the places
where the two largest logits differ by less than 1e-3, and by how much: rounding in another order can only change tokens there.
"""

import json
import sys
from pathlib import Path

import torch
import transformers

HERE = Path(__file__).parent
NEW_TOKENS, BATCH, CLOSE = 200, 25, 1e-3

CHATS = [
    "What is the capital of France?",
    "How much is 7 + 5? Explain step by step.",
    "Write a short poem about the sea.",
    "Name three planets and say one thing about each.",
    "Explain what photosynthesis is to a child.",
    "Translate 'good morning' into Spanish, German and Italian.",
    "Give me a recipe for pancakes.",
    "What are the first ten prime numbers?",
    "Write a Python function that reverses a string.",
    "Why is the sky blue?",
    "List five tips for sleeping better.",
    "Who wrote Hamlet, and what is it about?",
    "What is the difference between a virus and a bacterium?",
    "Tell me a story about a fox and a crow.",
    "How do I convert 32 degrees Fahrenheit to Celsius?",
    "Summarize the causes of the First World War.",
    "Write an email that asks a colleague for a meeting on 12 March at 14:30.",
    "What does the SQL statement SELECT COUNT(*) FROM users do?",
    "Is 91 a prime number?",
    "Describe the water cycle.",
    "What should I pack for a trip to Iceland?",
    "Write three sentences with the word \u201chorizon\u201d.",
    "Solve 3x - 4 = 11 for x.",
    "Give synonyms for happy.",
    "Was ist die Hauptstadt von \u00d6sterreich?",
]
TEXTS = [
    "Once upon a time there was a little girl who",
    "The history of the Roman Empire begins",
    "In mathematics, a group is",
    "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n",
    "The most important thing about cooking rice is",
    "import numpy as np\n\n# Compute the mean of each column\n",
    "Dear Sir or Madam,\n\nI am writing to",
    "1. Wash the vegetables.\n2.",
    "The mitochondrion is the",
    "Question: How many legs does a spider have?\nAnswer:",
    "Yesterday, scientists announced that",
    "# Introduction\n\nMachine learning is",
    "The train left the station at 9:15 and",
    "| Country | Capital |\n| --- | --- |\n| France | Paris |\n| Japan |",
    "When water freezes, its volume",
    "A good friend is someone who",
    "<html>\n<head>\n<title>My page</title>\n",
    "The quick brown fox",
    "During the winter of 1944,",
    "fn main() {\n    let numbers = vec![1, 2, 3];\n",
    "To be, or not to be,",
    "The three laws of motion are",
    "Caf\u00e9 culture in Paris",
    "Step 1: Open the settings.\nStep 2:",
    "My favourite season is autumn because",
]


def generate(model, tokenizer, texts):
    inputs = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    out = model.generate(
        **inputs, do_sample=False, max_new_tokens=NEW_TOKENS, output_logits=True, return_dict_in_generate=True
    )
    tokens = out.sequences[:, inputs["input_ids"].shape[1] :]
    logits = torch.stack(out.logits, dim=1)
    largest = logits.topk(2, dim=-1).values
    gaps = largest[..., 0] - largest[..., 1]
    for row, text in enumerate(texts):
        close = [[place, float(f"{gap:.2g}")] for place, gap in enumerate(gaps[row].tolist()) if gap < CLOSE]
        prompt = inputs["input_ids"][row][inputs["attention_mask"][row] == 1].tolist()
        yield {"text": text, "prompt": prompt, "tokens": tokens[row].tolist(), "close": close}


def main():
    folder = sys.argv[1]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": chat}], tokenize=False, add_generation_prompt=True)
        for chat in CHATS
    ] + TEXTS
    rows = []
    with torch.no_grad():
        for start in range(0, len(texts), BATCH):
            rows += generate(model, tokenizer, texts[start : start + BATCH])
            print(len(rows), "of", len(texts), file=sys.stderr)
    lines = ",\n".join(json.dumps(row, separators=(",", ":"), ensure_ascii=False) for row in rows)
    (HERE / "greedy.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()

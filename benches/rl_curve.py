"""The RL stage of pipelines/rise.yaml beside the same loop in PyTorch with transformers: time, and the curve of the reward.

    cargo build --release
    python benches/rl_curve.py [--steps 120] [--threads 2]

Needs torch, transformers 5 and pyarrow. Same model, prompts, sampling, reward, advantages, loss, optimizer and schedule; other random
numbers, so the curves agree only as runs of different seeds do. Prints seconds, and the mean reward of each stretch of steps.
"""

import argparse
import io
import json
import math
import re
import subprocess
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import torch
import yaml
from PIL import Image
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessor

PROJECT = Path(__file__).parents[1]
FORM = re.compile(r"\s*<think>.*</think>\s*<answer>.*</answer>\s*", re.DOTALL)
BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
STRETCH = 20


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--engine", default=PROJECT / "target/release/metis-flow")
    parser.add_argument("--only-peer", action="store_true")
    args = parser.parse_args()
    settings = yaml.safe_load((PROJECT / "pipelines/rise.yaml").read_text())["stages"]["rl"]["rl-train"]
    settings["steps"] = args.steps
    curves = {}
    if not args.only_peer:
        curves["metis-flow"] = ours(args.engine, args.steps)
    curves["PyTorch, transformers"] = theirs(settings, args.threads)
    for name, (seconds, rewards) in curves.items():
        stretches = [rewards[start:start + STRETCH] for start in range(0, len(rewards), STRETCH)]
        means = ", ".join(f"{sum(stretch) / len(stretch):.3f}" for stretch in stretches)
        print(f"{name}: {seconds:.1f} s for {len(rewards)} steps; mean reward of each {STRETCH} steps: {means}")


def ours(engine, steps):
    """Seconds of the stage and the reward of each step, of a run in a project folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        pipeline = yaml.safe_load((PROJECT / "pipelines/rise.yaml").read_text())
        pipeline["stages"] = {name: pipeline["stages"][name] for name in ["prompts", "base", "rl"]}
        pipeline["stages"]["rl"]["rl-train"]["steps"] = steps
        pipeline["params"] = {"base": pipeline["params"]["base"]}
        (folder / "rl.yaml").write_text(yaml.safe_dump(pipeline))
        (folder / "examples").symlink_to(PROJECT / "examples")

        def call(*words):
            return subprocess.run([engine, *words], cwd=folder, check=True, capture_output=True, text=True).stdout

        call("run", "rl.yaml", "--device", "cpu")
        query = "SELECT value FROM metrics WHERE stage = 'rl' AND name = 'reward' ORDER BY step"
        rewards = [row["value"] for row in json.loads(call("sql", query, "--json"))]
        query = "SELECT seconds FROM stages WHERE stage = 'rl'"
        return json.loads(call("sql", query, "--json"))[0]["seconds"], rewards


def theirs(settings, threads):
    torch.set_num_threads(threads)
    torch.manual_seed(17)
    folder = PROJECT / "examples/models/base"
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("visual" not in name)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    betas = (0.9, settings["adamw"]["beta2"])
    optimizer = torch.optim.AdamW(trained, lr=settings["learning-rate"], betas=betas, weight_decay=0.0)
    rows = pq.read_table(PROJECT / "examples/data/train.parquet").to_pylist()
    encode = Encoder(folder)
    order, rewards = [], []
    began = time.perf_counter()
    for step in range(settings["steps"]):
        size = settings["prompts-per-step"]
        if len(order) < size:
            order = torch.randperm(len(rows)).tolist()
        batch, order = [rows[index] for index in order[:size]], order[size:]
        inputs = encode(batch)
        sequences, mask, texts = sample(model, encode.tokenizer, inputs, settings)
        reward, accuracy = judge(texts, [row["answer"] for row in batch], settings)
        rewards.append(reward.mean().item())
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step)
        update(model, optimizer, trained, inputs, sequences, mask, reward, accuracy, settings)
    return time.perf_counter() - began, rewards


class Encoder:
    """Prompts as one batch, padded on the left as generation wants it."""

    def __init__(self, folder):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.images = Qwen2VLImageProcessor.from_pretrained(folder)

    def __call__(self, rows):
        patches, grids, texts = [], [], []
        for row in rows:
            question = row["problem"].replace("<image>", "")
            content = [{"type": "image"}, {"type": "text", "text": question}]
            text = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
            image = Image.open(io.BytesIO(row["images"][0]["bytes"])).convert("RGB")
            made = self.images(image, return_tensors="pt")
            patches.append(made["pixel_values"])
            grids.append(made["image_grid_thw"])
            merged = int(made["image_grid_thw"].prod()) // self.images.merge_size**2
            texts.append(text.replace("<|image_pad|>", "<|image_pad|>" * merged))
        ids = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        longest = max(map(len, ids))
        pad = self.tokenizer.pad_token_id
        padded = torch.tensor([[pad] * (longest - len(row)) + row for row in ids])
        attention = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids])
        image = self.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        return {
            "input_ids": padded, "attention_mask": attention, "pixel_values": torch.cat(patches),
            "image_grid_thw": torch.cat(grids), "mm_token_type_ids": (padded == image).int(),
        }


def sample(model, tokenizer, inputs, settings):
    model.eval()
    stops = model.generation_config.eos_token_id
    with torch.no_grad():
        sequences = model.generate(
            **inputs, do_sample=True, temperature=settings["temperature"], top_k=0, top_p=1.0,
            num_return_sequences=settings["samples"], max_new_tokens=settings["max-new-tokens"], eos_token_id=stops,
            pad_token_id=tokenizer.pad_token_id)
    completion = sequences[:, inputs["input_ids"].shape[1]:]
    ended = torch.isin(completion, torch.tensor(stops))
    mask = (ended.cumsum(1) - ended.long()) == 0
    texts = [tokenizer.decode(ids[keep], skip_special_tokens=True) for ids, keep in zip(completion, mask)]
    return sequences, mask, texts


def judge(texts, answers, settings):
    """Rewards and accuracies of groups of texts: a boxed answer, and the tags in their order."""
    samples = settings["samples"]
    accuracy, form = [], []
    for place, text in enumerate(texts):
        boxed = BOXED.findall(text)
        accuracy.append(float(bool(boxed) and boxed[-1].strip() == answers[place // samples].strip()))
        form.append(float(bool(FORM.fullmatch(text))))
    accuracy, form = torch.tensor(accuracy), torch.tensor(form)
    weights = settings["score"]
    return weights["accuracy"] * accuracy + weights["format"] * form, accuracy


def learning_rate(settings, step):
    peak, warm, steps = settings["learning-rate"], settings["warmup-steps"], settings["steps"]
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1))) / 2


def update(model, optimizer, trained, inputs, sequences, mask, reward, accuracy, settings):
    samples = settings["samples"]
    groups, right = reward.view(-1, samples), accuracy.view(-1, samples).sum(1)
    teaches = ((right > 0) & (right < samples)).repeat_interleave(samples)
    if not teaches.any():
        return
    advantages = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-6)
    advantages = advantages.view(-1, 1)[teaches]
    chosen = teaches.nonzero().squeeze(1)
    prompts = chosen // samples
    length, grid = inputs["input_ids"].shape[1], inputs["image_grid_thw"]
    parts = inputs["pixel_values"].split(grid.prod(dim=1).tolist())
    mask = mask[teaches]
    attention = torch.cat([inputs["attention_mask"][prompts], mask.long()], dim=1)
    types = torch.cat([inputs["mm_token_type_ids"][prompts], torch.zeros_like(mask, dtype=torch.int)], dim=1)
    model.train()
    logits = model(
        input_ids=sequences[teaches], attention_mask=attention, pixel_values=torch.cat([parts[index] for index in prompts]),
        image_grid_thw=grid[prompts], mm_token_type_ids=types,
    ).logits[:, length - 1:-1].float()
    logprobs = logits.log_softmax(-1).gather(-1, sequences[teaches][:, length:, None]).squeeze(-1)
    clip = settings["algorithm"]["grpo"]
    ratio = (logprobs - logprobs.detach()).exp()
    clipped = ratio.clamp(1 - clip["clip-low"], 1 + clip["clip-high"])
    loss = torch.maximum(-advantages * ratio, -advantages * clipped)
    ((loss * mask).sum(1) / mask.sum(1)).mean().backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()


if __name__ == "__main__":
    main()

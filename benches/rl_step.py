"""The RL step of benches/rl_step.rs in PyTorch with transformers, on the inputs that the Rust bench wrote.

    cargo bench --bench rl_step -- --write-inputs FILE.json
    python benches/rl_step.py MODEL_FOLDER FILE.json [--device cpu|cuda] [--threads 2] [--repeat 5]

Needs torch and transformers 5. Prints one JSON line: median seconds of generation and update, tokens, tokens/s.
Same work as the Rust side: sample G completions for each prompt at temperature 1, then one clipped policy-gradient
update on them (sequence mean, AdamW, gradient clipping), all weights trained but the vision tower.
"""

import argparse
import json
import statistics
import time

import torch
from transformers import Qwen2_5_VLForConditionalGeneration


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("inputs")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(17)
    with open(args.inputs) as file:
        inputs = json.load(file)
    device = torch.device(args.device)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(args.model, dtype=torch.float32).to(device)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("visual" not in name)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, betas=(0.9, 0.95), weight_decay=0.0, fused=device.type == "cuda")
    prompts = left_padded(inputs, device)
    generation, update, tokens = [], [], []
    for repeat in range(args.repeat + 1):
        synchronize(device)
        start = time.perf_counter()
        sequences, mask = generate(model, prompts, inputs)
        synchronize(device)
        middle = time.perf_counter()
        step(model, optimizer, trained, prompts, sequences, mask, inputs["samples"])
        synchronize(device)
        end = time.perf_counter()
        if repeat > 0:  # The first repeat warms up.
            generation.append(middle - start)
            update.append(end - middle)
            tokens.append(int(mask.sum()))
    print(json.dumps({
        "peer": f"torch {torch.__version__}, transformers",
        "device": args.device,
        "rollouts": sequences.shape[0],
        "generation_s": statistics.median(generation),
        "update_s": statistics.median(update),
        "step_s": statistics.median([a + b for a, b in zip(generation, update)]),
        "completion_tokens": statistics.median(tokens),
        "generated_tokens_per_s": statistics.median([t / s for t, s in zip(tokens, generation)]),
    }))


def left_padded(inputs, device):
    """Prompts as one batch, padded on the left as generation wants it."""
    longest = max(len(prompt["token_ids"]) for prompt in inputs["prompts"])
    ids, attention, patches, grids = [], [], [], []
    for prompt in inputs["prompts"]:
        padding = longest - len(prompt["token_ids"])
        ids.append([inputs["pad_token_id"]] * padding + prompt["token_ids"])
        attention.append([0] * padding + [1] * len(prompt["token_ids"]))
        for image in prompt["images"]:
            patches.append(torch.tensor(image["patches"], dtype=torch.float32).view(-1, image["patch_width"]))
            grids.append(image["grid_thw"])
    ids = torch.tensor(ids, device=device)
    return {
        "input_ids": ids,
        "attention_mask": torch.tensor(attention, device=device),
        "pixel_values": torch.cat(patches).to(device),
        "image_grid_thw": torch.tensor(grids, device=device),
        "mm_token_type_ids": (ids == inputs["image_token_id"]).int(),
    }


def generate(model, prompts, inputs):
    model.eval()
    with torch.no_grad():
        sequences = model.generate(
            **prompts,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            num_return_sequences=inputs["samples"],
            max_new_tokens=inputs["max_new_tokens"],
            eos_token_id=inputs["stop_token_ids"],
            pad_token_id=inputs["pad_token_id"],
        )
    completion = sequences[:, prompts["input_ids"].shape[1]:]
    ended = torch.zeros_like(completion, dtype=torch.bool)
    for stop in inputs["stop_token_ids"]:
        ended |= completion == stop
    mask = (ended.cumsum(1) - ended.long()) == 0  # Everything up to the first stop token, which counts.
    return sequences, mask


def step(model, optimizer, trained, prompts, sequences, mask, samples):
    model.train()
    length = prompts["input_ids"].shape[1]
    repeated = lambda tensor: tensor.repeat_interleave(samples, dim=0)
    grid = prompts["image_grid_thw"]
    counts = grid.prod(dim=1).tolist()
    patches = torch.cat([part.repeat(samples, 1) for part in prompts["pixel_values"].split(counts)])
    attention = torch.cat([repeated(prompts["attention_mask"]), mask.long()], dim=1)
    types = torch.cat([repeated(prompts["mm_token_type_ids"]), torch.zeros_like(mask, dtype=torch.int)], dim=1)
    logits = model(
        input_ids=sequences, attention_mask=attention, pixel_values=patches, image_grid_thw=repeated(grid),
        mm_token_type_ids=types,
    ).logits[:, length - 1:-1].float()
    logprobs = logits.log_softmax(-1).gather(-1, sequences[:, length:, None]).squeeze(-1)
    advantages = torch.randn(sequences.shape[0], 1, device=sequences.device)
    ratio = (logprobs - logprobs.detach()).exp()
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.28))
    loss = ((loss * mask).sum(1) / mask.sum(1)).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()

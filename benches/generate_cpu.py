"""The work of operators/torch/benches/generate.rs with transformers `generate`, in float32 on the CPU.

    cargo bench --workspace --bench generate -- MODEL_FOLDER --threads 2 [--image] [options]
    python benches/generate_cpu.py MODEL_FOLDER --threads 2 [--image] [the same options]

Needs torch and transformers 5. Prints one JSON line for each number of sequences. All prompts have the same length, so there is no
padding; end tokens are switched off, so that every sequence gets all its tokens.
"""

import argparse
import json
import math
import statistics
import time

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

FIRST_ID = 20
SIDE = 8


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sequences", default="1,16,64")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--image", action="store_true")
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(17)
    config = AutoConfig.from_pretrained(args.model)
    kind = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    model = kind.from_pretrained(args.model, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    for count in map(int, args.sequences.split(",")):
        inputs = batch(config, args, count)
        first, _ = timed(model, inputs, args, 1)
        runs = [timed(model, inputs, args, args.new_tokens) for _ in range(args.repeat)]
        seconds = statistics.median(run[0] for run in runs)
        new = runs[-1][1][:, inputs["input_ids"].shape[1] :]
        print(json.dumps({
            "peer": f"torch {torch.__version__}, transformers",
            "sequences": count,
            "tokens": new.numel(),
            "seconds": seconds,
            "tokens_per_s": new.numel() / seconds,
            "first_token_s": first,
            "step_ms": (seconds - first) / max(args.new_tokens - 1, 1) * 1e3,
            "head": new[-1, :8].tolist(),
        }), flush=True)


def timed(model, inputs, args, new_tokens):
    sampling = {"do_sample": True, "temperature": args.temperature, "top_k": 0, "top_p": 1.0} if args.temperature else {"do_sample": False}
    start = time.perf_counter()
    with torch.inference_mode():
        out = model.generate(**inputs, max_new_tokens=new_tokens, **sampling)
    return time.perf_counter() - start, out


def batch(config, args, count):
    text = config.get_text_config()
    vocab = min(text.vocab_size, 40_000)
    rows = [[FIRST_ID + (place * 7919 + row * 104_729) % (vocab - FIRST_ID) for place in range(args.prompt_tokens)] for row in range(count)]
    inputs = {}
    if args.image:
        vision = config.vision_config
        span = [config.vision_start_token_id] + [config.image_token_id] * (SIDE * SIDE // vision.spatial_merge_size**2) + [config.vision_end_token_id]
        rows = [row[:4] + span + row[4:] for row in rows]
        width = 3 * vision.patch_size**2 * vision.temporal_patch_size
        values = [math.sin(0.1 * place + row) for row in range(count) for place in range(SIDE * SIDE * width)]
        inputs["pixel_values"] = torch.tensor(values).view(count * SIDE * SIDE, width)
        inputs["image_grid_thw"] = torch.tensor([[1, SIDE, SIDE]] * count)
        inputs["mm_token_type_ids"] = (torch.tensor(rows) == config.image_token_id).long()
    inputs["input_ids"] = torch.tensor(rows)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return inputs


main()

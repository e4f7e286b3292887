"""Training beside PyTorch with transformers and fused AdamW on the same machine: losses, tokens/s, utilisation, memory.

    cargo build --release --workspace --benches
    python benches/train.py cpu --train target/release/deps/train-* --out results
    python benches/train.py gpu --train target/release/deps/train-* --out results

Needs torch and transformers. Models have random weights and the shapes of published ones; nothing is fetched. Each program trains on the
same batches in the same order; `loss gap` is the largest difference of the losses of a step.
"""

import argparse
import gc
import json
import os
import random
import subprocess
import time
from pathlib import Path

import torch
import transformers

# Dense bf16 of an H100 SXM, in operations a second.
H100 = 989e12
THREE = dict(vocab_size=151936, hidden_size=2048, intermediate_size=11008, num_hidden_layers=36, num_attention_heads=16,
             num_key_value_heads=2, max_position_embeddings=32768, tie_word_embeddings=True, rope_theta=1e6)
SMALL3 = dict(vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
              num_key_value_heads=8, head_dim=128, max_position_embeddings=40960, tie_word_embeddings=True)
SMOL = dict(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
            num_key_value_heads=3, max_position_embeddings=8192, tie_word_embeddings=True)
TINY = dict(vocab_size=2048, hidden_size=256, intermediate_size=768, num_hidden_layers=6, num_attention_heads=8,
            num_key_value_heads=4, max_position_embeddings=4096, tie_word_embeddings=True)


def workloads(where):
    """Name, configuration, sequences of a step, tokens of each, options, whether the peer runs it too."""
    none = dict(eos_token_id=None, bos_token_id=None, pad_token_id=None)
    if where == "cpu":
        yield "tiny, 16 x 128", transformers.LlamaConfig(**TINY, **none), [128] * 16, {}, True
        yield "tiny, ragged", transformers.LlamaConfig(**TINY, **none), [32 * place for place in range(1, 17)], {}, True
        yield "135M, 4 x 256", transformers.LlamaConfig(**SMOL, **none), [256] * 4, {}, True
        return
    three = transformers.Qwen2Config(**THREE, **none)
    # As the peer trains: 16-bit weights and moments, here rounded at random instead of to the nearest.
    lean, passes = {"masters": "stochastic-rounding"}, {"micro_batch_tokens": 8192}
    yield "3B, 4 x 2048, 16-bit states", three, [2048] * 4, {**lean, **passes}, True
    yield "3B, 2 x 8192, 16-bit states", three, [8192] * 2, {**lean, **passes}, False
    yield "3B, 4 x 2048, 32-bit masters, recompute", three, [2048] * 4, {"recompute": True, **passes}, False
    yield "3B, deterministic, 4 x 2048, 16-bit states", three, [2048] * 4, {"deterministic": True, **lean, **passes}, False
    small = transformers.Qwen3Config(**SMALL3, **none)
    yield "0.6B, 4 x 8192", small, [8192] * 4, {}, False
    yield "0.6B, 2 x 16384", small, [16384] * 2, {}, False


def flops_per_token(config, lengths):
    """Of forward and backward, without recomputation: 6 for each weight of a matrix, and causal attention."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width, layers = config.hidden_size, config.num_hidden_layers
    attention = width * head * (2 * config.num_attention_heads + 2 * config.num_key_value_heads)
    weights = layers * (attention + 3 * width * config.intermediate_size) + width * config.vocab_size
    mean = sum(length * length for length in lengths) / sum(lengths)
    return 6 * weights + 6 * layers * config.num_attention_heads * head * mean


def make(config, folder, dtype):
    torch.manual_seed(7)
    config.dtype = str(dtype).removeprefix("torch.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.to(dtype).save_pretrained(folder, max_shard_size="4GB")
    del model
    gc.collect()
    if device == "cuda":
        # Ours is measured from the driver, which counts what this process keeps.
        torch.cuda.empty_cache()


def batches(config, lengths, steps):
    draw = random.Random(3)
    return [[[draw.randrange(config.vocab_size) for _ in range(length)] for length in lengths] for _ in range(steps)]


def peer(folder, data, warm_up, dtype, threads, rate, recompute=False):
    """Padded batches, the loss over all tokens but the first, fused AdamW on float32 or bf16 weights as loaded."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(threads)
    options = {} if device == "cpu" else {"attn_implementation": "sdpa"}
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options).to(device)
    model.config.use_cache = False
    model.train()
    if recompute:
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0, fused=True)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds, losses, tokens = [], [], 0
    for number, batch in enumerate(data):
        longest = max(map(len, batch))
        start = time.perf_counter()
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in batch], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in batch], device=device)
        attention = None if bool(mask.all()) else mask
        logits = model(input_ids=ids, attention_mask=attention).logits[:, :-1]
        labels = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if number >= warm_up:
            seconds.append(time.perf_counter() - start)
            tokens += sum(map(len, batch))
    # With what its allocator keeps, as ours is measured: from the driver.
    peak = torch.cuda.max_memory_reserved() if device == "cuda" else None
    del model, optimizer
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    return {"tokens_per_second": tokens / sum(seconds), "losses": losses, "peak_bytes": peak}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("where", choices=["cpu", "gpu"])
    parser.add_argument("--train", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("/tmp/train-models"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--only", default="")
    parser.add_argument("--without-peer", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    dtype = torch.float32 if args.where == "cpu" else torch.bfloat16
    precision, rate, warm_up = {"cpu": "float32", "gpu": "bfloat16"}[args.where], 1e-5, 2
    rows = []
    for name, config, lengths, options, has_peer in workloads(args.where):
        if args.only not in name:
            continue
        folder = args.work / f"{config.model_type}-{config.hidden_size}"
        if not (folder / "config.json").exists():
            make(config, folder, dtype)
        data = batches(config, lengths, args.steps)
        spec, results = args.out / "train.jobs.json", args.out / "train.results.json"
        job = {"name": name, "batches": data, "prompt": 1, "warm_up": warm_up}
        spec.write_text(json.dumps({"precision": precision, "threads": args.threads, "learning_rate": rate, "max_grad_norm": 1.0,
                                    "weight_decay": 0.0, "jobs": [job], **options}))
        device = ["cpu"] if args.where == "cpu" else []
        # As `metis-flow` starts its workers.
        environment = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", **os.environ}
        done = subprocess.run([args.train, folder, spec, results, *device], env=environment)
        if done.returncode != 0:
            rows.append({"work": name, "failed": done.returncode})
            continue
        ours = json.loads(results.read_text())[0]
        row = {"work": name, "tokens/s": round(ours["tokens_per_second"]), "peak GiB": round(ours["peak_bytes"] / 2**30, 2),
               "planned GiB": round(ours["planned_bytes"] / 2**30, 2)}
        row["TFLOP/s"] = round(ours["tokens_per_second"] * flops_per_token(config, lengths) / 1e12, 3)
        row["step s"] = [round(seconds, 3) for seconds in ours["seconds"]]
        if args.where == "gpu":
            row["share of 989 TFLOP/s"] = round(row["TFLOP/s"] * 1e12 / H100, 3)
        if has_peer and not args.without_peer:
            theirs = peer(folder, data, warm_up, dtype, args.threads, rate)
            row["peer tokens/s"] = round(theirs["tokens_per_second"])
            row["ratio"] = round(ours["tokens_per_second"] / theirs["tokens_per_second"], 2)
            row["peer peak GiB"] = theirs["peak_bytes"] and round(theirs["peak_bytes"] / 2**30, 2)
            row["loss gap"] = max(abs(a - b) for a, b in zip(ours["losses"], theirs["losses"]))
        print(json.dumps(row), flush=True)
        rows.append(row)
    (args.out / f"train-{args.where}.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

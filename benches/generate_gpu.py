"""Generation on a GPU: correctness first, then speed, beside transformers on the same machine.

    cargo build --release --workspace --bench jobs
    python benches/generate_gpu.py check --jobs target/release/deps/jobs-* --out results
    python benches/generate_gpu.py speed --jobs target/release/deps/jobs-* --out results

Needs torch with CUDA and transformers. Models have random weights and the shapes of published ones; nothing is fetched.
"""

import argparse
import json
import random
import subprocess
import time
from pathlib import Path

import torch
import transformers

TEXT = dict(vocab_size=8192, hidden_size=1024, intermediate_size=2816, num_hidden_layers=4, max_position_embeddings=8192,
            tie_word_embeddings=False, initializer_range=0.04, eos_token_id=None, bos_token_id=None, pad_token_id=None)
SEVEN = dict(vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
             num_key_value_heads=4, max_position_embeddings=32768, tie_word_embeddings=False, rope_theta=1e6,
             eos_token_id=None, bos_token_id=None)


def families():
    """Small models of each family with the head widths that the kernels cover."""
    rope = dict(rope_type="default", rope_theta=1e6)
    llama = {**TEXT, "hidden_size": 576, "intermediate_size": 1536}
    yield "llama", transformers.LlamaConfig(**llama, num_attention_heads=9, num_key_value_heads=3, head_dim=64)
    qwen2 = {**TEXT, "hidden_size": 896}
    yield "qwen2", transformers.Qwen2Config(**qwen2, num_attention_heads=7, num_key_value_heads=1, rope_parameters=rope)
    yield "qwen3", transformers.Qwen3Config(**TEXT, num_attention_heads=16, num_key_value_heads=8, head_dim=128,
                                            rope_parameters=rope)
    small = {**TEXT, "vocab_size": 8192, "num_attention_heads": 8, "num_key_value_heads": 2}
    vision = dict(depth=4, hidden_size=320, intermediate_size=640, num_heads=5, patch_size=14, spatial_merge_size=2,
                  window_size=112, fullatt_block_indexes=[1, 3], out_hidden_size=1024)
    mrope = dict(rope_type="default", rope_theta=1e6, mrope_section=[16, 24, 24])
    ids = dict(image_token_id=8000, video_token_id=8001, vision_start_token_id=8002, vision_end_token_id=8003)
    yield "qwen2_5_vl", transformers.Qwen2_5_VLConfig(text_config={**small, "rope_parameters": mrope}, vision_config=vision,
                                                      tie_word_embeddings=False, **ids)
    mrope = dict(rope_type="default", rope_theta=1e6, mrope_section=[24, 20, 20], mrope_interleaved=True)
    vision = dict(depth=4, hidden_size=320, intermediate_size=640, num_heads=5, patch_size=16, spatial_merge_size=2,
                  num_position_embeddings=256, deepstack_visual_indexes=[0, 2], out_hidden_size=1024)
    yield "qwen3_vl", transformers.Qwen3VLConfig(text_config={**small, "head_dim": 128, "rope_parameters": mrope},
                                                 vision_config=vision, tie_word_embeddings=False, **ids)


def model_class(config):
    return {"llama": transformers.LlamaForCausalLM, "qwen2": transformers.Qwen2ForCausalLM,
            "qwen3": transformers.Qwen3ForCausalLM,
            "qwen2_5_vl": transformers.Qwen2_5_VLForConditionalGeneration,
            "qwen3_vl": transformers.Qwen3VLForConditionalGeneration}[config.model_type]


def make(config, folder):
    """A folder with random weights in bf16."""
    torch.manual_seed(7)
    config.dtype = "bfloat16"
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = model_class(config)(config)
    torch.set_default_dtype(torch.float32)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="4GB")
    del model
    torch.cuda.empty_cache()


def run(args, model, jobs, name):
    spec, results = args.out / f"{name}.jobs.json", args.out / f"{name}.json"
    spec.write_text(json.dumps({"precision": "bfloat16", "jobs": jobs}))
    subprocess.run([args.jobs, model, spec, results], check=True)
    return {job["name"]: job for job in json.loads(results.read_text())}


def prompts_for(name, config, folder):
    rng = random.Random(3)
    prompts = []
    for length in [5, 64, 65, 130, 300, 511, 700, 2600]:
        prompts.append({"token_ids": [rng.randrange(7900) for _ in range(length)]})
    if name.endswith("_vl"):
        vision = config.vision_config
        width = 3 * vision.temporal_patch_size * vision.patch_size**2
        for number, grid in enumerate([(1, 4, 6), (1, 16, 10), (1, 22, 30)]):
            pixels = torch.randn(grid[0] * grid[1] * grid[2], width, generator=torch.Generator().manual_seed(number))
            pixels.numpy().astype("<f4").tofile(folder / f"image{number}.f32")
            count = grid[1] * grid[2] // 4
            ids = [rng.randrange(7900) for _ in range(20)] + [8002] + [8000] * count + [8003] + [rng.randrange(7900) for _ in range(30)]
            prompts.append({"token_ids": ids, "images": [{"grid_thw": grid, "file": str(folder / f"image{number}.f32")}]})
    return prompts


def reference(model, prompt, completion, temperature=1.0, raw=False):
    """Log-probabilities of a completion by transformers, teacher-forced."""
    ids = torch.tensor([prompt["token_ids"] + completion], device="cuda")
    extra = {}
    if prompt.get("images"):
        grids, pixels = [], []
        for image in prompt["images"]:
            values = torch.from_file(image["file"], size=Path(image["file"]).stat().st_size // 4, dtype=torch.float32)
            grid = image["grid_thw"]
            pixels.append(values.view(grid[0] * grid[1] * grid[2], -1))
            grids.append(grid)
        extra = {"pixel_values": torch.cat(pixels).to("cuda", model.dtype), "image_grid_thw": torch.tensor(grids, device="cuda"),
                 "mm_token_type_ids": (ids == 8000).int()}
    with torch.no_grad():
        logits = model(input_ids=ids, **extra).logits[0].float()
    start = len(prompt["token_ids"]) - 1
    if raw:
        return None, None, logits[start:-1]
    logprobs = (logits[start:-1] / temperature).log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(1, ids[0, start + 1:, None])[:, 0], entropy, logprobs


def key(completion):
    return completion["prompt"], completion["sample"]


def check(args):
    rows = []
    for name, config in families():
        folder = args.work / name
        if not folder.exists():
            make(config, folder)
        prompts = prompts_for(name, config, folder)
        # Enough samples that a prompt is read once for several of them, which must not change a bit of any.
        job = dict(prompts=prompts, samples=12, temperature=1.0, max_new_tokens=150, max_concurrent=160, keep=True)
        order = [7, 2, 0, 5] + ([9, 8] if name.endswith("_vl") else [])
        results = run(args, folder, [
            {**job, "name": "all", "recompute": True},
            {**job, "name": "cut", "order": order, "samples": 2},
            {**job, "name": "again"},
            {**job, "name": "greedy", "temperature": 0.0, "samples": 1},
            {**job, "name": "truncated", "top_k": 50, "top_p": 0.8, "min_p": 0.02, "temperature": 0.7},
            {**job, "name": "penalised", "repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.2,
             "max_new_tokens": 40},
            {**job, "name": "session", "lengths": [1 + 7 * place % 150 for place in range(12 * len(prompts))]},
        ], name)
        wide = model_class(config).from_pretrained(folder, dtype=torch.float32).cuda().eval()
        half = model_class(config).from_pretrained(folder, dtype=torch.bfloat16).cuda().eval()
        ours, theirs, gaps, entropies = [], [], [], []
        for completion in results["all"]["completions"]:
            # A sampled placeholder of an image is nothing that transformers takes.
            if completion["sample"] >= 3 or 8000 in completion["token_ids"]:
                continue
            prompt = prompts[completion["prompt"]]
            true, entropy, _ = reference(wide, prompt, completion["token_ids"])
            rough, _, _ = reference(half, prompt, completion["token_ids"])
            mine = torch.tensor(completion["logprobs"], device="cuda")
            ours.append(mine - true)
            theirs.append(rough - true)
            entropies.append(torch.tensor(completion["entropies"], device="cuda") - entropy)
        for completion, again in zip(results["all"]["completions"], results["all"]["recomputed"]):
            gaps.append(torch.tensor(completion["logprobs"]) - torch.tensor(again))
        rms = lambda parts: torch.cat(parts).double().pow(2).mean().sqrt().item()
        largest = lambda parts: torch.cat(parts).abs().max().item()
        whole = {key(each): each for each in results["all"]["completions"]}
        same = all(whole[key(each)]["token_ids"] == each["token_ids"] and whole[key(each)]["logprobs"] == each["logprobs"]
                   for each in results["cut"]["completions"] + results["again"]["completions"])
        prefix = sum(whole[key(each)]["token_ids"][:len(each["token_ids"])] == each["token_ids"]
                     for each in results["session"]["completions"])
        greedy = []
        for completion in results["greedy"]["completions"]:
            if 8000 in completion["token_ids"]:
                continue
            _, _, logprobs = reference(wide, prompts[completion["prompt"]], completion["token_ids"])
            chosen = logprobs.gather(1, torch.tensor(completion["token_ids"], device="cuda")[:, None])[:, 0]
            greedy.append(logprobs.max(-1).values - chosen)
        cut = []
        for completion in results["truncated"]["completions"][::4]:
            if 8000 in completion["token_ids"]:
                continue
            _, _, logprobs = reference(half, prompts[completion["prompt"]], completion["token_ids"], 0.7)
            cut.append(truncation_error(logprobs, completion))
        rows.append(dict(family=name, ours_rms=rms(ours), transformers_bf16_rms=rms(theirs), ours_max=largest(ours),
                         transformers_max=largest(theirs), entropy_rms=rms(entropies), recomputed_mean=torch.cat(gaps).abs().mean().item(),
                         recomputed_max=largest(gaps), cut_and_again_equal=same,
                         session_equal=f"{prefix}/{len(whole)}", greedy_margin_max=largest(greedy),
                         truncated_max=max(value for value, _ in cut), truncated_outside=sum(count for _, count in cut),
                         penalised=penalised(wide, prompts, results["penalised"]["completions"])))
        print(json.dumps(rows[-1], indent=1), flush=True)
        del wide, half
        torch.cuda.empty_cache()
    (args.out / "check.json").write_text(json.dumps(rows, indent=1))


def truncation_error(logprobs, completion):
    """Largest error of the truncated log-probability against transformers' warpers, and tokens that they would not allow."""
    tokens = torch.tensor(completion["token_ids"], device=logprobs.device)
    scores = logprobs.clone()
    for warper in (transformers.TopKLogitsWarper(50), transformers.TopPLogitsWarper(0.8), transformers.MinPLogitsWarper(0.02)):
        scores = warper(None, scores)
    expected = scores.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    mine = torch.tensor(completion["truncated_logprobs"], device=logprobs.device)
    inside = expected.isfinite()
    return (expected - mine)[inside].abs().median().item() if inside.any() else 9.0, int((~inside).sum())


def penalised(model, prompts, completions):
    """Median error of log-probabilities under penalties, by transformers' processor and OpenAI's formula on transformers' logits."""
    errors = []
    repetition = transformers.RepetitionPenaltyLogitsProcessor(1.3)
    for completion in [each for each in completions[:12] if 8000 not in each["token_ids"]]:
        prompt, tokens = prompts[completion["prompt"]], completion["token_ids"]
        _, _, logits = reference(model, prompt, tokens, raw=True)
        for place, token in enumerate(tokens):
            before = torch.tensor([prompt["token_ids"] + tokens[:place]], device="cuda")
            scores = repetition(before, logits[place][None].clone())[0]
            for seen in set(tokens[:place]):
                scores[seen] -= 0.5 + 0.2 * tokens[:place].count(seen)
            errors.append(abs(scores.log_softmax(-1)[token].item() - completion["logprobs"][place]))
    return sorted(errors)[len(errors) // 2]


class Peak:
    """Largest memory of the device while a program runs."""

    def __init__(self):
        self.process = subprocess.Popen(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-lms", "200"],
                                        stdout=subprocess.PIPE, text=True)

    def end(self):
        self.process.terminate()
        lines = [line.strip() for line in self.process.stdout.read().split("\n")]
        return max((int(line) for line in lines if line.isdigit()), default=0)


def speed(args):
    folder = args.work / "seven"
    start = time.time()
    if not folder.exists():
        config = transformers.Qwen2Config(**SEVEN)
        make(config, folder)
    print(f"made the model in {time.time() - start:.0f} s", flush=True)
    rng = random.Random(5)
    prompt = lambda length: {"token_ids": [rng.randrange(150000) for _ in range(length)]}
    common = dict(temperature=1.0, samples=1, max_new_tokens=256)
    lengths = [min(2048, int(rng.expovariate(1 / 256)) + 1) for _ in range(2048)]
    mean = round(sum(lengths) / len(lengths))
    jobs = []
    for count in args.counts:
        jobs.append({**common, "name": f"{count} sequences", "prompts": [prompt(128) for _ in range(count)],
                     "max_concurrent": count, "times": 2})
    jobs.append({**common, "name": "64 x 16, prompts of 1,024", "prompts": [prompt(1024) for _ in range(64)], "samples": 16,
                 "max_concurrent": 1024, "times": 2})
    many = [prompt(128) for _ in range(2048)]
    for slots in args.slots:
        ragged = {**common, "prompts": many, "max_concurrent": slots, "max_new_tokens": 2048}
        jobs.append({**ragged, "name": f"ragged, {slots} slots", "lengths": lengths})
        jobs.append({**ragged, "name": f"even, {slots} slots", "lengths": [mean] * 2048})
    peak = Peak()
    run(args, folder, jobs, "speed")
    print(f"peak {peak.end()} MiB", flush=True)
    if args.peers:
        peers(folder)


def peers(folder):
    model = transformers.Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).cuda().eval()
    for count in (1, 64, 256):
        ids = torch.randint(0, 150000, (count, 128), device="cuda")
        options = dict(max_new_tokens=256, min_new_tokens=256, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=0)
        model.generate(ids, **{**options, "max_new_tokens": 8, "min_new_tokens": 8})
        torch.cuda.synchronize()
        start = time.time()
        model.generate(ids, **options)
        torch.cuda.synchronize()
        seconds = time.time() - start
        print(f"transformers {transformers.__version__}, {count} sequences: {count * 256 / seconds:.0f} tokens/s", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["check", "speed"])
    parser.add_argument("--jobs", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--work", type=Path, default=Path("/tmp/models"))
    parser.add_argument("--counts", type=int, nargs="*", default=[1, 64, 256])
    parser.add_argument("--slots", type=int, nargs="*", default=[256])
    parser.add_argument("--peers", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    args.work.mkdir(parents=True, exist_ok=True)
    {"check": check, "speed": speed}[args.what](args)


if __name__ == "__main__":
    main()

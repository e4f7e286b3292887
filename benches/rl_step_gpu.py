"""A step of RL beside TRL's GRPOTrainer with its transformers generation, on one GPU: the time of its phases, tokens/s, utilisation.

    cargo build --release
    python benches/rl_step_gpu.py [--out results] [--only ours|trl] [--small]

Needs torch, transformers 5 and trl 1.16. The model has random weights and the shapes of Qwen2.5-0.5B; nothing is fetched. Both sides
sample 8 answers of exactly 512 tokens to each of 128 prompts of exactly 256, reward them by the same rule, and make one update of all
weights in bfloat16. Ours runs three steps and the median of the last two counts; TRL, after a warm-up of its kernels, runs one. Ours keeps
float32 copies of the weights for its optimizer, TRL updates the bfloat16 weights as they are. Verification runs while answers are
sampled; the phase `verify` is what is left of it afterwards. `--small` tries it all on a CPU.
"""

import argparse
import gc
import json
import random
import statistics
import string
import struct
import subprocess
import time
from pathlib import Path

import torch
import transformers

PROJECT = Path(__file__).parents[1]
# Dense bf16 of an H100 SXM, in operations a second.
H100 = 989e12
SHAPES = dict(vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
              num_key_value_heads=2, max_position_embeddings=32768, tie_word_embeddings=True, rope_theta=1e6)
TINY = dict(vocab_size=1000, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True)
FULL = dict(prompts=128, samples=8, prompt_tokens=256, new_tokens=512, micro_batch=16, shapes=SHAPES, dtype="bfloat16")
SMALL = dict(prompts=4, samples=2, prompt_tokens=32, new_tokens=8, micro_batch=4, shapes=TINY, dtype="float32")
STEPS = 3
RATE = 1e-6
END = "<end>"
PHASES = ["generate", "verify", "logprobs", "update", "record"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", type=Path, default=PROJECT / "target/release/metis-flow")
    parser.add_argument("--out", type=Path, default=Path("."))
    parser.add_argument("--work", type=Path, default=Path("/tmp/rl-step"))
    parser.add_argument("--only", choices=["ours", "trl"])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--micro-batch", type=int, help="sequences of a forward pass of TRL")
    args = parser.parse_args()
    size = dict(SMALL if args.small else FULL)
    size["micro_batch"] = args.micro_batch or size["micro_batch"]
    args.out.mkdir(parents=True, exist_ok=True)
    model = args.work / f"model-{size['shapes']['hidden_size']}"
    make_model(size, model)
    prompts = make_prompts(size)
    results = {"size": {key: value for key, value in size.items() if key != "shapes"}}
    sides = {"ours": lambda: ours(args, size, model, prompts), "trl": lambda: theirs(size, model, prompts, args.small)}
    for name, side in sides.items():
        if args.only in (None, name):
            results[name] = side()
            print(name, json.dumps(results[name], indent=1), flush=True)
            (args.out / "rl-step-gpu.json").write_text(json.dumps(results, indent=1) + "\n")
    if len(results) == 3:
        print(f"a step: {results['trl']['step_s'] / results['ours']['step_s']:.1f} times as fast as TRL")


def make_model(size, folder):
    """A Hugging Face folder with random weights, and a tokenizer whose tokens are bytes and invented words."""
    if (folder / "done").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(7)
    # No answer may end early, so the token that ends one is none of the vocabulary.
    vocabulary = size["shapes"]["vocab_size"]
    config = transformers.Qwen2Config(
        **size["shapes"], eos_token_id=vocabulary, bos_token_id=None, pad_token_id=None, dtype=size["dtype"])
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        made = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, size["dtype"]))
    made.save_pretrained(folder)
    del made
    if torch.cuda.is_available():
        # Memory is measured from the driver, which counts what this process keeps.
        torch.cuda.empty_cache()
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [vocabulary]}) + "\n")
    draw = random.Random(5)
    shown = [byte for byte in range(256) if 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174]
    hidden = [byte for byte in range(256) if byte not in shown]
    tokens = [chr(byte) for byte in shown] + [chr(256 + place) for place in range(len(hidden))]
    words = {}
    while len(words) < vocabulary - len(tokens) - 1:
        # Some are numbers, so that there are answers to judge.
        letters = string.digits if draw.random() < 0.05 else string.ascii_lowercase
        words["\u0120" + "".join(draw.choices(letters, k=draw.randint(2, 7)))] = None
    tokens += [*words, END]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized"], False)
    end = {"id": vocabulary - 1, "content": END, "special": True, **flags}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [end], "normalizer": None,
        "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "vocab": {token: index for index, token in enumerate(tokens)}, "merges": []},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": END, "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    (folder / "done").write_text("")


def make_prompts(size):
    """Texts of one token a letter, and the number that each asks for."""
    draw = random.Random(3)
    texts = ["".join(draw.choices(string.ascii_lowercase, k=size["prompt_tokens"])) for _ in range(size["prompts"])]
    return [(text, str(draw.randrange(100))) for text in texts]


def ours(args, size, model, prompts):
    folder = args.work / "ours"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"id": f"p{place}", "problem": text, "answer": answer}) for place, (text, answer) in enumerate(prompts)]
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    training = {
        "algorithm": {"grpo": {"clip-low": 0.2, "clip-high": 0.28}},
        "filter": "none",
        "steps": STEPS,
        "prompts-per-step": size["prompts"],
        "samples": size["samples"],
        "temperature": 1.0,
        "max-new-tokens": size["new_tokens"],
        "max-concurrent": size["prompts"] * size["samples"],
        "verify": {"math": {"format": "any", "extract": {"from": "number"}}},
        # Nearly all answers are wrong: the length of the text makes groups differ, so that all of them are learnt from.
        "score": {"accuracy": 1.0, "sql": {"letters": {"weight": 1.0, "expression": "length(text) / 10000.0"}}},
        "learning-rate": RATE,
        "warmup-steps": 0,
        "precision": size["dtype"],
    }
    pipeline = {
        "version": 1, "name": "rl-step", "seed": 17,
        "stages": {
            "prompts": {"source": {"path": "prompts.jsonl", "columns": {"id": "id"}}},
            "base": {"load-model": {"path": str(model)}},
            "rl": {"inputs": {"prompts": "prompts", "model": "base"}, "rl-train": training},
        },
    }
    # YAML reads JSON.
    (folder / "rl-step.yaml").write_text(json.dumps(pipeline, indent=1))
    device = "cpu" if args.small else "cuda:0"
    command = [args.engine.resolve(), "run", "rl-step.yaml", "--checkpoint-seconds", "3600", "--device", device]
    began = time.perf_counter()
    log = args.out / "rl-step-ours.log"
    with log.open("w") as file:
        done = subprocess.run([*command, "--force", "rl"], cwd=folder, stdout=file, stderr=subprocess.STDOUT)
    print(log.read_text(), flush=True)
    if done.returncode != 0:
        return {"failed": done.returncode}
    steps = read_events(max(folder.glob(".metis/tensorboard/rl-step/rl/*/events*"), key=lambda path: path.stat().st_mtime))
    return summary(size, list(steps.values()), time.perf_counter() - began)


def summary(size, steps, all_seconds):
    """Medians of the steps after the first."""
    def median(name):
        return statistics.median(step[name] for step in steps[1:])

    times = {phase: median(f"time/{phase}_s") for phase in PHASES}
    step = median("time/step_s")
    times["waiting and other"] = step - sum(times.values())
    sampled = median("tokens")
    expected = size["prompts"] * size["samples"] * size["new_tokens"]
    flops, passed = update_flops(size)
    return {
        "step_s": step,
        "first step_s": steps[0]["time/step_s"],
        "phases_s": {name: round(seconds, 4) for name, seconds in times.items()},
        "phases, share": {name: round(seconds / step, 4) for name, seconds in times.items()},
        "sampled tokens": sampled,
        "sampled tokens expected": expected,
        "trained sequences": median("trained_sequences"),
        "generation, tokens/s": round(sampled / times["generate"]),
        "update, trained tokens/s": round(median("trained_tokens") / times["update"]),
        "update, tokens of the pass": passed,
        "update, tokens of the pass/s": round(passed / times["update"]),
        "update, TFLOP": round(flops / 1e12, 3),
        "update, share of 989 TFLOP/s": round(flops / times["update"] / H100, 4),
        "logprob_gap_mean": median("logprob_gap_mean"),
        "grad_norm": median("grad_norm"),
        "memory_peak_gib": median("memory_peak_gib"),
        "all steps_s": [step["time/step_s"] for step in steps],
        "run_s": all_seconds,
    }


def update_flops(size):
    """Operations that forward and backward of an update need, and tokens of its pass: each prompt counts once, the output layer counts
    for the tokens that are predicted, attention is causal. Computing anything twice does not count."""
    shapes = size["shapes"]
    width, layers, heads = shapes["hidden_size"], shapes["num_hidden_layers"], shapes["num_attention_heads"]
    head = width // heads
    matrices = layers * (width * head * (2 * heads + 2 * shapes["num_key_value_heads"]) + 3 * width * shapes["intermediate_size"])
    prompt, new, samples, prompts = size["prompt_tokens"], size["new_tokens"], size["samples"], size["prompts"]
    passed = prompts * (prompt + samples * new)
    predicted = prompts * samples * new
    pairs = prompts * (prompt**2 / 2 + samples * (prompt * new + new**2 / 2))
    return 6 * matrices * passed + 6 * width * shapes["vocab_size"] * predicted + 12 * layers * heads * head * pairs, passed


def read_events(path):
    """Step -> name -> value of a TensorBoard event file with one scalar a value."""
    data, at, steps = path.read_bytes(), 0, {}
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        event = dict_of(data[at + 12 : at + 12 + length])
        at += length + 16
        for one in event.get(5, []):
            for value in dict_of(one).get(1, []):
                fields = dict_of(value)
                if 2 in fields:
                    number = struct.unpack("<f", fields[2][0])[0]
                elif 8 in fields:
                    number = tensor_value(fields[8][0])
                else:
                    continue
                steps.setdefault(event.get(2, [0])[0], {})[fields[1][0].decode()] = number
    return {step: values for step, values in sorted(steps.items()) if "time/step_s" in values}


def tensor_value(data):
    """The value of a tensor of one float."""
    fields = dict_of(data)
    (values,) = fields.get(5) or fields.get(4)
    return struct.unpack("<f", values[:4])[0]


def dict_of(data):
    """Fields of a protocol buffer message: number -> values, bytes or integers."""
    fields, at = {}, 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        key = varint()
        if key & 7 == 0:
            value = varint()
        else:
            length = {1: 8, 5: 4}.get(key & 7) or varint()
            value = data[at : at + length]
            at += length
        fields.setdefault(key >> 3, []).append(value)
    return fields


def theirs(size, folder, prompts, small):
    import trl

    answers = dict(prompts)

    def reward(prompts, completions, **_):
        rewards = []
        for prompt, text in zip(prompts, completions):
            numbers = [word for word in text.split() if word.isdigit()]
            rewards.append(float(bool(numbers) and numbers[-1] == answers[prompt]) + len(text) / 10000)
        return rewards

    micro_batch = size["micro_batch"]
    while True:
        trainer = trainer_of(size, folder, [prompt for prompt, _ in prompts], reward, micro_batch, small)
        try:
            warm_up(trainer, size, micro_batch)
            break
        except torch.cuda.OutOfMemoryError:
            if micro_batch == 1:
                raise
        del trainer
        micro_batch //= 2
        gc.collect()
        torch.cuda.empty_cache()

    calls = {}
    for name in ["_generate_and_score_completions", "_generate_single_turn", "_calculate_rewards"]:
        time_calls(trainer, name, calls, small)
    clock = Clock(small)
    trainer.add_callback(clock)
    if not small:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    step, collected = clock.seconds, calls["_generate_and_score_completions"]
    generated, rewarded = calls["_generate_single_turn"], calls["_calculate_rewards"]
    flops, _ = update_flops(size)
    return {
        "versions": f"trl {trl.__version__}, transformers {transformers.__version__}, torch {torch.__version__}",
        "step_s": step,
        "phases_s": {"generate": generated, "rewards": rewarded, "update": step - collected, "other": collected - generated - rewarded},
        "sampled tokens": calls["tokens"],
        "generation, tokens/s": round(calls["tokens"] / generated),
        "update, trained tokens/s": round(calls["tokens"] / (step - collected)),
        "update, share of 989 TFLOP/s, each prompt once": round(flops / (step - collected) / H100, 4),
        "micro_batch": micro_batch,
        "memory_peak_gib": None if small else torch.cuda.max_memory_allocated() / 2**30,
        "log": trainer.state.log_history,
    }


def trainer_of(size, folder, prompts, reward, micro_batch, small):
    import trl
    from datasets import Dataset

    torch.manual_seed(17)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, size["dtype"]))
    model.to("cpu" if small else "cuda").generation_config.eos_token_id = None
    config = trl.GRPOConfig(
        output_dir=str(folder.parent / "trl"), max_steps=1, learning_rate=RATE, lr_scheduler_type="constant",
        per_device_train_batch_size=micro_batch, gradient_accumulation_steps=size["prompts"] * size["samples"] // micro_batch,
        num_generations=size["samples"], max_completion_length=size["new_tokens"], temperature=1.0, top_k=0, top_p=1.0, beta=0.0,
        epsilon=0.2, epsilon_high=0.28, loss_type="grpo", use_vllm=False, generation_kwargs={"min_new_tokens": size["new_tokens"]},
        bf16=not small, gradient_checkpointing=False, use_cpu=small, optim="adamw_torch_fused", logging_steps=1, report_to=[],
        save_strategy="no", disable_tqdm=True, shuffle_dataset=False, max_grad_norm=1.0)
    rows = Dataset.from_list([{"prompt": prompt} for prompt in prompts])
    return trl.GRPOTrainer(model=model, reward_funcs=reward, args=config, train_dataset=rows, processing_class=tokenizer)


def time_calls(trainer, name, calls, small):
    """Adds up the seconds of a method, under its name in `calls`."""
    call = getattr(trainer, name)

    def wrapped(*arguments, **options):
        synchronize(small)
        began = time.perf_counter()
        result = call(*arguments, **options)
        synchronize(small)
        calls[name] = calls.get(name, 0.0) + time.perf_counter() - began
        if name == "_generate_single_turn":
            calls["tokens"] = sum(len(ids) for ids in result[0])
        return result

    setattr(trainer, name, wrapped)


class Clock(transformers.TrainerCallback):
    """Seconds of the last step."""

    def __init__(self, small):
        self.small, self.began, self.seconds = small, 0.0, 0.0

    def on_step_begin(self, *_, **__):
        synchronize(self.small)
        self.began = time.perf_counter()

    def on_step_end(self, *_, **__):
        synchronize(self.small)
        self.seconds = time.perf_counter() - self.began


def warm_up(trainer, size, micro_batch):
    """A few tokens and one backward pass of a micro-batch, so that nothing is loaded or compiled in the step that is timed."""
    model = trainer.model

    def draw(*shape):
        return torch.randint(0, size["shapes"]["vocab_size"] - 1, shape, device=model.device)

    ids = draw(size["prompts"], size["prompt_tokens"])
    with torch.no_grad():
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=True, pad_token_id=0)
    ids = draw(micro_batch, size["prompt_tokens"] + size["new_tokens"])
    labels = ids.clone()
    labels[:, : size["prompt_tokens"]] = -100
    model.train()
    with trainer.accelerator.autocast():
        # As the trainer calls it.
        found = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels, fused_lm_head=True)
    found.log_probs.mean().backward()
    model.zero_grad()


def synchronize(small):
    if not small:
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()

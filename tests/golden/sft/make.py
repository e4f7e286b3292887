"""Makes the golden files of supervised training from transformers, peft and torch.optim.

    python make.py [OUTPUT_FOLDER]     # torch 2.11, transformers 5.17, peft 0.21, safetensors

- `adamw/`: a few weights, gradients of 20 steps, and where torch.optim.AdamW and clip_grad_norm_ take the weights;
- `examples.json`: conversations for the tiny Qwen2.5-VL `grouped_tied` (its images are those of that model's own cases), which
  ones each step has, and the learning rates;
- `full.json`, `full.safetensors`: 50 steps over all weights: losses, gradient norms, and how far each weight moved (16 bits);
- `../lora/following.json`, `../lora/initial.safetensors`, `../lora/final.safetensors`: 20 steps with adapters of peft.

Everything is in 32 bits on the CPU. A step's loss is the mean over all completion tokens of the step. Weight decay is for matrices.
A weight that no sequence of a step reaches (the tower, without images) has a zero gradient, so its moments go on.
"""

import json
import math
import sys
from pathlib import Path

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration

HERE = Path(__file__).parent
MODEL = HERE.parent / "qwen2_5_vl" / "grouped_tied"
IMAGE, VISION_START, VISION_END, END = 5, 3, 4, 2
# Case of the model's golden files, and the image's place in it.
IMAGES = [(1, 0), (2, 0), (2, 1)]
FULL_STEPS, LORA_STEPS, STEP_EXAMPLES = 50, 20, 3
OPTIMIZER = {"beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "weight_decay": 0.05, "max_grad_norm": 1.0}
LORA = {"rank": 4, "alpha": 6.0, "targets": ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "qkv"]}


def images():
    tensors = load_file(MODEL / "cases.safetensors")
    grids = [case["grids"] for case in json.loads((MODEL / "cases.json").read_text())["cases"]]
    for case, place in IMAGES:
        sizes = [math.prod(grid) for grid in grids[case]]
        start = sum(sizes[:place])
        yield grids[case][place], tensors[f"{case}.pixel_values"][start:start + sizes[place]]


def make_examples():
    generator = torch.Generator().manual_seed(11)
    words = lambda count: torch.randint(7, 120, (count,), generator=generator).tolist()
    grids = [grid for grid, _ in images()]
    examples = []
    for number, image in enumerate([0, None, 1, 2, None, 0, 2, None]):
        prompt = words(3 + number)
        if image is not None:
            count = math.prod(grids[image]) // 4
            prompt[2:2] = [VISION_START] + [IMAGE] * count + [VISION_END]
        examples.append({"image": image, "prompt": prompt, "completion": words(1 + 2 * number % 7) + [END]})
    steps = [torch.randperm(len(examples), generator=generator)[:STEP_EXAMPLES].tolist() for _ in range(FULL_STEPS)]
    rate = lambda step: 0.5 * (1 + math.cos(math.pi * step / FULL_STEPS)) * min(1.0, (step + 1) / 5)
    return {
        "images": IMAGES, "examples": examples, "steps": steps, "optimizer": OPTIMIZER, "lora": LORA,
        "full_rates": [2e-3 * rate(step) for step in range(FULL_STEPS)],
        "lora_rates": [1e-2 * rate(step) for step in range(LORA_STEPS)],
    }


def load():
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(MODEL, attn_implementation="eager").float().eval()


def groups(model):
    trained = [p for p in model.parameters() if p.requires_grad]
    decay = OPTIMIZER["weight_decay"]
    return [{"params": [p for p in trained if p.dim() > 1], "weight_decay": decay},
            {"params": [p for p in trained if p.dim() == 1], "weight_decay": 0.0}]


def train(model, facts, rates):
    pictures = list(images())
    optimizer = torch.optim.AdamW(
        groups(model), betas=(OPTIMIZER["beta1"], OPTIMIZER["beta2"]), eps=OPTIMIZER["epsilon"], foreach=False)
    losses, norms = [], []
    for step, rate in enumerate(rates):
        batch = [facts["examples"][index] for index in facts["steps"][step]]
        tokens = sum(len(example["completion"]) for example in batch)
        optimizer.zero_grad(set_to_none=False)
        total = 0.0
        for example in batch:
            ids = torch.tensor([example["prompt"] + example["completion"]])
            extra = {}
            if example["image"] is not None:
                grid, pixels = pictures[example["image"]]
                extra = {"pixel_values": pixels, "image_grid_thw": torch.tensor([grid])}
            logits = model(input_ids=ids, mm_token_type_ids=(ids == IMAGE).int(), use_cache=False, **extra).logits[0]
            count = len(example["completion"])
            loss = torch.nn.functional.cross_entropy(
                logits[-count - 1:-1], torch.tensor(example["completion"]), reduction="sum") / tokens
            loss.backward()
            total += loss.item()
        trained = [p for p in model.parameters() if p.requires_grad]
        norms.append(torch.nn.utils.clip_grad_norm_(trained, OPTIMIZER["max_grad_norm"]).item())
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        losses.append(total)
    return losses, norms


def full(facts, out):
    model = load()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses, norms = train(model, facts, facts["full_rates"])
    moved = {name: (value - before[name]).half() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    save_file(moved, out / "full.safetensors")
    report = {"transformers": transformers.__version__, "torch": torch.__version__, "losses": losses, "grad_norms": norms}
    (out / "full.json").write_text(json.dumps(report, indent=1) + "\n")


def lora(facts, out):
    torch.manual_seed(5)
    config = LoraConfig(
        r=LORA["rank"], lora_alpha=LORA["alpha"], target_modules=LORA["targets"], lora_dropout=0.0, task_type="CAUSAL_LM")
    model = get_peft_model(load(), config).eval()
    adapters = lambda: {name: value.clone().contiguous() for name, value in get_peft_model_state_dict(model).items()}
    save_file(adapters(), out / "initial.safetensors")
    losses, norms = train(model, facts, facts["lora_rates"])
    save_file(adapters(), out / "final.safetensors")
    report = {"peft": peft.__version__, "torch": torch.__version__, "losses": losses, "grad_norms": norms}
    (out / "following.json").write_text(json.dumps(report, indent=1) + "\n")


def adamw(out):
    """Three runs: as it is; with decay and clipping; the same with a tenth of the rate for the vector."""
    generator = torch.Generator().manual_seed(3)
    start = {"matrix": torch.randn(6, 5, generator=generator), "vector": torch.randn(7, generator=generator)}
    steps = {name: torch.randn(20, *value.shape, generator=generator) for name, value in start.items()}
    sizes = torch.logspace(-3, 1, 20)[torch.randperm(20, generator=generator)]
    gradients = {name: value * sizes.view(-1, *[1] * (value.dim() - 1)) for name, value in steps.items()}
    save_file(start, out / "model.safetensors")
    results = {f"gradients.{name}": value for name, value in gradients.items()}
    for run, (decay, limit, factor) in enumerate([(0.0, math.inf, 1.0), (0.1, 1.0, 1.0), (0.1, 1.0, 0.1)]):
        weights = {name: value.clone().requires_grad_() for name, value in start.items()}
        optimizer = torch.optim.AdamW([
            {"params": [weights["matrix"]], "weight_decay": decay},
            {"params": [weights["vector"]], "weight_decay": 0.0},
        ], betas=(0.9, 0.999), eps=1e-8, foreach=False)
        for step in range(20):
            for name, weight in weights.items():
                weight.grad = gradients[name][step].clone()
            torch.nn.utils.clip_grad_norm_(weights.values(), limit)
            rate = 1e-2 / (step + 1)
            optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = rate, rate * factor
            optimizer.step()
        results |= {f"{run}.{name}": weight.detach() for name, weight in weights.items()}
    save_file(results, out / "steps.safetensors")


if __name__ == "__main__":
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent
    for folder in ("sft/adamw", "lora"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    facts = make_examples()
    (out / "sft" / "examples.json").write_text(json.dumps(facts) + "\n")
    adamw(out / "sft" / "adamw")
    full(facts, out / "sft")
    lora(facts, out / "lora")

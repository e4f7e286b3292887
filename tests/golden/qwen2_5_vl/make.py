"""Makes the golden files of the Qwen2.5-VL architecture from transformers.

Each folder beside this script is a tiny model with random weights, saved by transformers, with `cases.safetensors`
(inputs and expected outputs) and `cases.json` (expected losses and gradient norms). Run it again only when a
configuration or a case changes:

    python make.py OUTPUT_FOLDER        # torch 2.11, transformers 5.17, safetensors
"""

import json
import math
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

IMAGE, VIDEO, VISION_START, VISION_END = 5, 6, 3, 4
GREEDY_TOKENS = 12
LEARNT_TOKENS = 5

# Grouped heads with tied embeddings; windows of 4 merged patches; the released layout of config.json.
GROUPED_TIED = {
    "text": {
        "vocab_size": 120, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "mrope_section": [1, 1, 2], "rope_theta": 1000.0,
        "rms_norm_eps": 1e-6, "tie": True,
    },
    "vision": {
        "depth": 3, "hidden_size": 32, "intermediate_size": 40, "num_heads": 2, "patch_size": 4,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 32, "fullatt_block_indexes": [1],
    },
    "released_layout": True,
    "grids": [[[1, 6, 4]], [[1, 10, 18], [1, 8, 8]]],
}
# Odd sizes, own output head, as many key heads as query heads; windows of 2 merged patches.
ODD_UNTIED = {
    "text": {
        "vocab_size": 97, "hidden_size": 36, "intermediate_size": 53, "num_hidden_layers": 3,
        "num_attention_heads": 3, "num_key_value_heads": 3, "mrope_section": [2, 1, 3], "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-5, "tie": False,
    },
    "vision": {
        "depth": 2, "hidden_size": 24, "intermediate_size": 37, "num_heads": 3, "patch_size": 5,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 20, "fullatt_block_indexes": [0],
    },
    "released_layout": False,
    "grids": [[[1, 10, 6]], [[1, 2, 14], [1, 6, 2], [1, 4, 4]]],
}
# One key head for all query heads; merges of 3 x 3 patches; windows of 2 merged patches; one temporal frame a patch.
MULTI_QUERY = {
    "text": {
        "vocab_size": 64, "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 1, "mrope_section": [2, 2, 2], "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6, "tie": False,
    },
    "vision": {
        "depth": 4, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 4,
        "spatial_merge_size": 3, "temporal_patch_size": 1, "window_size": 24, "fullatt_block_indexes": [1, 3],
    },
    "released_layout": True,
    "grids": [[[1, 9, 6]], [[1, 15, 9], [1, 3, 12]]],
}
MODELS = {"grouped_tied": GROUPED_TIED, "odd_untied": ODD_UNTIED, "multi_query": MULTI_QUERY}


def build(spec):
    text, vision = dict(spec["text"]), dict(spec["vision"])
    tie = text.pop("tie")
    section, theta = text.pop("mrope_section"), text.pop("rope_theta")
    config = Qwen2_5_VLConfig(
        text_config={
            **text,
            "rope_parameters": {"rope_type": "default", "rope_theta": theta, "mrope_section": section},
            "max_position_embeddings": 256, "use_sliding_window": False, "bos_token_id": 1, "eos_token_id": 2,
            "tie_word_embeddings": tie,
        },
        vision_config={**vision, "in_channels": 3, "out_hidden_size": text["hidden_size"], "tokens_per_second": 2},
        image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END, tie_word_embeddings=tie,
    )
    config._attn_implementation = "eager"
    model = Qwen2_5_VLForConditionalGeneration(config).float().eval()
    # Weights of ordinary size instead of the small initial ones, so that every part of the model shows in the logits.
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:
                centre = 1.0 if "norm" in name or "ln_q" in name else 0.0
                weight.copy_(centre + 0.1 * torch.randn_like(weight))
            elif "embed_tokens" in name:
                weight.copy_(0.5 * torch.randn_like(weight))
            else:
                weight.copy_(torch.randn_like(weight) / math.sqrt(weight[0].numel()))
    model.tie_weights()
    return model


def released_layout(folder):
    """Rewrites config.json as the published checkpoints have it: text fields at the top, `rope_scaling`."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    for key in ("model_type", "layer_types", "dtype"):
        text.pop(key, None)
    config.update({key: value for key, value in text.items() if key not in config or config[key] is None})
    config["rope_theta"] = rope["rope_theta"]
    config["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    config["torch_dtype"] = config.pop("dtype", "float32")
    vision = config["vision_config"]
    vision["in_chans"] = vision.pop("in_channels")
    path.write_text(json.dumps(config, indent=2) + "\n")


def prompt(vocab, grids, merge):
    ids = torch.randint(7, vocab, (4,)).tolist()
    for t, h, w in grids:
        ids += [VISION_START] + [IMAGE] * (t * h * w // merge**2) + [VISION_END]
        ids += torch.randint(7, vocab, (3,)).tolist()
    return ids + torch.randint(7, vocab, (6,)).tolist()


def forward(model, ids, pixels, grids):
    ids = torch.tensor([ids])
    extra = {}
    if grids:
        extra = {"pixel_values": pixels, "image_grid_thw": torch.tensor(grids)}
    return model(input_ids=ids, mm_token_type_ids=(ids == IMAGE).int(), use_cache=False, **extra).logits[0]


def make(name, spec, out):
    torch.manual_seed(sum(name.encode()))
    model = build(spec)
    folder = out / name
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if spec["released_layout"]:
        released_layout(folder)
        again = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()
    else:
        again = model
    seen = {}
    model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(positions=kwargs["position_ids"]), with_kwargs=True)

    merge = spec["vision"]["spatial_merge_size"]
    width = 3 * spec["vision"]["temporal_patch_size"] * spec["vision"]["patch_size"] ** 2
    tensors, facts = {}, {"transformers": transformers.__version__, "torch": torch.__version__, "cases": []}
    for case, grids in enumerate([[]] + spec["grids"]):
        ids = prompt(spec["text"]["vocab_size"], grids, merge)
        pixels = torch.randn(sum(t * h * w for t, h, w in grids), width) if grids else None
        with torch.no_grad():
            logits = forward(model, ids, pixels, grids)
            assert torch.allclose(logits, forward(again, ids, pixels, grids), atol=1e-5)
            positions = seen["positions"]
            # Text alone may come without the axis dimension; newer versions add a row of plain positions.
            positions = positions[-3:, 0] if positions is not None and positions.dim() == 3 else None
            greedy = []
            while len(greedy) < GREEDY_TOKENS:
                token = forward(model, ids + greedy, pixels, grids)[-1].argmax().item()
                # A placeholder would want a picture of its own on the next pass.
                if token in (IMAGE, VIDEO, VISION_START):
                    break
                greedy.append(token)
        model.zero_grad()
        learnt = forward(model, ids, pixels, grids)[-LEARNT_TOKENS - 1:-1]
        loss = torch.nn.functional.cross_entropy(learnt, torch.tensor(ids[-LEARNT_TOKENS:]))
        loss.backward()
        norms = {n: p.grad.norm().item() for n, p in model.named_parameters() if p.grad is not None}
        facts["cases"].append({
            "grids": grids, "loss": loss.item(), "learnt_tokens": LEARNT_TOKENS,
            "grad_norm": math.sqrt(sum(value**2 for value in norms.values())), "grad_norms": norms,
        })
        tensors[f"{case}.input_ids"] = torch.tensor(ids)
        tensors[f"{case}.logits"] = logits.contiguous()
        tensors[f"{case}.greedy"] = torch.tensor(greedy)
        if positions is not None:
            tensors[f"{case}.positions"] = positions.contiguous()
        if grids:
            tensors[f"{case}.pixel_values"] = pixels
    save_file(tensors, folder / "cases.safetensors")
    (folder / "cases.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    for name, spec in MODELS.items():
        make(name, spec, Path(sys.argv[1]))

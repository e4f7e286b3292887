"""Makes the golden files of the model families from transformers.

    python make_models.py FAMILY [OUTPUT_FOLDER]     # torch 2.11, transformers 5.17, safetensors

FAMILY is the folder beside this script that the models go to: qwen2_5_vl, qwen3_vl, qwen2, qwen3 or llama. Each model is tiny,
with random weights, saved by transformers, with `cases.safetensors` (inputs and expected outputs) and `cases.json` (expected
losses, gradient norms, and the error of transformers' own 16-bit pass). Run it again only when a configuration or a case changes.
"""

import json
import math
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import (
    LlamaConfig, LlamaForCausalLM, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Config, Qwen2ForCausalLM,
    Qwen3Config, Qwen3ForCausalLM, Qwen3VLConfig, Qwen3VLForConditionalGeneration,
)

IMAGE, VIDEO, VISION_START, VISION_END = 5, 6, 3, 4
GREEDY_TOKENS = 12
LEARNT_TOKENS = 5
# Tokens of the prompts of text models: one is longer than the original context of scaled rotary frequencies.
TEXT_LENGTHS = (9, 60)

QWEN2_5_VL = {
    # Grouped heads with tied embeddings; windows of 4 merged patches; the released layout of config.json.
    "grouped_tied": {
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
    },
    # Odd sizes, own output head, as many key heads as query heads; windows of 2 merged patches.
    "odd_untied": {
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
    },
    # One key head for all query heads; merges of 3 x 3 patches; windows of 2 merged patches; one temporal frame a patch.
    "multi_query": {
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
    },
}
QWEN3_VL = {
    # Heads wider than their share of the model; images smaller and larger than the table of positions.
    "grouped_tied": {
        "text": {
            "vocab_size": 120, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "mrope_section": [3, 3, 2],
            "rope_theta": 1000.0, "rms_norm_eps": 1e-6, "tie": True,
        },
        "vision": {
            "depth": 3, "hidden_size": 32, "intermediate_size": 40, "num_heads": 2, "patch_size": 4,
            "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 2],
        },
        "released_layout": True,
        "grids": [[[1, 6, 4]], [[1, 10, 18], [1, 2, 2], [1, 8, 8]]],
    },
    # Odd sizes, own output head, one key head, uneven rotary axes; merges of 3 x 3 patches; one temporal frame a patch.
    "odd_untied": {
        "text": {
            "vocab_size": 97, "hidden_size": 40, "intermediate_size": 53, "num_hidden_layers": 2,
            "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 12, "mrope_section": [2, 1, 3],
            "rope_theta": 1000000.0, "rms_norm_eps": 1e-5, "tie": False,
        },
        "vision": {
            "depth": 2, "hidden_size": 24, "intermediate_size": 37, "num_heads": 3, "patch_size": 5,
            "spatial_merge_size": 3, "temporal_patch_size": 1, "num_position_embeddings": 25,
            "deepstack_visual_indexes": [1],
        },
        "released_layout": False,
        "grids": [[[1, 9, 6]], [[1, 3, 12], [1, 15, 3]]],
    },
    # The published patch size; as many key heads as query heads; every block of the tower is tapped.
    "patch16": {
        "text": {
            "vocab_size": 120, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8, "mrope_section": [2, 1, 1],
            "rope_theta": 5000000.0, "rms_norm_eps": 1e-6, "tie": False,
        },
        "vision": {
            "depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 16,
            "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 9,
            "deepstack_visual_indexes": [0, 1],
        },
        "released_layout": True,
        "grids": [[[1, 4, 6]], [[1, 2, 6], [1, 4, 2]]],
    },
}
QWEN2 = {
    "grouped_tied": {
        "text": {
            "vocab_size": 120, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "rope_theta": 1000.0, "rms_norm_eps": 1e-6, "tie": True,
        },
        "released_layout": True,
    },
    # In files of at most 45 kB.
    "odd_untied": {
        "text": {
            "vocab_size": 97, "hidden_size": 36, "intermediate_size": 53, "num_hidden_layers": 3,
            "num_attention_heads": 3, "num_key_value_heads": 3, "rope_theta": 1000000.0, "rms_norm_eps": 1e-5,
            "tie": False,
        },
        "released_layout": False,
        "shard": "45KB",
    },
}
QWEN3 = {
    # Heads wider than their share of the model.
    "wide_heads": {
        "text": {
            "vocab_size": 120, "hidden_size": 40, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rope_theta": 1000.0,
            "rms_norm_eps": 1e-6, "tie": True,
        },
        "released_layout": True,
    },
    # Heads narrower than that, one key head.
    "narrow_heads": {
        "text": {
            "vocab_size": 97, "hidden_size": 42, "intermediate_size": 53, "num_hidden_layers": 3,
            "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 10, "rope_theta": 1000000.0,
            "rms_norm_eps": 1e-5, "tie": False,
        },
        "released_layout": False,
        "shard": "45KB",
    },
}
LLAMA = {
    # The ratio of heads of SmolLM2-135M.
    "smol": {
        "text": {
            "vocab_size": 120, "hidden_size": 72, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 9, "num_key_value_heads": 3, "rope_theta": 100000.0, "rms_norm_eps": 1e-5, "tie": True,
        },
        "released_layout": True,
    },
    # Kept, blended and stretched frequencies, in the released layout.
    "scaled_released": {
        "text": {
            "vocab_size": 97, "hidden_size": 48, "intermediate_size": 53, "num_hidden_layers": 2,
            "num_attention_heads": 3, "num_key_value_heads": 1, "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "tie": True,
            "rope": {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
        "released_layout": True,
    },
    # Another scaling, own head width, own output head.
    "scaled_untied": {
        "text": {
            "vocab_size": 120, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 12, "rope_theta": 500.0,
            "rms_norm_eps": 1e-6, "tie": False,
            "rope": {
                "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 2.0, "high_freq_factor": 3.0,
                "original_max_position_embeddings": 100,
            },
        },
        "released_layout": False,
    },
}
FAMILIES = {
    "qwen2_5_vl": (QWEN2_5_VL, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration),
    "qwen3_vl": (QWEN3_VL, Qwen3VLConfig, Qwen3VLForConditionalGeneration),
    "qwen2": (QWEN2, Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (QWEN3, Qwen3Config, Qwen3ForCausalLM),
    "llama": (LLAMA, LlamaConfig, LlamaForCausalLM),
}


def configure(family, spec):
    text = dict(spec["text"])
    tie, theta = text.pop("tie"), text.pop("rope_theta")
    rope = {"rope_type": "default", **text.pop("rope", {}), "rope_theta": theta}
    shared = {"max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": tie}
    config_class = FAMILIES[family][1]
    if "vision" not in spec:
        return config_class(**text, **shared, rope_parameters=rope)
    rope["mrope_section"] = text.pop("mrope_section")
    vision = {**spec["vision"], "in_channels": 3, "out_hidden_size": text["hidden_size"]}
    if family == "qwen2_5_vl":
        shared["use_sliding_window"] = False
        vision["tokens_per_second"] = 2
    else:
        rope["mrope_interleaved"] = True
    return config_class(
        text_config={**text, **shared, "rope_parameters": rope}, vision_config=vision, image_token_id=IMAGE,
        video_token_id=VIDEO, vision_start_token_id=VISION_START, vision_end_token_id=VISION_END, tie_word_embeddings=tie,
    )


def build(family, spec):
    config = configure(family, spec)
    config._attn_implementation = "eager"
    model = FAMILIES[family][2](config).float().eval()
    # Weights of ordinary size instead of the small initial ones, so that every part of the model shows in the logits.
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:
                scale = ("norm" in name or "ln_q" in name) and not name.endswith("bias")
                weight.copy_((1.0 if scale else 0.0) + 0.1 * torch.randn_like(weight))
            elif "embed_tokens" in name:
                weight.copy_(0.5 * torch.randn_like(weight))
            else:
                weight.copy_(torch.randn_like(weight) / math.sqrt(weight[0].numel()))
    model.tie_weights()
    return model


def released_layout(family, folder):
    """Rewrites config.json as the published checkpoints have it: `rope_theta`, `rope_scaling`, `torch_dtype`."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    text = config.get("text_config", config)
    rope = text.pop("rope_parameters")
    for key in ("model_type", "layer_types", "dtype"):
        if text is not config:
            text.pop(key, None)
    text.pop("layer_types", None)
    if family == "qwen2_5_vl":
        # Its text fields stand at the top.
        config.pop("text_config")
        config.update({key: value for key, value in text.items() if key not in config or config[key] is None})
        text = config
        config["vision_config"]["in_chans"] = config["vision_config"].pop("in_channels")
    text["rope_theta"] = rope.pop("rope_theta")
    if family == "qwen2_5_vl":
        text["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    else:
        text["rope_scaling"] = rope if len(rope) > 1 else None
    config["torch_dtype"] = config.pop("dtype", "float32")
    path.write_text(json.dumps(config, indent=2) + "\n")


def prompt(vocab, grids, merge):
    ids = torch.randint(7, vocab, (4,)).tolist()
    for t, h, w in grids:
        ids += [VISION_START] + [IMAGE] * (t * h * w // merge**2) + [VISION_END]
        ids += torch.randint(7, vocab, (3,)).tolist()
    return ids + torch.randint(7, vocab, (6,)).tolist()


def cases(spec):
    """Prompts and pixels of a model."""
    vocab = spec["text"]["vocab_size"]
    if "vision" not in spec:
        for length in TEXT_LENGTHS:
            yield [], torch.randint(7, vocab, (length,)).tolist(), None
        return
    vision = spec["vision"]
    width = 3 * vision["temporal_patch_size"] * vision["patch_size"] ** 2
    for grids in [[]] + spec["grids"]:
        ids = prompt(vocab, grids, vision["spatial_merge_size"])
        yield grids, ids, torch.randn(sum(t * h * w for t, h, w in grids), width) if grids else None


def forward(model, ids, pixels, grids):
    ids = torch.tensor([ids])
    extra = {}
    if hasattr(model.config, "vision_config"):
        extra = {"mm_token_type_ids": (ids == IMAGE).int()}
    if grids:
        extra |= {"pixel_values": pixels.to(model.dtype), "image_grid_thw": torch.tensor(grids)}
    return model(input_ids=ids, use_cache=False, **extra).logits[0]


def greedy(model, ids, pixels, grids):
    tokens = []
    while len(tokens) < GREEDY_TOKENS:
        token = forward(model, ids + tokens, pixels, grids)[-1].argmax().item()
        # A placeholder would want a picture of its own on the next pass.
        if hasattr(model.config, "vision_config") and token in (IMAGE, VIDEO, VISION_START):
            break
        tokens.append(token)
    return tokens


def make(family, name, spec, out):
    torch.manual_seed(sum(name.encode()))
    model = build(family, spec)
    folder = out / name
    model.save_pretrained(folder, **({"max_shard_size": spec["shard"]} if "shard" in spec else {}))
    (folder / "generation_config.json").unlink(missing_ok=True)
    if spec["released_layout"]:
        released_layout(family, folder)
    load = FAMILIES[family][2].from_pretrained
    again = load(folder, attn_implementation="eager").eval()
    half = load(folder, attn_implementation="eager", dtype=torch.bfloat16).eval()
    seen = {}
    if "vision" in spec:
        model.model.language_model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.update(positions=kwargs["position_ids"]), with_kwargs=True)

    tensors, facts = {}, {"transformers": transformers.__version__, "torch": torch.__version__, "cases": []}
    for case, (grids, ids, pixels) in enumerate(cases(spec)):
        with torch.no_grad():
            logits = forward(model, ids, pixels, grids)
            assert torch.allclose(logits, forward(again, ids, pixels, grids), atol=1e-5)
            positions = seen.get("positions")
            # Text alone may come without the axis dimension; newer versions add a row of plain positions.
            positions = positions[-3:, 0] if positions is not None and positions.dim() == 3 else None
            found = greedy(model, ids, pixels, grids)
            error = forward(half, ids, pixels, grids).double() - logits
        model.zero_grad()
        learnt = forward(model, ids, pixels, grids)[-LEARNT_TOKENS - 1:-1]
        loss = torch.nn.functional.cross_entropy(learnt, torch.tensor(ids[-LEARNT_TOKENS:]))
        loss.backward()
        norms = {n: p.grad.norm().item() for n, p in model.named_parameters() if p.grad is not None}
        facts["cases"].append({
            "grids": grids, "loss": loss.item(), "learnt_tokens": LEARNT_TOKENS,
            "grad_norm": math.sqrt(sum(value**2 for value in norms.values())), "grad_norms": norms,
            "bf16_error": (error.norm() / logits.double().norm()).item(),
        })
        tensors[f"{case}.input_ids"] = torch.tensor(ids)
        tensors[f"{case}.logits"] = logits.contiguous()
        tensors[f"{case}.greedy"] = torch.tensor(found)
        if positions is not None:
            tensors[f"{case}.positions"] = positions.contiguous()
        if grids:
            tensors[f"{case}.pixel_values"] = pixels
    save_file(tensors, folder / "cases.safetensors")
    (folder / "cases.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    family = sys.argv[1]
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent / family
    for name, spec in FAMILIES[family][0].items():
        make(family, name, spec, out)

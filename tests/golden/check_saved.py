"""Loads folders that this project saved into transformers and compares with the golden models.

    cargo test --release --workspace --lib -- --ignored write_saved_folders     # writes target/saved
    python check_saved.py [SAVED_FOLDER]                                        # torch 2.11, transformers 5.17

Each saved folder must load without a missing, unexpected or misshaped weight, hold the weights of the golden model (rounded to 16
bits where it was saved so) and, in 32 bits, give its logits. `saved.json` beside this script keeps the largest difference of a
logit and digests of the files; a unit test compares what is saved with them.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from make_models import FAMILIES, forward

HERE = Path(__file__).parent
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TOLERANCE = 2e-4


def digest(path):
    """FNV-1a in 64 bits."""
    value = 0xCBF29CE484222325
    for byte in path.read_bytes():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return f"{value:016x}"


def load(family, folder, dtype):
    model, report = FAMILIES[family][2].from_pretrained(
        folder, attn_implementation="eager", dtype=dtype, output_loading_info=True)
    assert not any(report.values()), (folder, report)
    return model.eval()


def check(family, name, precision, folder):
    dtype = PRECISIONS[precision]
    # `auto` takes the type that config.json states.
    saved = load(family, folder, "auto")
    assert saved.dtype == dtype, (folder, saved.dtype)
    golden = load(family, HERE / family / name, torch.float32).state_dict()
    for key, value in saved.state_dict().items():
        assert torch.equal(value, golden[key].to(dtype)), (folder, key)
    gap = 0.0
    if dtype == torch.float32:
        tensors = load_file(HERE / family / name / "cases.safetensors")
        for case, facts in enumerate(json.loads((HERE / family / name / "cases.json").read_text())["cases"]):
            pixels = tensors.get(f"{case}.pixel_values")
            with torch.no_grad():
                logits = forward(saved, tensors[f"{case}.input_ids"].tolist(), pixels, facts["grids"])
            gap = max(gap, (logits - tensors[f"{case}.logits"]).abs().max().item())
        assert gap < TOLERANCE, (folder, gap)
    return {"gap": gap, "weights": digest(folder / "model.safetensors"), "config": digest(folder / "config.json")}


if __name__ == "__main__":
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "../../target/saved"
    results = {
        f"{family}/{name}/{precision}": check(family, name, precision, root / family / name / precision)
        for family, (models, _, _) in FAMILIES.items() for name in models for precision in PRECISIONS
    }
    (HERE / "saved.json").write_text(json.dumps(results, indent=1) + "\n")

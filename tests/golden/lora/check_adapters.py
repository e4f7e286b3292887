"""Loads adapters that this project saved into peft and compares with the merged models that it saved.

    cargo test --release --workspace --lib -- --ignored write_saved_adapters     # writes target/adapters
    python check_adapters.py [ADAPTERS_FOLDER]                                   # torch 2.11, transformers 5.17, peft 0.21

Each adapter must load onto its golden model without a missing or unexpected weight, adapt exactly the modules that it has weights
for, and give the logits of the merged model. `saved.json` beside this script keeps the largest difference of a logit and digests
of the files; a unit test compares what is saved with them.
"""

import json
import sys
import warnings
from pathlib import Path

import torch
from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file

HERE = Path(__file__).parent
GOLDEN = HERE.parent
sys.path.append(str(GOLDEN))
from check_saved import digest, load  # noqa: E402
from make_models import forward  # noqa: E402

FILES = ["adapter_model.safetensors", "adapter_config.json"]
TOLERANCE = 5e-5


def check(family, label, folder):
    name = label.split("-")[0]
    base = load(family, GOLDEN / family / name, torch.float32)
    before = {key: value.clone() for key, value in base.state_dict().items()}
    merged = load(family, folder, torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = PeftModel.from_pretrained(base, folder / "adapter").eval()
    stored = load_file(folder / "adapter" / FILES[0])
    loaded = get_peft_model_state_dict(model)
    assert stored.keys() == loaded.keys(), (label, stored.keys() ^ loaded.keys())
    assert all(torch.equal(stored[key], loaded[key]) for key in stored), label
    tensors = load_file(GOLDEN / family / name / "cases.safetensors")
    gap = changed = 0.0
    for case, facts in enumerate(json.loads((GOLDEN / family / name / "cases.json").read_text())["cases"]):
        inputs = tensors[f"{case}.input_ids"].tolist(), tensors.get(f"{case}.pixel_values"), facts["grids"]
        with torch.no_grad():
            logits = forward(model, *inputs)
            gap = max(gap, (logits - forward(merged, *inputs)).abs().max().item())
            changed = max(changed, (logits - tensors[f"{case}.logits"]).abs().max().item())
    assert gap < TOLERANCE < 0.01 < changed, (label, gap, changed)
    # The other way round: merged by peft, the weights are those of the merged model.
    weights = model.merge_and_unload().state_dict()
    for key, value in merged.state_dict().items():
        assert torch.allclose(value, weights[key], atol=1e-6), (label, key)
    moved = sum(not torch.equal(before[key], weights[key]) for key in before)
    assert moved >= len(stored) // 2, (label, moved)
    return {"gap": gap, "modules": len(stored) // 2, "digests": [digest(folder / "adapter" / file) for file in FILES]}


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN.parents[1] / "target" / "adapters"
    report = {}
    for path in sorted(folder.glob("*/*")):
        label = f"{path.parent.name}/{path.name}"
        report[label] = check(path.parent.name, path.name, path)
        print(label, report[label]["modules"], report[label]["gap"])
    (HERE / "saved.json").write_text(json.dumps(report, indent=1) + "\n")

"""Makes groups.json: groups of rewards and what verl, NumPy and SciPy make of them.

    pip install torch numpy scipy; pip download --no-deps --dest . verl==0.9.1
    python make.py verl-0.9.1-py3-none-any.whl > groups.json

verl's package needs a cluster's software to be imported, so the functions are taken out of its source. Every answer has one
token there, which makes its whitening over tokens one over answers.
"""

import ast
import json
import sys
import zipfile
from collections import defaultdict
from typing import Any, Callable, Optional

import numpy as np
import torch
from scipy.stats import rankdata

EPSILON = 1e-6
GROUPS = [
    [1.5, 0.5, 0.0, 0.5],
    [1.0, 0.0],
    [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.5],
    [1.0, 1.0, 1.0, 0.5],
    [0.25, -1.0, 3.0, 0.125, 0.125],
    [0.5, 0.5, 0.5],
]


class Configuration(dict):
    """What verl asks of its settings."""

    __getattr__ = dict.__getitem__


def functions(wheel, path, names, known):
    """Some functions of a file in a wheel, without what stands around them."""
    tree = ast.parse(zipfile.ZipFile(wheel).read(path))
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]
    assert len(found) == len(names), names
    for node in found:
        node.decorator_list = []
        for argument in node.args.args:
            argument.annotation = None
        node.returns = None
    scope = dict(known)
    exec(compile(ast.Module(body=found, type_ignores=[]), path, "exec"), scope)
    return {name: scope[name] for name in names}


def verl(wheel):
    known = {"torch": torch, "np": np, "defaultdict": defaultdict, "Any": Any, "Callable": Callable, "Optional": Optional}
    whiten = functions(wheel, "verl/utils/torch_functional.py", ["masked_sum", "masked_mean", "masked_var", "masked_whiten"], known)
    known["verl_F"] = type("Functional", (), {name: staticmethod(function) for name, function in whiten.items()})
    names = [
        "compute_grpo_outcome_advantage",
        "compute_rloo_outcome_advantage",
        "compute_reinforce_plus_plus_outcome_advantage",
        "compute_reinforce_plus_plus_baseline_outcome_advantage",
    ]
    core = functions(wheel, "verl/trainer/ppo/core_algos.py", names, known)
    rewards = torch.tensor(sum(GROUPS, []), dtype=torch.float64).unsqueeze(1)
    mask = torch.ones_like(rewards)
    index = np.array(sum(([place] * len(group) for place, group in enumerate(GROUPS)), []))

    def cut(values):
        return [part.flatten().tolist() for part in torch.split(values, [len(group) for group in GROUPS])]

    def asked(name, **more):
        return cut(core[f"compute_{name}_outcome_advantage"](rewards.clone(), mask, **more)[0])

    return {
        "grpo": asked("grpo", index=index),
        "dr-grpo": asked("grpo", index=index, norm_adv_by_std_in_grpo=False),
        "rloo": asked("rloo", index=index),
        "reinforce-plus-plus": asked("reinforce_plus_plus", config=Configuration(gamma=1.0)),
        "reinforce-plus-plus-baseline": asked("reinforce_plus_plus_baseline", index=index),
    }


def main():
    advantages = verl(sys.argv[1])
    groups = [np.array(group) for group in GROUPS]
    deviation = np.concatenate(groups).std(ddof=1)
    advantages["batch-std"] = [((r - r.mean()) / (deviation + EPSILON)).tolist() for r in groups]
    advantages["max-rl"] = [((r - r.mean()) / (r.mean() + EPSILON)).tolist() for r in groups]
    statistics = [[r.mean(), r.std(ddof=1), r.min(), r.max()] for r in groups]
    ranks = [rankdata(-r, method="min").astype(int).tolist() for r in groups]
    print(json.dumps({"groups": GROUPS, "advantages": advantages, "statistics": statistics, "ranks": ranks}, indent=1))


if __name__ == "__main__":
    main()

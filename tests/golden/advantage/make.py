"""Makes groups.json: rewards of groups and their advantages by the formula of GRPO, computed with NumPy.

    python make.py > groups.json
"""

import json

import numpy as np

EPSILON = 1e-6
GROUPS = [
    [1.5, 0.5, 0.0, 0.5],
    [1.0, 0.0],
    [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.5],
    [1.0, 1.0, 1.0, 0.5],
    [0.25, -1.0, 3.0, 0.125, 0.125],
    [0.5, 0.5, 0.5],
]


def main():
    cases = []
    for rewards in GROUPS:
        r = np.array(rewards, dtype=np.float64)
        advantages = (r - r.mean()) / (r.std(ddof=1) + EPSILON)
        cases.append({"rewards": rewards, "advantages": advantages.tolist()})
    print(json.dumps(cases, indent=1))


if __name__ == "__main__":
    main()

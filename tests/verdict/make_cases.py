"""Writes cases.jsonl: the cases that were written by hand (hand.tsv), and generated ones of every class (pairs.py).

    python tests/verdict/make_cases.py
"""

import json
from pathlib import Path

from pairs import pairs

HERE = Path(__file__).resolve().parent


def main():
    cases = []
    for line in (HERE / "hand.tsv").read_text().splitlines():
        if line and not line.startswith("#"):
            gold, answer, expected, origin = line.split("\t")
            cases.append({"gold": gold, "answer": answer, "expected": expected, "origin": origin})
    seen = {(case["gold"], case["answer"]) for case in cases}
    for pair in pairs(2400, 7):
        key = pair["gold"], pair["answer"]
        if key not in seen:
            seen.add(key)
            expected = "correct" if pair["equal"] else "wrong"
            cases.append({"gold": key[0], "answer": key[1], "expected": expected, "origin": f"generated: {pair['class']}"})
    with open(HERE / "cases.jsonl", "w") as out:
        for case in cases:
            out.write(json.dumps(case, ensure_ascii=False) + "\n")
    print(len(cases), "cases")


if __name__ == "__main__":
    main()

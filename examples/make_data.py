#!/usr/bin/env python3
"""Makes the 'handwritten arithmetic' data sets (and, on request, one from easy-vqa).

Every picture shows two or three real handwritten digits of scikit-learn's `digits` side by side. Six kinds of
question are asked about them: read, sum, difference, larger, order, product. With the package versions in
requirements.txt the same command writes the same bytes every time.
"""

import argparse
import csv
import gzip
import importlib.util
import io
import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SCALE = 3  # each 8x8 digit becomes 24x24 pixels
CELL = 28  # in a square cell of 28, a multiple of patch size (7) times merge size (2)
KINDS = ["read", "sum", "difference", "larger", "order", "product"]

QUESTIONS = {
    "read": [
        "What number is written here?",
        "Read the digits from left to right.",
        "Which digits are in the picture?",
        "Write down the number you see.",
    ],
    "sum": [
        "What is the sum of the two digits?",
        "Add the two digits.",
        "How much are the digits together?",
        "What do the digits add up to?",
    ],
    "difference": [
        "What is the difference of the two digits?",
        "What is left if you subtract one digit from the other?",
        "How far apart are the digits?",
        "By how much do the digits differ?",
    ],
    "larger": [
        "Which digit is larger?",
        "What is the larger digit?",
        "Name the bigger digit.",
        "Which of the two digits is greater?",
    ],
    "order": [
        "Sort the digits from small to large.",
        "Put the digits in ascending order.",
        "Order the digits, smallest first.",
        "Write the digits in increasing order.",
    ],
    "product": [
        "What is the product of the two digits?",
        "Multiply the two digits.",
        "How much is one digit times the other?",
        "What do you get if you multiply the digits?",
    ],
}

# How often the base model's corpus solves a question as asked, by kind and phrasing. Otherwise it does something
# else with the digits. So the base model owns the skills but does not use them reliably, and has no products.
BASE_RELIABILITY = {
    "read": [0.97, 0.97, 0.97, 0.97],
    "larger": [0.85, 0.85, 0.85, 0.85],
    "order": [0.55, 0.45, 0.30, 0.25],
    "sum": [0.50, 0.25, 0.20, 0.20],
    "difference": [0.20, 0.20, 0.50, 0.25],
}


def load_digits():
    """Pictures (8x8, values 0..16) and labels of scikit-learn's digits, without importing scikit-learn."""
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise SystemExit("scikit-learn is not installed: pip install -r examples/requirements.txt")
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    with gzip.open(path, "rt") as file:
        rows = [[int(float(value)) for value in row] for row in csv.reader(file)]
    table = np.array(rows, dtype=np.int64)
    return table[:, :64].reshape(-1, 8, 8), table[:, 64]


def split_digits(labels, rng):
    """Indices of handwritten digits by class, disjoint: base 1000, train 437, test 360 in all."""
    parts = {"base": {}, "train": {}, "test": {}}
    for label in range(10):
        indices = [int(i) for i in np.flatnonzero(labels == label)]
        rng.shuffle(indices)
        parts["test"][label] = indices[:36]
        parts["base"][label] = indices[36:136]
        parts["train"][label] = indices[136:]
    return parts


def draw(pictures, indices, rng):
    """One PNG with the digits `indices` side by side, each a little off the middle of its cell."""
    canvas = np.zeros((CELL, CELL * len(indices)), dtype=np.uint8)
    for cell, index in enumerate(indices):
        ink = 11 + rng.randrange(5)
        digit = (pictures[index] * ink).astype(np.uint8)
        digit = digit.repeat(SCALE, axis=0).repeat(SCALE, axis=1)
        room = CELL - 8 * SCALE
        top, left = rng.randrange(room + 1), rng.randrange(room + 1)
        left += cell * CELL
        canvas[top : top + 8 * SCALE, left : left + 8 * SCALE] = digit
    out = io.BytesIO()
    Image.fromarray(np.stack([canvas] * 3, axis=-1)).save(out, "PNG", optimize=True)
    return out.getvalue()


def work(kind, digits):
    """The reasoning and the answer for one kind of question."""
    text = "".join(map(str, digits))
    if kind == "read":
        return text, text
    if kind == "order":
        answer = "".join(map(str, sorted(digits)))
        return f"{text} -> {answer}", answer
    first, second = digits
    if kind == "sum":
        return f"{first} + {second} = {first + second}", str(first + second)
    if kind == "difference":
        high, low = max(digits), min(digits)
        return f"{high} - {low} = {high - low}", str(high - low)
    if kind == "larger":
        return f"{max(digits)} > {min(digits)}", str(max(digits))
    return f"{first} * {second} = {first * second}", str(first * second)


def solution(thought, answer):
    """A completion in the form that the models are trained to give."""
    return f"<think>{thought}</think><answer>\\boxed{{{answer}}}</answer>"


def descending(digits):
    """What the base corpus does with a sorting question that it misunderstands."""
    answer = "".join(map(str, sorted(digits, reverse=True)))
    return "".join(map(str, digits)) + " -> " + answer, answer


def slip(kind, digits, rng):
    """The right operation with a wrong result."""
    thought, answer = work(kind, digits)
    wrong = max(0, int(answer) + rng.choice([-3, -2, -1, 1, 2, 3]))
    return thought.rsplit(" ", 1)[0] + f" {wrong}", str(wrong)


def base_solution(kind, phrasing, digits, rng):
    """A solution as the base model's corpus has it: often not what was asked."""
    if rng.random() < BASE_RELIABILITY[kind][phrasing]:
        thought, answer = work(kind, digits)
    elif kind == "order":
        thought, answer = descending(digits)
    elif kind in ("sum", "difference"):
        chance = rng.random()
        if chance < 0.70:
            other = "difference" if kind == "sum" else "sum"
            thought, answer = work(other, digits)
        elif chance < 0.90:
            thought, answer = slip(kind, digits, rng)
        else:
            thought, answer = work("read", digits)
    elif kind == "larger":
        thought, answer = f"{min(digits)} > {max(digits)}", str(min(digits))
    else:
        thought, answer = work(kind, digits[::-1])
    if rng.random() < 0.06:  # now and then the form is wrong, too
        return rng.choice([f"{thought}", f"<think>{thought}</think>{answer}", f"<answer>{answer}</answer>"])
    return solution(thought, answer)


def pick_digits(kind, rng):
    """Labels for one picture. Order and half of read show three; equal digits are left out where they'd be trivial."""
    if kind == "order":
        return rng.sample(range(10), 3)
    if kind == "read":
        return [rng.randrange(10) for _ in range(rng.choice([2, 3]))]
    if kind == "larger":
        return rng.sample(range(10), 2)
    if kind == "product":  # from 2 up: with 0 and 1 other operations would give the product by chance
        return [rng.randrange(2, 10) for _ in range(2)]
    return [rng.randrange(10) for _ in range(2)]


class Maker:
    """Draws pictures from some of the handwritten digits and writes questions about them."""

    def __init__(self, name, pictures, pools, seed):
        self.name = name
        self.pictures = pictures
        self.pools = pools
        self.rng = random.Random(seed)
        self.rows = []

    def picture(self, digits):
        """A PNG of the given labels, with a random handwritten digit for each."""
        indices = [self.rng.choice(self.rng.choice(self.pools)[label]) for label in digits]
        return draw(self.pictures, indices, self.rng)

    def add(self, kind, digits, png, base=False):
        """One row."""
        phrasing = self.rng.randrange(len(QUESTIONS[kind]))
        thought, answer = work(kind, digits)
        text = base_solution(kind, phrasing, digits, self.rng) if base else solution(thought, answer)
        number = len(self.rows)
        self.rows.append(
            {
                "id": f"{self.name}-{number:05d}",
                "problem": "<image>" + QUESTIONS[kind][phrasing],
                "images": [{"bytes": png, "path": None}],
                "answer": answer,
                "solution": text,
                "kind": kind,
            }
        )

    def one_each(self, counts):
        """A new picture for each question, kinds mixed."""
        kinds = [kind for kind, count in counts.items() for _ in range(count)]
        self.rng.shuffle(kinds)
        for kind in kinds:
            digits = pick_digits(kind, self.rng)
            self.add(kind, digits, self.picture(digits))

    def several_each(self, pairs, triples, weights, base):
        """Pictures with several questions each, to keep the file small."""
        shapes = [2] * pairs + [3] * triples
        self.rng.shuffle(shapes)
        for size in shapes:
            kinds = weights[size]
            count = 3 if size == 2 else 2
            digits = [self.rng.randrange(10) for _ in range(size)]
            if size == 3 and len(set(digits)) < 3:
                digits = self.rng.sample(range(10), 3)
            png = self.picture(digits)
            fitting = {kind: weight for kind, weight in kinds.items() if fits(kind, digits)}
            for _ in range(min(count, len(fitting))):
                kind = self.rng.choices(list(fitting), list(fitting.values()))[0]
                del fitting[kind]
                self.add(kind, digits, png, base)


def fits(kind, digits):
    """Whether a kind of question may be asked about these digits."""
    if kind == "larger":
        return digits[0] != digits[1]
    if kind == "product":
        return min(digits) >= 2
    return True


SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("problem", pa.string()),
        ("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
        ("answer", pa.string()),
        ("solution", pa.string()),
        ("kind", pa.string()),
    ]
)


def write(rows, path):
    """Parquet with the features that Hugging Face `datasets` looks for in the schema's metadata."""
    features = {name: {"dtype": "string", "_type": "Value"} for name in SCHEMA.names}
    features["images"] = {"feature": {"_type": "Image"}, "_type": "Sequence"}
    schema = SCHEMA.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    table = pa.Table.from_pylist(rows, schema=schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        table, path, compression="zstd", compression_level=19, dictionary_pagesize_limit=8 << 20, row_group_size=len(rows)
    )
    print(f"{path}: {len(rows)} rows, {path.stat().st_size / 1e6:.2f} MB")


def handwritten_arithmetic(out, seed):
    """The four files of the main data set."""
    pictures, labels = load_digits()
    parts = split_digits(labels, random.Random(seed))

    test = Maker("test", pictures, [parts["test"]], seed + 1)
    test.one_each(dict.fromkeys(KINDS, 150))
    write(test.rows, out / "test.parquet")

    train = Maker("train", pictures, [parts["train"]], seed + 2)
    train.one_each({"read": 250, "sum": 400, "difference": 400, "larger": 250, "order": 350, "product": 350})
    write(train.rows, out / "train.parquet")

    weights = {2: {"read": 1.0, "sum": 1.5, "difference": 1.5, "larger": 1.0}, 3: {"read": 1.0, "order": 1.5}}
    base = Maker("base", pictures, [parts["base"]], seed + 3)
    base.several_each(4200, 3000, weights, base=True)
    write(base.rows, out / "pretrain-base.parquet")

    weights[2]["product"] = 2.0
    expert = Maker("expert", pictures, [parts["base"], parts["train"]], seed + 4)
    expert.several_each(4200, 2200, weights, base=False)
    write(expert.rows, out / "pretrain-expert.parquet")


def easy_vqa(out):
    """The open questions of easy-vqa (shape and colour) in the same layout."""
    package = importlib.util.find_spec("easy_vqa")
    if package is None or package.origin is None:
        raise SystemExit("easy-vqa is not installed: pip install -r examples/requirements.txt")
    root = Path(package.origin).parent / "data"
    for split in ["train", "test"]:
        rows = []
        questions = json.loads((root / split / "questions.json").read_text())
        for number, (question, answer, image) in enumerate(questions):
            if answer in ("yes", "no"):
                continue
            kind = "shape" if answer in ("circle", "rectangle", "triangle") else "color"
            png = (root / split / "images" / f"{image}.png").read_bytes()
            question = question[0].upper() + question[1:]
            rows.append(
                {
                    "id": f"easy-vqa-{split}-{number:05d}",
                    "problem": "<image>" + question,
                    "images": [{"bytes": png, "path": f"{image}.png"}],
                    "answer": answer,
                    "solution": solution(f"The {kind} is {answer}.", answer),
                    "kind": kind,
                }
            )
        write(rows, out / f"easy-vqa-{split}.parquet")


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data", help="folder to write to")
    parser.add_argument("--seed", type=int, default=7, help="another seed gives another data set of the same kind")
    parser.add_argument("--easy-vqa", action="store_true", help="make the easy-vqa data set instead")
    args = parser.parse_args()
    if args.easy_vqa:
        easy_vqa(args.out)
    else:
        handwritten_arithmetic(args.out, args.seed)


if __name__ == "__main__":
    main()

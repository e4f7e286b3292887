"""Makes the files of this folder: small data sets as Hugging Face `datasets` writes and reads them, and what prompts they are.

    pip install datasets==5.2.0 pillow==13.0.0 pyarrow==26.0.1
    python make.py

Every input is written by `datasets`, pyarrow or Pillow, and read again by `datasets` (`load_dataset`, `load_from_disk`), whose
rows are turned into the conversations of `expected.json`. Images stand there as the digits of their bytes.
"""

import io
import json
import pathlib
import shutil

import datasets
import pyarrow.parquet as parquet
from PIL import Image

HERE = pathlib.Path(__file__).parent
MARK = "<image>"
ROLES = {"human": "user", "gpt": "assistant", "observation": "tool"}


def png(shade):
    data = io.BytesIO()
    Image.new("L", (3, 2), shade).save(data, format="PNG")
    return data.getvalue()


def text(value):
    return {"text": value}


def image(data):
    return {"image": data.hex()}


def parts(value, images):
    """The parts of a text with marks for images, which are taken from the front of a list."""
    pieces = value.split(MARK)
    found = [text(pieces[0])] if pieces[0] else []
    for piece in pieces[1:]:
        found.append(image(images.pop(0)))
        found += [text(piece)] if piece else []
    return found


def question(value, images):
    images = list(images)
    if MARK in value:
        return [{"role": "user", "content": parts(value, images)}]
    return [{"role": "user", "content": [image(one) for one in images] + [text(value)]}]


def row(messages, answer=None, solution=None, **more):
    return {"messages": messages, "answer": answer, "solution": solution, **more}


def plain(dataset):
    """Rows with images as the structs of bytes and path that the files have."""
    for name, feature in dataset.features.items():
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
        inner = getattr(feature, "feature", None)
        if isinstance(inner, datasets.Image):
            dataset = dataset.cast_column(name, datasets.List(datasets.Image(decode=False)))
    return list(dataset)


def pictures(structs):
    return [one["bytes"] for one in structs or []]


def easyr1():
    rows = {
        "problem": ["<image>What is it?", "Compare <image> and <image>.", "1 + 1?"],
        "images": [[png(1)], [png(2), png(3)], []],
        "answer": ["7", "more", "2"],
    }
    features = datasets.Features(
        {"problem": datasets.Value("string"), "images": datasets.List(datasets.Image()), "answer": datasets.Value("string")}
    )
    rows["images"] = [[{"bytes": one, "path": None} for one in images] for images in rows["images"]]
    dataset = datasets.Dataset.from_dict(rows, features=features)
    folder = HERE / "easyr1" / "data"
    folder.mkdir(parents=True)
    dataset.to_parquet(folder / "train-00000-of-00001.parquet")
    dataset.select([2]).to_parquet(folder / "test-00000-of-00001.parquet")
    dataset.save_to_disk(HERE / "easyr1-arrow")
    read = plain(datasets.load_dataset("parquet", data_files=str(folder / "train*.parquet"), split="train"))
    again = plain(datasets.load_from_disk(HERE / "easyr1-arrow"))
    assert read == again
    return [row(question(one["problem"], pictures(one["images"])), one["answer"]) for one in read]


def verl():
    """The columns that verl's own preparation scripts write (geo3k and gsm8k)."""

    def example(index, problem, answer, images):
        return {
            "data_source": "hiyouga/geometry3k",
            "prompt": [{"role": "user", "content": problem}],
            "images": [{"bytes": one, "path": None} for one in images],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": answer},
            "extra_info": {"split": "train", "index": index, "answer": answer, "question": problem},
        }

    dataset = datasets.Dataset.from_list(
        [
            example(0, "<image>Find x.", "3", [png(4)]),
            example(1, "Find y.", "\\sqrt{221}", []),
        ]
    )
    dataset.to_parquet(HERE / "verl.parquet")
    # Text as one list of one type, so that polars and others read it too.
    assert parquet.read_schema(HERE / "verl.parquet").field("reward_model") is not None
    found = []
    for one in datasets.load_dataset("parquet", data_files=str(HERE / "verl.parquet"), split="train"):
        images = pictures(one["images"])
        messages = [{"role": turn["role"], "content": parts(turn["content"], images)} for turn in one["prompt"]]
        answer = one["reward_model"]["ground_truth"]
        found.append(row(messages, answer, category=one["ability"], source=one["data_source"]))
    return found


def sharegpt():
    (HERE / "sharegpt-images").mkdir()
    for shade in (5, 6):
        (HERE / "sharegpt-images" / f"{shade}.png").write_bytes(png(shade))
    turns = [
        [("human", "<image>Who?"), ("gpt", "Kane."), ("human", "And <image>?"), ("gpt", "Goretzka.\nHe is.")],
        [("human", "1 + 1?"), ("gpt", "2")],
        [("human", "Weather?"), ("observation", "{\"c\": 7}"), ("gpt", "Cold.")],
    ]
    images = [["sharegpt-images/5.png", "sharegpt-images/6.png"], [], []]
    systems = ["", "Be brief.", ""]
    data = [
        {"conversations": [{"from": role, "value": value} for role, value in one], "images": paths, "system": system}
        for one, paths, system in zip(turns, images, systems)
    ]
    (HERE / "sharegpt.json").write_text(json.dumps(data, indent=2))
    found = []
    for one in datasets.load_dataset("json", data_files=str(HERE / "sharegpt.json"), split="train"):
        images = [(HERE / path).read_bytes() for path in one["images"]]
        messages = [{"role": "system", "content": [text(one["system"])]}] if one["system"] else []
        for turn in one["conversations"]:
            role = ROLES[turn["from"]]
            messages.append({"role": role, "content": parts(turn["value"], images)})
        solution = messages.pop()["content"][0]["text"]
        found.append(row(messages, None, solution))
    return found


def openai():
    import base64

    address = "data:image/png;base64," + base64.b64encode(png(7)).decode()
    data = [
        {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"},
                      {"role": "assistant", "content": "Hello \u00e9"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is"},
                                                    {"type": "image_url", "image_url": {"url": address}}]},
                      {"role": "assistant", "content": "A grey dot."}, {"role": "user", "content": "Sure?"},
                      {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]}]},
    ]
    (HERE / "openai.jsonl").write_text("".join(json.dumps(one) + "\n" for one in data))
    first = data[0]["messages"]
    return [
        row([{"role": turn["role"], "content": [text(turn["content"])]} for turn in first[:-1]], None, first[-1]["content"]),
        row(
            [
                {"role": "user", "content": [text("What is"), image(png(7))]},
                {"role": "assistant", "content": [text("A grey dot.")]},
                {"role": "user", "content": [text("Sure?")]},
            ],
            None,
            "Yes.",
        ),
    ]


def alpaca():
    data = {
        "instruction": ["Add.", "Name a colour."],
        "input": ["1, 1", ""],
        "output": ["2", "Red, \"for\" one.\nOr blue."],
    }
    dataset = datasets.Dataset.from_dict(data)
    dataset.to_csv(HERE / "alpaca.csv")
    dataset.to_json(HERE / "alpaca.jsonl.gz", compression="gzip")
    found = []
    for one in datasets.load_dataset("csv", data_files=str(HERE / "alpaca.csv"), split="train", keep_default_na=False):
        asked = "\n".join(part for part in (one["instruction"], one["input"]) if part)
        found.append(row([{"role": "user", "content": [text(asked)]}], None, one["output"]))
    return found


def imagefolder():
    folder = HERE / "imagefolder"
    for split, shades in (("train", (10, 11)), ("test", (12,))):
        (folder / split).mkdir(parents=True)
        lines = ["file_name,question,gold"]
        for shade in shades:
            (folder / split / f"{shade}.png").write_bytes(png(shade))
            lines.append(f'{shade}.png,"How dark, from 0 to 255?",{shade}')
        (folder / split / "metadata.csv").write_text("\n".join(lines) + "\n")
    read = plain(datasets.load_dataset("imagefolder", data_dir=str(folder), split="train"))
    found = []
    for one in read:
        # The loader gives paths, which the files are read from.
        data = one["image"]["bytes"] or pathlib.Path(one["image"]["path"]).read_bytes()
        found.append(row(question(one["question"], [data]), str(one["gold"])))
    return found


def classes():
    folder = HERE / "classes"
    for label, shades in (("cat", (20, 21)), ("dog", (22,))):
        (folder / label).mkdir(parents=True)
        for shade in shades:
            (folder / label / f"{shade}.png").write_bytes(png(shade))
    dataset = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train")
    names = dataset.features["label"].names
    found = []
    for one in plain(dataset):
        data = one["image"]["bytes"] or pathlib.Path(one["image"]["path"]).read_bytes()
        found.append(row(question("What is it?", [data]), names[one["label"]]))
    return found


def main():
    for old in HERE.iterdir():
        if old.is_dir():
            shutil.rmtree(old)
    made = [easyr1, verl, sharegpt, openai, alpaca, imagefolder, classes]
    expected = {make.__name__: make() for make in made}
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()

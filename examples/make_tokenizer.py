#!/usr/bin/env python3
"""Trains the tiny tokenizer (byte-level BPE, every digit a token of its own) on the pretraining questions and answers.

Run make_data.py first. The same data give the same tokenizer.json, byte for byte.
"""

import argparse
import re
from pathlib import Path

import pyarrow.parquet as pq
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
TAGS = ["<think>", "</think>", "<answer>", "</answer>"]
VOCABULARY = 512
# Words with a space or backslash before and a brace after them, single digits, runs of other signs, single spaces.
PIECES = r" ?\\?\p{L}+\{?|\p{N}| ?[^\s\p{L}\p{N}]+|\s"


def corpus(data):
    """The text of both pretraining sets without tags, and the words of the chat template."""
    yield from ["user\n", "assistant\n", "system\n"] * 1000
    for name in ["pretrain-base.parquet", "pretrain-expert.parquet"]:
        table = pq.read_table(data / name, columns=["problem", "solution"])
        for column in table.column_names:
            for text in table[column].to_pylist():
                yield re.sub("|".join(map(re.escape, [*TAGS, "<image>"])), "", text)


def main():
    """Command line."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=here / "data", help="folder with the pretraining files")
    parser.add_argument("--out", type=Path, default=here / "models" / "tiny-vl-config", help="folder to write to")
    args = parser.parse_args()

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(TAGS),
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(args.data), trainer)
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    path = args.out / "tokenizer.json"
    tokenizer.save(str(path))
    print(f"{path}: {tokenizer.get_vocab_size()} entries")


if __name__ == "__main__":
    main()

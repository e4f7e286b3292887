"""Makes images of all kinds and what transformers makes of them: `formats/` and formats.json.

    python formats.py      # transformers 5.17, torchvision 0.26, Pillow 13, NumPy

Each file goes through `load_image` (turned as EXIF says, `convert("RGB")`) and then `Qwen2VLImageProcessorPil`, the processor
that resizes with Pillow, under a configuration in the layout of Qwen2.5-VL and one in that of Qwen3-VL. What it gives, brought
back to 8 bits, is `formats/NAME.KEY.png`; formats.json has the grids and some of the values themselves. `Qwen2VLImageProcessor`,
which resizes with torchvision, rounds otherwise: the largest difference, in 1/255, is under `torchvision`.
"""

import io
import json
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from transformers.image_utils import load_image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

HERE = Path(__file__).parent
OUT = HERE / "formats"

CONFIGS = {
    "a": {
        "min_pixels": 1568,
        "max_pixels": 6272,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
    },
    "b": {
        "size": {"longest_edge": 6144, "shortest_edge": 2048},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
        "image_processor_type": "Qwen2VLImageProcessorFast",
    },
}


def pixels(width, height, seed=1):
    """Slopes with edges and some noise."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    red = x * 255 // max(width - 1, 1)
    green = y * 255 // max(height - 1, 1)
    blue = np.where((x // 8 + y // 8) % 2 == 0, 230, 20)
    out = np.stack([red, green, blue], axis=-1)
    noise = random.integers(-40, 40, out.shape) * (random.random((height, width, 1)) < 0.2)
    return np.clip(out + noise, 0, 255).astype(np.uint8)


def png(depth, kind, rows, *chunks):
    """A PNG file of rows of raw bytes, which Pillow cannot write at all depths."""
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    width = {(16, 2): rows.shape[1] // 6, (16, 6): rows.shape[1] // 8, (16, 0): rows.shape[1] // 2, (16, 4): rows.shape[1] // 4, (2, 0): rows.shape[1] * 4}[depth, kind]
    header = struct.pack(">IIBBBBB", width, rows.shape[0], depth, kind, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows), 9)
    body = b"".join(chunk(name, value) for name, value in chunks)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def wide(width, height, channels):
    """Rows of 16-bit values, the most significant byte first."""
    values = pixels(width, height, 2)[..., :channels] if channels < 4 else np.concatenate([pixels(width, height, 2), pixels(width, height, 3)[..., :1]], axis=-1)
    low = np.random.default_rng(4).integers(0, 256, values.shape)
    return (values.astype(np.uint16) * 256 + low).astype(">u2").reshape(height, -1).view(np.uint8)


def save(image, form, **options):
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def files():
    rgb = Image.fromarray(pixels(70, 51))
    alpha = rgb.copy()
    alpha.putalpha(Image.fromarray(pixels(70, 51, 5)[..., 0]))
    exif = Image.Exif()
    yield "plain.png", save(rgb, "PNG", optimize=True)
    yield "alpha.png", save(alpha, "PNG", optimize=True)
    yield "grey.png", save(rgb.convert("L"), "PNG", optimize=True)
    yield "grey_alpha.png", save(alpha.convert("LA"), "PNG", optimize=True)
    yield "palette.png", save(rgb.quantize(32), "PNG", optimize=True)
    yield "palette_clear.png", save(rgb.quantize(16), "PNG", optimize=True, transparency=3)
    yield "one_bit.png", save(rgb.convert("1"), "PNG", optimize=True)
    yield "two_bits.png", png(2, 0, np.random.default_rng(6).integers(0, 256, (30, 11)).astype(np.uint8))
    yield "grey16.png", png(16, 0, wide(40, 33, 1) // np.array([64, 1] * 40, np.uint8))
    yield "rgb16.png", png(16, 2, wide(40, 33, 3))
    yield "rgba16.png", png(16, 6, wide(37, 29, 4))
    yield "grey_alpha16.png", png(16, 4, wide(37, 29, 2))
    yield "clear_colour.png", save(rgb, "PNG", optimize=True, transparency=(255, 255, 20))
    yield "tiny.png", save(Image.fromarray(pixels(1, 1)), "PNG")
    yield "small.png", save(Image.fromarray(pixels(3, 5)), "PNG")
    yield "flat.png", save(Image.fromarray(pixels(400, 3)), "PNG", optimize=True)
    yield "tall.png", save(Image.fromarray(pixels(4, 500)), "PNG", optimize=True)
    yield "large.png", save(rgb.resize((1531, 1207), Image.Resampling.NEAREST).quantize(8), "PNG", optimize=True)
    for turn in range(2, 9):
        exif[0x0112] = turn
        yield f"turned{turn}.jpg", save(rgb, "JPEG", quality=90, subsampling=0, exif=exif)
    exif[0x0112] = 6
    yield "turned.png", save(rgb.quantize(16), "PNG", exif=exif, optimize=True)
    yield "turned.webp", save(rgb, "WEBP", lossless=True, exif=exif.tobytes())
    yield "full.jpg", save(rgb, "JPEG", quality=85, subsampling=0)
    yield "halved.jpg", save(rgb, "JPEG", quality=85, subsampling=2)
    yield "halved_across.jpg", save(rgb, "JPEG", quality=85, subsampling=1)
    yield "progressive.jpg", save(rgb, "JPEG", quality=70, progressive=True)
    yield "grey.jpg", save(rgb.convert("L"), "JPEG", quality=85)
    yield "cmyk.jpg", save(rgb.convert("CMYK"), "JPEG", quality=90)
    yield "lossless.webp", save(rgb, "WEBP", lossless=True)
    yield "lossy.webp", save(rgb, "WEBP", quality=80)
    yield "alpha.webp", save(alpha, "WEBP", lossless=True, exact=True)
    yield "moving.gif", save(rgb.quantize(32), "GIF", save_all=True, append_images=[rgb.rotate(90).quantize(32)])
    yield "plain.bmp", save(rgb, "BMP")


def to_bytes(values, grid, config):
    """The image that patches were cut from, with 8 bits."""
    patch, merge, frames = config["patch_size"], config["merge_size"], config["temporal_patch_size"]
    _, rows, columns = grid
    cut = values.reshape(rows // merge, columns // merge, merge, merge, 3, frames, patch, patch)
    assert (cut[:, :, :, :, :, 0] == cut[:, :, :, :, :, 1]).all()
    image = cut[:, :, :, :, :, 0].transpose(0, 2, 5, 1, 3, 6, 4).reshape(rows * patch, columns * patch, 3)
    scaled = (image * np.array(config["image_std"]) + np.array(config["image_mean"])) * 255
    assert np.abs(scaled - scaled.round()).max() < 1e-3
    return scaled.round().astype(np.uint8)


def main():
    OUT.mkdir(exist_ok=True)
    for old in OUT.iterdir():
        old.unlink()
    processors = {key: (Qwen2VLImageProcessorPil(**config), Qwen2VLImageProcessor(**config)) for key, config in CONFIGS.items()}
    golden = {"configs": CONFIGS, "images": {}}
    for index, (name, data) in enumerate(files()):
        (OUT / name).write_bytes(data)
        image = load_image(str(OUT / name))
        entry = {}
        for key in CONFIGS if name in {"plain.png", "tiny.png", "tall.png", "large.png"} else "ab"[index % 2]:
            slow, fast = processors[key]
            out = slow(images=[image], return_tensors="np")
            values, grid = out["pixel_values"], out["image_grid_thw"][0].tolist()
            other = fast(images=[image], return_tensors="np")
            assert other["image_grid_thw"][0].tolist() == grid
            expected = to_bytes(values, grid, CONFIGS[key])
            apart = np.abs(expected.astype(int) - to_bytes(np.asarray(other["pixel_values"]), grid, CONFIGS[key])).max()
            Image.fromarray(expected).save(OUT / f"{name}.{key}.png", optimize=True)
            places = np.random.default_rng(len(name)).integers(0, values.size, 8)
            samples = [[int(place), float(f"{values.reshape(-1)[place]:.7g}")] for place in sorted(places)]
            entry[key] = {"grid": grid, "tokens": math.prod(grid) // 4, "samples": samples, "torchvision": int(apart)}
        golden["images"][name] = entry
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(entry, separators=(',', ':'))}" for name, entry in golden["images"].items())
    (HERE / "formats.json").write_text(f'{{"configs": {json.dumps(CONFIGS)},\n"images": {{\n{lines}\n}}}}\n')


if __name__ == "__main__":
    main()

"""Hostile settings and weights of published models."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import convert
import sample
from published.openai import FLAGS
from tests.hostile.case import Case
from tests.hostile.tensors import tensor_files
from tests.hostile.values import VALUES, damaged
from tests.published import networks


def settings(base: Path, rng: random.Random) -> Iterator[Case]:
    """Hostile config.json, scheduler_config.json and flags of published models."""
    def in_json(source: str, file: str, change: Callable[[dict], Any]) -> list[str]:
        path = base / source
        shutil.copytree(path, "model") if path.is_dir() else shutil.copy(path, "model.pt")
        target = Path("model", file) if path.is_dir() else Path("model.json")
        sound = json.loads((path / file if path.is_dir() else base / "openai.json").read_text())
        text = change(sound)
        target.write_text(text if isinstance(text, str) else json.dumps(text), errors="surrogatepass")
        return ["--source", "model" if path.is_dir() else "model.pt", "--to", "new.safetensors"]

    def changes(keys: list[str], n: int) -> Iterator[tuple[str, Callable[[dict], Any]]]:
        for _ in range(n):
            new = {rng.choice(keys): rng.choice(VALUES) for _ in range(rng.choice([1, 1, 2]))}
            yield repr(new)[:70], lambda sound, new=new: {**sound, **new}

    network = [*networks.CONFIG, *convert.from_diffusers.__globals__["MODEL"], "sample_size", "block_out_channels"]
    scheduler = [*convert.from_diffusers.__globals__["SCHEDULER"], "trained_betas", "thresholding"]
    for name, change in changes(network, 60):
        yield Case("config.json", name, convert.main, partial(in_json, "bin", "unet/config.json", change))
    for name, change in changes(scheduler, 30):
        yield Case("config.json", name, convert.main, partial(
            in_json, "bin", "scheduler/scheduler_config.json", change))
    for name, change in changes([*FLAGS], 50):
        yield Case("published flags", name, convert.main, partial(in_json, "openai.pt", "", change))
    for text in ("", "{", "[]", "null", "3", "[" * 10**5, '{"a":' * 10**5, "{}", '{"sample_size": 16}', "\udcff", "NaN",
                 '{"layers_per_block": 1' + "0" * 5000 + "}"):
        yield Case("config.json", repr(text)[:40], convert.main, partial(
            in_json, "bin", "unet/config.json", lambda _, text=text: text))

    def with_flags(text: str) -> list[str]:
        shutil.copy(base / "openai.pt", "model.pt")
        return ["--source", "model.pt", "--to", "new.safetensors", "--flags", text]

    texts = ["--image_size", "--image_size x", "--x 1", "--image_size 64 --image_size -3", "--channel_mult 1,0",
             "--attention_resolutions 0", "--num_res_blocks 1000000000", "--diffusion_steps 1000000000000",
             "--channel_mult nan", "--num_head_channels 0", "--dropout inf", "nowhere.json", "model.pt", ".", "--",
             "--num_channels 99999999999999999999", "--learn_sigma maybe", "--noise_schedule sqrt", "\0", "x" * 5000]
    for text in texts:
        yield Case("published flags", text[:60], convert.main, partial(with_flags, text))


def published_weights(base: Path, rng: random.Random) -> Iterator[Case]:
    """Hostile weights of published models: .bin, .pt and .safetensors."""
    names = {"bin": "unet/diffusion_pytorch_model.bin", "safetensors": "unet/diffusion_pytorch_model.safetensors"}

    def in_folder(source: str, write: Callable[[Path], None]) -> list[str]:
        shutil.copytree(base / source, "model")
        write(Path("model", names[source]))
        return ["--source", "model", "--to", "new.safetensors"]

    def alone(write: Callable[[Path], None]) -> list[str]:
        write(Path("model.pt"))
        shutil.copy(base / "openai.json", "model.json")
        return ["--from", "model.pt", "--n", "1", "--steps", "1", "--out", "out"]

    for name, write in tensor_files(rng, base / "bin" / names["bin"], 45):
        yield Case("published weights", name, convert.main, partial(in_folder, "bin", write))
    for name, write in tensor_files(rng, base / "openai.pt", 30):
        yield Case("published weights", name, sample.main, partial(alone, write))

    for name, raw in safetensors_headers(rng, (base / "safetensors" / names["safetensors"]).read_bytes()):
        yield Case("safetensors", name, convert.main, partial(
            in_folder, "safetensors", lambda path, raw=raw: path.write_bytes(raw)))


def safetensors_headers(rng: random.Random, raw: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and contents of .safetensors files with hostile headers."""
    n = int.from_bytes(raw[:8], "little")
    header, rest = json.loads(raw[8:8 + n]), raw[8 + n:]
    first = next(name for name in header if name != "__metadata__")

    def built(changes: Any) -> bytes:
        text = json.dumps(changes).encode()
        return len(text).to_bytes(8, "little") + text + rest
    for value in ([], None, {}, "x", {"dtype": "F32"}, {"dtype": "X", "shape": [1], "data_offsets": [0, 4]},
                  {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]},
                  {"dtype": "F32", "shape": [2**32, 2**32], "data_offsets": [0, 0]},
                  {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
                  {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}):
        yield f"{first} {value}", built({**header, first: value})
    yield "a header of 2^63 bytes", (2**63 - 1).to_bytes(8, "little") + raw[8:]
    yield "a nested header", (10**5).to_bytes(8, "little") + b"[" * 10**5
    for k in range(8):
        yield f"bits {k}", damaged(rng, raw)

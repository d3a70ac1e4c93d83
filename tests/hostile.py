"""The hostile cases of tests/attack.py, by kind; each is a function of the seed alone.

A case arranges files in the current folder, in a process of its own, and returns the flags of the script that is then
run on them. Files named precious must never change; others only if the script succeeds.
"""

import copy
import io
import json
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from PIL import Image

import convert
import evaluate
import sample
import swiss_roll
import train
from examples import inpaint
from published.openai import FLAGS
from run import checkpoint, cli
from scores import classifier, fid
from tests import test_convert, test_flags, test_fuzz
from tests.data.test_published import cifar, mnist

ROOT = Path(__file__).parents[1]
TRAIN = [f"--{flag}" for flag in ("T=4", "batch=4", "warmup=1", "log_every=1", "save_every=1", "sample_every=100",
                                  "out=run")]


class Case(NamedTuple):
    """What is run on what."""
    kind: str
    name: str
    main: Callable[[list[str]], Any]
    arrange: Callable[[], list[str]]            # makes the files in the current folder; the flags for main
    disk: int | None = None                     # bytes that a file may have
    midway: bool = False                        # it may fail in the middle: files may be newer, if they are whole


# What the cases begin with

def foundations(base: Path) -> Case:
    """A case that fills a folder with sound files: a run, a model, its classifier, and published models."""
    def arrange() -> list[str]:
        shutil.copy(ROOT / "weights" / "digits.pt", base / "digits.pt")
        shutil.copy(ROOT / "weights" / "digits_classifier.pt", base / "classifier.pt")
        test_convert.folder(base / "bin", "bin")
        test_convert.folder(base / "safetensors")
        torch.save(test_convert.golden("guided_unet_improved")[0], base / "openai.pt")
        (base / "openai.json").write_text(json.dumps(test_convert.OPENAI["guided_unet_improved"]))
        np.savez(base / "few.npz", arr_0=np.random.default_rng(0).integers(0, 256, (8, 8, 8), np.uint8))
        return [*TRAIN, "--steps", "4", "--out", str(base / "run")]
    return Case("foundations", "", train.main, arrange)


def content_of(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def resumed(base: Path) -> list[str]:
    """The flags that resume the run, of which there is a copy now."""
    shutil.copytree(base / "run", "run")
    return [*TRAIN, "--steps", "6"]


# Values

NUMBERS = [None, True, -1, 0, 1, 3, 1.5, 2**31, 10**9, 10**12, 10**30, float("nan"), float("inf")]
VALUES = [*NUMBERS, "", "x", "1", "9" * 400, "\udcff", [], [1], [None], {}, {"a": [[[]]]}, [[1, 2], [3]], [64] * 1000,
          ["x", {}], {"x": 10**30}]


def tensors(w: torch.Tensor) -> dict[str, Any]:
    """Tensors, by name, that could stand where w does, and should not."""
    return {"cut": w.flatten()[:-1].clone(), "longer": w.flatten().repeat(2), "scalar": torch.tensor(1.),
            "empty": torch.empty(0), "nan": w * torch.nan, "inf": w + torch.inf, "half": w.half(), "double": w.double(),
            "int": w.long(), "bool": w > 0, "complex": w.cfloat(), "sparse": w.to_sparse(),
            "backwards": w.mT.clone().mT if w.ndim > 1 else -w, "strides of 0": torch.zeros(()).expand(w.shape),
            "csr": torch.eye(3).to_sparse_csr(), "meta": torch.empty_like(w, device="meta"),
            "endless": torch.zeros(1).expand(2**40),
            "quantized": torch.quantize_per_tensor(w.float(), 1., 0, torch.quint8)}


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Every place within nested dicts, lists and tuples, as keys one after the other."""
    if path:
        yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, part in parts:
        yield from places(part, (*path, key))


def changed(value: Any, path: tuple, change: Callable[[Any], Any]) -> Any:
    """A copy of the nested value in which what is at the path is change(it); None removes it from its dict."""
    if not path:
        return change(value)
    kind, (key, *rest) = type(value), path
    parts = dict(value.items() if isinstance(value, dict) else enumerate(value))
    parts[key] = changed(parts[key], tuple(rest), change)
    if parts[key] is REMOVED:
        del parts[key]
    return parts if isinstance(value, dict) else kind(parts.values())


REMOVED = object()


def hostile_change(rng: random.Random, value: Any) -> tuple[str, Any]:
    """A name and a value for what replaces this one."""
    if isinstance(value, torch.Tensor) and value.is_floating_point() and rng.random() < 0.8:
        name, other = rng.choice([*tensors(value).items()])
        return name, other
    if rng.random() < 0.15:
        return "removed", REMOVED
    other = rng.choice(VALUES)
    return repr(other)[:30], other


def mutated(rng: random.Random, content: Any) -> tuple[str, Any]:
    """The content with something hostile at one of its places, each of its top keys being as likely; and a name."""
    content = copy.copy(content)
    top = rng.choice([*content])
    path = rng.choice([*places(content[top], (top,))])
    here = content
    for key in path:
        here = here[key]
    name, other = hostile_change(rng, here)
    return f"{'.'.join(map(str, path))} {name}", changed(content, path, lambda _: other)


def damaged(rng: random.Random, raw: bytes) -> bytes:
    """The bytes with a few bits flipped, mostly early ones, or cut, or with others put in."""
    spoilt = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(min(len(raw), rng.choice([40, 400, len(raw)])))
        spoilt[place] ^= 1 << rng.randrange(8)
    how = rng.random()
    if how < 0.2:
        return bytes(spoilt[:rng.randrange(len(raw))])
    if how < 0.3:
        place = rng.randrange(len(raw))
        return bytes(spoilt[:place] + rng.randbytes(rng.randint(1, 64)) + spoilt[place:])
    return bytes(spoilt)


# Files of tensors, down to their pickles

def with_pickle(raw: bytes, change: Callable[[bytes], bytes], compress: bool = False) -> bytes:
    """A file of torch.save's whose pickle is changed, its checksums being right."""
    file = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(file, "w", kind) as new:
        for entry in old.infolist():
            part = old.read(entry)
            new.writestr(entry.filename, change(part) if entry.filename.endswith("data.pkl") else part)
    return file.getvalue()


REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORAGE = b"((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0%dX\x03\0\0\0cpuJ%btQ"
PICKLES = {
    "empty": b"", "no end": b"\x80\x02}q\0", "underflow": b"\x80\x02.", "underflow of a list": b"\x80\x02a.",
    "underflow of a dict": b"\x80\x02}u.", "no memo": b"\x80\x02h\x07.", "no arguments": b"\x80\x02" + REBUILD + b")R.",
    "wrong arguments": b"\x80\x02" + REBUILD + b"(K\x01K\x02K\x03tR.", "a number": b"\x80\x02K\x01.",
    "a function": b"\x80\x02" + REBUILD + b".", "exec": b"\x80\x02cbuiltins\nexec\nX\x04\0\0\0passtR.",
    "os.system": pickle.dumps(test_fuzz.Trap(), 2), "protocol 5": pickle.dumps({"a": 1}, 5),
    "a persistent number": b"\x80\x02K\x01Q.", "a persistent text": b"\x80\x02X\x01\0\0\0aQ.",
    "NEWOBJ": b"\x80\x02)\x81.", "BUILD": b"\x80\x02}}b.",
    "BUILD of OrderedDict": b"\x80\x02ccollections\nOrderedDict\n)R}X\x01\0\0\0aK\x01sb.",
    "a parameter of nothing": b"\x80\x02ctorch._utils\n_rebuild_parameter\n)R.",
    "a sparse tensor of nothing": b"\x80\x02ctorch._utils\n_rebuild_sparse_tensor\n(NNtR.",
    "a device": b"\x80\x02ctorch\ndevice\nX\x04\0\0\0cudatR.",
    "a size": b"\x80\x02ctorch\nSize\n((J\xff\xff\xff\xffttR.",
    "a huge number": b"\x80\x02\x8b\xff\xff\xff\x7f.", "a huge text": b"\x80\x02X\xff\xff\xff\x7fa.",
    "a huge memo": b"\x80\x02Nr\xff\xff\xff\xff.", "an extension": b"\x80\x02\x82\x01.",
    "a frame": b"\x80\x04\x95" + b"\xff" * 8,
    "nested lists": b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
    "a list of itself": b"\x80\x02]q\0h\0a.", "a dict of itself": b"\x80\x02}q\0X\x01\0\0\0ah\0s.",
    "a key that cannot be one": b"\x80\x02}]K\x01s.", "a tuple of itself": b"\x80\x02]q\0h\0\x85a."}


def billion(levels: int = 30) -> Any:
    """A list that is small in memory and endless on paper."""
    value = ["x"]
    for _ in range(levels):
        value = [value, value]
    return value


def tensor_files(rng: random.Random, sound: Path, n: int) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Names, and writers, of n hostile variants of a file of tensors: of content, of bytes, of pickles."""
    def put(path: Path, make: Callable[[], bytes]) -> None:
        path.write_bytes(make())

    def save(path: Path, seed: int) -> None:
        content = mutated(random.Random(seed), content_of(sound))[1]
        torch.save(mutated(random.Random(seed + 1), content)[1] if seed % 3 == 0 and isinstance(content, dict) else
                   content, path)

    yield "endless on paper", lambda path: torch.save({**content_of(sound), "step": billion()}, path)
    yield "packed", partial(put, make=lambda: with_pickle(sound.read_bytes(), bytes, compress=True))
    yield "nothing", partial(put, make=bytes)
    yield "old format", lambda path: torch.save(content_of(sound), path, _use_new_zipfile_serialization=False)
    chosen = rng.sample([*PICKLES], min(len(PICKLES), n // 3))
    for name in chosen:
        yield f"pickle: {name}", partial(put, make=partial(lambda p: with_pickle(sound.read_bytes(), lambda _: p),
                                                           PICKLES[name]))
    for k in range(n // 3 - 4):
        seed = rng.randrange(2**31)
        how = ("bits of the pickle", "bits", "an old file's bits")[k % 3]

        def bits(seed: int = seed, how: str = how) -> bytes:
            chance = random.Random(seed)
            if how == "bits of the pickle":
                return with_pickle(sound.read_bytes(), partial(damaged, chance))
            file = io.BytesIO()
            torch.save(content_of(sound), file, _use_new_zipfile_serialization=False)
            return damaged(chance, sound.read_bytes() if how == "bits" else file.getvalue())
        yield f"{how} {seed}", partial(put, make=bits)
    for _ in range(n - n // 3 - len(chosen)):
        seed = 3 * rng.randrange(2**29) + rng.choice([1, 2, 2, 0])
        yield f"content {seed}", partial(save, seed=seed)


def checkpoints(base: Path, rng: random.Random) -> Iterator[Case]:
    """Hostile checkpoints, to sample from and to resume."""
    def to_sample(write: Callable[[Path], None]) -> list[str]:
        write(Path("x.pt"))
        return ["--checkpoint", "x.pt", "--n", "2", "--steps", "2", "--out", "out"]

    def to_resume(write: Callable[[Path], None], name: str) -> list[str]:
        flags = resumed(base)
        Path("run/previous.pt").unlink(missing_ok=True)
        Path("run/last.pt").unlink()
        write(Path("run", name))
        return flags

    for name, write in tensor_files(rng, base / "run" / "last.pt", 90):
        yield Case("sampled checkpoint", name, sample.main, partial(to_sample, write))
    for name, write in tensor_files(rng, base / "run" / "last.pt", 90):
        yield Case("resumed checkpoint", name, train.main, partial(to_resume, write, "last.pt"))
    for name, write in tensor_files(rng, base / "digits.pt", 15):
        yield Case("copied checkpoint", name, checkpoint.main, lambda write=write: (
            write(Path("x.pt")), ["--source", "x.pt", "--to", "new.pt"])[1])


def optimizers(base: Path, rng: random.Random) -> Iterator[Case]:
    """Checkpoints whose optimizer state, average or history does not fit the network: they once broke the heap."""
    def arrange(part: str, name: str) -> list[str]:
        flags = resumed(base)
        content = content_of(base / "run" / "last.pt")
        state = content["optimizer"]["state"]
        if part in ("exp_avg", "exp_avg_sq", "step"):
            for moments in state.values():
                moments[part] = tensors(moments[part])[name]
        elif part == "history":
            content["history"] = tensors(torch.zeros(4, 10))[name]
        else:
            content[part] = {key: tensors(w)[name] for key, w in content[part].items()}
        Path("run/previous.pt").unlink(missing_ok=True)
        torch.save(content, "run/last.pt")
        return flags

    parts = ("exp_avg", "exp_avg_sq", "step", "ema", "weights", "history")
    every = [(part, name) for part in parts for name in tensors(torch.ones(2, 2))]
    for part, name in rng.sample(every, 40):
        yield Case("optimizer state", f"{part} {name}", train.main, partial(arrange, part, name))


def logs(base: Path, rng: random.Random) -> Iterator[Case]:
    """Hostile lines of log.jsonl, among sound ones."""
    lines = ["", " ", "{", "[]", "3", "null", '"x"', "{}", '{"step": null}', '{"step": "2"}', '{"step": [1]}',
             '{"step": 1e999}', '{"step": NaN}', '{"step": ' + "9" * 5000 + "}", "[" * 10**5, '{"a": ' * 10**5,
             '{"step": 2, "loss": "x"}', '{"step": 2, "loss": null, "quarters": 3}', "\ufeff{}", "\0" * 100,
             "\x85\u2028",
             '{"step": 2, "loss": 1, "quarters": [1]}', '{"step": 2, "loss": 1, "quarters": ["a", {}, [], 2]}',
             '{"step": 2, "loss": {}, "quarters": [1, 2, 3, 4]}', '{"step": -5, "loss": 1e400}', "x" * 10**7]

    def arrange(line: bytes, where: str) -> list[str]:
        flags = resumed(base)
        log = Path("run/log.jsonl")
        whole = log.read_bytes()
        log.write_bytes({"first": line + b"\n" + whole, "last": whole + line + b"\n", "torn": whole + line,
                         "alone": line + b"\n"}[where])
        return flags

    for line in lines:
        where = rng.choice(["first", "last", "torn", "alone"])
        raw = line.encode(errors="surrogatepass")
        yield Case("log", f"{where}: {line[:40]!r}", train.main, partial(arrange, raw, where))
    for k in range(4):
        yield Case("log", f"bytes {k}", train.main, partial(arrange, rng.randbytes(200), "last"))


# Published models

def settings(base: Path, rng: random.Random) -> Iterator[Case]:
    """Hostile config.json, scheduler_config.json and flags of published models."""
    def in_json(source: str, file: str, change: Callable[[dict], Any]) -> list[str]:
        path = base / source
        shutil.copytree(path, "model") if path.is_dir() else shutil.copy(path, "model.pt")
        target = Path("model", file) if path.is_dir() else Path("model.json")
        sound = json.loads((path / file if path.is_dir() else base / "openai.json").read_text())
        text = change(sound)
        target.write_text(text if isinstance(text, str) else json.dumps(text), errors="surrogatepass")
        return ["--source", "model" if path.is_dir() else "model.pt", "--to", "new.pt"]

    def changes(keys: list[str], n: int) -> Iterator[tuple[str, Callable[[dict], Any]]]:
        for _ in range(n):
            new = {rng.choice(keys): rng.choice(VALUES) for _ in range(rng.choice([1, 1, 2]))}
            yield repr(new)[:70], lambda sound, new=new: {**sound, **new}

    network = [*test_convert.CONFIG, *convert.from_diffusers.__globals__["MODEL"], "sample_size", "block_out_channels"]
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
        return ["--source", "model.pt", "--to", "new.pt", "--flags", text]

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
        return ["--source", "model", "--to", "new.pt"]

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


# Data sets

def trained_on(name: str, *more: str) -> list[str]:
    return ["--data", name, "--T", "2", "--batch", "2", "--warmup", "1", "--steps", "1", "--out", "run", *more]


def folders_of_pictures(base: Path, rng: random.Random) -> Iterator[Case]:
    """Hostile images: damaged, of other formats and names, huge, with strange EXIF, and no files at all."""
    def one(name: str, content: bytes) -> list[str]:
        Path("pics").mkdir()
        Path("pics", name).write_bytes(content)
        for k in range(2):
            Image.effect_noise((8, 9), 50).save(f"pics/{k}.png")
        return trained_on("pics", "--size", "8")

    for (suffix, *kind), raw in test_fuzz.IMAGES.items():
        for k in range(3):
            yield Case("images", f"{suffix} {kind} {k}", train.main, partial(one, f"x{suffix}", damaged(rng, raw)))
    for form in ("EPS", "ICO", "PDF", "TGA", "PCX", "SGI", "DDS", "ICNS"):
        file = io.BytesIO()
        Image.new("RGB", (16, 16)).save(file, form)
        yield Case("images", f"{form} as png", train.main, partial(one, "x.png", file.getvalue()))
    for size in ((50000, 50000), (14000, 14000), (2**31 - 1, 1), (0, 0), (1, 10**6)):
        yield Case("images", f"a png of {size}", train.main, partial(one, "x.png", test_fuzz.png_of(*size)))
    for name in ("-rf.png", "a\nb.png", "\udcff.png", "x" * 240 + ".png", "%s{0}.png", ".png", "x.PNG", "x.png.png"):
        yield Case("images", f"named {name[:20]!r}", train.main, partial(one, name, test_fuzz.IMAGES[".png", "RGB"]))
    for k in range(6):
        file = io.BytesIO()
        Image.new("RGB", (12, 8)).save(file, "JPEG", exif=b"Exif\0\0" + damaged(rng, turned()))
        yield Case("images", f"exif {k}", train.main, partial(one, "x.jpg", file.getvalue()))
    yield from strange_folders(base)


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x112], exif[0x10E] = 6, "a picture"
    return exif.tobytes().removeprefix(b"Exif\0\0")


def strange_folders(base: Path) -> Iterator[Case]:
    """Folders that hold pipes, links, folders with the names of pictures, or nothing."""
    def strange(make: Callable[[Path], Any]) -> list[str]:
        pics = Path("pics")
        pics.mkdir()
        Image.effect_noise((8, 8), 50).save(pics / "0.png")
        make(pics)
        return trained_on("pics", "--size", "8")

    makes = {"a pipe": lambda p: os.mkfifo(p / "x.png"), "a folder": lambda p: (p / "x.png").mkdir(),
             "a link to itself": lambda p: (p / "x.png").symlink_to("x.png"),
             "a link to nowhere": lambda p: (p / "x.png").symlink_to("nowhere"),
             "a link to its folder": lambda p: (p / "again").symlink_to(p.resolve()),
             "a device": lambda p: (p / "x.png").symlink_to("/dev/zero"), "nothing": lambda p: (p / "0.png").unlink(),
             "__MACOSX": lambda p: ((p / "__MACOSX").mkdir(), (p / "__MACOSX" / "._x.png").write_bytes(b"x")),
             "hidden": lambda p: ((p / ".x").mkdir(), (p / ".x" / "x.png").write_bytes(b"x")),
             "a class beside pictures": lambda p: ((p / "a").mkdir(), shutil.copy(p / "0.png", p / "a" / "1.png"))}
    for name, make in makes.items():
        yield Case("images", name, train.main, partial(strange, make))


def arrays(base: Path, rng: random.Random) -> Iterator[Case]:
    """Hostile .npz files."""
    def one(content: bytes) -> list[str]:
        Path("x.npz").write_bytes(content)
        return trained_on("x.npz")

    sound = test_fuzz.npz(), test_fuzz.npz(np.savez_compressed)
    contents = {f"bits {k}": damaged(rng, sound[k % 2]) for k in range(16)}
    for shape in ((10**6, 1000, 1000, 3), (2**32, 2**32), (10**30,), (-1, 8, 8), (0, 8, 8), (2, 4, 8), (), (64,)):
        for descr in rng.sample(["|u1", "<f8", "|O", "<U9", "|V0", "M8", "x"], 2):
            contents[f"{shape} {descr}"] = test_fuzz.with_header(shape, descr, rng.random() < 0.3)
    contents |= {"a bomb": test_fuzz.zip_bomb(), "a pickle": pickle.dumps(test_fuzz.Trap()), "nothing": b"",
                 "objects": test_fuzz.npz(images=np.array([test_fuzz.Trap()] * 3, object)),
                 "locked": test_fuzz.locked(test_fuzz.npz()),
                 "labels": test_fuzz.npz(labels=np.array([0, 1, 10**12])), "floats": test_fuzz.npz(labels=np.ones(3)),
                 "few labels": test_fuzz.npz(labels=np.array([0]))}
    for name, content in contents.items():
        yield Case("npz", name, train.main, partial(one, content))


def authors_files(base: Path, rng: random.Random) -> Iterator[Case]:
    """Hostile MNIST and CIFAR files, and parquet tables."""
    def one(name: str, make: Callable[[Path], Any], seed: int) -> list[str]:
        chance, folder = random.Random(seed), Path("set")
        folder.mkdir()
        make(folder)
        path = chance.choice([p for p in sorted(folder.rglob("*")) if p.is_file() and "t10k" not in p.name])
        path.write_bytes(damaged(chance, path.read_bytes()))
        return trained_on(f"{name}:set", "--size", "32")

    def table(change: Callable[[dict, datasets.Features], Any]) -> list[str]:
        datasets.config.HF_DATASETS_CACHE = Path("cache").resolve()
        Path("set").mkdir()
        cells = [{"bytes": test_fuzz.IMAGES[".png", "RGB"], "path": None} for _ in range(4)]
        columns, features = {"img": cells, "label": [0, 1, 0, 1]}, datasets.Features(
            {"img": datasets.Image(decode=False), "label": datasets.ClassLabel(names=["a", "b"])})
        change(columns, features)
        datasets.Dataset.from_dict(columns, features).to_parquet("set/a.parquet")
        return trained_on("cifar10:set")

    sets = {"mnist": mnist, "mnist packed": partial(mnist, packed=True), "cifar10": partial(cifar, name="cifar10", n=1),
            "cifar100": partial(cifar, name="cifar100"), "parquet": parquet}
    for name, make in sets.items():
        for _ in range(7):
            seed = rng.randrange(2**31)
            yield Case("sets of pictures", f"{name} {seed}", train.main, partial(
                one, "cifar10" if name == "parquet" else name.split()[0], make, seed))
    text, number = datasets.Value("string"), datasets.Value("float64")
    for name, change in {
            "labels of text": lambda c, f: (c.update(label=["a"] * 4), f.update(label=text)),
            "labels of floats": lambda c, f: (c.update(label=[float("nan")] * 4), f.update(label=number)),
            "no labels": lambda c, f: c.update(label=[-1] * 4),
            "labels of nothing": lambda c, f: c.update(label=[None] * 4),
            "pictures of text": lambda c, f: (c.update(img=["a"] * 4), f.update(img=text)),
            "no pictures": lambda c, f: c.update(img=[None] * 4), "nothing": lambda c, f: c.update(img=[], label=[]),
            "a path": lambda c, f: c.update(img=[{"bytes": None, "path": "/dev/zero"}] * 4),
            "a column is missing": lambda c, f: (c.pop("label"), f.pop("label"))}.items():
        yield Case("sets of pictures", f"parquet: {name}", train.main, partial(table, change))


def parquet(folder: Path) -> None:
    datasets.config.HF_DATASETS_CACHE = Path("cache").resolve()
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    pictures = [Image.effect_noise((32, 32), 50).convert("RGB") for _ in range(4)]
    datasets.Dataset.from_dict({"img": pictures, "label": [0, 1, 0, 1]}, features).to_parquet(folder / "a.parquet")


# Scores

def means(device: torch.device) -> fid.Features:
    """Features of pictures, instead of a network's that would have to be fetched."""
    return lambda pixels: torch.nn.functional.adaptive_avg_pool2d(pixels.float() / 255, 2).flatten(1)


@cli.script
def fid_main(argv: list[str]) -> None:
    fid.fid(argv, means)


FID = ["--pictures", "few.npz", "--data", "few.npz", "--cache", "cache"]


def caches(base: Path, rng: random.Random) -> Iterator[Case]:
    """Hostile weights of the classifier, and statistics of the FID."""
    def weights(write: Callable[[Path], None]) -> list[str]:
        write(Path("c.pt"))
        return ["classes", "--checkpoint", str(base / "digits.pt"), "--classifier", "c.pt", "--n", "20", "--steps", "1"]

    def statistics(change: Callable[[dict], Any]) -> list[str]:
        shutil.copy(base / "few.npz", "few.npz")
        pixels = fid.data.load("few.npz")
        fid.halves(pixels, means("cpu"), 50, Path("cache"))
        [path] = Path("cache").iterdir()
        with np.load(path) as file:
            made = change(dict(file))
        path.write_bytes(made if isinstance(made, bytes) else b"")
        if isinstance(made, dict):
            np.savez(path, **made)
        return FID

    for name, write in tensor_files(rng, base / "classifier.pt", 24):
        yield Case("classifier", name, evaluate.main, partial(weights, write))
    for name, value in {"nan": np.full(12, np.nan), "short": np.zeros(3), "scalar": np.array(3.), "text": np.array("x"),
                        "objects": np.array([{}], object), "ints": np.zeros(12, int), "large": np.zeros((12, 12, 12)),
                        "complex": np.zeros(12, complex)}.items():
        key = rng.choice(["n0", "mean0", "scatter0", "n1", "mean1", "scatter1"])
        yield Case("FID cache", f"{key} {name}", fid_main, partial(statistics, lambda d, k=key, v=value: {**d, k: v}))
    for k, content in enumerate((b"", b"x" * 99, test_fuzz.zip_bomb(), pickle.dumps(test_fuzz.Trap()))):
        yield Case("FID cache", f"bytes {k}", fid_main, partial(statistics, lambda d, c=content: c))
    yield Case("FID cache", "one is missing", fid_main, partial(statistics, lambda d: {"n0": d["n0"]}))


# Flags

def flags(base: Path, rng: random.Random) -> Iterator[Case]:
    """Arbitrary flags of every script."""
    def arrange(script: test_flags.Script, argv: list[str]) -> list[str]:
        test_flags.lay_out(Path.cwd())
        for module, name in test_flags.LONG:
            setattr(module, name, lambda *args, **kwargs: exit(0))
        classifier.FILES["digits"] = base / "classifier.pt"
        return [*script.command.split(), *script.base.split(), *argv]

    for name, script in test_flags.SCRIPTS.items():
        choices = [f for f in fields(script.config) if f.name not in script.never.split()]
        for _ in range(4):
            argv = []
            for field in rng.sample(choices, min(len(choices), rng.randint(1, 3))):
                flag = field.name.rstrip("_")
                values = test_flags.SMALL if flag in script.small.split() else test_flags.VALUES.get(field.type, ())
                argv.append(f"--{flag}={rng.choice(values)}" if values else rng.choice([f"--{flag}", f"--no-{flag}"]))
            yield Case("flags", f"{name} {argv}"[:90], script.main, partial(arrange, script, argv))


# Full disks, links, streams

def writers(base: Path) -> dict[str, tuple[Callable, Callable[[], list[str]]]]:
    """Every script that writes, and its flags, where its files are there already."""
    digits = ["--checkpoint", str(base / "digits.pt"), "--n", "20", "--steps", "2"]

    def after(main: Callable, argv: list[str]) -> list[str]:
        main(argv)
        return argv

    def classifier() -> list[str]:
        shutil.copy(base / "classifier.pt", "c.pt")
        return ["classifier", "--steps", "2", "--out", "c.pt"]

    def roll() -> list[str]:
        swiss_roll.train = lambda *args: None
        swiss_roll.bound = lambda *args: torch.zeros(())
        Image.new("L", (8, 8)).save("roll.png")
        return ["--steps", "1", "--out", "roll.png"]

    def fid_flags() -> list[str]:
        shutil.copy(base / "few.npz", "few.npz")
        return FID

    def all_of_sample(flag: str) -> list[str]:
        return [*after(sample.main, [*digits, *flag.split(), "--out", "out"]), "--seed", "1"]

    return {
        "train": (train.main, lambda: [*TRAIN, "--steps", "6"]), "train, resumed": (train.main, lambda: resumed(base)),
        **{f"sample {flag}": (sample.main, partial(all_of_sample, flag)) for flag in (
            "", "--png", "--npz", "--gif", "--snapshots 1000,0", "--npz --png")},
        "convert": (convert.main, lambda: after(convert.main, ["--source", str(base / "bin"), "--to", "new.pt"])),
        "convert to a folder": (convert.main, lambda: after(
            convert.main, ["--source", str(base / "digits.pt"), "--to", "folder"])),
        "checkpoint": (checkpoint.main, lambda: after(
            checkpoint.main, ["--source", str(base / "run" / "last.pt"), "--to", "new.pt"])),
        "classifier": (evaluate.main, classifier), "fid": (fid_main, fid_flags), "swiss_roll": (swiss_roll.main, roll),
        "neighbours": (evaluate.main, lambda: ["neighbours", *digits, "--k", "2", "--out", "n.png"]),
        "nll": (evaluate.main, lambda: ["nll", *digits[:2], "--n", "2", "--times", "2", "--out", "nll.png"]),
        "inpaint": (inpaint.main, lambda: [*digits, "--draws", "1", "--rounds", "1", "--out", "i.png"])}


def disks(base: Path, rng: random.Random) -> Iterator[Case]:
    """Scripts whose files may not grow beyond some size."""
    for name, (main, arrange) in writers(base).items():
        for least, most in ((0, 0), (1, 600), (600, 8000), (8000, 10**5), (10**5, 10**6)):
            size = rng.randint(least, most)
            yield Case("full disk", f"{name}, {size} bytes", main, arrange, size, midway=True)


def links(base: Path, rng: random.Random) -> Iterator[Case]:
    """Symbolic links, pipes and folders under the names that scripts write to."""
    def arrange(made: Callable[[], list[str]], name: str, what: str) -> list[str]:
        argv, path = made(), Path(name)
        Path("precious").write_text("precious")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        {"link": lambda: path.symlink_to(Path("precious").resolve()), "folder": path.mkdir,
         "pipe": lambda: os.mkfifo(path)}[what]()
        return argv

    names = {"train, resumed": ["run/.lock", "run/last.pt.tmp", "run/log.jsonl.tmp", "run/loss.png", "run/loss.png.tmp",
                                "run/samples/000006.png", "run/progress.gif", "run/previous.pt", "run/log.jsonl"],
             "train": ["run/last.pt.tmp", "run/.lock", "run/previous.pt.tmp"],
             "sample --png": ["out/grid.png", "out/grid.png.tmp", "out/.lock", "out/png/000000.png.tmp"],
             "sample --npz": ["out/pictures.npz", "out/pictures.npz.tmp"], "convert": ["new.pt", "new.pt.tmp"],
             "convert to a folder": ["folder/unet/config.json", "folder/model_index.json.tmp"],
             "classifier": ["c.pt", "c.pt.tmp"], "swiss_roll": ["roll.png.tmp"]}
    for script, paths in names.items():
        main, made = writers(base)[script]
        for name in paths:
            for what in ("link", rng.choice(["folder", "pipe"])):
                yield Case("links and pipes", f"{script}: {what} {name}", main, partial(arrange, made, name, what),
                           midway=True)


def streams(base: Path, rng: random.Random) -> Iterator[Case]:
    """Closed and broken streams, no docstrings, few descriptors: real processes."""
    python = f"{os.sys.executable} {{}} {ROOT}"
    sampled = f"sample.py --checkpoint {base / 'digits.pt'} --n 2 --steps 1"
    trained = "train.py --T 2 --steps 2 --batch 2 --warmup 1 --out run"
    lines = [*(f"{sampled} {ends}" for ends in ("| true", "2>&1 | true", "2>&-", ">&-", "<&- >&- 2>&-", ">/dev/full",
                                                "2>/dev/full")), f"{trained} 2>&-", f"{trained} 2>&1 | head -c 9 >&2",
             "ddpm.py | true", "-OO ddpm.py >/dev/null", f"-OO {trained} 2>/dev/null", f"{trained} --workers 3; n=12",
             f"{trained} --workers 3; n=24"]

    def bash(line: str) -> None:
        line, _, few = line.partition("; n=")
        option, line = ("-OO", line.removeprefix("-OO ")) if line.startswith("-OO") else ("", line)
        command = f"set -o pipefail; ulimit -n {few or 256}; {python.format(option)}/{line}"
        os.environ |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        os.execvp("bash", ["bash", "-c", command])

    for line in lines:
        yield Case("streams", line.replace(str(base), "BASE"), bash, lambda line=line: line)


KINDS = (checkpoints, optimizers, logs, settings, published_weights, folders_of_pictures, arrays, authors_files, caches,
         flags, disks, links, streams)


def cases(base: Path, seed: int = 0) -> list[Case]:
    """All cases of this seed; base: a folder that `foundations` filled."""
    return [case for make in KINDS for case in make(base, random.Random(f"{seed} {make.__name__}"))]

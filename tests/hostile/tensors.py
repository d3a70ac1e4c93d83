"""Hostile files of tensors, down to their pickles: checkpoints; and the log beside them."""

import io
import pickle
import random
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

import sample
import train
from run import checkpoint
from tests import test_fuzz
from tests.hostile.case import Case, content_of, resumed
from tests.hostile.values import damaged, mutated, tensors


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
        write(Path("x.safetensors"))
        return ["--checkpoint", "x.safetensors", "--n", "2", "--steps", "2", "--out", "out"]

    def to_resume(write: Callable[[Path], None], name: str) -> list[str]:
        flags = resumed(base)
        Path("run/previous.safetensors").unlink(missing_ok=True)
        Path("run/last.safetensors").unlink()
        write(Path("run", name))
        return flags

    for name, write in tensor_files(rng, base / "run" / "last.safetensors", 90):
        yield Case("sampled checkpoint", name, sample.main, partial(to_sample, write))
    for name, write in tensor_files(rng, base / "run" / "last.safetensors", 90):
        yield Case("resumed checkpoint", name, train.main, partial(to_resume, write, "last.safetensors"))
    for name, write in tensor_files(rng, base / "digits.safetensors", 15):
        yield Case("copied checkpoint", name, checkpoint.main, lambda write=write: (
            write(Path("x.safetensors")), ["--source", "x.safetensors", "--to", "new.safetensors"])[1])


def optimizers(base: Path, rng: random.Random) -> Iterator[Case]:
    """Checkpoints whose optimizer state, average or history does not fit the network: they once broke the heap."""
    def arrange(part: str, name: str) -> list[str]:
        flags = resumed(base)
        content = content_of(base / "run" / "last.safetensors")
        state = content["optimizer"]["state"]
        if part in ("exp_avg", "exp_avg_sq", "step"):
            for moments in state.values():
                moments[part] = tensors(moments[part])[name]
        elif part == "history":
            content["history"] = tensors(torch.zeros(4, 10))[name]
        else:
            content[part] = {key: tensors(w)[name] for key, w in content[part].items()}
        Path("run/previous.safetensors").unlink(missing_ok=True)
        torch.save(content, "run/last.safetensors")
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

"""Files of tensors, all of them safetensors, with facts as JSON in the header."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from data.files import reading, writing

SUFFIX = ".safetensors"


def save(path: str | Path, tensors: dict[str, Tensor], facts: dict[str, Any], previous: Path | None = None) -> None:
    """Writes the file whole or not at all. No two tensors may share memory; facts are anything that JSON can hold.

    previous: the name that the file that was there gets.
    """
    content = {name: w.detach().contiguous() for name, w in tensors.items()}
    with writing(path, previous) as file:
        file.write(to_bytes(content, {"facts": json.dumps(facts)}))


def load(path: str | Path, leave_out: tuple[str, ...] = (), remedy: str = "use another file"
         ) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, on the CPU, and the facts, whose lists come back as tuples; none in a file of another program.

    leave_out: tensors whose names begin so are not read. Raises ValueError, which ends with the remedy, for a file that
    is damaged or of another format.
    """
    with reading(path, remedy):
        try:
            with safe_open(path, "pt") as file:
                facts = json.loads((file.metadata() or {}).get("facts", "{}"), object_hook=with_tuples)
                # cloned, as they are views of the file, which another program may overwrite
                return {name: file.get_tensor(name).clone() for name in file.keys()  # noqa: SIM118
                        if not name.startswith(leave_out)}, facts
        except SafetensorError as error:
            raise ValueError(f"it is damaged, cut short or no safetensors file ({error})") from None


def with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    """The values, tuples in place of JSON's lists."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}

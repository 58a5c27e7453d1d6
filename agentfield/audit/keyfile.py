"""Files that hold what audits keep: the seed of a key, and the newest seal that was found in order.

Owns: their form, and that a seed's file is nobody else's to read.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import orjson

from agentfield.audit.nkey import Signer
from agentfield.audit.replacing import replacing
from agentfield.audit.verifying import Witness
from agentfield.errors import InvalidInputError


def make_key(path: Path) -> Signer:
    """A new key, its seed in a new file that only its owner can read. Raises InvalidInputError if there is a file."""
    signer = Signer.generate()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise InvalidInputError(
            f"{path} is there already: a key that is overwritten is lost; give another name, or move the file away"
        ) from None
    with os.fdopen(descriptor, "w") as file:
        file.write(signer.seed + "\n")
        file.flush()
        os.fsync(file.fileno())
    return signer


def read_key(path: Path) -> Signer:
    """The key of a file. Raises InvalidInputError if it holds none, or if others can read it."""
    text = path.read_text(errors="replace")
    if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise InvalidInputError(f"{path} can be read by others: `chmod 600 {path}`, and think of making a new key")
    return Signer.of_seed(text)


def read_witness(path: Path, stream: str) -> Witness | None:
    """The seal that was noted for a log; None if the file is not there yet, or knows nothing of that log."""
    try:
        noted = orjson.loads(path.read_bytes())
        found = noted["agentfield_witness"].get(stream)
        return None if found is None else Witness(int(found["seal"]), str(found["hash"]))
    except FileNotFoundError:
        return None
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError):
        raise InvalidInputError(f"{path} is no witness file: give the name of one, or of a file to be made") from None


def write_witness(path: Path, stream: str, witness: Witness) -> None:
    """Note a seal for a log, in the place of the one before; what is noted for other logs stays."""
    try:
        noted = orjson.loads(path.read_bytes())["agentfield_witness"]
    except FileNotFoundError:
        noted = {}
    noted[stream] = {"seal": witness.number, "hash": witness.hash}
    with replacing(path) as partial:
        partial.write_bytes(orjson.dumps({"agentfield_witness": noted}, option=orjson.OPT_INDENT_2) + b"\n")

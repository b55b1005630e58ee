"""Reference values on disk, shared by all runs: whoever asks again, whatever the loss, finds them there.

A folder belongs to one (reference weights and config, compute dtype, kind of device). Each process that writes has a
file of its own in it, to which it appends a record for each optimizer step; a record that is not whole is not used.

    record = "AURF" | u64 length of the payload | 16 bytes blake2b of the payload | payload
    payload = f64 seconds it took | u32 n | n keys of 16 bytes | n u32 lengths | float32 values
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import struct
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

_MAGIC = b"AURF"
_HEADER = struct.Struct("<4sQ16s")
_PAYLOAD = struct.Struct("<dI")


class ReferenceCache:
    """Values by key, in memory and, when there is a folder, on disk.

    Args:
        folder: None keeps the values for this run alone.
    """

    def __init__(self, folder: Path | None = None):
        self._values: dict[bytes, np.ndarray] = {}
        self._seconds: dict[bytes, float] = {}  # what computing a value took, of values that were read
        self._folder = folder
        self._file: Path | None = None
        self._kept: set[bytes] = set()  # those that earlier runs, or other processes, had left on disk
        self.hits = self.hits_on_disk = self.misses = 0
        self.seconds_saved = 0.0
        if folder is not None:
            self._open(folder)
            self._kept = set(self._values)

    def has(self, keys: Sequence[bytes]) -> bool:
        """Whether all of these are known."""
        return all(key in self._values for key in keys)

    def __getitem__(self, key: bytes) -> torch.Tensor:
        return torch.from_numpy(self._values[key].copy())

    def __len__(self) -> int:
        return len(self._values)

    def count_hits(self, keys: Sequence[bytes]) -> None:
        """Notes that values were found and not computed."""
        self.hits += len(keys)
        self.hits_on_disk += sum(key in self._kept for key in keys)
        self.seconds_saved += sum(self._seconds.get(key, 0.0) for key in keys)

    def add(self, values: dict[bytes, torch.Tensor], seconds: float) -> None:
        """Keeps the values of a step, all of them or none; `seconds` is how long computing them took.

        A value that is known stays as it was: whoever asks again, after a restart too, gets the same bits.
        """
        self.misses += len(values)
        new = {k: value.to(torch.float32).numpy().copy() for k, value in values.items() if k not in self._values}
        self._values |= new
        self._seconds |= dict.fromkeys(new, seconds / max(1, len(new)))
        if new and self._folder is not None:
            self._append(_record(new, seconds))

    def forget(self) -> None:
        """Drops all values, and keeps none on disk from now on: the reference has other weights."""
        self._values, self._seconds, self._kept, self._folder = {}, {}, set(), None

    def state(self) -> torch.Tensor:
        """What a checkpoint keeps of values that are not on disk, as bytes (B,): who goes on needs the same ones."""
        if self._folder is not None or not self._values:
            return torch.zeros(0, dtype=torch.uint8)
        return torch.frombuffer(bytearray(_record(self._values, 0.0)), dtype=torch.uint8)

    def load_state(self, state: torch.Tensor) -> None:
        """Takes back what `state` gave."""
        for payload, _ in _payloads(state.numpy()):
            self._take(payload)

    def counts(self) -> tuple[int, int, int, float]:
        """Values computed, looked up, looked up of those that earlier runs left, and seconds that this saved."""
        return self.misses, self.hits, self.hits_on_disk, self.seconds_saved

    # The disk ------------------------------------------------------------------------------------------------------

    def _open(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for file in sorted(folder.glob("*.bin")):
                torn = self._read(file)
                if torn:
                    what = "%s: its last %d bytes begin with what is not a whole record; they are not used"
                    log.warning(what, file, torn)
            if not os.access(folder, os.W_OK):
                raise PermissionError(f"no permission to write to {folder}")
        except OSError as error:
            self._give_up(error)

    def _read(self, file: Path) -> int:
        """Takes the whole records of a file; returns how many bytes were left over."""
        if file.stat().st_size == 0:
            return 0
        contents = np.memmap(file, dtype=np.uint8, mode="r")
        at = 0
        for payload, end in _payloads(contents):
            at = end
            self._take(payload)
        return len(contents) - at

    def _take(self, payload: np.ndarray) -> None:
        seconds, count = _PAYLOAD.unpack_from(payload)
        keys = payload[_PAYLOAD.size : _PAYLOAD.size + 16 * count].reshape(count, 16)
        lengths_at = _PAYLOAD.size + 16 * count
        lengths = payload[lengths_at : lengths_at + 4 * count].view("<u4")
        values = np.frombuffer(payload, dtype="<f4", offset=lengths_at + 4 * count)
        parts = np.split(values, np.cumsum(lengths)[:-1]) if count else []
        for key, part in zip((key.tobytes() for key in keys), parts, strict=True):
            self._values.setdefault(key, part)  # the first one written stays
            self._seconds.setdefault(key, seconds / max(1, count))

    def _append(self, record: bytes) -> None:
        if self._file is None:
            self._file = self._folder / f"{time.time_ns():020d}-{secrets.token_hex(4)}.bin"
        try:
            with open(self._file, "ab") as file:
                file.write(record)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """A cache that cannot be written is no reason to stop: values are then computed once for each run."""
        log.warning("reference values are not kept on disk: %s", error)
        self._folder = None


def _record(values: dict[bytes, np.ndarray], seconds: float) -> bytes:
    lengths = np.array([len(value) for value in values.values()], dtype="<u4")
    floats = np.concatenate([*values.values(), np.zeros(0)]).astype("<f4")
    payload = b"".join([_PAYLOAD.pack(seconds, len(values)), *values, lengths.tobytes(), floats.tobytes()])
    return _HEADER.pack(_MAGIC, len(payload), hashlib.blake2b(payload, digest_size=16).digest()) + payload


def _payloads(contents: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """The payloads of whole records, and where each ends; stops at the first that is not whole."""
    at = 0
    while at + _HEADER.size <= len(contents):
        magic, length, digest = _HEADER.unpack_from(contents, at)
        end = at + _HEADER.size + length
        if magic != _MAGIC or end > len(contents):
            return
        payload = np.array(contents[at + _HEADER.size : end])
        if hashlib.blake2b(payload, digest_size=16).digest() != digest:
            return
        yield payload, end
        at = end


def folder_for(cache_dir: str | Path, digest: str, dtype: torch.dtype, device: torch.device) -> Path:
    """Where the values of a reference are kept."""
    return Path(cache_dir) / "reference" / f"{digest[:32]}-{str(dtype).removeprefix('torch.')}-{device.type}"


_NOT_MATHS = {
    "_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype", "use_cache",
    "_attn_implementation", "bos_token_id", "eos_token_id", "pad_token_id",
}  # fmt: skip


def weights_digest(model: PreTrainedModel) -> str:
    """SHA-256 of a model's config and weights, whatever file they came from.

    Of quantized weights it is one of what they were before and of how they were quantized: scales that are means have
    other last bits on another machine.
    """
    origin = getattr(model, "quantized_from", None)
    if origin is not None:
        return hashlib.sha256(origin.encode()).hexdigest()
    config = {key: value for key, value in model.config.to_dict().items() if key not in _NOT_MATHS}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    state = model.state_dict()

    def of(name: str) -> bytes:
        tensor = state[name].detach().cpu().contiguous()
        header = f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
        return hashlib.sha256(header + b"\0" + tensor.reshape(-1).view(torch.uint8).numpy().data).digest()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for part in pool.map(of, sorted(state)):
            digest.update(part)
    return digest.hexdigest()

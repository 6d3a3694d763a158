"""Checkpoints: a directory of safetensors and JSON, verified on the way in, committed atomically.

    DIR/config.json                      the resolved config
    DIR/weights-00001-of-00002.safetensors   tensors by canonical name, in canonical layout
    DIR/manifest.json                    format, version, dtype, and for each file its size and SHA-256,
                                         for each tensor its file and CRC-32

The format knows no framework: either backend loads what the other saved, bit for bit. safetensors itself
notices neither flipped bits nor duplicate names and does not fsync; the manifest and `save` do.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from palm.backends import common_dtype, config_of, from_numpy, to_numpy
from palm.config import Backend, PaLMConfig
from palm.errors import CheckpointError, ConfigError, WeightsError
from palm.params import DType, check_array, check_names, parameters

FORMAT, VERSION = "palm-checkpoint", 1
MANIFEST, CONFIG = "manifest.json", "config.json"
MAX_FILE_BYTES = 2 << 30
_HASH_CHUNK = 1 << 22


def save(model: Any, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write a model to the directory `path`, complete or not at all.

    Everything goes to a temporary sibling, is fsynced, and takes its name by one rename. Raises
    `CheckpointError` if `path` exists (unless `overwrite`) or cannot be written, `WeightsError` if a weight
    is not finite: a checkpoint that cannot be loaded is never written.
    """
    return save_arrays(config_of(model), to_numpy(model), path, overwrite=overwrite)


def save_arrays(
    config: PaLMConfig,
    arrays: Mapping[str, np.ndarray],
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> Path:
    """`save` for weights that are NumPy arrays already."""
    path = Path(path)
    if os.path.lexists(path) and not overwrite:
        raise CheckpointError(f"path must not exist yet; got path={path}. Remove it or pass overwrite=True.")
    check_names(config, arrays)
    for name, parameter in parameters(config).items():
        check_array(parameter, arrays[name])
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        _write_files(config, arrays, temporary)
        _publish(temporary, path)
    except OSError as error:
        raise CheckpointError(f"path must be writable; got path={path}: {error}. Choose another.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def load(
    path: str | os.PathLike[str],
    *,
    backend: Backend,
    dtype: DType | None = None,
    device: Any = None,
    attention: str = "fused",
) -> Any:
    """The model saved at `path`, in `backend`; bitwise, unless `dtype` asks for another precision.

    The whole checkpoint is verified first. Raises `CheckpointError` naming the file, and the tensor where
    there is one, for anything missing, unknown, duplicated, mis-shaped, mis-typed, altered or cut short;
    and what `palm.build` raises.
    """
    config, arrays = load_arrays(path)
    return from_numpy(config, arrays, backend=backend, dtype=dtype, device=device, attention=attention)


def load_arrays(path: str | os.PathLike[str]) -> tuple[PaLMConfig, dict[str, np.ndarray]]:
    """`load` without a framework: the resolved config and the verified weights."""
    path = Path(path)
    manifest = _read_manifest(path)
    try:
        config = PaLMConfig.from_json(_verified_text(path / CONFIG, manifest["files"].get(CONFIG)))
        table = parameters(config)
    except ConfigError as error:
        raise CheckpointError(f"{path / CONFIG} must hold a resolved config; {error}") from error
    arrays: dict[str, np.ndarray] = {}
    for file, entry in manifest["files"].items():
        if file == CONFIG:
            continue
        for name, array in _read_tensors(path / file, entry):
            where = f"{path / file}: {name}"
            if name in arrays:
                raise CheckpointError(f"{where} must occur once; got it in two files. Save it again.")
            if name in table and array.dtype.name != manifest["dtype"]:
                raise CheckpointError(
                    f"{where} must have dtype {manifest['dtype']}; got dtype={array.dtype}. Save it again."
                )
            arrays[name] = array
    try:
        check_names(config, arrays, source=str(path))
        for name, parameter in table.items():
            check_array(parameter, arrays[name], source=_file_of(path, manifest, name))
    except WeightsError as error:
        raise CheckpointError(str(error)) from error
    return config, arrays


def _write_files(config: PaLMConfig, arrays: Mapping[str, np.ndarray], folder: Path) -> None:
    (folder / CONFIG).write_text(config.to_json(), encoding="utf-8")
    files = {CONFIG: _fingerprint(folder / CONFIG)}
    groups = list(_groups(config, arrays))
    for number, group in enumerate(groups, 1):
        file = folder / f"weights-{number:05d}-of-{len(groups):05d}.safetensors"
        # safetensors writes the buffer behind a strided view as it lies: only contiguous arrays are safe.
        contiguous = {name: np.ascontiguousarray(arrays[name]) for name in group}
        save_file(contiguous, file)
        sums = {name: zlib.crc32(array.tobytes()) for name, array in contiguous.items()}
        files[file.name] = {**_fingerprint(file), "tensors": sums}
    manifest = {"format": FORMAT, "version": VERSION, "dtype": common_dtype(arrays), "files": files}
    (folder / MANIFEST).write_text(_sealed(manifest), encoding="utf-8")
    for file in [*folder.iterdir(), folder]:
        _fsync(file)


def _groups(config: PaLMConfig, arrays: Mapping[str, np.ndarray]) -> Iterator[list[str]]:
    """Names in table order, split so that no file much exceeds MAX_FILE_BYTES."""
    group: list[str] = []
    size = 0
    for name in parameters(config):
        if group and size + arrays[name].nbytes > MAX_FILE_BYTES:
            yield group
            group, size = [], 0
        group.append(name)
        size += arrays[name].nbytes
    yield group


def _publish(temporary: Path, path: Path) -> None:
    """Give the finished directory its name; what stood there before goes only after that."""
    if os.path.lexists(path):
        old = path.with_name(f".{path.name}.old-{os.getpid()}")
        path.rename(old)
        temporary.rename(path)
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    else:
        temporary.rename(path)
    _fsync(path.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fingerprint(file: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_HASH_CHUNK):
            digest.update(chunk)
    return {"bytes": file.stat().st_size, "sha256": digest.hexdigest()}


def _sealed(manifest: Mapping[str, Any]) -> str:
    """The manifest's text, which carries the SHA-256 of itself: everything else is checked through it."""
    body = json.dumps(manifest, sort_keys=True)
    seal = hashlib.sha256(body.encode()).hexdigest()
    return json.dumps({**manifest, "seal": seal}, indent=1, sort_keys=True) + "\n"


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    try:
        text = file.read_bytes().decode()
        manifest = json.loads(text)
        content = {key: value for key, value in manifest.items() if key != "seal"}
    except OSError as error:
        raise CheckpointError(
            f"path must be a checkpoint directory with {MANIFEST}; got path={path}: {error.strerror}. "
            "Pass what palm.save returned."
        ) from None
    except (ValueError, AttributeError, RecursionError):
        raise CheckpointError(_damaged(file)) from None
    if content.get("format") != FORMAT or content.get("version") != VERSION:
        raise CheckpointError(
            f"{file} must be of format {FORMAT} version {VERSION}; got format={content.get('format')!r}, "
            f"version={content.get('version')!r}. Read it with the palm version that wrote it."
        )
    if text != _sealed(content):
        raise CheckpointError(_damaged(file))
    return content


def _verified_text(file: Path, entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        raise CheckpointError(f"{file} must be listed in {MANIFEST}; it is not. Restore another copy.")
    _verify(file, entry)
    return file.read_text(encoding="utf-8")


def _read_tensors(file: Path, entry: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    _verify(file, entry)
    try:
        _check_header(file)
        with safe_open(file, framework="np") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                yield name, tensors.get_tensor(name)
    except (SafetensorError, TypeError, KeyError) as error:
        raise CheckpointError(f"{file} must be a safetensors file; {error}. Restore another copy.") from None


def _check_header(file: Path) -> None:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        for name in names:
            if names.count(name) > 1:
                raise CheckpointError(f"{file}: {name} must occur once; got it twice. Save it again.")
        return dict(pairs)

    header, _ = _raw_header(file)
    json.loads(header, object_pairs_hook=unique)


def _raw_header(file: Path) -> tuple[bytes, int]:
    """The JSON header of a safetensors file, and the offset where its data starts."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        return stream.read(length), 8 + length


def _verify(file: Path, entry: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` unless the file is, byte for byte, the one that was saved."""
    try:
        found = _fingerprint(file)
    except OSError as error:
        raise CheckpointError(f"{file} must exist; {error.strerror}. Restore another copy.") from None
    if found["bytes"] != entry["bytes"]:
        raise CheckpointError(
            f"{file} must be {entry['bytes']} bytes long; got {found['bytes']}{_locate(file, entry)}. "
            "It was cut short or written over: restore another copy."
        )
    if found["sha256"] != entry["sha256"]:
        raise CheckpointError(_damaged(file, _locate(file, entry)))


def _locate(file: Path, entry: Mapping[str, Any]) -> str:
    """The first tensor of a damaged file whose bytes are not those that were saved, as `, in NAME`."""
    if "tensors" not in entry:
        return ""
    try:
        header, start = _raw_header(file)
        spans = {name: row["data_offsets"] for name, row in json.loads(header).items()}
        with file.open("rb") as stream:
            for name, checksum in entry["tensors"].items():
                first, last = spans[name]
                stream.seek(start + first)
                data = stream.read(last - first)
                if len(data) != last - first or zlib.crc32(data) != checksum:
                    return f", damaged in {name}"
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError):
        pass  # the header itself is damaged, and says nothing about tensors
    return ", damaged in its header"


def _damaged(file: Path, where: str = "") -> str:
    return f"{file} must be as it was saved; its checksum differs{where}. Restore another copy."


def _file_of(path: Path, manifest: Mapping[str, Any], name: str) -> str:
    return next(
        str(path / file) for file, entry in manifest["files"].items() if name in entry.get("tensors", ())
    )

"""A checkpoint's model written as programs, which are held against it before they get a name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from palm.backends import wing
from palm.checkpoint.about import writable
from palm.checkpoint.boxes import Boxes
from palm.checkpoint.checkpoint import load
from palm.checkpoint.manifest import fingerprint
from palm.checkpoint.programs import (
    ABOUT,
    FORMAT,
    KINDS,
    LEAST,
    LENGTH,
    VERSION,
    Kind,
    Programs,
    load_programs,
    whole_number,
)
from palm.config import PaLMConfig
from palm.errors import CheckpointError
from palm.files.sealed import sealed
from palm.files.streamed import write_streamed
from palm.files.write import new_folder, put_in_place, write_file
from palm.spec import forward
from palm.spec.parameters import dtype_name, parameters
from palm.spec.random import generator
from palm.spec.rounding import RATIO_BAR, rms, rounding_ratio
from palm.spec.sampling import Sampling
from palm.spec.sizes import check_cache

# What the programs are tried on: so many sequences, of so many tokens, a third of which are a prompt.
_ROWS, _TOKENS = 2, 24


class Agreement(NamedTuple):
    """How near programs are to their model: ratios of the logits, and how many greedy tokens are the same."""

    forward: float
    decode: float
    same: int
    tokens: int


def write_programs(boxes: Boxes, out: Path, format: str, length: int | None) -> Path:
    """Write the model of a checkpoint as programs to the new folder `out`; raises what `palm.export` says."""
    length = LENGTH if length is None else whole_number("length", length, LEAST)
    check_cache(boxes.config, batch=_ROWS, length=length)
    kind = KINDS[format]
    module = wing(kind.backend)
    # torch's programs name the device that they were made on.
    device = "cpu" if kind.backend == "torch" else None
    model = load(boxes.path, backend=kind.backend, device=device, attention="textbook")
    with writable(out), new_folder(out) as folder:
        for name, content in module.make_programs(model, length).items():
            write_file(folder / kind.files[name], content)
        if kind.weights is not None:
            rows = {name: (boxes.dtype, row.shape) for name, row in parameters(boxes.config).items()}
            write_streamed(folder / kind.weights, rows, map(boxes.whole, rows), {"format": "np"})
        about = {
            "format": FORMAT,
            "version": VERSION,
            "kind": format,
            "config": boxes.config.to_dict(),
            "dtype": dtype_name(boxes.dtype),
            "length": length,
            "programs": _signatures(boxes.config, dtype_name(boxes.dtype), length, kind),
            "versions": {kind.backend: module.installation()["version"]},
            "agreement": {},
            "files": {file.name: fingerprint(file) for file in sorted(folder.iterdir())},
        }
        write_file(folder / ABOUT, sealed(about).encode())
        agreement = agreement_of(load_programs(folder), module, model)
        if not (agreement.forward <= RATIO_BAR and agreement.decode <= RATIO_BAR):  # NaN is no agreement
            raise CheckpointError(
                f"exported programs must agree with their model, with ratios of at most {RATIO_BAR}; got "
                f"forward={agreement.forward:.2g} and decode={agreement.decode:.2g}. "
                f"Nothing was written; try another version of {kind.backend}."
            )
        write_file(folder / ABOUT, sealed({**about, "agreement": agreement._asdict()}).encode())
        put_in_place(folder, out)
    return out


def agreement_of(programs: Programs, module: Any, model: Any) -> Agreement:
    """Run programs and model on some tokens, which the model continues by itself.

        ratio = rms(a − b) / (√2 · rms(a − r))

    with a the model's logits, b the program's and r those of the float64 referee: two right programs are as
    far apart as the model's own rounding is large, for both of them round alike.
    """
    config = programs.config
    length = min(_TOKENS, programs.length)
    prompt = max(1, length // 3)
    ids = generator(0, "programs").integers(0, config.num_tokens, (_ROWS, length))
    decoder = module.Decoder(model, ids[:, :prompt], np.full(_ROWS, prompt), length)
    for at in range(prompt, length):
        ids[:, at] = decoder.fetch(decoder.next(None, Sampling(temperature=0.0))[0])
    own = module.activations(model, ids)["logits"]
    exact = forward.run(config, module.to_arrays(model, copied=False), ids)["logits"]
    rounding = rms(_wide(own) - exact)
    steps, caches = [], programs.caches(_ROWS)
    for at in range(length):
        logits, caches = programs.decode(ids[:, at], np.full(_ROWS, at), caches)
        steps.append(logits)
    decoded = np.stack(steps, 1)
    same = decoded[:, prompt - 1 : -1].argmax(-1) == ids[:, prompt:]

    def ratio(found: np.ndarray) -> float:
        return rounding_ratio(rms(_wide(own) - _wide(found)), rounding, rounding)

    return Agreement(ratio(programs.forward(ids)), ratio(decoded), int(same.sum()), same.size)


def _wide(logits: np.ndarray) -> np.ndarray:
    return logits.astype(np.float64)


def _signatures(config: PaLMConfig, dtype: str, length: int, kind: Kind) -> dict[str, str]:
    """What each program takes and gives, for readers."""
    ids, first = kind.ids, "" if kind.weights is None else "weights by name, "
    cache = f"{dtype} ({config.depth}, b, {length}, {config.dim_head})"
    caches = (
        f"caches (keys and values at once: {cache},)"
        if config.keys_are_values
        else (f"caches (keys: {cache}, values: the same)")
    )
    logits = f"logits {dtype}"
    return {
        "forward": f"{first}tokens {ids} (b, n ≤ {length}) -> {logits} (b, n, {config.num_tokens})",
        "decode": f"{first}tokens {ids} (b,), positions {ids} (b,), {caches} -> "
        f"({logits} (b, {config.num_tokens}), caches)",
    }

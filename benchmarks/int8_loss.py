"""What decoding from int8 weights costs in bits per byte: a trained model, fed held-out text token by token.

Trains the `tiny` preset for 500 steps of the `bytes` recipe on Python's own sources, then feeds 64 windows of
held-out text to each wing's decoder, from its weights as they are and from int8. Results go to
benchmarks/results/int8_loss.json with the machine they came from.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

import palm
from palm.backends import wing
from palm.data.windows import standard_library_text
from palm.parity.recording.recording import environment

STEPS, WINDOWS, LENGTH = 500, 64, 129
RESULTS = Path(__file__).parent / "results" / "int8_loss.json"


def bits_per_byte(model, backend: str, windows: np.ndarray, weights: str | None) -> float:
    """Of each byte after the first, given those before it, by the decoder."""
    first = np.zeros((len(windows), 8), np.int64)
    first[:, 0] = windows[:, 0]
    ones = np.ones(len(windows), np.int64)
    decoder = wing(backend).Decoder(model, first, ones, LENGTH + 7, weights)
    total = 0.0
    for column in windows[:, 1:].T:
        logits = decoder.fetch(decoder.logits).astype(np.float64)
        log_z = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
        total += (log_z - logits[np.arange(len(windows)), column]).mean()
        decoder.feed(column)
    return total / (LENGTH - 1) / math.log(2)


def main() -> None:
    text = standard_library_text()
    held_out = np.frombuffer(text[-WINDOWS * LENGTH :], np.uint8).reshape(WINDOWS, LENGTH).astype(np.int64)
    trained = palm.train(
        palm.preset("tiny"), palm.recipe("bytes", steps=STEPS), text[: -WINDOWS * LENGTH], backend="torch"
    )
    results = {}
    for backend in ("torch", "jax"):
        model = palm.convert(trained.model, backend=backend)
        found = {str(kind): bits_per_byte(model, backend, held_out, kind) for kind in (None, "int8")}
        results[backend] = found
        loss = found["int8"] - found["None"]
        print(f"{backend}: {found['None']:.4f} bits per byte, int8 {found['int8']:.4f}, {loss:+.4f}")
    RESULTS.write_text(json.dumps({"environment": environment(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Every attention path of both wings: is it the referee's function, and the other wing's, up to rounding?

Each path computes a model's forward pass, loss and gradients with float32, TF32 and bfloat16 products. A path
passes if every tap and gradient is within the bound that rounding explains of the float64 referee, and no
further from any path of the other wing than 1.5 times their rounding. The control is a model with another
function; it must fail. What cannot run here is listed with the reason.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from gpu_part import Results, parser

import palm
from palm import jax_impl, torch_impl
from palm.backends import ATTENTION_PATHS
from palm.config import PaLMConfig
from palm.errors import ConfigError
from palm.parity.compare import judged
from palm.parity.finding import Finding
from palm.parity.recording.recording import Mode, Recording, record
from palm.spec.initial import initial_value
from palm.spec.parameters import parameters
from palm.spec.rounding import RATIO_BAR, UNIT_ROUNDOFF, block_rounding

WINGS = {"torch": torch_impl, "jax": jax_impl}
# Weights' dtype, and how float32 matrices are multiplied.
MODES = {
    "float32": ("float32", "float32"),
    "bfloat16": ("bfloat16", "float32"),
    "float32, TF32": ("float32", "tensorfloat32"),
}
# Of a product's operands, which some kernels cut off and do not round.
TF32_ROUNDOFF = 2.0**-10
# How many times a path's error must grow by TF32, or the switch does nothing.
GROWTH = 4.0
ON_TPU = ("splash", "pallas")
LARGE = {"num_tokens": 256, "dim": 256, "depth": 2, "heads": 4, "dim_head": 64}
SMALL = {"num_tokens": 32, "dim": 16, "depth": 1, "heads": 2, "dim_head": 16}


class Case(NamedTuple):
    """One model of one wing."""

    wing: str
    path: str
    positions: str
    mode: str

    def __str__(self) -> str:
        return f"{self.mode}, {self.positions}, {self.wing} {self.path}"


def config_of(positions: str, sizes: dict[str, int]) -> PaLMConfig:
    """ALiBi as the torch original has it, rotary as the JAX original has it."""
    return PaLMConfig(**sizes, positions=positions).resolve("torch" if positions == "alibi" else "jax")


def recorded(case: Case, config: PaLMConfig, tokens: np.ndarray, on_gpu: bool) -> Recording:
    """The path's forward and backward pass. Raises `ConfigError` if it cannot run here."""
    dtype, matmul = MODES[case.mode]
    device = {"torch": "cuda", "jax": "gpu"}[case.wing] if on_gpu else "cpu"
    weights = {name: initial_value(p, 0, dtype) for name, p in parameters(config).items()}
    WINGS[case.wing].set_matmul(matmul)
    model = palm.from_numpy(config, weights, backend=case.wing, device=device, attention=case.path)
    return record(model, tokens, label=f"{case.wing} {case.path}", mode=Mode(matmul=matmul))


def wait_for_nothing(case: Case, config: PaLMConfig, tokens: np.ndarray) -> None:
    """A forward and backward pass on a GPU. Raises `RuntimeError` where the host waits for it."""
    model = palm.build(config, backend="torch", device="cuda", attention=case.path)
    ids = torch.from_numpy(tokens).to("cuda")
    torch_impl.next_token_loss(model(ids), ids).backward()  # what is compiled and kept comes first
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch_impl.next_token_loss(model(ids), ids).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def scale_of(finding: Finding, mode: str, config: PaLMConfig, length: int, size: int) -> float:
    """How many times as far as float32's a mode's bound reaches.

    The bound of a block is 2·sqrt(8·u² + K·w²): of TF32 only u, the roundoff of a product's operands, is
    another.
    """
    if mode != "float32, TF32":
        return 1.0
    terms = length if finding.kind == "tap" else size + config.num_tokens
    wide = block_rounding(config, "float32", terms)
    return math.hypot(math.sqrt(8) * TF32_ROUNDOFF, wide) / wide


def worst(case: Case, side: Recording, partners: dict[str, Recording], config: PaLMConfig) -> dict[str, Any]:
    """The largest error over its bound, forward and backward, and the largest ratio to any partner."""
    found = {"forward": (0.0, ""), "gradients": (0.0, ""), "ratio": (0.0, "")}

    def note(what: str, value: float, where: str) -> None:
        # NaN is worse than all numbers.
        if not value <= found[what][0]:
            found[what] = (value, where)

    for name, partner in partners.items():
        for finding in judged(side, partner).findings:
            own = finding.bound_a * scale_of(
                finding, case.mode, config, side.tokens.shape[-1], side.tokens.size
            )
            what = "forward" if finding.kind == "tap" else "gradients"
            note(what, finding.error_a / own, finding.name)
            note("ratio", finding.ratio, f"{finding.name}, {name}")
    passes = found["forward"][0] <= 1 and found["gradients"][0] <= 1 and found["ratio"][0] <= RATIO_BAR
    numbers = {name: {"value": float(value), "at": where} for name, (value, where) in found.items()}
    return {**case._asdict(), "name": str(case), **numbers, "passes": bool(passes)}


def own_error(side: Recording) -> float:
    """How far the logits are from the same program's in float64."""
    exact = side.exact_taps["logits"]
    return float(np.linalg.norm(side.taps["logits"] - exact) / np.linalg.norm(exact))


def cases(mode: str, positions: str) -> Iterator[Case]:
    for wing, paths in ATTENTION_PATHS.items():
        for path in paths:
            if path != "auto":
                yield Case(wing, path, positions, mode)


def line_of(row: dict[str, Any], state: str) -> str:
    values = (row[name]["value"] for name in ("forward", "gradients", "ratio"))
    return f"{row['name']:<42} " + " ".join(f"{value:9.3g}" for value in values) + f"  {state}"


class Grid:
    """The rows of all modes and positions, kept as they come."""

    def __init__(self, results: Results, asked: argparse.Namespace) -> None:
        self._results, self._on_gpu = results, not asked.dry_run
        self._sizes = SMALL if asked.dry_run else LARGE
        self._tokens = np.random.default_rng(0).integers(
            0, self._sizes["num_tokens"], (2, 34 if asked.dry_run else 300)
        )
        self._rows: list[dict[str, Any]] = []
        self._absent: dict[str, str] = {}
        self._errors: dict[tuple[str, str, str], float] = {}
        self.has_failed = False

    def run(self, mode: str, positions: str) -> None:
        """Every path of one mode and position scheme, and a control."""
        config = config_of(positions, self._sizes)
        sides = {case: side for case in cases(mode, positions) if (side := self._try(case, config))}
        for case, side in sides.items():
            partners = {other.path: made for other, made in sides.items() if other.wing != case.wing}
            self._add(worst(case, side, partners, config), must_pass=True)
            self._errors[case.wing, case.path, f"{mode}, {positions}"] = own_error(side)
        control = dataclasses.replace(config, norm_eps_mode="add", norm_eps=0.5)
        case = Case("torch", "textbook", positions, mode)
        wrong, partner = self._try(case, control), sides.get(case._replace(wing="jax"))
        if wrong and partner:
            # Judged by the right config, which it claims to have.
            wrong = dataclasses.replace(wrong, config=config, label="control")
            row = worst(case._replace(path="control"), wrong, {"textbook": partner}, config)
            self._add(row, must_pass=False)

    def switch(self) -> None:
        """Whether TF32 changed anything: if not, its rows say nothing. A CPU has none."""
        if not self._on_gpu:
            self._results.say("TF32 switch: not here: a CPU multiplies float32 in full")
            return
        for wing in WINGS:
            before, after = (
                self._errors.get((wing, "textbook", f"{mode}, rotary"), math.nan)
                for mode in ("float32", "float32, TF32")
            )
            does = after >= GROWTH * before
            self.has_failed |= not does
            told = "passes" if does else "FAILS: it must grow at least 4 times"
            self._results.say(f"TF32 switch, {wing}: logits' error {before:.1e} -> {after:.1e}  {told}")

    def waits(self) -> None:
        """Whether the host waits for the GPU in a forward and backward pass of torch: it must not."""
        if not self._on_gpu:
            self._results.say("waiting for the GPU: not here: a CPU has none")
            return
        for case in (case for positions in ("rotary", "alibi") for case in cases("float32", positions)):
            if case.wing != "torch":
                continue
            try:
                wait_for_nothing(case, config_of(case.positions, self._sizes), self._tokens)
                told = "passes"
            except ConfigError:
                continue  # said by the rows
            except RuntimeError as error:
                self.has_failed, told = True, f"FAILS: {str(error)[:300]}"
            self._results.say(f"waiting for the GPU, {case}: {told}")

    def _try(self, case: Case, config: PaLMConfig) -> Recording | None:
        try:
            return recorded(case, config, self._tokens, self._on_gpu)
        except ConfigError as error:
            reason = str(error).split(". Use")[0]
            absent = f"{case.wing} {case.path}, {case.positions}"
            if absent not in self._absent:
                self._absent[absent] = reason
                self._results.say(f"{absent}: not here: {reason}")
            if self._on_gpu and "must be on" in reason and case.path not in ON_TPU:
                self.has_failed = True
        except Exception as error:
            self.has_failed = True
            self._results.say(f"{case}: FAILS: {type(error).__name__}: {str(error)[:300]}")
        return None

    def _add(self, row: dict[str, Any], *, must_pass: bool) -> None:
        is_right = row["passes"] == must_pass
        self.has_failed |= not is_right
        told = ("passes" if is_right else "FAILS") if must_pass else ("caught" if is_right else "MISSED")
        self._rows.append({**row, "state": told})
        self._results.keep(rows=self._rows, absent=self._absent)
        self._results.say(line_of(row, told))


def main() -> None:
    asked = parser(__doc__).parse_args()
    results = Results("parity", asked)
    results.keep(ratio_bar=RATIO_BAR, unit_roundoff=UNIT_ROUNDOFF, tf32_roundoff=TF32_ROUNDOFF)
    results.say(f"{'largest error over its bound (≤ 1), ratio (≤ 1.5)':<51} fwd      grad     ratio")
    grid = Grid(results, asked)
    for mode in MODES:
        for positions in ("rotary", "alibi"):
            grid.run(mode, positions)
    grid.switch()
    grid.waits()
    sys.exit(grid.has_failed)


if __name__ == "__main__":
    main()

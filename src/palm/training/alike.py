"""Whether the processes of a training were all given the same: nothing else would tell.

A process with another learning rate or another text has gradients that can be summed with those of the
others. Each would go on, and so would the run, as one that nobody asked for.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

from palm.config import Backend, PaLMConfig
from palm.data.corpus import Corpus
from palm.errors import ConfigError
from palm.recipes import Recipe
from palm.spec.mesh import AnyMesh, mesh_of
from palm.training.cadence import Cadence
from palm.training.start import Start
from palm.wings import Wing


def check_same_run(
    processes: Wing[Any],
    config: PaLMConfig,
    recipe: Recipe,
    cadence: Cadence,
    mesh: AnyMesh,
    corpus: Corpus,
    start: Start | None = None,
    *,
    kept: bool = True,
) -> None:
    """Raise `ConfigError` in all processes unless they make the same run. All of them must ask.

    `start`: what a new run starts from; that it is the same numbers is left to `told_of_start`. `kept`:
    whether the run has a folder.
    """
    if processes.several():  # for the digest the whole text is read
        facts = {"config": config.to_dict(), "recipe": recipe.to_dict(), "data": corpus.digest}
        about = {
            "cadence": dataclasses.asdict(cadence),
            "mesh": mesh_of(mesh),
            "weights": start and start.kind,
            "out": "a folder" if kept else "none",
        }
        check_alike(processes, **facts, **about)


def told_of_start(processes: Wing[Any], start: Start, backend: Backend, *, kept: bool) -> dict[str, Any]:
    """What `run.json` keeps of what a new run starts from, if it is `kept`.

    Raises `ConfigError` in all processes unless they start from the same arrays; of checkpoints
    `check_same_run` has compared the seals. All of them must ask, after that.
    """
    digest = start.digest(processes) if kept or processes.several() else None
    check_alike(processes, weights=digest)
    return start.told(backend, digest)


def check_alike(processes: Wing[Any], **facts: Any) -> None:
    """Raise `ConfigError` in all processes unless each has the same facts. All of them must ask."""
    if not processes.several():
        return
    own = dict(_flat(facts))
    first = json.loads(processes.share(json.dumps(own).encode()))
    differing = [name for name in {**first, **own} if first.get(name) != own.get(name)]
    if not processes.agreed(bool(differing)):
        return
    if not differing:
        raise ConfigError(
            "all processes must be given the same; another one was given something else, and says what. "
            "Start all of them with the same command, on the same files."
        )
    told = "; ".join(
        f"{name}={own.get(name)}, and {first.get(name)} in the first one" for name in differing[:3]
    )
    raise ConfigError(
        f"all processes must be given the same; got {told}. Start all of them with the same command, on the "
        "same files."
    )


def _flat(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value)
        else:
            yield name, str(value)

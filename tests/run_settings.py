"""What the run.json of a run holds, for the tests of its folder."""

import dataclasses
from typing import Any

from cases import small

from palm.recipes import Recipe
from palm.training.cadence import Cadence

CONTENT: dict[str, Any] = {
    "config": small().to_dict(),
    "recipe": Recipe(seed=3).to_dict(),
    "cadence": dataclasses.asdict(Cadence()),
    "data": {"path": None, "digest": "é", "tokenizer": None, "tokenizer_digest": "bytes"},
    "backend": "torch",
    "device": None,
    "attention": "auto",
}

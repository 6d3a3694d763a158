"""In a process of its own: import a framework with its wing, and print what it says of itself, as JSON.

    python -m palm.cli.installation torch

A framework that is broken may end the process that imports it.
"""

from __future__ import annotations

import json
import sys

from palm.backends import wing
from palm.config import BACKENDS

if __name__ == "__main__":
    [backend] = [name for name in BACKENDS if name == sys.argv[1]]
    print(json.dumps(wing(backend).installation()))

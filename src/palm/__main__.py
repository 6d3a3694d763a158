"""`python -m palm` is the `palm` command."""

import sys

from palm.cli import main

sys.exit(main())

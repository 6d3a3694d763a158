#!/usr/bin/env bash
# Measure and test palm on the one accelerator of this machine, from a bare checkout:
#
#     bash benchmarks/gpu.sh [--dry-run] [--out DIR] [--parts PART ...] [--seconds 1500]
#
# Python, torch and JAX must be installed. Other packages are taken from .whl/, which
# `python benchmarks/wheels.py download` fills on a machine with a network; only what is missing is used.
# PYTHON names another interpreter than python3. See benchmarks/gpu.py for the parts and their files.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
export PYTHONPATH="$PWD/src:$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
"$python" benchmarks/wheels.py install "$site"
"$python" benchmarks/gpu.py "$@"

#!/usr/bin/env bash
# Measures Tandem, its rivals and the trivial baselines on the built-in pair: all of results/rivals/.
#
#   scripts/rivals.sh [TASK...]        builtin_math, builtin_code (default: both), on LIMIT test questions (1000)
#
# Interrupt it whenever you like, the same command goes on; a larger LIMIT extends what is there. PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${PYTHON:-}" ]; then if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi; fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

[ $# -gt 0 ] || set -- builtin_math builtin_code
for task; do
    "$PYTHON" -m ensemblehub bench results/rivals/builtin.yaml --task "$task" --limit "${LIMIT:-1000}" \
        --out "results/rivals/$task" -s experiment.concurrency=64
done

#!/usr/bin/env bash
# How often the intervals of `bench --dry-run` hold the totals of the runs that are kept: results/dry_run/.
#
#   scripts/dry_run.sh [coverage]
#
# PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${PYTHON:-}" ]; then if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi; fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
out=results/dry_run

[ $# -gt 0 ] || set -- coverage
for step; do
    case "$step" in
        coverage)
            "$PYTHON" -m benchmarks.dry_run_coverage --choose results/rivals/builtin_math results/qwen_coder/published_mbpp \
                --check results/rivals/builtin_code results/qwen_coder/published_humaneval results/rivals/transfer > "$out/coverage.md"
            ;;
        *) echo "no such step: $step" >&2; exit 2 ;;
    esac
done

#!/usr/bin/env bash
# Measures Tandem, its rivals and the trivial baselines on the built-in pair: all of results/rivals/.
#
#   scripts/rivals.sh [TASK...]        builtin_math, builtin_code (default: both), on LIMIT test questions (1000)
#   scripts/rivals.sh transfer         a judge of drafts trained on math, on 800 test questions of builtin_code
#
# Interrupt it whenever you like, the same command goes on; a larger LIMIT extends what is there. PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${PYTHON:-}" ]; then if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi; fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

[ $# -gt 0 ] || set -- builtin_math builtin_code
for task; do
    if [ "$task" = transfer ]; then
        "$PYTHON" -m ensemblehub.lab.judges.drafts results/rivals/transfer.yaml results/rivals/judges/math_drafts --limit 4000
        "$PYTHON" -m ensemblehub bench results/rivals/transfer.yaml --task builtin_code --limit "${LIMIT:-800}" \
            --out results/rivals/transfer
        continue
    fi
    "$PYTHON" -m ensemblehub bench results/rivals/builtin.yaml --task "$task" --limit "${LIMIT:-1000}" \
        --out "results/rivals/$task" --reuse -s experiment.concurrency=64
    gzip --best --no-name --force "results/rivals/$task"/answers/*.jsonl
    for base in mentor tandem_high tandem_low; do
        "$PYTHON" -m ensemblehub compare --mixes "results/rivals/$task/answers/$base.jsonl.gz" "results/rivals/$task" \
            > "results/rivals/$task/against_$base.md"
    done
done

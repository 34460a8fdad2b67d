#!/usr/bin/env bash
# Is `bench --dry-run` right? All of results/dry_run/: a pilot of the built-in pair and the whole run that goes on from it, tokens,
# dollars and time; and how often the intervals hold the totals of the runs that are kept.
#
#   scripts/dry_run.sh [run|table|coverage...]     (default: all three)
#
# `run` measures time: it starts anew, and what else the machine does should stay the same throughout. PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${PYTHON:-}" ]; then if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi; fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
out=results/dry_run
concurrency=32 pilot=20

bench() { # [flags]
    echo "$(date -u +%H:%M:%S) load $(cut -d' ' -f1-3 /proc/loadavg), $(nproc --all) cores" >> "$out/builtin/load.txt"
    "$PYTHON" -m ensemblehub bench "$out/builtin.yaml" --task builtin_math --limit 300 --out "$out/builtin" \
        -s "experiment.concurrency=$concurrency" "$@"
}

[ $# -gt 0 ] || set -- run table coverage
for step; do
    case "$step" in
        run)
            rm -rf "$out/builtin"; mkdir -p "$out/builtin"
            bench --dry-run "$pilot" > "$out/builtin/predicted.md"
            bench
            echo "$(date -u +%H:%M:%S) load $(cut -d' ' -f1-3 /proc/loadavg), end" >> "$out/builtin/load.txt"
            gzip --best --no-name --force "$out"/builtin/answers/*.jsonl
            ;;
        table) "$PYTHON" -m benchmarks.dry_run "$out/builtin" --pilot "$pilot" --concurrency "$concurrency" > "$out/builtin/dry_run.md" ;;
        coverage)
            "$PYTHON" -m benchmarks.dry_run_coverage --choose results/rivals/builtin_math results/qwen_coder/published_mbpp \
                --check results/rivals/builtin_code results/qwen_coder/published_humaneval results/rivals/transfer > "$out/coverage.md"
            ;;
        *) echo "no such step: $step" >&2; exit 2 ;;
    esac
done

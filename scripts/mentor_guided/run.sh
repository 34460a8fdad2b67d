#!/usr/bin/env bash
# Shared by exp_*.sh: run.sh TABLE PAIR DATASET [flags of `ensemblehub paper`].
#
#   PAIR=builtin   the built-in models: offline, in minutes, on 300 questions (LIMIT) of every split
#   PAIR=FILE     a YAML file with a pair of your own
#   PYTHON=...    the interpreter (default: the environment of `make install`)
#
# Real pairs run with max_tokens 4,096 and 32,768 (MAX_TOKENS="4096 32768"); tables show the share of truncated answers.
# Results: data/acte_experiments/results/ (RESULTS). The same command continues an interrupted run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
table=$1 pair=${PAIR:-$2} dataset=$3
shift 3
if [ -z "${PYTHON:-}" ]; then if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi; fi
flags=()
case "$pair" in
    builtin*) flags+=(--limit "${LIMIT:-300}"); export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} ;;
    *) for tokens in ${MAX_TOKENS:-4096 32768}; do flags+=(--max_tokens "$tokens"); done
       if [ -n "${LIMIT:-}" ]; then flags+=(--limit "$LIMIT"); fi ;;
esac
exec "$PYTHON" -m ensemblehub paper "$table" --pair "$pair" --dataset "$dataset" \
    --out "${RESULTS:-data/acte_experiments/results}" "${flags[@]}" "$@"

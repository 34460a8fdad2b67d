#!/usr/bin/env bash
# What the exp_*.sh share: run.sh TABLE PAIR DATASET [flags of `ensemblehub paper`].
#
#   PAIR=builtin   the models that ship with the package instead, offline, in minutes, on 300 questions (LIMIT) of every split
#   PAIR=FILE     a YAML file with a pair of your own
#   PYTHON=...    another interpreter than the environment of `make install`
#
# Real pairs run with answers of up to 4,096 and of up to 32,768 tokens (MAX_TOKENS="4096 32768"), each with its share of
# truncated answers.  Results: data/acte_experiments/results/ (RESULTS).  A killed run goes on where it stopped.
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

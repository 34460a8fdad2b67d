#!/usr/bin/env bash
# Measures Qwen2.5-Coder-Instruct 1.5B and 0.5B (Q4_K_M GGUF), alone and together: all of results/qwen_coder/.
#
#   DATA=FOLDER scripts/qwen_coder.sh [STEP...]
#
# STEP is one of (default: all, in this order)
#   published   HumanEval, MBPP and MBPP+ with the makers' prompts, to compare with their figures
#   mbpp        every cell of cells.yaml on the 500 test questions of MBPP
#   humaneval   the same on the 164 of HumanEval
#   gsm8k       the same on 200 test questions of GSM8K
#
# DATA holds humaneval.jsonl, mbpp.jsonl, MbppPlus-v0.1.0.jsonl and gsm8k_test.jsonl in their public forms. The models are
# fetched by `ensemblehub pull qwen-coder`, or lie in PAIR_FOLDER. On two CPU cores a step takes hours: interrupt it
# whenever you like, the same command goes on. PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${PYTHON:-}" ]; then if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi; fi
out=results/qwen_coder

bench() { # CELLS FOLDER TASK FILE [flags]
    "$PYTHON" -m ensemblehub bench "$out/$1.yaml" --out "$out/$2" --task "$3" --data "${DATA:?}/$4" "${@:5}"
}

[ $# -gt 0 ] || set -- published mbpp humaneval gsm8k
for step; do
    case "$step" in
        published)
            bench published published_humaneval humaneval humaneval.jsonl --split all --prompt official
            # the published 1.5B figures are shares of all 399 functions, those of the 0.5B of the 378 of version 0.2.0
            bench published published_mbpp mbpp_plus MbppPlus-v0.1.0.jsonl --split v0.1.0 --prompt official
            ;;
        mbpp) bench cells mbpp mbpp mbpp.jsonl ;;
        humaneval) bench cells humaneval humaneval humaneval.jsonl --split all ;;
        gsm8k) bench cells gsm8k gsm8k gsm8k_test.jsonl --limit 200 ;;
        *) echo "no such step: $step" >&2; exit 2 ;;
    esac
done

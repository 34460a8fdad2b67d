#!/usr/bin/env bash
# DeepSeek-R1-Distill-Qwen-32B and 7B on MATH-500: the main table, by subject and by level.
# `PAIR=builtin bash scripts/mentor_guided/exp_homo_math.sh` runs it offline on the built-in models; flags are passed to `ensemblehub paper`.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" main deepseek math500 "$@"

#!/usr/bin/env bash
# GPT-4o through OpenRouter (OPENROUTER_API_KEY) and DeepSeek-R1-Distill-Qwen-7B on MATH-500.
# `PAIR=builtin bash scripts/mentor_guided/exp_hetero_math.sh` runs it offline on the built-in models; flags are passed to `ensemblehub paper`.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" api gpt-4o math500 "$@"

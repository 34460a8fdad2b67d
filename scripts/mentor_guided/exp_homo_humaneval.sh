#!/usr/bin/env bash
# DeepSeek-R1-Distill-Qwen-32B and 7B on HumanEval, with a judge trained on math and one trained on code.
# `PAIR=builtin bash scripts/mentor_guided/exp_homo_humaneval.sh` runs it offline on the built-in models; flags are passed to `ensemblehub paper`.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" transfer deepseek humaneval "$@"

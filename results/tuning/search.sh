#!/bin/sh
# Run the search for settings, or what is missing of it: sh results/tuning/search.sh DIR
# DIR holds the tuning tasks: tasks.json, NAME/train.jsonl and NAME/test.jsonl.
set -e
data=$(cd "${1:?the folder of the tuning tasks}" && pwd)
cd "$(dirname "$0")/../.."
against="ln-tuning:lr=5e-3+epochs=10"

search() {
    ofa compare --data "$data" --dtype float32 --test-items 400 --out results/tuning "$@"
}

# one draw of six tasks for everything, then more for what was ahead
search --tasks sms,irony,offensive,airline,tweets,snips --seeds 100-100 --methods @results/tuning/round-1.txt
search --tasks all --seeds 101-101 --methods @results/tuning/round-2.txt
search --tasks all --seeds 100-102 --methods @results/tuning/round-3.txt

python -m tools.ablation results/tuning --against "$against" --write docs/ablation.md

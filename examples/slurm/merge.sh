#!/bin/bash
# Joins the stores of an array, and goes on from there with what may be missing.
#SBATCH --job-name=featpipe-merge
#SBATCH --cpus-per-task=2
#SBATCH --mem=8G
#SBATCH --time=01:00:00
#SBATCH --output=featpipe-merge-%j.log
set -euo pipefail

: "${SOURCE:?set SOURCE as for the array}"
: "${STORE:?set STORE as for the array}"
MODEL=${MODEL:-efficientnet_lite0}

# Submitted again, it goes on from what was merged before.
if [ ! -e "$STORE/index.parquet" ]; then
    featpipe merge "$STORE" "$STORE".shards/*-of-*
fi
# Opens nothing where all is there; images that came in meanwhile are embedded.
status=0
featpipe embed "$SOURCE" --model "$MODEL" -o "$STORE" || status=$?
if [ "$status" -ne 3 ]; then
    exit "$status"
fi

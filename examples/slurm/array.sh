#!/bin/bash
# One task of a job array: embeds its piece of SOURCE into a store of its own.
# submit.sh submits the array, and what joins the pieces; see docs/scale.md.
#SBATCH --job-name=featpipe-embed
#SBATCH --cpus-per-task=8
#SBATCH --mem=8G
#SBATCH --time=04:00:00
#SBATCH --output=featpipe-%A_%a.log
set -euo pipefail

: "${SOURCE:?set SOURCE to a folder or a table that every node sees}"
: "${STORE:?set STORE to the folder of the merged store, where every node sees it}"
MODEL=${MODEL:-efficientnet_lite0}
# The scheduler sets both; the array is numbered from 1. With TASKS, as submit.sh gives it, some
# tasks may be submitted again by themselves: TASKS=16 sbatch --array=3,7 array.sh
i=$SLURM_ARRAY_TASK_ID
n=${TASKS:-$SLURM_ARRAY_TASK_COUNT}

status=0
featpipe embed "$SOURCE" --model "$MODEL" --shard "$i/$n" -o "$STORE.shards/$i-of-$n" || status=$?
# 3: the work is done, and some images failed; each is a row that says why. The scheduler would
# count it as a failed task, and never start what waits for the array.
if [ "$status" -ne 3 ]; then
    exit "$status"
fi

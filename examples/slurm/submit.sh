#!/bin/bash
# Submits an array of TASKS tasks, and the merge that starts when all have ended well:
#   SOURCE=/data/photos STORE=/data/embeddings/photos TASKS=16 bash submit.sh
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
: "${SOURCE:?set SOURCE to a folder or a table that every node sees}"
: "${STORE:?set STORE to the folder of the merged store, where every node sees it}"
export SOURCE STORE MODEL=${MODEL:-efficientnet_lite0} TASKS=${TASKS:-16}

array=$(sbatch --parsable --array="1-$TASKS" "$here/array.sh")
# Without --parsable's cluster name, where there is one.
merge=$(sbatch --parsable --dependency="afterok:${array%%;*}" "$here/merge.sh")
echo "array ${array%%;*} of $TASKS tasks, then merge ${merge%%;*}"

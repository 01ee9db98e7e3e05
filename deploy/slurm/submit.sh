#!/bin/bash
# Submits an array of jobs, one a shard of the dataset, and a job that joins the shards when all have ended well.
#
#   bash deploy/slurm/submit.sh SHARDS OUT COMMAND [options]
#   bash deploy/slurm/submit.sh 7 /shared/scores score --model M --data /shared/pairs.jsonl
#
# OUT/shards/K gets shard K, and OUT/whole the run of all rows. Partition, account and so on are given as Slurm reads
# them from the environment (SBATCH_PARTITION, SBATCH_ACCOUNT), what a job needs in the heads of the two other files.
# Run again with the same arguments, it goes on: what is finished is only checked.
#
# Exercised: "bash -n", and a run of all three files with a stand-in for sbatch that runs every member of the array, on
# the bundled model (tests/test_deploy.py). Not exercised: a Slurm cluster.
set -euo pipefail

if [ $# -lt 3 ]; then
    echo "usage: bash submit.sh SHARDS OUT COMMAND [options]" >&2
    exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
shards=$1
out=$2

array=$(sbatch --parsable --array="0-$((shards - 1))" "$here/array.sbatch" "$@")
# With several clusters the answer is JOB;CLUSTER.
sbatch --dependency="afterok:${array%%;*}" --kill-on-invalid-dep=yes "$here/merge.sbatch" "$shards" "$out"

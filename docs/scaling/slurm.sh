#!/usr/bin/env bash
# Precomputes embeddings in a Slurm array, then trains on one device.
#
#   export DATA=/shared/Synapse SAM=/shared/sam_vit_b_01ec64.pth CACHE=/shared/cache
#   export SHARDS=8
#   decode=$(sbatch --parsable slurm.sh decode)
#   embed=$(sbatch --parsable --dependency="afterok:$decode" --array="0-$((SHARDS - 1))" \
#       slurm.sh embed)
#   sbatch --dependency="afterok:$embed" slurm.sh train
#
# All nodes must see DATA, SAM and CACHE under the same paths. Adapt the resources to your cluster.
# Slurm copies exported variables into its jobs. RESNET and RUN are those of `sam-lst train`, DEVICE
# is a device such as cuda. A job that was killed or timed out continues where it stopped when it is
# submitted again: `sbatch --array=3 slurm.sh embed` repeats task 3 alone.

#SBATCH --job-name=sam-lst
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log

set -euo pipefail

: "${DATA:?folder of the dataset}" "${SAM:?SAM checkpoint}" "${CACHE:?shared folder}"
# The number of shards, not SLURM_ARRAY_TASK_COUNT: that is smaller when single tasks are repeated.
SHARDS=${SHARDS:-8}
DEVICE=${DEVICE:-cpu}
# The same settings for every step: they decide which embeddings are needed.
settings=(--data "$DATA" --sam "$SAM" --cache "$CACHE" --device "$DEVICE" --cache-views all)

case ${1:?step: decode, embed or train} in
    decode)
        # Decodes the volumes into the cache. With a limit of 0 no embedding is written.
        sam-lst embed "${settings[@]}" --cache-limit-gb 0
        ;;
    embed)
        shard="${SLURM_ARRAY_TASK_ID:?submit with --array=0-$((SHARDS - 1))}/$SHARDS"
        sam-lst embed "${settings[@]}" --shard "$shard"
        ;;
    train)
        sam-lst train "${settings[@]}" ${RESNET:+--resnet "$RESNET"} \
            --run "${RUN:-runs/synapse}" --plain
        ;;
    *)
        echo "unknown step '$1'; expected decode, embed or train" >&2
        exit 2
        ;;
esac

#!/usr/bin/env bash
# Segments here, learning on a Globus Compute endpoint that reaches a Redis of yours:
# ./run_globus.sh UUID REDIS_HOST REDIS_PORT [more flags]; funcx-configs/README.md starts an endpoint.
set -euo pipefail
cd "$(dirname "$0")"
if [ $# -lt 3 ]; then
  echo "usage: ./run_globus.sh UUID REDIS_HOST REDIS_PORT [FLAGS...] (both sides must reach that Redis)" >&2
  exit 2
fi
make --silent setup
exec .venv/bin/python run.py --system alanine-dipeptide --max-ns 1 --ml-endpoint "$1" \
  --simulate-ps-backend redis --infer-ps-backend redis --train-ps-backend redis \
  --redishost "$2" --redisport "$3" "${@:4}"

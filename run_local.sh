#!/usr/bin/env bash
# A campaign on this machine alone: nothing to set up, no server. More flags may follow: ./run_local.sh --max-ns 2
set -euo pipefail
cd "$(dirname "$0")"
make --silent setup
exec .venv/bin/python run.py --system alanine-dipeptide --max-ns 1 "$@"

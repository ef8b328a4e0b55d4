#!/usr/bin/env bash
# Segments here, learning on a GPU behind ssh: ./run_ssh.sh gpubox "conda activate wayfinder" [more flags]
set -euo pipefail
cd "$(dirname "$0")"
if [ $# -lt 1 ]; then
  echo "usage: ./run_ssh.sh HOST [INIT [FLAGS...]] (HOST as in ~/.ssh/config; INIT brings Python and tasks there)" >&2
  exit 2
fi
host=$1 init=${2:-true}
make --silent setup
exec .venv/bin/python run.py --system alanine-dipeptide --max-ns 1 \
  --ml-site ssh --ssh-host "$host" --ssh-init "$init" "${@:3}"

#!/bin/sh
# Make the work pool NAME where it is not there, and deploy what infra/prefect.yaml of this folder states.
set -eu
if ! prefect --no-prompt work-pool inspect "$1" >/dev/null 2>&1; then
  prefect --no-prompt work-pool create "$1" --type process || prefect --no-prompt work-pool inspect "$1" >/dev/null
fi
exec prefect --no-prompt deploy --all --prefect-file infra/prefect.yaml

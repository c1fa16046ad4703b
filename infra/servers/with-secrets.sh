#!/bin/sh
# Run a command with secrets in its environment that come from files: NAME_FILE=/run/secrets/x becomes NAME=<content>.
# Only files under $SECRETS (default /run/secrets) are read; other variables that end in _FILE stay as they are.
set -eu
secrets=${SECRETS:-/run/secrets}
for name in $(env | sed -n "s|^\([A-Za-z_][A-Za-z0-9_]*\)_FILE=$secrets/.*|\1|p"); do
  eval "file=\$${name}_FILE"
  if [ ! -r "$file" ]; then
    echo "with-secrets: $file, which ${name}_FILE names, cannot be read (made by infra/make-secrets.sh)" >&2
    exit 1
  fi
  value=$(cat "$file")
  if [ -z "$value" ]; then
    echo "with-secrets: $file is empty" >&2
    exit 1
  fi
  export "$name=$value"
  unset "${name}_FILE" value
done
exec "$@"

#!/bin/sh
# Write what infra/compose.yaml and infra/kubernetes read as secrets, random, one file each; what is there stays.
#
#   infra/make-secrets.sh [FOLDER]      default: infra/secrets, which git ignores
#
# The folder is for its owner alone. The files in it can be read by all, for each container runs as a user of its own
# and gets only the files that it needs.
set -eu
folder=${1:-$(dirname "$0")/secrets}
umask 077
mkdir -p "$folder"
chmod 700 "$folder"
random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
put() {
  if [ ! -s "$folder/$1" ]; then
    printf '%s' "$2" >"$folder/.$1.partial"
    chmod 444 "$folder/.$1.partial"
    mv "$folder/.$1.partial" "$folder/$1"
    echo "made $folder/$1"
  fi
}
for name in postgres_password prefect_database_password mlflow_database_password mlflow_admin_password \
  mlflow_pipeline_password mlflow_flask_key s3_secret_key; do
  put "$name" "$(random)"
done
put s3_access_key "purecc-$(random | cut -c1-16)"
put prefect_auth "purecc:$(random)"

#!/bin/sh
# Run once by PostgreSQL's image in an empty data folder: a role and a database for each server, none of them superuser.
set -eu
secrets=${SECRETS:-/run/secrets}
for name in prefect mlflow; do
  password=$(cat "$secrets/${name}_database_password")
  # psql quotes the value itself; it is read from standard input, so that no process list shows it
  psql --quiet --set=ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --dbname postgres <<SQL
\\set password '$password'
CREATE ROLE $name LOGIN PASSWORD :'password';
CREATE DATABASE $name OWNER $name;
REVOKE ALL ON DATABASE $name FROM PUBLIC;
SQL
done
psql --quiet --set=ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --dbname postgres <<SQL
CREATE DATABASE mlflow_auth OWNER mlflow;
REVOKE ALL ON DATABASE mlflow_auth FROM PUBLIC;
SQL

"""Make an MLflow user with the password of PIPELINE_PASSWORD, or give it that password; safe to repeat.

    python make_user.py NAME

The user is no administrator: it manages the experiments and registered models that it makes itself. Reads
MLFLOW_TRACKING_URI and the administrator's MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.
"""

import os
import sys

import mlflow.server
from mlflow.exceptions import RestException

name, password = sys.argv[1], os.environ["PIPELINE_PASSWORD"]
client = mlflow.server.get_app_client("basic-auth", tracking_uri=os.environ["MLFLOW_TRACKING_URI"])
try:
    client.get_user(name)
except RestException as error:
    if error.error_code != "RESOURCE_DOES_NOT_EXIST":
        raise
    client.create_user(name, password)
    print(f"user {name} is made")
else:
    client.update_user_password(name, password)
    print(f"user {name} is there")

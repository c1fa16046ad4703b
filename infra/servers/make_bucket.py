"""Make the bucket of MLflow's artifacts, versioned where the store can do that; safe to repeat.

    python make_bucket.py NAME

Reads MLFLOW_S3_ENDPOINT_URL and the usual AWS_* variables.
"""

import os
import sys

import boto3
from botocore.exceptions import ClientError

name = sys.argv[1]
client = boto3.client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"])
if name not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
    client.create_bucket(Bucket=name)
try:  # a deleted or overwritten artifact can be brought back
    client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
except ClientError as error:
    print(f"bucket {name}: no versions are kept: {error}", file=sys.stderr)
print(f"bucket {name} is there")

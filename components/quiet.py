"""Telemetry of every dependency is off unless its own variable says otherwise; imported before all of them.

The Hugging Face libraries are additionally kept offline: a hub id that is not in the local cache is an error, not a
download, unless `HF_HUB_OFFLINE=0` is set.
"""

from __future__ import annotations

import os

_OFF = {
    "DO_NOT_TRACK": "true",  # the word: MLflow ignores "1"
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "ORT_DISABLE_TELEMETRY": "1",  # read when onnxruntime is first imported, and diffusers imports it
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}

for _name, _value in _OFF.items():
    os.environ.setdefault(_name, _value)

"""What runs, in what order: the flows and the command line over `components`."""

import gc

from components import quiet as quiet  # switches telemetry off before any dependency is imported

# Importing Prefect, MLflow, great-expectations and torch makes objects by the million that live as long as the process;
# looking for garbage after every 700 of them takes a tenth of a short run.
gc.set_threshold(50_000, 20, 20)

"""What runs, in what order: the flows and the command line over `components`."""

import atexit
import gc

from components import quiet as quiet  # switches telemetry off before any dependency is imported

# Importing Prefect, MLflow, great-expectations and torch makes objects by the million that live as long as the process.
# Looking for garbage after every 700 of them takes a tenth of a short run, and going through all of them once more
# before the process ends, when the system takes its memory back anyway, three seconds.
gc.set_threshold(50_000, 20, 20)
atexit.register(gc.freeze)

"""What runs, in what order: the flows and the command line over `components`."""

from components import quiet as quiet  # switches telemetry off before any dependency is imported

"""The PureCC library: concepts, backbones, learning, evaluation, tracking, export and the procedural world."""

from components import quiet as quiet  # switches telemetry off before any dependency is imported

"""Adapters for consumers that know nothing of this project: diffusers, ONNX Runtime."""

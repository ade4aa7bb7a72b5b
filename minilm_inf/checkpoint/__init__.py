"""A folder of safetensors becomes a model, and a model a folder: strict in both directions."""

from .checkpoint import load_model, save

__all__ = ["load_model", "save"]

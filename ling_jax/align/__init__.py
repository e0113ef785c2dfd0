"""Alignment and distillation: stages that each read the one before and leave a model."""

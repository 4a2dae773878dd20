"""Trained models in memory, and their predictions."""

"""Shared layers and options that are not architectures themselves."""

"""Shared pieces of tasks that are not tasks themselves."""

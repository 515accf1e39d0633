"""Processes: what a person or a Ray worker starts."""

"""Losses: what a batch and a model are to each other, one file for each family."""

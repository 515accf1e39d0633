"""Verbs: data, model, training, evaluation, and the DAG that orders them."""

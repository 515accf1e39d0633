"""Simple classifiers on frozen features: few-shot least squares, neighbours, logistic."""

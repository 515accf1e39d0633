"""What a model is worth: accuracy, baselines, report."""

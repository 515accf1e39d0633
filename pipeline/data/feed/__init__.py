"""From stored images to exact batches: which, when, changed how."""

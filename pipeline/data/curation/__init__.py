"""Taking images out: copies of test images, near copies, poor images, takedowns."""

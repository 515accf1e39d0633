"""One loop, two engines, one checkpoint form."""

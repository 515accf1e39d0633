"""From raw files to sealed shards: list, map, select, reduce, seal; and adding to a set."""

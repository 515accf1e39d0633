"""Adapters: each fulfils one protocol of `pipeline.ports`."""

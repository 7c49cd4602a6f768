"""Checkpoints as files: headers, shards, reading and writing byte ranges. Imports no torch."""

"""A run folder: its settings, model file, checksums and lineage."""

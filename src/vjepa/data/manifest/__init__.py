"""Manifests: one row per video, from folders and lists to a Parquet file."""

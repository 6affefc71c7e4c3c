"""Frozen evaluation: features, probes, honest metrics, and what is written down about them."""

"""Batches: order, worker processes, and what becomes of videos that cannot be read."""

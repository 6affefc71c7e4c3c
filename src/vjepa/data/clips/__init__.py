"""Clips: which frames and which part of them, and the pixels."""

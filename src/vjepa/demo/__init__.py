"""A synthetic labelled video set, and the demonstration that is made with it."""

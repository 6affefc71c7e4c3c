"""Preparing videos for training: fingerprints, removal of copies, transcoding, shards."""

"""Crystals on disk and in batches."""

"""Pre-training objectives; they add up."""

"""False samples: one generator for every model, as index arithmetic on the batch."""

"""The device's work: train a slice of the model, measure importance, evaluate."""

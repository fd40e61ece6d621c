"""The model: families, adapters, slices, importance, aggregation and saving."""

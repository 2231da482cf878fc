"""The model: arrays and index tensors in, arrays out; torch lives here and nowhere else."""

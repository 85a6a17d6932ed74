"""What is decoded: synthetic batches, captured tensors and request traces."""

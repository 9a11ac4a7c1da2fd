"""What the experiments on images share: their configuration, data, batches, the linear probe and the scoring."""

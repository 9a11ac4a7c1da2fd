"""Image data shared by the experiments: catalog, readers, prompts, few-shot subsets, transforms."""

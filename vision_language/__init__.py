"""Vision-language experiments: both towers of CLIP are fine-tuned."""

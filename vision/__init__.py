"""Vision experiments: DINOv2 with a linear head, or the vision tower of CLIP, is fine-tuned."""

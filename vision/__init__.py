"""Vision-only experiments (DINOv2 and the vision tower of CLIP, 21 datasets). Nothing to run here yet."""

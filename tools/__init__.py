"""What makes files of this repository again: generated pages, the weights of the small CLIP. Nothing imports it."""

"""Makes the weights of the small CLIP: data, generated images, training, evaluation, model card."""

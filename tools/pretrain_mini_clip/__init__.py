"""How the weights of the small CLIP are made: data, generated images, training, evaluation, model card."""

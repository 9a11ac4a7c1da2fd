"""Parts of `python -m randlora_core.benchmark`: what is measured, how, and how it is laid out."""

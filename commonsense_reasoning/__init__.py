"""Commonsense reasoning experiments (Qwen2, Phi-3, Llama-3). Nothing to run here yet."""

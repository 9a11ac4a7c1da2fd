"""The training loop and what it needs: optimizer, resumable state, devices, measuring."""

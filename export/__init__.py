"""From a trained PyTorch module to a verified bundle."""

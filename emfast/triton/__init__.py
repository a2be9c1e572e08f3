"""A segmenter as a model repository of NVIDIA's Triton Inference Server, with a client for it."""

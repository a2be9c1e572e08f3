"""Whether synthetic images help to train a segmenter: the study and its table."""

"""What a model costs on this machine, beside what its peers cost in the same run."""

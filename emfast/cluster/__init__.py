"""Sets and volumes shared out between the workers of a Ray cluster.

Ray starts the workers, gives them shards and starts lost ones again; the folder on the shared file
system is what they agree by, as shards without Ray do.
"""

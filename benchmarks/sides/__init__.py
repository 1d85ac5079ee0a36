"""The sides of a comparison: each module is a worker process that trains, or writes, or scores when it is its turn."""

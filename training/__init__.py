"""From data to a release: sources, data sets, the training loop, the ranking model, evaluation and publishing."""

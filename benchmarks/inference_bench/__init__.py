"""Parts of the inference benchmark: the policies it runs, how it takes turns, and the table."""

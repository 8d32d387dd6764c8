"""What is written beside and around the weights."""

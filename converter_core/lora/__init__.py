"""LoRA: what the keys of a file mean, and how their terms are added to a weight."""

"""Two quantization schemes for model-converter, each a module and an entry point of its own."""

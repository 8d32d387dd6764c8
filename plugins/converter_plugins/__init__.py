"""The plugins that ship with model-converter, registered through entry points exactly as a third party's are."""

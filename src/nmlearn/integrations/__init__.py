"""Third-party frameworks: one file each, imported only by name, as in ``import nmlearn.integrations.transformers``."""

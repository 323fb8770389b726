"""Files: packed and dense models, formats, checkpoints of LBC's authors."""

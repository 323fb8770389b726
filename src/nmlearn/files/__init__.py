"""Files: packed and dense models, formats, what the authors of LBC wrote."""

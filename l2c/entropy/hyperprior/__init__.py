"""The entropy models of CompressAI's codecs: a hyperprior, for some with a context in raster order; exact integers."""

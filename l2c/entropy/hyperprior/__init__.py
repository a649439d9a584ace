"""The entropy models of CompressAI's codecs: a hyperprior, and for some a context in raster order, as integers."""
